"""What the agent knows and says, as values: the instance, the notice, and how long to go on telling it. Pure."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Iterator, Mapping

SCHEMA = "spindrift.notice/1"
INTERRUPTION = "interruption"
REBALANCE = "rebalance"

FIRST_WAIT = timedelta(seconds=0.2)
LONGEST_WAIT = timedelta(seconds=5)


class Trouble(Exception):
    """We could not look, or not read what we saw. Never the same as "there is no notice"."""


class NotUnderstood(Trouble):
    """A document that lacks what its source promises."""


@dataclass(frozen=True)
class Instance:
    """The machine we run on; `cluster` and `container_instance_arn` are None until the ECS agent has registered it."""

    instance_id: str
    instance_type: str
    availability_zone: str
    lifecycle: str
    cluster: str | None = None
    container_instance_arn: str | None = None

    def to_json(self) -> dict[str, str | None]:
        """Return what `instance.json` holds."""
        return {
            "instanceId": self.instance_id,
            "instanceType": self.instance_type,
            "availabilityZone": self.availability_zone,
            "lifecycle": self.lifecycle,
            "cluster": self.cluster,
            "containerInstanceArn": self.container_instance_arn,
        }


@dataclass(frozen=True)
class Notice:
    """This instance will be taken: at `deadline`, or, for a rebalance recommendation (deadline None), perhaps."""

    kind: str
    instance: Instance
    action: str | None
    deadline: datetime | None
    observed_at: datetime

    @property
    def identity(self) -> str:
        """What makes two hearings one notice. A changed deadline or action is news; a changed observer is not."""
        deadline = _text(self.deadline) if self.deadline else "-"
        return f"{self.instance.instance_id} {self.kind} {self.action or '-'} {deadline}"

    def to_json(self) -> dict[str, str | None]:
        """Return the document published to SNS and written for workers."""
        return {
            "schema": SCHEMA,
            "kind": self.kind,
            **self.instance.to_json(),
            "action": self.action,
            "deadline": _text(self.deadline) if self.deadline else None,
            "observedAt": _text(self.observed_at),
        }

    def wait_after(self, failures: int, now: datetime) -> timedelta | None:
        """Return how long to wait before telling it again, `failures` tries having failed; None when it is too late."""
        wait = min(FIRST_WAIT * (1 << min(failures - 1, 16)), LONGEST_WAIT)
        if self.deadline is None:
            return wait
        return min(wait, self.deadline - now) if now < self.deadline else None


def instance_from(identity: Mapping[str, Any], life_cycle: str) -> Instance:
    """Read {"instanceId": "i-1", "instanceType": "g5.xlarge", "availabilityZone": "eu-west-1a", ...} and "spot".

    instance-life-cycle also knows "scheduled" and "capacity-block"; to us, what is not Spot is On-Demand.
    """
    with _reading("identity document"):
        return Instance(
            instance_id=identity["instanceId"],
            instance_type=identity["instanceType"],
            availability_zone=identity["availabilityZone"],
            lifecycle="spot" if life_cycle.strip() == "spot" else "on-demand",
        )


def interruption_from(body: Mapping[str, Any], instance: Instance, now: datetime) -> Notice:
    """Read spot/instance-action: {"action": "terminate", "time": "2017-09-18T08:22:00Z"}."""
    with _reading("instance-action"):
        return Notice(INTERRUPTION, instance, body["action"], _time(body["time"]), now)


def rebalance_from(body: Mapping[str, Any], instance: Instance) -> Notice:
    """Read events/recommendations/rebalance: {"noticeTime": "2020-10-27T08:22:00Z"}."""
    with _reading("rebalance"):
        return Notice(REBALANCE, instance, None, None, _time(body["noticeTime"]))


def notice_from(document: Mapping[str, Any]) -> Notice:
    """Read back what `Notice.to_json` wrote."""
    with _reading("notice file"):
        return Notice(
            kind=document["kind"],
            instance=Instance(
                instance_id=document["instanceId"],
                instance_type=document["instanceType"],
                availability_zone=document["availabilityZone"],
                lifecycle=document["lifecycle"],
                cluster=document["cluster"],
                container_instance_arn=document["containerInstanceArn"],
            ),
            action=document["action"],
            deadline=_time(document["deadline"]) if document["deadline"] else None,
            observed_at=_time(document["observedAt"]),
        )


@contextmanager
def _reading(what: str) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NotUnderstood(f"{what}: {error!r}") from error


def _text(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")


def _time(text: str) -> datetime:
    # Python 3.9's fromisoformat does not know "Z".
    return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(timezone.utc)
