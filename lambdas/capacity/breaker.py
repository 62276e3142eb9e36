"""When Spot is taken so often that it does not pay to lean on it alone. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from capacity.nouns import Wave

WAVE = timedelta(minutes=3)
"""What is taken within this time is one wave: a notice shows for two minutes."""
OFTEN = timedelta(minutes=30)
"""Losing all of Spot twice within this time trips the breaker. An instance that lasts a quarter of an hour has cost
some five minutes of booting and of work done again; one that lasts half as long is no cheaper than On-Demand.
"""
TWICE = 2.0
QUIET = timedelta(minutes=30)
"""How long after that Spot is not leant on alone."""
MOST_WAVES = 15
"""As a tag takes."""


def with_loss(waves: Sequence[Wave], taken: int, left: int, at: datetime) -> tuple[Wave, ...]:
    """The waves, with what is being taken now: so many units, and so many that are left.

    A look shows whatever is under notice; the most that it ever showed is the size of the wave.
    """
    known = [wave for wave in waves if at - wave.at < OFTEN + QUIET]
    if taken:
        share = round(taken / (taken + left), 2)
        if known and at - known[-1].at < WAVE:
            share = max(share, known[-1].share)
            at = known.pop().at
        known.append(Wave(at, share))
    return tuple(known[-MOST_WAVES:])


def tripped_until(waves: Sequence[Wave]) -> datetime | None:
    """How long the breaker stays tripped by these waves; None if it never was."""
    trips = [
        last.at for last in waves if sum(wave.share for wave in waves if last.at - OFTEN < wave.at <= last.at) >= TWICE
    ]
    return max(trips) + QUIET if trips else None
