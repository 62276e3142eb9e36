"""A processor that takes a known time: SECONDS on a GPU of speed 1, half of that on one that is twice as fast.

How fast the GPU of its instance is, the local cloud is told (`build.py local --speeds`).
"""

import os
import time

SECONDS = 3.0


def process(input, output_dir, job):  # noqa: A002 (the contract's name)
    time.sleep(SECONDS / float(os.environ["LOCALCLOUD_SPEED"]))
    (output_dir / "done.bin").write_bytes(input.read_bytes())
