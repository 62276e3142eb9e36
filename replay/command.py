"""`build.py replay`: from the command line to a table, JSON or a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from math import inf
from pathlib import Path
from typing import Any

import click

from localcloud.launchtimes import KINDS, Kind, Launch
from replay import table
from replay.bounds import NoPlan
from replay.files import Availability, BadInput, lowest, read_availability, read_load, read_prices
from replay.generated import generated
from replay.market import Market, Price
from replay.report import page
from replay.results import BOUNDS, POLICIES, SHIPPED, Question, answer, on_demand_cost
from replay.shipped import Urgency, as_set
from replay.world import Delays
from templates.settings import BadSettings, Settings

FLOOR = 0.3
"""The lowest price of p2 and p3 Spot was so much of On-Demand for years: what a file of prices says of On-Demand."""
DEPTH = 8
"""Of a zone in a generated market."""
DELAY = 180.0
"""Seconds from a launch to the first job when nobody says."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The command line; a None is what was not given."""

    settings: Path
    availability: Path | None
    prices: Path | None
    od_ratio: float | None
    od_price: float | None
    zones: str | None
    depth: int | None
    units: int
    launch: str | None
    launch_delay: float | None
    spot_delay: float | None
    notice: float
    load: Path | None
    job_seconds: float
    max_wait: float | None
    urgency: str | None
    policy: Sequence[str]
    seed: int
    days: float
    json: bool
    html: Path | None


@click.command()
@click.option("--settings", type=click.Path(path_type=Path), help="What the shipped policy is set to.")
@click.option(
    "--availability", type=click.Path(path_type=Path), help="CSV: t_s, then for each zone how many one could hold."
)
@click.option("--zones", help="Of the file, with commas; the first is that of spot-one-zone.  [default: all]")
@click.option("--depth", type=click.IntRange(1), help="How many a zone holds when a file of 0 and 1 says 1.")
@click.option("--prices", type=click.Path(path_type=Path), help="CSV: t_s, then the Spot price in each zone.")
@click.option(
    "--od-price", type=click.FloatRange(0, min_open=True), help="On-Demand's, with --prices.  [default: lowest / 0.3]"
)
@click.option(
    "--od-ratio", type=click.FloatRange(0, min_open=True), help="On-Demand to Spot, without --prices.  [default: 3]"
)
@click.option("--units", type=click.IntRange(1), default=16, show_default=True, help="Needed; with --load the most.")
@click.option("--load", type=click.Path(path_type=Path), help="CSV: t_s, jobs that arrive then[, seconds of each].")
@click.option(
    "--job-seconds",
    type=click.FloatRange(0, min_open=True),
    default=10.0,
    show_default=True,
    help="One unit's, over a job.",
)
@click.option("--max-wait", type=click.FloatRange(0, min_open=True), help="Jobs are to be done so many seconds later.")
@click.option(
    "--launch",
    metavar="KIND|SECONDS[+SECONDS]",
    help=f"How instances start: {', '.join(KINDS)}; or seconds until they are ready, or until they join and after.",
)
@click.option("--launch-delay", type=click.FloatRange(0), help="Until On-Demand is ready.  [default: 180]")
@click.option("--spot-delay", type=click.FloatRange(0), help="Until Spot is ready.  [default: 180]")
@click.option("--notice", type=click.FloatRange(0), default=120.0, show_default=True, help="From a notice to the end.")
@click.option("--policy", multiple=True, help=f"Repeat it for more: {', '.join(POLICIES)}.  [default: all]")
@click.option(
    "--urgency",
    type=click.Choice([str(urgency) for urgency in Urgency]),
    help="Of the policy called shipped.  [default: as set]",
)
@click.option("--seed", type=int, default=7, show_default=True, help="Of the market, when no file is given.")
@click.option(
    "--days", type=click.FloatRange(0.1, 365), default=14.0, show_default=True, help="Of the market without a file."
)
@click.option("--json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Also write a report with plots.")
@click.pass_context
def replay(context: click.Context, /, settings: Path | None, **options: Any) -> None:
    """Live through a Spot market in virtual time, and say what each policy costs and how long it is short.

    To see what this product would have made of a market that somebody recorded:

        python build.py replay --availability FILE.csv --od-ratio 3 --html build/replay.html

    Without a file the market is made from statistics of real ones. In files t_s is seconds, and a value holds until the
    next row. Exit status: 0 done; 1 a bound was not found; 2 a file, the settings or the command line is wrong.
    """
    chosen = settings or getattr(context.find_root().obj, "settings", None) or Path("spindrift.toml")
    try:
        click.echo(run(Asked(settings=chosen, **options)))
    except (BadInput, BadSettings, NoPlan) as error:
        click.echo(str(error), err=True)
        context.exit(1 if isinstance(error, NoPlan) else 2)


def run(asked: Asked) -> str:
    """Do what was asked; return what to print. Raises BadInput, BadSettings or NoPlan."""
    names = _policies(asked)
    question = _question(asked)
    told = _told(asked, question)
    cost = on_demand_cost(question)
    if not cost:
        raise BadInput(f"{asked.load}: there is nothing to do while the trace lasts")
    answers = [answer(question, name, cost, diary=asked.html is not None) for name in names]
    if asked.html:
        try:
            asked.html.write_text(page(question, told, answers), "utf-8")
        except OSError as error:
            raise BadInput(f"--html {asked.html}: cannot be written: {error.strerror}") from error
    results = [each.result for each in answers]
    if asked.json:
        kind = KINDS.get(asked.launch or "")
        parts = {"launch": asdict(kind)} if kind else {}
        return json.dumps([result.plain(load=question.load is not None) | parts for result in results], indent=2)
    written = ["", str(asked.html)] if asked.html else []
    return "\n".join([told, "", table.text(results), *written])


def _policies(asked: Asked) -> list[str]:
    for name in asked.policy:
        if name not in POLICIES:
            near = get_close_matches(name, POLICIES, n=1)
            told = f"did you mean {near[0]}?" if near else f"there are {', '.join(POLICIES)}"
            raise BadInput(f"--policy {name}: there is no such policy; {told}")
    if asked.load and (bounds := [name for name in asked.policy if name in BOUNDS]):
        raise BadInput(f"--policy {bounds[0]}: a bound is known only for the same need at all times, not with --load")
    if asked.policy:
        return list(dict.fromkeys(asked.policy))
    left_out = {*SHIPPED, *(BOUNDS if asked.load else ())} - {"shipped"}
    if asked.max_wait is not None:
        left_out -= {"shipped-now", "shipped-deadline"}
    return [name for name in POLICIES if name not in left_out]


def _question(asked: Asked) -> Question:
    settings = Settings.load(asked.settings)
    available, market = _market(asked)
    jobs_per_unit = settings.queues[0].jobs_per_task if asked.load else 1
    load = read_load(asked.load, asked.job_seconds, available.start) if asked.load else None
    return Question(
        market=market,
        delays=_delays(asked),
        units=asked.units,
        shipped=as_set(
            settings,
            units=asked.units,
            jobs_per_unit=jobs_per_unit,
            urgency=Urgency(asked.urgency) if asked.urgency else None,
            max_wait=asked.max_wait,
        ),
        job_seconds=asked.job_seconds,
        load=tuple(load) if load is not None else None,
        jobs_per_unit=jobs_per_unit,
        max_wait=asked.max_wait,
    )


def delays_of(kind: Kind, notice: float) -> Delays:
    """The delays of a launch of which the parts are known."""
    return Delays(
        spot=kind.spot.seconds,
        on_demand=kind.on_demand.seconds,
        notice=notice,
        spot_starting=kind.spot.seconds - kind.spot.joins,
        on_demand_starting=kind.on_demand.seconds - kind.on_demand.joins,
    )


def _delays(asked: Asked) -> Delays:
    if asked.launch is None:
        spot, on_demand = (DELAY if delay is None else delay for delay in (asked.spot_delay, asked.launch_delay))
        return Delays(spot=spot, on_demand=on_demand, notice=asked.notice)
    if asked.launch_delay is not None or asked.spot_delay is not None:
        raise BadInput("--launch: not with --launch-delay or --spot-delay; it says both")
    if kind := KINDS.get(asked.launch):
        return delays_of(kind, asked.notice)
    joins, _, starting = asked.launch.partition("+")
    try:
        spans = float(joins), float(starting or 0)
    except ValueError:
        spans = (-1, -1)
    if not all(0 <= span < inf for span in spans):
        raise BadInput(
            f"--launch {asked.launch}: neither {', '.join(KINDS)} nor seconds from 0, or two of them as 70+118"
        )
    return Delays(
        spot=sum(spans),
        on_demand=sum(spans),
        notice=asked.notice,
        spot_starting=spans[1],
        on_demand_starting=spans[1],
    )


def _market(asked: Asked) -> tuple[Availability, Market]:
    if asked.prices and asked.od_ratio:
        raise BadInput("--od-ratio: not with --prices; --od-price says what On-Demand costs")
    if asked.od_price and not asked.prices:
        raise BadInput("--od-price: only with --prices; --od-ratio says what On-Demand costs")
    zones = [zone.strip() for zone in asked.zones.split(",")] if asked.zones else None
    if zones and (twice := [zone for zone in zones if zones.count(zone) > 1]):
        raise BadInput(f"--zones: {twice[0]} is there twice")
    if asked.availability:
        available = read_availability(asked.availability, zones, asked.depth)
    else:
        available = generated(asked.seed, asked.days, asked.depth or DEPTH, zones)
    if asked.prices:
        prices = read_prices(asked.prices, available.zones, available.start)
        on_demand = asked.od_price or lowest(asked.prices) / FLOOR
    else:
        prices, on_demand = [Price([(0.0, 1 / (asked.od_ratio or 3.0))])] * len(available.zones), 1.0
    return available, Market(
        zones=available.zones, available=available.rows, prices=prices, on_demand=on_demand, end=available.end
    )


def _told(asked: Asked, question: Question) -> str:
    """The question in a sentence."""
    market = question.market
    source = asked.availability.name if asked.availability else f"A generated market (seed {asked.seed})"
    need = f"at most {question.units} units for {asked.load.name}" if asked.load else f"{question.units} units always"
    price = (
        f"Spot at the prices of {asked.prices.name}, On-Demand at {market.on_demand:.4g}"
        if asked.prices
        else f"On-Demand at {asked.od_ratio or 3:g} times the price of Spot"
    )
    delays, kind = question.delays, KINDS.get(asked.launch or "")
    return (
        f"{source}: {len(market.zones)} zones, {market.end / 86_400:.1f} days; {need}; {price}; "
        f"Spot is ready after {_after(delays.spot, delays.spot_starting, kind.spot if kind else None)}, "
        f"On-Demand after {_after(delays.on_demand, delays.on_demand_starting, kind.on_demand if kind else None)}, "
        f"notice {delays.notice:g} s."
    )


def _after(seconds: float, starting: float, launch: Launch | None) -> str:
    """A delay, with its parts if they are known."""
    if launch is None:
        return f"{seconds:g} s" + (f" (joined after {seconds - starting:g})" if starting else "")
    return f"{seconds:.0f} s ({', '.join(f'{name} {part:.0f}' for name, part in asdict(launch).items())})"
