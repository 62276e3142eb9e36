"""The service scheduler and the placement of ECS as pure functions: what to stop, how many to start, and where.

Sources: the developer guide's pages on services, service definition parameters (minimumHealthyPercent,
maximumPercent), container instance draining, task scale-in protection, placement strategies and constraints.

How DRAINING treats a protected task is not documented. Played here: it is left alone until its protection ends
(users report that it gets no SIGTERM, aws/containers-roadmap#256); this is also the harder case for the worker.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from localcloud.query import Query


@dataclass(frozen=True, kw_only=True)
class TaskSeen:
    """One task of a service that has not stopped."""

    arn: str
    zone: str = ""
    running: bool = True
    """RUNNING; a task that is not is PENDING."""
    stopping: bool = False
    """Told to stop and not yet stopped."""
    protected: bool = False
    draining: bool = False
    """Its container instance is DRAINING."""
    current: bool = True
    """Of the primary deployment."""
    sick: bool = False
    """UNHEALTHY."""
    well: bool = True
    """RUNNING, and HEALTHY unless nothing checks it."""


@dataclass(frozen=True, kw_only=True)
class ServiceSeen:
    """One look at a service."""

    desired: int
    minimum_healthy_percent: int = 100
    maximum_percent: int = 200
    tasks: tuple[TaskSeen, ...] = ()
    throttled: bool = False
    """Its tasks keep failing to start, so no start is due yet."""


@dataclass(frozen=True)
class Stop:
    """Stop a task, and why: draining, deployment, health or scaling."""

    arn: str
    why: str


@dataclass(frozen=True)
class Decision:
    """What the service scheduler does next."""

    stops: tuple[Stop, ...]
    starts: int


def decide(seen: ServiceSeen) -> Decision:
    """Keep `desired` tasks, between the two percentages; never stop a protected one that is not sick.

    A sick task is replaced first and stopped when its replacement is well; where the upper percentage forbids that,
    one sick task at a time is stopped first. So a sick one stays where a replacement finds no place (developer guide,
    "Amazon ECS services"). Protection is told to hold against scale-in and deployments, so not here.
    """
    lower = math.ceil(seen.desired * seen.minimum_healthy_percent / 100)
    upper = math.floor(seen.desired * seen.maximum_percent / 100)
    live = [task for task in seen.tasks if not task.stopping]
    leaving = [task for task in live if task.draining or not task.current]
    staying = [task for task in live if not task.draining and task.current]
    sound = [task for task in staying if not task.sick]

    stops = [_leave(task) for task in leaving if not task.running and not task.protected]
    spare = sum(task.running and not task.sick for task in live) - lower
    replaceable = sorted((task for task in leaving if task.running and not task.protected), key=lambda task: task.arn)
    stops += [_leave(task) for task in replaceable[: max(0, spare)]]
    stops += [Stop(task.arn, "scaling") for task in _surplus(sound, len(sound) - seen.desired)]

    room = upper - len(seen.tasks)
    missing = seen.desired - len(sound)
    stops += [Stop(task.arn, "health") for task in _dismissed(seen, staying, crowded=missing > 0 and room <= 0)]
    starts = 0 if seen.throttled else max(0, min(missing, room))
    return Decision(tuple(stops), starts)


def _leave(task: TaskSeen) -> Stop:
    return Stop(task.arn, "draining" if task.draining else "deployment")


def _dismissed(seen: ServiceSeen, staying: Sequence[TaskSeen], crowded: bool) -> list[TaskSeen]:
    """The sick tasks whose place is filled, or one when the place must be made (`crowded`) and nothing leaves yet."""
    sick = sorted((task for task in staying if task.sick), key=lambda task: task.arn)
    filled = sum(task.well for task in staying if not task.sick) - (seen.desired - len(sick))
    making_room = crowded and not any(task.stopping for task in seen.tasks)
    return sick[: max(filled, int(making_room), 0)]


def _surplus(staying: Sequence[TaskSeen], count: int) -> list[TaskSeen]:
    """Whom to stop at scale-in: unprotected, pending ones first, then where most tasks are in a zone."""
    candidates = sorted((task for task in staying if not task.protected), key=lambda task: (task.running, task.arn))
    crowd = Counter(task.zone for task in staying)
    chosen: list[TaskSeen] = []
    while candidates and len(chosen) < count:
        victim = min(candidates, key=lambda task: (task.running, -crowd[task.zone]))
        candidates.remove(victim)
        crowd[victim.zone] -= 1
        chosen.append(victim)
    return chosen


@dataclass(frozen=True, kw_only=True)
class Room:
    """What one container instance has left."""

    arn: str
    zone: str
    cpu: int
    """CPU units, 1024 to a vCPU."""
    memory: int
    """MiB."""
    gpus: int
    active: bool = True
    """Status ACTIVE, neither DRAINING nor INACTIVE."""
    connected: bool = True
    facts: Mapping[str, str] = field(default_factory=dict)
    tasks_alike: int = 0
    """Tasks here of the same group: spread and distinctInstance count them."""


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What one task needs of its container instance."""

    cpu: int = 0
    memory: int = 0
    gpus: int = 0
    constraints: tuple[Query, ...] = ()
    distinct: bool = False
    strategy: tuple[tuple[str, str], ...] = (("spread", "attribute:ecs.availability-zone"),)
    """(type, field) in order of weight; ECS's default spreads over zones."""


@dataclass(frozen=True)
class Placed:
    """Where each task goes, in order, and why the next one found no place (None when all did)."""

    instances: tuple[str, ...]
    unplaced: str | None


def place(demand: Demand, count: int, rooms: Sequence[Room], draw: Callable[[], float]) -> Placed:
    """Find instances for `count` like tasks, one after the other. `draw` gives chance in [0, 1)."""
    left = {room.arn: room for room in rooms}
    instances: list[str] = []
    for _ in range(count):
        fitting = [room for room in left.values() if _obstacle(demand, room) is None]
        if not fitting:
            return Placed(tuple(instances), _why_nowhere(demand, list(left.values())))
        chosen = min(fitting, key=lambda room: (_rank(demand, room, left.values()), draw()))
        instances.append(chosen.arn)
        left[chosen.arn] = replace(
            chosen,
            cpu=chosen.cpu - demand.cpu,
            memory=chosen.memory - demand.memory,
            gpus=chosen.gpus - demand.gpus,
            tasks_alike=chosen.tasks_alike + 1,
        )
    return Placed(tuple(instances), None)


def _obstacle(demand: Demand, room: Room) -> str | None:
    """Why a task cannot go there, in the words of ECS's service events; None when it can."""
    checks = (
        (room.active, "is not ACTIVE"),
        (room.connected, 'encountered error "AGENT"'),
        (all(query(room.facts) for query in demand.constraints), 'encountered error "MemberOf placement constraint"'),
        (not demand.distinct or room.tasks_alike == 0, 'encountered error "DistinctInstance placement constraint"'),
        (room.cpu >= demand.cpu, "has insufficient CPU units available"),
        (room.memory >= demand.memory, "has insufficient memory available"),
        (room.gpus >= demand.gpus, "has insufficient GPU resource available"),
    )
    return next((words for holds, words in checks if not holds), None)


def _why_nowhere(demand: Demand, rooms: Sequence[Room]) -> str:
    candidates = [room for room in rooms if room.active]
    if not candidates:
        return "No Container Instances were found in your cluster"
    closest = max(candidates, key=lambda room: (room.connected, room.gpus, room.memory, room.arn))
    return f"The closest matching (container-instance {closest.arn.rsplit('/', 1)[-1]}) {_obstacle(demand, closest)}"


def _rank(demand: Demand, room: Room, rooms: Collection[Room]) -> tuple[float, ...]:
    """Lower is better; the earlier strategy outweighs the later."""
    return tuple(_score(kind, by, room, rooms) for kind, by in demand.strategy)


def _score(kind: str, by: str, room: Room, rooms: Collection[Room]) -> float:
    if kind == "binpack":
        return room.cpu if by.lower() == "cpu" else room.memory
    if kind == "spread":
        if by in ("instanceId", "host"):
            return room.tasks_alike
        return sum(other.tasks_alike for other in rooms if other.facts.get(by) == room.facts.get(by))
    return 0
