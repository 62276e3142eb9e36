"""Where instances live: subnets that nothing can enter, public or private, or a VPC that is given.

docs/decisions/0012-zones-and-private-subnets.md says why zones and endpoints are as they are.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from troposphere import Equals, GetAZs, If, Not, NoValue, Or, Ref, Select, Sub, Template, ec2

from templates.settings import Settings
from templates.tags import tags

ANYWHERE = "0.0.0.0/0"
NOWHERE = "127.0.0.1/32"
"""As a group's only egress rule it lets nothing out; without any, everything goes out (CloudFormation's reference of
AWS::EC2::SecurityGroup, "Remove default rule").
"""

USUAL_ZONES = 3
ZONES = {"cn-north-1": 2, "us-west-1": 2, "ap-northeast-2": 4, "us-west-2": 4, "us-east-1": 6}
"""How many zones every account has, where it is not three. Where sources differ, the lower number."""

ENDPOINTS = ("ecr.api", "ecr.dkr", "ecs", "ecs-agent", "ecs-telemetry", "logs", "sns", "sqs")
"""PrivateLink's names of the services that an instance, its ECS agent, ours and the workers call. KMS is not among
them: SQS, SNS, S3 and DynamoDB call it for their caller. Nor is EFS: its mount targets are in the VPC's own DNS.
"""
SESSION_ENDPOINTS = ("ssm", "ssmmessages")
"""Since SSM Agent 3.3.40.0 ec2messages is not called any more, and newer regions do not have it (Systems Manager User
Guide, "Reference: ec2messages, ssmmessages, and other API operations").
"""
FULL_ACCESS_ONLY = {"ecs-agent", "ecs-telemetry", "ssmmessages"}
"""Endpoints that are nowhere documented to take a policy. A policy on one that takes none fails the deployment."""
NAMED_OTHERWISE_IN_CHINA = {"ecr.api", "ecr.dkr", "sqs"}
"""There these begin with cn.com.amazonaws, the others with com.amazonaws as everywhere (aws-cdk-lib 2.276,
InterfaceVpcEndpointAwsService).
"""


@dataclass(frozen=True)
class Place:
    """A subnet to launch in."""

    subnet: Any
    zone: int
    """Its number among the places, from 1."""
    condition: str | None
    """Without which it does not exist; None where it always does."""

    def if_there(self, thing: Any) -> Any:
        """An item of a list, left out where this subnet does not exist."""
        return If(self.condition, thing, NoValue) if self.condition else thing

    @property
    def attributes(self) -> dict[str, str]:
        """For a resource that comes and goes with this subnet."""
        return {"Condition": self.condition} if self.condition else {}


@dataclass(frozen=True)
class Network:
    """What others need to know of it."""

    places: list[Place]
    security_group: Any
    ready: list[str]
    """Titles to depend on: before these an instance would boot without a way to AWS."""
    vpc: Any

    @property
    def subnets(self) -> list[Any]:
        """All subnets that exist, as VPCZoneIdentifier and SubnetIds take them."""
        return [place.if_there(place.subnet) for place in self.places]


def add(template: Template, settings: Settings) -> Network:
    """The VPC (unless one is given), the instances' security group and, if private, the endpoints."""
    chosen = settings.network
    ready: list[str] = []
    waits: list[Any] = []
    if chosen.vpc_id:
        vpc: Any = chosen.vpc_id
        places = [Place(subnet, zone, None) for zone, subnet in enumerate(chosen.subnet_ids, start=1)]
    else:
        vpc, routes = _vpc(template, settings)
        if not chosen.private:
            ready.append(_way_out(template, settings, vpc, routes))
        places = [_place(template, settings, vpc, zone) for zone in range(1, chosen.zones + 1)]
        for place in places:
            association = template.add_resource(
                ec2.SubnetRouteTableAssociation(
                    f"Subnet{place.zone}Routes",
                    SubnetId=place.subnet,
                    RouteTableId=Ref(routes),
                    **place.attributes,
                )
            )
            if place.condition:
                waits.append(If(place.condition, Ref(association), ""))
            else:
                ready.append(association.title)
    group = template.add_resource(
        ec2.SecurityGroup(
            "WorkerSecurityGroup",
            GroupDescription="Workers: nothing comes in, HTTPS goes out",
            VpcId=vpc,
            # The VPC's own resolver and clock are not subject to security groups, so HTTPS is all there is. In private
            # subnets it goes no further than to the endpoints: nothing else has a route.
            SecurityGroupEgress=[
                ec2.SecurityGroupRule(IpProtocol="tcp", FromPort=443, ToPort=443, CidrIp=ANYWHERE, Description="AWS")
            ],
            Tags=tags(settings),
            # DependsOn cannot be conditional, but a reference here can, and whatever launches needs this group.
            **({"Metadata": {"WaitsFor": waits}} if waits else {}),
        )
    )
    network = Network(places, Ref(group), ready, vpc)
    if chosen.private:
        return replace(network, ready=[*ready, *_endpoints(template, settings, network)])
    return network


def let_workers_in(
    template: Template, settings: Settings, network: Network, title: str, what: str, port: int
) -> ec2.SecurityGroup:
    """A security group for `what`: the workers come in on one TCP port, nothing goes out."""
    return template.add_resource(
        ec2.SecurityGroup(
            title,
            GroupDescription=f"{what}: workers come in on port {port}, nothing goes out",
            VpcId=network.vpc,
            SecurityGroupIngress=[
                ec2.SecurityGroupRule(
                    IpProtocol="tcp",
                    FromPort=port,
                    ToPort=port,
                    SourceSecurityGroupId=network.security_group,
                    Description="Workers",
                )
            ],
            SecurityGroupEgress=[ec2.SecurityGroupRule(IpProtocol="-1", CidrIp=NOWHERE, Description="Nothing")],
            Tags=tags(settings),
        )
    )


def _vpc(template: Template, settings: Settings) -> tuple[Any, ec2.RouteTable]:
    """The VPC and its one route table, with the gateway endpoints: they cost nothing, and uploads, results and image
    layers go through them.
    """
    vpc = template.add_resource(
        ec2.VPC(
            "Vpc",
            CidrBlock=settings.network.cidr,
            EnableDnsSupport=True,
            EnableDnsHostnames=True,
            Tags=tags(settings),
        )
    )
    routes = template.add_resource(ec2.RouteTable("Routes", VpcId=Ref(vpc), Tags=tags(settings)))
    # ECR signs the links to layers in its own name (ECR User Guide, "Amazon ECR interface VPC endpoints").
    layers = {
        "Effect": "Allow",
        "Principal": "*",
        "Action": "s3:GetObject",
        "Resource": Sub("arn:${AWS::Partition}:s3:::prod-${AWS::Region}-starport-layer-bucket/*"),
    }
    for title, service, also in (("S3Endpoint", "s3", [layers]), ("DynamoDbEndpoint", "dynamodb", [])):
        template.add_resource(
            ec2.VPCEndpoint(
                title,
                ServiceName=Sub(f"com.amazonaws.${{AWS::Region}}.{service}"),
                VpcEndpointType="Gateway",
                VpcId=Ref(vpc),
                RouteTableIds=[Ref(routes)],
                Tags=tags(settings),
                **({"PolicyDocument": _for_this_account(also)} if settings.network.private else {}),
            )
        )
    return Ref(vpc), routes


def _way_out(template: Template, settings: Settings, vpc: Any, routes: ec2.RouteTable) -> str:
    """The internet gateway and the route to it, whose title is returned."""
    gateway = template.add_resource(ec2.InternetGateway("InternetGateway", Tags=tags(settings)))
    attachment = template.add_resource(
        ec2.VPCGatewayAttachment("GatewayAttachment", VpcId=vpc, InternetGatewayId=Ref(gateway))
    )
    route = template.add_resource(
        ec2.Route(
            "RouteOut",
            RouteTableId=Ref(routes),
            DestinationCidrBlock=ANYWHERE,
            GatewayId=Ref(gateway),
            DependsOn=attachment.title,
        )
    )
    return str(route.title)


def _place(template: Template, settings: Settings, vpc: Any, zone: int) -> Place:
    """Our subnet in one zone: a sixteenth of the VPC's block."""
    blocks = list(ipaddress.IPv4Network(settings.network.cidr).subnets(prefixlen_diff=4))
    title = f"Subnet{zone}"
    place = Place(Ref(title), zone, _zone_condition(template, zone))
    template.add_resource(
        ec2.Subnet(
            title,
            VpcId=vpc,
            CidrBlock=str(blocks[zone - 1]),
            AvailabilityZone=Select(zone - 1, GetAZs("")),
            MapPublicIpOnLaunch=not settings.network.private,
            Tags=tags(settings),
            **place.attributes,
        )
    )
    return place


def _zone_condition(template: Template, zone: int) -> str | None:
    """The title of the condition that the region has so many zones; None when every region has."""
    usual = zone <= USUAL_ZONES
    exceptions = [Equals(Ref("AWS::Region"), region) for region in ZONES if (ZONES[region] >= zone) != usual]
    if not exceptions:
        return None
    exceptional = Or(*exceptions) if len(exceptions) > 1 else exceptions[0]
    title = f"Zone{zone}"
    template.add_condition(title, Not(exceptional) if usual else exceptional)
    return title


def _endpoints(template: Template, settings: Settings, network: Network) -> list[str]:
    """An interface endpoint in every subnet for each service that is called from them; their titles."""
    group = let_workers_in(template, settings, network, "EndpointSecurityGroup", "Endpoints", 443)
    template.add_condition("China", Equals(Ref("AWS::Partition"), "aws-cn"))
    titles = []
    for service in (*ENDPOINTS, *(SESSION_ENDPOINTS if settings.security.session_manager else ())):
        name: Any = Sub(f"com.amazonaws.${{AWS::Region}}.{service}")
        if service in NAMED_OTHERWISE_IN_CHINA:
            name = If("China", Sub(f"cn.com.amazonaws.${{AWS::Region}}.{service}"), name)
        endpoint = template.add_resource(
            ec2.VPCEndpoint(
                "".join(part.capitalize() for part in re.split(r"[.-]", service)) + "Endpoint",
                ServiceName=name,
                VpcEndpointType="Interface",
                VpcId=network.vpc,
                SubnetIds=network.subnets,
                SecurityGroupIds=[Ref(group)],
                PrivateDnsEnabled=True,
                Tags=tags(settings),
                **({} if service in FULL_ACCESS_ONLY else {"PolicyDocument": _for_this_account()}),
            )
        )
        titles.append(endpoint.title)
    return titles


def _for_this_account(also: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """An endpoint policy: nobody from another account, whatever credentials were carried into the VPC."""
    own = {
        "Effect": "Allow",
        "Principal": "*",
        "Action": "*",
        "Resource": "*",
        "Condition": {"StringEquals": {"aws:PrincipalAccount": Ref("AWS::AccountId")}},
    }
    return {"Version": "2012-10-17", "Statement": [own, *also]}
