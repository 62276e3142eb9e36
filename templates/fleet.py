"""The machines: a Spot Fleet over every type and zone, and an On-Demand group for when Spot is short.

Both launch from one template. Neither is ever resized here: the capacity Lambda does that (see
docs/decisions/0010-what-an-update-may-not-reset.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from troposphere import GetAtt, Ref, Sub, Template, autoscaling, ec2, iam

from templates import policies, userdata
from templates.assets import Assets
from templates.cluster import Worker
from templates.data import Data
from templates.instance_types import INSTANCE_TYPES
from templates.network import Network
from templates.settings import STACK_TAG, Settings
from templates.tags import tags


@dataclass(frozen=True)
class Fleet:
    """The resources that others refer to."""

    spot: ec2.SpotFleet
    on_demand: autoscaling.AutoScalingGroup


def add(template: Template, settings: Settings, network: Network, data: Data, worker: Worker, assets: Assets) -> Fleet:
    """The launch template, the fleet and the group."""
    launch = _launch_template(template, settings, network, data, worker, assets)
    return Fleet(
        _spot_fleet(template, settings, network, launch), _on_demand_group(template, settings, network, launch)
    )


def _launch_template(
    template: Template, settings: Settings, network: Network, data: Data, worker: Worker, assets: Assets
) -> ec2.LaunchTemplate:
    role = template.add_resource(
        policies.role(
            "InstanceRole",
            "ec2.amazonaws.com",
            tags(settings),
            [
                *policies.join_cluster(worker.cluster),
                policies.publish_notices(data.notices_topic),
                policies.open_and_seal(data.key),
                policies.fetch_asset(assets.agent.key),
            ],
        )
    )
    profile = template.add_resource(iam.InstanceProfile("InstanceProfile", Roles=[Ref(role)]))
    return template.add_resource(
        ec2.LaunchTemplate(
            "LaunchTemplate",
            LaunchTemplateData=ec2.LaunchTemplateData(
                ImageId=Ref("AmiId"),
                IamInstanceProfile=ec2.IamInstanceProfile(Arn=GetAtt(profile, "Arn")),
                SecurityGroupIds=[network.security_group],
                UserData=userdata.build(settings, assets.agent),
                # Hop limit 1: a container on the bridge is one hop too far away.
                MetadataOptions=ec2.MetadataOptions(HttpTokens="required", HttpPutResponseHopLimit=1),
                BlockDeviceMappings=[
                    ec2.LaunchTemplateBlockDeviceMapping(
                        DeviceName="/dev/xvda",
                        # The EBS-managed key: a customer key wants grants for two service-linked roles.
                        Ebs=ec2.EBSBlockDevice(
                            VolumeType="gp3",
                            VolumeSize=settings.compute.root_volume_gib,
                            Encrypted=True,
                            DeleteOnTermination=True,
                        ),
                    )
                ],
                TagSpecifications=[
                    ec2.TagSpecifications(ResourceType=kind, Tags=tags(settings)) for kind in ("instance", "volume")
                ],
            ),
            # These are the template's own; those above are for what it launches.
            TagSpecifications=[ec2.TagSpecifications(ResourceType="launch-template", Tags=tags(settings))],
        )
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
    pools = [
        ec2.LaunchTemplateOverrides(
            InstanceType=name, SubnetId=subnet, WeightedCapacity=float(INSTANCE_TYPES[name].gpus)
        )
        for name in settings.compute.instance_types
        for subnet in network.subnets
    ]
    strategy = settings.spot.allocation_strategy
    if strategy == "capacityOptimizedPrioritized":
        for place, name in enumerate(settings.compute.instance_types):
            for pool in pools:
                if pool.InstanceType == name:
                    pool.Priority = float(place)
    return template.add_resource(
        ec2.SpotFleet(
            "SpotFleet",
            SpotFleetRequestConfigData=ec2.SpotFleetRequestConfigData(
                Type="maintain",
                TargetCapacity=0,
                AllocationStrategy=strategy,
                IamFleetRole=GetAtt(role, "Arn"),
                LaunchTemplateConfigs=[
                    ec2.LaunchTemplateConfigs(
                        LaunchTemplateSpecification=ec2.FleetLaunchTemplateSpecification(
                            # A number: a Spot Fleet takes no $Latest.
                            LaunchTemplateId=Ref(launch),
                            Version=GetAtt(launch, "LatestVersionNumber"),
                        ),
                        Overrides=pools,
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


def _on_demand_group(
    template: Template, settings: Settings, network: Network, launch: ec2.LaunchTemplate
) -> autoscaling.AutoScalingGroup:
    choice = settings.on_demand
    return template.add_resource(
        autoscaling.AutoScalingGroup(
            "OnDemandGroup",
            MinSize="0",
            MaxSize=str(choice.max_instances),
            VPCZoneIdentifier=network.subnets,
            MixedInstancesPolicy=autoscaling.MixedInstancesPolicy(
                LaunchTemplate=autoscaling.LaunchTemplate(
                    LaunchTemplateSpecification=autoscaling.LaunchTemplateSpecification(
                        LaunchTemplateId=Ref(launch), Version=GetAtt(launch, "LatestVersionNumber")
                    ),
                    Overrides=[
                        autoscaling.LaunchTemplateOverrides(InstanceType=name) for name in choice.instance_types
                    ],
                ),
                InstancesDistribution=autoscaling.InstancesDistribution(
                    OnDemandAllocationStrategy="prioritized", OnDemandPercentageAboveBaseCapacity=100
                ),
            ),
            Tags=[
                autoscaling.Tag(STACK_TAG, Ref("AWS::StackName"), True),
                *(autoscaling.Tag(key, value, True) for key, value in settings.tags.items()),
            ],
            **({"DependsOn": network.ready} if network.ready else {}),
        )
    )
