"""What instances cost On-Demand: as AWS's price list tells it, or a dated table where nobody can ask. Pure."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("prices.toml")
PRICE_LIST = "the price list"


class Unreadable(ValueError):
    """The price list's answer is not what its user guide says."""


@dataclass(frozen=True)
class Price:
    """US dollars an hour (CNY in China, as Spot prices are there), and who says so."""

    usd: float
    source: str


def endpoint(region: str) -> str | None:
    """The region whose price list tells of `region`; None where its partition has none (GovCloud).

    botocore's endpoints of `api.pricing`: ap-south-1, eu-central-1, us-east-1, and cn-northwest-1 in China.
    """
    if region.startswith("us-gov-"):
        return None
    near = {"ap": "ap-south-1", "cn": "cn-northwest-1"}
    near |= dict.fromkeys(("af", "eu", "il", "me"), "eu-central-1")
    return near.get(region.partition("-")[0], "us-east-1")


def filters(instance_type: str, region: str) -> list[dict[str, str]]:
    """What to ask GetProducts of AmazonEC2 for one type: Linux, on shared hardware, with nothing installed."""
    wanted = {
        "instanceType": instance_type,
        "regionCode": region,
        "operatingSystem": "Linux",
        "tenancy": "Shared",
        "preInstalledSw": "NA",
        "capacitystatus": "Used",
    }
    return [{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in wanted.items()]


def told(products: Iterable[str]) -> float | None:
    """The price an hour in GetProducts' answer, each product a JSON text; None when none of them is On-Demand.

    A Capacity Block is listed like an instance, with no price of its own an hour. Raises Unreadable.
    """
    try:
        prices = [
            float(amount)
            for product in map(json.loads, products)
            if product["product"]["attributes"].get("marketoption", "OnDemand") == "OnDemand"
            for term in product["terms"].get("OnDemand", {}).values()
            for dimension in term["priceDimensions"].values()
            if dimension["unit"] == "Hrs"
            for amount in dimension["pricePerUnit"].values()
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unreadable(f"{type(error).__name__}: {error}") from error
    return min((price for price in prices if price > 0), default=None)


def tabled(instance_type: str, region: str) -> Price | None:
    """The price in our own table, None for a type or a region that it does not know."""
    table = _table()
    here = table["times"].get(instance_type.partition(".")[0], {}).get(region)
    there = table["us-east-1"].get(instance_type)
    if here is None or there is None:
        return None
    return Price(round(there * here, 4), f"the table of {table_date()}")


def table_date() -> date:
    """When our own table was right."""
    when: date = _table()["date"]
    return when


@cache
def _table() -> Mapping[str, Any]:
    return tomllib.loads(TABLE.read_text("utf-8"))
