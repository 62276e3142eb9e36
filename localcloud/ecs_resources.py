"""CloudFormation's ECS types: cluster, task definition, service."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from localcloud import substrate
from localcloud.ecs_shapes import words
from localcloud.formation import Resource, refuse_unplayed
from localcloud.inputs import as_input

if TYPE_CHECKING:
    from localcloud.ecs import Ecs

LONGEST_WAIT_SECONDS = 3 * 3600.0
"""AWS's time until CloudFormation gives a service up that does not reach its steady state."""
LONGEST_LEAVE_SECONDS = 300.0
"""How long a cluster's deletion waits for terminated instances to be deregistered."""


def resources(ecs: Ecs) -> dict[str, Resource]:
    """The resource types, by name."""
    return {
        "AWS::ECS::Cluster": Cluster(ecs),
        "AWS::ECS::TaskDefinition": TaskDefinition(ecs),
        "AWS::ECS::Service": Service(ecs),
    }


class _Kind:
    def __init__(self, ecs: Ecs) -> None:
        self._ecs = ecs
        self._closing = threading.Event()
        ecs.world.on_stop(self._closing.set)

    def _name(self, stack: str, logical_id: str) -> str:
        with self._ecs.world.lock:
            return f"{stack}-{logical_id}-{self._ecs.world.dice.getrandbits(48):012X}"

    def _wait(self, reached: Callable[[], bool], failure: Callable[[], str], seconds: float) -> None:
        """Wait as CloudFormation does until a resource is stable. Runs in a thread of its own."""
        deadline = time.monotonic() + self._ecs.world.scaled(seconds)
        while not self._closing.wait(0.2):
            with self._ecs.world.lock:
                if reached():
                    return
                if time.monotonic() > deadline:
                    raise RuntimeError(f"Resource did not stabilize: {failure()}")
        raise RuntimeError("the local cloud was stopped")


class Cluster(_Kind):
    """AWS::ECS::Cluster."""

    _played = frozenset({"ClusterName", "ClusterSettings", "Tags"})

    def create(self, logical_id: str, properties: dict[str, Any], stack: str) -> tuple[str, dict[str, Any]]:
        """CreateCluster."""
        refuse_unplayed("AWS::ECS::Cluster", properties, set(self._played), {})
        given = {"ClusterName": self._name(stack, logical_id), **properties}
        cluster = self._ecs.perform("CreateCluster", as_input("ecs", "CreateCluster", given))["cluster"]
        return cluster["clusterName"], {"Arn": cluster["clusterArn"]}

    def update(
        self,
        physical_id: str,
        old: dict[str, Any],  # noqa: ARG002 - the seam's
        new: dict[str, Any],
        stack: str,
    ) -> tuple[str, dict[str, Any]]:
        """Settings and tags; a new name is a new cluster."""
        refuse_unplayed("AWS::ECS::Cluster", new, set(self._played), {})
        if new.get("ClusterName", physical_id) != physical_id:
            return self.create("", new, stack)
        with self._ecs.world.lock:
            cluster = self._ecs.state.clusters[physical_id]
            given = as_input("ecs", "CreateCluster", {**new, "ClusterName": physical_id})
            cluster.update(settings=given.get("settings", []), tags=given.get("tags", []))
            self._ecs.state.clusters[physical_id] = cluster
        return physical_id, {"Arn": cluster["clusterArn"]}

    def delete(self, physical_id: str, properties: dict[str, Any]) -> None:  # noqa: ARG002 - the seam's
        """DeleteCluster, which instances that are still registered forbid: their end is waited for a little."""
        state = self._ecs.state
        cluster = state.clusters.get(physical_id)
        if cluster is None or cluster["status"] != "ACTIVE":
            return
        self._wait(
            lambda: (
                not any(
                    each["_cluster"] == cluster["clusterArn"] and each["status"] != "INACTIVE"
                    for each in state.instances.values()
                )
            ),
            lambda: "The Cluster cannot be deleted while Container Instances are active or draining.",
            LONGEST_LEAVE_SECONDS,
        )
        self._ecs.perform("DeleteCluster", {"cluster": physical_id})


class TaskDefinition(_Kind):
    """AWS::ECS::TaskDefinition: every change is a new revision, so a replacement."""

    _played = words(
        "ContainerDefinitions Cpu ExecutionRoleArn Family Memory NetworkMode "
        "PlacementConstraints RequiresCompatibilities TaskRoleArn Volumes Tags"
    )

    def create(self, logical_id: str, properties: dict[str, Any], stack: str) -> tuple[str, dict[str, Any]]:
        """RegisterTaskDefinition."""
        refuse_unplayed("AWS::ECS::TaskDefinition", properties, set(self._played), {})
        given = {"Family": f"{stack}-{logical_id}", **properties}
        operation = "RegisterTaskDefinition"
        definition = self._ecs.perform(operation, as_input("ecs", operation, given))["taskDefinition"]
        return definition["taskDefinitionArn"], {"TaskDefinitionArn": definition["taskDefinitionArn"]}

    def update(
        self,
        physical_id: str,
        old: dict[str, Any],  # noqa: ARG002 - the seam's
        new: dict[str, Any],
        stack: str,
    ) -> tuple[str, dict[str, Any]]:
        """A new revision of the same family, unless it got another name."""
        family = physical_id.rsplit("/", 1)[-1].rpartition(":")[0]
        return self.create("", {"Family": family, **new}, stack)

    def delete(self, physical_id: str, properties: dict[str, Any]) -> None:  # noqa: ARG002 - the seam's
        """DeregisterTaskDefinition."""
        self._ecs.perform("DeregisterTaskDefinition", {"taskDefinition": physical_id})


class Service(_Kind):
    """AWS::ECS::Service. CloudFormation waits until it has its tasks, on creation as on a deployment."""

    def __init__(self, ecs: Ecs) -> None:
        super().__init__(ecs)
        self._unsettled: dict[str, list[str]] = {}
        """By stack: the services that it has made and not waited for yet."""

    _played = words(
        "Cluster DeploymentConfiguration DesiredCount EnableECSManagedTags LaunchType "
        "PlacementConstraints PlacementStrategies PropagateTags SchedulingStrategy "
        "ServiceName Tags TaskDefinition"
    )
    _changeable = words(
        "DeploymentConfiguration DesiredCount EnableECSManagedTags PlacementConstraints "
        "PlacementStrategies PropagateTags TaskDefinition"
    )

    def create(self, logical_id: str, properties: dict[str, Any], stack: str) -> tuple[str, dict[str, Any]]:
        """CreateService; one task when DesiredCount is left out.

        Returns when the service is steady, or at once when the stack has more services to make: CloudFormation makes
        them at the same time, and the last one waits for all.
        """
        refuse_unplayed("AWS::ECS::Service", properties, set(self._played), {})
        given = {"ServiceName": self._name(stack, logical_id), **properties}
        service = self._ecs.perform("CreateService", as_input("ecs", "CreateService", given))["service"]
        unsettled = self._unsettled.setdefault(stack, [])
        if service["desiredCount"]:
            unsettled.append(service["serviceArn"])
        else:
            # It is steady at once, before what depends on it (a scalable target, an alarm) can make it want more.
            self._settled(service["serviceArn"])
        if not substrate.more_to_come("AWS::ECS::Service", logical_id, stack):
            del self._unsettled[stack]
            for each in unsettled:
                self._settled(each)
        return service["serviceArn"], _attributes(service)

    def update(
        self, physical_id: str, old: dict[str, Any], new: dict[str, Any], stack: str
    ) -> tuple[str, dict[str, Any]]:
        """UpdateService; a DesiredCount left out keeps what is. Another name or cluster is another service."""
        refuse_unplayed("AWS::ECS::Service", new, set(self._played), {})
        fixed = self._played - self._changeable - {"Tags"}
        if any(old.get(name) != new.get(name) for name in fixed):
            return self.create("", new, stack)
        changes = {name: value for name, value in new.items() if name in self._changeable}
        where = {"Service": physical_id, "Cluster": physical_id.split("/")[-2]}
        self._ecs.perform("UpdateService", as_input("ecs", "UpdateService", {**where, **changes}))
        return self._settled(physical_id)

    def delete(self, physical_id: str, properties: dict[str, Any]) -> None:  # noqa: ARG002 - the seam's
        """Scale to nothing, delete, and wait for the last task's end."""
        services = self._ecs.state.services
        if physical_id not in services or services[physical_id]["status"] == "INACTIVE":
            return
        if services[physical_id]["status"] == "ACTIVE":
            where = {"service": physical_id, "cluster": physical_id.split("/")[-2], "force": True}
            self._ecs.perform("DeleteService", where)
        self._wait(
            lambda: services[physical_id]["status"] == "INACTIVE",
            lambda: f"{physical_id} still has {services[physical_id]['runningCount']} tasks",
            LONGEST_WAIT_SECONDS,
        )

    def _settled(self, service_arn: str) -> tuple[str, dict[str, Any]]:
        service = self._ecs.state.services[service_arn]

        def failure() -> str:
            said = service["events"][0]["message"] if service["events"] else "no event"
            return f"{service_arn} runs {service['runningCount']} of {service['desiredCount']} tasks: {said}"

        self._wait(lambda: bool(service["_steady"]), failure, LONGEST_WAIT_SECONDS)
        return service_arn, _attributes(service)


def _attributes(service: Mapping[str, Any]) -> dict[str, Any]:
    return {"Name": service["serviceName"], "ServiceArn": service["serviceArn"]}
