#!/bin/bash
# Has Docker keep its volumes, and so tasks their scratch space, on a disk of the instance's own if it has one: that is
# faster than the root volume, and free. It is empty again when the instance was stopped, so this runs at each boot.
set -euo pipefail

# The largest; what they are called all have in common.
disk=$(lsblk --bytes --nodeps --noheadings --output SIZE,PATH,MODEL |
  awk '/Amazon EC2 NVMe Instance Storage/ { if ($1 > most) { most = $1; disk = $2 } } END { print disk }')
[ -n "$disk" ] || exit 0
own=/mnt/spindrift volumes=/var/lib/docker/volumes
if ! mountpoint --quiet "$own"; then
  # After a reboot it is as it was left. Without -f, what somebody else has put there stays.
  [ "$(blkid --output value --match-tag LABEL "$disk")" = spindrift ] || mkfs.xfs -q -K -L spindrift "$disk"
  mkdir -p "$own"
  mount --options noatime,nodev,nosuid "$disk" "$own"
fi
mkdir -p "$own/volumes" "$volumes"
chmod 701 "$own/volumes"
size() { df --output=size "$1" | tail -n 1; }
# Whoever has a larger root volume wants its room. Docker may run already: it goes by the path, for each volume anew.
if ! mountpoint --quiet "$volumes" && [ "$(size "$own")" -gt "$(size "$volumes")" ]; then
  mount --bind "$own/volumes" "$volumes"
fi
