"""What an instance does at first boot: it joins the cluster, then starts the interruption agent.

The image has no `aws` command (it is built on al2023-ami-minimal), so the agent is fetched by curl, which signs for S3.
An image of our own (image.py) has it already, and nothing is fetched; what the script shares with that image's
components are files in components/.

An instance with disks of its own (instance store) has its tasks' scratch space there. NVMe devices of that kind are
called "Amazon EC2 NVMe Instance Storage" (EC2 User Guide, "NVMe instance store volumes"), and ECS keeps the volumes of
tasks in /var/lib/docker/volumes (ECS Developer Guide, "Docker volumes").

An instance that cannot install the agent still works and still drains at a Spot notice, by ECS and by EventBridge; the
script says what failed and exits with 1, which cloud-init reports on the console and in its log.

`$name` is the shell's and `${Name}` is CloudFormation's (Fn::Sub).
"""

from __future__ import annotations

import re
from pathlib import Path

from troposphere import Base64, Sub

from templates.assets import Asset
from templates.cluster import HOST_DIR
from templates.settings import Settings

COMPONENTS = Path(__file__).parent / "components"
MOST_BYTES = 16 * 1024
"""EC2 User Guide, "Run commands at launch": the limit, before base64."""

SCRIPT = r"""#!/bin/bash
set -euo pipefail
set -E  # the trap holds within functions too
trap 'echo "spindrift: set-up failed at line $LINENO" >&2' ERR
{aws.sh}
lifecycle=$(metadata instance-life-cycle)

# ECS starts after this script.
mkdir -p /etc/ecs
cat > /etc/ecs/ecs.config <<EOF
ECS_CLUSTER=${Cluster}
ECS_INSTANCE_ATTRIBUTES={"lifecycle":"$lifecycle"}
ECS_ENABLE_SPOT_INSTANCE_DRAINING=true
ECS_CONTAINER_STOP_TIMEOUT=${StopTimeout}s
ECS_ENABLE_CONTAINER_METADATA=true
ECS_ENABLE_AWSLOGS_EXECUTIONROLE_OVERRIDE=true
ECS_RESERVED_MEMORY=256
EOF
# Only for instances of a group: on others the ECS agent would wait two hours for a lifecycle state that never comes.
if [ "$lifecycle" = on-demand ]; then
  echo ECS_WARM_POOLS_CHECK=true >> /etc/ecs/ecs.config
fi

{install-agent.sh}
cat > /etc/spindrift/agent.env <<EOF
SPINDRIFT_NOTICES_TOPIC_ARN=${NoticesTopic}
SPINDRIFT_HOST_DIR={HOST_DIR}
AWS_DEFAULT_REGION=${AWS::Region}
EOF
systemctl daemon-reload
systemctl enable --now spindrift-agent.service

# cloud-init runs it at each later boot, before ECS starts too.
mkdir -p /var/lib/cloud/scripts/per-boot
cat > /var/lib/cloud/scripts/per-boot/spindrift-disk <<'EOF'
{disk.sh}EOF
chmod 755 /var/lib/cloud/scripts/per-boot/spindrift-disk
/var/lib/cloud/scripts/per-boot/spindrift-disk
"""

UNIT = f"""[Unit]
Description=Watches for Spot notices and announces them
Wants=network-online.target
After=network-online.target
# After a reboot its directory must be there before a worker's container mounts it.
Before=ecs.service
StartLimitIntervalSec=0

[Service]
EnvironmentFile=/etc/spindrift/agent.env
Environment=SHIV_ROOT=/var/lib/spindrift
ExecStart=/usr/bin/python3 /opt/spindrift/agent.pyz
Restart=always
RestartSec=1
RuntimeDirectory={HOST_DIR.removeprefix("/run/")}
# Workers have it mounted: a restart must not make another one in its place.
RuntimeDirectoryPreserve=yes
StateDirectory=spindrift
UMask=0022
MemoryMax=128M
OOMScoreAdjust=-500
CapabilityBoundingSet=
LockPersonality=yes
NoNewPrivileges=yes
PrivateDevices=yes
PrivateTmp=yes
ProtectControlGroups=yes
ProtectHome=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectSystem=strict
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallFilter=@system-service

[Install]
WantedBy=multi-user.target
"""


def script(values: dict[str, str]) -> str:
    """The script with values in CloudFormation's places, as an instance gets it."""
    return re.sub(r"\$\{([\w:]+)\}", lambda place: values[place[1]], _text())


def build(settings: Settings, agent: Asset) -> Base64:
    """The user data of the launch template."""
    return Base64(
        Sub(
            _text(),
            StopTimeout=str(settings.worker.stop_timeout_seconds),
            AgentKey=agent.key,
            AgentSha256=agent.sha256,
        )
    )


def part(name: str) -> str:
    """A script of components/, for Fn::Sub."""
    text = (COMPONENTS / name).read_text("utf-8")
    return text.replace("{UNIT}", UNIT).replace("{HOST_DIR}", HOST_DIR)


def _text() -> str:
    return re.sub(r"\{([a-z-]+\.sh)\}\n?", lambda place: part(place[1]), SCRIPT).replace("{HOST_DIR}", HOST_DIR)
