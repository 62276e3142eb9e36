"""AWS Batch: what its environments buy, and what its jobs are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from judges.rules.machines import NO_VERSION
from judges.rules.stack import Objection, Rule, Stack
from templates.instance_types import must_have_gpu

RENEWED_IN_PLACE = {"BEST_FIT_PROGRESSIVE", "SPOT_CAPACITY_OPTIMIZED", "SPOT_PRICE_CAPACITY_OPTIMIZED"}
"""Batch User Guide, "Updating compute environments"."""
GONE = "Host EC2 (instance i-0123456789abcdef0) terminated."
"""What Batch says of a job whose machine was taken."""
FINAL = ("2", "3")
"""Exit codes of the worker after which no attempt helps (once.py)."""


def containers(stack: Stack) -> Iterator[tuple[str, dict[str, Any]]]:
    """Title and container of each job definition."""
    for title, properties in stack.of("Batch::JobDefinition"):
        yield title, properties.get("ContainerProperties", {})


def environments_are_renewed_in_place(stack: Stack) -> Iterator[Objection]:
    """Otherwise an update refuses, or makes another environment in place of one that a queue still names."""
    for title, properties in stack.of("Batch::ComputeEnvironment"):
        compute = properties.get("ComputeResources", {})
        if (strategy := compute.get("AllocationStrategy")) not in RENEWED_IN_PLACE:
            yield title, f"AllocationStrategy {strategy!r}: one of {', '.join(sorted(RENEWED_IN_PLACE))}"
        if "ServiceRole" in properties:
            yield title, "ServiceRole must be left out: only with its service-linked role Batch renews machines"
        if properties.get("ReplaceComputeEnvironment") is not False:
            yield title, "ReplaceComputeEnvironment must be false: its default replaces what a queue names"
        if "DesiredvCpus" in compute:
            yield title, "DesiredvCpus is Batch's own: every update would reset it"
        if str(stack.filled(compute.get("LaunchTemplate", {}).get("Version"))) in NO_VERSION:
            yield title, "the launch template's Version must be a number: $Latest hides an update from Batch"


def environments_buy_gpus(stack: Stack) -> Iterator[Objection]:
    """cfn-lint does not look at the types of an environment; `optimal` and most families have no GPU."""
    for title, properties in stack.of("Batch::ComputeEnvironment"):
        for name in properties.get("ComputeResources", {}).get("InstanceTypes", ()):
            try:
                must_have_gpu(name)
            except ValueError as error:
                yield title, str(error)


def lost_machines_are_tried_again(stack: Stack) -> Iterator[Objection]:
    """The first condition that holds decides, and Batch's default is a single attempt."""
    for title, properties in stack.of("Batch::JobDefinition"):
        strategy = properties.get("RetryStrategy", {})
        if strategy.get("Attempts", 1) < 2:
            yield title, "Attempts must be above 1: a job whose machine is taken would be lost"
        if _action(strategy, OnStatusReason=GONE) != "RETRY":
            yield title, "a job whose machine is taken (Host EC2*) would be lost"
        for code in FINAL:
            if _action(strategy, OnExitCode=code) != "EXIT":
                yield title, f"exit code {code} must end the job: no further attempt can help"


def _action(strategy: dict[str, Any], **said: str) -> str:
    """RETRY or EXIT, for an attempt of which only this is said."""
    for one in strategy.get("EvaluateOnExit", ()):
        patterns = {key: one[key] for key in ("OnExitCode", "OnReason", "OnStatusReason") if key in one}
        if all(_fits(pattern, said.get(key, "")) for key, pattern in patterns.items()):
            return str(one["Action"]).upper()
    return "RETRY"


def _fits(pattern: str, text: str) -> bool:
    return text.startswith(pattern[:-1]) if pattern.endswith("*") else text == pattern


def waiting_jobs_keep_their_definition(stack: Stack) -> Iterator[Objection]:
    """CloudFormation deregisters the revision that an update replaces, unless it is told not to; AWS does not say what
    becomes of jobs that wait with it.
    """
    for title, properties in stack.of("Batch::JobDefinition"):
        if properties.get("ResourceRetentionPolicy", {}).get("SkipDeregisterOnUpdate") is not True:
            yield title, "SkipDeregisterOnUpdate must be true: jobs wait with the revision that an update replaces"


def time_is_up_for_the_worker_first(stack: Stack) -> Iterator[Objection]:
    """Its own limit is a failure that is tried again; Batch's is the end of the job."""
    for title, properties in stack.of("Batch::JobDefinition"):
        told = {one["Name"]: one["Value"] for one in properties.get("ContainerProperties", {}).get("Environment", ())}
        seconds, own = properties.get("Timeout", {}).get("AttemptDurationSeconds"), told.get("SPINDRIFT_JOB_SECONDS")
        if seconds is None:
            yield title, "no Timeout: a job that hangs would hold its machine for ever"
        elif own is not None and seconds <= int(own):
            yield title, f"Timeout must be above SPINDRIFT_JOB_SECONDS ({own}), got {seconds}: Batch does not try again"


def jobs_get_a_gpu_and_no_host(stack: Stack) -> Iterator[Objection]:
    """As the tasks of ECS: a GPU, and no way to write to the host or to become it."""
    for title, container in containers(stack):
        if "GPU" not in {need.get("Type") for need in container.get("ResourceRequirements", ())}:
            yield title, "the container asks for no GPU: Batch would place it anywhere, and it would find none"
        if container.get("Privileged"):
            yield title, "privileged: the container could take the instance's role"
        on_host = {one["Name"] for one in container.get("Volumes", ()) if one.get("Host", {}).get("SourcePath")}
        for mount in container.get("MountPoints", ()):
            if mount.get("SourceVolume") in on_host and mount.get("ReadOnly") is not True:
                yield title, f"{mount.get('ContainerPath')} is the host's and must be mounted ReadOnly"


def jobs_mount_shared_files_as_themselves(stack: Stack) -> Iterator[Objection]:
    """Encrypted on the way, and by the job's own role."""
    for title, container in containers(stack):
        for volume in container.get("Volumes", ()):
            said = volume.get("EfsVolumeConfiguration")
            if said and said.get("TransitEncryption") != "ENABLED":
                yield title, "EFS: TransitEncryption must be ENABLED"
            if said and said.get("AuthorizationConfig", {}).get("Iam") != "ENABLED":
                yield title, "EFS: AuthorizationConfig.Iam must be ENABLED, or whoever reaches it may mount it"


RULES: tuple[Rule, ...] = (
    environments_are_renewed_in_place,
    environments_buy_gpus,
    lost_machines_are_tried_again,
    waiting_jobs_keep_their_definition,
    time_is_up_for_the_worker_first,
    jobs_get_a_gpu_and_no_host,
    jobs_mount_shared_files_as_themselves,
)
