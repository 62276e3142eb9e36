"""What an instance is launched from: a launch template's version, its subnets, its role, as the API tells them."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from botocore.exceptions import ClientError

from localcloud import substrate
from localcloud.wire import Fault

PLAYED = {
    "ImageId",
    "InstanceType",
    "UserData",
    "IamInstanceProfile",
    "SecurityGroupIds",
    "NetworkInterfaces",
    "MetadataOptions",
    "BlockDeviceMappings",
    "TagSpecifications",
    "EbsOptimized",
    "Monitoring",
}
"""Members of LaunchTemplateData that an instance here honours, or shows in DescribeInstances at least."""


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """What all instances of one launch template version have in common."""

    template_id: str
    version: int
    image_id: str = "ami-00000000000000000"
    instance_type: str = ""
    user_data: str = ""
    """Decoded."""
    profile_arn: str = ""
    role_arn: str = ""
    """The instance profile's role, or "" when it has none or the role does not trust EC2."""
    security_groups: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    """Of the template's tag specification for instances."""
    hop_limit: int = 1
    public_ip: bool | None = None
    """Whether an instance gets a public address; None leaves it to the subnet."""


@dataclass(frozen=True)
class Subnet:
    """Where an instance is put."""

    id: str
    zone: str
    vpc: str
    public: bool = True
    """Whether what is launched there gets a public address."""


class Surveyor(Protocol):
    """Looks up what a launch needs. Never ask it with the world's lock held: the real one calls the API."""

    def blueprint(self, template: Mapping[str, Any]) -> Blueprint:
        """The version that a launch template specification names. Raises Fault."""
        ...

    def subnets(self, ids: Iterable[str]) -> dict[str, Subnet]:
        """The subnets by id. Raises Fault when one does not exist."""
        ...

    def trusts(self, role_arn: str, principal: str) -> bool:
        """Whether the role exists and a service principal may assume it."""
        ...


class ApiSurveyor:
    """Asks the emulator's EC2 and IAM, as the operator."""

    def blueprint(self, template: Mapping[str, Any]) -> Blueprint:
        """The version that a launch template specification names. Raises Fault."""
        version = str(template.get("Version", ""))
        if not version.isdigit():
            raise Fault("InvalidParameterValue", f"launch template version must be a number here, not {version!r}")
        which = {key: template[key] for key in ("LaunchTemplateId", "LaunchTemplateName") if template.get(key)}
        found = _asked("ec2", "describe_launch_template_versions", Versions=[version], **which)
        if not found["LaunchTemplateVersions"]:
            raise Fault("InvalidLaunchTemplateId.VersionNotFound", f"Could not find version {version} of {which}")
        return self._drawn(found["LaunchTemplateVersions"][0])

    def _drawn(self, version: Mapping[str, Any]) -> Blueprint:
        data = version["LaunchTemplateData"]
        if unplayed := sorted(key for key, value in data.items() if value and key not in PLAYED):
            raise Fault("NotPlayed", f"the local cloud does not play {', '.join(unplayed)} of a launch template")
        options = data.get("MetadataOptions", {})
        if options.get("HttpTokens", "required") != "required":
            raise Fault("NotPlayed", "the local cloud plays IMDSv2 only: set MetadataOptions.HttpTokens to required")
        groups = data.get("SecurityGroupIds") or [
            group for card in data.get("NetworkInterfaces", ()) for group in card.get("Groups", ())
        ]
        asked = [
            bool(card["AssociatePublicIpAddress"])
            for card in data.get("NetworkInterfaces", ())
            if "AssociatePublicIpAddress" in card
        ]
        profile_arn, role_arn = self._profile(data.get("IamInstanceProfile", {}))
        return Blueprint(
            template_id=version["LaunchTemplateId"],
            version=int(version["VersionNumber"]),
            image_id=data.get("ImageId", Blueprint.image_id),
            instance_type=data.get("InstanceType", ""),
            user_data=base64.b64decode(data.get("UserData", "")).decode(),
            profile_arn=profile_arn,
            role_arn=role_arn,
            security_groups=tuple(groups),
            tags={
                tag["Key"]: tag["Value"]
                for specification in data.get("TagSpecifications", ())
                if specification["ResourceType"] == "instance"
                for tag in specification["Tags"]
            },
            hop_limit=int(options.get("HttpPutResponseHopLimit", 1)),
            public_ip=next(iter(asked), None),
        )

    def _profile(self, reference: Mapping[str, str]) -> tuple[str, str]:
        name = reference.get("Name") or reference.get("Arn", "").rsplit("/", 1)[-1]
        if not name:
            return "", ""
        profile = _asked("iam", "get_instance_profile", InstanceProfileName=name)["InstanceProfile"]
        roles = [role["Arn"] for role in profile["Roles"] if _may_assume(role, "ec2.amazonaws.com")]
        return profile["Arn"], roles[0] if roles else ""

    def subnets(self, ids: Iterable[str]) -> dict[str, Subnet]:
        """The subnets by id. Raises Fault when one does not exist."""
        found = _asked("ec2", "describe_subnets", SubnetIds=sorted(set(ids)))["Subnets"]
        return {
            one["SubnetId"]: Subnet(
                one["SubnetId"], one["AvailabilityZone"], one["VpcId"], one.get("MapPublicIpOnLaunch", False)
            )
            for one in found
        }

    def trusts(self, role_arn: str, principal: str) -> bool:
        """Whether the role exists and a service principal may assume it."""
        try:
            role = _asked("iam", "get_role", RoleName=role_arn.rsplit("/", 1)[-1])["Role"]
        except Fault as fault:
            if fault.code == "NoSuchEntity":
                return False
            raise
        return _may_assume(role, principal)


def _asked(service: str, operation: str, **parameters: Any) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = getattr(substrate.operator(service), operation)(**parameters)
    except ClientError as error:
        raise Fault(error.response["Error"]["Code"], error.response["Error"]["Message"]) from error
    return answer


def _may_assume(role: Mapping[str, Any], principal: str) -> bool:
    """Whether the trust policy names the service. Conditions of the policy are not weighed."""
    for statement in role["AssumeRolePolicyDocument"]["Statement"]:
        services = statement.get("Principal", {}).get("Service", [])
        if statement["Effect"] == "Allow" and principal in ([services] if isinstance(services, str) else services):
            return True
    return False
