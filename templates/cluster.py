"""The ECS cluster and its one service: tasks with a GPU each, ready to lose their host."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from troposphere import GetAtt, Ref, Sub, Template, ecs, logs

from templates import policies
from templates.data import Data
from templates.settings import Settings
from templates.tags import tags

HOST_DIR = "/run/spindrift"
"""Where the agent leaves its notice for the workers beside it."""
SCRATCH_DIR = "/tmp"  # noqa: S108 - a volume of the task's own, mounted there
SERVICE_NAME = "${AWS::StackName}-workers"
"""Chosen here, not by CloudFormation: the capacity Lambda knows it before the service exists (see `add_service`)."""


@dataclass(frozen=True)
class Worker:
    """The resources that others refer to."""

    cluster: ecs.Cluster
    task: ecs.TaskDefinition


def add(template: Template, settings: Settings, data: Data) -> Worker:
    """The cluster and the task definition."""
    cluster = template.add_resource(ecs.Cluster("Cluster", Tags=tags(settings)))
    log_group = template.add_resource(
        logs.LogGroup("WorkerLogs", RetentionInDays=settings.logs.retention_days, Tags=tags(settings))
    )
    task_role = template.add_resource(
        policies.role(
            "WorkerRole",
            "ecs-tasks.amazonaws.com",
            tags(settings),
            [
                policies.take_jobs(data.jobs),
                policies.send_messages(data.dead_letter),
                policies.change_jobs(data.table),
                *policies.read_uploads(data.uploads),
                policies.store_results(data.results),
                policies.open_and_seal(data.key),
                policies.use_encrypted_table(data.key),
                policies.protect_own_task(cluster),
            ],
        )
    )
    execution_role = template.add_resource(
        policies.role(
            "ExecutionRole",
            "ecs-tasks.amazonaws.com",
            tags(settings),
            [*policies.pull_images(), policies.write_logs(log_group)],
        )
    )
    task = template.add_resource(
        ecs.TaskDefinition(
            "WorkerTask",
            ContainerDefinitions=[_container(settings, data, log_group)],
            # Bridge, with a metadata hop limit of 1 (fleet.py): a container cannot reach its host's credentials.
            NetworkMode="bridge",
            RequiresCompatibilities=["EC2"],
            TaskRoleArn=GetAtt(task_role, "Arn"),
            ExecutionRoleArn=GetAtt(execution_role, "Arn"),
            Volumes=[
                ecs.Volume(Name="host", Host=ecs.Host(SourcePath=HOST_DIR)),
                # Without a source, Docker makes it for the task and removes it with the task.
                ecs.Volume(Name="scratch", Host=ecs.Host()),
            ],
            Tags=tags(settings),
        )
    )
    return Worker(cluster, task)


def _container(settings: Settings, data: Data, log_group: logs.LogGroup) -> ecs.ContainerDefinition:
    worker = settings.worker
    environment: dict[str, Any] = {
        "SPINDRIFT_QUEUE_URL": Ref(data.jobs),
        "SPINDRIFT_DEAD_LETTER_QUEUE_URL": Ref(data.dead_letter),
        "SPINDRIFT_JOBS_TABLE": Ref(data.table),
        "SPINDRIFT_RESULTS_BUCKET": Ref(data.results),
        "SPINDRIFT_LEASE_SECONDS": str(settings.queue.lease_seconds),
        "SPINDRIFT_MAX_FAILURES": str(settings.queue.max_failures),
        "SPINDRIFT_STOP_TIMEOUT_SECONDS": str(worker.stop_timeout_seconds),
        "SPINDRIFT_PROCESSOR": worker.processor,
        "SPINDRIFT_OPTIONS": json.dumps(worker.options, sort_keys=True),
        "SPINDRIFT_HOST_DIR": HOST_DIR,
        # ECS on EC2 does not tell a bridge container its region.
        "AWS_DEFAULT_REGION": Ref("AWS::Region"),
    }
    return ecs.ContainerDefinition(
        Name="worker",
        Image=Ref("WorkerImage"),
        Essential=True,
        Cpu=worker.cpu,
        Memory=worker.memory_mib,
        ResourceRequirements=[ecs.ResourceRequirement(Type="GPU", Value="1")],
        Environment=[ecs.Environment(Name=name, Value=environment[name]) for name in sorted(environment)],
        MountPoints=[
            ecs.MountPoint(SourceVolume="host", ContainerPath=HOST_DIR, ReadOnly=True),
            ecs.MountPoint(SourceVolume="scratch", ContainerPath=SCRATCH_DIR, ReadOnly=False),
        ],
        # An upload is hostile input: what breaks out of a decoder finds nothing to write to and nothing to become.
        ReadonlyRootFilesystem=True,
        LinuxParameters=ecs.LinuxParameters(InitProcessEnabled=True, Capabilities=ecs.KernelCapabilities(Drop=["ALL"])),
        StopTimeout=worker.stop_timeout_seconds,
        LogConfiguration=ecs.LogConfiguration(
            LogDriver="awslogs",
            Options={
                "awslogs-group": Ref(log_group),
                "awslogs-region": Ref("AWS::Region"),
                "awslogs-stream-prefix": "worker",
                # Slow logs must not hold up a job.
                "mode": "non-blocking",
                "max-buffer-size": "4m",
            },
        ),
    )


def add_service(template: Template, settings: Settings, worker: Worker, ready: list[str]) -> ecs.Service:
    """The service, made last: `ready` are the titles by which the capacity Lambda hears the minute.

    Without DesiredCount a new service wants one task, and CloudFormation waits until it has it: with no instance, for
    hours. The Lambda's first pass sets it to what is needed, none. With DesiredCount, every change of the service
    would stop the workers instead. See docs/decisions/0010-what-an-update-may-not-reset.md.
    """
    return template.add_resource(
        ecs.Service(
            "WorkerService",
            ServiceName=Sub(SERVICE_NAME),
            Cluster=Ref(worker.cluster),
            TaskDefinition=Ref(worker.task),
            LaunchType="EC2",
            # 0: a task on a draining instance is stopped at once, and does not wait for a replacement to run first.
            DeploymentConfiguration=ecs.DeploymentConfiguration(MinimumHealthyPercent=0, MaximumPercent=200),
            # Fill hosts one by one, so that others fall idle and can leave.
            PlacementStrategies=[ecs.PlacementStrategy(Type="binpack", Field="memory")],
            Tags=tags(settings),
            DependsOn=ready,
        )
    )
