"""How far a long job has come: a folder that the processor writes, kept in S3 and handed to the next attempt.

It is kept when it has changed, as often as the lease is renewed, and once more when the job is given back. All of it is
one object, so the next attempt sees one state and no mixture of two; a name that begins with a dot is not kept, so a
processor writes `.new` and renames it.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from threading import Event, Thread
from typing import Protocol

from gpu_worker.cloud import Refused
from gpu_worker.handover import LAST_CALL, READY, Doom
from gpu_worker.lease import Lease
from gpu_worker.log import log

LARGEST = 2 << 30
"""Bytes: what can be stored well within the seconds before the last call."""

SAVING = timedelta(seconds=10)
"""For which a processor that keeps a checkpoint goes on, having been told that it must stop."""

State = tuple[tuple[str, int, int], ...]


class Store(Protocol):
    """Where checkpoints are kept."""

    def keep_checkpoint(self, lease: Lease, packed: Path) -> None:
        """Store it in place of an earlier one."""

    def fetch_checkpoint(self, lease: Lease, packed: Path) -> None:
        """Fetch it."""

    def forget_checkpoint(self, lease: Lease) -> None:
        """Remove it."""


class Checkpoint:
    """The folder of one attempt, and what is kept of it."""

    def __init__(self, store: Store, lease: Lease, scratch: Path) -> None:
        self.folder = scratch / "checkpoint"
        self.folder.mkdir()
        self._packed = scratch / "checkpoint.tar"
        self._store, self._lease, self._job_id = store, lease, lease.job.job_id
        self._kept: State = ()

    @property
    def used(self) -> bool:
        """Whether the processor has anything that the next attempt could begin with."""
        try:
            return bool(self._state())
        except OSError:  # one was renamed or removed this very moment, so there are some
            return True

    def fetch(self) -> None:
        """Begin where an earlier attempt stopped, if it left anything. Raises CloudError for a cause that may pass."""
        if not self._lease.checkpoint:
            return
        try:
            self._store.fetch_checkpoint(self._lease, self._packed)
            with tarfile.open(self._packed) as packed:
                packed.extractall(self.folder, filter="data")
        except (Refused, OSError, tarfile.TarError) as error:
            log("the checkpoint cannot be had", job_id=self._job_id, error=repr(error))
        self._kept = self._state()

    def keep(self) -> None:
        """Store it if it has changed."""
        state = self._state()
        if state == self._kept:
            return
        size = sum(bytes_ for _, bytes_, _ in state)
        if size > LARGEST:
            log("the checkpoint is too large to be kept", job_id=self._job_id, bytes=size, most=LARGEST)
            return
        with tarfile.open(self._packed, "w") as packed:
            for name, _, _ in state:
                packed.add(self.folder / name, name)
        self._store.keep_checkpoint(self._lease, self._packed)
        self._kept = state

    @contextmanager
    def kept_every(self, period: timedelta) -> Iterator[None]:
        """Keep it from time to time while the processor works; what goes wrong with that costs progress, no job."""
        over = Event()

        def keep() -> None:
            while not over.wait(period.total_seconds()):
                self.try_to_keep()

        thread = Thread(target=keep, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def try_to_keep(self) -> None:
        """Keep it, or say why not: a file may vanish in the middle, and S3 may be in trouble."""
        try:
            self.keep()
        except Exception as error:  # noqa: BLE001
            log("the checkpoint is not kept", job_id=self._job_id, error=repr(error))

    def forget(self) -> None:
        """The job is over."""
        if self._kept or self._lease.checkpoint:
            self._store.forget_checkpoint(self._lease)

    def _state(self) -> State:
        """What there is, by name, size and time: files in this folder or below, and no links."""
        found = []
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder)
            if path.is_file() and not path.is_symlink() and not any(part.startswith(".") for part in name.parts):
                facts = path.stat()
                found.append((name.as_posix(), facts.st_size, facts.st_mtime_ns))
        return tuple(found)


def stop_at(doom: Doom, give_back: datetime) -> datetime:
    """When a processor that keeps a checkpoint is stopped, so that the last of it can be stored before the last call.

    `give_back` is when the job would have to go without one.
    """
    latest = doom.deadline - READY
    fits = give_back >= doom.deadline - LAST_CALL
    return latest if fits else max(give_back, min(give_back + SAVING, latest))


def tell(deadline_file: Path, doom: Doom) -> None:
    """{"deadline": ISO-8601}: a processor that looks for this file may save what it has and say `NotNow`."""
    new = deadline_file.with_suffix(".new")
    with suppress(OSError):  # the job has just ended, or the disk is full: then the job goes back untold
        new.write_text(json.dumps({"deadline": doom.deadline.isoformat()}))
        new.rename(deadline_file)
