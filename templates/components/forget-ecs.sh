# ECS keeps here who it is: every instance made of this image would be the one that built it. The GPUs are that one's too.
systemctl stop ecs.service
rm -rf /var/lib/ecs/data /var/lib/ecs/gpu
mkdir -p /var/lib/ecs/data
rm -f /var/log/ecs/*
