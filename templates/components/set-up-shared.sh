cat > /usr/local/sbin/spindrift-disk <<'EOF'
{DISK}EOF
cat > /usr/local/sbin/spindrift-shared <<'EOF'
{SHARED}EOF
chmod 755 /usr/local/sbin/spindrift-disk /usr/local/sbin/spindrift-shared
cat > /etc/systemd/system/spindrift-shared.service <<'EOF'
[Unit]
Description=Makes /shared, and unpacks there what was built for this family of instance types
Wants=network-online.target
After=local-fs.target network-online.target
# Before a task's container mounts it.
Before=docker.service ecs.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/spindrift-shared

[Install]
WantedBy=multi-user.target
EOF
systemctl daemon-reload
systemctl enable spindrift-shared.service
