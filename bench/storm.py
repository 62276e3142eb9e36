"""A storm: EC2 takes 1,000 of 5,000 instances within a second, and the shipped Lambda code hears of it.

AWS is played at botocore's border: every call is checked by botocore's own model, counted, and answered after
`LATENCY`. SQS brings ten messages at a time to two invocations at once, and ECS tells of each instance that it drains,
as the template wires it. Writes build/bench/storm.json.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "lambdas"))

import boto3  # noqa: E402

from capacity.account import STACK_TAG, TAKEN  # noqa: E402
from capacity.cloud import Aws  # noqa: E402
from capacity.handler import FULL, run  # noqa: E402
from capacity.settings import Settings  # noqa: E402

POOLS = [f"g5.xlarge/us-east-1{zone}" for zone in "abcdef"]
LATENCY = 0.04
"""Seconds of one call, as within a region."""
HEAD_START = 0.1
"""Seconds after which the storm comes: both invocations are in the midst of a look then, which takes a while here."""
NEWS_AFTER = 0.5
"""Seconds from a change to ECS's event about it."""
AT_ONCE = 2
MOST = 10_000
"""Invocations (templates/functions.py)."""
ACCOUNT = "arn:aws:ecs:us-east-1:123456789012"
ENVIRONMENT = {
    "STACK": "cell",
    "CLUSTER": "cell",
    "SERVICES": json.dumps(
        [
            {
                "name": "cell-default",
                "queue_url": "https://sqs.us-east-1.amazonaws.com/123456789012/default",
                "jobs_per_task": 1,
                "max_tasks": MOST,
                "units_per_task": 1,
                "placement": "any",
                "max_wait_seconds": None,
            }
        ]
    ),
    "SPOT_FLEET_ID": "sfr-1",
    "ON_DEMAND_GROUP": "on-demand",
    "POOLS_TABLE": "pools",
    "UNITS_BY_TYPE": '{"g5.xlarge": 1}',
    "ON_DEMAND_UNITS": "1",
    "MAX_UNITS": str(MOST),
    "MAX_ON_DEMAND_UNITS": str(MOST),
    "URGENCY": "now",
    "PATIENCE_SECONDS": "180",
    "CALM_SECONDS": "300",
}


class Cell:
    """Spot instances at work, and the calls that are made about them, each of so many seconds."""

    def __init__(self, instances: int, latency: float) -> None:
        self.instances = [f"i-{number:017x}" for number in range(instances)]
        self._latency = latency
        self.status = dict.fromkeys(self.instances, "ACTIVE")
        self.taken: dict[str, datetime] = {}
        self.target, self.desired = instances, 0
        self.calls: Counter[str] = Counter()
        self.last_drain = 0.0
        self.drained: Callable[[str], object] = str
        self._lock = threading.Lock()

    def wire(self) -> Aws:
        """A Cloud whose calls end here."""
        session = boto3.Session("x", "x", region_name="us-east-1")
        aws = Aws(session, Settings.read(ENVIRONMENT))
        for client in (aws._sqs, aws._ec2, aws._ecs, aws._autoscaling, aws._pools.meta.client):
            client.meta.events.register("before-parameter-build", self._remember)
            client.meta.events.register("before-call", self._answer)  # type: ignore[arg-type] # it may answer
        return aws

    def _remember(self, params: Mapping[str, Any], context: dict[str, Any], **_: Any) -> None:
        context["asked"] = dict(params)

    def _answer(self, model: Any, context: dict[str, Any], **_: Any) -> tuple[Any, dict[str, Any]]:
        time.sleep(self._latency)
        with self._lock:
            self.calls[model.name] += 1
            answer: dict[str, Any] = getattr(self, f"_{model.name}", lambda **_: {})(**context["asked"])
        return _Accepted, {**answer, "ResponseMetadata": {"HTTPStatusCode": 200}}

    def _DescribeSpotFleetRequests(self, **_: Any) -> dict[str, Any]:
        config = {"TargetCapacity": self.target, "FulfilledCapacity": float(len(self.instances))}
        return {"SpotFleetRequestConfigs": [{"SpotFleetRequestConfig": config, "Tags": []}]}

    def _ModifySpotFleetRequest(self, TargetCapacity: int, **_: Any) -> dict[str, Any]:
        self.target = TargetCapacity
        return {"Return": True}

    def _DescribeAutoScalingGroups(self, **_: Any) -> dict[str, Any]:
        return {
            "AutoScalingGroups": [
                {"AutoScalingGroupName": "on-demand", "DesiredCapacity": self.desired, "Instances": []}
            ]
        }

    def _SetDesiredCapacity(self, DesiredCapacity: int, **_: Any) -> dict[str, Any]:
        self.desired = DesiredCapacity
        return {}

    def _DescribeServices(self, **_: Any) -> dict[str, Any]:
        return {"services": [{"serviceName": "cell-default", "desiredCount": len(self.instances), "status": "ACTIVE"}]}

    def _GetQueueAttributes(self, **_: Any) -> dict[str, Any]:
        jobs = {"": len(self.instances), "NotVisible": 0, "Delayed": 0}
        return {"Attributes": {f"ApproximateNumberOfMessages{name}": str(count) for name, count in jobs.items()}}

    def _DescribeInstances(self, MaxResults: int, NextToken: str = "0", **_: Any) -> dict[str, Any]:
        page, more = _page(self.instances, NextToken, MaxResults)
        found = [
            {
                "InstanceId": instance,
                "InstanceType": "g5.xlarge",
                "InstanceLifecycle": "spot",
                "LaunchTime": LONG_AGO,
                "Placement": {"AvailabilityZone": POOLS[int(instance[2:], 16) % len(POOLS)].split("/")[1]},
                "Tags": [{"Key": STACK_TAG, "Value": "cell"}],
            }
            for instance in page
        ]
        return {"Reservations": [{"Instances": found}], **({"NextToken": more} if more else {})}

    def _DescribeSpotInstanceRequests(
        self, Filters: Any, MaxResults: int, NextToken: str = "0", **_: Any
    ) -> dict[str, Any]:
        asked = {one["Name"]: one["Values"] for one in Filters}
        assert MaxResults <= 1000 and set(asked["status-code"]) == set(TAKEN)
        assert len(asked.get("instance-id", ())) <= 200
        found = [
            {"InstanceId": i, "Status": {"UpdateTime": at}}
            for i, at in self.taken.items()
            if at <= datetime.now(UTC) and i in asked.get("instance-id", self.taken)
        ]
        page, more = _page(found, NextToken, MaxResults)
        return {"SpotInstanceRequests": page, **({"NextToken": more} if more else {})}

    def _ListContainerInstances(self, nextToken: str = "0", **_: Any) -> dict[str, Any]:
        page, more = _page(self.instances, nextToken, 100)
        return {"containerInstanceArns": [arn(i) for i in page], **({"nextToken": more} if more else {})}

    def _DescribeContainerInstances(self, containerInstances: Sequence[str], **_: Any) -> dict[str, Any]:
        assert len(containerInstances) <= 100
        return {"failures": [], "containerInstances": [self._joined(each) for each in containerInstances]}

    def _joined(self, arn: str) -> dict[str, Any]:
        instance = arn.rsplit("/", maxsplit=1)[-1]
        return {
            "ec2InstanceId": instance,
            "containerInstanceArn": arn,
            "status": self.status[instance],
            "runningTasksCount": 1,
            "pendingTasksCount": 0,
            "registeredAt": LONG_AGO,
            "registeredResources": [{"name": "GPU", "stringSetValue": ["GPU-0"]}],
        }

    def _UpdateContainerInstancesState(
        self, containerInstances: Sequence[str], status: str, **_: Any
    ) -> dict[str, Any]:
        assert len(containerInstances) <= 10
        for instance in (each.split("/")[-1] for each in containerInstances):
            if self.status[instance] != status:
                self.drained(instance)
            self.status[instance] = status
        self.last_drain = time.monotonic()
        return {"failures": [], "containerInstances": []}

    def _BatchGetItem(self, **_: Any) -> dict[str, Any]:
        return {"Responses": {"pools": []}}


class _Accepted:
    status_code = 200


LONG_AGO = datetime.now(UTC) - timedelta(hours=1)


def arn(instance: str) -> str:
    """The container instance of an instance."""
    return f"{ACCOUNT}:container-instance/cell/{instance}"


def _page(items: Sequence[T], start: str, size: int) -> tuple[Sequence[T], str | None]:
    end = int(start) + size
    return items[int(start) : end], str(end) if end < len(items) else None


class Queue:
    """SQS before a Lambda: messages that come in time, in batches of ten."""

    def __init__(self) -> None:
        self._coming: deque[tuple[float, str]] = deque()
        self._lock = threading.Lock()

    def send(self, body: str, at: float) -> None:
        """A message that arrives at a moment, not before the one sent last."""
        with self._lock:
            self._coming.append((at, body))

    def receive(self) -> list[str] | None:
        """What has arrived, at most ten messages; None when nothing is to come."""
        with self._lock:
            if not self._coming:
                return None
            now = time.monotonic()
            bodies: list[str] = []
            while self._coming and self._coming[0][0] <= now and len(bodies) < FULL:
                bodies.append(self._coming.popleft()[1])
            return bodies


def batch(number: int, bodies: Sequence[str]) -> dict[str, Any]:
    """What Lambda hands to the handler."""
    return {"Records": [{"messageId": f"{number}-{place}", "body": body} for place, body in enumerate(bodies)]}


def notice(instance: str) -> str:
    """What the agent of an instance publishes."""
    now = datetime.now(UTC)
    return json.dumps(
        {
            "schema": "spindrift.notice/1",
            "kind": "interruption",
            "instanceId": instance,
            "containerInstanceArn": arn(instance),
            "observedAt": now.isoformat(),
            "deadline": (now + timedelta(minutes=2)).isoformat(),
        }
    )


def news(instance: str) -> str:
    """What ECS tells of an instance that is draining."""
    detail = {"ec2InstanceId": instance, "status": "DRAINING", "agentConnected": True}
    return json.dumps({"detail-type": "ECS Container Instance State Change", "detail": detail})


MINUTE = json.dumps({"detail-type": "Scheduled Event"})


def storm(instances: int = 5000, notices: int = 1000, seconds: float = 1.0, latency: float = LATENCY) -> dict[str, Any]:
    """Let it happen within so many seconds, wait until it is over, and tell what it cost.

    What was left to the minute, the minute does.
    """
    cell, queue = Cell(instances, latency), Queue()
    clouds = [cell.wire() for _ in range(AT_ONCE)]
    victims = cell.instances[:: instances // notices]
    begin = time.monotonic() + HEAD_START
    for number, victim in enumerate(victims):
        later = HEAD_START + seconds * number / notices
        cell.taken[victim] = datetime.now(UTC) + timedelta(seconds=later)
        queue.send(notice(victim), begin + seconds * number / notices)
    cell.drained = lambda instance: queue.send(news(instance), time.monotonic() + NEWS_AFTER)

    def invoke(cloud: Aws) -> None:
        settings = Settings.read(ENVIRONMENT)
        number = 0
        run(cloud, settings, batch(number, [MINUTE]), clock=lambda: datetime.now(UTC))
        while (bodies := queue.receive()) is not None:
            if not bodies:
                time.sleep(0.01)
                continue
            number += 1
            run(cloud, settings, batch(number, bodies), clock=lambda: datetime.now(UTC))

    threads = [threading.Thread(target=invoke, args=[cloud]) for cloud in clouds]
    with logged() as lines:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if cell.desired != notices:
            run(clouds[0], Settings.read(ENVIRONMENT), batch(0, [MINUTE]), clock=lambda: datetime.now(UTC))
    events = [json.loads(line) for line in lines()]
    passes = [event for event in events if event["event"] == "capacity"]
    drained = sum(status == "DRAINING" for status in cell.status.values())
    if drained != notices or cell.desired != notices:
        raise SystemExit(f"{drained} of {notices} drained, {cell.desired} On-Demand instances asked for")
    drains = cell.calls["UpdateContainerInstancesState"]
    return {
        "notices": notices,
        "instances": instances,
        "api_calls": sum(cell.calls.values()),
        "drain_calls": drains,
        "seconds_to_last_drain": round(cell.last_drain - begin, 2),
        "passes": len(passes),
        "calls": dict(sorted(cell.calls.items())),
        "seconds_per_call": latency,
    }


@contextlib.contextmanager
def logged() -> Iterator[Callable[[], list[str]]]:
    """Keep what the Lambda logs from the screen."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        yield lambda: out.getvalue().splitlines()


if __name__ == "__main__":
    result = storm()
    file = ROOT / "build" / "bench" / "storm.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
