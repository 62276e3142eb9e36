"""The only AWS of this Lambda: look at the market and the table, remember, offer the fleet its pools."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Protocol

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from market import prices
from market.prices import Price
from market.settings import Settings
from market.worth import Look, Pool, State, Verdict, average

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client
    from mypy_boto3_ec2.type_defs import LaunchTemplateOverridesTypeDef

PAST = timedelta(hours=1)
ASK_AGAIN = timedelta(hours=6)
"""After which what hardly changes, and what EC2 lets us ask seldom, is asked again."""
LINUX = "Linux/UNIX"
OF_SPOT = ("spot_usd", "score", "scored_at", "state", "until", "why")
"""What the row of a Spot pool says beside its price On-Demand."""
FEWEST_TYPES = 3
"""With fewer the placement score is always low (API reference, GetSpotPlacementScores)."""


class CouldNotLook(Exception):
    """The market or the table is not known, so nothing may be decided."""


class CouldNotApply(Exception):
    """The table or the fleet did not take what was decided; the next pass decides anew."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One pool as it is now: what the judgement needs, and when what is asked seldom was asked."""

    look: Look
    on_demand: Price | None
    on_demand_at: datetime
    scored_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A type in a zone where it is bought On-Demand alone: no Spot pool of ours, but a worker asks what it costs."""

    place: Pool
    on_demand: Price | None
    on_demand_at: datetime


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Every pool of ours, what else is bought, and what could not be asked."""

    rows: list[Row]
    listed: list[Listed]
    unknown: list[str]


class Cloud(Protocol):
    """What a pass needs of the world."""

    def look(self, now: datetime) -> Seen:
        """Look at the market and the table, or raise CouldNotLook."""

    def remember(self, seen: Seen, verdicts: Mapping[Pool, Verdict], now: datetime) -> None:
        """Write the table, or raise CouldNotApply."""

    def offer(self, pools: Collection[Pool]) -> str:
        """Have the fleet launch in these pools only; say what was done. Raises CouldNotApply."""


def spot_prices(ec2: EC2Client, kinds: Sequence[str], zones: Sequence[str], now: datetime) -> dict[Pool, float]:
    """The average of the past hour by pool, of those that have a price. Raises ClientError or BotoCoreError.

    Only changes are listed, and the last one before the hour.
    """
    pages = ec2.get_paginator("describe_spot_price_history").paginate(
        StartTime=now - PAST,
        EndTime=now,
        InstanceTypes=kinds,  # type: ignore[arg-type] # the stubs list the types that they know
        ProductDescriptions=[LINUX],
        Filters=[{"Name": "availability-zone", "Values": zones}],
    )
    changes: dict[Pool, list[tuple[datetime, float]]] = defaultdict(list)
    for page in pages:
        for one in page["SpotPriceHistory"]:
            pool = Pool(one["InstanceType"], one["AvailabilityZone"])
            changes[pool].append((one["Timestamp"], float(one["SpotPrice"])))
    averages = {pool: average(found, now - PAST, now) for pool, found in changes.items()}
    return {pool: price for pool, price in averages.items() if price is not None}


def list_price(pricing: Any, kind: str, region: str) -> Price | None:
    """What the price list says of a type, None when nothing. Raises ClientError, BotoCoreError or prices.Unreadable."""
    pages = pricing.get_paginator("get_products").paginate(
        ServiceCode="AmazonEC2", FormatVersion="aws_v1", Filters=prices.filters(kind, region)
    )
    usd = prices.told(text for page in pages for text in page["PriceList"])
    return Price(usd, prices.PRICE_LIST) if usd else None


def placement_scores(ec2: EC2Client, kinds: Sequence[str], instances: int, region: str) -> dict[str, int]:
    """By id of zone, how likely it can give so many instances of these types. Raises ClientError or BotoCoreError."""
    pages = ec2.get_paginator("get_spot_placement_scores").paginate(
        InstanceTypes=kinds, TargetCapacity=instances, SingleAvailabilityZone=True, RegionNames=[region]
    )
    return {one["AvailabilityZoneId"]: one["Score"] for page in pages for one in page["SpotPlacementScores"]}


class Aws:
    """The Cloud that is AWS."""

    def __init__(self, session: boto3.Session, settings: Settings) -> None:
        config = Config(connect_timeout=2, read_timeout=10, retries={"mode": "standard", "max_attempts": 3})
        self._settings = settings
        self._ec2 = session.client("ec2", config=config)
        self._table = session.resource("dynamodb", config=config).Table(settings.table)
        where = prices.endpoint(settings.region)
        self._pricing: Any = session.client("pricing", region_name=where, config=config) if where else None
        self._zones: dict[str, tuple[str, str]] = {}

    def look(self, now: datetime) -> Seen:
        """Every pool: what the table remembers, with the past hour's prices, and what is due to be asked again."""
        with _as(CouldNotLook):
            zones = self._where()
            names = sorted({zone for zone, _ in zones.values()})
            remembered = self._remembered()
            spot = spot_prices(self._ec2, [*self._settings.types], names, now)
        unknown: list[str] = []
        on_demand = self._on_demand(remembered, now, unknown)
        scores, scored = self._scores(remembered, dict(zones.values()), now, unknown)
        rows = []
        for pool in (Pool(kind, zone) for kind in self._settings.types for zone in names):
            item = remembered.get(pool, {})
            price, asked = on_demand[pool.type]
            rows.append(
                Row(
                    look=Look(
                        pool=pool,
                        spot_usd=spot.get(pool),
                        on_demand_usd=price.usd if price else None,
                        score=scores.get(pool.zone, _number(item.get("score"))),
                        taken=tuple(datetime.fromtimestamp(int(moment), UTC) for moment in item.get("taken", ())),
                        state=_state(item.get("state")),
                    ),
                    on_demand=price,
                    on_demand_at=asked,
                    scored_at=scored or _moment(item.get("scored_at")),
                )
            )
        listed = [
            Listed(place=Pool(kind, zone), on_demand=on_demand[kind][0], on_demand_at=on_demand[kind][1])
            for kind in self._settings.listed
            for zone in names
        ]
        return Seen(rows=rows, listed=listed, unknown=unknown)

    def remember(self, seen: Seen, verdicts: Mapping[Pool, Verdict], now: datetime) -> None:
        """Write what is known and decided, one update a pool: `taken` is the capacity Lambda's and stays as it is.

        What is bought On-Demand alone has no state, nor anything else of Spot, which it may have had once.
        """
        for row in seen.rows:
            look, verdict = row.look, verdicts[row.look.pool]
            self._write(
                look.pool,
                _price(row, now),
                spot_usd=_decimal(look.spot_usd),
                score=look.score,
                scored_at=_epoch(row.scored_at),
                state=str(verdict.state),
                until=_epoch(verdict.until),
                why=verdict.why,
            )
        for one in seen.listed:
            self._write(one.place, _price(one, now))

    def _write(self, pool: Pool, price: Mapping[str, Any], **of_spot: Any) -> None:
        values = {**price, **dict.fromkeys(OF_SPOT), **of_spot}
        known = {name: value for name, value in values.items() if value is not None}
        changes = "SET " + ", ".join(f"#{name} = :{name}" for name in known)
        if gone := [f"#{name}" for name in values if name not in known]:
            changes += " REMOVE " + ", ".join(gone)
        with _as(CouldNotApply):
            self._table.update_item(
                Key={"pool": str(pool)},
                UpdateExpression=changes,
                ExpressionAttributeNames={f"#{name}": name for name in values},
                ExpressionAttributeValues={f":{name}": value for name, value in known.items()},
            )

    def offer(self, pools: Collection[Pool]) -> str:
        """Have the fleet launch in these pools only, and say what was done.

        The launch template is in the version that the fleet has now: an update of the stack may have brought another.
        No target is given, so that the capacity Lambda's stays; instances that run in other pools run on.
        """
        if self._settings.fleet is None:
            return "pools are only observed"
        with _as(CouldNotApply):
            reply = self._ec2.describe_spot_fleet_requests(SpotFleetRequestIds=[self._settings.fleet])
            has = reply["SpotFleetRequestConfigs"][0]["SpotFleetRequestConfig"]["LaunchTemplateConfigs"][0]
            wanted = self._overrides(pools)
            if _places(has["Overrides"]) == _places(wanted):
                return "the fleet has them already"
            template = has["LaunchTemplateSpecification"]
            if "LaunchTemplateId" in template:
                template.pop("LaunchTemplateName", None)  # EC2 takes one of the two
            try:
                self._ec2.modify_spot_fleet_request(
                    SpotFleetRequestId=self._settings.fleet,
                    LaunchTemplateConfigs=[{"LaunchTemplateSpecification": template, "Overrides": wanted}],
                    ExcessCapacityTerminationPolicy="noTermination",
                )
            except ClientError as error:
                if error.response["Error"]["Code"] != "FleetNotInModifiableState":
                    raise
                return "the fleet still works on its last change: put off"
        return f"the fleet may launch in {len(pools)} pools now"

    def _where(self) -> dict[str, tuple[str, str]]:
        """Name and id of the zone by subnet; asked once, for a subnet never moves."""
        if not self._zones:
            found = self._ec2.describe_subnets(SubnetIds=list(self._settings.subnets))["Subnets"]
            self._zones = {one["SubnetId"]: (one["AvailabilityZone"], one["AvailabilityZoneId"]) for one in found}
        return self._zones

    def _remembered(self) -> dict[Pool, Mapping[str, Any]]:
        """The table, by pool. DynamoDB gives a megabyte at a time."""
        reply = self._table.scan()
        items: list[Any] = reply["Items"]
        while start := reply.get("LastEvaluatedKey"):
            reply = self._table.scan(ExclusiveStartKey=start)
            items += reply["Items"]
        return {Pool(*str(item["pool"]).split("/")): item for item in items}

    def _on_demand(
        self, remembered: Mapping[Pool, Mapping[str, Any]], now: datetime, unknown: list[str]
    ) -> dict[str, tuple[Price | None, datetime]]:
        """By type: the price as it was told last, asked again when that is old; and when it was asked."""
        known: dict[str, tuple[Price | None, datetime]] = {}
        for pool, item in remembered.items():
            asked = _moment(item.get("on_demand_at"))
            if asked and now - asked < ASK_AGAIN and (pool.type not in known or known[pool.type][1] < asked):
                usd = item.get("on_demand_usd")
                known[pool.type] = (Price(float(usd), str(item.get("on_demand_from"))) if usd else None, asked)
        refused = ""
        for kind in (*self._settings.types, *self._settings.listed):
            if kind not in known:
                price: Price | None = None
                try:
                    price = None if refused else self._listed(kind)
                except (ClientError, BotoCoreError, prices.Unreadable) as error:
                    # One refusal is enough: without the permission, or the network, the others fail as well.
                    refused = f"{type(error).__name__}: {error}"
                known[kind] = (price or prices.tabled(kind, self._settings.region), now)
        if refused:
            unknown.append(f"On-Demand prices are those of {prices.table_date()}, for the price list says {refused}")
        return known

    def _listed(self, kind: str) -> Price | None:
        return list_price(self._pricing, kind, self._settings.region) if self._pricing else None

    def _scores(
        self, remembered: Mapping[Pool, Mapping[str, Any]], zones: Mapping[str, str], now: datetime, unknown: list[str]
    ) -> tuple[dict[str, int | None], datetime | None]:
        """Placement scores by zone, and when they were asked for: None when they are not due.

        EC2 limits how many new questions it is asked in a day, and repeats an answer to an old one (EC2 User Guide,
        "Spot placement score", limitations): it is always the same question, and a failure waits as long as an answer.
        """
        kinds = [*self._settings.types]
        asked = [int(remembered.get(Pool(k, zone), {}).get("scored_at", 0)) for k in kinds for zone in zones]
        if len(kinds) < FEWEST_TYPES or now.timestamp() - min(asked) < ASK_AGAIN.total_seconds():
            return {}, None
        try:
            # In instances: so many of the largest are enough.
            instances = max(1, self._settings.max_units // max(self._settings.types.values()))
            scored = placement_scores(self._ec2, kinds, instances, self._settings.region)
        except (ClientError, BotoCoreError) as error:
            unknown.append(f"placement scores are as they were, for EC2 says {error}")
            return {}, now
        return {zone: scored.get(zone_id) for zone, zone_id in zones.items()}, now

    def _overrides(self, pools: Collection[Pool]) -> list[LaunchTemplateOverridesTypeDef]:
        """The template's overrides (templates/fleet.py), those in other pools left out."""
        chosen: list[LaunchTemplateOverridesTypeDef] = []
        for rank, (kind, units) in enumerate(self._settings.types.items()):
            for subnet, (zone, _) in self._where().items():
                if Pool(kind, zone) in pools:
                    override: Any = {"InstanceType": kind, "SubnetId": subnet, "WeightedCapacity": float(units)}
                    if self._settings.prioritized:
                        override["Priority"] = float(rank)
                    chosen.append(override)
        return chosen


def _price(of: Row | Listed, now: datetime) -> dict[str, Any]:
    """What a row says of every type: its price On-Demand, and when that was seen."""
    return {
        "on_demand_usd": _decimal(of.on_demand.usd if of.on_demand else None),
        "on_demand_from": of.on_demand.source if of.on_demand else None,
        "on_demand_at": _epoch(of.on_demand_at),
        "seen_at": _epoch(now),
    }


def _places(overrides: Sequence[Mapping[str, Any]]) -> set[tuple[str | None, str | None]]:
    return {(one.get("InstanceType"), one.get("SubnetId")) for one in overrides}


@contextmanager
def _as(kind: type[Exception]) -> Iterator[None]:
    """Translate what botocore raises, keeping the cause."""
    try:
        yield
    except (ClientError, BotoCoreError) as error:
        raise kind(str(error)) from error


def _state(value: object) -> State:
    """What an earlier version of the code may have written otherwise is open."""
    return State(str(value)) if value in [*State] else State.OPEN


def _number(value: Any) -> int | None:
    return None if value is None else int(value)


def _decimal(value: float | None) -> Decimal | None:
    return None if value is None else Decimal(f"{value:.6f}")


def _epoch(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())


def _moment(value: Any) -> datetime | None:
    return None if value is None else datetime.fromtimestamp(int(value), UTC)
