"""What the APIs still show of a stack: found by its resources' ids and by its tag, so also what was made outside it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from ops.account import Account, told
from ops.kept import KINDS, Kind
from templates.settings import STACK_TAG

DONE_FLEETS = ("cancelled", "failed")
"""States in which a Spot Fleet has no instances and gets none; it is shown for two days more."""
LIVING = ("pending", "running", "shutting-down", "stopping", "stopped")
AT_ONCE = 100
"""Instances in one TerminateInstances; one bad id fails them all, so not thousands."""


@dataclass(frozen=True)
class Resource:
    """A resource of the stack, present or past."""

    title: str
    type: str
    id: str


@dataclass(frozen=True)
class Thing:
    """Something of the stack that an API shows."""

    noun: str
    name: str
    state: str
    leaving: bool = False
    """It goes by itself; waiting helps."""

    def __str__(self) -> str:
        return f"{self.noun} {self.name} ({self.state})"


@dataclass
class Look:
    """What was seen at one time: things, and by noun why others could not be looked for."""

    things: list[Thing] = field(default_factory=list)
    unseen: dict[str, str] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        """Whether everything was looked at, and nothing was there."""
        return not self.things and not self.unseen


class Remains:
    """One stack's things. Every method may raise ClientError or BotoCoreError, except `look`, which tells them."""

    def __init__(self, account: Account, stack: str, resources: Collection[Resource]) -> None:
        self._account = account
        self._stack = stack
        self._resources = resources

    def of(self, *types: str) -> list[Resource]:
        """The resources of these types."""
        return sorted((one for one in self._resources if one.type in types), key=lambda one: (one.title, one.id))

    def look(self, *, keeping: Collection[tuple[Kind, str]], removed: Collection[tuple[Kind, str]]) -> Look:
        """Look for everything but the data that is kept on purpose; of data that was removed, wait for the end."""
        seen = Look()

        def add(noun: str, find: Callable[[], Iterable[Thing]]) -> None:
            try:
                seen.things += find()
            except (BotoCoreError, ClientError) as error:
                seen.unseen[noun] = told(error)

        def held(kind: Kind) -> Iterable[Thing]:
            for name in self.candidates(kind):
                if (kind, name) not in keeping and (state := kind.state(self._account, name)) is not None:
                    yield Thing(kind.noun, name, state, leaving=(kind, name) in removed)

        add("instances", self.instances)
        add("Spot Fleets", self.fleets)
        add("Auto Scaling groups", self.groups)
        add("network interfaces", self._interfaces)
        add("log groups", self._log_groups)
        add("job definitions", self.definitions)
        for kind in KINDS:
            add(f"{kind.noun}s", partial(held, kind))
        return seen

    def end(self, things: Iterable[Thing]) -> dict[str, str]:
        """End what nobody owns any more and does not go by itself; by name, why something could not be ended."""
        ways: Mapping[str, Callable[[list[str]], object]] = {
            "instance": lambda names: self._account.client("ec2").terminate_instances(InstanceIds=names),
            "Spot Fleet": lambda names: self._account.client("ec2").cancel_spot_fleet_requests(
                SpotFleetRequestIds=names, TerminateInstances=True
            ),
            "Auto Scaling group": lambda names: self._account.client("autoscaling").delete_auto_scaling_group(
                AutoScalingGroupName=names[0], ForceDelete=True
            ),
            "log group": lambda names: self._account.client("logs").delete_log_group(logGroupName=names[0]),
            "job definition": lambda names: self._account.client("batch").deregister_job_definition(
                jobDefinition=names[0]
            ),
        }
        strays = [thing for thing in things if not thing.leaving]
        refused: dict[str, str] = {}
        for noun, end in ways.items():
            size = AT_ONCE if noun == "instance" else 1
            names = [thing.name for thing in strays if thing.noun == noun]
            for chunk in (names[start : start + size] for start in range(0, len(names), size)):
                try:
                    end(chunk)
                except (BotoCoreError, ClientError) as error:
                    refused |= dict.fromkeys(chunk, told(error))
        return refused

    def instances(self) -> list[Thing]:
        """Instances with the stack's tag that are not terminated."""
        reservations = self._account.all(
            "ec2",
            "describe_instances",
            "Reservations",
            Filters=[self._by_tag, {"Name": "instance-state-name", "Values": list(LIVING)}],
        )
        return [
            Thing(
                "instance",
                one["InstanceId"],
                f"{one['InstanceType']}, {one.get('InstanceLifecycle', 'on-demand')}, {one['State']['Name']}",
                leaving=one["State"]["Name"] == "shutting-down",
            )
            for reservation in reservations
            for one in reservation["Instances"]
        ]

    def fleets(self) -> list[Thing]:
        """Spot Fleets of the stack that have instances or may get some. No filter: EC2 has none for them."""
        ids = {one.id for one in self.of("AWS::EC2::SpotFleet")}
        found = self._account.all("ec2", "describe_spot_fleet_requests", "SpotFleetRequestConfigs")
        return [
            Thing("Spot Fleet", one["SpotFleetRequestId"], state, leaving=state.startswith("cancelled_"))
            for one in found
            if (state := one["SpotFleetRequestState"]) not in DONE_FLEETS
            and (one["SpotFleetRequestId"] in ids or self._is_tagged(one))
        ]

    def groups(self) -> list[Thing]:
        """Auto Scaling groups of the stack."""
        names = {one.id for one in self.of("AWS::AutoScaling::AutoScalingGroup")}
        found = self._account.all("autoscaling", "describe_auto_scaling_groups", "AutoScalingGroups")
        return [
            Thing(
                "Auto Scaling group",
                one["AutoScalingGroupName"],
                one.get("Status") or f"wants {one['DesiredCapacity']}",
                leaving=bool(one.get("Status")),
            )
            for one in found
            if one["AutoScalingGroupName"] in names or self._is_tagged(one)
        ]

    def definitions(self) -> list[Thing]:
        """Active revisions of the stack's job definitions: an update leaves those that jobs may wait with."""
        # CloudFormation calls one by its ARN, or by its name.
        names = {one.id.rpartition("/")[2].partition(":")[0] for one in self.of("AWS::Batch::JobDefinition")}
        if not names:
            return []
        found = self._account.all("batch", "describe_job_definitions", "jobDefinitions", status="ACTIVE")
        return [
            Thing("job definition", f"{one['jobDefinitionName']}:{one['revision']}", one["status"])
            for one in found
            if one["jobDefinitionName"] in names or one.get("tags", {}).get(STACK_TAG) == self._stack
        ]

    def own(self, kind: Kind) -> set[str]:
        """Names of what the stack made of one kind of data."""
        made = self.of(kind.type)
        if kind.find:
            return set(kind.find(self._account, self._stack)) if made else set()
        return {kind.name(one.id) for one in made}

    def candidates(self, kind: Kind) -> list[str]:
        """Those, and what has the stack's tag: an earlier stack of that name may have left it. May be gone by now."""
        if kind.find:
            return sorted(self.own(kind))
        tagged = self._account.all(
            "resourcegroupstaggingapi",
            "get_resources",
            "ResourceTagMappingList",
            TagFilters=[{"Key": STACK_TAG, "Values": [self._stack]}],
            ResourceTypeFilters=[kind.tagged],
        )
        return sorted(self.own(kind) | {kind.name(one["ResourceARN"]) for one in tagged})

    def _interfaces(self) -> list[Thing]:
        """Network interfaces in our VPC, or in a given VPC with one of our security groups."""
        found: dict[str, Thing] = {}
        for kind, name in (("AWS::EC2::VPC", "vpc-id"), ("AWS::EC2::SecurityGroup", "group-id")):
            ids = [one.id for one in self.of(kind)]
            if not ids:
                continue
            filters = [{"Name": name, "Values": ids}]
            for one in self._account.all("ec2", "describe_network_interfaces", "NetworkInterfaces", Filters=filters):
                # What was not asked for is passed over, should a filter be understood otherwise.
                if {one["VpcId"], *(group["GroupId"] for group in one["Groups"])} & set(ids):
                    what = one.get("Description") or one["InterfaceType"]
                    identity = one["NetworkInterfaceId"]
                    found[identity] = Thing("network interface", identity, f"{what}, {one['Status']}")
        return list(found.values())

    def _log_groups(self) -> list[Thing]:
        """The stack's log groups, and those that Lambda and ECS make by themselves. The tag finds none made anew."""
        names = {one.id for one in self.of("AWS::Logs::LogGroup")}
        names |= {f"/aws/lambda/{one.id}" for one in self.of("AWS::Lambda::Function")}
        names |= {f"/aws/ecs/containerinsights/{one.id}/performance" for one in self.of("AWS::ECS::Cluster")}
        return [
            Thing("log group", name, f"{one.get('storedBytes', 0):,} bytes")
            for name in sorted(names)
            for one in self._account.all("logs", "describe_log_groups", "logGroups", logGroupNamePrefix=name)
            if one["logGroupName"] == name
        ]

    @property
    def _by_tag(self) -> Mapping[str, Any]:
        return {"Name": f"tag:{STACK_TAG}", "Values": [self._stack]}

    def _is_tagged(self, described: Mapping[str, Any]) -> bool:
        return any(tag["Key"] == STACK_TAG and tag["Value"] == self._stack for tag in described.get("Tags", ()))
