"""Whatever a process has started, ended: helpers, their helpers, and what was left in the background."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

ROUNDS = 20
"""Looks at the process table. One that starts others as fast as they are killed is left to the end of the container."""


def end_followers(leader: int) -> None:
    """Kill every other process of the session that `leader` leads, in whatever process group; safe to repeat.

    A session is left only on purpose (`setsid`), and never by what a shell puts in the background.
    """
    for _ in range(ROUNDS):
        found = list(_followers(leader))
        if not found:
            return
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _followers(leader: int) -> Iterator[int]:
    """/proc/7/stat: `7 (name, with anything) S 1 7 7 ...`: state, parent, group, session (man 5 proc_pid_stat)."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        pid = int(stat.parent.name)
        with suppress(OSError):
            state, _, _, session, *_ = stat.read_text(errors="replace").rpartition(")")[2].split()
            if int(session) == leader and pid != leader and state not in {"Z", "X"}:
                yield pid
