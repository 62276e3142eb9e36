"""How many jobs a worker takes from the queue (pure): those that it can begin soon, and no other.

A job that waits here waits for this worker alone, so the stock is a matter of seconds: enough that the processors never
wait for SQS and S3, and little enough that another worker is not kept idle. Messages are taken ten at a time where jobs
are short enough, since SQS charges by the call.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

AHEAD = timedelta(seconds=5)
"""A job is taken when it can begin within this time."""

BATCH = 10
"""The most messages of one receive, and of one batch (SQS API reference)."""

NOW = timedelta(0)


def free_in(ran: timedelta, eta: timedelta | None) -> timedelta | None:
    """When the lane of a job that has run for `ran` is free; None where nobody can tell: no pace, or far overdue."""
    if eta is None or ran > eta + AHEAD:
        return None
    return max(NOW, eta - ran)


def to_take(
    lanes: Sequence[timedelta | None], eta: timedelta | None, waiting: int, storing: int, batch: int = 1
) -> int:
    """How many messages to ask for now.

    `lanes` tells of each when it is free, `NOW` for an idle one; `eta` is what a job takes, None while unknown: then a
    job is taken for each idle lane. `waiting` are in hand and not begun, `storing` are past their lane: where storing
    is the slowest, nothing more is begun. `batch` may be worked on together.
    """
    if eta is None:
        starts = sum(lane == NOW for lane in lanes)
    else:
        each = max(eta, timedelta(milliseconds=1))
        starts = sum(1 + (AHEAD - lane) // each for lane in lanes if lane is not None and lane <= AHEAD)
    wanted = min(starts, max(BATCH, batch) * (1 + len(lanes)) - storing)
    room = wanted - waiting
    return min(BATCH, room) if wanted > 0 and room >= min(BATCH, wanted) else 0
