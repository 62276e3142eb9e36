"""A local cloud with ECS alone, whose instances a test boots and kills by hand: `boot`, `die`. Run as a module it is it."""

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from localcloud import command, ecs, laptop, substrate
from localcloud.control import Control
from localcloud.ecsagent import EcsAgent
from localcloud.host import Host, Open
from localcloud.laptop import Laptop
from localcloud.world import World

AGENT_ACTIONS = [
    "ecs:RegisterContainerInstance",
    "ecs:DiscoverPollEndpoint",
    "ecs:Poll",
    "ecs:StartTelemetrySession",
    "ecs:SubmitTaskStateChange",
    "logs:CreateLogStream",
    "logs:PutLogEvents",
]

LOUD = """
import json, os, pathlib, signal, sys, time, urllib.request

def get(url, **more):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, **more)) as reply:
            return json.load(reply)
    except urllib.error.HTTPError as error:
        return {"status": error.code, **json.load(error)}

def protect(on):
    url = os.environ["ECS_AGENT_URI"] + "/task-protection/v1/state"
    return get(url, data=json.dumps({"ProtectionEnabled": on}).encode(), method="PUT")

def say(**what):
    print(json.dumps(what), flush=True)

metadata = get(os.environ["ECS_CONTAINER_METADATA_URI_V4"] + "/task")
if os.environ.get("WHO"):
    import boto3
    say(caller=boto3.client("sts").get_caller_identity()["Arn"])
deaf = os.environ.get("DEAF")
signal.signal(signal.SIGTERM, lambda *_: say(heard="SIGTERM") if deaf else sys.exit(7))
if os.environ.get("PROTECT"):
    say(protection=protect(True))
say(metadata=metadata, environment=dict(os.environ))
flag = pathlib.Path(os.environ.get("FLAG", "/nonexistent/flag"))
while True:
    time.sleep(0.05)
    if flag.exists() and not os.environ.get("FREED"):
        os.environ["FREED"] = "yes"
        say(protection=protect(False))
"""


class Lacking(Open):
    """A way to everything but what it lacks, through endpoints of that policy."""

    def __init__(self, lacks: Sequence[str], policy: dict[str, Any] | None) -> None:
        self._lacks, self._policy = lacks, policy

    def policy(self, service: str) -> dict[str, Any] | None:
        return self._policy

    def reaches(self, service: str) -> bool:
        return service not in self._lacks

    def meets(self, groups: Sequence[str], port: int, address: str) -> bool:
        return "nfs" not in self._lacks


def furnish(world: World, control: Control) -> Any:
    containers, resources = ecs.furnish(world, control)
    agents: dict[str, EcsAgent] = {}

    wanted: dict[str, str] = {}

    def boot(
        instance: str,
        role: str = "instance",
        gpus: int = 1,
        lifecycle: str = "spot",
        zone: str = "us-east-1a",
        warm: bool = False,
        lacks: Sequence[str] = (),
        policy: dict[str, Any] | None = None,
    ) -> str:
        """`lacks`: services of AWS, and `nfs`, that there is no way to. `warm`: it waits until it is wanted."""
        way = Lacking(lacks, policy)
        host = Host(
            instance_id=instance,
            instance_type="g5.xlarge",
            zone=zone,
            lifecycle=lifecycle,
            gpus=gpus,
            vcpus=4,
            memory_mib=16384,
            root=world.state / instance,
            config={
                "ECS_CLUSTER": "jobs",
                "ECS_INSTANCE_ATTRIBUTES": json.dumps({"lifecycle": lifecycle}),
                **({"ECS_WARM_POOLS_CHECK": "true"} if warm else {}),
            },
            credentials=lambda: substrate.session(f"arn:aws:iam::123456789012:role/{role}", instance, way=way),
            target_state=lambda: wanted.get(instance, "Warmed:Stopped"),
            role=f"arn:aws:iam::123456789012:role/{role}",
            way=way,
        )
        agents[instance] = EcsAgent(world, containers, host)
        agents[instance].start()
        return agents[instance].uri

    def die(instance: str) -> None:
        agents[instance].stop()
        containers.instance_gone(instance)

    def want(instance: str, state: str) -> None:
        wanted[instance] = state

    control.offer("test/want", want)
    control.offer("test/boot", boot)
    control.offer("test/die", die)
    return [containers], resources


@contextlib.contextmanager
def ecs_cloud(speed: float) -> Iterator[Laptop]:
    with tempfile.TemporaryDirectory(prefix="spindrift-ecs-") as folder:
        state, endpoint = Path(folder), f"http://127.0.0.1:{command.free_port()}"
        arguments = ["--port", endpoint.rsplit(":", 1)[1], "--speed", str(speed), "--state", folder]
        with (state / "cloud.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.ecs_make", *arguments], cwd=laptop.PROJECT, stdout=log, stderr=log
            )
            try:
                laptop._wait_until_it_answers(endpoint, process, state)
                yield Laptop(endpoint, state, process)
            finally:
                process.terminate()
                process.wait(20)


def role(cloud: Laptop, name: str, service: str, actions: list[str]) -> str:
    statement = {"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}
    iam = cloud.client("iam")
    arn = iam.create_role(
        RoleName=name, AssumeRolePolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    )["Role"]["Arn"]
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": actions, "Resource": "*"}]}
    iam.put_role_policy(RoleName=name, PolicyName="all", PolicyDocument=json.dumps(policy))
    return str(arn)


if __name__ == "__main__":
    command.furnish = furnish
    sys.exit(command.main())
