import hashlib
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from judges.filled import settled
from judges.scripts import user_data
from templates import userdata
from tests.metadata_server import ACCESS_KEY, SECRET_KEY
from tests.stacks_make import EVERYTHING, stack

ROOT = Path(__file__).parents[1]
AGENT = "the agent\n"
KEY = "agent-0123456789abcdef.pyz"
APART = ["unshare", *(() if os.geteuid() == 0 else ("--map-root-user",)), "--mount", "--net"]
PROBE = (
    "mount --make-rprivate / && mount -t tmpfs tmpfs /mnt && mkdir /mnt/upper /mnt/work && "
    "mount -t overlay overlay -o lowerdir=/etc,upperdir=/mnt/upper,workdir=/mnt/work /etc && "
    "ip link set lo up && curl --version"
)


@cache
def why_not():
    """What keeps this machine from giving a script a file system and a network of its own; nothing, mostly."""
    try:
        probe = subprocess.run([*APART, "sh", "-c", PROBE], capture_output=True, text=True)
    except FileNotFoundError as error:
        return str(error)
    return probe.stderr.strip() or "unshare failed" if probe.returncode else ""


@pytest.fixture
def boot(tmp_path):
    """Boot an instance once: (report, the files and folders it has now)."""
    if reason := why_not():
        pytest.skip(f"no namespaces with overlays here: {reason}")

    def run(life_cycle="spot", agent=AGENT, s3_status=200, table=None, launch="LaunchTemplate"):
        template = stack(table or {}, agent_sha256=hashlib.sha256(AGENT.encode()).hexdigest())
        script = user_data(settled(template, True), {"AssetsBucket": "my-assets"})[launch]
        (tmp_path / "user-data.sh").write_text(script)
        order = {"life_cycle": life_cycle, "agent": agent, "s3_status": s3_status}
        (tmp_path / "order.json").write_text(json.dumps(order))
        command = [*APART, sys.executable, "-m", "tests.first_boot", tmp_path]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        report = json.loads((tmp_path / "report.json").read_text())
        return report, report["left"]

    return run


def lines(left, path):
    return left[path][1].splitlines()


def test_a_spot_instance_has_what_ecs_and_the_agent_read(boot):
    report, left = boot()

    assert report["status"] == 0, report["said"]
    assert lines(left, "/etc/ecs/ecs.config") == [
        "ECS_CLUSTER=spindrift-Cluster-0A1B2C3D",
        'ECS_INSTANCE_ATTRIBUTES={"lifecycle":"spot"}',
        "ECS_ENABLE_SPOT_INSTANCE_DRAINING=true",
        "ECS_CONTAINER_STOP_TIMEOUT=110s",
        "ECS_ENABLE_CONTAINER_METADATA=true",
        "ECS_ENABLE_AWSLOGS_EXECUTIONROLE_OVERRIDE=true",
        "ECS_RESERVED_MEMORY=256",
    ]
    assert lines(left, "/etc/spindrift/agent.env") == [
        "SPINDRIFT_NOTICES_TOPIC_ARN=arn:aws:sns:eu-west-1:111122223333:spindrift-NoticesTopic-0A1B2C3D",
        "SPINDRIFT_HOST_DIR=/run/spindrift",
        "AWS_DEFAULT_REGION=eu-west-1",
    ]
    assert left["/etc/systemd/system/spindrift-agent.service"][1] == userdata.UNIT
    assert left["/opt/spindrift/agent.pyz"][1] == AGENT
    assert report["systemctl"] == ["daemon-reload", "enable --now spindrift-agent.service"]


def test_it_leaves_these_files_and_folders_and_no_others(boot):
    _, left = boot()

    assert {path: mode for path, (mode, _) in left.items()} == {
        "/etc/ecs": "0o755",
        "/etc/ecs/ecs.config": "0o644",
        "/etc/spindrift": "0o755",
        "/etc/spindrift/agent.env": "0o644",
        "/etc/systemd": "0o755",
        "/etc/systemd/system": "0o755",
        "/etc/systemd/system/spindrift-agent.service": "0o644",
        "/opt/spindrift": "0o755",
        "/opt/spindrift/agent.pyz": "0o644",
        "/run/spindrift": "0o755",
        "/var/lib/cloud": "0o755",
        "/var/lib/cloud/scripts": "0o755",
        "/var/lib/cloud/scripts/per-boot": "0o755",
        "/var/lib/cloud/scripts/per-boot/spindrift-disk": "0o755",
        "/var/lib/spindrift": "0o755",
    }


def test_the_agent_comes_from_s3_signed_as_the_instance_role(boot):
    report, left = boot()

    assert report["s3"] == [f"GET https://s3.eu-west-1.amazonaws.com/my-assets/{KEY}"]
    assert report["metadata"][0] == "PUT /latest/api/token"
    for secret in (ACCESS_KEY, SECRET_KEY, "that-must-not-be-logged"):
        assert secret not in report["said"] + json.dumps(left)


def test_an_on_demand_instance_of_the_warm_pool_waits_for_its_state(boot):
    report, left = boot("on-demand", table=EVERYTHING, launch="WarmLaunchTemplate")

    assert report["status"] == 0, report["said"]
    assert 'ECS_INSTANCE_ATTRIBUTES={"lifecycle":"on-demand"}' in lines(left, "/etc/ecs/ecs.config")
    assert "ECS_WARM_POOLS_CHECK=true" in lines(left, "/etc/ecs/ecs.config")


@pytest.mark.parametrize(
    ("case", "trouble", "said"),
    [
        ("another file", {"agent": "not the agent\n"}, f"s3://my-assets/{KEY} is not the agent that this stack was built with"),
        ("half of it", {"agent": AGENT[:4]}, "is not the agent that this stack was built with"),
        ("no permission", {"s3_status": 403}, "set-up failed at line"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_without_its_agent_it_joins_and_says_what_failed(boot, case, trouble, said):
    report, left = boot(**trouble)

    assert report["status"] != 0
    assert said in report["said"]
    assert "ECS_CLUSTER=spindrift-Cluster-0A1B2C3D" in lines(left, "/etc/ecs/ecs.config")
    assert "/opt/spindrift/agent.pyz" not in left
    assert "/etc/systemd/system/spindrift-agent.service" not in left
    assert report["systemctl"] == []
