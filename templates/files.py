"""The shared file system: EFS, encrypted at rest and on the way, and only for workers."""

from __future__ import annotations

from dataclasses import dataclass

from troposphere import If, Ref, Template, ec2, efs

from templates.network import Network, let_workers_in
from templates.settings import Settings
from templates.tags import tags

NFS = 2049
WORKER_ID = "10001"
"""The user in the worker's image (ecs-tasks/gpu-worker/Dockerfile)."""


@dataclass(frozen=True)
class Files:
    """The resources that others refer to."""

    file_system: efs.FileSystem
    access_point: efs.AccessPoint
    mounts: list[str]
    """Titles to depend on: before these a task could not mount. (The access point waits for those of zones that a
    region may lack.)
    """


def add(template: Template, settings: Settings, network: Network) -> Files | None:
    """The file system, its door for workers and a mount target in every subnet; None unless it is asked for."""
    if not settings.worker.shared_files:
        return None
    system = _file_system(template, settings)
    group = let_workers_in(template, settings, network, "FilesSecurityGroup", "Shared files", NFS)
    # Apart from the workers' group, which the other one names already.
    way = template.add_resource(
        ec2.SecurityGroupEgress(
            "WorkersReachFiles",
            GroupId=network.security_group,
            IpProtocol="tcp",
            FromPort=NFS,
            ToPort=NFS,
            DestinationSecurityGroupId=Ref(group),
            Description="Shared files",
        )
    )
    mounts, waits = [way.title], []
    for place in network.places:
        mount = template.add_resource(
            efs.MountTarget(
                f"SharedFilesMount{place.zone}",
                FileSystemId=Ref(system),
                SubnetId=place.subnet,
                SecurityGroups=[Ref(group)],
                **place.attributes,
            )
        )
        if place.condition:
            waits.append(If(place.condition, Ref(mount), ""))
        else:
            mounts.append(mount.title)
    access = template.add_resource(
        efs.AccessPoint(
            "SharedFilesAccess",
            FileSystemId=Ref(system),
            # Whoever comes through here is the worker, and this is all there is.
            PosixUser=efs.PosixUser(Uid=WORKER_ID, Gid=WORKER_ID),
            RootDirectory=efs.RootDirectory(
                Path="/spindrift",
                CreationInfo=efs.CreationInfo(OwnerUid=WORKER_ID, OwnerGid=WORKER_ID, Permissions="0750"),
            ),
            AccessPointTags=tags(settings),
            **({"Metadata": {"WaitsFor": waits}} if waits else {}),
        )
    )
    return Files(system, access, mounts)


def _file_system(template: Template, settings: Settings) -> efs.FileSystem:
    return template.add_resource(
        efs.FileSystem(
            "SharedFiles",
            # EFS's own key: KmsKeyId cannot be changed, so with ours, security.customer_key would make a new, empty
            # file system.
            Encrypted=True,
            ThroughputMode="elastic",
            BackupPolicy=efs.BackupPolicy(Status="ENABLED"),
            LifecyclePolicies=[efs.LifecyclePolicy(TransitionToIA="AFTER_30_DAYS")],
            # Having a policy ends the default one, full access for anybody who reaches a mount target (EFS User Guide,
            # "Default EFS file system policy"): only a role that may mount can.
            FileSystemPolicy={
                "Version": "2012-10-17",
                "Statement": [
                    _refuse({"aws:SecureTransport": "false"}),
                    _refuse({"elasticfilesystem:AccessedViaMountTarget": "false"}),
                ],
            },
            FileSystemTags=tags(settings),
            DeletionPolicy="Retain",
            UpdateReplacePolicy="Retain",
        )
    )


def _refuse(condition: dict[str, str]) -> dict[str, object]:
    return {
        "Effect": "Deny",
        "Principal": {"AWS": "*"},
        "Action": [
            "elasticfilesystem:ClientMount",
            "elasticfilesystem:ClientRootAccess",
            "elasticfilesystem:ClientWrite",
        ],
        "Condition": {"Bool": condition},
    }
