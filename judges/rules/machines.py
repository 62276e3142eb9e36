"""Spot Fleets, groups and what they launch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from judges.filled import reference
from judges.rules.stack import Objection, Rule, Stack, listed
from judges.scripts import user_data
from templates.instance_types import INSTANCE_TYPES, must_have_gpu
from templates.settings import SMALLEST_ROOT_GIB
from templates.userdata import MOST_BYTES

ROOT = "/dev/xvda"
"""The root device of Amazon Linux images; another name would be a second disk."""
BOOTABLE = {"gp2", "gp3", "io1", "io2", "standard"}
"""EBS User Guide, "EBS volume types": st1 and sc1 cannot be boot volumes."""
NO_VERSION = {"$Latest", "$Default", "None"}


def fleets(stack: Stack) -> Iterator[tuple[str, dict[str, Any]]]:
    """Title and configuration of each Spot Fleet."""
    for title, properties in stack.of("EC2::SpotFleet"):
        yield title, properties.get("SpotFleetRequestConfigData", {})


def groups(stack: Stack) -> Iterator[tuple[str, dict[str, Any]]]:
    """Title and properties of each Auto Scaling group."""
    return stack.of("AutoScaling::AutoScalingGroup")


def overrides(stack: Stack) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pool of a fleet and every override of a group."""
    for title, data in fleets(stack):
        for config in data.get("LaunchTemplateConfigs", ()):
            yield from ((title, override) for override in config.get("Overrides", ()))
    for title, properties in groups(stack):
        mixed = properties.get("MixedInstancesPolicy", {}).get("LaunchTemplate", {})
        yield from ((title, override) for override in mixed.get("Overrides", ()))


def launches(stack: Stack) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every use of a launch template: title of the fleet or group, and the specification."""
    for title, data in fleets(stack):
        for config in data.get("LaunchTemplateConfigs", ()):
            yield title, config.get("LaunchTemplateSpecification", {})
    for title, properties in groups(stack):
        mixed = properties.get("MixedInstancesPolicy", {}).get("LaunchTemplate", {})
        for said in (properties.get("LaunchTemplate"), mixed.get("LaunchTemplateSpecification")):
            if said:
                yield title, said


def types_exist(stack: Stack) -> Iterator[Objection]:
    """cfn-lint looks at instance types nowhere in a fleet or in a group's overrides."""
    for title, override in overrides(stack):
        name = override.get("InstanceType")
        if isinstance(name, str):
            try:
                must_have_gpu(name)
            except ValueError as error:
                yield title, str(error)


def weights_are_gpus(stack: Stack) -> Iterator[Objection]:
    """A unit is one GPU, or what the capacity Lambda is told: with another weight, targets are wrong by that factor.

    With attributes EC2 takes no weights: each instance counts as one, so all must be alike.
    """
    told = stack.properties("CapacityFunction").get("Environment", {}).get("Variables", {})
    counts, by = {name: size.gpus for name, size in INSTANCE_TYPES.items()}, "it has"
    if "GPUS_BY_TYPE" in told:
        counts, by = json.loads(told["UNITS_BY_TYPE"]), "the capacity Lambda counts"
    for title, override in overrides(stack):
        weight, name = override.get("WeightedCapacity"), override.get("InstanceType")
        if wanted := override.get("InstanceRequirements"):
            count = wanted.get("AcceleratorCount", {})
            if count.get("Min") != count.get("Max") or weight is not None:
                yield title, f"attributes: one number of GPUs and no weight, got {count} and {weight}"
        elif weight is None and stack.kind(title) == "EC2::SpotFleet":
            yield title, f"{name}: no WeightedCapacity, so EC2 counts the instance as one unit"
        elif weight is not None and name in counts and float(weight) != counts[name]:
            yield title, f"{name}: WeightedCapacity {weight}, but {by} {counts[name]}"


def versions_are_numbers(stack: Stack) -> Iterator[Objection]:
    """A Spot Fleet takes no $Latest, and a group with it does not change when the stack does."""
    for title, said in launches(stack):
        if str(said.get("Version")) in NO_VERSION:
            yield title, f"launch template version {said.get('Version')}: must be a number, such as LatestVersionNumber"


def fleet_role_is_one(stack: Stack) -> Iterator[Objection]:
    """EC2 says only when it launches that it cannot assume the role, or cannot tag with it."""
    for title, data in fleets(stack):
        role = data.get("IamFleetRole")
        name = reference(role)
        if not isinstance(role, dict) or stack.filled(role) != stack.filled({"Fn::GetAtt": [name, "Arn"]}):
            yield title, f"IamFleetRole must be the ARN of a role, got {stack.filled(role)}"
            continue
        if stack.kind(name) != "IAM::Role":
            continue  # given by the operator
        trusted = [
            service
            for statement in stack.properties(name).get("AssumeRolePolicyDocument", {}).get("Statement", ())
            for service in listed(statement.get("Principal", {}).get("Service"))
        ]
        if "spotfleet.amazonaws.com" not in trusted:
            yield name, f"the fleet's role must trust spotfleet.amazonaws.com, trusts {', '.join(trusted)}"
        managed = [str(stack.filled(arn)) for arn in stack.properties(name).get("ManagedPolicyArns", ())]
        if not any(arn.endswith("/AmazonEC2SpotFleetTaggingRole") for arn in managed):
            yield name, "the fleet's role lacks AmazonEC2SpotFleetTaggingRole: it could not launch or tag"


def delay_only_before_termination(stack: Stack) -> Iterator[Objection]:
    """EC2 User Guide, "Capacity Rebalancing": the delay belongs to launch-before-terminate, which needs it."""
    for title, data in fleets(stack):
        rebalance = data.get("SpotMaintenanceStrategies", {}).get("CapacityRebalance", {})
        both = rebalance.get("ReplacementStrategy") == "launch-before-terminate"
        if both != ("TerminationDelay" in rebalance):
            yield title, f"TerminationDelay goes with launch-before-terminate and nothing else, got {rebalance}"


def fleet_takes_nothing_away(stack: Stack) -> Iterator[Objection]:
    """A lower target that terminates interrupts busy workers, and its victims get a Spot notice too."""
    for title, data in fleets(stack):
        if data.get("ExcessCapacityTerminationPolicy") != "noTermination":
            yield title, "ExcessCapacityTerminationPolicy must be noTermination: the Lambda ends idle instances"


def counts_belong_to_the_lambda(stack: Stack) -> Iterator[Objection]:
    """What a template states, every update of the stack resets to that."""
    for title, data in fleets(stack):
        if data.get("TargetCapacity") != 0:
            yield title, f"TargetCapacity must be 0, got {data.get('TargetCapacity')}: nothing is bought before work"
    for title, properties in groups(stack):
        if "DesiredCapacity" in properties:
            yield title, "DesiredCapacity must be left out: every update of the stack would reset the group"
    scaled = [
        str(stack.filled(body.get("ResourceId"))) for _, body in stack.of("ApplicationAutoScaling::ScalableTarget")
    ]
    for title, properties in stack.of("ECS::Service"):
        # Without the Lambda (profile `groups`) nobody would set a new service to none, and its creation would wait.
        name = stack.filled(properties.get("ServiceName"))
        if "DesiredCount" in properties and not any(target.endswith(f"/{name}") for target in scaled):
            yield title, "DesiredCount must be left out: every update of the stack would reset the service"


def warm_pools_can_be(stack: Stack) -> Iterator[Objection]:
    """EC2 Auto Scaling User Guide, "Warm pools", and ECS Developer Guide, "Using warm pools"."""
    for title, properties in stack.of("AutoScaling::WarmPool"):
        group = stack.properties(reference(properties.get("AutoScalingGroupName")))
        if "MixedInstancesPolicy" in group:
            yield title, "a group with a mixed instances policy cannot have a warm pool"
        if properties.get("InstanceReusePolicy", {}).get("ReuseOnScaleIn"):
            yield title, "ReuseOnScaleIn does not work with ECS: the instance would return with its old registration"
        launched = reference(group.get("LaunchTemplate", {}).get("LaunchTemplateId"))
        if "ECS_WARM_POOLS_CHECK=true" not in user_data(stack.template).get(launched, ""):
            yield title, f"{launched}: without ECS_WARM_POOLS_CHECK=true a pooled instance joins and is then stopped"


def instances_are_closed(stack: Stack) -> Iterator[Objection]:
    """IMDSv2, one hop (a bridge container is one too far), no SSH."""
    for title, data in _launch_data(stack):
        metadata = data.get("MetadataOptions", {})
        if metadata.get("HttpTokens") != "required":
            yield title, "MetadataOptions.HttpTokens must be required (IMDSv2)"
        if metadata.get("HttpPutResponseHopLimit") != 1:
            yield title, "MetadataOptions.HttpPutResponseHopLimit must be 1: containers could take the instance's role"
        if "KeyName" in data:
            yield title, "KeyName: there is no SSH; Session Manager needs no key"


def root_volume_boots(stack: Stack) -> Iterator[Objection]:
    """The ECS image's snapshot has 30 GiB and its root is /dev/xvda."""
    for title, data in _launch_data(stack):
        volumes = {volume.get("DeviceName"): volume.get("Ebs", {}) for volume in data.get("BlockDeviceMappings", ())}
        if ROOT not in volumes:
            yield title, f"no block device {ROOT}: the root volume would be as the image has it"
            continue
        root = volumes[ROOT]
        if root.get("VolumeType") not in BOOTABLE:
            yield title, f"{ROOT} is {root.get('VolumeType')}, which cannot boot"
        if int(root.get("VolumeSize", 0)) < SMALLEST_ROOT_GIB:
            yield title, f"{ROOT} has {root.get('VolumeSize')} GiB, the image {SMALLEST_ROOT_GIB}"
        if root.get("Encrypted") is not True:
            yield title, f"{ROOT} is not encrypted"
        if "KmsKeyId" in root:
            yield title, f"{ROOT} under a customer key wants grants for two service-linked roles, or nothing launches"


def user_data_works(stack: Stack) -> Iterator[Objection]:
    """At most 16 KB before base64; it joins the cluster, and there is no `aws` on the image."""
    for title, text in user_data(stack.template).items():
        if (size := len(text.encode())) > MOST_BYTES:
            yield title, f"user data has {size} bytes; EC2 takes {MOST_BYTES}"
        for line in ("ECS_CLUSTER=", "ECS_ENABLE_SPOT_INSTANCE_DRAINING=true"):
            if line not in text:
                yield title, f"user data lacks {line}"
        if re.search(r"^\s*aws\s", text, re.MULTILINE):
            yield title, "user data calls `aws`, which the image (al2023-ami-minimal) has not"


def _launch_data(stack: Stack) -> Iterator[tuple[str, dict[str, Any]]]:
    for title, properties in stack.of("EC2::LaunchTemplate"):
        yield title, properties.get("LaunchTemplateData", {})


RULES: tuple[Rule, ...] = (
    types_exist,
    weights_are_gpus,
    versions_are_numbers,
    fleet_role_is_one,
    delay_only_before_termination,
    fleet_takes_nothing_away,
    counts_belong_to_the_lambda,
    warm_pools_can_be,
    instances_are_closed,
    root_volume_boots,
    user_data_works,
)
