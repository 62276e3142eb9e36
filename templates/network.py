"""Where instances live: public subnets that nothing can enter, or a VPC that is given."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from itertools import islice
from typing import Any

from troposphere import GetAZs, Ref, Select, Sub, Template, ec2

from templates.settings import Settings
from templates.tags import tags

ANYWHERE = "0.0.0.0/0"


@dataclass(frozen=True)
class Network:
    """What the fleet needs to know of it."""

    subnets: list[Any]
    security_group: Any
    ready: list[str]
    """Titles to depend on: before these an instance would boot without a way to AWS."""


def add(template: Template, settings: Settings) -> Network:
    """The VPC (unless one is given) and the instances' security group."""
    if settings.network.vpc_id:
        vpc: Any = settings.network.vpc_id
        subnets: list[Any] = list(settings.network.subnet_ids)
        ready: list[str] = []
    else:
        vpc, subnets, ready = _own_vpc(template, settings)
    group = template.add_resource(
        ec2.SecurityGroup(
            "WorkerSecurityGroup",
            GroupDescription="Workers: nothing comes in, HTTPS goes out",
            VpcId=vpc,
            # The VPC's own resolver and clock are not subject to security groups, so HTTPS is all there is.
            SecurityGroupEgress=[
                ec2.SecurityGroupRule(IpProtocol="tcp", FromPort=443, ToPort=443, CidrIp=ANYWHERE, Description="AWS")
            ],
            Tags=tags(settings),
        )
    )
    return Network(subnets, Ref(group), ready)


def _own_vpc(template: Template, settings: Settings) -> tuple[Any, list[Any], list[str]]:
    vpc = template.add_resource(
        ec2.VPC(
            "Vpc",
            CidrBlock=settings.network.cidr,
            EnableDnsSupport=True,
            EnableDnsHostnames=True,
            Tags=tags(settings),
        )
    )
    gateway = template.add_resource(ec2.InternetGateway("InternetGateway", Tags=tags(settings)))
    attachment = template.add_resource(
        ec2.VPCGatewayAttachment("GatewayAttachment", VpcId=Ref(vpc), InternetGatewayId=Ref(gateway))
    )
    routes = template.add_resource(ec2.RouteTable("PublicRoutes", VpcId=Ref(vpc), Tags=tags(settings)))
    out = template.add_resource(
        ec2.Route(
            "RouteOut",
            RouteTableId=Ref(routes),
            DestinationCidrBlock=ANYWHERE,
            GatewayId=Ref(gateway),
            DependsOn=attachment.title,
        )
    )
    # Gateway endpoints cost nothing, and uploads, results and image layers go through them.
    for title, service in (("S3Endpoint", "s3"), ("DynamoDbEndpoint", "dynamodb")):
        template.add_resource(
            ec2.VPCEndpoint(
                title,
                ServiceName=Sub(f"com.amazonaws.${{AWS::Region}}.{service}"),
                VpcEndpointType="Gateway",
                VpcId=Ref(vpc),
                RouteTableIds=[Ref(routes)],
                Tags=tags(settings),
            )
        )
    ready = [out.title]
    subnets = []
    blocks = ipaddress.IPv4Network(settings.network.cidr).subnets(prefixlen_diff=4)
    for zone, block in enumerate(islice(blocks, settings.network.zones)):
        subnet = template.add_resource(
            ec2.Subnet(
                f"PublicSubnet{zone + 1}",
                VpcId=Ref(vpc),
                CidrBlock=str(block),
                AvailabilityZone=Select(zone, GetAZs("")),
                MapPublicIpOnLaunch=True,
                Tags=tags(settings),
            )
        )
        association = template.add_resource(
            ec2.SubnetRouteTableAssociation(
                f"PublicSubnet{zone + 1}Routes", SubnetId=Ref(subnet), RouteTableId=Ref(routes)
            )
        )
        subnets.append(Ref(subnet))
        ready.append(association.title)
    return Ref(vpc), subnets, ready
