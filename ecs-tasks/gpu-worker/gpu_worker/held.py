"""A job in hand: what the threads of a worker know of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from threading import Lock

from gpu_worker.checkpoint import Checkpoint
from gpu_worker.cloud import Message
from gpu_worker.lease import Lease


@dataclass(eq=False)
class Held:
    """A message in hand, and how far the job it tells of has come here.

    The main thread writes `renew_at`, `stopped` and `gone`, the job's own thread the rest, or that of a job which has
    its processor with it. One may claim the job while another gives it back: `claimed` and `let_go` see to it that the
    lease is released.
    """

    message: Message
    renew_at: datetime
    lease: Lease | None = None
    waits: datetime | None = None
    """Since when it has waited for others that are worked on."""
    began: datetime | None = None
    """When its processor began."""
    ended: datetime | None = None
    """When its processor ended; what follows is storing."""
    mates: tuple[Held, ...] = ()
    """With whom it has that processor, itself among them."""
    in_vain: timedelta = timedelta(0)
    """Its share of the time for which it had one together with others, and it came to nothing."""
    checkpoint: Checkpoint | None = None
    deadline_file: Path | None = None
    """Where its processor looks whether this worker must go."""
    stopped: bool = False
    """Its processor is ended, so that its own thread may keep the checkpoint and release the job."""
    gone: bool = False
    """Given back, or lost to another worker: whatever is still done for it here is for nothing."""
    _lock: Lock = field(default_factory=Lock)

    def next_job(self) -> None:
        """The message tells of another job, of which nothing is known yet."""
        self.lease, self.waits, self.began, self.ended = None, None, None, None
        self.mates, self.in_vain = (), timedelta(0)
        self.checkpoint, self.deadline_file = None, None

    def begins(self, mates: tuple[Held, ...], now: datetime) -> None:
        """It has a processor, together with these."""
        self.mates = mates
        self.began = now

    def begins_again(self, now: datetime) -> None:
        """What was done with it and others came to nothing: it waits for a processor of its own."""
        self.in_vain = self.worked(now)
        self.waits, self.began, self.ended, self.mates = now, None, None, ()

    def worked(self, now: datetime) -> timedelta:
        """How long a processor has worked on it: its share of the time, if on others as well."""
        began, mates = self.began, self.mates or (self,)  # another thread may just begin again
        return self.in_vain + (((self.ended or now) - began) / len(mates) if began else timedelta(0))

    def claimed(self, lease: Lease) -> bool:
        """The job is ours; False if its message has gone meanwhile, so that the job must go after it."""
        with self._lock:
            self.lease = lease
            return not self.gone

    def let_go(self) -> Lease | None:
        """The lease to release before the message goes. Without one the message goes now: its own thread will see."""
        with self._lock:
            self.gone = self.lease is None
            return self.lease


class GivenBack(Exception):
    """The job is no longer ours to work on."""
