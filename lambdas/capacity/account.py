"""What every profile does with AWS: drain at once, look at queues, instances and pools, end what is of no use.

The calls of a look grow with the hundreds of instances (ECS lists and describes so many at a time), those of draining
with the tens, and nothing else does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from capacity import notes, pools
from capacity.notices import Broken, Notice
from capacity.nouns import Instance, Joined, Seen, Service
from capacity.settings import Common

if TYPE_CHECKING:
    from mypy_boto3_autoscaling.type_defs import AutoScalingGroupTypeDef
    from mypy_boto3_ec2.type_defs import FilterTypeDef, InstanceTypeDef
    from mypy_boto3_ecs.literals import ContainerInstanceStatusType
    from mypy_boto3_ecs.type_defs import ContainerInstanceTypeDef

T = TypeVar("T")

CONFIG = Config(connect_timeout=2, read_timeout=10, retries={"mode": "standard", "max_attempts": 3})

STACK_TAG = "spindrift:stack"
AT_RISK_TAG = "spindrift:at-risk"
"""On an instance: when EC2 recommended to replace it, which no call tells."""
SURPLUS_TAG = "spindrift:surplus"
"""On an instance that we set DRAINING as not needed; one that somebody else drains is never brought back."""
BENCH_TAG = "spindrift:bench"
"""On an instance that is measured: until when it is not ours to count, or to end. Its notices are heard even so."""

TAKEN = (
    "marked-for-stop",
    "marked-for-termination",
    "instance-stopped-by-price",
    "instance-stopped-no-capacity",
    "instance-terminated-by-price",
    "instance-terminated-no-capacity",
)
"""Status codes of a Spot request whose instance may still run but is under notice.

For lack of capacity EC2 sets `instance-terminated-no-capacity` at once, with no `marked-for-termination` before it,
while the instance runs on for two minutes (EC2 user guide, Spot request status, note to the table of states).
"""

LOST_AFTER = timedelta(seconds=15)
"""A notice that nobody has brought by then is acted upon without. Sooner, it may still wait behind many others, and
each would be drained twice.
"""

MOST_FILTERED = 200
"""Values of one filter (EC2 User Guide, "List and filter using the CLI and API")."""

GONE = ("MISSING", "INACTIVE")
"""Reasons of an ECS failure that mean the container instance has left."""

LIVE = ("Pending", "Pending:Wait", "Pending:Proceed", "InService")
"""Lifecycle states in which an instance counts in its Auto Scaling group and is not leaving it."""


class CouldNotLook(Exception):
    """The truth is not known, so nothing may be decided."""


class CouldNotApply(Exception):
    """A decision was not carried out, or only in part; the next pass decides anew."""


@dataclass(frozen=True, kw_only=True)
class Drained:
    """What became of the instances under notice, by id. `failed` says why, for a later try."""

    done: frozenset[str] = frozenset()
    not_ours: frozenset[str] = frozenset()
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Machines:
    """Our instances, which of them are under notice, and for how many of those the messenger is overdue."""

    instances: tuple[Instance, ...]
    noticed: frozenset[str]
    overdue: frozenset[str]


class Cloud(Protocol):
    """What a capacity pass needs of the world. What is seen and decided differs by profile, and stays between its look,
    its policy and its apply.
    """

    def drain(self, notices: Iterable[Notice]) -> Drained:
        """Set the instances DRAINING. What cannot be drained is reported, not raised."""

    def set_aside(self, broken: Iterable[Broken]) -> dict[str, str]:
        """Set machines with a broken GPU DRAINING; return why, for those that would not."""

    def look(self, now: datetime) -> Seen:
        """See everything a decision needs, or raise CouldNotLook."""

    def apply(self, seen: Any, decision: Any) -> list[str]:
        """Make the truth what was decided, or raise CouldNotApply; return what was put off."""


class Account:
    """The AWS account: the part of a Cloud that all profiles share."""

    def __init__(self, session: boto3.Session, settings: Common) -> None:
        self._settings = settings
        self._sqs = session.client("sqs", config=CONFIG)
        self._ec2 = session.client("ec2", config=CONFIG)
        self._ecs = session.client("ecs", config=CONFIG)
        self._autoscaling = session.client("autoscaling", config=CONFIG)
        self._pools = session.resource("dynamodb", config=CONFIG).Table(settings.pools_table)

    def drain(self, notices: Iterable[Notice]) -> Drained:
        """Set the instances DRAINING, ten per call.

        The agent tells the container instance; the others are looked up in one call per hundred. "Draining already",
        "not registered" and "gone" are success.
        """
        arns: dict[str, str | None] = {}
        for notice in notices:
            arns[notice.instance] = arns.get(notice.instance) or self._in_our_cluster(notice.container_instance)
        failed: dict[str, str] = {}
        for chunk in chunks([i for i, arn in arns.items() if arn is None], 100):
            try:
                arns |= {c["ec2InstanceId"]: c["containerInstanceArn"] for c in self._joined(chunk)}
            except (ClientError, BotoCoreError, CouldNotLook) as error:
                failed |= dict.fromkeys(chunk, str(error))
        ours = {arn: instance for instance, arn in arns.items() if arn}
        failed |= {ours[arn]: why for arn, why in self._set_state([*ours], "DRAINING").items()}
        return Drained(
            done=frozenset(ours.values()).difference(failed),
            not_ours=frozenset(arns).difference(ours.values(), failed),
            failed=failed,
        )

    def set_aside(self, broken: Iterable[Broken]) -> dict[str, str]:
        """Set machines with a broken GPU DRAINING. The policy counts them no more, and ends them once they are idle."""
        return self._set_state(
            sorted({arn for one in broken if (arn := self._in_our_cluster(one.container_instance))}), "DRAINING"
        )

    def _backlog(self, service: str) -> Service:
        """A service's jobs, as SQS counts them; how many tasks it wants is left open."""
        count = self._sqs.get_queue_attributes(
            QueueUrl=self._settings.queues[service],
            AttributeNames=[
                "ApproximateNumberOfMessages",
                "ApproximateNumberOfMessagesNotVisible",
                "ApproximateNumberOfMessagesDelayed",
            ],
        )["Attributes"]
        return Service(
            name=service,
            visible=int(count["ApproximateNumberOfMessages"]),
            in_flight=int(count["ApproximateNumberOfMessagesNotVisible"]),
            delayed=int(count["ApproximateNumberOfMessagesDelayed"]),
            desired=0,
        )

    def _groups(self, *names: str) -> list[AutoScalingGroupTypeDef]:
        """The groups of these names, in this order."""
        reply = self._autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=names)
        found = {group["AutoScalingGroupName"]: group for group in reply["AutoScalingGroups"]}
        if missing := [name for name in names if name not in found]:
            raise CouldNotLook(f"Auto Scaling group {', '.join(missing)} is not there")
        return [found[name] for name in names]

    def _machines(self, members: Mapping[str, bool], now: datetime) -> Machines:
        """Every instance of ours. `members` of Auto Scaling groups, by id: whether they stay."""
        found = [i for i in self._instances() if not _is_measured(i, now)]
        joined = {c["ec2InstanceId"]: c for c in self._joined() if c["status"] in ("ACTIVE", "DRAINING")}
        spot = [i["InstanceId"] for i in found if i.get("InstanceLifecycle") == "spot"]
        taken, leaving = dict(self._taken(spot)), {i for i, stays in members.items() if not stays}
        # An On-Demand instance outside the group is somebody's own: not for us to count, and not to end.
        ours = [i for i in found if i["InstanceId"] in {*spot, *members}]
        return Machines(
            instances=tuple(self._instance(i, joined.get(i["InstanceId"])) for i in ours),
            noticed=frozenset(leaving.union(taken)),
            overdue=frozenset(leaving.union(i for i, since in taken.items() if now - since >= LOST_AFTER)),
        )

    def _instances(self) -> Iterator[InstanceTypeDef]:
        pages = self._ec2.get_paginator("describe_instances").paginate(
            Filters=[
                {"Name": f"tag:{STACK_TAG}", "Values": [self._settings.stack]},
                {"Name": "instance-state-name", "Values": ["pending", "running"]},
            ],
            PaginationConfig={"PageSize": 1000},
        )
        return (i for page in pages for reservation in page["Reservations"] for i in reservation["Instances"])

    def _taken(self, spot: Sequence[str]) -> Iterator[tuple[str, datetime]]:
        """Which of these Spot instances are under notice, and since when.

        A filter takes 200 values. Beside more instances than that, the whole account's requests with these codes are
        few: EC2 forgets them after two days (user guide, "Spot request status").
        """
        if not spot:
            return
        filters: list[FilterTypeDef] = [{"Name": "status-code", "Values": list(TAKEN)}]
        if len(spot) <= MOST_FILTERED:
            filters.append({"Name": "instance-id", "Values": [*spot]})
        pages = self._ec2.get_paginator("describe_spot_instance_requests").paginate(
            Filters=filters, PaginationConfig={"PageSize": 1000}
        )
        ours = {*spot}
        for request in (request for page in pages for request in page["SpotInstanceRequests"]):
            if request.get("InstanceId") in ours:
                yield request["InstanceId"], request["Status"]["UpdateTime"]

    def _joined(self, instances: Sequence[str] | None = None) -> Iterator[ContainerInstanceTypeDef]:
        """Container instances of the cluster: all, or those of the EC2 instances given, asked for by the hundred.

        What was not asked for is passed over, should a filter be understood otherwise: some of these will be drained.
        """
        # Without `status`, all but INACTIVE are listed.
        paginate = self._ecs.get_paginator("list_container_instances").paginate
        cluster = self._settings.cluster
        searches = [paginate(cluster=cluster)]
        if instances is not None:
            searches = [paginate(cluster=cluster, filter=f"ec2InstanceId in {ids}") for ids in chunks(instances, 100)]
        for pages in searches:
            for arns in chunks((arn for page in pages for arn in page["containerInstanceArns"]), 100):
                reply = self._ecs.describe_container_instances(cluster=self._settings.cluster, containerInstances=arns)
                unseen = [failure for failure in reply["failures"] if failure.get("reason") not in GONE]
                if unseen:
                    raise CouldNotLook(f"ECS does not describe {unseen}")
                found = reply["containerInstances"]
                yield from (c for c in found if instances is None or c["ec2InstanceId"] in instances)

    def _instance(self, instance: InstanceTypeDef, joined: ContainerInstanceTypeDef | None) -> Instance:
        """Put together what EC2 and ECS say. The GPUs registered count; until then, those the type should have."""
        worth, tags = self._settings.worth(instance["InstanceType"]), _tags(instance)
        gpus = _gpus(joined) if joined else self._settings.gpus(instance["InstanceType"])
        # Each GPU that is missing takes its share with it.
        units = ceil(gpus * worth)
        return Instance(
            id=instance["InstanceId"],
            pool=f"{instance['InstanceType']}/{instance['Placement']['AvailabilityZone']}",
            spot=instance.get("InstanceLifecycle") == "spot",
            units=units,
            worth=Fraction(units, gpus) if gpus else worth,
            launched=instance["LaunchTime"],
            joined=Joined(
                arn=joined["containerInstanceArn"],
                draining=joined["status"] == "DRAINING",
                tasks=tasks(joined),
                running=joined["runningTasksCount"],
                gpus=gpus,
                since=joined["registeredAt"],
            )
            if joined
            else None,
            surplus=SURPLUS_TAG in tags,
            warned=notes.moment(tags.get(AT_RISK_TAG, "")),
        )

    def _in_our_cluster(self, arn: str | None) -> str | None:
        """Keep an ARN only if it names our cluster: arn:aws:ecs:REGION:ACCOUNT:container-instance/CLUSTER/ID."""
        return arn if arn and arn.split("/")[1:-1] == [self._settings.cluster] else None

    def _set_state(self, arns: Sequence[str], status: ContainerInstanceStatusType) -> dict[str, str]:
        """Set container instances ACTIVE or DRAINING, ten per call; return why, for those that would not.

        One that cannot change (it registers, it deregisters) fails the call for its nine neighbours; then each goes
        alone, and the truth about it, not the wording of the error, says whether that is a failure.
        """
        failed: dict[str, str] = {}
        for chunk in chunks(arns, 10):
            try:
                reply = self._ecs.update_container_instances_state(
                    cluster=self._settings.cluster, containerInstances=chunk, status=status
                )
                whole = {arn.split("/")[-1]: arn for arn in chunk}
                failed |= {
                    whole[failure["arn"].split("/")[-1]]: failure["reason"]
                    for failure in reply["failures"]
                    if failure["reason"] not in GONE
                }
            except self._ecs.exceptions.InvalidParameterException as error:
                if len(chunk) > 1:
                    failed |= {bad: why for arn in chunk for bad, why in self._set_state([arn], status).items()}
                elif not self._is_or_gone(chunk[0], status):
                    failed[chunk[0]] = str(error)
            except (ClientError, BotoCoreError) as error:
                failed |= dict.fromkeys(chunk, str(error))
        return failed

    def _is_or_gone(self, arn: str, status: str) -> bool:
        try:
            reply = self._ecs.describe_container_instances(cluster=self._settings.cluster, containerInstances=[arn])
        except (ClientError, BotoCoreError):
            return False
        return all(c["status"] in (status, "DEREGISTERING", *GONE) for c in reply["containerInstances"])

    def _note_taken(self, seen: Seen, instances: Collection[str]) -> list[str]:
        """Remember in the table of pools what EC2 took. It serves the market alone: what fails is put off."""
        taken = pools.by_pool(i for i in seen.instances if i.id in instances)
        try:
            rows = {str(item["pool"]): item for item in self._rows([*taken])}
            for pool, ids in taken.items():
                if news := pools.with_taken(rows.get(pool, {}), ids, seen.at):
                    self._pools.update_item(
                        Key={"pool": pool},
                        UpdateExpression="SET taken = :taken, taken_ids = :ids",
                        ExpressionAttributeValues={":taken": news.taken, ":ids": news.ids},
                    )
        except (ClientError, BotoCoreError) as error:
            return [f"what was taken is noted later: {error}"]
        return []

    def _rows(self, names: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        """What is known of these pools. A batch takes 100."""
        for chunk in chunks(names, 100):
            reply = self._pools.meta.client.batch_get_item(
                RequestItems={self._pools.name: {"Keys": [{"pool": name} for name in chunk], "ConsistentRead": True}}
            )
            yield from reply["Responses"][self._pools.name]

    def _end(self, instance: str, *, replace: bool) -> None:
        """End one instance by way of its group; one that the group is ending, or no longer has, is ended already."""
        try:
            self._autoscaling.terminate_instance_in_auto_scaling_group(
                InstanceId=instance, ShouldDecrementDesiredCapacity=not replace
            )
        except ClientError as error:
            if error.response["Error"]["Code"] != "ScalingActivityInProgress" and "not found" not in str(error):
                raise


@contextmanager
def translated(kind: type[Exception]) -> Iterator[None]:
    """Translate what botocore raises, keeping the cause."""
    try:
        yield
    except (ClientError, BotoCoreError) as error:
        raise kind(str(error)) from error


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items, so many at a time."""
    whole = list(items)
    return (whole[start : start + size] for start in range(0, len(whole), size))


def lines(what: str, failed: Mapping[str, str]) -> list[str]:
    """What was put off, and why, one line for each."""
    return [f"{arn} {what}: {why}" for arn, why in failed.items()]


def tasks(joined: ContainerInstanceTypeDef) -> int:
    """How many tasks an instance has, running or about to."""
    return joined["runningTasksCount"] + joined["pendingTasksCount"]


def _tags(instance: InstanceTypeDef) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in instance.get("Tags", [])}


def _is_measured(instance: InstanceTypeDef, now: datetime) -> bool:
    """Whether a benchmark has it still. What makes no sense is over."""
    until = notes.moment(_tags(instance).get(BENCH_TAG, ""))
    return until is not None and now < until


def _gpus(joined: ContainerInstanceTypeDef) -> int:
    return sum(len(r["stringSetValue"]) for r in joined["registeredResources"] if r["name"] == "GPU")
