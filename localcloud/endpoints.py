"""VPC endpoints and the rules between security groups: CloudFormation's types, and EC2's calls that show them.

An interface endpoint has a network interface in each of its subnets until some seconds after its deletion. It is there
at once where AWS takes a minute or two: nothing is measured before a stack is complete.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from localcloud import listing, substrate
from localcloud.formation import NotPlayed, refuse_unplayed
from localcloud.network import Endpoint, Interface, Network, service_of
from localcloud.wire import Call, Fault, plays
from localcloud.world import ACCOUNT, World

if TYPE_CHECKING:
    from localcloud.instances import Instances

# ruff: noqa: ARG002 - the arguments of create, update and delete are formation.Resource's

GATEWAYS = {"s3", "dynamodb"}
INTERFACES = {
    *("autoscaling", "dynamodb", "ec2", "ec2messages", "ecr.api", "ecr.dkr", "ecs", "ecs-agent", "ecs-telemetry"),
    *("elasticfilesystem", "events", "kms", "lambda", "logs", "monitoring", "s3", "sns", "sqs", "ssm", "ssmmessages"),
    "sts",
}
"""Services of us-east-1 that have endpoints, as far as anything here could want them."""
RELEASE_SECONDS = 5.0
"""AWS's time until a deleted endpoint gives its network interfaces back."""


class NetworkCalls:
    """Operations of EC2 about endpoints and network interfaces. Part of `ec2.Ec2`."""

    world: World
    network: Network
    instances: Instances

    @plays("VpcEndpointIds", "Filters", "MaxResults", "NextToken")
    def describe_vpc_endpoints(self, call: Call) -> Mapping[str, Any]:
        """The endpoints."""
        chosen = list(self.network.endpoints.values())
        if ids := call.params.get("VpcEndpointIds"):
            if missing := sorted(set(ids) - self.network.endpoints.keys()):
                raise Fault("InvalidVpcEndpointId.NotFound", f"The Vpc Endpoint Id '{missing[0]}' does not exist")
            chosen = [one for one in chosen if one.id in ids]
        known = {
            "vpc-id": lambda one: [one.vpc],
            "service-name": lambda one: [one.service_name],
            "vpc-endpoint-type": lambda one: [one.kind],
        }
        chosen = listing.filtered(chosen, call.params.get("Filters", ()), known, lambda one: one.tags)
        shown, more = listing.page(chosen, call.params, 1000)
        return {"VpcEndpoints": [_described(one) for one in shown], **more}

    @plays("NetworkInterfaceIds", "Filters", "MaxResults", "NextToken")
    def describe_network_interfaces(self, call: Call) -> Mapping[str, Any]:
        """The network interfaces of instances, endpoints and mount targets."""
        subnets = {one["SubnetId"]: one for one in substrate.records("subnet")}
        wanted = call.params.get("NetworkInterfaceIds")
        chosen = [one for one in self.network.interfaces() if not wanted or one.id in wanted]
        known = {
            "network-interface-id": lambda one: [one.id],
            "vpc-id": lambda one: [subnets[one.subnet]["VpcId"]],
            "subnet-id": lambda one: [one.subnet],
            "group-id": lambda one: one.groups,
            "interface-type": lambda one: [one.kind],
            "description": lambda one: [one.description],
            "attachment.instance-id": lambda one: [one.instance] if one.instance else [],
            "status": lambda _: ["in-use"],
        }
        chosen = listing.filtered(chosen, call.params.get("Filters", ()), known, lambda _: {})
        shown, more = listing.page(chosen, call.params, 1000)
        return {"NetworkInterfaces": [_shown(one, subnets[one.subnet]) for one in shown], **more}

    @plays()
    def create_network_interface(self, call: Call) -> Mapping[str, Any]:
        """Refused: interfaces come with what needs them."""
        raise Fault("NotPlayed", f"the local cloud does not play {call.operation}")

    @plays()
    def create_vpc_endpoint(self, call: Call) -> Mapping[str, Any]:
        """Refused: endpoints come with CloudFormation here."""
        raise Fault("NotPlayed", f"the local cloud does not play {call.operation}")

    @plays("VpcEndpointIds")
    def delete_vpc_endpoints(self, call: Call) -> Mapping[str, Any]:
        """Delete endpoints; their interfaces go a little later."""
        for endpoint_id in call.params["VpcEndpointIds"]:
            if endpoint := self.network.endpoints.get(endpoint_id):
                endpoint.deleting = True
        return {"Unsuccessful": []}


class EndpointResource:
    """AWS::EC2::VPCEndpoint."""

    kind = "AWS::EC2::VPCEndpoint"
    _played = frozenset(
        {
            *("ServiceName", "VpcEndpointType", "VpcId", "RouteTableIds", "SubnetIds", "SecurityGroupIds"),
            *("PrivateDnsEnabled", "PolicyDocument", "Tags"),
        }
    )
    _fixed = ("ServiceName", "VpcEndpointType", "VpcId")

    def __init__(self, world: World, network: Network) -> None:
        self._world, self._network = world, network

    def create(self, logical_id: str, properties: dict[str, Any], stack: str) -> tuple[str, dict[str, Any]]:
        """Make it. Ref is its id."""
        refuse_unplayed(self.kind, properties, set(self._played), {})
        with self._world.lock:
            endpoint_id = "vpce-" + "".join(self._world.dice.choices("0123456789abcdef", k=17))
        endpoint = self._drawn(endpoint_id, properties)
        self._network.endpoints[endpoint_id] = endpoint
        return endpoint_id, _attributes(endpoint)

    def update(
        self, physical_id: str, old: dict[str, Any], new: dict[str, Any], stack: str
    ) -> tuple[str, dict[str, Any]]:
        """Change it in place; another service, type or VPC is another endpoint."""
        if any(old.get(name) != new.get(name) for name in self._fixed):
            return self.create("", new, stack)
        refuse_unplayed(self.kind, new, set(self._played), {})
        self._network.endpoints[physical_id] = self._drawn(physical_id, new)
        return physical_id, _attributes(self._network.endpoints[physical_id])

    def delete(self, physical_id: str, properties: dict[str, Any]) -> None:
        """Remove it, and return when its network interfaces are gone."""
        endpoint = self._network.endpoints.get(physical_id)
        if endpoint is None:
            return
        endpoint.deleting = True
        if endpoint.interfaces:
            time.sleep(self._world.scaled(RELEASE_SECONDS))
        del self._network.endpoints[physical_id]

    def _drawn(self, endpoint_id: str, properties: Mapping[str, Any]) -> Endpoint:
        kind, name, vpc = properties.get("VpcEndpointType", "Gateway"), properties["ServiceName"], properties["VpcId"]
        if service_of(name) not in {"Interface": INTERFACES, "Gateway": GATEWAYS}.get(kind, ()):
            raise Fault("InvalidServiceName", f"The Vpc Endpoint Service '{name}' does not exist as {kind}")
        endpoint = Endpoint(
            id=endpoint_id,
            kind=kind,
            service=service_of(name),
            service_name=name,
            vpc=vpc,
            created=self._world.now(),
            tables=tuple(properties.get("RouteTableIds", ())),
            subnets=tuple(properties.get("SubnetIds", ())),
            groups=tuple(properties.get("SecurityGroupIds", ())),
            private_dns=str(properties.get("PrivateDnsEnabled", False)).lower() == "true",
            policy=properties.get("PolicyDocument"),
            tags={tag["Key"]: tag["Value"] for tag in properties.get("Tags", ())},
        )
        if kind == "Interface":
            self._check_names(endpoint)
            endpoint.interfaces = self._interfaces(endpoint)
        elif not endpoint.tables:
            raise NotPlayed(f"{self.kind}: a gateway endpoint without RouteTableIds serves nobody")
        return endpoint

    def _check_names(self, endpoint: Endpoint) -> None:
        """Private DNS wants a VPC that resolves names, and the service's name for itself."""
        if not endpoint.private_dns:
            raise NotPlayed(f"{self.kind}: without PrivateDnsEnabled nobody here would know the endpoint's name")
        (vpc,) = [one for one in substrate.records("vpc") if one["VpcId"] == endpoint.vpc]
        # A VPC that is made has EnableDnsSupport, and not EnableDnsHostnames, unless told otherwise.
        if not (vpc.get("EnableDnsSupport", True) and vpc.get("EnableDnsHostnames", False)):
            message = "Enabling private DNS requires both enableDnsSupport and enableDnsHostnames VPC attributes"
            raise Fault("InvalidParameter", f"{message} set to true for {endpoint.vpc}")
        for other in self._network.endpoints.values():
            same = (other.vpc, other.service, other.kind) == (endpoint.vpc, endpoint.service, "Interface")
            if same and other.id != endpoint.id and not other.deleting:
                message = "private-dns-enabled cannot be set because there is already a conflicting DNS domain for"
                raise Fault("InvalidParameter", f"{message} {endpoint.service} in the VPC {endpoint.vpc}")

    def _interfaces(self, endpoint: Endpoint) -> tuple[Interface, ...]:
        subnets = {one["SubnetId"]: one for one in substrate.records("subnet") if one["VpcId"] == endpoint.vpc}
        groups = {one["GroupId"] for one in substrate.records("security-group") if one["VpcId"] == endpoint.vpc}
        if missing := [one for one in (*endpoint.subnets, *endpoint.groups) if one not in {*subnets, *groups}]:
            raise Fault("InvalidParameter", f"{', '.join(missing)} is not in the VPC {endpoint.vpc}")
        if not endpoint.subnets or not endpoint.groups:
            raise NotPlayed(f"{self.kind}: an interface endpoint here needs SubnetIds and SecurityGroupIds")
        zones = [subnets[one]["AvailabilityZone"] for one in endpoint.subnets]
        if len(set(zones)) != len(zones):
            raise Fault("DuplicateSubnetsInSameZone", "Found another VPC endpoint subnet in the availability zone")
        return tuple(
            Interface(
                f"eni-{endpoint.id[5:21]}{place}",
                subnet,
                endpoint.groups,
                "vpc_endpoint",
                f"VPC Endpoint Interface {endpoint.id}",
                _address(subnets[subnet]["CidrBlock"], endpoint.id),
            )
            for place, subnet in enumerate(endpoint.subnets)
        )


class RuleResource:
    """AWS::EC2::SecurityGroupIngress and AWS::EC2::SecurityGroupEgress: every change is another rule."""

    def __init__(self, direction: str) -> None:
        self._direction = direction
        self._kind = f"AWS::EC2::SecurityGroup{direction.capitalize()}"
        self._peer = "SourceSecurityGroupId" if direction == "ingress" else "DestinationSecurityGroupId"

    def create(self, logical_id: str, properties: dict[str, Any], stack: str) -> tuple[str, dict[str, Any]]:
        """Add the rule."""
        known = {"GroupId", "IpProtocol", "FromPort", "ToPort", "CidrIp", "Description", self._peer}
        refuse_unplayed(self._kind, properties, known, {})
        answer = self._ask("authorize", properties)
        rule_id = answer["SecurityGroupRules"][0]["SecurityGroupRuleId"]
        return rule_id, {"Id": rule_id}

    def update(
        self, physical_id: str, old: dict[str, Any], new: dict[str, Any], stack: str
    ) -> tuple[str, dict[str, Any]]:
        """Only its description can change in place, which nobody here reads."""
        if {**old, "Description": ""} == {**new, "Description": ""}:
            return physical_id, {"Id": physical_id}
        return self.create("", new, stack)

    def delete(self, physical_id: str, properties: dict[str, Any]) -> None:
        """Take the rule away, if its group is still there."""
        if any(one["GroupId"] == properties["GroupId"] for one in substrate.records("security-group")):
            self._ask("revoke", properties)

    def _ask(self, verb: str, properties: Mapping[str, Any]) -> Mapping[str, Any]:
        rule: dict[str, Any] = {"IpProtocol": str(properties["IpProtocol"])}
        described = {"Description": properties["Description"]} if "Description" in properties else {}
        rule |= {name: int(properties[name]) for name in ("FromPort", "ToPort") if name in properties}
        if "CidrIp" in properties:
            rule["IpRanges"] = [{"CidrIp": properties["CidrIp"], **described}]
        if self._peer in properties:
            rule["UserIdGroupPairs"] = [{"GroupId": properties[self._peer], **described}]
        operation = getattr(substrate.operator("ec2"), f"{verb}_security_group_{self._direction}")
        answer: Mapping[str, Any] = operation(GroupId=properties["GroupId"], IpPermissions=[rule])
        return answer


def _address(block: str, endpoint_id: str) -> str:
    """An address of the block, the same each time."""
    network = ipaddress.IPv4Network(block)
    return str(network[4 + int(endpoint_id[5:9], 16) % (network.num_addresses - 6)])


def _attributes(endpoint: Endpoint) -> dict[str, Any]:
    ids = [one.id for one in endpoint.interfaces]
    return {"Id": endpoint.id, "NetworkInterfaceIds": ids, "CreationTimestamp": endpoint.created.isoformat()}


def _described(one: Endpoint) -> dict[str, Any]:
    return {
        "VpcEndpointId": one.id,
        "VpcEndpointType": one.kind,
        "VpcId": one.vpc,
        "ServiceName": one.service_name,
        "State": "deleting" if one.deleting else "available",
        "RouteTableIds": list(one.tables),
        "SubnetIds": list(one.subnets),
        "Groups": [{"GroupId": group, "GroupName": group} for group in one.groups],
        "PrivateDnsEnabled": one.private_dns,
        "NetworkInterfaceIds": [interface.id for interface in one.interfaces],
        "CreationTimestamp": one.created,
        "OwnerId": ACCOUNT,
        "Tags": _tags(one.tags),
    }


def _shown(one: Interface, subnet: Mapping[str, Any]) -> dict[str, Any]:
    attachment = {"Status": "attached", **({"InstanceId": one.instance} if one.instance else {})}
    return {
        "NetworkInterfaceId": one.id,
        "SubnetId": one.subnet,
        "VpcId": subnet["VpcId"],
        "AvailabilityZone": subnet["AvailabilityZone"],
        "InterfaceType": one.kind,
        "Description": one.description,
        "OwnerId": ACCOUNT,
        "RequesterManaged": not one.instance,
        "Status": "in-use",
        "PrivateIpAddress": one.ip,
        "Groups": [{"GroupId": group, "GroupName": group} for group in one.groups],
        "Attachment": attachment,
    }


def _tags(tags: Mapping[str, str]) -> Sequence[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]
