"""`build.py bench` for real, on three types of which it is known what they are worth: does it find that out?"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from localcloud.demo import CUT_SHORT, STACK, cut_short
from localcloud.image import REGISTRY
from localcloud.laptop import PROJECT, DidNotWork, Laptop, laptop
from localcloud.paced.paced import SECONDS
from localcloud.uploads import PHOTOS

SPEEDS = {"g4dn.xlarge": 1.0, "g6.xlarge": 2.4, "g5.xlarge": 3.7}
"""The truth: how fast their GPUs are, which the processor `paced` plays."""
TRUTH = {name: 3600 / SECONDS * speed for name, speed in SPEEDS.items()}
"""Jobs an hour."""
MOST_OFF = 0.03
SPEED = 30.0
SETTINGS = PROJECT / "localcloud/paced/spindrift.toml"
IMAGE = "paced:local"
WORKER_IMAGE = f"{REGISTRY}/{IMAGE}"
MINUTES = 60
"""After which instances shut down by themselves: at this speed, two real ones."""
LINES = 9
"""Of progress, on a terminal."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One type that was measured, beside the truth."""

    type: str
    true_jobs_per_hour: float
    jobs_per_hour: float
    rate_off: float
    """0.02 is 2 % too much."""
    per_thousand: float
    """What a thousand jobs cost on Spot, in US dollars."""
    weight: int
    true_weight: float
    """What the weight would be, were it not a whole number."""
    weight_off: float


def judge(report: Sequence[Mapping[str, Any]], truth: Mapping[str, float]) -> tuple[list[Judged], list[str]]:
    """Hold the JSON of `build.py bench` against the true jobs an hour: what was measured, and what of it is wrong.

    Weights are right by their proportions alone. What a unit is worth is taken so that the largest error in excess is
    the largest in want. The order is by what a job costs at the prices of the report and the true speeds; types that
    differ by less than may be wrong in any case stand in either order.
    """
    whole = [one for one in report if one["type"] in truth and one["rate"] and one["weight"] and one["spot"]]
    worth = [one["weight"] / truth[one["type"]] for one in whole] or [0.0]
    unit = (min(worth) + max(worth)) / 2
    judged = [
        Judged(
            type=one["type"],
            true_jobs_per_hour=(true := truth[one["type"]]),
            jobs_per_hour=(found := one["rate"]["jobs_per_hour"]),
            rate_off=found / true - 1,
            per_thousand=one["spot_per_thousand"],
            weight=one["weight"],
            true_weight=true * unit,
            weight_off=one["weight"] / (true * unit) - 1,
        )
        for one in whole
    ]
    why = {one["type"]: one["why"] for one in report}
    measured = {one.type for one in judged}
    wrong = [
        f"{name} is not measured: {why.get(name) or 'it has no rate, no price or no weight'}"
        for name in truth
        if name not in measured
    ]
    for one in judged:
        if abs(one.rate_off) > MOST_OFF:
            wrong.append(f"{one.type}: {one.jobs_per_hour:,.0f} jobs an hour are {one.rate_off:+.1%} off")
        if abs(one.weight_off) > MOST_OFF:
            wrong.append(f"{one.type}: weight {one.weight} is {one.weight_off:+.1%} off")
    costs = [(one["type"], one["spot"] / truth[one["type"]]) for one in whole]
    for (first, dearer), (second, cheaper) in combinations(costs, 2):
        if dearer > cheaper * (1 + MOST_OFF):
            wrong.append(f"{first} stands before {second}, on which a job costs less")
    return judged, wrong


@contextlib.contextmanager
def paced_cloud(state: Path, seed: int) -> Iterator[Laptop]:
    """A local cloud with GPUs of these speeds, and the image of the processor that plays them."""
    with laptop(state, speed=SPEED, seed=seed, speeds=SPEEDS) as cloud:
        cloud.remote.do("image/add", name=IMAGE, folder=str(SETTINGS.parent), base="gpu-worker:local")
        yield cloud


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it. Exit status 0 only when the order is right and nothing is off by more than 3 %."""
    parser = argparse.ArgumentParser(prog="make demo-bench", description=__doc__)
    parser.add_argument("--seed", type=int, default=7, help="of the market and all other chance")
    parser.add_argument("--out", type=Path, default=PROJECT / "build", help="where the templates and the summary go")
    options = parser.parse_args(arguments)
    console = Console(soft_wrap=True)
    home = options.out / "demo-bench"
    shutil.rmtree(home, ignore_errors=True)
    try:
        report, status, seconds = _measure(options.seed, home, console)
    except CUT_SHORT as error:
        return cut_short(error, console)
    judged, wrong = judge(report, TRUTH)
    if status and not wrong:
        wrong = [f"build.py bench ended with status {status}"]
    summary = {"types": [asdict(one) for one in judged], "wrong": wrong, "wall_seconds": round(seconds, 1)}
    (home / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    console.print(_table(judged))
    for line in wrong or [f"the order is right, and nothing is off by more than {MOST_OFF * 100:.0f} %"]:
        console.print(line, style="red" if wrong else "green", markup=False, highlight=False)
    console.print(f"written to {home / 'summary.json'}; the cloud's log and state are in {home / 'cloud'}")
    return 1 if wrong else 0


def _measure(seed: int, home: Path, console: Console) -> tuple[list[dict[str, Any]], int, float]:
    """The report, the command's exit status, and the seconds it took. Raises DidNotWork or Refused."""
    with paced_cloud(home / "cloud", seed) as cloud:
        console.print(f"local cloud at {cloud.endpoint}, speed {SPEED:g}, seed {seed}")
        cloud.run(sys.executable, "build.py", "--settings", SETTINGS, "--out", home)
        console.print("installing cluster.json with `aws cloudformation deploy` …")
        cloud.deploy(home, STACK, WorkerImage=WORKER_IMAGE)
        words = ["bench", "--stack", STACK, "--sample", str(PHOTOS / "flower.jpg"), "--minutes", str(MINUTES)]
        words += ["--settings", str(SETTINGS), "--out", str(home), "--json"]
        console.print(f"measuring {', '.join(SPEEDS)} with `build.py bench` …")
        began = time.monotonic()
        printed, status = _follow(cloud, words, console)
        return json.loads(printed), status, time.monotonic() - began


def _follow(cloud: Laptop, words: Sequence[str], console: Console) -> tuple[str, int]:
    """What `build.py` prints, and its exit status, with its progress on the screen.

    Raises DidNotWork, with its words, when it prints nothing.
    """
    command = [sys.executable, "build.py", *words]
    said, busy = list[str](), Spinner("dots")
    with subprocess.Popen(
        command, env=cloud.environment, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        try:
            with Live(busy, console=console, transient=True) as live:
                for line in running.stderr or ():
                    said.append(line.rstrip())
                    if console.is_terminal:
                        live.update(Group(*map(Text, said[-LINES:]), busy))
                    elif line.strip():
                        console.print(said[-1], markup=False)
            printed = running.stdout.read() if running.stdout else ""
            status = running.wait()
        finally:
            running.kill()
    if not printed:
        raise DidNotWork("\n".join([" ".join(command), *said]))
    return printed, status


def _table(judged: Sequence[Judged]) -> Table:
    table = Table(title="What build.py bench found, the cheapest job first")
    table.add_column("type")
    for name in ("true\njobs/h", "found", "off", "US$ for\n1,000 jobs", "weight", "true\nratio", "off"):
        table.add_column(name, justify="right")
    for one in judged:
        table.add_row(
            one.type,
            f"{one.true_jobs_per_hour:,.0f}",
            f"{one.jobs_per_hour:,.0f}",
            f"{one.rate_off:+.1%}",
            f"{one.per_thousand:.4f}",
            str(one.weight),
            f"{one.true_weight:.2f}",
            f"{one.weight_off:+.1%}",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
