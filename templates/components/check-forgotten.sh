[ -z "$(ls -A /var/lib/ecs/data)" ]
