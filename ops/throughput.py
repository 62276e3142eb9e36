"""What instance types are worth: from the records of one job done again and again on each, and from prices (pure).

A type's throughput is told by the time for which a job has a GPU. Waiting, booting, what else the stack does and
interruptions are not in that, so it does not matter when an instance came, and for how long.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from math import floor
from statistics import fmean, median
from typing import Any

from ops.text import table

MOST_ERROR = Fraction(3, 100)
HEAVIEST = 100
"""The largest weight that is tried: a unit should be worth talking of."""
UNKNOWN = "-"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One job that was done in one go."""

    type: str
    worker: str
    file: str
    began: str
    """ISO time."""
    gpu_seconds: float


@dataclass(frozen=True)
class Rate:
    """What an instance does: jobs an hour, how far a usual job is from the middle one (a share), of how many jobs."""

    jobs_per_hour: float
    spread: float
    jobs: int


def sample(record: Mapping[str, Any], file: str) -> Sample | None:
    """What a job's record says, None while or where it says nothing: not done, not at once, or on no known type."""
    if record.get("state") != "SUCCEEDED" or int(record.get("attempts", 0)) != 1 or "parts_total" in record:
        return None
    if not (record.get("instance_type") and record.get("gpu_seconds")):
        return None
    return Sample(
        type=str(record["instance_type"]),
        worker=str(record["owner"]).partition("#")[0],
        file=file,
        began=str(record["started"]),
        gpu_seconds=float(record["gpu_seconds"]),
    )


def warm(samples: Iterable[Sample], at_once: int) -> dict[str, list[Sample]]:
    """By type, without the first jobs of each worker, of which it does so many at once."""
    workers: dict[str, list[Sample]] = defaultdict(list)
    for one in samples:
        workers[one.worker].append(one)
    found: dict[str, list[Sample]] = defaultdict(list)
    for jobs in workers.values():
        for one in sorted(jobs, key=lambda one: one.began)[at_once:]:
            found[one.type].append(one)
    return dict(found)


def rate(samples: Sequence[Sample], gpus: int) -> Rate:
    """Of one type. Each file counts the same, and of its jobs the middle one."""
    files: dict[str, list[float]] = defaultdict(list)
    for one in samples:
        files[one.file].append(one.gpu_seconds)
    middle = {name: median(seconds) for name, seconds in files.items()}
    spread = median(abs(one.gpu_seconds / middle[one.file] - 1) for one in samples)
    return Rate(3600 * gpus / fmean(middle.values()), spread, len(samples))


@dataclass(frozen=True)
class Weights:
    """Whole numbers in proportion to throughputs, and by how much each is wrong: 0.02 is taken for 2 % too much."""

    weights: Mapping[str, int]
    errors: Mapping[str, float]

    @property
    def error(self) -> float:
        """The worst."""
        return max((abs(error) for error in self.errors.values()), default=0.0)


def weigh(rates: Mapping[str, float], most_error: Fraction = MOST_ERROR, heaviest: int = HEAVIEST) -> Weights:
    """The smallest weights with no error above `most_error`; if all up to `heaviest` have one, those with the least.

    The number of units that a throughput is worth rounds up at half: between two such points of any type nothing
    changes. What a unit is worth is chosen so that the largest error in excess is the largest in want.
    """
    exact = {name: Fraction(value) for name, value in rates.items()}
    points = sorted({Fraction(2 * n + 1, 2) / value for value in exact.values() for n in range(heaviest)})
    best: tuple[Fraction, dict[str, int], Fraction] | None = None
    for scale in points:
        weights = {name: floor(value * scale + Fraction(1, 2)) for name, value in exact.items()}
        if min(weights.values()) < 1:
            continue
        if best and max(weights.values()) > heaviest:
            break
        per_job = [weights[name] / value for name, value in exact.items()]
        unit = 2 / (min(per_job) + max(per_job))
        error = unit * max(per_job) - 1
        if best is None or error < best[0]:
            best = error, weights, unit
        if error <= most_error:
            break
    if best is None:
        return Weights({}, {})
    _, weights, unit = best
    return Weights(weights, {name: float(weights[name] * unit / value - 1) for name, value in exact.items()})


@dataclass(frozen=True, kw_only=True)
class Line:
    """One type. Prices are US dollars an hour of an instance; None is not known."""

    type: str
    gpus: int
    rate: Rate | None = None
    why: str = ""
    """Why it was not measured."""
    spot: float | None = None
    on_demand: float | None = None
    weight: int | None = None
    error: float | None = None
    """Of the weight, as a share of the throughput."""

    def per_thousand(self, usd_per_hour: float | None) -> float | None:
        """What a thousand jobs cost at that price."""
        return usd_per_hour / self.rate.jobs_per_hour * 1000 if self.rate and usd_per_hour else None

    @property
    def cells(self) -> tuple[str, ...]:
        """What stands in the columns of COLUMNS."""
        return (
            self.type,
            str(self.gpus),
            f"{self.rate.jobs_per_hour:,.0f}" if self.rate else UNKNOWN,
            f"{self.rate.spread:.1%}" if self.rate else UNKNOWN,
            _money(self.spot),
            _money(self.per_thousand(self.spot)),
            _money(self.on_demand),
            _money(self.per_thousand(self.on_demand)),
            UNKNOWN if self.weight is None else str(self.weight),
            UNKNOWN if self.error is None else f"{self.error:+.1%}",
        )


COLUMNS = ("type", "GPUs", "jobs/h", "±", "Spot", "1,000 jobs", "On-Demand", "1,000 jobs", "weight", "rounded")


@dataclass(frozen=True)
class Report:
    """The types, best first: by what a thousand jobs cost on Spot."""

    lines: Sequence[Line]

    @classmethod
    def of(cls, lines: Iterable[Line]) -> Report:
        """In their order."""
        far = float("inf")
        return cls(
            sorted(
                lines,
                key=lambda one: (
                    one.rate is None,
                    one.per_thousand(one.spot) or far,
                    one.per_thousand(one.on_demand) or far,
                    one.type,
                ),
            )
        )

    @property
    def missing(self) -> list[Line]:
        """What was not measured."""
        return [one for one in self.lines if one.rate is None]

    def json(self) -> str:
        """For programs."""
        return json.dumps(
            [
                {
                    **asdict(one),
                    "spot_per_thousand": one.per_thousand(one.spot),
                    "on_demand_per_thousand": one.per_thousand(one.on_demand),
                }
                for one in self.lines
            ]
        )

    def text(self) -> Iterator[str]:
        """For people."""
        yield from table([COLUMNS, *(one.cells for one in self.lines)], numbers=range(1, len(COLUMNS)))
        for one in self.missing:
            yield f"{one.type} is not measured: {one.why}"


def _money(usd: float | None) -> str:
    return UNKNOWN if usd is None else f"{usd:.4f}"
