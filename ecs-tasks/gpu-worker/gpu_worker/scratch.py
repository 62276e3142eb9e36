"""Where jobs in hand lie on disk: there is room before a download, and nothing stays behind, even of a killed worker.

A worker has a folder of its own in the scratch directory, which it may share with others, and holds a lock in it while
it lives; the kernel ends the lock with the process. So whoever comes next can tell what was left behind.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from threading import Lock
from typing import Self

from gpu_worker.log import log

SPARE = 16 * 2**20
"""Bytes that are left to others. Of what is free beyond, half is for the upload and half for what is made of it."""


class NoRoom(Exception):
    """The upload does not fit at the moment."""


class Scratch:
    """A worker's own folder, and in it one for each job."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        for left in directory.glob("spindrift-*"):
            _remove_if_left(left)
        made = Path(mkdtemp(prefix="new-spindrift-", dir=directory))
        (made / "lock").touch()
        self._lock_file = _locked(made / "lock")
        self._folder = made.rename(directory / made.name.removeprefix("new-"))  # only now it may be looked into
        self._promised = 0
        self._lock = Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        os.close(self._lock_file)

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A folder for one job, removed with all that is in it. Raises NoRoom if none can be made."""
        try:
            made = TemporaryDirectory(dir=self._folder, ignore_cleanup_errors=True)
        except OSError as error:
            raise NoRoom(f"no folder can be made on the scratch disk: {error.strerror}") from error
        with made as folder:
            yield Path(folder)

    @contextmanager
    def room_for(self, size: int) -> Iterator[None]:
        """Have room for an upload of `size` bytes while it arrives, and for as much again.

        Raises NoRoom, also if the disk is full before all of it has arrived: it may be more, or others write too;
        ValueError where it would not fit on the empty disk either.
        """
        with self._lock:
            disk = shutil.disk_usage(self._folder)
            if disk.total - SPARE < 2 * size:
                raise ValueError(f"the scratch disk is too small: {2 * size} bytes are needed, it has {disk.total}")
            free = disk.free - SPARE - self._promised
            if free < 2 * size:
                raise NoRoom(f"no room on the scratch disk: {2 * size} bytes are needed, {max(0, free)} are free")
            self._promised += 2 * size
        try:
            yield
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise NoRoom("the scratch disk is full") from error
        finally:
            with self._lock:
                self._promised -= 2 * size


def _locked(file: Path) -> int:
    """The descriptor of the file, locked. Raises OSError if another process holds it, or it is not there."""
    descriptor = os.open(file, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _remove_if_left(folder: Path) -> None:
    """Remove a folder whose worker is dead."""
    with suppress(OSError):  # its worker lives, or it is no worker's, or another user's
        descriptor = _locked(folder / "lock")
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)
        log("removed what a dead worker left", folder=str(folder))
