"""What AWS tells of prices and of the market: EC2's Spot calls, and the price list."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from localcloud import catalog, listing
from localcloud.fleet import Fleets
from localcloud.instances import Instances
from localcloud.market import Pool
from localcloud.offerings import offered
from localcloud.wire import Call, Fault, Permission, Service, plays
from localcloud.world import REGION, ZONES, World

LINUX = "Linux/UNIX"
NEW_QUESTIONS_A_DAY = 10
"""Of GetSpotPlacementScores, before it answers old ones only. AWS names no number."""
FEWEST_TYPES = 3
LOW_SCORE = 3
ZONE_IDS = {zone: f"use1-az{number}" for number, zone in enumerate(ZONES, start=1)}
"""As the emulator's subnets have them. In every account of AWS they are others."""
PRICED_FIELDS = {"instanceType", "regionCode", "operatingSystem", "tenancy", "preInstalledSw", "capacitystatus"}


class PriceCalls:
    """Operations of EC2 about the Spot market. Part of `ec2.Ec2`."""

    world: World
    fleets: Fleets
    instances: Instances

    def __init__(self) -> None:
        self._questions: dict[str, datetime] = {}

    @plays(
        "InstanceTypes",
        "ProductDescriptions",
        "AvailabilityZone",
        "Filters",
        "StartTime",
        "EndTime",
        "MaxResults",
        "NextToken",
    )
    def describe_spot_price_history(self, call: Call) -> Mapping[str, Any]:
        """Price changes, newest first, with the last one before the start. The last page's token is empty."""
        now = self.world.now()
        start, end = call.params.get("StartTime", now), call.params.get("EndTime", now)
        start, end = (at if at.tzinfo else at.replace(tzinfo=UTC) for at in (start, end))
        kinds, zone = call.params.get("InstanceTypes"), call.params.get("AvailabilityZone")
        with self.world.lock:
            for pool in (Pool(kind, place) for kind, place in offered() if kind in (kinds or ())):
                self.fleets.price(pool)
            rows = [
                (at, pool, price)
                for pool in self.instances.market.pools()
                if (not kinds or pool.type in kinds) and zone in (None, "", pool.zone)
                for at, price in self.instances.market.history(pool, start, end)
            ]
        if not set(call.params.get("ProductDescriptions", [LINUX])) & {LINUX, "Linux/UNIX (Amazon VPC)"}:
            rows = []
        rows = listing.filtered(
            rows,
            call.params.get("Filters", ()),
            {
                "availability-zone": lambda row: [row[1].zone],
                "instance-type": lambda row: [row[1].type],
                "product-description": lambda _: [LINUX],
            },
            lambda _: {},
        )
        rows.sort(key=lambda row: row[0], reverse=True)
        shown, more = listing.page(rows, call.params, 1000)
        return {"SpotPriceHistory": [_priced(*row) for row in shown], "NextToken": "", **more}

    @plays("InstanceTypes", "TargetCapacity", "SingleAvailabilityZone", "RegionNames", "MaxResults", "NextToken")
    def get_spot_placement_scores(self, call: Call) -> Mapping[str, Any]:
        """How likely the region's zones can give so many instances of these types together, 1 to 10.

        Made of the market's free places, at twice the target the best: what AWS weighs nobody knows.
        """
        kinds, target = call.params.get("InstanceTypes") or [], call.params["TargetCapacity"]
        if not call.params.get("SingleAvailabilityZone") or call.params.get("RegionNames", [REGION]) != [REGION]:
            raise Fault("NotPlayed", f"the local cloud plays GetSpotPlacementScores of single zones of {REGION}")
        if unknown := sorted(set(kinds) - set(catalog.names())) or ([] if kinds else ["none"]):
            raise Fault("InvalidParameterValue", f"Invalid instance types: {', '.join(unknown)}")
        with self.world.lock:
            self._ask(json.dumps([sorted(kinds), target]))
            free = dict.fromkeys(ZONES, 0)
            for pool in (Pool(kind, zone) for kind, zone in offered() if kind in kinds):
                self.fleets.price(pool)
                free[pool.zone] += self.instances.market.free(pool)
        best = 10 if len(set(kinds)) >= FEWEST_TYPES else LOW_SCORE
        scores = [
            {
                "Region": REGION,
                "AvailabilityZoneId": ZONE_IDS[zone],
                "Score": max(1, min(best, round(5 * places / target))),
            }
            for zone, places in free.items()
        ]
        shown, more = listing.page(scores, call.params, 1000)
        return {"SpotPlacementScores": list(shown), **more}

    def _ask(self, question: str) -> None:
        now = self.world.now()
        day = timedelta(seconds=self.world.scaled(24 * 3600))
        self._questions = {asked: at for asked, at in self._questions.items() if now - at < day}
        if question not in self._questions and len(self._questions) >= NEW_QUESTIONS_A_DAY:
            raise Fault(
                "MaxConfigLimitExceeded",
                "You have exceeded your maximum allowed Spot placement configurations. You can retry configurations "
                "that you used within the last 24 hours, or wait for 24 hours before specifying a new configuration.",
            )
        self._questions[question] = now


class PriceList(Service):
    """The `pricing` service: what EC2 instances cost On-Demand, in the region that there is here."""

    name = "pricing"

    def permissions(self, call: Call) -> Iterable[Permission]:
        """Its actions know no resource (Service Authorization Reference)."""
        yield Permission(f"pricing:{call.operation}")

    @plays("ServiceCode", "Filters", "FormatVersion", "MaxResults", "NextToken")
    def get_products(self, call: Call) -> Mapping[str, Any]:
        """EC2's instance types, each with its terms, as JSON in JSON."""
        if call.params["ServiceCode"] != "AmazonEC2" or call.params.get("FormatVersion", "aws_v1") != "aws_v1":
            raise Fault("InvalidParameterException", "The local cloud knows AmazonEC2 in aws_v1.")
        wanted: dict[str, str] = {}
        for one in call.params.get("Filters", ()):
            if one["Type"] != "TERM_MATCH" or one["Field"] not in PRICED_FIELDS:
                raise Fault("NotPlayed", f"the local cloud does not play the filter {one}")
            wanted[one["Field"]] = one["Value"]
        products = [product for product in map(_product, catalog.names()) if wanted.items() <= product.items()]
        shown, more = listing.page(products, call.params, 100)
        return {"FormatVersion": "aws_v1", "PriceList": [_listed(product) for product in shown], **more}


def _priced(at: datetime, pool: Pool, price: float) -> dict[str, Any]:
    return {
        "AvailabilityZone": pool.zone,
        "AvailabilityZoneId": ZONE_IDS[pool.zone],
        "InstanceType": pool.type,
        "ProductDescription": LINUX,
        "SpotPrice": f"{price:.6f}",
        "Timestamp": at,
    }


def _product(name: str) -> dict[str, str]:
    return {
        "instanceType": name,
        "regionCode": REGION,
        "operatingSystem": "Linux",
        "tenancy": "Shared",
        "preInstalledSw": "NA",
        "capacitystatus": "Used",
        "marketoption": "OnDemand",
        "servicecode": "AmazonEC2",
    }


def _listed(attributes: Mapping[str, str]) -> str:
    """One product with its On-Demand term (Billing User Guide, "Reading the service price list file")."""
    sku = hashlib.sha256(attributes["instanceType"].encode()).hexdigest()[:16].upper()
    term, rate = f"{sku}.JRTCKXETXF", f"{sku}.JRTCKXETXF.6YS6EN2CT7"
    usd = f"{catalog.on_demand_usd(attributes['instanceType']):.10f}"
    dimension = {"unit": "Hrs", "beginRange": "0", "endRange": "Inf", "pricePerUnit": {"USD": usd}, "rateCode": rate}
    return json.dumps(
        {
            "product": {"productFamily": "Compute Instance", "sku": sku, "attributes": attributes},
            "serviceCode": "AmazonEC2",
            "terms": {"OnDemand": {term: {"sku": sku, "priceDimensions": {rate: dimension}, "termAttributes": {}}}},
        }
    )
