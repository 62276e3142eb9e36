"""The ECS cluster and a service for each queue: tasks with a GPU each, ready to lose their host."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from troposphere import GetAtt, Ref, Sub, Template, ecs, iam, logs

from templates import policies
from templates.data import IN_BETWEEN, Data
from templates.files import Files
from templates.instance_types import INSTANCE_TYPES
from templates.settings import Queue, Settings
from templates.tags import tags

HOST_DIR = "/run/spindrift"
"""Where the agent leaves its notice for the workers beside it."""
SCRATCH_DIR = "/tmp"  # noqa: S108 - a volume of the task's own, mounted there
SHARED_DIR = "/shared"
"""Where the tasks find the file system that they share, or the apps of their host's image, if there is either."""
SCRATCH_DIRS = {"disk": SCRATCH_DIR, "memory": "/dev/shm", "shared": f"{SHARED_DIR}/.scratch"}  # noqa: S108 - as above
PULSE = ["CMD", "python", "-m", "gpu_worker.pulse"]
"""The image's own health check: ECS looks at none but the task definition's."""


@dataclass(frozen=True)
class Worker:
    """The resources that others refer to."""

    cluster: ecs.Cluster
    tasks: dict[str, ecs.TaskDefinition]
    """By name of queue, in the order of the settings."""


def service_name(queue: Queue) -> str:
    """The name of a queue's service, for Fn::Sub. Chosen here, not by CloudFormation: the capacity Lambda knows it
    before the service exists (see `add_services`).
    """
    return f"${{AWS::StackName}}-{queue.name}"


def add(template: Template, settings: Settings, data: Data, files: Files | None) -> Worker:
    """The cluster and the task definitions."""
    cluster = template.add_resource(ecs.Cluster("Cluster", Tags=tags(settings)))
    log_group = template.add_resource(
        logs.LogGroup("WorkerLogs", RetentionInDays=settings.logs.retention_days, Tags=tags(settings))
    )
    execution_role = template.add_resource(
        policies.role(
            "ExecutionRole",
            "ecs-tasks.amazonaws.com",
            tags(settings),
            [*policies.pull_images(), policies.write_logs(log_group)],
        )
    )
    role = _worker_role(template, settings, data, cluster, files)
    tasks = {
        queue.name: template.add_resource(
            ecs.TaskDefinition(
                f"{queue.title}Task",
                ContainerDefinitions=[_container(settings, queue, data, log_group)],
                # Bridge, with a metadata hop limit of 1 (machines.py): a container cannot reach its host's credentials.
                NetworkMode="bridge",
                RequiresCompatibilities=["EC2"],
                TaskRoleArn=GetAtt(role, "Arn"),
                ExecutionRoleArn=GetAtt(execution_role, "Arn"),
                Volumes=_volumes(settings, files),
                Tags=tags(settings),
            )
        )
        for queue in settings.queues
    }
    return Worker(cluster, tasks)


def _worker_role(
    template: Template, settings: Settings, data: Data, cluster: ecs.Cluster, files: Files | None
) -> iam.Role:
    """One for the workers of all queues: they are the same program."""
    jobs = data.jobs.values()
    return template.add_resource(
        policies.role(
            "WorkerRole",
            "ecs-tasks.amazonaws.com",
            tags(settings),
            [
                policies.take_jobs(*jobs),
                # A job may be split into parts, which are jobs too.
                policies.send_messages(data.dead_letter, *jobs),
                policies.change_jobs(data.table),
                policies.create_jobs(data.table),
                policies.price_pools(data.pools),
                *policies.read_uploads(data.uploads),
                *([policies.delete_uploads(data.uploads)] if settings.uploads.delete_after_success else []),
                policies.store_results(data.results),
                policies.share_in_between(data.results, IN_BETWEEN),
                *policies.open_and_seal(data.key),
                *policies.use_encrypted_table(data.key),
                policies.protect_own_task(cluster),
                policies.see_own_host(cluster),
                policies.see_dead_workers(cluster),
                *([policies.mount_files(files.file_system, files.access_point)] if files else []),
            ],
        )
    )


def _volumes(settings: Settings, files: Files | None) -> list[ecs.Volume]:
    volumes = [
        ecs.Volume(Name="host", Host=ecs.Host(SourcePath=HOST_DIR)),
        # Without a source, Docker makes it for the task and removes it with the task.
        ecs.Volume(Name="scratch", Host=ecs.Host()),
    ]
    if files:
        shared = ecs.EFSVolumeConfiguration(
            FilesystemId=Ref(files.file_system),
            TransitEncryption="ENABLED",
            AuthorizationConfig=ecs.AuthorizationConfig(AccessPointId=Ref(files.access_point), IAM="ENABLED"),
        )
        volumes.append(ecs.Volume(Name="shared", EFSVolumeConfiguration=shared))
    elif settings.image.apps:
        volumes.append(ecs.Volume(Name="shared", Host=ecs.Host(SourcePath=SHARED_DIR)))
    return volumes


def _container(settings: Settings, queue: Queue, data: Data, log_group: logs.LogGroup) -> ecs.ContainerDefinition:
    worker = settings.worker
    environment = {
        **environment_of_work(settings),
        "SPINDRIFT_QUEUE": queue.name,
        "SPINDRIFT_QUEUE_URL": Ref(data.jobs[queue.name]),
        "SPINDRIFT_DEAD_LETTER_QUEUE_URL": Ref(data.dead_letter),
        "SPINDRIFT_JOBS_TABLE": Ref(data.table),
        "SPINDRIFT_POOLS_TABLE": Ref(data.pools),
        "SPINDRIFT_RESULTS_BUCKET": Ref(data.results),
        "SPINDRIFT_LEASE_SECONDS": str(queue.lease_seconds),
        "SPINDRIFT_MAX_FAILURES": str(queue.max_failures),
        "SPINDRIFT_STOP_TIMEOUT_SECONDS": str(worker.stop_timeout_seconds),
        "SPINDRIFT_PROCESSORS": str(worker.processors),
        "SPINDRIFT_HOST_DIR": HOST_DIR,
    }
    mounts = [
        ecs.MountPoint(SourceVolume="host", ContainerPath=HOST_DIR, ReadOnly=True),
        ecs.MountPoint(SourceVolume="scratch", ContainerPath=SCRATCH_DIR, ReadOnly=False),
    ]
    if worker.batch > 1:
        environment["SPINDRIFT_BATCH"] = str(worker.batch)
    if several := _gpus_by_type(settings):
        environment["SPINDRIFT_GPUS_BY_TYPE"] = json.dumps(several)
    if worker.shared_files:
        mounts.append(ecs.MountPoint(SourceVolume="shared", ContainerPath=SHARED_DIR, ReadOnly=False))
    elif settings.image.apps:
        # What the host has unpacked there (image.py).
        mounts.append(ecs.MountPoint(SourceVolume="shared", ContainerPath=SHARED_DIR, ReadOnly=True))
    return ecs.ContainerDefinition(
        Name="worker",
        Image=Ref("WorkerImage"),
        Essential=True,
        Cpu=worker.cpu,
        Memory=worker.memory_mib,
        ResourceRequirements=[ecs.ResourceRequirement(Type="GPU", Value="1")],
        Environment=[ecs.Environment(Name=name, Value=environment[name]) for name in sorted(environment)],
        MountPoints=mounts,
        # An upload is hostile input: what breaks out of a decoder finds nothing to write to and nothing to become.
        ReadonlyRootFilesystem=True,
        LinuxParameters=ecs.LinuxParameters(
            InitProcessEnabled=True,
            Capabilities=ecs.KernelCapabilities(Drop=["ALL"]),
            **shared_memory(settings),
        ),
        DockerSecurityOptions=["no-new-privileges"],
        # Two minutes for a processor to load; then a loop that stands still is known in two and a half.
        HealthCheck=ecs.HealthCheck(Command=PULSE, Interval=30, Timeout=10, Retries=3, StartPeriod=120),
        StopTimeout=worker.stop_timeout_seconds,
        LogConfiguration=ecs.LogConfiguration(**log_configuration(log_group)),
    )


def log_configuration(log_group: logs.LogGroup) -> dict[str, Any]:
    """Where a worker's output goes, whoever runs it."""
    return {
        "LogDriver": "awslogs",
        "Options": {
            "awslogs-group": Ref(log_group),
            "awslogs-region": Ref("AWS::Region"),
            "awslogs-stream-prefix": "worker",
            # Slow logs must not hold up a job.
            "mode": "non-blocking",
            "max-buffer-size": "4m",
        },
    }


def shared_memory(settings: Settings) -> dict[str, int]:
    """For scratch in memory half of it may be /dev/shm; what lies there counts as the container's."""
    worker = settings.worker
    return {"SharedMemorySize": worker.memory_mib // 2} if worker.scratch == "memory" else {}


def environment_of_work(settings: Settings) -> dict[str, Any]:
    """What the worker is told of the work itself, whoever runs it."""
    worker = settings.worker
    program = (
        {"SPINDRIFT_COMMAND": json.dumps(worker.command)}
        if worker.command
        else {"SPINDRIFT_PROCESSOR": worker.processor}
    )
    return {
        "SPINDRIFT_STACK": Ref("AWS::StackName"),
        "SPINDRIFT_JOB_SECONDS": str(worker.job_seconds),
        "SPINDRIFT_MAX_INPUT_BYTES": str(worker.max_input_mib * 2**20),
        "SPINDRIFT_MAX_OUTPUT_BYTES": str(worker.max_output_mib * 2**20),
        "SPINDRIFT_OPTIONS": json.dumps(worker.options, sort_keys=True),
        "SPINDRIFT_SCRATCH_DIR": SCRATCH_DIRS[worker.scratch],
        # ECS on EC2 does not tell a bridge container its region.
        "AWS_DEFAULT_REGION": Ref("AWS::Region"),
        **program,
        **({"SPINDRIFT_SHARED_DIR": SHARED_DIR} if worker.shared_files else {}),
        **({"SPINDRIFT_DELETE_UPLOADS": "1"} if settings.uploads.delete_after_success else {}),
    }


def _gpus_by_type(settings: Settings) -> dict[str, int]:
    """The types that have more GPUs than a task takes, so that each job pays its share. By attributes none has."""
    wanted = () if settings.compute.attributes else settings.compute.instance_types
    counts = {name: INSTANCE_TYPES[name].gpus for name in sorted({*wanted, *settings.on_demand.instance_types})}
    return {name: gpus for name, gpus in counts.items() if gpus > 1}


def add_services(template: Template, settings: Settings, worker: Worker, ready: list[str]) -> list[ecs.Service]:
    """A service for each queue, made last: `ready` are the titles by which the capacity Lambda hears the minute, and
    those without which no task could start.

    Without DesiredCount a new service wants one task, and CloudFormation waits until it has it: with no instance, for
    hours. The Lambda's first pass sets it to what is needed, none. With DesiredCount, every change of the service
    would stop the workers instead. See docs/decisions/0010-what-an-update-may-not-reset.md; and 0013 for why the
    profile `groups`, where the Lambda does not set it, has no choice.
    """
    desired = {"DesiredCount": 0} if settings.profile == "groups" else {}
    return [
        template.add_resource(
            ecs.Service(
                f"{queue.title}Service",
                ServiceName=Sub(service_name(queue)),
                Cluster=Ref(worker.cluster),
                TaskDefinition=Ref(worker.tasks[queue.name]),
                LaunchType="EC2",
                # 0: a task on a draining instance is stopped at once, and does not wait for a replacement to run first.
                DeploymentConfiguration=ecs.DeploymentConfiguration(MinimumHealthyPercent=0, MaximumPercent=200),
                # Fill hosts one by one, so that others fall idle and can leave.
                PlacementStrategies=[ecs.PlacementStrategy(Type="binpack", Field="memory")],
                Tags=tags(settings),
                DependsOn=ready,
                **desired,
                **_placement(queue),
            )
        )
        for queue in settings.queues
    ]


def _placement(queue: Queue) -> dict[str, Any]:
    """Where the tasks may run: an instance says at its start what its metadata calls its life cycle (userdata.py)."""
    if queue.placement == "any":
        return {}
    only = ecs.PlacementConstraint(Type="memberOf", Expression=f"attribute:lifecycle == {queue.placement}")
    return {"PlacementConstraints": [only]}
