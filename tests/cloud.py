"""A local cloud for a test: a process of its own, gone with everything it started when the test ends."""

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from localcloud.laptop import Laptop, laptop

__all__ = ["Laptop", "eventually", "running_cloud"]


@contextlib.contextmanager
def running_cloud(*, speed: float = 1.0, seed: int = 0) -> Iterator[Laptop]:
    """A fresh cloud: `endpoint`, `client(service)`, `remote.do(command, …)`, `deploy`, `state` (its logs)."""
    with (
        tempfile.TemporaryDirectory(prefix="spindrift-test-") as folder,
        laptop(Path(folder) / "cloud", speed=speed, seed=seed) as cloud,
    ):
        yield cloud


def eventually(look: Callable[[], Any], *, within: float, what: str) -> Any:
    """What `look` returns once it is true. Fails the test when that takes longer than `within` seconds."""
    deadline = time.monotonic() + within
    while not (seen := look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within} s: {what}")
        time.sleep(0.05)
    return seen
