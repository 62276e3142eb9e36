"""Profile `fleet`: a Spot Fleet over every type and zone, and an On-Demand group for when Spot is short.

The fleet's metrics need no switch: EC2 reports those of every Spot Fleet to CloudWatch (EC2 User Guide, "Monitor your
EC2 Fleet or Spot Fleet using CloudWatch").
"""

from __future__ import annotations

from typing import Any

from troposphere import GetAtt, Ref, Sub, Template, ec2, sns

from templates import machines, policies
from templates.assets import Assets
from templates.cluster import Worker, service_name
from templates.data import Data
from templates.machines import Machines
from templates.network import Network
from templates.settings import Settings
from templates.tags import tags

FLEET_NOTES = (
    "spindrift:ample-since",
    "spindrift:bad",
    "spindrift:on-demand-took",
    "spindrift:short-since",
    "spindrift:waves",
    "spindrift:worked",
)
INSTANCE_NOTES = ("spindrift:at-risk", "spindrift:surplus")
"""The tags in which the capacity Lambda keeps what AWS does not tell: it has no memory of its own."""


def add(
    template: Template,
    settings: Settings,
    network: Network,
    data: Data,
    worker: Worker,
    assets: Assets,
    operators: sns.Topic,
) -> Machines:
    """The launch template, the fleet and the group."""
    launch = machines.launch_template(template, settings, network, data, worker, assets)
    fleet = _spot_fleet(template, settings, network, launch)
    group = machines.on_demand_group(template, settings, network, launch, operators)
    return Machines(
        on_demand=group,
        environment={"SPOT_FLEET_ID": Ref(fleet), **machines.environment(settings, group)},
        statements=[
            policies.see_capacity(),
            *([policies.time_jobs()] if settings.on_demand.urgency == "deadline" else []),
            policies.scale_services(worker.cluster, *(service_name(queue) for queue in settings.queues)),
            policies.steer_fleet(fleet),
            policies.steer_group(group),
            policies.terminate_own_instances(),
            policies.note_on_fleet(fleet, *FLEET_NOTES),
            policies.note_on_instances(*INSTANCE_NOTES),
        ],
        patterns={
            "FleetEvents": {
                "source": ["aws.ec2spotfleet"],
                "detail-type": ["EC2 Spot Fleet Instance Change", "EC2 Spot Fleet Error"],
                "resources": [policies.arn("ec2", f"spot-fleet-request/${{{fleet.title}}}")],
            }
        },
        outputs={"SpotFleetId": ("The Spot Fleet", Ref(fleet))},
        metrics={"spot_fleet": Ref(fleet), "on_demand_group": Ref(group)},
    )


def _spot_fleet(template: Template, settings: Settings, network: Network, launch: ec2.LaunchTemplate) -> ec2.SpotFleet:
    role = template.add_resource(
        policies.role(
            "SpotFleetRole",
            "spotfleet.amazonaws.com",
            tags(settings),
            [],
            managed=[Sub("arn:${AWS::Partition}:iam::aws:policy/service-role/AmazonEC2SpotFleetTaggingRole")],
        )
    )
    return template.add_resource(
        ec2.SpotFleet(
            "SpotFleet",
            SpotFleetRequestConfigData=ec2.SpotFleetRequestConfigData(
                Type="maintain",
                TargetCapacity=0,
                AllocationStrategy=settings.spot.allocation_strategy,
                IamFleetRole=GetAtt(role, "Arn"),
                LaunchTemplateConfigs=[
                    ec2.LaunchTemplateConfigs(
                        LaunchTemplateSpecification=ec2.FleetLaunchTemplateSpecification(
                            # A number: a Spot Fleet takes no $Latest.
                            LaunchTemplateId=Ref(launch),
                            Version=GetAtt(launch, "LatestVersionNumber"),
                        ),
                        Overrides=[
                            place.if_there(ec2.LaunchTemplateOverrides(SubnetId=place.subnet, **what))
                            for what in _choice(settings)
                            for place in network.places
                        ],
                    )
                ],
                ReplaceUnhealthyInstances=True,
                # A lower target takes no instance away: the Lambda terminates those that are idle.
                ExcessCapacityTerminationPolicy="noTermination",
                # With the fleet, when the stack goes.
                TerminateInstancesWithExpiration=True,
                TagSpecifications=[
                    ec2.SpotFleetTagSpecification(ResourceType="spot-fleet-request", Tags=tags(settings))
                ],
            ),
            **({"DependsOn": network.ready} if network.ready else {}),
        )
    )


def _choice(settings: Settings) -> list[dict[str, Any]]:
    """What may be bought in every place: types with their weights, in order, or what types must have.

    With attributes EC2 takes neither weights nor priorities (EC2 User Guide, "Specify attributes for instance type
    selection for EC2 Fleet or Spot Fleet", considerations), so that each instance counts as one.
    """
    if wanted := settings.compute.attributes:
        required = ec2.InstanceRequirementsRequest.from_dict(None, machines.requirements(wanted))
        return [{"InstanceRequirements": required}]
    prioritized = settings.spot.allocation_strategy == "capacityOptimizedPrioritized"
    return [
        {
            "InstanceType": name,
            "WeightedCapacity": float(settings.units_of(name)),
            **({"Priority": float(rank)} if prioritized else {}),
        }
        for rank, name in enumerate(settings.compute.instance_types)
    ]
