if grep -q -s 0x10de /sys/bus/pci/devices/*/vendor; then
  nvidia-smi --list-gpus
else
  echo "spindrift: no GPU here, the driver was not tested"
fi
