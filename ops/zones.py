"""The zones of the subnets that a template makes: CloudFormation takes the first ones of the region."""

from __future__ import annotations

from ops.account import Account
from templates.network import USUAL_ZONES, ZONES


def made(account: Account, wanted: int) -> int:
    """How many subnets the template makes, of so many wanted: what every account has in this region."""
    return min(wanted, ZONES.get(account.region or "", USUAL_ZONES))


def first(account: Account, wanted: int) -> dict[str, str]:
    """Name and id of the zones that they will be in, fewer where fewer can be used.

    Raises ClientError or BotoCoreError.
    """
    found = account.client("ec2").describe_availability_zones()["AvailabilityZones"]
    usable = sorted(
        (one["ZoneName"], one["ZoneId"])
        for one in found
        if one["State"] == "available" and one.get("ZoneType", "availability-zone") == "availability-zone"
    )
    return dict(usable[: made(account, wanted)])
