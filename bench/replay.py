"""How long the shipped policy takes to live through 45 days of nine zones, on one core, from the command line.

With SPINDRIFT_TRACES it is the recorded trace in that folder, else one of the same size, made here. `--all` adds the
long replays: every policy on that trace, with a report.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
OUT = PROJECT / "build" / "bench"
RECORDED = "aws_p3.2xlarge_1node_9az_2023-02-15_195s.csv"
STEP, ROWS, ZONES = 195, 20_158, 9
UP, DOWN = 3 * 3600, 2 * 3600
"""Mean seconds for which a made zone has capacity, and has none."""
ROUNDS = 3


def trace() -> Path:
    """The recorded trace, or a made one: zones of their own that come and go."""
    if folder := os.environ.get("SPINDRIFT_TRACES"):
        return Path(folder) / RECORDED
    chance = random.Random(7)  # noqa: S311 - not a secret
    state = [0] * ZONES
    lines = ["t_s," + ",".join(f"zone-{number}" for number in range(ZONES))]
    for row in range(ROWS):
        state = [1 - up if chance.random() < STEP / (UP if up else DOWN) else up for up in state]
        lines.append(",".join(map(str, [row * STEP, *state])))
    made = OUT / "trace.csv"
    made.write_text("\n".join(lines) + "\n", "utf-8")
    return made


def main() -> None:
    """Measure the best of some rounds, print it, and leave build/bench/replay.json; with --all also replay.html."""
    OUT.mkdir(parents=True, exist_ok=True)
    path = trace()
    command = [sys.executable, "build.py", "replay", "--availability", str(path), "--depth", "4"]

    def seconds() -> float:
        start = time.perf_counter()
        subprocess.run([*command, "--policy", "shipped", "--json"], cwd=PROJECT, check=True, capture_output=True)
        return time.perf_counter() - start

    taken = min(seconds() for _ in range(ROUNDS))
    told = {"seconds": round(taken, 2), "policy": "shipped", "trace": path.name, "days": ROWS * STEP / 86_400}
    (OUT / "replay.json").write_text(json.dumps(told, indent=2) + "\n", "utf-8")
    print(f"45 days, nine zones, one policy: {taken:.2f} s")
    if "--all" in sys.argv[1:]:
        subprocess.run([*command, "--html", str(OUT / "replay.html")], cwd=PROJECT, check=True)


if __name__ == "__main__":
    main()
