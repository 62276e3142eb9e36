"""The last minutes of a worker: finish what fits, give back the rest (pure).

T is the moment the instance is taken, or the container killed. A job that by its own ETA ends before T-20 s is
finished; any other is released at once, and so is every job not begun; and at T-10 s whatever still runs is released,
ETA or not.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median

READY = timedelta(seconds=20)
LAST_CALL = timedelta(seconds=10)
UNKNOWN_FITS = timedelta(seconds=20)
"""A job nobody can predict is given this long before T-20 s, or is not begun upon."""

SAMPLES = 50


@dataclass(frozen=True)
class Doom:
    """This worker ends at `deadline`; it was told at `heard`."""

    heard: datetime
    deadline: datetime


@dataclass(frozen=True)
class Pace:
    """How fast this worker has been: (bytes, seconds) of its latest finished jobs."""

    done: tuple[tuple[int, float], ...] = ()

    def after(self, size: int, spent: timedelta) -> Pace:
        """The pace with one more finished job."""
        return Pace((*self.done, (size, spent.total_seconds()))[-SAMPLES:])

    def eta(self, size: int) -> timedelta | None:
        """How long a job of `size` bytes takes, on the cautious side; None before the first one is done."""
        if not self.done:
            return None
        usual = median(seconds for _, seconds in self.done)
        total = sum(done for done, _ in self.done)
        by_size = size * sum(seconds for _, seconds in self.done) / total if total else 0.0
        return timedelta(seconds=max(usual, by_size))


def give_back_at(doom: Doom, began: datetime | None, eta: timedelta | None) -> datetime:
    """When a job in hand must be released: at once, or at the last call if it was begun upon and fits."""
    if began is None:
        return doom.heard
    ends = doom.heard + UNKNOWN_FITS
    if eta is not None and began + eta >= doom.heard:  # one that is overdue can no longer be predicted
        ends = began + eta
    return doom.deadline - LAST_CALL if ends <= doom.deadline - READY else doom.heard
