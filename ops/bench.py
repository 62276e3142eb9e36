"""One job of the operator's own, done again and again on an instance of each type, and what each is then worth.

Each type gets one Spot instance from the stack's own launch template, and on each of its GPUs a worker of the stack's
own task definition. Jobs come as all jobs do, by uploads, and what they took is read from their records. The capacity
Lambda lets these instances alone until a time that they are tagged with, before which they shut down by themselves: a
benchmark that dies leaves nothing behind that goes on costing.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from secrets import token_hex
from statistics import fmean

from ops import pools
from ops.account import Account, cluster_resources
from ops.candidates import Candidate, Machines
from ops.samples import LOOK_SECONDS, NoSample, Samples
from ops.text import count, lasting
from ops.throughput import Line, Report, rate, weigh
from templates.settings import Settings

sys.path.append(str(Path(__file__).resolve().parent.parent / "lambdas"))

from market import prices
from market.cloud import spot_prices

__all__ = ["Asked", "Bench", "NoSample", "NoSuchQueue", "files_of", "types_of"]

FOLDER = ".bench/"
CLEAN_UP = timedelta(minutes=5)
"""How long instances may stay after the time is up: a worker takes up to 110 s to stop."""
PATIENCE = timedelta(minutes=3)
"""How long the end waits for workers to stop, and for what is left in the queue."""


class NoSuchQueue(Exception):
    """The settings, or the stack, have no queue of that name; the message says so."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What to measure, with what, and for how long at most."""

    files: Sequence[Path]
    types: Sequence[str]
    jobs: int
    """Of each type, beside the first of each processor."""
    queue: str
    minutes: int


class Bench:
    """A benchmark on one stack."""

    def __init__(
        self,
        account: Account,
        stack: str,
        settings: Settings,
        asked: Asked,
        say: Callable[[str], None],
        pause: Callable[[float], None] = time.sleep,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Raises NoSuchStack, NoSuchQueue, ClientError or BotoCoreError."""
        self._account, self._stack, self._settings, self._asked = account, stack, settings, asked
        self._say, self._pause, self._now = say, pause, now
        queue = next((one for one in settings.queues if one.name == asked.queue), None)
        if queue is None:
            raise NoSuchQueue(f"--queue is one of {', '.join(one.name for one in settings.queues)}")
        found = cluster_resources(account, stack)
        if not (task := found.get(f"{queue.title}Task")):
            raise NoSuchQueue(f"{stack} was deployed without the queue {queue.name}")
        self._began = now()
        self._end = self._began + timedelta(minutes=asked.minutes)
        run = f"{self._began:%Y%m%d-%H%M%S}-{token_hex(2)}"
        self._candidates = [Candidate(name) for name in asked.types]
        self._machines = Machines(account, found, task, run, self._end + CLEAN_UP, now)
        prefix, at_once = f"{queue.prefix}{FOLDER}{run}/", settings.worker.processors * settings.worker.batch
        self._samples = Samples(account, found, asked.files, prefix, at_once, now)
        self._said = ""
        self.interrupted = False

    def run(self) -> Report:
        """Measure, leave nothing behind, and say what each type is worth. Raises NoSample and as above.

        Ctrl-C ends it early, with what is known by then.
        """
        market = self._prices()  # before anything costs money: it may be refused
        try:
            self._measure()
        except KeyboardInterrupt:
            self.interrupted = True
        finally:
            self._clear_up()
        return self._report(*market)

    def _measure(self) -> None:
        while self._now() < self._end and not all(one.over for one in self._candidates):
            self._machines.look(self._candidates)
            for one in self._candidates:
                if not one.over:
                    self._machines.advance(one)
            self._samples.read()
            self._samples.check()
            self._judge()
            # Its GPU would only take jobs from the others.
            self._machines.let_go([one for one in self._candidates if one.over])
            if gpus := sum(one.gpus for one in self._candidates if one.container_instance and not one.over):
                self._samples.feed(gpus)
            self._tell()
            self._pause(LOOK_SECONDS)

    def _judge(self) -> None:
        measured = self._samples.measured()
        for one in self._candidates:
            mine = measured.get(one.type, [])
            one.done = min(len(mine), self._asked.jobs)
            if not one.over and self._samples.whole(mine, self._asked.jobs):
                one.rate = rate(mine, one.gpus)
                self._tell_at(f"{one.type}: {one.rate.jobs_per_hour:,.0f} jobs an hour")

    def _tell(self) -> None:
        types, jobs = len(self._candidates), self._asked.jobs * len(self._candidates)
        joined = sum(bool(one.container_instance or one.rate) for one in self._candidates)
        done = sum(one.done for one in self._candidates)
        if (text := f"{joined} of {count(types, 'type')} joined, {done} of {count(jobs, 'job')}") != self._said:
            self._said = text
            self._tell_at(text)

    def _tell_at(self, text: str) -> None:
        self._say(f"{lasting(self._now() - self._began):>12}  {text}")

    def _clear_up(self) -> None:
        """Leave nothing: neither instances, nor jobs, nor files. Says what could not be helped."""
        began = self._now()
        self._tell_at("clearing up")
        while self._now() - began < PATIENCE:
            self._machines.look(self._candidates)
            self._machines.let_go(self._candidates)
            self._samples.read()
            self._samples.withdraw()
            if not (self._samples.open or any(one.instance for one in self._candidates)):
                break
            self._pause(LOOK_SECONDS)
        for instance, why in self._machines.end_all().items():
            self._say(f"{instance} is not ended: {why}")
        self._samples.remove()
        if left := len(self._samples.open):
            self._say(f"{count(left, 'job')} could not be called off, so {self._samples.prefix} is not empty")

    def _report(self, spot: Mapping[str, float], on_demand: Mapping[str, float]) -> Report:
        rates = {one.type: one.rate.jobs_per_hour for one in self._candidates if one.rate}
        ours = set(types_of(self._settings))
        weighed = weigh({name: value for name, value in rates.items() if not ours <= rates.keys() or name in ours})
        return Report.of(
            Line(
                type=one.type,
                gpus=one.gpus,
                rate=one.rate,
                why=one.why or self._where_it_was(one),
                spot=spot.get(one.type),
                on_demand=on_demand.get(one.type),
                weight=weighed.weights.get(one.type),
                error=weighed.errors.get(one.type),
            )
            for one in self._candidates
        )

    def _where_it_was(self, one: Candidate) -> str:
        if one.rate:
            return ""
        if one.done:
            return f"{one.done} of {count(self._asked.jobs, 'job')} were done"
        return "no job was done" if one.workers else "its instance had not joined the cluster"

    def _prices(self) -> tuple[dict[str, float], dict[str, float]]:
        """US dollars an hour by type, Spot as the mean of the zones: what the market Lambda knows, else EC2."""
        spot: dict[str, list[float]] = defaultdict(list)
        on_demand: dict[str, float] = {}
        for line in pools.of_stack(self._account, self._stack).lines:
            name = line.pool.partition("/")[0]
            if line.spot is not None:
                spot[name].append(line.spot)
            if line.on_demand is not None:
                on_demand[name] = line.on_demand
        if others := [name for name in self._asked.types if name not in spot]:
            ec2 = self._account.client("ec2")
            for pool, usd in spot_prices(ec2, others, self._machines.zones(), self._now()).items():
                spot[pool.type].append(usd)
        for name in self._asked.types:
            if name not in on_demand and (price := prices.tabled(name, str(self._account.region))):
                on_demand[name] = price.usd
        return {name: fmean(found) for name, found in spot.items()}, on_demand


def types_of(settings: Settings) -> list[str]:
    """The instance types that the settings name: those that weights are for."""
    bought = () if settings.compute.attributes else settings.compute.instance_types
    return [*dict.fromkeys((*bought, *settings.on_demand.instance_types))]


def files_of(place: Path) -> list[Path]:
    """The sample file, or those in a folder. Raises NoSample."""
    found = sorted(one for one in place.iterdir() if one.is_file()) if place.is_dir() else [place]
    if not found:
        raise NoSample(f"{place} has no files")
    return found
