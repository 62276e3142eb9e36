"""EC2's calls about what a region offers: instance types by zone, and the ECS-optimized images."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from moto.ssm.utils import convert_to_params
from moto.utilities.utils import load_resource

from localcloud import catalog, listing
from localcloud.requirements import satisfying
from localcloud.wire import Call, Fault, plays
from localcloud.world import REGION, ZONES

IMAGE_OWNER = "591542846629"
"""Amazon's account for ECS images (ECS Developer Guide, "Retrieving Amazon ECS-optimized Linux AMI metadata")."""
ROOT_GIB = 30
"""Snapshot of the ECS AL2023 images (aws/amazon-ecs-ami, variables.pkr.hcl)."""


class OfferingCalls:
    """Operations of EC2 that need no account. Part of `ec2.Ec2`."""

    @plays("LocationType", "Filters", "MaxResults", "NextToken")
    def describe_instance_type_offerings(self, call: Call) -> Mapping[str, Any]:
        """Which types there are where, from moto's copy of AWS's answer for the region."""
        kind = call.params.get("LocationType", "region")
        if kind not in ("region", "availability-zone"):
            raise Fault("NotPlayed", f"the local cloud does not play LocationType {kind}")
        pools = offered() if kind == "availability-zone" else tuple((name, REGION) for name in catalog.names())
        known = {"instance-type": lambda pool: [pool[0]], "location": lambda pool: [pool[1]]}
        chosen = listing.filtered(pools, call.params.get("Filters", ()), known, lambda _: {})
        shown, more = listing.page(chosen, call.params, 1000)
        offerings = [{"InstanceType": name, "LocationType": kind, "Location": place} for name, place in shown]
        return {"InstanceTypeOfferings": offerings, **more}

    @plays("ArchitectureTypes", "VirtualizationTypes", "InstanceRequirements", "MaxResults", "NextToken")
    def get_instance_types_from_instance_requirements(self, call: Call) -> Mapping[str, Any]:
        """The types that attribute-based selection would take."""
        if call.params["VirtualizationTypes"] != ["hvm"] or len(call.params["ArchitectureTypes"]) != 1:
            raise Fault("NotPlayed", "the local cloud plays hvm, and one architecture at a time")
        names = satisfying(call.params["InstanceRequirements"], call.params["ArchitectureTypes"][0])
        shown, more = listing.page(names, call.params, 1000)
        return {"InstanceTypes": [{"InstanceType": name} for name in shown], **more}

    @plays("ImageIds")
    def describe_images(self, call: Call) -> Mapping[str, Any]:
        """The images behind the ECS parameters of SSM. There are no others to launch from here."""
        ids = call.params.get("ImageIds") or sorted(_images())
        if unknown := sorted(set(ids) - _images().keys()):
            raise Fault("InvalidAMIID.NotFound", f"The image id '[{', '.join(unknown)}]' does not exist")
        return {"Images": [_image(one, _images()[one]) for one in ids]}


@cache
def offered() -> tuple[tuple[str, str], ...]:
    """Type and zone of every pool that there is."""
    place = f"resources/instance_type_offerings/availability-zone/{REGION}.json.gz"
    rows = json.loads(gzip.decompress((resources.files("moto.ec2") / place).read_bytes()))
    return tuple((row["InstanceType"], row["Location"]) for row in rows if row["Location"] in ZONES)


@cache
def _images() -> dict[str, str]:
    """By image id: the name of the image's parameter."""
    published = load_resource(str(resources.files("moto.ssm") / f"resources/ecs/optimized_amis/{REGION}.json"))
    values = {one["Name"]: one["Value"] for one in convert_to_params(published)}
    return {value: name for name, value in values.items() if name.endswith("/image_id")}


def _image(image_id: str, parameter: str) -> dict[str, Any]:
    architecture = "arm64" if "/arm64/" in parameter else "x86_64"
    disk = {"SnapshotId": f"snap-{image_id[4:]}", "VolumeSize": ROOT_GIB, "VolumeType": "gp3", "Encrypted": False}
    return {
        "ImageId": image_id,
        "Name": parameter.removeprefix("/aws/service/ecs/optimized-ami/").replace("/", "-"),
        "OwnerId": IMAGE_OWNER,
        "ImageOwnerAlias": "amazon",
        "Architecture": architecture,
        "State": "available",
        "Public": True,
        "RootDeviceName": "/dev/xvda",
        "RootDeviceType": "ebs",
        "VirtualizationType": "hvm",
        "BlockDeviceMappings": [{"DeviceName": "/dev/xvda", "Ebs": {**disk, "DeleteOnTermination": True}}],
    }
