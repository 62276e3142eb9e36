"""What becomes of a job after an attempt (pure). The exit codes are the contract with every processor:

| code  | a command exits with it, or a callable         | the job                                         |
|-------|------------------------------------------------|-------------------------------------------------|
| 0     | returns                                        | done                                            |
| 3     | raises `Rejected`                              | FAILED now: trying again cannot help            |
| 4     | raises `NotNow`                                | released: it counts as no failure               |
| other | raises anything else, exceeds its time; a      | one failure more: again after a back-off, until |
|       | negative code is the signal that killed it     | they are used up; then FAILED                   |
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from datetime import timedelta

DONE, REJECTED, NOT_NOW = 0, 3, 4

LONGEST_BACKOFF = timedelta(minutes=15)
NOT_NOW_PAUSE = timedelta(seconds=5)
"""So that a job nobody can take just now does not keep its workers spinning."""


class Rejected(Exception):
    """Raised by a processor whose input can never succeed."""


class NotNow(Exception):
    """Raised by a processor that cannot work at the moment, through no fault of the job."""


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended: an exit code of the table above, and what went wrong if anything did."""

    code: int
    error: str = ""

    @classmethod
    def of_death(cls, returncode: int) -> Outcome:
        """A process that ended without an answer; a negative code is a signal, as `subprocess` has it."""
        if returncode < 0:
            return cls(returncode, f"the processor died of signal {-returncode} ({signal.strsignal(-returncode)})")
        return cls(returncode or 1, f"the processor exited with {returncode} and no answer")


@dataclass(frozen=True)
class Finish:
    """The results are stored: SUCCEEDED."""


@dataclass(frozen=True)
class Retry:
    """A failure is counted and the job waits this long for another attempt."""

    delay: timedelta
    reason: str


@dataclass(frozen=True)
class Reject:
    """FAILED, and the message goes to the dead-letter queue with the reason."""

    reason: str


@dataclass(frozen=True)
class Release:
    """Back to the queue unharmed, to be seen by others after this long."""

    delay: timedelta = timedelta(0)


def settle(outcome: Outcome, failures: int, max_failures: int) -> Finish | Retry | Reject | Release:
    """Decide what becomes of a job that has failed `failures` times before this attempt."""
    match outcome.code:
        case 0:
            return Finish()
        case 3:
            return Reject(_printable(outcome.error))
        case 4:
            return Release(NOT_NOW_PAUSE)
    if failures + 1 >= max_failures:
        return Reject(_printable(f"failure {failures + 1} of {max_failures}: {outcome.error}"))
    return Retry(min(timedelta(seconds=2 ** min(failures + 1, 20)), LONGEST_BACKOFF), _printable(outcome.error))


def _printable(error: str, longest: int = 500) -> str:
    """An error may quote hostile input; SQS refuses control characters, and nobody reads megabytes."""
    return "".join(char if char.isprintable() else " " for char in error[:longest]) or "no reason given"
