"""Two plots as SVG: cost against shortage for all policies, and one policy's capacity over time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from math import ceil, log1p

from replay.results import BOUNDS, SHIPPED, Result
from replay.world import Diary

WIDTH, LEFT, RIGHT = 960, 46, 14
BUCKETS = 450
"""A capacity plot has so many columns, about two pixels each."""
DAY = 86_400.0
SMALL = 0.002
"""Shortages are drawn in proportion below this share, and by their logarithm above."""
LABEL = 12
"""Height of a line of text."""


@dataclass(frozen=True)
class Column:
    """A short span of one replay: means over it, except that `short` is the share of it with too little."""

    needed: float
    serving: tuple[float, ...]
    short: float


@dataclass(frozen=True)
class Axes:
    """Where a cost and a shortage are in the first plot: `most` is the highest cost shown, `worst` the share short."""

    most: float
    worst: float
    left: float = LEFT
    right: float = WIDTH - RIGHT
    top: float = 16
    bottom: float = 378

    def x(self, cost: float) -> float:
        """To the right."""
        return self.left + cost / self.most * (self.right - self.left)

    def y(self, short: float) -> float:
        """Downwards."""
        return self.bottom - log1p(short / SMALL) / log1p(self.worst / SMALL) * (self.bottom - self.top)


def frontier(results: Sequence[Result]) -> str:
    """Cost to the right, shortage upwards (by its logarithm from SMALL on), the bounds as lines."""
    points = [result for result in results if result.policy not in BOUNDS]
    axes = Axes(
        most=max([0.5, *(result.cost_share for result in results)]) * 1.04,
        worst=max([0.02, *(result.short_share for result in points)]) * 1.2,
    )
    steps = _staircase((r.cost_share, r.short_share) for r in points if r.policy not in SHIPPED)
    steps += [(axes.most, short) for _, short in steps[-1:]]
    path = " ".join(f"{axes.x(cost):.1f},{axes.y(short):.1f}" for cost, short in steps)
    return _svg(
        420,
        *_shares(axes),
        f'<polyline class="frontier" points="{path}"/>',
        *_bounds(axes, [result for result in results if result.policy in BOUNDS]),
        *_dots(axes, points),
        f'<text class="axis" x="{axes.right}" y="414" text-anchor="end">cost, as a share of On-Demand only</text>',
        f'<text class="axis" x="{axes.left}" y="12">share of time short</text>',
    )


def _shares(axes: Axes) -> Iterator[str]:
    """Lines for round shares, across and upwards."""
    for short in (0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0):
        if short <= axes.worst:
            yield _level(axes.y(short), f"{100 * short:g} %")
    for cost in (tenth / 10 for tenth in range(int(axes.most * 10) + 1)):
        x = f"{axes.x(cost):.1f}"
        yield f'<line class="grid" x1="{x}" x2="{x}" y1="{axes.top}" y2="{axes.bottom}"/>'
        yield f'<text class="tick" x="{x}" y="{axes.bottom + 16}" text-anchor="middle">{cost:g}</text>'


def _bounds(axes: Axes, bounds: Sequence[Result]) -> Iterator[str]:
    """Upright lines, named to the left and to the right of them."""
    for result, anchor, aside in zip(bounds, ("end", "start"), (-4, 4), strict=False):
        x = axes.x(result.cost_share)
        yield f'<line class="bound" x1="{x:.1f}" x2="{x:.1f}" y1="{axes.top}" y2="{axes.bottom}"/>'
        yield (
            f'<text class="bound" x="{x + aside:.1f}" y="{axes.top + 10}" text-anchor="{anchor}">{result.policy}</text>'
        )


def _dots(axes: Axes, results: Sequence[Result]) -> list[str]:
    """A dot and a name for each policy; ours are named first, and lie on top."""
    dots, names = [], []
    places = {result.policy: (axes.x(result.cost_share), axes.y(result.short_share)) for result in results}
    taken = [(x - 6, x + 6, y + 4) for x, y in places.values()]
    for result in sorted(results, key=lambda result: (result.policy not in SHIPPED, -result.short_share)):
        kind, radius = ("ours", 6) if result.policy in SHIPPED else ("theirs", 4.5)
        x, y = places[result.policy]
        told = f"{result.policy}: cost {result.cost_share:.3f}, short {100 * result.short_share:.2f} %"
        dots.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"><title>{told}</title></circle>')
        names.append(_label(result.policy, x, y, taken, kind))
    return [*names, *reversed(dots)]


def capacity(diary: Diary, zones: Sequence[str], end: float) -> str:
    """Units that served by zone, On-Demand on top, with the need as a line; under it notices and shortages."""
    height, top, base = 250, 12, 178
    columns = _columns(diary, end)
    most = max([1.0, *(max(column.needed, sum(column.serving)) for column in columns)]) * 1.06
    wide = (WIDTH - LEFT - RIGHT) / len(columns)

    def x(index: float) -> float:
        return LEFT + index * wide

    def y(units: float) -> float:
        return base - units / most * (base - top)

    layers = []
    floor = [0.0] * len(columns)
    for layer, name in enumerate([*zones, "On-Demand"]):
        roof = [low + column.serving[layer] for low, column in zip(floor, columns, strict=True)]
        if any(column.serving[layer] for column in columns):
            path = _outline([y(value) for value in roof], [y(value) for value in floor], x)
            layers.append(f'<path fill="{colour(layer, zones)}" d="{path}"><title>{escape(name)}</title></path>')
        floor = roof
    needed = [y(column.needed) for column in columns]
    need = "".join(f"V{needed[first]:.1f}H{x(after):.1f}" for first, after in _runs(needed))
    taken = [0] * len(columns)
    for at, _ in diary.notices:
        taken[min(len(columns) - 1, int(at / end * len(columns)))] += 1
    tallest = max([1, *taken])
    tall = [24 * notices / tallest for notices in taken]
    rug = "".join(_bar("notice", x(i), base + 44 - up, wide, up) for i, up in enumerate(tall) if up)
    short = "".join(
        _bar("short", x(i), base + 50, wide, 9, opacity=0.35 + 0.65 * column.short)
        for i, column in enumerate(columns)
        if column.short > 0
    )
    grid = [_level(y(units), f"{units}") for units in _round_steps(most)]
    grid += [
        f'<text class="tick" x="{x(day * DAY / end * len(columns)):.1f}" y="{height - 2}" text-anchor="middle">{day} d'
        "</text>"
        for day in _round_steps(end / DAY)
    ]
    return _svg(
        height,
        *grid,
        *layers,
        f'<path class="need" d="M{x(0):.1f},{needed[0]:.1f}{need}"><title>units needed</title></path>',
        f'<text class="tick" x="{LEFT - 6}" y="{base + 42}" text-anchor="end">{tallest}</text>',
        f"<g><title>notices, at most {tallest} in a column</title>{rug}</g>",
        f'<text class="tick" x="{LEFT - 6}" y="{base + 59}" text-anchor="end">short</text>',
        f"<g><title>short of what was needed</title>{short}</g>",
    )


def colour(layer: int, zones: Sequence[str]) -> str:
    """Spot is cold, a hue for each region and a shade for each zone; On-Demand, which is dear, is warm."""
    if layer == len(zones):
        return "hsl(28 90% 56%)"
    regions = list(dict.fromkeys(zone[:-1] for zone in zones))
    region = zones[layer][:-1]
    shade = [zone for zone in zones if zone[:-1] == region].index(zones[layer])
    hue = 165 + 110 * regions.index(region) / max(1, len(regions) - 1) if len(regions) > 1 else 205
    return f"hsl({hue:.0f} 52% {40 + 11 * (shade % 4)}%)"


def _columns(diary: Diary, end: float) -> list[Column]:
    """Means over equal spans: a value holds until the next moment."""
    width = end / BUCKETS
    size = len(diary.moments[0][2])
    needed, serving, short = [0.0] * BUCKETS, [[0.0] * size for _ in range(BUCKETS)], [0.0] * BUCKETS
    ends = [at for at, _, _ in diary.moments[1:]] + [end]
    for (start, need, units), stop in zip(diary.moments, ends, strict=True):
        at = start
        while at < stop:
            index = min(BUCKETS - 1, int(at / width))
            until = stop if index == BUCKETS - 1 else min(stop, (index + 1) * width)
            # A bucket's own end may round to where we are.
            until = max(until, at + 1e-6)
            part = (until - at) / width
            needed[index] += need * part
            short[index] += part * (sum(units) < need)
            for layer, count in enumerate(units):
                serving[index][layer] += count * part
            at = until
    return [Column(*column) for column in zip(needed, map(tuple, serving), short, strict=True)]


def _outline(roof: Sequence[float], floor: Sequence[float], x: Callable[[float], float]) -> str:
    """A closed path with steps, along the roof and back along the floor."""
    there = "".join(f"V{roof[first]:.1f}H{x(after):.1f}" for first, after in _runs(roof))
    back = "".join(f"V{floor[first]:.1f}H{x(first):.1f}" for first, _ in reversed(_runs(floor)))
    return f"M{x(0):.1f},{floor[0]:.1f}{there}{back}Z"


def _runs(values: Sequence[float]) -> list[tuple[int, int]]:
    """Where the same value begins, and where the next one does."""
    starts = [i for i, value in enumerate(values) if not i or round(value, 1) != round(values[i - 1], 1)]
    return list(pairwise([*starts, len(values)]))


def _staircase(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The corners of what nobody beats: going right, each step is as low as the lowest so far."""
    steps: list[tuple[float, float]] = []
    for cost, short in sorted(points):
        if not steps or short < steps[-1][1]:
            steps += [(cost, steps[-1][1])] if steps else []
            steps.append((cost, short))
    return steps


def _label(text: str, x: float, y: float, taken: list[tuple[float, float, float]], kind: str) -> str:
    """A name beside its dot, where nothing else is; `taken` has the left, right and foot of what is there so far."""
    wide = 6.6 * len(text)
    for shift in (4, -8, 16, -20, 28, -32, 40, -44, 52):
        for left in (x + 9, x - 9 - wide):
            foot = y + shift
            free = all(abs(foot - other) >= LABEL or left > end or left + wide < start for start, end, other in taken)
            if free and left >= LEFT and left + wide <= WIDTH and foot > 2 * LABEL:
                taken.append((left, left + wide, foot))
                return f'<text class="{kind}" x="{left:.1f}" y="{foot:.1f}">{text}</text>'
    return ""


def _round_steps(most: float) -> list[int]:
    """About four round numbers from 0 to there."""
    step = next(step for size in (1, 10, 100, 1000, 10_000) for step in (size, 2 * size, 5 * size) if most / step <= 8)
    return list(range(0, ceil(most), step))


def _level(y: float, text: str) -> str:
    """A line across, with its value."""
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
    )


def _bar(kind: str, x: float, y: float, width: float, height: float, opacity: float = 1.0) -> str:
    box = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect class="{kind}" {box} opacity="{opacity:.2f}"/>'


def _svg(height: int, *parts: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img">{"".join(parts)}</svg>'
