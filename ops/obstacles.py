"""Why nothing starts: the first thing in the way, from an upload to a job that is worked on. Pure.

A look is everything that was seen at one time. The obstacles are asked about in the order of the chain, and the first
that is there is the answer: what comes after it has had no chance yet.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from ops.text import count, lasting, short

SILENCE = timedelta(minutes=5)
"""A pass is due every minute."""
BOOT = timedelta(minutes=10)
"""After so long an instance that has not joined never will (the capacity policy's `broken`)."""
QUOTA = re.compile(r"instance ?count ?(limit )?exceeded|countlimitexceeded|vcpu ?(limit|capacity)", re.IGNORECASE)
"""As Spot Fleets, groups and EC2 itself put it: spotInstanceCountLimitExceeded, MaxSpotInstanceCountExceeded, "Max spot
instance count exceeded", VcpuLimitExceeded, "You have requested more vCPU capacity than your current vCPU limit"."""
NO_CAPACITY = re.compile(r"capacity|blacklisted", re.IGNORECASE)
"""InsufficientInstanceCapacity, UnfulfillableCapacity, "no Spot capacity available", and where nothing else is told:"""
SUMMARY = "allLaunchSpecsTemporarilyBlacklisted"
"""What a fleet says when it has given up all its pools, whatever was wrong with each."""
NO_USE = re.compile(r"the last \d+ [\w-]+ machines were of no use.*")
"""As a pass puts it (lambdas/capacity/trial.py)."""
UNPLACED = re.compile(r"was unable to place a task.*?Reason: (.*?)(?: The closest matching|\. For more|$)", re.DOTALL)
BAD_IMAGE = "CannotPull"
"""CannotPullContainerError, CannotPullImageManifestError (ECS developer guide, "Stopped tasks error messages")."""
BAD_SETTINGS, BROKEN_GPU = 2, 64
"""Exit codes of a worker that refuses its settings or processor, and of one whose GPU is broken."""


@dataclass(frozen=True, kw_only=True)
class Obstacle:
    """What is in the way, what was seen of it, and what to do about it."""

    name: str
    seen: str
    do: str


@dataclass(frozen=True, kw_only=True)
class Queue:
    """A queue of jobs and its service. `in_flight` includes those that are hidden until they are tried again."""

    name: str
    visible: int
    in_flight: int
    delayed: int
    placement: str
    max_tasks: int
    desired: int
    running: int
    event: str = ""
    """The latest that ECS says of the service."""
    oldest: timedelta | None = None
    """Age of the oldest job that waits; None is not known, or none waits."""

    @property
    def waiting(self) -> int:
        """Jobs that nobody works on yet."""
        return self.visible + self.delayed

    @property
    def backlog(self) -> int:
        """Jobs that are not finished."""
        return self.waiting + self.in_flight


@dataclass(frozen=True, kw_only=True)
class Function:
    """A Lambda and what calls it: whatever keeps it from running, in AWS's words."""

    name: str
    halted: bool = False
    """No invocation is allowed: its reserved concurrency is 0."""
    source: str = "Enabled"
    """State of its event source mapping."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """The last pass of the capacity Lambda, by its log. `needed` is in units, None where it failed."""

    at: datetime
    why: str
    failed: bool = False
    needed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A pending or running instance of the stack."""

    id: str
    pool: str
    """Its type and zone."""
    spot: bool
    launched: datetime
    joined: bool
    draining: bool = False
    units: int = 0
    """Of the GPUs that it registered; what its type should have until it has joined."""


@dataclass(frozen=True, kw_only=True)
class Market:
    """What was asked of Spot or of On-Demand, in units, and what EC2 has refused since its last launch."""

    requested: int
    refusals: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """A task that ended lately."""

    reason: str
    code: int | None = None


@dataclass(frozen=True, kw_only=True)
class Retry:
    """A job that has failed before and is to be tried again."""

    job_id: str
    key: str
    failures: int
    error: str


@dataclass(frozen=True, kw_only=True)
class Look:
    """One look at a stack. `running` are the jobs that workers hold."""

    at: datetime
    queues: Sequence[Queue]
    uploads: int
    """S3's messages that are no jobs yet."""
    ingest: Function | None
    capacity: Function
    minute: bool
    """Whether the rule that calls the capacity Lambda each minute is enabled."""
    last: Pass | None
    urgency: str
    spot: Market
    on_demand: Market
    machines: Sequence[Machine]
    stopped: Sequence[Stopped] = ()
    retries: Sequence[Retry] = ()
    running: int = 0

    @property
    def backlog(self) -> int:
        """Jobs that are not finished."""
        return sum(queue.backlog for queue in self.queues)

    @property
    def needed(self) -> int:
        """Units that the last pass found needed; where it does not say, as many as the services want tasks."""
        told = self.last.needed if self.last else None
        return sum(queue.desired for queue in self.queues) if told is None else told

    @property
    def usable(self) -> list[Machine]:
        """Instances that have joined with GPUs and are not leaving."""
        return [one for one in self.machines if one.joined and not one.draining and one.units]

    @property
    def short(self) -> bool:
        """Whether there is work, and less has joined than it needs."""
        return bool(self.backlog) and sum(one.units for one in self.usable) < self.needed

    @property
    def idle(self) -> bool:
        """Whether there is work and nobody is at it."""
        return bool(self.backlog) and not self.running


def obstacle(look: Look) -> Obstacle | None:
    """The first obstacle in the chain; None when there is none, or nothing to do."""
    if not look.uploads and not look.backlog:
        return None
    return next((found for rule in CHAIN if (found := rule(look))), None)


def _ingest(look: Look) -> Obstacle | None:
    if look.uploads and look.ingest and (what := _off(look.ingest)):
        return Obstacle(name="ingest", seen=f"{count(look.uploads, 'upload')} are no jobs yet: {what[0]}", do=what[1])
    return None


def _paused(look: Look) -> Obstacle | None:
    if not look.backlog:
        return None
    what = _off(look.capacity)
    if not what and not look.minute:
        what = "the rule EveryMinute is disabled", "aws events enable-rule --name the rule of that title"
    return Obstacle(name="paused", seen=what[0], do=what[1]) if what else None


def _off(function: Function) -> tuple[str, str] | None:
    """What keeps a Lambda from running, and what lets it."""
    if function.halted:
        what = f"the Lambda {function.name} may not run: its reserved concurrency is 0"
        return what, f"aws lambda delete-function-concurrency --function-name {function.name}"
    if function.source not in ("Enabled", "Enabling", "Updating"):
        what = f"the Lambda {function.name} does not hear its queue: the event source mapping is {function.source}"
        return what, f"aws lambda list-event-source-mappings --function-name {function.name}, then enable it"
    return None


def _failing(look: Look) -> Obstacle | None:
    """No pass, where one could help: less is there than needed, or nobody has asked for anything yet."""
    wanted = sum(queue.desired for queue in look.queues)
    return _failing_anyway(look) if look.short or not wanted else None


def _failing_anyway(look: Look) -> Obstacle | None:
    if not look.backlog:
        return None
    if look.last is None or look.at - look.last.at > SILENCE:
        since = f"for {lasting(look.at - look.last.at)}" if look.last else "lately"
        seen = f"the Lambda {look.capacity.name} has told of no pass {since}"
        return Obstacle(name="silent", seen=seen, do="look at its errors and throttles on the dashboard, then its log")
    if look.last.failed:
        seen = f"the last pass of {look.capacity.name} failed: {short(look.last.why, 300)}"
        return Obstacle(name="pass", seen=seen, do="its log names the call that AWS refused; the next pass is due")
    return None


def _quota(look: Look) -> Obstacle | None:
    return _refused(look, "quota", QUOTA, "python build.py doctor names the quota, and the command that raises it")


def _no_capacity(look: Look) -> Obstacle | None:
    do = "more instance types and zones are more pools (build.py pools --propose)"
    if _spot_alone(look):
        do += "; or let On-Demand help: on_demand.urgency, or the queue's placement"
    return _refused(look, "capacity", NO_CAPACITY, do)


def _other_refusal(look: Look) -> Obstacle | None:
    return _refused(look, "refused", re.compile(""), "python build.py doctor; the words are EC2's own")


def _refused(look: Look, name: str, pattern: re.Pattern[str], do: str) -> Obstacle | None:
    """The last reason that EC2 gave for either market, if it is of this kind."""
    if look.short:
        for market, words in (("Spot", look.spot.refusals), ("On-Demand", look.on_demand.refusals)):
            reasons = [one for one in words if not one.startswith(SUMMARY)] or words
            if reasons and pattern.search(reasons[-1]):
                return Obstacle(name=name, seen=f"EC2 gives no {market}: {short(reasons[-1], 300)}", do=do)
    return None


def _no_use(look: Look) -> Obstacle | None:
    told = NO_USE.search(look.last.why) if look.last else None
    if told and (look.short or look.idle):
        do = (
            "a GPU was broken or missing, or the machine never joined: the log group WorkerLogs tells the first, the "
            "image's driver is the usual cause; once one works all are asked for again. To try at once, remove the tag "
            "spindrift:bad from the fleet (profile groups: from the Spot group)"
        )
        return Obstacle(name="no-use", seen=short(told[0], 300), do=do)
    return None


def _no_gpu(look: Look) -> Obstacle | None:
    blind = [one.id for one in look.machines if one.joined and not one.units and not one.draining]
    if look.short and blind:
        seen = f"{', '.join(blind)} joined the cluster without a GPU"
        do = "it is replaced by itself; if the next one is the same, the image has no driver for its type"
        return Obstacle(name="no-gpu", seen=seen, do=do)
    return None


def _does_not_join(look: Look) -> Obstacle | None:
    lost = [one for one in look.machines if not one.joined and look.at - one.launched >= BOOT]
    if look.short and lost:
        since = lasting(look.at - min(one.launched for one in lost))
        seen = f"{', '.join(one.id for one in lost)} runs and has not joined the cluster for {since}"
        do = f"aws ec2 get-console-output --latest --instance-id {lost[0].id}; can its subnet reach ECS and S3?"
        return Obstacle(name="not-joining", seen=seen, do=do)
    return None


def _booting(look: Look) -> Obstacle | None:
    young = [one for one in look.machines if not one.joined]
    if look.short and young:
        since = lasting(look.at - min(one.launched for one in young))
        seen = f"{count(len(young), 'instance')} launched {since} ago and not in the cluster yet"
        return Obstacle(name="booting", seen=seen, do="wait: an instance takes one to five minutes")
    return None


def _waiting_for_spot(look: Look) -> Obstacle | None:
    have = sum(one.units for one in look.machines if one.spot)
    if look.short and look.spot.requested > have and _spot_alone(look):
        seen = f"Spot was asked for {count(look.spot.requested, 'unit')} and has {have}; nothing else may do this work"
        do = "wait, or let On-Demand help: on_demand.urgency, or the queue's placement"
        return Obstacle(name="spot-only", seen=seen, do=do)
    return None


def _spot_alone(look: Look) -> bool:
    """Whether On-Demand may do none of the work that waits."""
    work = [queue for queue in look.queues if queue.backlog]
    return all(queue.placement == "spot" or look.urgency == "spot-only" for queue in work) and bool(work)


def _asked(look: Look) -> Obstacle | None:
    asked = look.spot.requested + look.on_demand.requested
    if look.short and asked > sum(one.units for one in look.machines):
        seen = f"EC2 was asked for {count(asked, 'unit')} and has not launched them all yet"
        return Obstacle(name="launching", seen=seen, do="wait a minute")
    return None


def _image(look: Look) -> Obstacle | None:
    for task in look.stopped if look.idle else ():
        if BAD_IMAGE in task.reason:
            do = "push the image that the stack's parameter WorkerImage names, or deploy with another"
            return Obstacle(name="image", seen=f"the worker's image cannot be pulled: {short(task.reason, 300)}", do=do)
    return None


def _does_not_fit(look: Look) -> Obstacle | None:
    for queue in look.queues:
        unplaced = UNPLACED.search(queue.event)
        if queue.backlog and not queue.running and look.usable and unplaced:
            seen = f"ECS cannot place a task of {queue.name}: {short(unplaced[1], 300)}"
            do = "lower worker.cpu or worker.memory_mib to what the smallest instance type has (build.py doctor)"
            return Obstacle(name="does-not-fit", seen=seen, do=do)
    return None


def _worker(look: Look) -> Obstacle | None:
    for task in look.stopped if look.idle else ():
        if task.code == BAD_SETTINGS:
            do = "read the log group WorkerLogs: worker.processor or worker.options is wrong"
            return Obstacle(name="worker", seen="workers end at once, with code 2: they refuse their settings", do=do)
        if task.code == BROKEN_GPU:
            do = "wait: the instance is drained, and another takes its place; the log group WorkerLogs has the cause"
            return Obstacle(name="worker", seen="a worker says that the GPU of its instance is broken", do=do)
        if task.code is None and "Scaling activity" not in task.reason and "draining" not in task.reason:
            do = "the reason is ECS's own; see the service's events in the console"
            return Obstacle(name="worker", seen=f"tasks do not start: {short(task.reason, 300)}", do=do)
    return None


def _poison(look: Look) -> Obstacle | None:
    if look.idle and look.retries and len(look.retries) >= look.backlog:
        worst = max(look.retries, key=lambda one: one.failures)
        seen = (
            f"all that is left has failed before: {short(worst.key, 60)} (job {worst.job_id}) "
            f"{count(worst.failures, 'time')}, last with: {short(worst.error, 300)}"
        )
        do = "wait: it is tried again, longer apart each time, and then it goes to the dead-letter queue (build.py dlq)"
        return Obstacle(name="poison", seen=seen, do=do)
    return None


def _limits(look: Look) -> Obstacle | None:
    if look.last and "meet the limit" in look.last.why:
        do = "raise compute.max_units or on_demand.max_units, and the quota (build.py doctor)"
        return Obstacle(name="limit", seen=look.last.why, do=do)
    for queue in look.queues:
        if queue.visible and queue.desired >= queue.max_tasks and queue.running >= queue.desired:
            seen = f"{queue.name} has all the {count(queue.max_tasks, 'task')} that it may have"
            return Obstacle(name="limit", seen=seen, do="raise max_tasks of the queue, and compute.max_units")
    return None


def _starting(look: Look) -> Obstacle | None:
    if look.idle and look.usable:
        wanted = sum(queue.desired for queue in look.queues)
        running = sum(queue.running for queue in look.queues)
        seen = f"{count(wanted, 'task')} wanted, {running} running, none of them holds a job at this moment"
        return Obstacle(name="starting", seen=seen, do="wait: the image is pulled, or a job is about to be taken")
    return None


CHAIN: Sequence[Callable[[Look], Obstacle | None]] = (
    _ingest,
    _paused,
    _failing,
    _quota,
    _no_capacity,
    _other_refusal,
    _no_use,
    _no_gpu,
    _does_not_join,
    _booting,
    _waiting_for_spot,
    _asked,
    _image,
    _does_not_fit,
    _worker,
    _poison,
    _failing_anyway,
    _limits,
    _starting,
)
"""Launch, join, place, pull, work, in this order. What was refused is told although something else may be booting."""
