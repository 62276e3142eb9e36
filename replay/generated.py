"""A market from stated statistics, for when there is no trace. The same seed is the same market.

Whether a zone has capacity hangs on one number that drifts: a part of it is the whole market's, a part its region's and
a part its own, and the zone is dry while it is below a threshold. What follows from that was measured on real traces of
2023 (p3.2xlarge; up to nine zones, 45 days), and a test holds the generated ones to it: zones are dry for .1 to .8 of
the time, zones of one region together (correlation .4 to .7), regions hardly (about .1), what is taken is taken in
masses (about half of what a zone can hold), and the median time that a zone stays up is .3 to 1.4 hours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from math import exp, sqrt
from random import Random
from statistics import NormalDist

from replay.files import Availability, BadInput

STEP = 300.0
"""Seconds between two rows."""
ZONES = {
    "east": {"east-a": 0.35, "east-b": 0.30},
    "middle": {"middle-a": 0.55, "middle-b": 0.50},
    "west": {"west-a": 0.75, "west-b": 0.70},
}
"""For each zone of each region: the share of time in which it has capacity."""
OF_ALL, OF_REGION = 0.2, 0.55
"""Parts of the variance that are the whole market's and the region's; the rest is the zone's own."""
DRIFT, INERTIA = 36_000.0, 300.0
"""Time constants in seconds: how long the number remembers, and how slowly it turns."""
EDGE = 0.05
"""From empty to full, in standard deviations: a zone is seldom half full."""


def generated(seed: int, days: float, depth: int, zones: Sequence[str] | None = None) -> Availability:
    """Make a market in which each zone holds so many instances when it is full. Raises BadInput for other zones."""
    names = [name for region in ZONES.values() for name in region]
    if missing := sorted(set(zones or ()) - set(names)):
        raise BadInput(f"there is no zone {', '.join(missing)} in the generated market; it has {', '.join(names)}")
    picked = [names.index(name) for name in zones or names]
    random = Random(seed)  # noqa: S311 - not a secret
    shares = [share for region in ZONES.values() for share in region.values()]
    thresholds = [NormalDist().inv_cdf(1 - share) for share in shares]
    whole = _drift(random)
    regions = [(_drift(random), [_drift(random) for _ in region]) for region in ZONES.values()]
    rows: list[tuple[float, tuple[int, ...]]] = []
    count = max(2, int(days * 86_400 / STEP))
    for index, all_ in enumerate(islice(whole, count)):
        state = []
        for region, own in regions:
            shared = sqrt(OF_ALL) * all_ + sqrt(OF_REGION) * next(region)
            state += [shared + sqrt(1 - OF_ALL - OF_REGION) * next(zone) for zone in own]
        filled = [0.5 + (value - threshold) / EDGE for value, threshold in zip(state, thresholds, strict=True)]
        counts = tuple(round(depth * min(1.0, max(0.0, filled[zone]))) for zone in picked)
        if not rows or counts != rows[-1][1]:
            rows.append((index * STEP, counts))
    return Availability(zones=tuple(names[zone] for zone in picked), rows=tuple(rows), start=0.0, end=count * STEP)


def _drift(random: Random) -> Iterator[float]:
    """A number with mean 0 and variance 1 that forgets and turns slowly (an Ornstein-Uhlenbeck process, smoothed)."""
    keep, turn = exp(-STEP / DRIFT), 1 - exp(-STEP / INERTIA)
    pull = value = random.gauss(0, 1)
    while True:
        yield value * sqrt((DRIFT + INERTIA) / DRIFT)
        pull = keep * pull + sqrt(1 - keep * keep) * random.gauss(0, 1)
        value += turn * (pull - value)
