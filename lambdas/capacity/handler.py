"""One invocation: hear, drain, look, decide, apply, tell. What it tells of a pass is also what CloudWatch measures."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cache
from typing import Any

import boto3

from capacity import cloud as fleetcloud
from capacity import groupcloud, groups, policy
from capacity.account import Cloud, CouldNotApply, CouldNotLook
from capacity.metrics import Metric, Values, embedded, of_notices, of_pass
from capacity.notices import MINUTE, Broken, Heard, Ignored, Notice, read
from capacity.settings import BadSettings, Common, GroupSettings, Settings

FULL = 10
"""The most messages that SQS brings at once, without being told to wait for more (templates/functions.py)."""


Decide = Callable[[Any, Any], Any]
"""What a profile's policy makes of what its own Cloud saw, and of what the operator chose."""


@dataclass(frozen=True)
class Profile:
    """One way to have machines: its settings, its Cloud, its policy."""

    read: Callable[[Mapping[str, str]], Common]
    cloud: Callable[[boto3.Session, Any], Cloud]
    decide: Decide


PROFILES: Mapping[str, Profile] = {
    "fleet": Profile(Settings.read, fleetcloud.Aws, policy.decide),
    "groups": Profile(GroupSettings.read, groupcloud.Aws, groups.decide),
}
"""By the environment's PROFILE."""


def handler(event: Mapping[str, Any], context: object) -> dict[str, Any]:  # noqa: ARG001 - Lambda passes it
    """Take one batch of the notices queue; return the messages that are to come again."""
    cloud, settings, decide = _wired()
    return run(cloud, settings, event, clock=lambda: datetime.now(UTC), decide=decide)


@cache
def _wired() -> tuple[Cloud, Common, Decide]:
    """Built on the first invocation, kept while the sandbox is warm."""
    return wired(os.environ, boto3.Session())


def wired(environment: Mapping[str, str], session: boto3.Session) -> tuple[Cloud, Common, Decide]:
    """What the environment asks for. Raises BadSettings."""
    name = environment.get("PROFILE", "")
    if name not in PROFILES:
        raise BadSettings(f"PROFILE is not one of {', '.join(PROFILES)}: {name!r}")
    profile = PROFILES[name]
    settings = profile.read(environment)
    return profile.cloud(session, settings), settings, profile.decide


def run(
    cloud: Cloud,
    settings: Common,
    event: Mapping[str, Any],
    clock: Callable[[], datetime],
    decide: Decide = policy.decide,
) -> dict[str, Any]:
    """Drain what is under notice before anything can fail, then look and decide.

    After a full batch there is more to come, be it only ECS's news of what was just drained, so the look is left to
    that, or to the minute. A look or an act that fails is raised: SQS brings the whole batch again, and every step
    bears being repeated. Only instances that would not drain send just their own messages back.
    """
    heard = {record["messageId"]: read(record["body"]) for record in event["Records"]}
    everything = [item for items in heard.values() for item in items]
    for item in everything:
        if isinstance(item, Ignored):
            _log("ignored", why=item.reason)

    leaving = [item for item in everything if isinstance(item, Notice) and item.leaving]
    drained = cloud.drain(leaving)
    notices = of_notices(leaving, drained.done, clock())
    if leaving:
        _log("drained", why="under notice", instances=drained.done, not_ours=drained.not_ours, failed=drained.failed)

    broken = [item for item in everything if isinstance(item, Broken)]
    kept = cloud.set_aside(broken) if broken else {}
    if broken:
        machines = sorted({item.container_instance for item in broken})
        _log("drained", why="its GPU is broken, as a worker there found", container_instances=machines, failed=kept)

    # Of a broken machine nothing tells but this batch.
    is_due = len(heard) < FULL or MINUTE in everything or bool(broken)
    if any(not isinstance(item, Ignored) for item in everything) and is_due:
        _pass(cloud, settings, decide, everything, notices, clock().replace(microsecond=0))
    elif notices:
        _log("measured", why="a look follows", **embedded(settings.stack, notices, clock()))
    return {
        "batchItemFailures": [
            {"itemIdentifier": message}
            for message, items in heard.items()
            if any(_is_left(item, drained.failed, kept) for item in items)
        ]
    }


def _is_left(item: Heard, failed: Collection[str], kept: Collection[str]) -> bool:
    """Whether a machine that was to drain would not."""
    match item:
        case Notice(instance=instance):
            return instance in failed
        case Broken(container_instance):
            return container_instance in kept
    return False


def _pass(
    cloud: Cloud, settings: Common, decide: Decide, heard: Collection[Heard], notices: Values, now: datetime
) -> None:
    noticed = {item.instance for item in heard if isinstance(item, Notice) and item.leaving}
    warned = frozenset(item.instance for item in heard if isinstance(item, Notice) and not item.leaving)
    broken = frozenset(item.container_instance for item in heard if isinstance(item, Broken))
    try:
        seen = cloud.look(now)
        # A notice just heard may not show in what EC2 says yet; a recommendation and a broken GPU never do.
        seen = replace(seen, noticed=seen.noticed | noticed, warned=warned, broken=broken)
        decision = decide(seen, settings.policy)
        put_off = cloud.apply(seen, decision)
    except (CouldNotLook, CouldNotApply) as error:
        measured = embedded(settings.stack, {**notices, Metric.ERRORS: 1}, now)
        _log("capacity-failed", why=f"{type(error).__name__}: {error}", **measured)
        raise
    numbers = asdict(decision)
    _log(
        "capacity",
        why=numbers.pop("reason"),
        **numbers,
        backlog={service.name: service.backlog for service in seen.services},
        spot_requested=seen.requested,
        spot_fulfilled=seen.fulfilled,
        on_demand_requested=seen.on_demand_requested,
        on_demand_present=seen.on_demand_present,
        joined=sum(i.joined is not None for i in seen.instances),
        put_off=put_off,
        **embedded(settings.stack, {**of_pass(seen, decision), **notices}, now),
    )


def _log(event: str, *, why: str, **numbers: object) -> None:
    """Write one JSON object on one line. Prose would be parsed one day; this may be."""
    sys.stdout.write(json.dumps({"event": event, "why": why, **numbers}, default=_plain) + "\n")
    sys.stdout.flush()


def _plain(value: object) -> object:
    return sorted(value) if isinstance(value, frozenset) else str(value)
