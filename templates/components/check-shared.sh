systemctl is-active spindrift-shared.service
# Everybody's, as /tmp is.
[ "$(stat --format %a /shared)" = 1777 ]
