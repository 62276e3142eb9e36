"""Many messengers, one notice: whatever the notices queue brings, as values.

An instance is interrupted once in its life, so its id is the notice's identity, and hearing it again changes nothing.
Each translator starts with the JSON it reads; whole examples are in docs/events.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

WARNING = timedelta(minutes=2)
"""EC2 interrupts two minutes after its warning (EC2 user guide, Spot Instance interruption notices)."""


class Kind(StrEnum):
    """What will become of the instance."""

    INTERRUPTION = "interruption"
    REBALANCE = "rebalance"
    LIFECYCLE = "lifecycle"


@dataclass(frozen=True, kw_only=True)
class Notice:
    """One instance will be taken, or may be. `container_instance` is an ARN, known only to the agent.

    `since` is when the messenger learned of it; EventBridge tells only the second.
    """

    kind: Kind
    instance: str
    since: datetime | None = None
    deadline: datetime | None = None
    container_instance: str | None = None

    @property
    def leaving(self) -> bool:
        """It will be taken; a rebalance recommendation only says that it may."""
        return self.kind is not Kind.REBALANCE


@dataclass(frozen=True)
class Broken:
    """A worker found its machine's GPU broken, and left. `container_instance` is an ARN."""

    container_instance: str


@dataclass(frozen=True)
class Wake:
    """Something changed: look again."""

    reason: str


@dataclass(frozen=True)
class Ignored:
    """Nothing we know; `reason` says what it was."""

    reason: str


Heard = Notice | Broken | Wake | Ignored
BROKEN_GPU = 64
"""The exit code of a worker whose machine's GPU is broken (ecs-tasks/gpu-worker/gpu_worker/health.py)."""
MINUTE = Wake("the minute")


def read(body: str) -> list[Heard]:
    """Translate the body of one SQS record. Never raises: what cannot be read is `Ignored`, with the reason."""
    try:
        return _read(json.loads(body))
    except json.JSONDecodeError as error:
        return [Ignored(f"not JSON: {error}")]
    except RecursionError:
        return [Ignored("nested too deeply")]


def _read(message: Any) -> list[Heard]:
    translate: Callable[[Mapping[str, Any]], Heard]
    match message:
        case {"Type": "Notification", "Message": str(inner)} | {"Sns": {"Message": str(inner)}}:
            return read(inner)
        case {"Records": [*records]}:
            return [heard for record in records for heard in _read(record)]
        case {"schema": "spindrift.notice/1"}:
            translate = from_agent
        case {"schema": "spindrift.wake/1"}:
            translate = from_ingest
        case {"terminationNotificiation": _}:
            translate = from_source_004
        case {"AlarmName": _}:
            translate = from_alarm
        case {"detail-type": str(name)}:
            translate = EVENTS.get(name, unknown_event)
        case _:
            translate = unknown
    return [_translated(translate, message)]


def _translated(translate: Callable[[Mapping[str, Any]], Heard], message: Mapping[str, Any]) -> Heard:
    """Apply one translator; a message that lacks what its dialect promises is ignored, saying so."""
    try:
        return translate(message)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return Ignored(f"{translate.__name__} cannot read it: {type(error).__name__} {error}")


def from_agent(message: Mapping[str, Any]) -> Notice:
    """{"schema": "spindrift.notice/1", "kind": "interruption", "instanceId": "i-1", "deadline": "2024-05-01T12:02:00Z",
    "observedAt": "2024-05-01T12:00:00.4Z",
    "containerInstanceArn": "arn:aws:ecs:eu-west-1:123456789012:container-instance/c/0a1b", …}.
    """
    return Notice(
        kind=Kind(message["kind"]),
        instance=_instance(message["instanceId"]),
        since=_moment(message.get("observedAt")),
        deadline=_moment(message.get("deadline")),
        container_instance=message.get("containerInstanceArn") or None,
    )


def from_source_004(message: Mapping[str, Any]) -> Notice:
    """{"terminationNotificiation": "true", "instanceId": "i-1", "ecsContainer": "arn:…", …}; it is spelled so."""
    return Notice(
        kind=Kind.INTERRUPTION,
        instance=_instance(message["instanceId"]),
        container_instance=message.get("ecsContainer") or None,
    )


def from_ingest(message: Mapping[str, Any]) -> Wake:
    """{"schema": "spindrift.wake/1", "reason": "first upload after a quiet time", "at": "2024-05-01T12:00:00Z"}."""
    return Wake(str(message["reason"]))


def from_alarm(message: Mapping[str, Any]) -> Wake:
    """{"AlarmName": "jobs-to-do", "NewStateValue": "ALARM", …}: CloudWatch, by way of SNS."""
    return Wake(f"alarm {message['AlarmName']} is {message['NewStateValue']}")


def from_interruption_warning(event: Mapping[str, Any]) -> Notice:
    """{"time": "2024-05-01T12:00:00Z", "detail": {"instance-id": "i-1", "instance-action": "terminate"}, …}."""
    since = _moment(event.get("time"))
    return Notice(
        kind=Kind.INTERRUPTION,
        instance=_instance(event["detail"]["instance-id"]),
        since=since,
        deadline=since + WARNING if since else None,
    )


def from_rebalance_recommendation(event: Mapping[str, Any]) -> Notice:
    """{"detail": {"instance-id": "i-1"}, …}."""
    return Notice(kind=Kind.REBALANCE, instance=_instance(event["detail"]["instance-id"]))


def from_terminate_lifecycle(event: Mapping[str, Any]) -> Notice:
    """{"detail": {"EC2InstanceId": "i-1", "LifecycleTransition": "autoscaling:EC2_INSTANCE_TERMINATING"}, …}."""
    return Notice(kind=Kind.LIFECYCLE, instance=_instance(event["detail"]["EC2InstanceId"]))


def from_launch_lifecycle(event: Mapping[str, Any]) -> Wake:
    """{"detail": {"EC2InstanceId": "i-1", "LifecycleTransition": "autoscaling:EC2_INSTANCE_LAUNCHING"}, …}."""
    return Wake(f"{event['detail']['EC2InstanceId']} launches")


def from_instance_state(event: Mapping[str, Any]) -> Wake:
    """{"detail": {"instance-id": "i-1", "state": "shutting-down"}, …}: what it means for us, the look tells."""
    return Wake(f"{event['detail']['instance-id']} is {event['detail']['state']}")


def from_spot_fleet(event: Mapping[str, Any]) -> Wake:
    """{"detail": {"sub-type": "launched", "instance-id": "i-1"}, …}: of an instance, or an error of the fleet."""
    return Wake(f"{event['detail-type']}: {event['detail']['sub-type']}")


def from_container_instance(event: Mapping[str, Any]) -> Wake:
    """{"detail": {"ec2InstanceId": "i-1", "status": "ACTIVE", "agentConnected": true}, …}."""
    return Wake(f"{event['detail']['ec2InstanceId']} is {event['detail']['status']} in ECS")


def from_task(event: Mapping[str, Any]) -> Broken | Ignored:
    """{"detail": {"containerInstanceArn": "arn:…", "containers": [{"exitCode": 64, …}], …}, …}: of a stopped task."""
    if not any(container.get("exitCode") == BROKEN_GPU for container in event["detail"]["containers"]):
        return Ignored("a task stopped for another reason than a broken GPU")
    return Broken(str(event["detail"]["containerInstanceArn"]))


def from_schedule(_: Mapping[str, Any]) -> Wake:
    """{"detail-type": "Scheduled Event", …}."""
    return MINUTE


def unknown_event(event: Mapping[str, Any]) -> Ignored:
    """{"detail-type": "Whatever Came New", …}."""
    return Ignored(f"no use for the event {event['detail-type']!r}")


def unknown(_: object) -> Ignored:
    """Anything else."""
    return Ignored("in no dialect we know")


EVENTS: Mapping[str, Callable[[Mapping[str, Any]], Heard]] = {
    "EC2 Spot Instance Interruption Warning": from_interruption_warning,
    "EC2 Instance Rebalance Recommendation": from_rebalance_recommendation,
    "EC2 Instance State-change Notification": from_instance_state,
    "EC2 Spot Fleet Instance Change": from_spot_fleet,
    "EC2 Spot Fleet Error": from_spot_fleet,
    "EC2 Instance-terminate Lifecycle Action": from_terminate_lifecycle,
    "EC2 Instance-launch Lifecycle Action": from_launch_lifecycle,
    "ECS Container Instance State Change": from_container_instance,
    "ECS Task State Change": from_task,
    "Scheduled Event": from_schedule,
}
"""EventBridge's detail-types; its events are account-wide, so an instance may well be somebody else's."""


def _instance(value: object) -> str:
    """Refuse what is not an instance id: it becomes part of an ECS query."""
    if not isinstance(value, str) or not value.startswith("i-") or not value[2:].isalnum():
        raise ValueError(f"{value!r} is no instance id")
    return value


def _moment(value: object) -> datetime | None:
    """A moment with its time zone; None for anything else, since a notice with a bad time is a notice."""
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return moment if moment.tzinfo else None
