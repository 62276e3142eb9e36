"""The Spot pools of a stack, those that the settings would have, and a list of types to choose.

The rules and the questions are the market Lambda's own, so that what is shown before a deployment is what holds after.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from statistics import fmean
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from ops.account import Account, NoSuchStack, code, plain, told
from ops.text import table
from ops.zones import first
from templates.instance_types import INSTANCE_TYPES
from templates.market import types
from templates.settings import Settings

sys.path.append(str(Path(__file__).resolve().parent.parent / "lambdas"))

from market import prices
from market.cloud import FEWEST_TYPES, list_price, placement_scores, spot_prices
from market.prices import Price
from market.worth import Look, Pool, judge

MOST_TYPES = 8
"""In a proposal: with three zones that is 24 pools, and more hardly spread the risk further."""
FEWEST_PROPOSED = 3
LEFT_BEHIND_SECONDS = 3600
UNKNOWN = "-"


class NothingFits(Exception):
    """No type that we know has what is wanted, or none of them is offered there."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One pool, as a person reads it. Prices in US dollars an hour of an instance; None is not known."""

    pool: str
    spot: float | None
    on_demand: float | None
    score: int | None
    taken: int | None
    """How often EC2 took an instance of ours there, of the last twenty times; None where there is no history."""
    state: str
    why: str

    @property
    def cells(self) -> tuple[str, ...]:
        """What stands in the columns of COLUMNS."""
        saving = f"{1 - self.spot / self.on_demand:.0%}" if self.spot is not None and self.on_demand else UNKNOWN
        money = (UNKNOWN if usd is None else f"{usd:.4f}" for usd in (self.spot, self.on_demand))
        counts = (UNKNOWN if count is None else str(count) for count in (self.score, self.taken))
        return self.pool, *money, saving, *counts, self.state, self.why


COLUMNS = ("pool", "spot", "on-demand", "saving", "score", "taken", "state", "why")
NUMBERS = range(1, 6)
"""The places of those that are numbers."""


@dataclass(frozen=True)
class Report:
    """The lines, and what is to be known beside them."""

    lines: Sequence[Line]
    notes: Sequence[str]

    def text(self) -> Iterator[str]:
        """As it is printed."""
        yield from table([COLUMNS, *(line.cells for line in self.lines)], NUMBERS)
        yield ""
        yield from self.notes


@dataclass
class _Market:
    """What the market asks, of some types in some zones."""

    spot: dict[Pool, float]
    on_demand: dict[str, Price | None]
    notes: list[str] = field(default_factory=list)


def of_stack(account: Account, stack: str) -> Report:
    """The table that the stack's market Lambda keeps. Raises NoSuchStack, ClientError or BotoCoreError."""
    try:
        found = account.client("cloudformation").describe_stack_resource(
            StackName=stack, LogicalResourceId="PoolsTable"
        )
    except ClientError as error:
        if code(error) != "ValidationError":
            raise
        raise NoSuchStack(f"stack {stack} has no table of pools in {account.region}: {told(error)}") from error
    items = account.all("dynamodb", "scan", "Items", TableName=found["StackResourceDetail"]["PhysicalResourceId"])
    items = sorted(map(plain, items), key=lambda item: str(item["pool"]))
    seen = max((int(item["seen_at"]) for item in items if "seen_at" in item), default=None)
    if seen is None:
        return Report(
            [_remembered(item) for item in items], ["the market Lambda has not looked yet: it does each five minutes"]
        )
    # What a change of the settings left behind is not looked at any more; the rest is, one after the other. What is
    # bought On-Demand alone has a price and no state.
    items = [item for item in items if "state" in item and seen - int(item.get("seen_at", 0)) < LEFT_BEHIND_SECONDS]
    sources = sorted({str(item["on_demand_from"]) for item in items if "on_demand_from" in item})
    count = sum(item["state"] == "open" for item in items)
    return Report(
        [_remembered(item) for item in items],
        [
            f"{count} of {len(items)} pools are open, seen at {datetime.fromtimestamp(seen, UTC):%Y-%m-%d %H:%M} UTC",
            _sources(sources),
        ],
    )


def of_settings(account: Account, settings: Settings, now: datetime) -> Report:
    """What the settings would have, asked of the market now. Raises ClientError or BotoCoreError."""
    names, zones = types(settings), _zones(account, settings)
    market = _ask(account, names, [*zones], now)
    scores: dict[str, int] = {}
    if len(names) >= FEWEST_TYPES:
        try:
            scores = placement_scores(account.client("ec2"), names, settings.compute.max_units, str(account.region))
        except (BotoCoreError, ClientError) as error:
            market.notes.append(f"no placement scores: {told(error)}")
    looks = [
        Look(
            pool=Pool(name, zone),
            spot_usd=market.spot.get(Pool(name, zone)),
            on_demand_usd=price.usd if (price := market.on_demand[name]) else None,
            score=scores.get(zone_id),
        )
        for name in names
        for zone, zone_id in zones.items()
    ]
    verdicts = judge(looks, now)
    lines = [
        Line(
            pool=str(look.pool),
            spot=look.spot_usd,
            on_demand=look.on_demand_usd,
            score=look.score,
            taken=None,
            state=verdicts[look.pool].state,
            why=verdicts[look.pool].why,
        )
        for look in looks
    ]
    sources = sorted({price.source for price in market.on_demand.values() if price})
    notes = [f"{len(lines)} pools of the settings, as the market in {account.region} is now", _sources(sources)]
    return Report(lines, [*notes, *market.notes])


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What every instance of a proposal has, and in how many zones."""

    gpus: int
    memory_gib: float
    """For each GPU."""
    zones: int


@dataclass(frozen=True)
class _Candidate:
    name: str
    spot: float
    zones: int
    on_demand: float | None

    @property
    def family(self) -> str:
        return self.name.partition(".")[0]


def propose(account: Account, wanted: Wanted, now: datetime) -> str:
    """A diversified list of types as TOML for the settings. Raises NothingFits, ClientError or BotoCoreError.

    Of each family the cheapest first, then of each the next: the GPU decides what the market does, the size hardly.
    Nothing is in it that costs more on Spot than the cheapest of all does On-Demand.
    """
    fitting = [
        name
        for name, size in INSTANCE_TYPES.items()
        if size.gpus == wanted.gpus
        and size.memory_mib >= wanted.memory_gib * 1024 * size.gpus
        and not name.endswith(".metal")
    ]
    if not fitting:
        raise NothingFits(f"no type that we know has {wanted.gpus} GPUs and {wanted.memory_gib:g} GiB for each")
    zones = [*first(account, wanted.zones)]
    market = _ask(account, fitting, zones, now)
    candidates = sorted(_offered(fitting, zones, market), key=lambda one: (one.spot, one.name))
    if not candidates:
        raise NothingFits(f"none of {', '.join(fitting)} has a Spot price in {', '.join(zones)}")
    bought = sorted((one for one in candidates if one.on_demand), key=lambda one: one.on_demand or 0.0)
    limit = (bought[0].on_demand if bought else None) or float("inf")
    cheap = [one for one in candidates if one.spot < limit]
    chosen = _spread(cheap if len(cheap) >= FEWEST_PROPOSED else candidates[:FEWEST_PROPOSED])[:MOST_TYPES]
    lines = [
        f"# {len(chosen)} types, {sum(one.zones for one in chosen)} pools in {', '.join(zones)}.",
        f"# US dollars an hour of an instance at {now:%Y-%m-%d %H:%M} UTC, Spot on average of the hour before.",
        *(f"# {note}" for note in market.notes),
        "",
        "[network]",
        f"zones = {len(zones)}",
        "",
        "[compute]",
        "instance_types = [",
        *(f"    {_quoted(one)}  # {_money(one)}" for one in chosen),
        "]",
    ]
    if bought:
        lines += ["", "[on_demand]", f"instance_types = [{', '.join(f'{one.name!r}' for one in bought[:2])}]"]
        # Less than an instance cannot be bought.
        lines += [f"max_units = {wanted.gpus}"] if wanted.gpus > 4 else []
    return "\n".join(lines).replace("'", '"') + "\n"


def _offered(names: Iterable[str], zones: Sequence[str], market: _Market) -> Iterator[_Candidate]:
    """Those that EC2 has a Spot price for, with the mean of their zones."""
    for name in names:
        found = [market.spot[pool] for pool in (Pool(name, zone) for zone in zones) if pool in market.spot]
        price = market.on_demand[name]
        if found:
            yield _Candidate(name, fmean(found), len(found), price.usd if price else None)


def _spread(candidates: Sequence[_Candidate]) -> list[_Candidate]:
    """In turns, one of each family; each in the order given."""
    families: dict[str, list[_Candidate]] = defaultdict(list)
    for one in candidates:
        families[one.family].append(one)
    longest = max(len(of_one) for of_one in families.values())
    return [of_one[turn] for turn in range(longest) for of_one in families.values() if turn < len(of_one)]


def _quoted(one: _Candidate) -> str:
    return f'"{one.name}",'.ljust(17)


def _money(one: _Candidate) -> str:
    less = f", On-Demand {one.on_demand:.4f}: {1 - one.spot / one.on_demand:.0%} less" if one.on_demand else ""
    return f"{one.spot:.4f} in {one.zones} zone{'s' if one.zones > 1 else ''}{less}"


def _sources(told_by: Sequence[str]) -> str:
    return f"On-Demand by {' and '.join(told_by)}" if told_by else "On-Demand is not known"


def _ask(account: Account, names: Sequence[str], zones: Sequence[str], now: datetime) -> _Market:
    region = str(account.region)
    spot = spot_prices(account.client("ec2"), names, zones, now)
    market = _Market(spot, {name: prices.tabled(name, region) for name in names})
    where = prices.endpoint(region)
    try:
        for name in names if where else ():
            market.on_demand[name] = (
                list_price(account.client("pricing", where), name, region) or market.on_demand[name]
            )
    except (BotoCoreError, ClientError, prices.Unreadable) as error:
        why = str(error) if isinstance(error, prices.Unreadable) else told(error)
        market.notes.append(f"On-Demand prices are those of {prices.table_date()}, for the price list says {why}")
    return market


def _zones(account: Account, settings: Settings) -> dict[str, str]:
    """Name and id of the zones where the settings have subnets, or will have them."""
    if settings.network.subnet_ids:
        found = account.client("ec2").describe_subnets(SubnetIds=list(settings.network.subnet_ids))["Subnets"]
        return dict(sorted((one["AvailabilityZone"], one["AvailabilityZoneId"]) for one in found))
    return first(account, settings.network.zones)


def _remembered(item: dict[str, Any]) -> Line:
    return Line(
        pool=str(item["pool"]),
        spot=_float(item.get("spot_usd")),
        on_demand=_float(item.get("on_demand_usd")),
        score=int(item["score"]) if "score" in item else None,
        taken=len(item.get("taken", ())),
        state=str(item.get("state", UNKNOWN)),
        why=str(item.get("why", "not looked at yet")),
    )


def _float(number: Decimal | None) -> float | None:
    return None if number is None else float(number)
