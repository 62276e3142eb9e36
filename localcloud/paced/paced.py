"""A processor that takes a known time: SECONDS on a GPU of speed 1, half of that on one that is twice as fast.

How fast the GPU of its instance is, the local cloud is told (`build.py local --speeds`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SECONDS = 3.0


def process(input: Path, output_dir: Path, job: Mapping[str, Any]) -> None:  # noqa: A002, ARG001 (the contract's names)
    """Sleep, and give back what was given."""
    time.sleep(SECONDS / float(os.environ["LOCALCLOUD_SPEED"]))
    (output_dir / "done.bin").write_bytes(input.read_bytes())
