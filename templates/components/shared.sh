#!/bin/bash
# Makes /shared: on a disk of the instance itself if it has one, or else in the memory that tasks and system leave over.
set -euo pipefail
mkdir -p /shared

if mountpoint --quiet /shared; then
  :
elif /usr/local/sbin/spindrift-disk && mountpoint --quiet /mnt/spindrift; then
  mkdir -p /mnt/spindrift/shared
  mount --bind /mnt/spindrift/shared /shared
else
  # A task has one GPU; what all tasks may take stays theirs, and 1 GiB is the system's.
  gpus=0
  for device in /sys/bus/pci/devices/*; do
    case $(cat "$device/vendor" "$device/class" 2> /dev/null | tr '\n' ' ') in
      "0x10de 0x03"*) gpus=$((gpus + 1)) ;;
    esac
  done
  mib=$(($(awk '/^MemTotal:/ { print $2 }' /proc/meminfo) / 1024 - gpus * {MEMORY_MIB} - 1024))
  if [ "$mib" -ge 64 ]; then
    mount --types tmpfs --options size="$mib"M,nodev,nosuid tmpfs /shared
  else
    echo "spindrift: no memory to spare, /shared is on the root volume"
  fi
fi
chmod 1777 /shared

# What was built for this family of instance types (tar sees itself how it is compressed).
[ -d /opt/spindrift/apps ] || exit 0
imds=http://169.254.169.254/latest
token=$(curl -f -s -S --retry 10 -X PUT -H "X-aws-ec2-metadata-token-ttl-seconds: 60" "$imds/api/token")
type=$(curl -f -s -S --retry 10 -H "X-aws-ec2-metadata-token: $token" "$imds/meta-data/instance-type")
family=$(printf '%s' "$type" | cut -d . -f 1)
for app in /opt/spindrift/apps/*; do
  if [ -f "$app/$family" ]; then
    place=/shared/$(basename "$app")
    mkdir -p "$place"
    tar --extract --no-same-owner --file "$app/$family" --directory "$place"
  else
    echo "spindrift: nothing of $app was built for $family"
  fi
done
