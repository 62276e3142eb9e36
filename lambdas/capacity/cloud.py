"""The Cloud of profile `fleet`: a Spot Fleet, and a group of On-Demand instances for when Spot is short."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import boto3
from botocore.exceptions import ClientError

from capacity import notes
from capacity.account import (
    AT_RISK_TAG,
    CONFIG,
    LIVE,
    SURPLUS_TAG,
    Account,
    CouldNotApply,
    CouldNotLook,
    chunks,
    lines,
    tasks,
    translated,
)
from capacity.nouns import Arrival, Decision, Notes, Seen, Service, Urgency
from capacity.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_cloudwatch.type_defs import DimensionTypeDef, MetricDataQueryTypeDef
    from mypy_boto3_ec2.type_defs import SpotFleetRequestConfigTypeDef

PAST = timedelta(days=1)
"""In which jobs are looked for to tell how long they take."""
PERIOD = timedelta(minutes=5)
FEWEST_JOBS = 20
"""So many of the latest tell how long jobs take."""


class Aws(Account):
    """The Cloud of this profile."""

    _settings: Settings

    def __init__(self, session: boto3.Session, settings: Settings) -> None:
        super().__init__(session, settings)
        self._cloudwatch = session.client("cloudwatch", config=CONFIG)

    def look(self, now: datetime) -> Seen:
        """See everything a decision needs. Raises CouldNotLook rather than take silence for an empty cluster."""
        with translated(CouldNotLook):
            fleet, [group] = self._fleet(), self._groups(self._settings.group)
            members = {m["InstanceId"]: m["LifecycleState"] in LIVE for m in group["Instances"]}
            machines = self._machines(members, now)
            return Seen(
                at=now,
                services=tuple(self._measured(list(self._services()), now)),
                requested=fleet["SpotFleetRequestConfig"].get("TargetCapacity", 0),
                fulfilled=fleet["SpotFleetRequestConfig"].get("FulfilledCapacity", 0.0),
                notes=notes.read({tag["Key"]: tag["Value"] for tag in fleet.get("Tags", [])}),
                on_demand_requested=group["DesiredCapacity"],
                on_demand_present=sum(members.values()),
                instances=machines.instances,
                noticed=machines.noticed,
                overdue=machines.overdue,
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
        with translated(CouldNotApply):
            put_off += lines("is not drained", self._set_state([arns[i] for i in decision.evacuate], "DRAINING"))
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
        return put_off + self._note_taken(seen, decision.taken)

    def _fleet(self) -> SpotFleetRequestConfigTypeDef:
        wanted = self._settings.fleet
        found = self._ec2.describe_spot_fleet_requests(SpotFleetRequestIds=[wanted])["SpotFleetRequestConfigs"]
        if len(found) != 1:
            raise CouldNotLook(f"Spot Fleet {wanted} is not there")
        return found[0]

    def _services(self) -> Iterator[Service]:
        for names in chunks(self._settings.queues, 10):
            reply = self._ecs.describe_services(cluster=self._settings.cluster, services=names)
            desired = {s["serviceName"]: s["desiredCount"] for s in reply["services"] if s["status"] == "ACTIVE"}
            for name in names:
                if name not in desired:
                    raise CouldNotLook(f"ECS service {name} is not there")
                yield replace(self._backlog(name), desired=desired[name])

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

    def _reactivate(self, arns: Mapping[str, str]) -> list[str]:
        """Take back what we had drained. Without its tag first: cut short, it then leaves, and nobody is misled."""
        for chunk in chunks(arns, 100):
            self._ec2.delete_tags(Resources=chunk, Tags=[{"Key": SURPLUS_TAG}])
        return lines("does not come back", self._set_state([*arns.values()], "ACTIVE"))

    def _remember(self, before: Notes, after: Notes) -> None:
        """Write on the fleet what has changed."""
        old, new = notes.written(before), notes.written(after)
        fleet = [self._settings.fleet]
        if gone := old.keys() - new.keys():
            self._ec2.delete_tags(Resources=fleet, Tags=[{"Key": key} for key in sorted(gone)])
        if changed := {key: value for key, value in new.items() if old.get(key) != value}:
            self._ec2.create_tags(Resources=fleet, Tags=[{"Key": key, "Value": text} for key, text in changed.items()])

    def _tag(self, instances: Iterable[str], key: str, at: datetime) -> None:
        for chunk in chunks(instances, 100):
            self._ec2.create_tags(Resources=chunk, Tags=[{"Key": key, "Value": at.isoformat()}])

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
        idle = {i for i in decision.drain if i in now and not tasks(now[i])}
        drain = {i: now[i]["containerInstanceArn"] for i in now if i in idle or i in decision.relieve}
        ready = [i for i in ending if i not in now or (now[i]["status"] == "DRAINING" and not tasks(now[i]))]
        spared = [f"{i} stays: it has work by now" for i in {*decision.drain, *ending} - drain.keys() - {*ready}]

        # Drained first, tagged after: cut short, it counts as drained by somebody else, and ends when it is idle.
        failed = self._set_state([*drain.values()], "DRAINING")
        self._tag((i for i, arn in drain.items() if arn not in failed), SURPLUS_TAG, at)
        for chunk in chunks((i for i in decision.terminate_spot if i in ready), 100):
            self._ec2.terminate_instances(InstanceIds=chunk)
        for instance in ready:
            if instance not in decision.terminate_spot:
                self._end(instance, replace=instance in decision.replace_on_demand)
        return spared + lines("is not drained", failed)


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
