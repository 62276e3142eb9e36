"""What both profiles share: the launch template, the On-Demand group, and what the capacity Lambda is told of either.

No group is ever resized here: the capacity Lambda does that (see docs/decisions/0010-what-an-update-may-not-reset.md).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from troposphere import GetAtt, Ref, Template, autoscaling, ec2, iam, sns

from templates import policies, userdata
from templates.assets import Assets
from templates.cluster import Worker
from templates.data import Data
from templates.instance_types import INSTANCE_TYPES
from templates.network import Network
from templates.settings import STACK_TAG, Attributes, Settings
from templates.tags import tags

PARTS_OF_A_GPU = ("g6f.*", "gr6f.*")
"""EC2 knows them as NVIDIA types; ECS gives tasks whole GPUs only."""
WITHOUT_DRIVER = ("g2.*", "g3.*", "g3s.*", "p2.*", "g7.*")
"""GPUs too old for the image's driver, and one that wants a newer one (aws/amazon-ecs-ami#370,
awslabs/amazon-eks-ami#2768): their instances would join with none.
"""
NO_LIMIT = 999_999
"""EC2's word, as a percentage, for no price protection (API reference, InstanceRequirementsRequest)."""
GROUP_NEWS = (
    "autoscaling:EC2_INSTANCE_LAUNCH",
    "autoscaling:EC2_INSTANCE_LAUNCH_ERROR",
    "autoscaling:EC2_INSTANCE_TERMINATE",
    "autoscaling:EC2_INSTANCE_TERMINATE_ERROR",
)
ROOT_DEVICE = "/dev/xvda"
"""Of the ECS AL2023 image (aws/amazon-ecs-ami)."""
FIRST_BOOT_SECONDS = 180
"""How long an instance may take for its first boot and its user data, before it is stopped for the warm pool."""


@dataclass(frozen=True)
class Machines:
    """What others need to know of a profile."""

    on_demand: autoscaling.AutoScalingGroup
    environment: dict[str, Any]
    """For the capacity Lambda, beside what is the same in every profile."""
    statements: list[policies.Statement]
    """What the capacity Lambda may do with the machines."""
    patterns: dict[str, dict[str, Any]]
    """Further events that the capacity Lambda hears, by title of the rule."""
    outputs: dict[str, tuple[str, Any]]
    """Further outputs of the stack: title -> description, value."""
    metrics: dict[str, Any]
    """Whose metrics the dashboard shows: `spot_fleet` (id) or `spot_group` (name), and `on_demand_group` (name)."""


def launch_template(
    template: Template, settings: Settings, network: Network, data: Data, worker: Worker, assets: Assets
) -> ec2.LaunchTemplate:
    """How an instance starts, whoever buys it, and what it may do."""
    role = template.add_resource(
        policies.role(
            "InstanceRole",
            policies.EC2,
            tags(settings),
            [
                *policies.join_cluster(worker.cluster),
                policies.publish_notices(data.notices_topic),
                *policies.open_and_seal(data.key),
                policies.fetch_asset(assets.agent.key),
                *(policies.open_sessions() if settings.security.session_manager else []),
            ],
        )
    )
    profile = template.add_resource(iam.InstanceProfile("InstanceProfile", Roles=[Ref(role)]))
    start = start_data(
        settings,
        ImageId=Ref("AmiId"),
        IamInstanceProfile=ec2.IamInstanceProfile(Arn=GetAtt(profile, "Arn")),
        SecurityGroupIds=[network.security_group],
        UserData=userdata.build(settings, assets.agent),
    )
    return add_launch_template(template, settings, "LaunchTemplate", start)


def root_volume(settings: Settings) -> dict[str, Any]:
    """The root volume of every instance, also of one that an image is made on. It has the EBS-managed key: a customer
    key wants grants for two service-linked roles.
    """
    return {
        "VolumeType": "gp3",
        "VolumeSize": settings.compute.root_volume_gib,
        "Encrypted": True,
        "DeleteOnTermination": True,
    }


def start_data(settings: Settings, **properties: Any) -> ec2.LaunchTemplateData:
    """How every instance starts: its metadata is its own, its root volume encrypted, and both have our tags."""
    return ec2.LaunchTemplateData(
        **properties,
        # Hop limit 1: a container on the bridge is one hop too far away.
        MetadataOptions=ec2.MetadataOptions(HttpTokens="required", HttpPutResponseHopLimit=1),
        BlockDeviceMappings=[
            ec2.LaunchTemplateBlockDeviceMapping(
                DeviceName=ROOT_DEVICE, Ebs=ec2.EBSBlockDevice(**root_volume(settings))
            )
        ],
        TagSpecifications=[
            ec2.TagSpecifications(ResourceType=kind, Tags=tags(settings)) for kind in ("instance", "volume")
        ],
    )


def on_demand_group(
    template: Template, settings: Settings, network: Network, launch: ec2.LaunchTemplate, operators: sns.Topic
) -> autoscaling.AutoScalingGroup:
    """The On-Demand group, which starts and stays empty until the capacity Lambda wants it, and its warm pool."""
    choice = settings.on_demand
    if not choice.warm_units:
        how = {
            "MixedInstancesPolicy": autoscaling.MixedInstancesPolicy(
                LaunchTemplate=autoscaling.LaunchTemplate(
                    LaunchTemplateSpecification=version_of(launch),
                    Overrides=[
                        autoscaling.LaunchTemplateOverrides(InstanceType=name) for name in choice.instance_types
                    ],
                ),
                InstancesDistribution=autoscaling.InstancesDistribution(
                    OnDemandAllocationStrategy="prioritized", OnDemandPercentageAboveBaseCapacity=100
                ),
            )
        }
    else:
        # Not every region lets a group with a mixed instances policy have a warm pool: this one has one type.
        start = ec2.LaunchTemplateData(InstanceType=choice.instance_types[0], **launch.LaunchTemplateData.properties)
        warm = add_launch_template(template, settings, "WarmLaunchTemplate", start)
        how = {"LaunchTemplate": version_of(warm), "LifecycleHookSpecificationList": [_first_boot()]}
    group = template.add_resource(
        autoscaling.AutoScalingGroup(
            "OnDemandGroup",
            MaxSize=str(settings.max_on_demand_instances),
            **how,
            **group_properties(settings, network, operators),
        )
    )
    if choice.warm_units:
        template.add_resource(
            autoscaling.WarmPool(
                "WarmPool",
                AutoScalingGroupName=Ref(group),
                PoolState="Stopped",
                # Both the same: only then has the pool one size, whatever runs. MaxGroupPreparedCapacity less what runs
                # is the pool, and without it MaxSize less what runs; but never less than MinSize (API reference,
                # PutWarmPool). An instance that leaves the group ends: ECS knows no way back into the pool.
                MinSize=settings.warm_instances,
                MaxGroupPreparedCapacity=settings.warm_instances,
            )
        )
    return group


def group_properties(settings: Settings, network: Network, operators: sns.Topic) -> dict[str, Any]:
    """What every group has: it may be empty, is watched, and tells the operators if they want."""
    news = [
        autoscaling.NotificationConfigurations(TopicARN=[Ref(operators)], NotificationTypes=list(GROUP_NEWS)),
    ]
    return {
        "MinSize": "0",
        "VPCZoneIdentifier": network.subnets,
        # Without names it is all metrics.
        "MetricsCollection": [autoscaling.MetricsCollection(Granularity="1Minute")],
        "Tags": [
            autoscaling.Tag(STACK_TAG, Ref("AWS::StackName"), True),
            *(autoscaling.Tag(key, value, True) for key, value in settings.tags.items()),
        ],
        **({"NotificationConfigurations": news} if settings.notify.scaling else {}),
        **({"DependsOn": network.ready} if network.ready else {}),
    }


def version_of(launch: ec2.LaunchTemplate) -> autoscaling.LaunchTemplateSpecification:
    """A launch template in its newest version, for a group: a number, which says what user data an instance had."""
    return autoscaling.LaunchTemplateSpecification(
        LaunchTemplateId=Ref(launch), Version=GetAtt(launch, "LatestVersionNumber")
    )


def requirements(wanted: Attributes) -> dict[str, Any]:
    """What EC2 is to choose types by, as InstanceRequirements of a fleet or a group: x86 with whole NVIDIA GPUs.

    InstanceGenerations is left out: EC2 calls G5 a previous generation already (DescribeInstanceTypes).
    """
    return {
        "VCpuCount": _range(wanted.min_vcpus, wanted.max_vcpus),
        "MemoryMiB": _range(wanted.min_memory_mib, wanted.max_memory_mib),
        "AcceleratorCount": _range(1, 1),
        "AcceleratorManufacturers": ["nvidia"],
        "AcceleratorTypes": ["gpu"],
        **({"AcceleratorNames": list(wanted.gpu_names)} if wanted.gpu_names else {}),
        # Not amazon-web-services: the image is for x86.
        "CpuManufacturers": ["intel", "amd"],
        "BareMetal": "excluded",
        "ExcludedInstanceTypes": [*PARTS_OF_A_GPU, *WITHOUT_DRIVER, *wanted.exclude],
        # By itself EC2 leaves out, without a word, what costs too much beside the cheapest type that fits: for GPUs
        # that is whole families, and with them the pools that are left when the cheap ones run dry. The strategy
        # weighs prices, gpu_names and exclude say what is too dear, and nobody pays more than On-Demand.
        "MaxSpotPriceAsPercentageOfOptimalOnDemandPrice": NO_LIMIT,
    }


def environment(settings: Settings, on_demand: autoscaling.AutoScalingGroup) -> dict[str, Any]:
    """What the capacity Lambda is told in every profile. `*` is every type that is not named."""
    wanted, choice = settings.compute.attributes, settings.on_demand
    named = choice.instance_types if wanted else (*settings.compute.instance_types, *choice.instance_types)
    units = {name: settings.units_of(name) for name in sorted(set(named))}
    gpus = {name: INSTANCE_TYPES[name].gpus for name in units}
    return {
        "ON_DEMAND_GROUP": Ref(on_demand),
        "UNITS_BY_TYPE": json.dumps({"*": 1, **units} if wanted else units),
        **({"GPUS_BY_TYPE": json.dumps(gpus)} if settings.compute.weights else {}),
        "ON_DEMAND_UNITS": str(settings.on_demand_units),
        "MAX_UNITS": str(settings.compute.max_units),
        "MAX_ON_DEMAND_UNITS": str(choice.max_units),
        "URGENCY": choice.urgency,
        "PATIENCE_SECONDS": str(choice.patience_seconds),
        "CALM_SECONDS": str(choice.calm_seconds),
    }


def add_launch_template(
    template: Template, settings: Settings, title: str, start: ec2.LaunchTemplateData
) -> ec2.LaunchTemplate:
    """A launch template with these data."""
    return template.add_resource(
        ec2.LaunchTemplate(
            title,
            LaunchTemplateData=start,
            # The template's own; those in its data are for what it launches.
            TagSpecifications=[ec2.TagSpecifications(ResourceType="launch-template", Tags=tags(settings))],
        )
    )


def _first_boot() -> autoscaling.LifecycleHookSpecification:
    """Time for user data, which runs once: without a hook an instance is stopped as soon as it runs, and would come
    out of the pool half made (Auto Scaling User Guide, "Warm pools", lifecycle hooks).

    Nobody completes it, so it also counts for an instance on its way into service: ECS does not wait for that. The
    agent asks for the state that the instance is to have, and then registers (see
    docs/decisions/0011-warm-pool-check-only-on-demand.md).
    """
    return autoscaling.LifecycleHookSpecification(
        LifecycleHookName="first-boot",
        LifecycleTransition="autoscaling:EC2_INSTANCE_LAUNCHING",
        HeartbeatTimeout=FIRST_BOOT_SECONDS,
        DefaultResult="CONTINUE",
    )


def _range(least: int, most: int | None) -> dict[str, int]:
    return {"Min": least} if most is None else {"Min": least, "Max": most}
