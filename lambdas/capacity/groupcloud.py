"""The Cloud of profile `groups`: two Auto Scaling groups, which grow and empty by their own scaling policies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from capacity import notes
from capacity.account import LIVE, Account, CouldNotApply, CouldNotLook, lines, tasks, translated
from capacity.groups import GroupDecision, Kind, SeenGroups
from capacity.nouns import Notes
from capacity.settings import GroupSettings
from capacity.worth import Launch, failing_since, spot_share

if TYPE_CHECKING:
    from mypy_boto3_autoscaling.type_defs import AutoScalingGroupTypeDef

IDLE_SINCE = "spindrift:idle-since"
"""Beside the notes, on the Spot group: when there was first no work for the instances that are there."""
ENDED = {"Successful": False, "Failed": True, "Cancelled": True}
"""Status of a scaling activity that is over, and whether what it launched failed (API reference,
DescribeScalingActivities).
"""
BUSY = ("ScalingActivityInProgress", "ResourceContention")
"""Auto Scaling still works on something, and refuses; later it will not."""


class Aws(Account):
    """The Cloud of this profile."""

    _settings: GroupSettings

    def __init__(self, session: boto3.Session, settings: GroupSettings) -> None:
        super().__init__(session, settings)
        self._names = {Kind.SPOT: settings.spot_group, Kind.ON_DEMAND: settings.group}

    def look(self, now: datetime) -> SeenGroups:
        """See everything a decision needs. Raises CouldNotLook rather than take silence for an empty cluster.

        Only what Spot costs may stay unknown: no pass waits for the market's table. Of that and of past launches a
        decision needs nothing while there is no work.
        """
        with translated(CouldNotLook):
            spot, on_demand = self._groups(*self._names.values())
            stages = {m["InstanceId"]: m["LifecycleState"] for group in (spot, on_demand) for m in group["Instances"]}
            machines = self._machines({i: stage in LIVE for i, stage in stages.items()}, now)
            services = tuple(self._backlog(name) for name in self._settings.queues)
            work = any(service.backlog for service in services)
            tags = _tags(spot)
            return SeenGroups(
                at=now,
                services=services,
                requested=spot["DesiredCapacity"],
                fulfilled=sum(
                    self._settings.units(m["InstanceType"])
                    for m in spot["Instances"]
                    if m["LifecycleState"] == "InService"
                ),
                on_demand_requested=on_demand["DesiredCapacity"],
                on_demand_present=sum(m["LifecycleState"] in LIVE for m in on_demand["Instances"]),
                on_demand_in_service=sum(m["LifecycleState"] == "InService" for m in on_demand["Instances"]),
                instances=machines.instances,
                noticed=machines.noticed,
                overdue=machines.overdue,
                notes=notes.read(tags),
                idle_since=notes.moment(tags.get(IDLE_SINCE, "")),
                spot_share=self._spot_share(now) if work else None,
                failing=dict(self._failing(now)) if work else {},
            )

    def apply(self, seen: SeenGroups, decision: GroupDecision) -> list[str]:
        """Make the truth what was decided, calling only where they differ; return what was put off.

        What adds capacity comes first. Before anything ends there is a last look.
        """
        arns = {i.id: i.joined.arn for i in seen.instances if i.joined}
        put_off: list[str] = []
        with translated(CouldNotApply):
            put_off += lines("is not drained", self._set_state([arns[i] for i in decision.evacuate], "DRAINING"))
            for kind, units in decision.grow.items():
                put_off += self._execute(self._settings.grow[kind], units)
            self._remember(_written(seen.notes, seen.idle_since), _written(decision.notes, decision.idle_since))
            put_off += self._end_idle(decision.replace, decision.give_up)
            if decision.shrink:
                put_off += self._shrink(decision)
        return put_off + self._note_taken(seen, decision.taken)

    def _spot_share(self, now: datetime) -> float | None:
        try:
            return spot_share(self._all_rows(), now)
        except (ClientError, BotoCoreError):
            return None

    def _all_rows(self) -> Iterator[Mapping[str, Any]]:
        """The table of pools. DynamoDB gives a megabyte at a time."""
        pages = self._pools.meta.client.get_paginator("scan").paginate(TableName=self._pools.name)
        return (row for page in pages for row in page["Items"])

    def _failing(self, now: datetime) -> Iterator[tuple[Kind, datetime]]:
        """Since when launches of a group fail, as far as its last hundred activities tell."""
        for kind, name in self._names.items():
            reply = self._autoscaling.describe_scaling_activities(AutoScalingGroupName=name, MaxRecords=100)
            launches = [
                Launch(one["StartTime"], ENDED[one["StatusCode"]])
                for one in reply["Activities"]
                if one["StatusCode"] in ENDED and one["Description"].startswith("Launching")
            ]
            if since := failing_since(launches, now):
                yield kind, since

    def _execute(self, policy: str, missing: int | None = None) -> list[str]:
        """Execute a scaling policy, for a step policy with what is missing.

        HonorCooldown stays away: step policies do not take it, and whatever happened before, to empty a group has its
        reason.
        """
        value: Any = {} if missing is None else {"MetricValue": missing, "BreachThreshold": 0}
        try:
            self._autoscaling.execute_policy(PolicyName=policy, **value)
        except ClientError as error:
            if error.response["Error"]["Code"] not in BUSY:
                raise
            return [f"{policy} is executed later: {error}"]
        return []

    def _remember(self, before: Mapping[str, str], after: Mapping[str, str]) -> None:
        """Write on the Spot group what has changed. No instance inherits it."""
        gone = [self._tag(key) for key in sorted(before.keys() - after.keys())]
        changed: list[Any] = [
            {**self._tag(key), "Value": text} for key, text in after.items() if before.get(key) != text
        ]
        if gone:
            self._autoscaling.delete_tags(Tags=gone)
        if changed:
            self._autoscaling.create_or_update_tags(Tags=changed)

    def _tag(self, key: str) -> Any:
        group = self._settings.spot_group
        return {"ResourceId": group, "ResourceType": "auto-scaling-group", "Key": key, "PropagateAtLaunch": False}

    def _end_idle(self, replace: tuple[str, ...], give_up: tuple[str, ...]) -> list[str]:
        """End what is of no use, for the group to launch others or not, after a last look: what has work stays."""
        instances = replace + give_up
        if not instances:
            return []
        busy = {c["ec2InstanceId"] for c in self._joined(instances) if tasks(c)}
        for instance in instances:
            if instance not in busy:
                self._end(instance, replace=instance in replace)
        return [f"{instance} stays: it has work by now" for instance in sorted(busy)]

    def _shrink(self, decision: GroupDecision) -> list[str]:
        """Empty the groups, after a last look at every queue."""
        if any(self._backlog(name).backlog for name in self._settings.queues):
            return ["every instance stays: there is work by now"]
        return [line for kind in decision.shrink for line in self._execute(self._settings.shrink[kind])]


def _tags(group: AutoScalingGroupTypeDef) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in group["Tags"]}


def _written(said: Notes, idle_since: datetime | None) -> dict[str, str]:
    return notes.written(said) | ({IDLE_SINCE: idle_since.isoformat()} if idle_since else {})
