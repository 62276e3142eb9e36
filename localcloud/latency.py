"""How fast the product reacts, at real time: upload to launch call from an idle system, and notice to DRAINING.

Beside that, what a launch is made of, by the moments that EC2 and ECS tell: the same can be asked of AWS.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from localcloud.demo import STACK, reaction_seconds, spread
from localcloud.laptop import PROJECT, DidNotWork, Laptop, laptop
from localcloud.scene import Scene, Window

TARGET_SECONDS = 5
"""Of an upload's launch call, and of the slowest notice (design, "Numbers to beat"); the median has two."""
IDLE_IMAGE = "idle:local"
IDLE = ["python", "-c", "import signal; signal.sigwait({signal.SIGTERM})"]
"""A worker that takes no job: a laptop's two cores must measure the product, not sixteen machines' image work."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print. Exit status 1 when a target of the design is missed."""
    parser = argparse.ArgumentParser(prog="make latency", description=__doc__)
    parser.add_argument("--launches", type=int, default=3, help="how often to wake an idle system (default: 3)")
    parser.add_argument("--rounds", type=int, default=2, help="how often to take the whole fleet back (default: 2)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=PROJECT / "build")
    options = parser.parse_args(arguments)
    console = Console(soft_wrap=True)
    home = options.out / "latency"
    shutil.rmtree(home, ignore_errors=True)
    try:
        with laptop(home / "cloud", speed=1.0, seed=options.seed) as cloud:
            figures = _measure(cloud, options, console)
    except DidNotWork as error:
        console.print(str(error), markup=False)
        return 1
    (home / "summary.json").write_text(json.dumps(figures, indent=2) + "\n")
    console.print_json(data=figures)
    drained = figures["notice_to_draining_seconds"]
    met = (
        figures["upload_to_launch_seconds"]["max"] < TARGET_SECONDS
        and figures["drained"] == figures["notices"]
        and drained["p50"] < 2
        and drained["p99"] < TARGET_SECONDS
    )
    return 0 if met else 1


def _measure(cloud: Laptop, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    cloud.run(sys.executable, "build.py", "--out", options.out)
    cloud.remote.do("image/add", name=IDLE_IMAGE, folder=str(PROJECT), argv=IDLE)
    outputs = cloud.deploy(options.out, STACK, WorkerImage=IDLE_IMAGE)
    window = Window(outputs, cloud.client, STACK)
    launches = []
    for number in range(options.launches):
        _until(console, "idle", window, lambda scene: scene.at_zero)
        launches.append(_upload_to_launch(cloud, outputs, f"wake/{number}"))
        console.print(f"upload to launch call: {launches[-1]:.2f} s")
        if number + 1 < options.launches:
            cloud.client("sqs").purge_queue(QueueUrl=outputs["JobsQueueUrl"])
    s3 = cloud.client("s3")
    for number in range(400):
        s3.put_object(Bucket=outputs["UploadsBucket"], Key=f"backlog/{number}", Body=b"x")
    dice = random.Random(options.seed)  # noqa: S311
    struck = frozenset[str]()
    parts: dict[str, float] = {}
    for _ in range(options.rounds):
        fleet = _until(console, "a whole new fleet", window, _whole_without(struck))
        struck = frozenset(fleet.pools)
        deadline = time.monotonic() + 60
        while not parts and time.monotonic() < deadline:  # what has joined does not work yet
            time.sleep(1)
            parts = launch_seconds(cloud.client, outputs["ClusterName"])
        for instance in sorted(struck):
            cloud.remote.do("market/reclaim", instance=instance)
            time.sleep(dice.uniform(0.5, 3.5))
    time.sleep(TARGET_SECONDS)  # the last notice has until the target to be heard
    diary = cloud.remote.do("diary")
    reactions = reaction_seconds(diary)
    return {
        "upload_to_launch_seconds": spread(launches),
        "notice_to_draining_seconds": spread(reactions),
        "launch_seconds": parts,
        "launches": len(launches),
        "notices": sum(entry["what"] == "notice" for entry in diary),
        "drained": len(reactions),
    }


def launch_seconds(client: Callable[[str], Any], cluster: str) -> dict[str, float]:
    """The parts of the launches that the running tasks are on, in the order in which they happen; of each the median.

    Right while each instance has its first task; EC2 tells launches to the second.
    """
    ecs, ec2 = client("ecs"), client("ec2")
    arns = [arn for page in ecs.get_paginator("list_tasks").paginate(cluster=cluster) for arn in page["taskArns"]]
    tasks = ecs.describe_tasks(cluster=cluster, tasks=arns[:100])["tasks"] if arns else []
    tasks = [task for task in tasks if "startedAt" in task]
    if not tasks:
        return {}
    hosts = {task["containerInstanceArn"] for task in tasks}
    told = ecs.describe_container_instances(cluster=cluster, containerInstances=sorted(hosts))["containerInstances"]
    joined = {each["containerInstanceArn"]: (each["ec2InstanceId"], each["registeredAt"]) for each in told}
    answer = ec2.describe_instances(InstanceIds=[each["ec2InstanceId"] for each in told])
    launched = {
        each["InstanceId"]: each["LaunchTime"] for group in answer["Reservations"] for each in group["Instances"]
    }
    moments = []
    for task in tasks:
        instance, registered = joined[task["containerInstanceArn"]]
        pull = (task["pullStartedAt"], task["pullStoppedAt"])
        moments.append((launched[instance], registered, *pull, task["startedAt"]))
    spans = [[(later - earlier).total_seconds() for earlier, later in pairwise(each)] for each in moments]
    names = ("launched_to_joined", "joined_to_pull", "pull", "start")
    return {name: round(median(part), 1) for name, part in zip(names, zip(*spans, strict=True), strict=True)}


def _whole_without(struck: frozenset[str]) -> Callable[[Scene], bool]:
    return lambda scene: scene.spot_joined == scene.spot_requested > 1 and not struck & set(scene.pools)


def _upload_to_launch(cloud: Laptop, outputs: dict[str, str], key: str) -> float:
    """Seconds from the upload to the call that raises the fleet's target from zero."""
    seen = len(cloud.remote.do("diary", what="spot target"))
    began = time.time()
    cloud.client("s3").put_object(Bucket=outputs["UploadsBucket"], Key=key, Body=b"x")
    while time.time() - began < 90:
        for entry in cloud.remote.do("diary", what="spot target")[seen:]:
            if entry["target"] > 0:
                return datetime.fromisoformat(entry["at"]).timestamp() - began
        time.sleep(0.2)
    raise DidNotWork("no launch call within 90 s of an upload to an idle system")


def _until(console: Console, what: str, window: Window, reached: Callable[[Scene], bool]) -> Scene:
    console.print(f"waiting for {what} …")
    deadline = time.monotonic() + 420
    while time.monotonic() < deadline:
        scene = window.look()
        if reached(scene):
            return scene
        time.sleep(1)
    raise DidNotWork(f"waited 7 minutes for {what}; last seen: {scene}")


if __name__ == "__main__":
    sys.exit(main())
