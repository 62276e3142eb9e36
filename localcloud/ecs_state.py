"""What ECS knows: clusters, task definitions, services, container instances and tasks, and how they change.

Documents have the shape of the API's answers, times as epoch seconds; a key with a leading underscore is ours.
Everything here happens with the world's lock held.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from localcloud import ecshealth
from localcloud.ecs_shapes import Document, arn, public, resources, short
from localcloud.query import Unreadable, parse
from localcloud.scheduler import Demand, Room
from localcloud.wire import Fault
from localcloud.world import World

KEPT_SECONDS = 3600.0
"""How long a stopped task and a deregistered instance can still be described."""
_ZONE = "ecs.availability-zone"


class Agent(Protocol):
    """The ECS agent of one instance, as the control plane reaches it (the ACS websocket of AWS)."""

    def run(self, task: Document, definition: Document) -> None:
        """Start a task. Must not wait."""
        ...

    def halt(self, task_arn: str) -> None:
        """Stop a task: SIGTERM now, SIGKILL after its stop timeout. Must not wait."""
        ...

    def kill(self, task_arn: str) -> None:
        """SIGKILL to a task's containers; the agent finds them ended."""
        ...

    def pids(self) -> dict[str, list[int]]:
        """The processes of each task."""
        ...


class Emit(Protocol):
    """How an event of AWS reaches EventBridge; does not wait."""

    def __call__(self, source: str, detail_type: str, detail: Mapping[str, Any], resources: Sequence[str] = ()) -> None:
        """Send it."""
        ...


class State:
    """The tables of ECS."""

    def __init__(self, world: World, emit: Emit) -> None:
        self.world = world
        self._emit = emit
        self.clusters = world.table("ecs-clusters")
        self.definitions = world.table("ecs-definitions")
        self.services = world.table("ecs-services")
        self.instances = world.table("ecs-instances")
        self.tasks = world.table("ecs-tasks")
        self.agents: dict[str, Agent] = {}
        """By container instance ARN: those that are connected."""
        self._forget_the_dead()

    def _forget_the_dead(self) -> None:
        """No process outlives the cloud, so what was running when the state was written is gone."""
        for key in self.tasks:
            del self.tasks[key]
        for key in self.instances:
            del self.instances[key]

    @property
    def now(self) -> float:
        """Epoch seconds."""
        return self.world.now().timestamp()

    def new_id(self) -> str:
        """32 hex digits, as ECS names tasks and instances."""
        return f"{self.world.dice.getrandbits(128):032x}"

    # What a request means

    def cluster(self, name_or_arn: str | None) -> Document:
        """The active cluster of that name. Raises ClusterNotFoundException."""
        found = self.clusters.get(short(name_or_arn or "default"))
        if found is None or found["status"] != "ACTIVE":
            raise Fault("ClusterNotFoundException", "Cluster not found.")
        return found

    def service(self, cluster: Document, name_or_arn: str) -> Document | None:
        """The service, or None."""
        return self.services.get(arn("service", cluster["clusterName"], short(name_or_arn)))

    def instance(self, cluster: Document, id_or_arn: str) -> Document | None:
        """The container instance, or None."""
        return self.instances.get(arn("container-instance", cluster["clusterName"], short(id_or_arn)))

    def task(self, cluster: Document, id_or_arn: str) -> Document | None:
        """The task, or None."""
        return self.tasks.get(arn("task", cluster["clusterName"], short(id_or_arn)))

    def definition(self, name_or_arn: str) -> Document:
        """The task definition of an ARN, `family:revision` or `family` (its latest). Raises ClientException."""
        name = short(name_or_arn)
        if ":" not in name:
            revisions = [
                definition
                for definition in self.definitions.values()
                if definition["family"] == name and definition["status"] == "ACTIVE"
            ]
            name = max(revisions, key=lambda each: int(each["revision"]))["taskDefinitionArn"] if revisions else ""
        found = self.definitions.get(short(name))
        if found is None:
            raise Fault("ClientException", "Unable to describe task definition.")
        return found

    def usable(self, name_or_arn: str) -> Document:
        """The active task definition of that name. Raises ClientException."""
        found = self.definition(name_or_arn)
        if found["status"] != "ACTIVE":
            raise Fault("ClientException", "TaskDefinition is inactive")
        return found

    # What is where

    def tasks_of(self, *, instance: str | None = None, service: Document | None = None) -> Iterator[Document]:
        """The tasks that have not stopped, on an instance (ARN) or of a service."""
        group = None if service is None else f"service:{service['serviceName']}"
        for task in self.tasks.values():
            if task["lastStatus"] == "STOPPED":
                continue
            if instance is not None and task["containerInstanceArn"] != instance:
                continue
            if service is not None and (task["group"], task["clusterArn"]) != (group, service["clusterArn"]):
                continue
            yield task

    def room(self, instance: Document, group: str) -> Room:
        """What the instance has left, for a task of `group`."""
        there = list(self.tasks_of(instance=instance["containerInstanceArn"]))
        facts = {f"attribute:{each['name']}": each.get("value", "") for each in instance["attributes"]}
        facts |= {
            "ec2InstanceId": instance["ec2InstanceId"],
            "agentConnected": str(instance["agentConnected"]).lower(),
            "runningTasksCount": str(sum(task["lastStatus"] == "RUNNING" for task in there)),
        }
        return Room(
            arn=instance["containerInstanceArn"],
            zone=facts.get(f"attribute:{_ZONE}", ""),
            cpu=instance["_cpu"] - sum(task["_cpu"] for task in there),
            memory=instance["_memory"] - sum(task["_memory"] for task in there),
            gpus=len(self.free_gpus(instance)),
            active=instance["status"] == "ACTIVE",
            connected=instance["agentConnected"],
            facts=facts,
            tasks_alike=sum(task["group"] == group for task in there),
        )

    def free_gpus(self, instance: Document) -> list[str]:
        """Ids of the GPUs that no task has."""
        taken = {
            gpu
            for task in self.tasks_of(instance=instance["containerInstanceArn"])
            for container in task["containers"]
            for gpu in container.get("gpuIds", [])
        }
        return [gpu for gpu in instance["_gpus"] if gpu not in taken]

    def show_instance(self, instance: Document, as_json: bool = False) -> Document:
        """The container instance with what remains of its resources.

        An event (`as_json`) names its cluster, a description counts its tasks: neither does both, on AWS as here.
        """
        there = list(self.tasks_of(instance=instance["containerInstanceArn"]))
        room = self.room(instance, "")
        counts = {
            "runningTasksCount": sum(task["lastStatus"] == "RUNNING" for task in there),
            "pendingTasksCount": sum(task["lastStatus"] == "PENDING" for task in there),
        }
        amounts = {
            "registeredResources": resources(instance["_cpu"], instance["_memory"], instance["_gpus"]),
            "remainingResources": resources(room.cpu, room.memory, self.free_gpus(instance)),
        }
        more = {"clusterArn": instance["_cluster"]} if as_json else counts
        return public({**instance, **amounts, **more}, as_json)

    # What changes

    def change_instance(self, instance: Document, **changes: object) -> None:
        """Change a container instance and tell EventBridge."""
        instance.update(changes)
        instance["version"] += 1
        self.instances[instance["containerInstanceArn"]] = instance
        detail = {**self.show_instance(instance, as_json=True), "updatedAt": self.world.now().isoformat()}
        self._emit("aws.ecs", "ECS Container Instance State Change", detail, [instance["containerInstanceArn"]])

    def change_task(self, task: Document, **changes: object) -> None:
        """Change a task and tell EventBridge."""
        task.update(changes)
        task["version"] += 1
        self.tasks[task["taskArn"]] = task
        detail = {**public(task, as_json=True), "updatedAt": self.world.now().isoformat()}
        self._emit("aws.ecs", "ECS Task State Change", detail, [task["taskArn"]])

    def start_task(
        self,
        definition: Document,
        instance: Document,
        *,
        group: str,
        started_by: str,
        overrides: Document | None = None,
        tags: Iterable[Document] = (),
    ) -> Document:
        """A new task on an instance that has room for it: PENDING, and its agent told."""
        cluster = instance["_cluster"]
        task_arn = arn("task", short(cluster), self.new_id())
        demand, free = demand_of(definition), self.free_gpus(instance)
        containers = []
        for container in definition["containerDefinitions"]:
            wanted = _gpus(container)
            containers.append(
                {
                    "containerArn": arn("container", short(cluster), short(task_arn), self.new_id()),
                    "taskArn": task_arn,
                    "name": container["name"],
                    "image": container["image"],
                    "lastStatus": "PENDING",
                    "healthStatus": "UNKNOWN",
                    "networkInterfaces": [],
                    "cpu": str(container.get("cpu", 0)),
                    **({"memory": str(container["memory"])} if "memory" in container else {}),
                    **({"gpuIds": free[:wanted]} if wanted else {}),
                }
            )
            free = free[wanted:]
        task: Document = {
            "taskArn": task_arn,
            "clusterArn": cluster,
            "taskDefinitionArn": definition["taskDefinitionArn"],
            "containerInstanceArn": instance["containerInstanceArn"],
            "availabilityZone": next(
                (each["value"] for each in instance["attributes"] if each["name"] == _ZONE), "unknown"
            ),
            "group": group,
            "startedBy": started_by,
            "launchType": "EC2",
            "lastStatus": "PENDING",
            "desiredStatus": "RUNNING",
            "createdAt": self.now,
            "containers": containers,
            "overrides": overrides or {},
            "cpu": definition.get("cpu", str(demand.cpu)),
            "memory": definition.get("memory", str(demand.memory)),
            "attachments": [],
            "attributes": [],
            "healthStatus": "UNKNOWN",
            "enableExecuteCommand": False,
            "tags": list(tags),
            "version": 0,
            "_cpu": demand.cpu,
            "_memory": demand.memory,
            "_checked": any("healthCheck" in each for each in definition["containerDefinitions"]),
            "_protected_until": 0.0,
        }
        self.change_task(task)
        self.change_instance(instance)
        self.agents[instance["containerInstanceArn"]].run(copy.deepcopy(task), copy.deepcopy(definition))
        return task

    def stop_task(self, task: Document, code: str, reason: str) -> None:
        """Tell a task to stop."""
        if task["desiredStatus"] == "STOPPED":
            return
        self.change_task(task, desiredStatus="STOPPED", stopCode=code, stoppedReason=reason, stoppingAt=self.now)
        if agent := self.agents.get(task["containerInstanceArn"]):
            agent.halt(task["taskArn"])

    def task_running(self, task: Document) -> None:
        """Its containers run."""
        if task["lastStatus"] != "PENDING":
            return
        for container in task["containers"]:
            container["lastStatus"] = "RUNNING"
        self.change_task(
            task, lastStatus="RUNNING", startedAt=self.now, connectivity="CONNECTED", connectivityAt=self.now
        )
        self._note(task, "task started")

    def change_health(self, task: Document, container: str, status: str) -> None:
        """A container's health changed, and with it perhaps the task's. That alone is no event of ECS."""
        for each in task["containers"]:
            if each["name"] == container:
                each["healthStatus"] = status
        statuses = {each["name"]: each["healthStatus"] for each in task["containers"]}
        task["healthStatus"] = ecshealth.of_task(self.definition(task["taskDefinitionArn"]), statuses)
        self.tasks[task["taskArn"]] = task
        self._note(task, "task health", container=container, health=status)

    def task_stopped(self, task: Document, code: str, reason: str, exits: Mapping[str, Document] | None = None) -> None:
        """Its containers ended. `code` and `reason` are kept only when nobody had asked it to stop."""
        if task["lastStatus"] == "STOPPED":
            return
        for container in task["containers"]:
            container.update((exits or {}).get(container["name"], {}), lastStatus="STOPPED")
        asked = task["desiredStatus"] == "STOPPED"
        told = {} if asked else {"stopCode": code, "stoppedReason": reason, "stoppingAt": self.now}
        self.change_task(task, lastStatus="STOPPED", desiredStatus="STOPPED", stoppedAt=self.now, **told)
        self._note(task, "task stopped", reason=task["stoppedReason"], exit=task["containers"][0].get("exitCode"))
        instance = self.instances.get(task["containerInstanceArn"])
        if instance is not None and instance["status"] != "INACTIVE":
            self.change_instance(instance)

    def _note(self, task: Document, what: str, **detail: object) -> None:
        instance = self.instances.get(task["containerInstanceArn"], {})
        self.world.note(what, task["taskArn"], instance=instance.get("ec2InstanceId"), group=task["group"], **detail)

    def deregister(self, instance: Document, reason: str) -> None:
        """The container instance leaves its cluster; a task that was there has stopped."""
        self.agents.pop(instance["containerInstanceArn"], None)
        for task in list(self.tasks_of(instance=instance["containerInstanceArn"])):
            self.task_stopped(task, "TerminationNotice", reason)
        if instance["status"] != "INACTIVE":
            self.change_instance(instance, status="INACTIVE", agentConnected=False, _deregistered_at=self.now)

    def protected(self, task: Document) -> bool:
        """Whether scale-in protection lasts."""
        return bool(task["_protected_until"] > self.now)


class Part:
    """Base of the operations' modules."""

    world: World
    state: State


def demand_of(definition: Document, also: Iterable[Document] = (), strategy: Iterable[Document] = ()) -> Demand:
    """What a task of that definition needs, with the service's own constraints and strategy."""
    containers = definition["containerDefinitions"]
    constraints = [*definition.get("placementConstraints", []), *also]
    try:
        queries = tuple(parse(each["expression"]) for each in constraints if each["type"] == "memberOf")
    except Unreadable as error:
        raise Fault("InvalidParameterException", f"Invalid placement constraint: {error}") from error
    needed: Document = {
        "cpu": int(definition.get("cpu", 0)) or sum(each.get("cpu", 0) for each in containers),
        "memory": int(definition.get("memory", 0))
        or sum(each.get("memoryReservation", each.get("memory", 0)) for each in containers),
        "gpus": sum(_gpus(each) for each in containers),
        "constraints": queries,
        "distinct": any(each["type"] == "distinctInstance" for each in constraints),
    }
    if chosen := tuple((each["type"], each.get("field", "")) for each in strategy):
        needed["strategy"] = chosen
    return Demand(**needed)


def _gpus(container: Document) -> int:
    return math.ceil(
        sum(float(each["value"]) for each in container.get("resourceRequirements", []) if each["type"] == "GPU")
    )
