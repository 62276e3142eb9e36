"""What the capacity is for: the same need at all times, or jobs that arrive."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil, inf
from statistics import fmean
from typing import Protocol

from replay.files import Arrival

LATELY = 50
"""So many finished jobs tell how long one takes."""


@dataclass(slots=True, eq=False)
class Job:
    """What a worker has at hand. `arrived` and `started` are moments; `seconds` is how long one unit takes over it."""

    arrived: float
    seconds: float
    started: float
    endless: bool = False

    @property
    def done(self) -> float:
        """When it will be done if nobody interferes."""
        return inf if self.endless else self.started + self.seconds

    def break_after(self, now: float) -> float:
        """When a worker that is told to stop has finished what it is at."""
        return now + (self.started - now) % self.seconds if self.endless else self.done


class Work(Protocol):
    """The jobs, and how many units they need."""

    endless: bool
    """Work never ends, and moves to any unit at once."""
    arrivals: Iterable[float]
    """When some arrive."""

    def need(self) -> int:
        """Units needed now."""

    def backlog(self) -> int:
        """Jobs that have arrived and are not done."""

    def came(self, now: float) -> Sequence[tuple[float, int]]:
        """How many jobs came how many seconds ago, the latest first, as far back as jobs wait."""

    def pace(self) -> float | None:
        """How many seconds a job took lately, if any did."""

    def arrive(self, now: float) -> None:
        """Let in what arrives now."""

    def take(self, now: float) -> Job | None:
        """Give a worker its next job."""

    def give_back(self, job: Job) -> None:
        """Take a job back that was not done; it comes first."""

    def finish(self, job: Job, now: float) -> None:
        """Note that a job is done."""


class Endless:
    """Work for so many units at all times, in jobs of so many seconds."""

    endless = True
    arrivals: Iterable[float] = ()

    def __init__(self, units: int, job_seconds: float) -> None:
        self._units = units
        self._seconds = job_seconds

    def need(self) -> int:
        """Units needed now."""
        return self._units

    def backlog(self) -> int:
        """As many jobs as units."""
        return self._units

    def came(self, now: float) -> Sequence[tuple[float, int]]:  # noqa: ARG002 - Work's signature
        """None ever waited."""
        return ()

    def pace(self) -> float | None:
        """As long as each takes."""
        return self._seconds

    def arrive(self, now: float) -> None:
        """All is there from the start."""

    def take(self, now: float) -> Job:
        """Give a worker its next job."""
        return Job(arrived=now, seconds=self._seconds, started=now, endless=True)

    def give_back(self, job: Job) -> None:
        """There is more where that came from."""

    def finish(self, job: Job, now: float) -> None:
        """There is more where that came from."""


@dataclass(frozen=True, kw_only=True)
class Waits:
    """How long each finished job took from its arrival to its end, and the ages of those that did not finish."""

    finished: list[float] = field(default_factory=list)
    unfinished: list[float] = field(default_factory=list)

    @property
    def jobs(self) -> int:
        """All that arrived."""
        return len(self.finished) + len(self.unfinished)

    def within(self, seconds: float) -> float:
        """Share of the jobs that finished within that time; one that is younger at the end is not judged."""
        late = sum(age > seconds for age in self.unfinished)
        in_time = sum(wait <= seconds for wait in self.finished)
        return in_time / max(1, len(self.finished) + late)

    def quantile(self, share: float) -> float | None:
        """Of the finished: the time within which that share of them was done."""
        return sorted(self.finished)[ceil(share * len(self.finished)) - 1] if self.finished else None


class Jobs:
    """Jobs that arrive over time, oldest first; one unit is needed for each so many of them."""

    endless = False

    def __init__(self, arrivals: Iterable[Arrival], *, units: int, jobs_per_unit: int) -> None:
        self._coming = deque(sorted(arrivals, key=lambda arrival: arrival.at))
        self.arrivals: Iterable[float] = [arrival.at for arrival in self._coming]
        self._waiting: deque[tuple[float, float]] = deque()
        self._running: set[Job] = set()
        self._units = units
        self._jobs_per_unit = jobs_per_unit
        self._finished: list[float] = []
        self._lately: deque[float] = deque(maxlen=LATELY)
        self._arrived: list[Arrival] = []

    def need(self) -> int:
        """Units needed now, at most those allowed."""
        return min(self._units, ceil(self.backlog() / self._jobs_per_unit))

    def backlog(self) -> int:
        """Jobs that have arrived and are not done."""
        return len(self._waiting) + len(self._running)

    def came(self, now: float) -> Sequence[tuple[float, int]]:
        """How many jobs came how many seconds ago, the latest first, as far back as jobs wait."""
        found: list[tuple[float, int]] = []
        missing = len(self._waiting)
        for arrival in reversed(self._arrived):
            if missing <= 0:
                break
            found.append((now - arrival.at, arrival.jobs))
            missing -= arrival.jobs
        return found

    def pace(self) -> float | None:
        """How many seconds a job took lately, on average; None before the first."""
        return fmean(self._lately) if self._lately else None

    def arrive(self, now: float) -> None:
        """Let in what arrives now."""
        while self._coming and self._coming[0].at <= now:
            arrival = self._coming.popleft()
            self._arrived.append(arrival)
            self._waiting.extend([(arrival.at, arrival.seconds)] * arrival.jobs)

    def take(self, now: float) -> Job | None:
        """Give a worker its next job."""
        if not self._waiting:
            return None
        arrived, seconds = self._waiting.popleft()
        job = Job(arrived=arrived, seconds=seconds, started=now)
        self._running.add(job)
        return job

    def give_back(self, job: Job) -> None:
        """Take a job back that was not done; it comes first, and starts from its beginning."""
        self._running.remove(job)
        self._waiting.appendleft((job.arrived, job.seconds))

    def finish(self, job: Job, now: float) -> None:
        """Note that a job is done."""
        self._running.remove(job)
        self._finished.append(now - job.arrived)
        self._lately.append(now - job.started)

    def waits(self, now: float) -> Waits:
        """How long the jobs took, as far as is known now."""
        ages = [now - arrived for arrived, _ in self._waiting] + [now - job.arrived for job in self._running]
        return Waits(finished=self._finished, unfinished=ages)
