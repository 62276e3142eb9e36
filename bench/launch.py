"""What a slow launch costs: the shipped policy on generated markets, by how instances start (docs/launch.md).

Sixteen units at all times, On-Demand at three times the price of Spot, two weeks of each market. Cost is a share of
what On-Demand alone costs, short the share of time with less than sixteen at work: the mean, and the extremes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from localcloud.launchtimes import KINDS  # noqa: E402 - found by the line above
from replay.command import DEPTH, delays_of  # noqa: E402
from replay.generated import generated  # noqa: E402
from replay.market import Market, Price  # noqa: E402
from replay.results import Question, Result, answer, on_demand_cost  # noqa: E402
from replay.shipped import as_set  # noqa: E402
from replay.world import Delays  # noqa: E402
from templates.settings import Settings  # noqa: E402

SEEDS = (1, 2, 3, 4)
DAYS = 14.0
UNITS = 16
RATIO = 3.0
NOTICE = 120.0
SECONDS = (60, 120, 180, 300)
"""Launches of which no part is known: what has joined works."""
HEADER = ("launch", "Spot joins", "works", "On-Demand joins", "works", "cost", "short")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way to launch, and what became of the shipped policy on each market."""

    launch: str
    delays: Delays
    results: Sequence[Result]

    def cells(self) -> tuple[str, ...]:
        """As the table has it."""
        delays = self.delays
        return (
            self.launch,
            f"{delays.spot - delays.spot_starting:.0f} s",
            f"{delays.spot:.0f} s",
            f"{delays.on_demand - delays.on_demand_starting:.0f} s",
            f"{delays.on_demand:.0f} s",
            _spread([each.cost_share for each in self.results], "{:.3f}"),
            _spread([100 * each.short_share for each in self.results], "{:.2f}") + " %",
        )


def ways() -> dict[str, Delays]:
    """The delays of each row by its name."""
    named = {name: delays_of(kind, NOTICE) for name, kind in KINDS.items()}
    return named | {f"{each} s": Delays(spot=each, on_demand=each, notice=NOTICE) for each in SECONDS}


def row(launch: str, delays: Delays, seeds: Iterable[int] = SEEDS, days: float = DAYS) -> Row:
    """Replay each market."""
    return Row(launch=launch, delays=delays, results=[_replayed(delays, seed, days) for seed in seeds])


def table(rows: Iterable[Row]) -> list[str]:
    """The rows as lines under a header."""
    cells = [HEADER, *(each.cells() for each in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(HEADER))]
    return ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in cells]


def _replayed(delays: Delays, seed: int, days: float) -> Result:
    available = generated(seed, days, DEPTH)
    question = Question(
        market=Market(
            zones=available.zones,
            available=available.rows,
            prices=[Price([(0.0, 1 / RATIO)])] * len(available.zones),
            on_demand=1.0,
            end=available.end,
        ),
        delays=delays,
        units=UNITS,
        shipped=as_set(
            Settings.load(PROJECT / "spindrift.toml"), units=UNITS, jobs_per_unit=1, urgency=None, max_wait=None
        ),
        job_seconds=10.0,
    )
    return answer(question, "shipped", on_demand_cost(question)).result


def _spread(values: Sequence[float], form: str) -> str:
    mean, least, most = (form.format(value) for value in (fmean(values), min(values), max(values)))
    return f"{mean} ({least} to {most})"


def main() -> None:
    """Print the table, and leave build/bench/launch.json."""
    rows = [row(name, delays) for name, delays in ways().items()]
    out = PROJECT / "build" / "bench"
    out.mkdir(parents=True, exist_ok=True)
    told = [{"launch": each.launch, "results": [result.plain(load=False) for result in each.results]} for each in rows]
    (out / "launch.json").write_text(json.dumps(told, indent=2) + "\n", "utf-8")
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
