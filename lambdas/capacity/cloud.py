"""The only AWS of this Lambda: look, drain, apply.

The calls of a look grow with the hundreds of instances (ECS lists and describes so many at a time), those of draining
with the tens, and nothing else does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from capacity import notes, pools
from capacity.notices import Notice
from capacity.nouns import Arrival, Decision, Instance, Joined, Notes, Seen, Service, Urgency
from capacity.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_autoscaling.type_defs import AutoScalingGroupTypeDef
    from mypy_boto3_cloudwatch.type_defs import DimensionTypeDef, MetricDataQueryTypeDef
    from mypy_boto3_ec2.type_defs import InstanceTypeDef, SpotFleetRequestConfigTypeDef
    from mypy_boto3_ecs.literals import ContainerInstanceStatusType
    from mypy_boto3_ecs.type_defs import ContainerInstanceTypeDef

T = TypeVar("T")

STACK_TAG = "spindrift:stack"
AT_RISK_TAG = "spindrift:at-risk"
"""On an instance: when EC2 recommended to replace it, which no call tells."""
SURPLUS_TAG = "spindrift:surplus"
"""On an instance that we set DRAINING as not needed; one that somebody else drains is never brought back."""

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

GONE = ("MISSING", "INACTIVE")
"""Reasons of an ECS failure that mean the container instance has left."""

PAST = timedelta(days=1)
"""In which jobs are looked for to tell how long they take."""
PERIOD = timedelta(minutes=5)
FEWEST_JOBS = 20
"""So many of the latest tell how long jobs take."""

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


class Cloud(Protocol):
    """What a capacity pass needs of the world."""

    def drain(self, notices: Iterable[Notice]) -> Drained:
        """Set the instances DRAINING. What cannot be drained is reported, not raised."""

    def look(self, now: datetime) -> Seen:
        """See everything a decision needs, or raise CouldNotLook."""

    def apply(self, seen: Seen, decision: Decision) -> list[str]:
        """Make the truth what was decided, or raise CouldNotApply; return what was put off."""


class Aws:
    """The Cloud that is AWS."""

    def __init__(self, session: boto3.Session, settings: Settings) -> None:
        config = Config(connect_timeout=2, read_timeout=10, retries={"mode": "standard", "max_attempts": 3})
        self._settings = settings
        self._sqs = session.client("sqs", config=config)
        self._ec2 = session.client("ec2", config=config)
        self._ecs = session.client("ecs", config=config)
        self._autoscaling = session.client("autoscaling", config=config)
        self._cloudwatch = session.client("cloudwatch", config=config)
        self._pools = session.resource("dynamodb", config=config).Table(settings.pools_table)

    def drain(self, notices: Iterable[Notice]) -> Drained:
        """Set the instances DRAINING, ten per call.

        The agent tells the container instance; the others are looked up in one call per hundred. "Draining already",
        "not registered" and "gone" are success.
        """
        arns: dict[str, str | None] = {}
        for notice in notices:
            arns[notice.instance] = arns.get(notice.instance) or self._in_our_cluster(notice.container_instance)
        failed: dict[str, str] = {}
        for chunk in _chunks([i for i, arn in arns.items() if arn is None], 100):
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

    def look(self, now: datetime) -> Seen:
        """See everything a decision needs. Raises CouldNotLook rather than take silence for an empty cluster."""
        with _as(CouldNotLook):
            fleet, group = self._fleet(), self._group()
            instances = list(self._instances())
            members = {m["InstanceId"]: m["LifecycleState"] in LIVE for m in group["Instances"]}
            joined = {c["ec2InstanceId"]: c for c in self._joined() if c["status"] in ("ACTIVE", "DRAINING")}
            spot = [i["InstanceId"] for i in instances if i.get("InstanceLifecycle") == "spot"]
            taken, leaving = dict(self._taken(spot)), {i for i, live in members.items() if not live}
            # An On-Demand instance outside the group is somebody's own: not for us to count, and not to end.
            ours = [i for i in instances if i["InstanceId"] in {*spot, *members}]
            return Seen(
                at=now,
                services=tuple(self._measured(list(self._services()), now)),
                requested=fleet["SpotFleetRequestConfig"].get("TargetCapacity", 0),
                fulfilled=fleet["SpotFleetRequestConfig"].get("FulfilledCapacity", 0.0),
                notes=notes.read({tag["Key"]: tag["Value"] for tag in fleet.get("Tags", [])}),
                on_demand_requested=group["DesiredCapacity"],
                on_demand_present=sum(members.values()),
                instances=tuple(self._instance(i, joined.get(i["InstanceId"])) for i in ours),
                noticed=frozenset(leaving.union(taken)),
                overdue=frozenset(leaving.union(i for i, since in taken.items() if now - since >= LOST_AFTER)),
            )

    def apply(self, seen: Seen, decision: Decision) -> list[str]:
        """Make the truth what was decided, calling only where they differ; return what was put off.

        What adds capacity comes first. The note that Spot is short is written after the purchase which it would call
        off (a pass cut short between the two buys again, up to the same number) and before the fleet is asked for more
        (or the next pass would take what has just been asked for to be lost). The fleet's target falls before its
        instances end, or it would replace them.
        """
        arns = {i.id: i.joined.arn for i in seen.instances if i.joined}
        put_off: list[str] = []
        with _as(CouldNotApply):
            put_off += _lines("is not drained", self._set_state([arns[i] for i in decision.evacuate], "DRAINING"))
            put_off += self._reactivate({i: arns[i] for i in decision.reactivate})
            if decision.on_demand_desired != seen.on_demand_requested:
                self._autoscaling.set_desired_capacity(
                    AutoScalingGroupName=self._settings.group, DesiredCapacity=decision.on_demand_desired
                )
            self._remember(seen.notes, decision.notes)
            self._tag(decision.warn, AT_RISK_TAG, seen.at)
            if decision.spot_target != seen.requested:
                put_off += self._set_target(decision.spot_target)
            for service in seen.services:
                if decision.services[service.name] != service.desired:
                    self._ecs.update_service(
                        cluster=self._settings.cluster,
                        service=service.name,
                        desiredCount=decision.services[service.name],
                    )
            put_off += self._leave(decision, seen.at)
        return put_off + self._note_taken(seen, decision)

    def _fleet(self) -> SpotFleetRequestConfigTypeDef:
        reply = self._ec2.describe_spot_fleet_requests(SpotFleetRequestIds=[self._settings.fleet])
        return _only(reply["SpotFleetRequestConfigs"], f"Spot Fleet {self._settings.fleet}")

    def _group(self) -> AutoScalingGroupTypeDef:
        reply = self._autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=[self._settings.group])
        return _only(reply["AutoScalingGroups"], f"Auto Scaling group {self._settings.group}")

    def _services(self) -> Iterator[Service]:
        for names in _chunks(self._settings.queues, 10):
            reply = self._ecs.describe_services(cluster=self._settings.cluster, services=names)
            desired = {s["serviceName"]: s["desiredCount"] for s in reply["services"] if s["status"] == "ACTIVE"}
            for name in names:
                if name not in desired:
                    raise CouldNotLook(f"ECS service {name} is not there")
                count = self._sqs.get_queue_attributes(
                    QueueUrl=self._settings.queues[name],
                    AttributeNames=[
                        "ApproximateNumberOfMessages",
                        "ApproximateNumberOfMessagesNotVisible",
                        "ApproximateNumberOfMessagesDelayed",
                    ],
                )["Attributes"]
                yield Service(
                    name=name,
                    visible=int(count["ApproximateNumberOfMessages"]),
                    in_flight=int(count["ApproximateNumberOfMessagesNotVisible"]),
                    delayed=int(count["ApproximateNumberOfMessagesDelayed"]),
                    desired=desired[name],
                )

    def _measured(self, services: Sequence[Service], now: datetime) -> list[Service]:
        """Add when jobs came and how long they take, where the policy minds it and there are jobs."""
        policy = self._settings.policy
        waits = {
            service.name: max_wait
            for service in services
            if policy.urgency is Urgency.DEADLINE
            and (max_wait := policy.loads[service.name].max_wait)
            and service.backlog
        }
        if not waits:
            return list(services)
        asked = [*waits]
        found: dict[str, list[tuple[datetime, float]]] = {}
        since = (now - max(PAST, *waits.values())).timestamp() // PERIOD.seconds * PERIOD.seconds
        pages = self._cloudwatch.get_paginator("get_metric_data").paginate(
            MetricDataQueries=[
                query for n, name in enumerate(asked) for query in _queries(n, self._settings.queues[name])
            ],
            StartTime=datetime.fromtimestamp(since, UTC),
            EndTime=now,
        )
        for result in (result for page in pages for result in page["MetricDataResults"]):
            values = zip(result["Timestamps"], result["Values"], strict=True)
            found.setdefault(result["Id"], []).extend(values)
        return [
            replace(
                service,
                arrivals=_arrivals(found.get(f"sent{asked.index(service.name)}", []), now),
                job_seconds=_job_seconds(
                    found.get(f"hidden{asked.index(service.name)}", []),
                    found.get(f"deleted{asked.index(service.name)}", []),
                    now,
                ),
            )
            if service.name in asked
            else service
            for service in services
        ]

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
        """Which of these Spot instances are under notice, and since when. A filter takes 200 values."""
        for chunk in _chunks(spot, 200):
            pages = self._ec2.get_paginator("describe_spot_instance_requests").paginate(
                Filters=[{"Name": "instance-id", "Values": chunk}, {"Name": "status-code", "Values": list(TAKEN)}]
            )
            for request in (request for page in pages for request in page["SpotInstanceRequests"]):
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
            searches = [paginate(cluster=cluster, filter=f"ec2InstanceId in {ids}") for ids in _chunks(instances, 100)]
        for pages in searches:
            for arns in _chunks((arn for page in pages for arn in page["containerInstanceArns"]), 100):
                reply = self._ecs.describe_container_instances(cluster=self._settings.cluster, containerInstances=arns)
                unseen = [failure for failure in reply["failures"] if failure.get("reason") not in GONE]
                if unseen:
                    raise CouldNotLook(f"ECS does not describe {unseen}")
                found = reply["containerInstances"]
                yield from (c for c in found if instances is None or c["ec2InstanceId"] in instances)

    def _instance(self, instance: InstanceTypeDef, joined: ContainerInstanceTypeDef | None) -> Instance:
        """Put together what EC2 and ECS say. The GPUs registered count; until then, those the type should have."""
        gpus = _gpus(joined) if joined else 0
        tags = {tag["Key"]: tag["Value"] for tag in instance.get("Tags", [])}
        return Instance(
            id=instance["InstanceId"],
            pool=f"{instance['InstanceType']}/{instance['Placement']['AvailabilityZone']}",
            spot=instance.get("InstanceLifecycle") == "spot",
            units=gpus if joined else self._settings.units(instance["InstanceType"]),
            launched=instance["LaunchTime"],
            joined=Joined(
                arn=joined["containerInstanceArn"],
                draining=joined["status"] == "DRAINING",
                tasks=_tasks(joined),
                units=gpus,
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
        for chunk in _chunks(arns, 10):
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

    def _reactivate(self, arns: Mapping[str, str]) -> list[str]:
        """Take back what we had drained. Without its tag first: cut short, it then leaves, and nobody is misled."""
        for chunk in _chunks(arns, 100):
            self._ec2.delete_tags(Resources=chunk, Tags=[{"Key": SURPLUS_TAG}])
        return _lines("does not come back", self._set_state([*arns.values()], "ACTIVE"))

    def _remember(self, before: Notes, after: Notes) -> None:
        """Write on the fleet what has changed."""
        old, new = notes.written(before), notes.written(after)
        fleet = [self._settings.fleet]
        if gone := old.keys() - new.keys():
            self._ec2.delete_tags(Resources=fleet, Tags=[{"Key": key} for key in sorted(gone)])
        if changed := {key: value for key, value in new.items() if old.get(key) != value}:
            self._ec2.create_tags(Resources=fleet, Tags=[{"Key": key, "Value": text} for key, text in changed.items()])

    def _tag(self, instances: Iterable[str], key: str, at: datetime) -> None:
        for chunk in _chunks(instances, 100):
            self._ec2.create_tags(Resources=chunk, Tags=[{"Key": key, "Value": at.isoformat()}])

    def _note_taken(self, seen: Seen, decision: Decision) -> list[str]:
        """Remember in the table of pools what EC2 took. It serves the market alone: what fails is put off."""
        ids = frozenset(decision.taken)
        taken = pools.by_pool(i for i in seen.instances if i.id in ids)
        try:
            rows = {str(item["pool"]): item for item in self._rows([*taken])}
            for pool, instances in taken.items():
                if news := pools.with_taken(rows.get(pool, {}), instances, seen.at):
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
        for chunk in _chunks(names, 100):
            reply = self._pools.meta.client.batch_get_item(
                RequestItems={self._pools.name: {"Keys": [{"pool": name} for name in chunk], "ConsistentRead": True}}
            )
            yield from reply["Responses"][self._pools.name]

    def _set_target(self, units: int) -> list[str]:
        try:
            self._ec2.modify_spot_fleet_request(
                SpotFleetRequestId=self._settings.fleet,
                TargetCapacity=units,
                ExcessCapacityTerminationPolicy="noTermination",
            )
        except ClientError as error:
            if error.response["Error"]["Code"] != "FleetNotInModifiableState":
                raise
            return [f"the fleet still works on its last change, {units} units are asked for later"]
        return []

    def _leave(self, decision: Decision, at: datetime) -> list[str]:
        """Drain and end what is to leave, after a last look: what has work by now stays."""
        ending = (*decision.terminate_spot, *decision.terminate_on_demand, *decision.replace_on_demand)
        now = {c["ec2InstanceId"]: c for c in self._joined([*decision.drain, *decision.relieve, *ending])}
        idle = {i for i in decision.drain if i in now and not _tasks(now[i])}
        drain = {i: now[i]["containerInstanceArn"] for i in now if i in idle or i in decision.relieve}
        ready = [i for i in ending if i not in now or (now[i]["status"] == "DRAINING" and not _tasks(now[i]))]
        spared = [f"{i} stays: it has work by now" for i in {*decision.drain, *ending} - drain.keys() - {*ready}]

        # Drained first, tagged after: cut short, it counts as drained by somebody else, and ends when it is idle.
        failed = self._set_state([*drain.values()], "DRAINING")
        self._tag((i for i, arn in drain.items() if arn not in failed), SURPLUS_TAG, at)
        for chunk in _chunks((i for i in decision.terminate_spot if i in ready), 100):
            self._ec2.terminate_instances(InstanceIds=chunk)
        for instance in ready:
            if instance not in decision.terminate_spot:
                self._end_on_demand(instance, replace=instance in decision.replace_on_demand)
        return spared + _lines("is not drained", failed)

    def _end_on_demand(self, instance: str, *, replace: bool) -> None:
        """End one instance by way of its group; one that the group is ending, or no longer has, is ended already."""
        try:
            self._autoscaling.terminate_instance_in_auto_scaling_group(
                InstanceId=instance, ShouldDecrementDesiredCapacity=not replace
            )
        except ClientError as error:
            if error.response["Error"]["Code"] != "ScalingActivityInProgress" and "not found" not in str(error):
                raise


@contextmanager
def _as(kind: type[Exception]) -> Iterator[None]:
    """Translate what botocore raises, keeping the cause."""
    try:
        yield
    except (ClientError, BotoCoreError) as error:
        raise kind(str(error)) from error


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    whole = list(items)
    return (whole[start : start + size] for start in range(0, len(whole), size))


def _lines(what: str, failed: Mapping[str, str]) -> list[str]:
    return [f"{arn} {what}: {why}" for arn, why in failed.items()]


def _only(found: Sequence[T], name: str) -> T:
    if len(found) != 1:
        raise CouldNotLook(f"{name} is not there")
    return found[0]


def _tasks(joined: ContainerInstanceTypeDef) -> int:
    return joined["runningTasksCount"] + joined["pendingTasksCount"]


def _gpus(joined: ContainerInstanceTypeDef) -> int:
    return sum(len(r["stringSetValue"]) for r in joined["registeredResources"] if r["name"] == "GPU")


def _queries(number: int, queue_url: str) -> list[MetricDataQueryTypeDef]:
    """What CloudWatch is asked of a queue."""
    queue: DimensionTypeDef = {"Name": "QueueName", "Value": queue_url.rsplit("/", 1)[-1]}
    wanted = (
        ("sent", "NumberOfMessagesSent", "Sum"),
        ("hidden", "ApproximateNumberOfMessagesNotVisible", "Average"),
        ("deleted", "NumberOfMessagesDeleted", "Sum"),
    )
    return [
        {
            "Id": f"{name}{number}",
            "MetricStat": {
                "Metric": {"Namespace": "AWS/SQS", "MetricName": metric, "Dimensions": [queue]},
                "Period": PERIOD.seconds,
                "Stat": stat,
            },
        }
        for name, metric, stat in wanted
    ]


def _arrivals(sent: Iterable[tuple[datetime, float]], now: datetime) -> tuple[Arrival, ...]:
    """Each as old as the beginning of its period."""
    return tuple(Arrival(now - at, int(jobs)) for at, jobs in sorted(sent, reverse=True) if jobs)


def _job_seconds(
    hidden: Iterable[tuple[datetime, float]], deleted: Iterable[tuple[datetime, float]], now: datetime
) -> float | None:
    """How long the latest jobs took.

    A worker has one message in flight: so many on average, for so long, were so many jobs of so many seconds (Little's
    law). A period that is not over has its average already and not all of its jobs.
    """
    at_work, done = dict(hidden), dict(deleted)
    jobs = seconds = 0.0
    for at in sorted({*at_work, *done}, reverse=True):
        if at + PERIOD <= now and jobs < FEWEST_JOBS:
            jobs += done.get(at, 0.0)
            seconds += at_work.get(at, 0.0) * PERIOD.total_seconds()
    return seconds / jobs if jobs >= FEWEST_JOBS else None
