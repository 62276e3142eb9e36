"""Given subnets: are they where the settings say, and do instances get from them to what they call? Pure.

Not judged is what stands on the way: network ACLs, the security groups and policies of endpoints, and whatever is
behind a gateway that is neither to the internet nor NAT.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ops.findings import COULD_NOT_LOOK, OK, PROBLEM, Finding
from templates.network import ANYWHERE, ENDPOINTS, SESSION_ENDPOINTS
from templates.settings import Settings

CALLED: Mapping[str, frozenset[str]] = {
    "cluster": frozenset({*ENDPOINTS, "s3", "dynamodb"}),
    "image": frozenset({"ecr.api", "ecr.dkr", "imagebuilder", "logs", "s3", "ssm", "ssmmessages"}),
    "batch": frozenset({*ENDPOINTS, "s3"} - {"sns", "sqs"}),
}
"""What instances call by template, in PrivateLink's names. A build is led by Systems Manager, fetches its components
from Image Builder and the program that runs them from S3 (Image Builder User Guide, "Image Builder and AWS PrivateLink
interface VPC endpoints"; the managed policy EC2InstanceProfileForImageBuilder)."""
TARGETS = (
    *("GatewayId", "NatGatewayId", "TransitGatewayId", "NetworkInterfaceId", "VpcPeeringConnectionId"),
    *("LocalGatewayId", "CarrierGatewayId", "CoreNetworkArn"),
)
"""Where a route may lead (EC2 API reference, Route)."""


@dataclass(frozen=True, kw_only=True)
class Subnet:
    """A subnet, and what leads out of it."""

    id: str
    vpc: str
    zone: str
    public: bool
    """Whether its instances get public addresses."""
    way: str = ""
    """Where its route to everywhere leads: `igw-…`, `nat-…`; "" where there is none."""
    lost: bool = False
    """Whether that has gone."""
    endpoints: frozenset[str] = frozenset()
    """Services that its instances reach by an endpoint."""


def described(
    subnets: Iterable[Mapping[str, Any]],
    tables: Collection[Mapping[str, Any]],
    endpoints: Collection[Mapping[str, Any]],
) -> dict[str, Subnet]:
    """Subnets by id, as EC2 describes them, the route tables and the endpoints of their VPCs."""
    return {one["SubnetId"]: _subnet(one, tables, endpoints) for one in subnets}


def _subnet(
    one: Mapping[str, Any], tables: Iterable[Mapping[str, Any]], endpoints: Iterable[Mapping[str, Any]]
) -> Subnet:
    table = _table(one, tables)
    out: Iterator[Mapping[str, Any]] = (
        route for route in table["Routes"] if route.get("DestinationCidrBlock") == ANYWHERE
    )
    route = next(out, {})
    serving = (
        each
        for each in endpoints
        if each["VpcId"] == one["VpcId"]
        and each["State"].lower() == "available"
        and (table["RouteTableId"] in each.get("RouteTableIds", ()) or each.get("PrivateDnsEnabled"))
    )
    return Subnet(
        id=one["SubnetId"],
        vpc=one["VpcId"],
        zone=one["AvailabilityZone"],
        public=one["MapPublicIpOnLaunch"],
        way=next((str(route[key]) for key in TARGETS if route.get(key)), ""),
        lost=route.get("State") == "blackhole",
        # com.amazonaws.REGION.ecr.api, in China with cn. before it.
        endpoints=frozenset(each["ServiceName"].partition("amazonaws.")[2].partition(".")[2] for each in serving),
    )


def _table(subnet: Mapping[str, Any], tables: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Its own route table, or else the main one of its VPC."""
    links = [(link, table) for table in tables if table["VpcId"] == subnet["VpcId"] for link in table["Associations"]]
    own = [table for link, table in links if link.get("SubnetId") == subnet["SubnetId"]]
    return [*own, *(table for link, table in links if link.get("Main"))][0]


def weigh_subnets(vpc: str, wanted: Sequence[str], there: Mapping[str, Subnet], one_each: bool = True) -> list[Finding]:
    """The subnets of a given VPC. `there`: those that exist. `one_each`: of a zone."""
    findings = []
    for name in wanted:
        if name not in there:
            findings.append(Finding(PROBLEM, f"{name} does not exist in this region", "correct network.subnet_ids"))
        elif there[name].vpc != vpc:
            what = f"{name} is in {there[name].vpc}, not in {vpc}"
            findings.append(Finding(PROBLEM, what, "correct network.subnet_ids"))
    places = [there[name].zone for name in wanted if name in there]
    for zone in sorted({place for place in places if one_each and places.count(place) > 1}):
        twice = ", ".join(name for name in wanted if name in there and there[name].zone == zone)
        what = f"{twice} are all in {zone}: a Spot Fleet takes one subnet of a zone"
        findings.append(Finding(PROBLEM, what, "keep one of them in network.subnet_ids"))
    return findings or [Finding(OK, f"subnets: {len(wanted)} of {vpc}, in {', '.join(sorted(set(places)))}")]


def called(settings: Settings, template: str) -> frozenset[str]:
    """The services that instances of these settings call."""
    sessions = SESSION_ENDPOINTS if settings.security.session_manager and template != "image" else ()
    return CALLED[template] | {*sessions}


def weigh_ways_out(subnets: Iterable[Subnet], services: Collection[str]) -> Iterator[Finding]:
    """Whether instances get to all these services: by the internet or, where there is an endpoint for each, without."""
    ways = []
    for one in subnets:
        lacking = ", ".join(sorted({*services} - one.endpoints))
        if not lacking:
            ways.append(f"{one.id} by endpoints")
        elif not one.way:
            what = f"{one.id} has no way out: no route to {ANYWHERE}, and no endpoint for {lacking}"
            do = "give it a route to a NAT gateway, or to an internet gateway and public addresses, or these endpoints"
            yield Finding(PROBLEM, what, do)
        elif one.lost:
            what = f"{one.id} has no way out: its route to {ANYWHERE} leads to {one.way}, which has gone"
            yield Finding(PROBLEM, what, "aws ec2 replace-route, to a gateway that is there")
        elif one.way.startswith("igw-") and not one.public:
            what = f"{one.id} has no way out: {one.way} serves public addresses, and its instances get none"
            do = f"aws ec2 modify-subnet-attribute --subnet-id {one.id} --map-public-ip-on-launch, or a NAT gateway"
            yield Finding(PROBLEM, what, do)
        elif one.way.startswith(("igw-", "nat-")):
            ways.append(f"{one.id} by {one.way}")
        else:
            what = f"way out of {one.id}: it leads through {one.way}, and what is behind that is not looked at"
            yield Finding(COULD_NOT_LOOK, what)
    if ways:
        yield Finding(OK, f"ways out: {', '.join(ways)}")
