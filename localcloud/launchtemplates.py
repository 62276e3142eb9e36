"""CloudFormation's launch template, kept by the emulator through its API. What would get lost there is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from localcloud import substrate, wire
from localcloud.formation import NotPlayed, refuse_unplayed
from localcloud.launch import PLAYED
from localcloud.scalingresources import typed

# ruff: noqa: ARG002 - the arguments are formation.Resource's

KIND = "AWS::EC2::LaunchTemplate"
DISK = {"VolumeSize", "VolumeType", "Encrypted", "DeleteOnTermination", "SnapshotId", "Iops", "Throughput"}
OPTIONS = {"HttpTokens", "HttpEndpoint", "HttpPutResponseHopLimit", "HttpProtocolIpv6", "InstanceMetadataTags"}
CARD = {"DeviceIndex", "SubnetId", "AssociatePublicIpAddress", "Description", "Groups"}


class LaunchTemplateResource:
    """AWS::EC2::LaunchTemplate."""

    def create(self, logical_id: str, properties: dict[str, Any], stack: str) -> tuple[str, dict[str, Any]]:
        """Create it with its first version. Ref is its id."""
        data = _data(properties)
        name = properties.get("LaunchTemplateName") or f"{stack}-{logical_id}"
        made = substrate.operator("ec2").create_launch_template(
            LaunchTemplateName=name,
            LaunchTemplateData=data,
            TagSpecifications=properties.get("TagSpecifications", []),
        )["LaunchTemplate"]
        return made["LaunchTemplateId"], _attributes(made["LaunchTemplateId"], 1)

    def update(
        self, physical_id: str, old: dict[str, Any], new: dict[str, Any], stack: str
    ) -> tuple[str, dict[str, Any]]:
        """Add a version when the data differ. A new name replaces the template."""
        if old.get("LaunchTemplateName") != new.get("LaunchTemplateName"):
            return self.create(physical_id, new, stack)
        ec2 = substrate.operator("ec2")
        (now,) = ec2.describe_launch_templates(LaunchTemplateIds=[physical_id])["LaunchTemplates"]
        latest = int(now["LatestVersionNumber"])
        if _data(old) != _data(new):
            made = ec2.create_launch_template_version(LaunchTemplateId=physical_id, LaunchTemplateData=_data(new))
            latest = int(made["LaunchTemplateVersion"]["VersionNumber"])
        return physical_id, _attributes(physical_id, latest)

    def delete(self, physical_id: str, properties: dict[str, Any]) -> None:
        """Remove it."""
        ec2 = substrate.operator("ec2")
        if any(one["LaunchTemplateId"] == physical_id for one in ec2.describe_launch_templates()["LaunchTemplates"]):
            ec2.delete_launch_template(LaunchTemplateId=physical_id)


def _data(properties: Mapping[str, Any]) -> dict[str, Any]:
    """LaunchTemplateData in the types of the API. Raises NotPlayed."""
    refuse_unplayed(KIND, properties, {"LaunchTemplateName", "LaunchTemplateData", "TagSpecifications"}, {})
    given = properties["LaunchTemplateData"]
    refuse_unplayed(KIND, given, PLAYED, {})
    refuse_unplayed(f"{KIND} MetadataOptions", given.get("MetadataOptions", {}), OPTIONS, {})
    for disk in given.get("BlockDeviceMappings", ()):
        refuse_unplayed(f"{KIND} BlockDeviceMappings", disk, {"DeviceName", "Ebs"}, {})
        refuse_unplayed(f"{KIND} Ebs", disk.get("Ebs", {}), DISK, {})
    for card in given.get("NetworkInterfaces", ()):
        refuse_unplayed(f"{KIND} NetworkInterfaces", card, CARD, {})
    shape = wire.model("ec2").operation_model("CreateLaunchTemplate").input_shape
    data = typed(given, shape.members["LaunchTemplateData"], KIND)
    if not isinstance(data, dict):
        raise NotPlayed(f"{KIND}: LaunchTemplateData is not an object")
    return data


def _attributes(template_id: str, latest: int) -> dict[str, Any]:
    return {"LaunchTemplateId": template_id, "LatestVersionNumber": str(latest), "DefaultVersionNumber": "1"}
