"""Traces, prices and loads from CSV files. Every mistake in one is BadInput: one line that names file and row.

The first column, `t_s`, is seconds from any moment, the same in all files; a value holds until the next row.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from pathlib import Path
from statistics import median

from replay.market import Price

TIME = "t_s"
JOBS, SECONDS = "jobs", "seconds"
GAP = 1.5
"""A step so many times the usual one is a gap: what happened in it nobody knows."""


class BadInput(Exception):
    """What is wrong with what was given, and where."""


@dataclass(frozen=True, kw_only=True)
class Availability:
    """How many instances one could hold in each zone: the rows that differ from the one before.

    Their times, and `end`, are seconds from `start`, which is what the file calls its first row.
    """

    zones: tuple[str, ...]
    rows: tuple[tuple[float, tuple[int, ...]], ...]
    start: float
    end: float


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """So many jobs arrive at once, each worth so many seconds of one unit."""

    at: float
    jobs: int
    seconds: float


def read_availability(path: Path, zones: Sequence[str] | None = None, depth: int | None = None) -> Availability:
    """Read how many instances each zone would give.

    `zones` picks columns, in the order given. `depth` makes counts of a file that knows only 0 and 1. The rows must be
    evenly spaced, since a hole in the record is not a calm market. Raises BadInput.
    """
    names, columns, lines = _table(path, zones)
    times: list[float] = []
    rows: list[tuple[float, tuple[int, ...]]] = []
    cells: list[str] | None = None
    for where, at, line in lines:
        times.append(at)
        if line != cells:
            counts = tuple(_count(where, names[column], line[column]) for column in columns)
            if depth is not None:
                if max(counts) > 1:
                    raise BadInput(f"{where}: --depth is for a file of 0 and 1, got {max(counts)}")
                counts = tuple(count * depth for count in counts)
            if not rows or counts != rows[-1][1]:
                rows.append((at - times[0], counts))
            cells = line
    if len(times) < 2:
        raise BadInput(f"{path}: a trace has at least two rows, got {len(times)}")
    steps = [later - earlier for earlier, later in pairwise(times)]
    usual = median(steps)
    for row, step in enumerate(steps):
        if step > GAP * usual:
            raise BadInput(f"{path}, row {row + 3}: a gap of {step:g} s, where the usual step is {usual:g} s")
    return Availability(
        zones=tuple(names[column] for column in columns),
        rows=tuple(rows),
        start=times[0],
        end=times[-1] - times[0] + usual,
    )


def read_prices(path: Path, zones: Sequence[str], start: float) -> list[Price]:
    """Read the prices of these zones, per hour and above 0, one row for each change. Raises BadInput."""
    names, columns, lines = _table(path, zones)
    changes: list[list[tuple[float, float]]] = [[] for _ in columns]
    for where, at, line in lines:
        for column, series in zip(columns, changes, strict=True):
            value = _number(where, names[column], line[column])
            if value <= 0:
                raise BadInput(f"{where}: the price of {names[column]} must be above 0, got {line[column]}")
            series.append((at - start, value))
    if not changes[0]:
        raise BadInput(f"{path}: no prices, only a header")
    return [Price(series) for series in changes]


def lowest(path: Path) -> float:
    """Find the lowest price of all zones in a file of prices. Raises BadInput."""
    names, columns, lines = _table(path, None)
    return min(_number(where, names[column], line[column]) for where, _, line in lines for column in columns)


def read_load(path: Path, job_seconds: float, start: float) -> list[Arrival]:
    """Read arrivals: columns t_s, jobs and, where jobs differ, seconds (of one unit, for each). Raises BadInput."""
    names, _, lines = _table(path, None)
    if JOBS not in names or set(names) - {JOBS, SECONDS}:
        raise BadInput(f"{path}: a load has the columns {TIME}, {JOBS} and perhaps {SECONDS}, got {', '.join(names)}")
    arrivals = []
    for where, at, line in lines:
        cells = dict(zip(names, line, strict=True))
        seconds = _number(where, SECONDS, cells[SECONDS]) if SECONDS in cells else job_seconds
        if seconds <= 0:
            raise BadInput(f"{where}: {SECONDS} must be above 0, got {seconds:g}")
        if at < start:
            raise BadInput(f"{where}: {at:g} is before the trace begins, at {start:g}")
        arrivals.append(Arrival(at=at - start, jobs=_count(where, JOBS, cells[JOBS]), seconds=seconds))
    return arrivals


Lines = Iterator[tuple[str, float, list[str]]]


def _table(path: Path, pick: Sequence[str] | None) -> tuple[list[str], list[int], Lines]:
    """Open a file: the names of its columns, which of them were picked, and its lines (where, when, cells)."""
    try:
        text = path.read_text("utf-8-sig")
    except FileNotFoundError as error:
        raise BadInput(f"{path}: there is no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read: {error}") from error
    rows = csv.reader(text.splitlines())
    header = [name.strip() for name in next(rows, [])]
    if not header or header[0] != TIME:
        raise BadInput(f"{path}: the first column must be {TIME}, got {header[0] if header else 'an empty file'}")
    names = header[1:]
    if not names:
        raise BadInput(f"{path}: there is no column beside {TIME}")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BadInput(f"{path}: the column {', '.join(twice)} is there twice")
    if missing := sorted(set(pick or ()) - set(names)):
        raise BadInput(f"{path}: there is no zone {', '.join(missing)}; it has {', '.join(names)}")
    columns = [names.index(name) for name in pick] if pick else list(range(len(names)))
    return names, columns, _lines(path, len(header), rows)


def _lines(path: Path, width: int, rows: Iterator[list[str]]) -> Lines:
    last: float | None = None
    for number, row in enumerate(rows, 2):
        where = f"{path}, row {number}"
        if len(row) != width:
            raise BadInput(f"{where}: {width} cells expected, got {len(row)}")
        at = _number(where, TIME, row[0])
        if last is not None and at <= last:
            raise BadInput(f"{where}: rows must be in the order of {TIME}, got {at:g} after {last:g}")
        last = at
        yield where, at, row[1:]


def _count(where: str, name: str, cell: str) -> int:
    value = _number(where, name, cell)
    if value < 0 or value != int(value):
        raise BadInput(f"{where}: {name} must be a whole number from 0, got {cell}")
    return int(value)


def _number(where: str, name: str, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = float("nan")
    if not isfinite(value):
        raise BadInput(f"{where}: {name} must be a number, got {cell!r}")
    return value
