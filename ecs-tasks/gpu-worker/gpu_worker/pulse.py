"""`python -m gpu_worker.pulse`, the container's health check: exits 0 while the worker's loop turns, 1 once it stands.

The loop touches its pulse file several times a minute, whatever it waits for. The image and the task definition both
run this.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

STILL_SECONDS = 60.0
"""A pulse older than this is none."""


def main() -> int:
    """Say what is wrong, for `docker inspect` keeps it."""
    try:
        age = time.time() - Path(os.environ["SPINDRIFT_PULSE_FILE"]).stat().st_mtime
    except (KeyError, OSError) as error:
        sys.stderr.write(f"no pulse: {error!r}\n")
        return 1
    if age > STILL_SECONDS:
        sys.stderr.write(f"the last pulse was {age:.0f} s ago\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
