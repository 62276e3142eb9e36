"""What VPCs let through, and what still stands in them: routes, endpoints, security groups, network interfaces.

Only what decides whether an instance can work is played: TCP on one port, by routes to an internet or NAT gateway, by
VPC endpoints with private DNS, and by the rules of security groups. Network ACLs let everything pass.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from localcloud import substrate
from localcloud.instances import Instance, Instances
from localcloud.world import REGION

HTTPS, NFS = 443, 2049
ANYWHERE = "0.0.0.0/0"
INTERNET = "internet"
"""In place of a service's name: anything that has no endpoint, such as a public image registry."""
IN_ENDPOINT_NAMES = {"ecr": "ecr.api"}
"""A service's name in PrivateLink, where it is not the one that requests are signed for."""
Record = Mapping[str, Any]
Records = Callable[[str], Iterable[Record]]
"""The emulator's records of one kind, see substrate.records."""


@dataclass(frozen=True)
class Interface:
    """An elastic network interface: what keeps its subnet and its security groups from being deleted."""

    id: str
    subnet: str
    groups: tuple[str, ...]
    kind: str
    """EC2's word: interface, vpc_endpoint or efs."""
    description: str
    ip: str
    instance: str = ""
    """Whose it is; "" for AWS's own."""


@dataclass
class Endpoint:
    """One VPC endpoint."""

    id: str
    kind: str
    """Interface or Gateway."""
    service: str
    """Without com.amazonaws.<region>."""
    service_name: str
    vpc: str
    created: datetime
    tables: tuple[str, ...] = ()
    subnets: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    private_dns: bool = False
    policy: Record | None = None
    """None is full access."""
    interfaces: tuple[Interface, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)
    deleting: bool = False


@dataclass(frozen=True)
class Origin:
    """Where a connection starts."""

    subnet: str
    groups: tuple[str, ...]
    public: bool
    """Whether it has a public address."""

    @classmethod
    def of(cls, instance: Instance) -> Origin:
        """Where the instance is."""
        wanted = instance.blueprint.public_ip
        public = instance.subnet.public if wanted is None else wanted
        return cls(instance.subnet.id, instance.blueprint.security_groups, public)


class Network:
    """The account's VPCs. Never ask it with the world's lock held: it reads the emulator's records."""

    def __init__(self, instances: Instances, records: Records = substrate.records) -> None:
        self._instances = instances
        self._records = records
        self.endpoints: dict[str, Endpoint] = {}

    # Who can reach what

    def reaches(self, origin: Origin, service: str) -> bool:
        """Whether HTTPS to a service of AWS in this region gets anywhere."""
        vpc, table = self._place(origin.subnet)
        if (endpoint := self._private(vpc, service)) is not None:
            # Its name resolves to the endpoint in the whole VPC: there is no other way any more.
            return self.meets(origin, endpoint.groups, HTTPS, [one.ip for one in endpoint.interfaces])
        if not self._lets_out(origin.groups, HTTPS, [ANYWHERE], ()):
            return False
        gateways = [one.tables for one in self._of(vpc, "Gateway") if one.service == _name(service)]
        return any(table["RouteTableId"] in tables for tables in gateways) or self._outside(origin, table)

    def policy(self, origin: Origin, service: str) -> Record | None:
        """The policy of the endpoint that the way to a service leads through; None where nothing is limited."""
        vpc, table = self._place(origin.subnet)
        endpoint = self._private(vpc, service)
        for one in self._of(vpc, "Gateway"):
            if one.service == _name(service) and table["RouteTableId"] in one.tables:
                endpoint = endpoint or one
        return endpoint.policy if endpoint else None

    def meets(self, origin: Origin, groups: Sequence[str], port: int, addresses: Sequence[str]) -> bool:
        """Whether a connection within the VPC to members of `groups` at `addresses` is let out and in."""
        block = next(one["CidrBlock"] for one in self._records("subnet") if one["SubnetId"] == origin.subnet)
        comes_in = any(
            _opens(rule, port, [block], origin.groups)
            for group in self._groups(groups)
            for rule in group["IpPermissions"]
        )
        return comes_in and self._lets_out(origin.groups, port, addresses, groups)

    def _outside(self, origin: Origin, table: Record) -> bool:
        attached = {one["InternetGatewayId"] for one in self._records("internet-gateway") if one["Attachments"]}
        for route in table["Routes"]:
            if route.get("DestinationCidrBlock") == ANYWHERE:
                if route.get("NatGatewayId"):
                    return True
                return origin.public and route.get("GatewayId") in attached
        return False

    def _private(self, vpc: str, service: str) -> Endpoint | None:
        found = [one for one in self._of(vpc, "Interface") if one.service == _name(service) and one.private_dns]
        return found[0] if found else None

    def _of(self, vpc: str, kind: str) -> list[Endpoint]:
        return [one for one in list(self.endpoints.values()) if (one.vpc, one.kind) == (vpc, kind) and not one.deleting]

    def _place(self, subnet_id: str) -> tuple[str, Record]:
        """The subnet's VPC and route table."""
        vpc = next(one["VpcId"] for one in self._records("subnet") if one["SubnetId"] == subnet_id)
        tables = [one for one in self._records("route-table") if one["VpcId"] == vpc]
        own = [one for one in tables for link in one["Associations"] if link.get("SubnetId") == subnet_id]
        main = [one for one in tables for link in one["Associations"] if link.get("Main")]
        return vpc, [*own, *main][0]

    def _groups(self, ids: Sequence[str]) -> list[Record]:
        return [one for one in self._records("security-group") if one["GroupId"] in ids]

    def _lets_out(self, ids: Sequence[str], port: int, addresses: Sequence[str], targets: Sequence[str]) -> bool:
        rules = [rule for group in self._groups(ids) for rule in group["IpPermissionsEgress"]]
        return any(_opens(rule, port, addresses, targets) for rule in rules)

    # What is in the way of a deletion

    def interfaces(self) -> list[Interface]:
        """Every network interface of the account."""
        with self._instances.world.lock:
            alive = [one for one in self._instances.all() if one.state != "terminated"]
        own = [
            Interface(
                f"eni-{one.id[2:]}", one.subnet.id, one.blueprint.security_groups, "interface", "", one.ip, one.id
            )
            for one in alive
        ]
        ends = [interface for endpoint in list(self.endpoints.values()) for interface in endpoint.interfaces]
        mounts = [
            Interface(
                one["NetworkInterfaceId"],
                one["SubnetId"],
                tuple(one["SecurityGroups"]),
                "efs",
                f"EFS mount target for {one['FileSystemId']} ({one['MountTargetId']})",
                one["IpAddress"],
            )
            for one in self._records("mount-target")
        ]
        return [*own, *ends, *mounts]

    def guards(self) -> dict[str, Callable[[str], str | None]]:
        """By resource type: why the thing of that id cannot be deleted yet, in EC2's words, or None."""
        return {
            "AWS::EC2::Subnet": self._subnet_in_use,
            "AWS::EC2::SecurityGroup": self._group_in_use,
            "AWS::EC2::VPCGatewayAttachment": self._addresses_mapped,
            "AWS::EC2::InternetGateway": self._gateway_attached,
            "AWS::EC2::RouteTable": self._table_associated,
            "AWS::EC2::VPC": self._vpc_in_use,
        }

    def _subnet_in_use(self, subnet: str) -> str | None:
        return _dependent("subnet", subnet, [one.id for one in self.interfaces() if one.subnet == subnet])

    def _group_in_use(self, group: str) -> str | None:
        users = [one.id for one in self.interfaces() if group in one.groups]
        users += [
            other["GroupId"]
            for other in self._records("security-group")
            for rule in [*other["IpPermissions"], *other["IpPermissionsEgress"]]
            for pair in rule["UserIdGroupPairs"]
            if pair.get("GroupId") == group and other["GroupId"] != group
        ]
        return _dependent("resource", group, users)

    def _addresses_mapped(self, attachment: str) -> str | None:
        vpc = attachment.rsplit("|", 1)[-1]
        with self._instances.world.lock:
            alive = [one for one in self._instances.all() if one.living and one.subnet.vpc == vpc]
        if any(Origin.of(one).public for one in alive):
            return (
                f"DependencyViolation: Network {vpc} has some mapped public address(es). "
                "Please unmap those public address(es) before detaching the gateway."
            )
        return None

    def _gateway_attached(self, gateway: str) -> str | None:
        found = [one for one in self._records("internet-gateway") if one["InternetGatewayId"] == gateway]
        vpcs = [link["VpcId"] for one in found for link in one["Attachments"]]
        return _dependent("internetGateway", gateway, vpcs)

    def _table_associated(self, table: str) -> str | None:
        found = [one for one in self._records("route-table") if one["RouteTableId"] == table]
        return _dependent("routeTable", table, [link for one in found for link in one["Associations"]])

    def _vpc_in_use(self, vpc: str) -> str | None:
        ends = [one.id for one in list(self.endpoints.values()) if one.vpc == vpc]
        tables = [
            one["RouteTableId"]
            for one in self._records("route-table")
            if one["VpcId"] == vpc and not any(link.get("Main") for link in one["Associations"])
        ]
        return _dependent("vpc", vpc, [*ends, *tables])


class InstanceWay:
    """From one instance to AWS (host.Way)."""

    def __init__(self, network: Network, instance: Instance) -> None:
        self._network, self._origin = network, Origin.of(instance)

    def reaches(self, service: str) -> bool:
        """See Network.reaches."""
        return self._network.reaches(self._origin, service)

    def policy(self, service: str) -> Record | None:
        """See Network.policy."""
        return self._network.policy(self._origin, service)

    def meets(self, groups: Sequence[str], port: int, address: str) -> bool:
        """See Network.meets."""
        return self._network.meets(self._origin, groups, port, [address])


def _name(service: str) -> str:
    return IN_ENDPOINT_NAMES.get(service, service)


def _opens(rule: Record, port: int, blocks: Sequence[str], groups: Sequence[str]) -> bool:
    """Whether a security group's rule lets TCP on the port pass from or to all of `blocks`, or one of `groups`."""
    if rule["IpProtocol"] not in ("tcp", "6", "-1"):
        return False
    if rule["IpProtocol"] != "-1" and not int(rule.get("FromPort", 0)) <= port <= int(rule.get("ToPort", 65535)):
        return False
    if any(pair.get("GroupId") in groups for pair in rule["UserIdGroupPairs"]):
        return True
    ranges = [ipaddress.IPv4Network(one["CidrIp"]) for one in rule["IpRanges"]]
    inner = [ipaddress.IPv4Network(one) for one in blocks]
    return bool(inner) and all(any(one.subnet_of(whole) for whole in ranges) for one in inner)


def _dependent(kind: str, name: str, users: Sequence[Any]) -> str | None:
    if not users:
        return None
    verb = "has a dependent object" if kind == "resource" else "has dependencies and cannot be deleted"
    return f"DependencyViolation: {kind} {name} {verb}. ({', '.join(map(str, users[:3]))})"


def service_of(name: str) -> str:
    """`ecs-agent` of `com.amazonaws.us-east-1.ecs-agent`; "" when it is no service of the region."""
    prefix = f"com.amazonaws.{REGION}."
    return name.removeprefix(prefix) if name.startswith(prefix) else ""
