"""The market Lambda, which keeps the table of Spot pools and, of a fleet that names its types, the pools it may use.

See docs/decisions/0021-pools-leave-and-come-back.md.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from troposphere import GetAtt, If, Join, Ref, Sub, Template, awslambda, dynamodb, events

from templates import policies
from templates.assets import Assets
from templates.data import Data
from templates.functions import add_function
from templates.instance_types import GPU_NAMES, INSTANCE_TYPES
from templates.machines import Machines
from templates.network import Network
from templates.settings import Attributes, Settings
from templates.tags import tags

MARKET_SECONDS = 60
"""The Lambda's timeout: twice a day it asks the price list once for each type."""
FLEET, LAUNCH, INSTANCE_ROLE = "SpotFleet", "LaunchTemplate", "InstanceRole"
"""Titles of what the fleet launches from (machines.py, fleet.py)."""


@dataclass(frozen=True)
class Market:
    """The resources that others refer to."""

    function: awslambda.Function
    table: dynamodb.Table


def add(
    template: Template, settings: Settings, network: Network, data: Data, machines: Machines, assets: Assets
) -> Market:
    """The Lambda and its five minutes. It steers a Spot Fleet that names its types; others it only observes."""
    steers = "spot_fleet" in machines.metrics and settings.compute.attributes is None
    environment: dict[str, Any] = {
        "POOLS_TABLE": Ref(data.pools),
        "TYPES": json.dumps({name: settings.units_of(name) for name in types(settings)}),
        "SUBNETS": Join(
            ",", [If(one.condition, one.subnet, "") if one.condition else one.subnet for one in network.places]
        ),
        "MAX_UNITS": str(settings.compute.max_units),
    }
    if others := [name for name in settings.on_demand.instance_types if name not in types(settings)]:
        environment["ON_DEMAND_TYPES"] = ",".join(others)
    statements = [
        policies.see_market(),
        policies.remember_pools(data.pools),
        *policies.use_encrypted_table(data.key),
    ]
    if steers:
        environment["SPOT_FLEET_ID"] = machines.metrics["spot_fleet"]
        if settings.spot.allocation_strategy == "capacityOptimizedPrioritized":
            environment["PRIORITIZED"] = "1"
        fleet, launch, role = (template.resources[title] for title in (FLEET, LAUNCH, INSTANCE_ROLE))
        statements += policies.choose_pools(
            fleet,
            launch,
            role,
            _arn("security-group", network.security_group),
            [one.if_there(_arn("subnet", one.subnet)) for one in network.places],
        )
    function = add_function(
        template,
        settings,
        "Market",
        assets.market,
        timeout=MARKET_SECONDS,
        statements=statements,
        environment=environment,
    )
    rule = template.add_resource(
        events.Rule(
            "EveryFiveMinutes",
            Description="A look at the Spot market every five minutes",
            ScheduleExpression="rate(5 minutes)",
            State="ENABLED",
            Targets=[events.Target(Id="market", Arn=GetAtt(function, "Arn"))],
            Tags=tags(settings),
        )
    )
    template.add_resource(
        awslambda.Permission(
            "MarketPermission",
            Action="lambda:InvokeFunction",
            FunctionName=Ref(function),
            Principal="events.amazonaws.com",
            SourceArn=GetAtt(rule, "Arn"),
        )
    )
    return Market(function, data.pools)


def types(settings: Settings) -> tuple[str, ...]:
    """The types whose pools are watched: those of the list, or all that we know and the attributes allow."""
    if settings.compute.attributes is None:
        return settings.compute.instance_types
    fitting = tuple(name for name in INSTANCE_TYPES if _fits(name, settings.compute.attributes))
    # EC2 may know types that we do not; something must be watched.
    return fitting or settings.on_demand.instance_types


def _fits(name: str, wanted: Attributes) -> bool:
    known = INSTANCE_TYPES[name]
    return (
        known.gpus == 1
        and (not wanted.gpu_names or GPU_NAMES[name.partition(".")[0]] in wanted.gpu_names)
        and wanted.min_vcpus <= known.vcpus <= (wanted.max_vcpus or known.vcpus)
        and wanted.min_memory_mib <= known.memory_mib <= (wanted.max_memory_mib or known.memory_mib)
        and not name.endswith(".metal")
        and not any(fnmatchcase(name, pattern) for pattern in wanted.exclude)
    )


def _arn(kind: str, identity: Any) -> Sub:
    return Sub(
        f"arn:${{AWS::Partition}}:ec2:${{AWS::Region}}:${{AWS::AccountId}}:{kind}/${{Identity}}", Identity=identity
    )
