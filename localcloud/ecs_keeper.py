"""ECS's own doings as time passes: keeping services at their count, and noticing that an instance died."""

from __future__ import annotations

from datetime import datetime

from localcloud.ecs_shapes import Document, public, short
from localcloud.ecs_state import KEPT_SECONDS, State, demand_of
from localcloud.scheduler import ServiceSeen, TaskSeen, decide, place

SCHEDULER_SECONDS = 1.0
"""AWS's time between two looks of the service scheduler."""
LONGEST_THROTTLE_SECONDS = 27 * 60.0
"""Between restarts of a task that keeps failing to start (developer guide, "service throttle logic")."""
GONE_SECONDS = 20.0
"""AWS's time from an instance's death to its tasks being STOPPED."""


class Keeper:
    """The heartbeat of ECS."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._next_look: dict[str, float] = {}
        self._gone_at: dict[str, float] = {}

    def instance_gone(self, instance_id: str) -> None:
        """The EC2 instance was terminated: its agent is away at once, its tasks and registration a little later."""
        with self._state.world.lock:
            for instance in self._state.instances.values():
                if instance["ec2InstanceId"] == instance_id and instance["status"] != "INACTIVE":
                    self._state.agents.pop(instance["containerInstanceArn"], None)
                    self._state.change_instance(instance, agentConnected=False)
                    self._gone_at[instance["containerInstanceArn"]] = self._state.now

    def step(self, now: datetime) -> None:
        """One heartbeat."""
        at, state = now.timestamp(), self._state
        for key, gone_at in list(self._gone_at.items()):
            if at - gone_at >= state.world.scaled(GONE_SECONDS):
                del self._gone_at[key]
                instance = state.instances[key]
                state.deregister(instance, f"Host EC2 (instance {instance['ec2InstanceId']}) terminated.")
        for key, service in state.services.items():
            if service["status"] != "INACTIVE" and at >= self._next_look.get(key, 0.0):
                self._next_look[key] = at + state.world.scaled(SCHEDULER_SECONDS)
                self._keep(service, at)
        self._forget(at)

    def _keep(self, service: Document, at: float) -> None:
        tasks = list(self._state.tasks_of(service=service))
        self._count_failures(service, at)
        decision = decide(self._seen(service, tasks, at))
        by_arn = {task["taskArn"]: task for task in tasks}
        primary = service["deployments"][0]["id"]
        for stop in decision.stops:
            reason = f"Scaling activity initiated by (deployment {primary})"
            if stop.why == "draining":
                reason = "Task stopped during instance draining"
            elif stop.why == "health":
                reason = "Task failed container health checks"
                self._say(service, f"(task {short(stop.arn)}) failed container health checks.", at)
            self._state.stop_task(by_arn[stop.arn], "ServiceSchedulerInitiated", reason)
        if decision.stops:
            self._say(service, f"has stopped {len(decision.stops)} running tasks.", at)
        if decision.starts:
            self._start(service, decision.starts, at)
        self._settle(service, at)

    def _seen(self, service: Document, tasks: list[Document], at: float) -> ServiceSeen:
        state, configuration = self._state, service["deploymentConfiguration"]
        return ServiceSeen(
            desired=service["desiredCount"],
            minimum_healthy_percent=configuration["minimumHealthyPercent"],
            maximum_percent=configuration["maximumPercent"],
            throttled=at < service["_start_after"],
            tasks=tuple(
                TaskSeen(
                    arn=task["taskArn"],
                    zone=task["availabilityZone"],
                    running=task["lastStatus"] == "RUNNING",
                    stopping=task["desiredStatus"] == "STOPPED",
                    protected=state.protected(task),
                    draining=state.instances[task["containerInstanceArn"]]["status"] == "DRAINING",
                    current=task["startedBy"] == service["deployments"][0]["id"],
                    sick=task["healthStatus"] == "UNHEALTHY",
                    well=task["lastStatus"] == "RUNNING"
                    and (task["healthStatus"] == "HEALTHY" or not task["_checked"]),
                )
                for task in tasks
            ),
        )

    def _start(self, service: Document, count: int, at: float) -> None:
        state = self._state
        definition = state.definition(service["taskDefinition"])
        demand = demand_of(definition, service["placementConstraints"], service["placementStrategy"])
        group = f"service:{service['serviceName']}"
        rooms = [
            state.room(instance, group)
            for instance in state.instances.values()
            if instance["_cluster"] == service["clusterArn"]
        ]
        placed = place(demand, count, rooms, state.world.dice.random)
        for instance in placed.instances:
            tags = service.get("tags", []) if service.get("propagateTags") == "SERVICE" else []
            if service.get("propagateTags") == "TASK_DEFINITION":
                tags = definition["_tags"]
            state.start_task(
                definition,
                state.instances[instance],
                group=group,
                started_by=service["deployments"][0]["id"],
                tags=tags,
            )
        if placed.instances:
            self._say(service, f"has started {len(placed.instances)} tasks.", at)
        if placed.unplaced:
            self._say(
                service,
                "was unable to place a task because no container instance met all of its requirements. "
                f"{placed.unplaced}. For more information, see the Troubleshooting section of the Amazon ECS Developer "
                "Guide.",
                at,
                once=True,
            )

    def _count_failures(self, service: Document, at: float) -> None:
        """Tasks that stopped without ever having run make the next start wait, longer each time."""
        for task in self._state.tasks.values():
            if task["startedBy"] != service["deployments"][0]["id"] or task.get("_counted"):
                continue
            if "startedAt" in task:
                service["_failures"] = 0
            elif task["lastStatus"] == "STOPPED" and task.get("stopCode") == "TaskFailedToStart":
                service["_failures"] += 1
                service["deployments"][0]["failedTasks"] += 1
                pause = min(2.0 ** service["_failures"], LONGEST_THROTTLE_SECONDS)
                service["_start_after"] = at + self._state.world.scaled(pause)
                self._say(service, "is unable to consistently start tasks successfully.", at, once=True)
            else:
                continue
            task["_counted"] = True
            self._state.tasks[task["taskArn"]] = task
            self._state.services[service["serviceArn"]] = service

    def _settle(self, service: Document, at: float) -> None:
        """Bring the service's counts, deployments and status up to date."""
        tasks = list(self._state.tasks_of(service=service))
        before = (public(service), service["_steady"])
        ongoing = []
        for deployment in service["deployments"]:
            own = [task for task in tasks if task["startedBy"] == deployment["id"]]
            deployment["runningCount"] = sum(task["lastStatus"] == "RUNNING" for task in own)
            deployment["pendingCount"] = sum(task["lastStatus"] == "PENDING" for task in own)
            if deployment["status"] == "PRIMARY":
                deployment["desiredCount"] = service["desiredCount"]
            if own or deployment["status"] == "PRIMARY":
                ongoing.append(deployment)
        service["deployments"] = ongoing
        service["runningCount"] = sum(each["runningCount"] for each in ongoing)
        service["pendingCount"] = sum(each["pendingCount"] for each in ongoing)
        service["_steady"] = len(ongoing) == 1 and service["pendingCount"] == 0
        service["_steady"] &= service["runningCount"] == service["desiredCount"]
        if service["_steady"] and ongoing[0]["rolloutState"] == "IN_PROGRESS":
            ongoing[0].update(
                rolloutState="COMPLETED", rolloutStateReason=f"ECS deployment {ongoing[0]['id']} completed."
            )
        if service["_steady"] and not before[1]:
            self._say(service, "has reached a steady state.", at)
        if service["status"] == "DRAINING" and not tasks:
            service["status"] = "INACTIVE"
        if before != (public(service), service["_steady"]):
            self._state.services[service["serviceArn"]] = service

    def _say(self, service: Document, words: str, at: float, once: bool = False) -> None:
        """Add a service event; `once`: not when it is the latest one already. ECS keeps a hundred."""
        message = f"(service {service['serviceName']}) {words}"
        if once and service["events"] and service["events"][0]["message"] == message:
            return
        event = {"id": self._state.new_id(), "createdAt": at, "message": message}
        service["events"] = [event, *service["events"]][:100]
        self._state.services[service["serviceArn"]] = service

    def _forget(self, at: float) -> None:
        for key, task in self._state.tasks.items():
            if task["lastStatus"] == "STOPPED" and at - task["stoppedAt"] > KEPT_SECONDS:
                del self._state.tasks[key]
        for key, instance in self._state.instances.items():
            if instance["status"] == "INACTIVE" and at - instance["_deregistered_at"] > KEPT_SECONDS:
                del self._state.instances[key]
