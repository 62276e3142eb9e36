"""Amazon ECS on EC2, the control plane: what it knows is in ecs_state, its own doings in ecs_keeper."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from botocore.validate import ParamValidator

from localcloud import ecs_resources, substrate, wire
from localcloud.control import Control, Refused
from localcloud.ecs_instances import Instances
from localcloud.ecs_keeper import Keeper
from localcloud.ecs_permissions import permissions
from localcloud.ecs_services import Services
from localcloud.ecs_shapes import Document, short
from localcloud.ecs_state import Agent, Emit, State
from localcloud.ecs_tasks import Tasks
from localcloud.formation import Resource
from localcloud.image import Images
from localcloud.wire import Call, Fault, Permission, Service
from localcloud.world import World


class Ecs(Services, Tasks, Instances, Service):
    """The service: every operation alone, under the world's lock."""

    name = "ecs"

    def __init__(self, world: World, emit: Emit = substrate.emit) -> None:
        self.world = world
        self.state = State(world, emit)
        self.images = Images(world.engine)
        self._keeper = Keeper(self.state)
        world.every_heartbeat(self._keeper.step)

    def permissions(self, call: Call) -> Iterable[Permission]:
        """See ecs_permissions."""
        with self.world.lock:
            return list(permissions(self.state, call))

    def answer(self, call: Call) -> Mapping[str, Any]:
        """Carry one operation out."""
        with self.world.lock:
            return super().answer(call)

    def perform(self, operation: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """An operation that CloudFormation asks for, held to botocore's shapes like any request. Raises Fault."""
        shape = wire.model("ecs").operation_model(operation)
        report = ParamValidator().validate(params, shape.input_shape)
        if report.has_errors():
            raise Fault("ValidationException", report.generate_report())
        result = self.answer(Call(operation, params, "cloudformation.amazonaws.com"))
        wire.hold_to_model(shape, result)
        return result

    def connect(self, container_instance: str, agent: Agent) -> None:
        """The agent of a registered container instance opened its channel: tasks can be placed there."""
        with self.world.lock:
            instance = self.state.instances[container_instance]
            self.state.agents[container_instance] = agent
            self.state.change_instance(instance, agentConnected=True)
            self.world.note("instance joined", instance["ec2InstanceId"], container_instance=container_instance)

    def add_image(self, name: str, folder: str, argv: list[str] | None = None, base: str | None = None) -> None:
        """Command image/add: publish an image, see Images.add."""
        from localcloud.account import push_image  # noqa: PLC0415 (it imports the emulator)

        self.images.add(name, folder, argv, base)
        push_image(name)

    def hear_health(self, task: str, container: str, status: str) -> None:
        """An agent's telemetry tells the health of a container."""
        with self.world.lock:
            self.state.change_health(self.state.tasks[task], container, status)

    def instance_gone(self, instance_id: str) -> None:
        """The EC2 instance was terminated: its agent is away at once, its tasks and registration a little later."""
        self._keeper.instance_gone(instance_id)

    def agent_gone(self, instance_id: str) -> None:
        """The EC2 instance was stopped: what it had registered stays, and its agent is away."""
        with self.world.lock:
            for instance in self.state.instances.values():
                if instance["ec2InstanceId"] == instance_id and instance["status"] != "INACTIVE":
                    self.state.agents.pop(instance["containerInstanceArn"], None)
                    self.state.change_instance(instance, agentConnected=False)

    def kill(self, task: str) -> None:
        """Command task/kill: SIGKILL to the containers of a task (ARN or id), as for want of memory."""
        for agent in self.state.agents.values():
            for task_arn in agent.pids():
                if short(task_arn) == short(task):
                    agent.kill(task_arn)
                    return
        raise Refused(f"no container of {task} runs")

    def show(self) -> list[Document]:
        """Command tasks/show: the tasks that have not stopped, each with its instance, process ids and protection."""
        pids = {task_arn: ids for agent in self.state.agents.values() for task_arn, ids in agent.pids().items()}
        return [
            {
                "task": task["taskArn"],
                "group": task["group"],
                "instance": self.state.instances[task["containerInstanceArn"]]["ec2InstanceId"],
                "status": task["lastStatus"],
                "desired": task["desiredStatus"],
                "protected": self.state.protected(task),
                "pids": pids.get(task["taskArn"], []),
            }
            for task in self.state.tasks.values()
            if task["lastStatus"] != "STOPPED"
        ]


def furnish(world: World, control: Control) -> tuple[Ecs, dict[str, Resource]]:
    """ECS, its resource types, and its commands: task/kill, tasks/show, image/add."""
    ecs = Ecs(world)
    control.offer("task/kill", ecs.kill)
    control.offer("tasks/show", ecs.show)
    control.offer("image/add", ecs.add_image)
    return ecs, ecs_resources.resources(ecs)
