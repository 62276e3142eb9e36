import hashlib
import http.server
import json
import subprocess
import threading
import time
import urllib.error
import urllib.request
from datetime import timedelta
from pathlib import Path

import pytest
from botocore.utils import InstanceMetadataFetcher
from ec2_make import NOON, SUBNETS

from localcloud import substrate
from localcloud.control import Control
from localcloud.instances import Instance
from localcloud.launch import Blueprint
from localcloud.machine import Machines
from localcloud.market import SPOT, Pool
from localcloud.metadata import Metadata
from localcloud.systemd import BadUnit, inside, read
from localcloud.world import World
from templates import userdata

SESSION = {"AccessKeyId": "ASIA1", "SecretAccessKey": "s3cr3t", "Token": "t0k3n", "Expiration": "2099-01-01T00:00:00Z"}


def instance(user_data: str = "", **changes) -> Instance:
    blueprint = Blueprint(
        template_id="lt-1", version=1, user_data=user_data, role_arn="arn:aws:iam::123456789012:role/instance"
    )
    return Instance(
        **{
            "id": "i-0123456789abcdef0",
            "pool": Pool("g5.xlarge", "us-east-1a"),
            "lifecycle": SPOT,
            "subnet": SUBNETS["subnet-a"],
            "blueprint": blueprint,
            "owner": "sfr-1",
            "price": 0.3,
            "launched": NOON,
            "due": NOON,
            "ip": "10.0.0.4",
            **changes,
        }
    )


# The metadata service


@pytest.fixture
def imds():
    one = instance()
    served = Metadata(one, lambda: SESSION)
    yield one, served.uri
    served.close()


def ask(url: str, method: str = "GET", **headers: str) -> tuple[int, str]:
    wanted = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, method=method, headers=wanted)
    try:
        with urllib.request.urlopen(request, timeout=5) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, ""


def token(uri: str, ttl: str = "60") -> tuple[int, str]:
    return ask(f"{uri}/latest/api/token", "PUT", X_aws_ec2_metadata_token_ttl_seconds=ttl)


def look(uri: str, path: str) -> tuple[int, str]:
    return ask(f"{uri}/latest/{path}", X_aws_ec2_metadata_token=token(uri)[1])


def test_without_a_token_there_is_nothing(imds):
    _, uri = imds

    assert ask(f"{uri}/latest/meta-data/instance-id")[0] == 401
    assert ask(f"{uri}/latest/meta-data/instance-id", X_aws_ec2_metadata_token="made up")[0] == 401
    assert look(uri, "meta-data/instance-id") == (200, "i-0123456789abcdef0")


@pytest.mark.parametrize("ttl, status", [("1", 200), ("21600", 200), ("21601", 400), ("0", 400), ("", 400), ("x", 400)])
def test_a_token_lives_one_second_to_six_hours(imds, ttl, status):
    assert token(imds[1], ttl)[0] == status


def test_a_token_ends(imds):
    _, uri = imds
    short = token(uri, "1")[1]
    time.sleep(1.1)

    assert ask(f"{uri}/latest/meta-data/instance-id", X_aws_ec2_metadata_token=short)[0] == 401


def test_no_notice_is_404_until_there_is_one(imds):
    one, uri = imds
    assert look(uri, "meta-data/spot/instance-action")[0] == 404
    assert look(uri, "meta-data/events/recommendations/rebalance")[0] == 404

    one.notice = NOON + timedelta(seconds=120)
    one.rebalance = NOON

    action = {"action": "terminate", "time": "2026-08-01T12:02:00Z"}
    assert json.loads(look(uri, "meta-data/spot/instance-action")[1]) == action
    assert look(uri, "meta-data/spot/termination-time")[1] == action["time"]
    assert json.loads(look(uri, "meta-data/events/recommendations/rebalance")[1]) == {
        "noticeTime": "2026-08-01T12:00:00Z"
    }


def test_what_there_is_not_is_404(imds):
    assert look(imds[1], "meta-data/public-keys")[0] == 404
    assert look(imds[1], "user-data")[0] == 404


def test_the_identity_document_and_the_life_cycle(imds):
    _, uri = imds
    document = json.loads(look(uri, "dynamic/instance-identity/document")[1])

    assert document["instanceType"] == "g5.xlarge"
    assert document["availabilityZone"] == look(uri, "meta-data/placement/availability-zone")[1] == "us-east-1a"
    assert look(uri, "meta-data/instance-life-cycle")[1] == "spot"


def test_botocore_finds_its_credentials(imds):
    fetched = InstanceMetadataFetcher(base_url=imds[1]).retrieve_iam_role_credentials()

    assert fetched["access_key"] == "ASIA1"
    assert fetched["token"] == "t0k3n"


def test_a_closed_service_answers_nobody():
    served = Metadata(instance(), lambda: SESSION)
    served.close()

    with pytest.raises(urllib.error.URLError):
        token(served.uri)


# User data


SCRIPT = """#!/bin/bash
set -euo pipefail
imds=http://169.254.169.254/latest
token=$(curl -f -s -S -X PUT -H "X-aws-ec2-metadata-token-ttl-seconds: 60" "$imds/api/token")
metadata() { curl -fsS --retry 2 -H "X-aws-ec2-metadata-token: $token" "$imds/meta-data/$1"; }
mkdir -p /etc/ecs /opt/thing
cat > /etc/ecs/ecs.config <<EOF
ECS_CLUSTER=one
ECS_INSTANCE_ATTRIBUTES={"lifecycle":"$(metadata instance-life-cycle)"}
EOF
curl -fsS --aws-sigv4 "aws:amz:us-east-1:s3" --user "key:secret" -H "x-amz-security-token: t0k3n" \
  -o /opt/thing/agent.py "https://assets.s3.us-east-1.amazonaws.com/agent.py"
echo "WHERE=/run/thing" > /etc/thing.env
cat > /etc/systemd/system/thing.service <<'EOF'
[Unit]
StartLimitIntervalSec=0
[Service]
EnvironmentFile=/etc/thing.env
ExecStart=/usr/bin/python3 /opt/thing/agent.py
Restart=always
RestartSec=200ms
RuntimeDirectory=thing
ProtectSystem=strict
[Install]
WantedBy=multi-user.target
EOF
systemctl daemon-reload
systemctl enable --now thing.service
"""
AGENT = """
import os, pathlib, time
place = pathlib.Path(os.environ["WHERE"]) / "started"
with place.open("a") as started:
    started.write("x")
(place.parent / "seams").write_text(os.environ["AWS_EC2_METADATA_SERVICE_ENDPOINT"] + " " + os.environ["ECS_AGENT_URI"])
time.sleep(600)
"""


class FakeAgent:
    """The ECS agent's place."""

    uri = "http://127.0.0.1:9"

    def __init__(self, host) -> None:
        self.host = host
        self.started = threading.Event()
        self.stopped = False

    def start(self) -> None:
        self.started.set()

    def stop(self) -> None:
        self.stopped = True


class FakeEcs:
    def __init__(self) -> None:
        self.gone, self.away = [], []

    def instance_gone(self, instance_id: str) -> None:
        self.gone.append(instance_id)

    def agent_gone(self, instance_id: str) -> None:
        self.away.append(instance_id)


@pytest.fixture
def s3():
    """Answers GET /assets/agent.py to a signed request, and remembers how it was asked."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, dict(self.headers)))
            self.send_response(200 if self.path == "/assets/agent.py" else 404)
            self.end_headers()
            self.wfile.write(AGENT.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


class Laptop:
    def __init__(self, folder: Path, endpoint: str) -> None:
        self.world = World(state=folder, endpoint=endpoint, speed=1000)
        self.control = Control(self.world)
        self.ecs = FakeEcs()
        self.agents = []
        self.machines = Machines(self.world, self.control, self.ecs, self.hire)
        self.world.start()

    def hire(self, host):
        self.agents.append(FakeAgent(host))
        return self.agents[-1]

    def boot(self, user_data: str) -> Instance:
        one = instance(user_data)
        with self.world.lock:
            self.machines.boot(one)
        return one

    def root(self, one: Instance) -> Path:
        return self.world.state / "instances" / one.id / "root"


@pytest.fixture
def laptop(tmp_path, s3, monkeypatch):
    monkeypatch.setattr(substrate, "session", lambda *_: SESSION)
    made = Laptop(tmp_path, s3[0])
    yield made
    made.world.stop()


def until(true, seconds: float = 15) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    return true()


def test_user_data_runs_for_real_and_the_agents_start(laptop, s3):
    one = laptop.boot(SCRIPT)

    assert laptop.agents[0].started.wait(15), laptop.world.diary("user data failed")

    config = laptop.agents[0].host.config
    assert config == {"ECS_CLUSTER": "one", "ECS_INSTANCE_ATTRIBUTES": '{"lifecycle":"spot"}'}
    assert laptop.agents[0].host.gpus == 1
    run = laptop.root(one) / "run/thing"
    assert until(lambda: (run / "seams").exists())
    assert (run / "seams").read_text().endswith(" http://127.0.0.1:9")
    path, headers = s3[1][0]
    assert path == "/assets/agent.py"
    assert headers["Authorization"].startswith("AWS4-HMAC-SHA256 Credential=key/")
    assert "x-amz-security-token" in headers["Authorization"]


def test_the_products_own_user_data_installs_its_agent(laptop, s3):
    values = {
        "Cluster": "one",
        "StopTimeout": "110",
        "AWS::Region": "us-east-1",
        "AWS::URLSuffix": "amazonaws.com",
        "AssetsBucket": "assets",
        "AgentKey": "agent.py",
        "AgentSha256": hashlib.sha256(AGENT.encode()).hexdigest(),
        "NoticesTopic": "arn:aws:sns:us-east-1:123456789012:notices",
    }
    one = laptop.boot(userdata.script(values))

    assert laptop.agents[0].started.wait(15)

    assert not laptop.world.diary("user data failed")
    assert laptop.agents[0].host.config["ECS_CLUSTER"] == "one"
    (service,) = laptop.machines._machines[one.id].services.values()
    assert service.unit.environment["SPINDRIFT_HOST_DIR"] == str(laptop.root(one) / "run/spindrift")
    assert service.unit.restart == "always"


def test_an_agent_with_another_hash_is_not_started(laptop):
    places = ("Cluster", "StopTimeout", "AWS::Region", "AWS::URLSuffix", "AssetsBucket", "AgentKey", "NoticesTopic")
    values = dict(zip(places, ("one", "110", "us-east-1", "amazonaws.com", "assets", "agent.py", "arn"), strict=True))
    one = laptop.boot(userdata.script({**values, "AgentSha256": "0" * 64}))

    assert laptop.agents[0].started.wait(15)

    assert "is not the agent" in laptop.world.diary("user data failed")[0]["log"]
    assert not laptop.machines._machines[one.id].services


def test_a_service_that_dies_comes_back_until_it_is_killed_for_good(laptop):
    one = laptop.boot(SCRIPT)
    assert laptop.agents[0].started.wait(15)
    started = laptop.root(one) / "run/thing/started"
    assert until(started.exists)

    (service,) = laptop.machines._machines[one.id].services.values()
    service.process.kill()
    assert until(lambda: started.read_text() == "xx")

    with laptop.world.lock:
        laptop.machines._kill_agent(one.id)
    time.sleep(1)
    assert started.read_text() == "xx"


def test_power_off_leaves_no_process_and_no_metadata(laptop):
    one = laptop.boot(SCRIPT)
    assert laptop.agents[0].started.wait(15)
    seams = laptop.root(one) / "run/thing/seams"
    assert until(seams.exists)
    uri = seams.read_text().split()[0]
    process = next(iter(laptop.machines._machines[one.id].services.values())).process

    with laptop.world.lock:
        laptop.machines.kill(one)

    assert until(lambda: laptop.ecs.gone == [one.id])
    assert process.poll() is not None
    assert laptop.agents[0].stopped
    with pytest.raises(urllib.error.URLError):
        token(uri)


def test_a_stopped_instance_starts_with_its_disk_and_does_not_run_user_data_again(laptop, s3):
    one = laptop.boot(SCRIPT)
    assert laptop.agents[0].started.wait(15)
    seen = laptop.root(one) / "run/thing/seams"
    assert until(seen.exists)
    laptop.agents[0].host.images.add("gpu-worker")
    (laptop.root(one) / "etc/kept").write_text("yes")

    with laptop.world.lock:
        laptop.machines.halt(one)
    assert until(lambda: laptop.ecs.away == [one.id])
    assert laptop.agents[0].stopped
    asked = len(s3[1])
    with laptop.world.lock:
        laptop.machines.boot(one)

    assert not seen.exists(), "/run is gone with the power"
    assert laptop.agents[1].started.wait(15)
    assert until(seen.exists), "an enabled service starts by itself"
    assert laptop.agents[1].host.config["ECS_CLUSTER"] == "one"
    assert laptop.agents[1].host.images == {"gpu-worker"}
    assert (laptop.root(one) / "etc/kept").read_text() == "yes"
    assert len(s3[1]) == asked
    assert laptop.ecs.gone == []


def test_user_data_that_was_cut_off_is_never_finished(laptop):
    one = laptop.boot("#!/bin/bash\necho begun > /opt/begun\nsleep 60\necho done > /opt/done\n")
    begun = laptop.root(one) / "opt/begun"
    assert until(begun.exists)

    with laptop.world.lock:
        laptop.machines.halt(one)
        laptop.machines.boot(one)

    assert laptop.agents[1].started.wait(15)
    assert not (laptop.root(one) / "opt/done").exists()


def test_a_service_that_was_only_started_does_not_come_back(laptop):
    one = laptop.boot(SCRIPT.replace("enable --now", "start"))
    assert laptop.agents[0].started.wait(15)

    with laptop.world.lock:
        laptop.machines.halt(one)
        laptop.machines.boot(one)

    assert laptop.agents[1].started.wait(15)
    assert laptop.machines._machines[one.id].services == {}


def test_the_state_that_a_group_wants_is_in_the_metadata(imds):
    one, uri = imds
    assert look(uri, "meta-data/autoscaling/target-lifecycle-state")[0] == 404

    one.target_state = "Warmed:Stopped"

    assert look(uri, "meta-data/autoscaling/target-lifecycle-state") == (200, "Warmed:Stopped")


def test_user_data_that_fails_is_told_and_ecs_starts_with_what_was_written(laptop):
    one = laptop.boot(
        "#!/bin/bash\nset -e\nmkdir -p /etc/ecs\necho ECS_CLUSTER=one > /etc/ecs/ecs.config\necho 'oh no' >&2\n"
        "curl -fsS https://example.com/\n"
    )

    assert laptop.agents[0].started.wait(15)

    (line,) = laptop.world.diary("user data failed")
    assert line["subject"] == one.id
    assert "oh no" in line["log"]
    assert "has no https://example.com/" in line["log"]
    assert laptop.agents[0].host.config == {"ECS_CLUSTER": "one"}


def test_the_hand_of_fate_hides_gpus_and_keeps_instances_away(laptop):
    laptop.machines._next_without_gpu(1)
    laptop.machines._next_not_joining(1)

    laptop.boot("")

    assert laptop.agents[0].host.gpus == 0
    assert not laptop.agents[0].started.wait(1)


def test_an_instance_may_switch_itself_off(laptop):
    off = []
    laptop.machines.on_poweroff(off.append)

    one = laptop.boot("#!/bin/bash\nshutdown -h now\n")

    assert until(lambda: off == [one])


def test_an_instance_may_say_when_it_switches_itself_off(laptop):
    off = []
    laptop.machines.on_poweroff(off.append)

    later = laptop.boot("#!/bin/bash\nshutdown -h +600\n")
    soon = laptop.boot("#!/bin/bash\nset -e\nshutdown -h +1\n")

    assert until(lambda: off == [soon])
    assert later not in off


@pytest.mark.parametrize(
    "text, moved",
    [
        ("mkdir -p /etc/ecs /opt/x", "mkdir -p R/etc/ecs R/opt/x"),
        ("DIR=/run/spindrift", "DIR=R/run/spindrift"),
        ('"/var/lib/x"', '"R/var/lib/x"'),
        ("https://s3.aws.com/opt/x", "https://s3.aws.com/opt/x"),
        ("$imds/run", "$imds/run"),
        ("/usr/bin/python3 /usr/local/bin/x", "/usr/bin/python3 R/usr/local/bin/x"),
        ("/etcetera /dev/null", "/etcetera /dev/null"),
    ],
)
def test_only_paths_of_the_instance_move(tmp_path, text, moved):
    there = inside(text, tmp_path)

    assert there == moved.replace("R/", f"{tmp_path}/")
    assert inside(there, tmp_path) == there


@pytest.mark.parametrize(
    "said, complaint",
    [
        ("ExecStart=/bin/true\nWatchdogSec=3", "WatchdogSec"),
        ("Type=forking\nExecStart=/bin/true", "Type"),
        ("Restart=always", "ExecStart"),
        ("ExecStart=/bin/true\nRestartSec=soon", "time span"),
    ],
)
def test_a_unit_that_is_not_played_is_refused(tmp_path, said, complaint):
    unit = tmp_path / "x.service"
    unit.write_text(f"[Service]\n{said}\n")

    with pytest.raises(BadUnit, match=complaint):
        read(unit, tmp_path)


def test_curl_refuses_what_it_does_not_know(laptop):
    curl = laptop.world.state / "bin/curl"

    done = subprocess.run([curl, "-k", "https://example.com"], capture_output=True, text=True)

    assert done.returncode == 2
    assert "does not know -k" in done.stderr
