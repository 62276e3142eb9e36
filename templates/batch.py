"""The stack `batch`: the same worker on AWS Batch, for work that is there already and is handed in as a whole.

Nothing of the stack `cluster` is needed and nothing of it is touched: Batch has its own queues, keeps its own records
and buys its own machines. What it cannot say in a template is in docs/decisions/0031-the-same-worker-on-batch.md.
"""

from __future__ import annotations

from math import ceil
from typing import Any

from troposphere import Export, GetAtt, Output, Parameter, Ref, Sub, Template, batch, iam, logs

from templates import cluster, data, files, image, machines, network, policies
from templates.assets import Assets
from templates.cluster import SCRATCH_DIR, SHARED_DIR
from templates.data import Buckets
from templates.files import Files
from templates.instance_types import INSTANCE_TYPES
from templates.network import Network
from templates.settings import Queue, Settings
from templates.tags import as_mapping, tags

MANIFESTS, FAILURES, CHECKPOINTS = ".manifests/", ".failures/", ".checkpoints/"
"""Folders of the results bucket that are for a while only (ops/batch.py, worker: once.py, checkpoint.py)."""
AROUND_AN_ATTEMPT = 1800
"""Seconds for what is not the job's own time: pulling the image is not in it, loading, download and upload are. What
runs longer hangs; Batch then fails the job and does not try again.
"""
MOST_UPDATE_MINUTES = 7200
"""API reference, UpdatePolicy."""


def build(settings: Settings, assets: Assets) -> Template:  # noqa: ARG001 - as every stack's
    """Everything that takes a list of objects to their results."""
    template = Template(Description="Spindrift: GPU batch work on AWS Batch, on Spot first.")
    for parameter in (
        Parameter("WorkerImage", Type="String", Description="Container image of the GPU worker, as a URI"),
        Parameter(
            "AmiId",
            Type="AWS::SSM::Parameter::Value<AWS::EC2::Image::Id>",
            Default=image.ECS_GPU_IMAGE,
            Description="SSM parameter with the id of the instances' image; by default ECS's newest with GPU drivers",
        ),
    ):
        template.add_parameter(parameter)
    places = network.add(template, settings)
    shared = files.add(template, settings, places)
    buckets = data.add_buckets(template, settings, between=(MANIFESTS, FAILURES, CHECKPOINTS))
    log_group = template.add_resource(
        logs.LogGroup("WorkerLogs", RetentionInDays=settings.logs.retention_days, Tags=tags(settings))
    )
    environments = _environments(template, settings, places, shared, log_group)
    definition = _definitions(template, settings, buckets, shared, log_group)
    outputs: dict[str, tuple[str, Any]] = {
        "UploadsBucket": ("Put files here, then `python build.py batch submit`", Ref(buckets.uploads)),
        "ResultsBucket": ("Results come here", Ref(buckets.results)),
    }
    for place, queue in enumerate(settings.queues):
        jobs = _queue(template, settings, queue, len(settings.queues) - place, environments)
        outputs[f"{queue.title}Queue"] = (f"Batch's job queue of {queue.name}", Ref(jobs))
        outputs[f"{queue.title}Job"] = (f"What a job of {queue.name} is", Ref(definition[queue.name]))
    for title, (what, value) in outputs.items():
        name = Export(Sub(f"${{AWS::StackName}}-{title}"))
        template.add_output(Output(title, Description=what, Value=value, Export=name))
    return template


# Machines


def _environments(
    template: Template, settings: Settings, places: Network, shared: Files | None, log_group: logs.LogGroup
) -> dict[str, batch.ComputeEnvironment]:
    """By market. Without On-Demand there is only Spot."""
    role = template.add_resource(
        policies.role(
            "InstanceRole",
            policies.EC2,
            tags(settings),
            [
                *policies.join_clusters_of_batch(),
                # Batch does not say that its agents let the log driver use the execution role.
                policies.write_logs(log_group),
                *(policies.open_sessions() if settings.security.session_manager else []),
            ],
        )
    )
    profile = template.add_resource(iam.InstanceProfile("InstanceProfile", Roles=[Ref(role)]))
    start = machines.start_data(settings)
    launch = machines.add_launch_template(template, settings, "LaunchTemplate", start)
    choice = settings.on_demand
    # EC2 chooses by attributes for fleets and groups; Batch wants names.
    wanted = choice.instance_types if settings.compute.attributes else settings.compute.instance_types
    ready = [*places.ready, *(shared.mounts if shared else [])]

    def environment(title: str, market: str, strategy: str, types: tuple[str, ...], units: int) -> Any:
        made = template.add_resource(
            batch.ComputeEnvironment(
                title,
                Type="MANAGED",
                # Without a ServiceRole Batch uses AWSServiceRoleForBatch, and makes it if need be; only with that one
                # and these strategies it renews machines in place (Batch User Guide, "Updating compute environments").
                ReplaceComputeEnvironment=False,
                ComputeResources=batch.ComputeResources(
                    Type=market,
                    AllocationStrategy=strategy,
                    MinvCpus=0,
                    # DesiredvCpus is left out: it is Batch's own, and every update would reset it.
                    MaxvCpus=_vcpus(settings, types, units),
                    InstanceTypes=list(types),
                    Subnets=places.subnets,
                    SecurityGroupIds=[places.security_group],
                    InstanceRole=GetAtt(profile, "Arn"),
                    LaunchTemplate=batch.LaunchTemplateSpecification(
                        LaunchTemplateId=Ref(launch), Version=GetAtt(launch, "LatestVersionNumber")
                    ),
                    Ec2Configuration=[
                        batch.Ec2ConfigurationObject(ImageType="ECS_AL2023_NVIDIA", ImageIdOverride=Ref("AmiId"))
                    ],
                    Tags=as_mapping(settings),
                ),
                Tags=as_mapping(settings),
                **({"DependsOn": ready} if ready else {}),
            )
        )
        # As an argument Troposphere would take it for CloudFormation's attribute of that name.
        made.properties["UpdatePolicy"] = batch.UpdatePolicy(
            TerminateJobsOnUpdate=False, JobExecutionTimeoutMinutes=_update_minutes(settings)
        )
        return made

    # With this strategy there is no Spot Fleet, and so no SpotIamFleetRole.
    spot = environment("SpotMachines", "SPOT", "SPOT_PRICE_CAPACITY_OPTIMIZED", wanted, settings.compute.max_units)
    if not choice.max_units:
        return {"spot": spot}
    helpers = environment("OnDemandMachines", "EC2", "BEST_FIT_PROGRESSIVE", choice.instance_types, choice.max_units)
    return {"spot": spot, "on-demand": helpers}


def _vcpus(settings: Settings, types: tuple[str, ...], units: int) -> int:
    """Batch counts vCPUs and no GPUs. So many that there are never more than `units`, whichever types it buys (and one
    instance, by which it may exceed this).
    """
    return min(units * INSTANCE_TYPES[name].vcpus // settings.units_of(name) for name in types)


def _update_minutes(settings: Settings) -> int:
    """How long jobs may still run on machines that an update replaces: to their end."""
    return min(ceil(_attempt_seconds(settings) / 60), MOST_UPDATE_MINUTES)


def _attempt_seconds(settings: Settings) -> int:
    return settings.worker.job_seconds + AROUND_AN_ATTEMPT


# Jobs


def _queue(
    template: Template,
    settings: Settings,
    queue: Queue,
    priority: int,
    environments: dict[str, batch.ComputeEnvironment],
) -> batch.JobQueue:
    """The queue that stands first in the settings is served first, on Spot as long as there is any."""
    order = [environments[market] for market in environments if queue.placement in ("any", market)]
    return template.add_resource(
        batch.JobQueue(
            f"{queue.title}Queue",
            JobQueueName=Sub(f"${{AWS::StackName}}-{queue.name}"),
            Priority=priority,
            ComputeEnvironmentOrder=[
                batch.ComputeEnvironmentOrder(ComputeEnvironment=Ref(one), Order=place)
                for place, one in enumerate(order, start=1)
            ],
            Tags=as_mapping(settings),
        )
    )


def _definitions(
    template: Template, settings: Settings, buckets: Buckets, shared: Files | None, log_group: logs.LogGroup
) -> dict[str, batch.JobDefinition]:
    """A job definition for each queue, by name."""
    execution_role = template.add_resource(
        policies.role(
            "ExecutionRole",
            "ecs-tasks.amazonaws.com",
            tags(settings),
            [*policies.pull_images(), policies.write_logs(log_group)],
        )
    )
    role = template.add_resource(
        policies.role(
            "WorkerRole",
            "ecs-tasks.amazonaws.com",
            tags(settings),
            [
                policies.read_manifests(buckets.results, MANIFESTS),
                *policies.read_uploads(buckets.uploads),
                *([policies.delete_uploads(buckets.uploads)] if settings.uploads.delete_after_success else []),
                policies.store_results(buckets.results),
                policies.share_in_between(buckets.results, [CHECKPOINTS]),
                policies.count_failures(buckets.results, FAILURES),
                *policies.open_and_seal(buckets.key),
                *([policies.mount_files(shared.file_system, shared.access_point)] if shared else []),
            ],
        )
    )
    return {
        queue.name: template.add_resource(
            batch.JobDefinition(
                f"{queue.title}Job",
                JobDefinitionName=Sub(f"${{AWS::StackName}}-{queue.name}"),
                Type="container",
                PlatformCapabilities=["EC2"],
                ContainerProperties=_container(settings, queue, buckets, shared, log_group, role, execution_role),
                RetryStrategy=_retries(settings),
                Timeout=batch.Timeout(AttemptDurationSeconds=_attempt_seconds(settings)),
                PropagateTags=True,
                # AWS does not say what becomes of a job that waits with a revision that was deregistered.
                ResourceRetentionPolicy=batch.ResourceRetentionPolicy(SkipDeregisterOnUpdate=True),
                Tags=as_mapping(settings),
            )
        )
        for queue in settings.queues
    }


def _retries(settings: Settings) -> batch.RetryStrategy:
    """What the worker's exit codes mean (once.py). It counts failures itself: Batch only counts attempts, and whatever
    matches none of these would be tried again as well.
    """
    return batch.RetryStrategy(
        Attempts=settings.batch.attempts,
        EvaluateOnExit=[
            # The machine was taken, and with it every word of the job.
            batch.EvaluateOnExit(Action="RETRY", OnStatusReason="Host EC2*"),
            batch.EvaluateOnExit(Action="EXIT", OnExitCode="2"),
            batch.EvaluateOnExit(Action="EXIT", OnExitCode="3"),
            batch.EvaluateOnExit(Action="RETRY", OnReason="*"),
        ],
    )


def _container(
    settings: Settings,
    queue: Queue,
    buckets: Buckets,
    shared: Files | None,
    log_group: logs.LogGroup,
    role: iam.Role,
    execution_role: iam.Role,
) -> batch.ContainerProperties:
    worker = settings.worker
    environment: dict[str, Any] = {
        **cluster.environment_of_work(settings),
        "SPINDRIFT_RESULTS_BUCKET": Ref(buckets.results),
        "SPINDRIFT_MAX_FAILURES": str(queue.max_failures),
    }
    volumes, mounts = _volumes(settings, shared)
    return batch.ContainerProperties(
        Image=Ref("WorkerImage"),
        Command=["once"],
        JobRoleArn=GetAtt(role, "Arn"),
        ExecutionRoleArn=GetAtt(execution_role, "Arn"),
        ResourceRequirements=[
            # On EC2 whole ones only.
            batch.ResourceRequirement(Type="VCPU", Value=str(ceil(worker.cpu / 1024))),
            batch.ResourceRequirement(Type="MEMORY", Value=str(worker.memory_mib)),
            batch.ResourceRequirement(Type="GPU", Value="1"),
        ],
        Environment=[batch.Environment(Name=name, Value=environment[name]) for name in sorted(environment)],
        Volumes=volumes,
        MountPoints=mounts,
        ReadonlyRootFilesystem=True,
        LinuxParameters=batch.LinuxParameters(InitProcessEnabled=True, **cluster.shared_memory(settings)),
        LogConfiguration=batch.LogConfiguration(**cluster.log_configuration(log_group)),
    )


def _volumes(settings: Settings, shared: Files | None) -> tuple[list[batch.Volumes], list[batch.MountPoints]]:
    """The job's own scratch space, and /shared as the tasks of the stack cluster have it."""
    # Without a source, Docker makes it for the job and removes it with the job.
    volumes = [batch.Volumes(Name="scratch", Host=batch.VolumesHost())]
    mounts = [batch.MountPoints(SourceVolume="scratch", ContainerPath=SCRATCH_DIR, ReadOnly=False)]
    if shared:
        system = batch.EfsVolumeConfiguration(
            FileSystemId=Ref(shared.file_system),
            TransitEncryption="ENABLED",
            AuthorizationConfig=batch.AuthorizationConfig(AccessPointId=Ref(shared.access_point), Iam="ENABLED"),
        )
        volumes.append(batch.Volumes(Name="shared", EfsVolumeConfiguration=system))
    elif settings.image.apps:
        volumes.append(batch.Volumes(Name="shared", Host=batch.VolumesHost(SourcePath=SHARED_DIR)))
    if len(volumes) > 1:
        mounts.append(batch.MountPoints(SourceVolume="shared", ContainerPath=SHARED_DIR, ReadOnly=shared is None))
    return volumes, mounts
