"""Processors that the worker's tests bring along, as a user would."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

from gpu_worker.outcome import NotNow, Rejected


def ordered(source, output_dir, job):
    """Does what the upload says: `sleep 3`, `crash`, `bomb many`, `exit 3`, `raise`, `hang`, `link`, `share`, `nothing`."""
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
        case "bomb":
            bomb(words[0], output_dir)
    (output_dir / "done").write_text(order)


def process_many(sources, output_dirs, jobs):
    """Each as `ordered` does it, and how many they were."""
    with Path(jobs[0]["options"]["diary"]).open("a") as diary:
        diary.write(f"together-{len(jobs)}\n")
    for each in zip(sources, output_dirs, jobs, strict=True):
        ordered(*each)


def bomb(kind, output_dir):
    """What a decoder that was led astray might do."""
    match kind:
        case "sparse":
            for name in "ab":
                (output_dir / name).touch()
                os.truncate(output_dir / name, 1 << 20)
        case "grow":
            with (output_dir / "grow").open("wb") as file:
                while True:
                    file.write(bytes(1 << 16))
        case "many":
            for number in range(301):
                (output_dir / str(number)).touch()
        case "newline":
            (output_dir / "a\nb").touch()
        case "long":
            (output_dir / ("x" * 129)).touch()
        case "fork":
            for _ in range(20):
                subprocess.Popen(["sh", "-c", "sleep 60 & sleep 60"])
            time.sleep(60)


def problems(options):
    return options.get("problems", [])
