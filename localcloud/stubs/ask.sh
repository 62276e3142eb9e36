#!/bin/sh
# Stands for systemctl, shutdown and their like on an instance of the local cloud: hands the command line to the
# machine that runs this user data and gives its answer. LOCALCLOUD_INIT is the folder they talk through.
ask="$LOCALCLOUD_INIT/$$"
printf '%s\n' "${0##*/}" "$@" > "$ask.new"
mv "$ask.new" "$ask.ask"
while [ ! -e "$ask.reply" ]; do sleep 0.05; done
read -r status < "$ask.reply"
tail -n +2 "$ask.reply" >&2
exit "$status"
