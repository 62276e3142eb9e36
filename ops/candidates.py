"""The instances of a benchmark: one of each type, a worker on each of its GPUs, and in the end none of either."""

from __future__ import annotations

import base64
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from math import ceil
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from ops.account import Account, code, told
from ops.text import count, short
from ops.throughput import Rate
from templates.instance_types import INSTANCE_TYPES

sys.path.append(str(Path(__file__).resolve().parent.parent / "lambdas"))

from capacity.account import BENCH_TAG

SPOT = {
    "MarketType": "spot",
    "SpotOptions": {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"},
}
FULL = ("InsufficientInstanceCapacity", "InsufficientFreeAddressesInSubnet", "Unsupported")
"""What EC2 says of a type in one zone: another may have it."""
LIMITED = ("MaxSpotInstanceCountExceeded", "VcpuLimitExceeded")
NEVER = datetime.min.replace(tzinfo=UTC)
UNSEEN = timedelta(seconds=30)
"""How long EC2 may not know of an instance that it has just launched (EC2 Developer Guide, "Eventual consistency")."""
AFTERWARDS = timedelta(minutes=5)
"""How much longer than its instances the tag lasts: until then they have shut down."""
ASK_AGAIN = timedelta(seconds=15)
MOST_LAUNCHES = 3
MOST_RESTARTS = 3


@dataclass
class Candidate:
    """A type, and how far it is."""

    type: str
    instance: str = ""
    container_instance: str = ""
    """Its ARN, once it has joined."""
    launches: int = 0
    launched: datetime = NEVER
    not_before: datetime = NEVER
    """When to launch again, where the account's quota was used up."""
    workers: list[str] = field(default_factory=list)
    """The tasks that were started for it."""
    done: int = 0
    rate: Rate | None = None
    why: str = ""
    """Why it is given up, if it is."""

    @property
    def gpus(self) -> int:
        """Of its instance."""
        return INSTANCE_TYPES[self.type].gpus

    @property
    def over(self) -> bool:
        """Measured or given up."""
        return bool(self.rate or self.why)


class Machines:
    """The instances, from launch to end. Every method may raise ClientError or BotoCoreError."""

    def __init__(
        self,
        account: Account,
        stack: Mapping[str, str],
        task: str,
        run: str,
        until: datetime,
        now: Callable[[], datetime],
    ) -> None:
        """`stack`: physical ids by title; `task`: a definition's ARN; `until`: when they shut down by themselves."""
        self._account, self._run, self._until, self._now = account, run, until, now
        self._ec2, self._ecs = account.client("ec2"), account.client("ecs")
        self._cluster, self._group, self._template = stack["Cluster"], stack["OnDemandGroup"], stack["LaunchTemplate"]
        self._task = task
        self._tries = 0
        self._launched: list[str] = []
        self._members: dict[str, Mapping[str, Any]] = {}
        """Container instances by id of the instance, as of the last look."""

    def look(self, candidates: Iterable[Candidate]) -> None:
        """See which instances there still are, and which of them have joined."""
        mine = {one.instance: one for one in candidates if one.instance}
        self._members = self._joined(mine) if mine else {}
        living = self._living(mine) if mine else set()
        for instance, one in mine.items():
            one.container_instance = self._members.get(instance, {}).get("containerInstanceArn", "")
            if instance not in living and self._now() - one.launched > UNSEEN:
                one.instance = one.container_instance = ""

    def _living(self, ids: Iterable[str]) -> set[str]:
        filters = [
            {"Name": "instance-id", "Values": sorted(ids)},
            {"Name": "instance-state-name", "Values": ["pending", "running"]},
        ]
        found = self._account.all("ec2", "describe_instances", "Reservations", Filters=filters)
        return {one["InstanceId"] for reservation in found for one in reservation["Instances"]}

    def _joined(self, ids: Iterable[str]) -> dict[str, Mapping[str, Any]]:
        """Container instances by id of the instance."""
        wanted = sorted(ids)
        arns = self._account.all(
            "ecs",
            "list_container_instances",
            "containerInstanceArns",
            cluster=self._cluster,
            filter=f"ec2InstanceId in {wanted}",
        )
        if not arns:
            return {}
        told_of = self._ecs.describe_container_instances(cluster=self._cluster, containerInstances=arns)
        return {
            one["ec2InstanceId"]: one
            for one in told_of["containerInstances"]
            if one["ec2InstanceId"] in wanted and one["status"] in ("ACTIVE", "DRAINING")
        }

    def advance(self, one: Candidate) -> None:
        """Do what is next for a type: launch its instance, or a worker on it; or say why it is given up."""
        if not one.instance:
            if one.launches == MOST_LAUNCHES:
                one.why = f"EC2 took its instance {MOST_LAUNCHES} times"
            elif self._now() >= one.not_before:
                self._launch(one)
        elif one.container_instance:
            self._employ(one, self._members[one.instance])

    def _launch(self, one: Candidate) -> None:
        """In the first subnet that has it."""
        self._tries += 1
        minutes = ceil((self._until - self._now()) / timedelta(minutes=1))
        template, user_data, tags = self._how_to_start(minutes)
        subnets = self._subnets()
        for subnet in subnets:
            try:
                made = self._ec2.run_instances(
                    LaunchTemplate=template,
                    InstanceType=one.type,
                    MinCount=1,
                    MaxCount=1,
                    SubnetId=subnet,
                    UserData=user_data,
                    InstanceMarketOptions=SPOT,
                    InstanceInitiatedShutdownBehavior="terminate",
                    TagSpecifications=tags,
                    # Should the answer be lost, the same request is no second instance.
                    ClientToken=f"{self._run}-{self._tries}-{subnet[-8:]}",
                )
            except ClientError as error:
                if code(error) in LIMITED and self._launched and self._living(self._launched):
                    one.why, one.not_before = "", self._now() + ASK_AGAIN  # till another type is measured
                    return
                if code(error) in LIMITED:
                    one.why = short(told(error), 200)
                    return
                if code(error) not in FULL:
                    raise
                one.why = f"none of {count(len(subnets), 'subnet')} has one: {short(told(error), 200)}"
            else:
                one.instance, one.why = made["Instances"][0]["InstanceId"], ""
                one.launches, one.launched = one.launches + 1, self._now()
                self._launched.append(one.instance)
                return

    def _how_to_start(self, minutes: int) -> tuple[dict[str, str], str, list[dict[str, Any]]]:
        """Launch template, user data and tags: the template's own, with an end to the instance.

        What a request says is in the place of what the template says (API reference, RunInstances), so all is said.
        """
        (newest,) = self._ec2.describe_launch_template_versions(LaunchTemplateId=self._template, Versions=["$Latest"])[
            "LaunchTemplateVersions"
        ]
        data = newest["LaunchTemplateData"]
        first, _, rest = base64.b64decode(data["UserData"]).decode().partition("\n")
        mine = {"Key": BENCH_TAG, "Value": (self._until + AFTERWARDS).isoformat(timespec="seconds")}
        tags = [
            {**one, "Tags": [*one["Tags"], *([mine] if one["ResourceType"] == "instance" else [])]}
            for one in data["TagSpecifications"]
        ]
        version = {"LaunchTemplateId": self._template, "Version": str(newest["VersionNumber"])}
        return version, f"{first}\nshutdown -h +{minutes}\n{rest}", tags

    def _subnets(self) -> list[str]:
        """Of the stack, ours or given: the On-Demand group has them all."""
        (group,) = self._account.client("autoscaling").describe_auto_scaling_groups(
            AutoScalingGroupNames=[self._group]
        )["AutoScalingGroups"]
        return str(group["VPCZoneIdentifier"]).split(",")

    def zones(self) -> list[str]:
        """Names of the zones where the stack has subnets."""
        found = self._ec2.describe_subnets(SubnetIds=self._subnets())["Subnets"]
        return sorted({one["AvailabilityZone"] for one in found})

    def _employ(self, one: Candidate, member: Mapping[str, Any]) -> None:
        """A worker for each GPU that has none. A service's task that is there already is as good."""
        gpus = sum(len(each["stringSetValue"]) for each in member["registeredResources"] if each["name"] == "GPU")
        if gpus < one.gpus:
            one.why = f"its instance joined with {count(gpus, 'GPU')}"
            return
        free = gpus - member["runningTasksCount"] - member["pendingTasksCount"]
        if free <= 0 or member["status"] != "ACTIVE" or not member["agentConnected"]:
            return
        if len(one.workers) >= gpus + MOST_RESTARTS:
            one.why = f"its workers do not stay: {self._last_words(one)}"
            return
        started = self._ecs.run_task(
            cluster=self._cluster,
            taskDefinition=self._task,
            count=min(free, 10),
            startedBy=f"bench-{self._run}",
            placementConstraints=[{"type": "memberOf", "expression": f"ec2InstanceId == {one.instance}"}],
        )
        one.workers += [task["taskArn"] for task in started["tasks"]]

    def _last_words(self, one: Candidate) -> str:
        tasks = self._ecs.describe_tasks(cluster=self._cluster, tasks=one.workers[-100:])["tasks"]
        reasons = [task["stoppedReason"] for task in tasks if task.get("stoppedReason")]
        return short(reasons[-1], 200) if reasons else "ECS does not say why"

    def let_go(self, candidates: Iterable[Candidate]) -> None:
        """Stop what works there, and end the instances on which nothing works any more."""
        for one in candidates:
            member = self._members.get(one.instance)
            if one.instance and member is None:
                self._terminate(one)
            elif one.instance and member:
                self._empty(one, member)

    def _empty(self, one: Candidate, member: Mapping[str, Any]) -> None:
        arn = member["containerInstanceArn"]
        if member["status"] == "ACTIVE":  # else a service would send it another task
            self._ecs.update_container_instances_state(
                cluster=self._cluster, containerInstances=[arn], status="DRAINING"
            )
        tasks = self._account.all("ecs", "list_tasks", "taskArns", cluster=self._cluster, containerInstance=arn)
        for task in tasks:
            self._ecs.stop_task(cluster=self._cluster, task=task, reason="the benchmark of this type is over")
        if not (tasks or member["runningTasksCount"] or member["pendingTasksCount"]):
            self._terminate(one)

    def _terminate(self, one: Candidate) -> None:
        self._ec2.terminate_instances(InstanceIds=[one.instance])
        one.instance = one.container_instance = ""

    def end_all(self) -> dict[str, str]:
        """End all that was ever launched, whatever the looks said; by id, why one could not be ended."""
        refused = {}
        for instance in self._launched:  # to end one that has ended is no error
            try:
                self._ec2.terminate_instances(InstanceIds=[instance])
            except ClientError as error:
                if code(error) != "InvalidInstanceID.NotFound":
                    refused[instance] = told(error)
        return refused
