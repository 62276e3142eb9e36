"""How long `python build.py` takes beside `cdk synth` of the same resources: both in turn, on one machine, medians.

Assets are built once before, as nobody's code changes between two looks at a template; `cdk synth` builds none at all.
The CDK's app is plain JavaScript with level 1 constructs, the quickest that the CDK has.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
CDK = PROJECT / "bench" / "cdk"
OUT = PROJECT / "build" / "bench"
ROUNDS = 7


def seconds(command: list[str], folder: Path, **environment: str) -> float:
    """Wall time of a command that must succeed."""
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, env=os.environ | environment, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    """Measure, print the ratio, and leave build/bench/build.json."""
    template = OUT / "templates" / "cluster.json"
    build = [sys.executable, "build.py", "--out", str(template.parent)]
    synth = [str(CDK / "node_modules" / ".bin" / "cdk"), "synth", "--quiet"]

    def both() -> tuple[float, float]:
        return seconds(build, PROJECT), seconds(synth, CDK, TEMPLATE=str(template))

    both()
    ours, theirs = (statistics.median(times) for times in zip(*(both() for _ in range(ROUNDS)), strict=True))
    told = {"build_s": round(ours, 3), "cdk_synth_s": round(theirs, 3), "ratio": round(theirs / ours, 2)}
    (OUT / "build.json").write_text(json.dumps(told, indent=2) + "\n", "utf-8")
    print(f"python build.py {ours:.2f} s, cdk synth {theirs:.2f} s: {theirs / ours:.1f} times as fast")


if __name__ == "__main__":
    main()
