"""EFS as a task meets it: a folder for each file system, and everything that can stand between the two.

The file systems, mount targets, access points and their policies are the emulator's (CloudFormation and the EFS API);
what is played here is the mount itself (EFS User Guide, "Using IAM to control access to file systems", "Working with
Amazon EFS access points"). User ids and permission bits of an access point are not: all is the laptop's user's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from localcloud import substrate
from localcloud.host import Host
from localcloud.network import NFS
from localcloud.world import World

Record = Mapping[str, Any]


class CannotMount(Exception):
    """The volume cannot be had; the message says what the mount helper would."""


def mount(world: World, host: Host, role: str, task: str, volume: Record) -> Path:
    """The folder that stands for an EFS volume of a task. Raises CannotMount.

    `volume` is the efsVolumeConfiguration of its task definition, `role` the ARN of the task's role.
    """
    system = _found("file-system", "FileSystemId", volume["fileSystemId"])
    _reach(host, system["FileSystemId"])
    access = volume.get("authorizationConfig", {})
    point = _found("access-point", "AccessPointId", access["accessPointId"]) if "accessPointId" in access else None
    if point is not None and point["FileSystemId"] != system["FileSystemId"]:
        raise CannotMount(f"access point {point['AccessPointId']} is not of {system['FileSystemId']}")
    caller = (role, task) if access.get("iam") == "ENABLED" else ("", "")
    _authorize(system, point, caller, encrypted=volume.get("transitEncryption") == "ENABLED")
    whole = world.state / "files" / system["FileSystemId"]
    whole.mkdir(parents=True, exist_ok=True)
    directory = point["RootDirectory"] if point else {"Path": volume.get("rootDirectory", "/")}
    folder: Path = whole / directory.get("Path", "/").lstrip("/")
    if "CreationInfo" in directory:
        folder.mkdir(parents=True, exist_ok=True)
    if not folder.is_dir():
        raise CannotMount(f"{directory['Path']}: no such directory on {system['FileSystemId']}, and nothing to make it")
    return folder


def _reach(host: Host, system: str) -> None:
    """The file system's name resolves to the mount target in the instance's zone, if there is one."""
    targets = [one for one in substrate.records("mount-target") if one["FileSystemId"] == system]
    here = [one for one in targets if one["AvailabilityZoneName"] == host.zone]
    if not here:
        raise CannotMount(f"Failed to resolve {system}: it has no mount target in {host.zone}")
    if not host.way.meets(here[0]["SecurityGroups"], NFS, here[0]["IpAddress"]):
        raise CannotMount(f"mount.nfs4: Connection timed out: no way to {here[0]['MountTargetId']} on port {NFS}")


def _authorize(system: Record, point: Record | None, caller: tuple[str, str], encrypted: bool) -> None:
    """Without a policy a file system is open to whoever reaches it; with one an Allow there or of the role counts."""
    keys = {"elasticfilesystem:accessedviamounttarget": "true", "aws:securetransport": str(encrypted).lower()}
    if point is not None:
        keys["elasticfilesystem:accesspointarn"] = point["AccessPointArn"]
    for action in ("elasticfilesystem:ClientMount", "elasticfilesystem:ClientWrite"):
        if not substrate.file_system_lets(system, caller, action, keys):
            raise CannotMount(f"mount.nfs4: access denied by server while mounting {system['FileSystemId']}: {action}")


def _found(kind: str, key: str, name: str) -> Record:
    found = [one for one in substrate.records(kind) if one[key] == name]
    if not found:
        raise CannotMount(f"Failed to resolve {name}: there is no such {kind}")
    return found[0]
