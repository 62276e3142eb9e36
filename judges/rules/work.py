"""ECS services, their tasks, and the file system that tasks share."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from judges.rules.stack import Objection, Rule, Stack

LONGEST_STOP = 110
"""Seconds: a Spot notice is 120, and draining takes its part."""
LIFECYCLES = {"spot", "on-demand"}
"""What user data writes into the attribute `lifecycle`: instance metadata's own words."""


def containers(stack: Stack) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Title and properties of each task definition, with each of its containers."""
    for title, properties in stack.of("ECS::TaskDefinition"):
        for container in properties.get("ContainerDefinitions", ()):
            yield title, properties, container


def draining_does_not_wait(stack: Stack) -> Iterator[Objection]:
    """Above 0, a task on a draining instance waits for its replacement to run; 100 and 100 is a deadlock."""
    for title, properties in stack.of("ECS::Service"):
        said = properties.get("DeploymentConfiguration", {})
        if said.get("MinimumHealthyPercent") != 0:
            least = said.get("MinimumHealthyPercent")
            yield title, f"MinimumHealthyPercent must be 0, got {least}: draining would wait for a replacement"
        if said.get("MaximumPercent", 200) <= 100:
            yield title, f"MaximumPercent must be above 100, got {said['MaximumPercent']}: no replacement could start"


def placement_is_possible(stack: Stack) -> Iterator[Objection]:
    """A constraint that no instance meets is taken; the tasks then wait for ever."""
    for title, properties in stack.of("ECS::Service"):
        for constraint in properties.get("PlacementConstraints", ()):
            said = str(stack.filled(constraint.get("Expression", "")))
            found = re.fullmatch(r"attribute:lifecycle == (\S+)", said)
            if constraint.get("Type") == "memberOf" and (found is None or found[1] not in LIFECYCLES):
                yield title, f"no instance is {said!r}: attribute:lifecycle is one of {', '.join(sorted(LIFECYCLES))}"


def tasks_have_time_to_stop(stack: Stack) -> Iterator[Objection]:
    """Without StopTimeout ECS kills after 30 s; more than a notice leaves is no time at all."""
    for title, _, container in containers(stack):
        seconds = container.get("StopTimeout")
        if seconds is None:
            yield title, "no StopTimeout: ECS would kill the worker after 30 s"
        elif not 2 <= seconds <= LONGEST_STOP:
            yield title, f"StopTimeout must be 2 to {LONGEST_STOP} s, got {seconds}: a Spot notice is 120 s"


def tasks_get_a_gpu_and_no_host(stack: Stack) -> Iterator[Objection]:
    """A worker has one GPU, and neither its host's network (its metadata) nor a way to write to its host."""
    for title, properties, container in containers(stack):
        gpus = [need for need in container.get("ResourceRequirements", ()) if need.get("Type") == "GPU"]
        if not gpus:
            yield title, "the container asks for no GPU: ECS would place it anywhere, and it would find none"
        if properties.get("NetworkMode") == "host" or container.get("Privileged"):
            yield title, "host network or privileged: the container could take the instance's role"
        volumes = properties.get("Volumes", ())
        on_host = {volume["Name"] for volume in volumes if volume.get("Host", {}).get("SourcePath")}
        for mount in container.get("MountPoints", ()):
            if mount.get("SourceVolume") in on_host and mount.get("ReadOnly") is not True:
                yield title, f"{mount.get('ContainerPath')} is the host's and must be mounted ReadOnly"


def shared_files_are_private(stack: Stack) -> Iterator[Objection]:
    """Encrypted at rest and in transit, and mounted by the task's own role."""
    for title, properties in stack.of("EFS::FileSystem"):
        if properties.get("Encrypted") is not True:
            yield title, "the file system is not encrypted"
    for title, properties in stack.of("ECS::TaskDefinition"):
        for volume in properties.get("Volumes", ()):
            said = volume.get("EFSVolumeConfiguration")
            if said and said.get("TransitEncryption") != "ENABLED":
                yield title, "EFS: TransitEncryption must be ENABLED"
            if said and said.get("AuthorizationConfig", {}).get("IAM") != "ENABLED":
                yield title, "EFS: AuthorizationConfig.IAM must be ENABLED, or whoever reaches it may mount it"


RULES: tuple[Rule, ...] = (
    draining_does_not_wait,
    placement_is_possible,
    tasks_have_time_to_stop,
    tasks_get_a_gpu_and_no_host,
    shared_files_are_private,
)
