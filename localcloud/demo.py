"""The main job, for real: upload photographs, take Spot away, wait for zero, prove that nothing was lost."""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table

from localcloud.batchscene import BatchWindow
from localcloud.bill import bill
from localcloud.control import Refused, Remote
from localcloud.laptop import PROJECT, DidNotWork, Laptop, laptop
from localcloud.proof import Proof, prove, prove_batch
from localcloud.scene import Line, Shown, Window, picture
from localcloud.uploads import Upload, uploads
from localcloud.world import ZONES
from templates.settings import Settings

STACK = "spindrift"
LOOK_SECONDS = 1.0
PATIENCE_SECONDS = 230


@dataclass(frozen=True)
class Blow:
    """One thing that fate does, once a share of the uploads is done."""

    at_share: float
    strike: Callable[[Shown, Remote], str | None]
    """Does it and says it in words; None when there is nothing to strike yet."""


def narrow_market(remote: Remote, kinds: Iterable[str], seed: int) -> list[str]:
    """An ordinary day: of all pools only three have room, in three zones and for three instances each."""
    dice = random.Random(seed)  # noqa: S311
    known = sorted(kinds)
    types = dice.sample(known, 3)
    open_pools = [f"{name}/{zone}" for name, zone in zip(types, ZONES, strict=True)]
    for pool in (f"{name}/{zone}" for name in known for zone in ZONES):
        remote.do("market/capacity", pool=pool, instances=3 if pool in open_pools else 0)
    return open_pools


def one_instance(scene: Shown, remote: Remote) -> str | None:
    """EC2 gives one busy Spot instance its two minutes."""
    for instance in sorted(scene.busy & set(scene.pools)):
        if remote.do("market/reclaim", instance=instance):
            return f"EC2 takes back one instance, {instance}"
    return None


def whole_pool(scene: Shown, remote: Remote) -> str | None:
    """The pool with most of our instances is gone at once, and stays gone."""
    busy = [scene.pools[instance] for instance in scene.busy & set(scene.pools)]
    if not busy:
        return None
    pool = max(sorted(busy), key=list(scene.pools.values()).count)
    remote.do("market/capacity", pool=pool, instances=0)
    remote.do("market/reclaim", pool=pool)
    return f"EC2 takes back the whole pool {pool}: {list(scene.pools.values()).count(pool)} instances"


def without_notice(scene: Shown, remote: Remote) -> str | None:
    """A busy instance is gone without a word."""
    for instance in sorted(scene.busy & set(scene.pools)):
        remote.do("market/reclaim", instance=instance, notice=False)
        return f"instance {instance} vanishes without any notice"
    return None


BLOWS = (Blow(0.04, without_notice), Blow(0.2, one_instance), Blow(0.4, whole_pool))
"""The silent one first: its jobs are heard of again when their leases end, a minute later."""
BLOWS_TO_BATCH = (Blow(0.04, one_instance), Blow(0.3, one_instance))


@dataclass(frozen=True)
class Run:
    """What was watched while the work was done."""

    scenes: list[Shown]
    seconds: float
    blows_left: int

    @property
    def on_demand_peak(self) -> int:
        """The most On-Demand instances at a time."""
        return max((scene.on_demand_running for scene in self.scenes), default=0)


class Play(Protocol):
    """A stack at work."""

    def begin(self, files: Sequence[Upload]) -> None:
        """Upload, and whatever else makes work of it."""

    def look(self) -> Shown:
        """The stack now."""

    def prove(self, files: Sequence[Upload]) -> Proof:
        """What became of it."""

    def more(self, run: Run, proof: Proof, diary: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What is to be told of this stack beside what is told of all."""


class ClusterPlay:
    """The stack `cluster` takes whatever is uploaded."""

    def __init__(self, cloud: Laptop, outputs: Mapping[str, str]) -> None:
        self._cloud, self._outputs = cloud, outputs
        self.look = Window(outputs, cloud.client, STACK).look

    def begin(self, files: Sequence[Upload]) -> None:
        """Upload."""
        _upload(self._cloud, self._outputs["UploadsBucket"], files)

    def prove(self, files: Sequence[Upload]) -> Proof:
        """By the buckets and the table."""
        return prove(files, self._outputs, self._cloud.client)

    def more(self, run: Run, proof: Proof, diary: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """How soon it heard of interruptions, and what it gave back for them."""
        return {
            "notice_to_draining_seconds": spread(reaction_seconds(diary)),
            "released_jobs": proof.released,
            "top_up_units_peak": run.on_demand_peak,
        }


class BatchPlay:
    """The stack `batch` is handed what was uploaded."""

    def __init__(self, cloud: Laptop, outputs: Mapping[str, str]) -> None:
        self._cloud, self._outputs = cloud, outputs

    def begin(self, files: Sequence[Upload]) -> None:
        """Upload, and submit all of it."""
        _upload(self._cloud, self._outputs["UploadsBucket"], files)
        jobs = [line.split()[0] for line in self._command("submit", "--prefix", "").splitlines()]
        self._window = BatchWindow(self._cloud.client, STACK, jobs)
        self.look = self._window.look

    def prove(self, files: Sequence[Upload]) -> Proof:
        """By the buckets, and by what the operator is told of what failed."""
        jobs = json.loads(self._command("status", "--json"))["jobs"]
        told = {one["key"]: one["reason"] for job in jobs for one in job["failed"]}
        return prove_batch(files, self._outputs, self._cloud.client, told)

    def more(self, run: Run, proof: Proof, diary: Sequence[Mapping[str, Any]]) -> dict[str, Any]:  # noqa: ARG002
        """What ended with its machine, and was tried again; and what Spot had no room for."""
        return {
            "attempts_lost_with_their_machine": sum(self._window.lost_attempts().values()),
            "on_demand_instances_peak": run.on_demand_peak,
        }

    def _command(self, verb: str, *words: str) -> str:
        return self._cloud.run(sys.executable, "build.py", "batch", verb, "--stack", STACK, *words)


def shorten_the_grace(cloud: Laptop, stack: str, speed: float) -> None:
    """Divide what no speed divides, for it is the product's own time: how long no work lasts before all leave."""
    named = {"StackName": stack, "LogicalResourceId": "CapacityFunction"}
    function = cloud.client("cloudformation").describe_stack_resource(**named)["StackResourceDetail"]
    lambdas, name = cloud.client("lambda"), function["PhysicalResourceId"]
    told = lambdas.get_function_configuration(FunctionName=name)["Environment"]["Variables"]
    told["GRACE_SECONDS"] = str(round(int(told["GRACE_SECONDS"]) / speed))
    lambdas.update_function_configuration(FunctionName=name, Environment={"Variables": told})


@dataclass(frozen=True)
class Show:
    """What is played, and how."""

    play: Callable[[Laptop, Mapping[str, str]], Play]
    template: str
    profile: str
    """Of the settings."""
    blows: tuple[Blow, ...]
    uploads: int
    speed: float
    ready: Callable[[Laptop, str, float], None] = lambda *_: None
    """What is done to the stack, by name, before anything is uploaded; the last is the speed."""


SHOWS = {
    "fleet": Show(ClusterPlay, "cluster", "fleet", BLOWS, 260, 4.0),
    # Alarms take minutes to go off, so that two groups have longer waits to be shortened.
    "groups": Show(ClusterPlay, "cluster", "groups", BLOWS, 260, 8.0, shorten_the_grace),
    # A container starts for each job, which no speed makes shorter: so the notice must not outlast the work.
    "batch": Show(BatchPlay, "batch", "fleet", BLOWS_TO_BATCH, 50, 20.0),
}
"""By what buys the machines."""


CUT_SHORT = (DidNotWork, Refused, KeyboardInterrupt)
"""What ends a demo before there is anything to tell."""


def cut_short(error: BaseException, console: Console) -> int:
    """Say why there is nothing to tell, and return the exit status; for Ctrl-C it is a shell's."""
    if isinstance(error, KeyboardInterrupt):
        console.print("stopped; the local cloud is gone, with all that ran on it")
        return 130
    console.print(str(error), style="red", markup=False)
    return 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo. Exit status 0 only when nothing was lost, nothing happened twice and everything is back at zero."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--uploads", type=int, help="how many files to upload (default: 260, batch: 50)")
    parser.add_argument("--seed", type=int, default=7, help="of the photographs, the market and all other chance")
    parser.add_argument("--profile", choices=SHOWS, default="fleet", help="what buys the machines (default: fleet)")
    parser.add_argument(
        "--speed", type=float, help="how many times faster AWS's own times pass (default: 4, groups: 8, batch: 20)"
    )
    parser.add_argument("--out", type=Path, default=PROJECT / "build", help="where the templates and the summary go")
    options = parser.parse_args(arguments)
    show = SHOWS[options.profile]
    options.speed = options.speed or show.speed
    options.uploads = options.uploads or show.uploads
    console = Console(soft_wrap=True)
    home = options.out / "demo"
    shutil.rmtree(home, ignore_errors=True)
    try:
        summary = _play(show, options, console, home)
    except CUT_SHORT as error:
        return cut_short(error, console)
    (home / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    console.print(_table(summary))
    console.print(f"written to {home / 'summary.json'}; the cloud's log and state are in {home / 'cloud'}")
    return 0 if summary["lost"] == 0 and summary["double_effects"] == 0 and summary["back_to_zero"] else 1


def _play(show: Show, options: argparse.Namespace, console: Console, home: Path) -> dict[str, Any]:
    with laptop(home / "cloud", speed=options.speed, seed=options.seed) as cloud:
        console.print(f"local cloud at {cloud.endpoint}, speed {options.speed:g}, seed {options.seed}")
        settings = _settings(show.profile, home)
        cloud.run(sys.executable, "build.py", "--settings", settings, "--out", options.out)
        console.print(f"installing build/{show.template}.json with `aws cloudformation deploy` …")
        with ThreadPoolExecutor(1) as studio:
            making = studio.submit(lambda: list(uploads(options.uploads, options.seed)))
            play = show.play(cloud, cloud.deploy(options.out, STACK, show.template))
            show.ready(cloud, STACK, options.speed)
            kinds = Settings.load(settings).compute.instance_types
            console.print(f"Spot has room in {', '.join(narrow_market(cloud.remote, kinds, options.seed))}")
            files = making.result()
        began = time.monotonic()
        play.begin(files)
        run = _watch(cloud.remote, play, show.blows, len(files), console, began)
        console.print("checking every result by decoding it …")
        proof = play.prove(files)
        diary = cloud.remote.do("diary")
        return _summary(files, run, proof, diary, options.speed, play.more(run, proof, diary))


def _settings(profile: str, home: Path) -> Path:
    """The operator's own settings, in this profile."""
    said = (PROJECT / "spindrift.toml").read_text("utf-8")
    chosen = home / "spindrift.toml"
    chosen.write_text(re.sub(r"^profile = .*", f'profile = "{profile}"', said, flags=re.MULTILINE), "utf-8")
    return chosen


def _upload(cloud: Laptop, bucket: str, files: Iterable[Upload]) -> None:
    s3 = cloud.client("s3")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda file: s3.put_object(Bucket=bucket, Key=file.key, Body=file.body), files))


def _watch(remote: Remote, play: Play, planned: Sequence[Blow], uploaded: int, console: Console, began: float) -> Run:
    """Look each second, strike when it is time, until the work is done and everything is back at zero."""
    blows, scenes, told = list(planned), list[Shown](), list[Line]()
    with Live(console=console, auto_refresh=False, transient=False) as live:
        while (seconds := time.monotonic() - began) < PATIENCE_SECONDS:
            scene = play.look()
            scenes.append(scene)
            due = bool(blows) and scene.finished >= blows[0].at_share * uploaded
            if due and (words := blows[0].strike(scene, remote)):
                del blows[0]
                told.append((seconds, f"[red]{words}[/]"))
                if not console.is_terminal:
                    console.print(f"{seconds:5.0f} s  {words}")
            diary = remote.do("diary")
            notices = sum(entry["what"] == "notice" for entry in diary)
            if console.is_terminal:
                story = sorted([*told, *_story(diary, began)])
                live.update(picture(scene, uploaded, notices, seconds, story), refresh=True)
            elif int(seconds) % 5 == 0:
                console.print(f"{seconds:5.0f} s  {scene.told(uploaded, notices)}")
            if scene.finished >= uploaded and scene.at_zero:
                break
            time.sleep(LOOK_SECONDS)
    return Run(scenes, time.monotonic() - began, len(blows))


SAID = {
    "notice": "{subject} has notice",
    "draining": "{subject} is DRAINING",
    "reclaimed without notice": "{subject} is gone",
    "spot target": "units asked of Spot: {target}",
    "group desired": "asked of {subject}: {desired}",
    "batch found no capacity": "{subject} finds no room",
}
"""The diary's turning points, in words."""


def _story(diary: Iterable[Mapping[str, Any]], began: float) -> list[Line]:
    """The turning points since the run began, by its seconds."""
    start = datetime.now(UTC).timestamp() - (time.monotonic() - began)
    lines = [
        (datetime.fromisoformat(entry["at"]).timestamp() - start, SAID[entry["what"]].format(**entry))
        for entry in diary
        if entry["what"] in SAID
    ]
    return [(seconds, words) for seconds, words in lines if seconds >= 0]


def reaction_seconds(diary: Iterable[Mapping[str, Any]]) -> list[float]:
    """Seconds from each notice in the metadata to DRAINING in ECS, for instances that had joined by then.

    (One that has notice while it boots is drained when it joins: before, there is nothing to drain.)
    """
    joined, noticed, reactions = set[str](), dict[str, datetime](), list[float]()
    for entry in diary:
        if entry["what"] == "instance joined":
            joined.add(entry["subject"])
        elif entry["what"] == "notice" and entry["subject"] in joined:
            noticed.setdefault(entry["subject"], datetime.fromisoformat(entry["at"]))
        elif entry["what"] == "draining" and entry["subject"] in noticed:
            reactions.append((datetime.fromisoformat(entry["at"]) - noticed.pop(entry["subject"])).total_seconds())
    return reactions


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """p50, p99 and max by nearest rank, rounded to milliseconds; None without a value."""
    ranked = sorted(values)
    return {
        name: round(ranked[math.ceil(share * len(ranked)) - 1], 3) if ranked else None
        for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
    }


def _summary(
    files: Sequence[Upload],
    run: Run,
    proof: Proof,
    diary: Sequence[Mapping[str, Any]],
    speed: float,
    more: Mapping[str, Any],
) -> dict[str, Any]:
    struck = [entry for entry in diary if entry["what"] in ("notice", "reclaimed without notice")]
    return {
        "uploads": len(files),
        "succeeded": proof.succeeded,
        "failed": proof.failed,
        "lost": len(proof.lost),
        "double_effects": len(proof.double),
        "interruptions": len(struck),
        **more,
        "back_to_zero": bool(run.scenes) and run.scenes[-1].at_zero and not run.blows_left,
        "wall_seconds": round(run.seconds, 1),
        "cost": asdict(bill(diary, datetime.now(UTC), speed)),
        "unproved": [*proof.lost, *proof.double],
    }


def _table(summary: Mapping[str, Any]) -> Table:
    table = Table(title="What became of it", show_header=False)
    for name, value in summary.items():
        if name == "unproved":
            continue
        shown = "  ".join(f"{key} {part}" for key, part in value.items()) if isinstance(value, dict) else str(value)
        table.add_row({"cost": "cost, US$"}.get(name, name.replace("_", " ")), shown)
    return table


if __name__ == "__main__":
    sys.exit(main())
