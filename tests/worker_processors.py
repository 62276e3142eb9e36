"""Processors that the worker's tests bring along, as a user would."""

import os
import re
import signal
import time
from pathlib import Path

from gpu_worker.outcome import NotNow, Rejected


def ordered(source, output_dir, job):
    """Does what the upload says: `sleep 3`, `crash`, `exit 3`, `raise`, `hang`, `link`, `share`, `nothing`."""
    order, *words = source.read_text().split()
    Path(job["options"]["diary"]).open("a").write(f"{order}\n")
    match order:
        case "sleep":
            time.sleep(float(words[0]))
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "exit":
            raise SystemExit(int(words[0]))
        case "raise":
            raise RuntimeError("the model \x00 melted")
        case "reject":
            raise Rejected("not for us")
        case "not-now":
            raise NotNow("no memory left on the GPU")
        case "hang":
            re.match("(a+)+$", "a" * 60 + "b")  # for years, and no other thread gets a turn
        case "share":
            (Path(os.environ["SPINDRIFT_SHARED_DIR"]) / "model").write_text("of many jobs")
        case "link":
            (output_dir / "link").symlink_to("/etc/passwd")
    (output_dir / "done").write_text(order)


def problems(options):
    return options.get("problems", [])
