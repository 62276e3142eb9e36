"""A job in hand: what the threads of a worker know of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from gpu_worker.checkpoint import Checkpoint
from gpu_worker.cloud import Message
from gpu_worker.lease import Lease


@dataclass(eq=False)
class Held:
    """A message in hand, and how far the job it tells of has come here.

    The main thread writes `renew_at`, `stopped` and `gone`, the job's own thread the rest. `lease` and `gone` belong
    together: whoever writes one looks at the other, under the worker's lock.
    """

    message: Message
    since: datetime
    renew_at: datetime
    lease: Lease | None = None
    began: datetime | None = None
    """When its processor began."""
    ended: datetime | None = None
    """When its processor ended; what follows is storing."""
    checkpoint: Checkpoint | None = None
    deadline_file: Path | None = None
    """Where its processor looks whether this worker must go."""
    stopped: bool = False
    """Its processor is ended, so that its own thread may keep the checkpoint and release the job."""
    gone: bool = False
    """Given back, or lost to another worker: whatever is still done for it here is for nothing."""


class GivenBack(Exception):
    """The job is no longer ours to work on."""
