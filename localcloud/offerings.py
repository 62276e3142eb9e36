"""EC2's calls about what a region offers: instance types by zone, and the ECS-optimized images."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any

from localcloud import catalog, listing, published
from localcloud.requirements import satisfying
from localcloud.wire import Call, Fault, plays
from localcloud.world import ACCOUNT, REGION, ZONES, World

if TYPE_CHECKING:
    from localcloud.instances import Instances

IMAGE_OWNER = "591542846629"
"""Amazon's account for ECS images (ECS Developer Guide, "Retrieving Amazon ECS-optimized Linux AMI metadata")."""
ROOT_GIB = 30
"""Snapshot of the ECS AL2023 images (aws/amazon-ecs-ami, variables.pkr.hcl)."""
STORED_BYTES = 14 * 2**30
"""What the snapshot of an image of our own holds: chosen."""


class Amis:
    """The account's own images. Called with the world's lock held."""

    def __init__(self, instances: Instances) -> None:
        self._instances = instances
        self.shown: dict[str, dict[str, Any]] = {}
        """By id: as DescribeImages shows it."""
        self.snapshots: dict[str, dict[str, Any]] = {}

    def register(self, name: str, root_gib: int, tags: Mapping[str, str], now: datetime) -> str:
        """A new image of an instance's root volume. Returns its id."""
        number = self._instances.world.dice.getrandbits(68)
        ami, snapshot = f"ami-{number:017x}", f"snap-{number:017x}"
        labels = [{"Key": key, "Value": value} for key, value in tags.items()]
        self.shown[ami] = {
            **_described(ami, f"{name} {now.isoformat()}", snapshot, root_gib),
            "OwnerId": ACCOUNT,
            "Public": False,
            "CreationDate": now.isoformat(),
            "Tags": labels,
        }
        self.snapshots[snapshot] = {
            "SnapshotId": snapshot,
            "State": "completed",
            "VolumeSize": root_gib,
            "FullSnapshotSizeInBytes": STORED_BYTES,
            "StartTime": now,
            "OwnerId": ACCOUNT,
            "Tags": labels,
        }
        return ami

    def deregister(self, ami: str) -> None:
        """Remove it and its snapshot."""
        del self.snapshots[self.shown.pop(ami)["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"]]

    def launched(self, ami: str) -> bool:
        """Whether an instance was launched from it lately: one that EC2 still shows."""
        return any(one.blueprint.image_id == ami for one in self._instances.all())


class OfferingCalls:
    """Operations of EC2 about what there is to launch. Part of `ec2.Ec2`."""

    world: World
    amis: Amis

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

    @plays("ImageIds", "Owners", "Filters", "MaxResults", "NextToken")
    def describe_images(self, call: Call) -> Mapping[str, Any]:
        """The images behind the ECS parameters of SSM, and the account's own."""
        owners = call.params.get("Owners", ["amazon", "self"])
        if unknown := sorted(set(owners) - {"amazon", "self"}):
            raise Fault("NotPlayed", f"the local cloud does not play Owners {', '.join(unknown)}")
        with self.world.lock:
            known = {one: _image(one, parameter) for one, parameter in _images().items() if "amazon" in owners}
            known |= self.amis.shown if "self" in owners else {}
        ids = call.params.get("ImageIds") or sorted(known)
        if unknown := sorted(set(ids) - known.keys()):
            raise Fault("InvalidAMIID.NotFound", f"The image id '[{', '.join(unknown)}]' does not exist")
        chosen = listing.filtered((known[one] for one in ids), call.params.get("Filters", ()), {}, _labels)
        shown, more = listing.page(chosen, call.params, 1000)
        return {"Images": shown, **more}

    @plays("ImageId", "DeleteAssociatedSnapshots")
    def deregister_image(self, call: Call) -> Mapping[str, Any]:
        """Remove an image of the account's own, and what it was stored in."""
        ami = call.params["ImageId"]
        if not call.params.get("DeleteAssociatedSnapshots"):
            raise Fault("NotPlayed", "the local cloud deregisters images with their snapshots only")
        with self.world.lock:
            if ami not in self.amis.shown:
                raise Fault("InvalidAMIID.NotFound", f"The image id '[{ami}]' does not exist")
            self.amis.deregister(ami)
        return {"Return": True}

    @plays("SnapshotIds")
    def describe_snapshots(self, call: Call) -> Mapping[str, Any]:
        """Snapshots of the account's own images."""
        with self.world.lock:
            known = dict(self.amis.snapshots)
        ids = call.params.get("SnapshotIds") or sorted(known)
        if unknown := sorted(set(ids) - known.keys()):
            raise Fault("InvalidSnapshot.NotFound", f"The snapshot '{unknown[0]}' does not exist.")
        return {"Snapshots": [known[one] for one in ids]}


@cache
def offered() -> tuple[tuple[str, str], ...]:
    """Type and zone of every pool that there is."""
    rows = published.offerings()
    return tuple((row["InstanceType"], row["Location"]) for row in rows if row["Location"] in ZONES)


@cache
def _images() -> dict[str, str]:
    """By image id: the name of the image's parameter."""
    return {value: name for name, value in published.ecs_parameters().items() if name.endswith("/image_id")}


def _labels(shown: Mapping[str, Any]) -> dict[str, str]:
    return {one["Key"]: one["Value"] for one in shown.get("Tags", ())}


def _image(image_id: str, parameter: str) -> dict[str, Any]:
    name = parameter.removeprefix("/aws/service/ecs/optimized-ami/").replace("/", "-")
    return {
        **_described(image_id, name, f"snap-{image_id[4:]}", ROOT_GIB),
        "OwnerId": IMAGE_OWNER,
        "ImageOwnerAlias": "amazon",
        "Architecture": "arm64" if "/arm64/" in parameter else "x86_64",
        "Public": True,
    }


def _described(image_id: str, name: str, snapshot: str, root_gib: int) -> dict[str, Any]:
    """What all images have in common."""
    disk = {"SnapshotId": snapshot, "VolumeSize": root_gib, "VolumeType": "gp3", "Encrypted": False}
    return {
        "ImageId": image_id,
        "Name": name,
        "Architecture": "x86_64",
        "State": "available",
        "RootDeviceName": "/dev/xvda",
        "RootDeviceType": "ebs",
        "VirtualizationType": "hvm",
        "BlockDeviceMappings": [{"DeviceName": "/dev/xvda", "Ebs": {**disk, "DeleteOnTermination": True}}],
    }
