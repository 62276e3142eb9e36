"""Weights for the settings: with them a unit is worth something else, and so all that is counted in units changes.

The new numbers allow no more machines than the old ones did, of whichever type.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import tomlkit

from templates.settings import Queue, Settings


@dataclass(frozen=True)
class Change:
    """A key of the settings, what it was and what it is to be. `remark` tells what could not be kept."""

    place: tuple[str | int, ...]
    was: Any
    value: Any
    remark: str = ""

    def __str__(self) -> str:
        key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.place).removeprefix(".")
        return f"{key}: {_told(self.value)} (was {_told(self.was)}{self.remark})"


def changes(settings: Settings, weights: Mapping[str, int]) -> list[Change]:
    """What to change for these weights: of all instance types of the settings."""
    spot = _scale(settings, weights, settings.compute.instance_types)
    on_demand = _scale(settings, weights, settings.on_demand.instance_types)
    compute, choice = settings.compute, settings.on_demand
    warm = choice.warm_units
    return [
        Change(("compute", "weights"), compute.weights, dict(weights)),
        Change(("compute", "max_units"), compute.max_units, max(1, int(compute.max_units * spot))),
        Change(("on_demand", "max_units"), choice.max_units, int(choice.max_units * on_demand)),
        *([Change(("on_demand", "warm_units"), warm, int(warm * on_demand))] if warm else []),
        *(
            change
            for number, queue in enumerate(settings.queues)
            for change in _of_queue(number, queue, on_demand if queue.placement == "on-demand" else spot)
        ),
    ]


def _scale(settings: Settings, weights: Mapping[str, int], types: Iterable[str]) -> Fraction:
    """New units in an old one, of the type for which that is least."""
    return min(Fraction(weights[name], settings.units_of(name)) for name in types)


def _of_queue(number: int, queue: Queue, scale: Fraction) -> Iterator[Change]:
    exactly = queue.jobs_per_task / scale
    jobs = max(1, round(exactly))
    remark = "" if jobs == exactly else f"; as much as before is {float(exactly):.2f}"
    yield Change(("queues", number, "jobs_per_task"), queue.jobs_per_task, jobs, remark)
    yield Change(("queues", number, "max_tasks"), queue.max_tasks, max(1, int(queue.max_tasks * scale)))


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {weight}" for name, weight in value.items()) or "none"
    return str(value)


def rewritten(text: str, wanted: Iterable[Change]) -> str:
    """The settings file with these changes, and all else as it is."""
    document = tomlkit.parse(text)
    for change in wanted:
        *path, key = change.place
        where: Any = document
        for name, then in zip(path, [*path[1:], key], strict=True):
            if isinstance(name, str) and name not in where:
                where[name] = tomlkit.aot() if isinstance(then, int) else tomlkit.table()
            elif isinstance(name, int) and name == len(where):
                where.append(tomlkit.table())
            where = where[name]
        where[key] = _table(change.value) if isinstance(change.value, dict) else change.value
    return tomlkit.dumps(document)


def _table(values: Mapping[str, int]) -> Any:
    made = tomlkit.table()
    for name, value in values.items():
        made[name] = value
    made.add(tomlkit.nl())
    return made


@dataclass(frozen=True)
class Tuned:
    """A settings file with weights, and what that changes in it."""

    text: str
    changes: Sequence[Change]

    @classmethod
    def of(cls, path: Path, settings: Settings, weights: Mapping[str, int]) -> Tuned:
        """Raises BadSettings, when the settings would not take them."""
        wanted = changes(settings, weights)
        text = rewritten(path.read_text("utf-8"), wanted)
        Settings.read(tomllib.loads(text))
        return cls(text, wanted)
