"""ECS's tasks: the operations on them, and their protection from scale-in."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from localcloud.ecs_shapes import Document, arn, at_most, page, public, short, without_tags
from localcloud.ecs_state import Part, demand_of
from localcloud.scheduler import place
from localcloud.wire import Call, Fault, plays

_PROTECTION_MINUTES = 120


class Tasks(Part):
    """Tasks."""

    @plays(
        "cluster",
        "taskDefinition",
        "count",
        "group",
        "startedBy",
        "overrides",
        "placementConstraints",
        "placementStrategy",
        "launchType",
        "tags",
        "clientToken",
        "enableECSManagedTags",
    )
    def run_task(self, call: Call) -> Document:
        """Standalone tasks, up to ten. What has no room is a failure, not an error."""
        params, state = call.params, self.state
        cluster = state.cluster(params.get("cluster"))
        definition = self.state.usable(params["taskDefinition"])
        group = params.get("group", f"family:{definition['family']}")
        if group.startswith("service:"):
            raise Fault("InvalidParameterException", "The group name service: is reserved for services.")
        demand = demand_of(definition, params.get("placementConstraints", []), params.get("placementStrategy", []))
        instances = [
            each
            for each in state.instances.values()
            if each["_cluster"] == cluster["clusterArn"] and each["status"] == "ACTIVE"
        ]
        if not instances:
            raise Fault("InvalidParameterException", "No Container Instances were found in your cluster.")
        count = params.get("count", 1)
        placed = place(demand, count, [state.room(each, group) for each in instances], self.world.dice.random)
        tasks = [
            state.start_task(
                definition,
                state.instances[instance],
                group=group,
                started_by=params.get("startedBy", ""),
                overrides=params.get("overrides"),
                tags=params.get("tags", []),
            )
            for instance in placed.instances
        ]
        short_of = "RESOURCE:GPU" if demand.gpus else "RESOURCE:MEMORY"
        failures = [
            {"arn": each["containerInstanceArn"], "reason": short_of if each["agentConnected"] else "AGENT"}
            for each in (instances if placed.unplaced else [])
        ]
        return {"tasks": [public(task) for task in tasks], "failures": failures}

    @plays("cluster", "task", "reason")
    def stop_task(self, call: Call) -> Document:
        """SIGTERM, then SIGKILL after the stop timeout; protection does not hold against it."""
        task = self.state.task(self.state.cluster(call.params.get("cluster")), call.params["task"])
        if task is None:
            raise Fault("InvalidParameterException", "The referenced task was not found.")
        if task["lastStatus"] != "STOPPED":
            self.state.stop_task(task, "UserInitiated", call.params.get("reason", "Task stopped by user"))
        return {"task": public(task)}

    @plays(
        "cluster",
        "containerInstance",
        "family",
        "serviceName",
        "startedBy",
        "desiredStatus",
        "launchType",
        "maxResults",
        "nextToken",
    )
    def list_tasks(self, call: Call) -> Document:
        """ARNs of the tasks whose desired status is RUNNING, or STOPPED when asked for."""
        params = call.params
        cluster = self.state.cluster(params.get("cluster"))
        if "serviceName" in params and self.state.service(cluster, params["serviceName"]) is None:
            raise Fault("ServiceNotFoundException", "Service not found.")
        wanted: list[Callable[[Document], bool]] = [
            lambda task: task["clusterArn"] == cluster["clusterArn"],
            lambda task: task["desiredStatus"] == params.get("desiredStatus", "RUNNING"),
        ]
        if "containerInstance" in params:
            wanted.append(lambda task: short(task["containerInstanceArn"]) == short(params["containerInstance"]))
        if "serviceName" in params:
            wanted.append(lambda task: task["group"] == f"service:{short(params['serviceName'])}")
        if "family" in params:
            wanted.append(lambda task: short(task["taskDefinitionArn"]).rsplit(":", 1)[0] == params["family"])
        if "startedBy" in params:
            wanted.append(lambda task: task["startedBy"] == params["startedBy"])
        arns = [task["taskArn"] for task in self.state.tasks.values() if all(each(task) for each in wanted)]
        return page("taskArns", arns, call)

    @plays("cluster", "tasks", "include")
    def describe_tasks(self, call: Call) -> Document:
        """A hundred tasks at most."""
        found, failures = self._tasks(call, at_most(call.params["tasks"], 100, "Tasks"))
        return {"tasks": [without_tags(public(task), call) for task in found], "failures": failures}

    @plays("cluster", "tasks", "protectionEnabled", "expiresInMinutes")
    def update_task_protection(self, call: Call) -> Document:
        """Protect service tasks from scale-in, or no longer; ten at most, two hours unless said.

        More protected tasks than the service's desired count is DEPLOYMENT_BLOCKED (developer guide, "task scale-in
        protection considerations").
        """
        params = call.params
        minutes = params.get("expiresInMinutes", _PROTECTION_MINUTES)
        if not 1 <= minutes <= 2880:
            raise Fault("InvalidParameterException", "expiresInMinutes must be between 1 and 2880.")
        found, failures = self._tasks(call, at_most(params["tasks"], 10, "Tasks"))
        done = []
        for task in found:
            reason = self._unprotectable(task, params["protectionEnabled"])
            if reason:
                failures.append({"arn": task["taskArn"], "reason": reason})
                continue
            task["_protected_until"] = self.state.now + minutes * 60 if params["protectionEnabled"] else 0.0
            self.state.tasks[task["taskArn"]] = task
            done.append(self._protection(task))
        return {"protectedTasks": done, "failures": failures}

    @plays("cluster", "tasks")
    def get_task_protection(self, call: Call) -> Document:
        """The protection of service tasks; ten at most."""
        found, failures = self._tasks(call, at_most(call.params.get("tasks", []), 10, "Tasks"))
        done = []
        for task in found:
            if task["group"].startswith("service:"):
                done.append(self._protection(task))
            else:
                failures.append({"arn": task["taskArn"], "reason": "TASK_NOT_VALID"})
        return {"protectedTasks": done, "failures": failures}

    def _unprotectable(self, task: Document, enable: bool) -> str | None:
        if not task["group"].startswith("service:"):
            return "TASK_NOT_VALID"
        if "STOPPED" in (task["lastStatus"], task["desiredStatus"]):
            return "TASK_NOT_VALID"
        service = self.state.services[arn("service", short(task["clusterArn"]), task["group"].partition(":")[2])]
        others = [each for each in self.state.tasks_of(service=service) if each["taskArn"] != task["taskArn"]]
        blocked = sum(self.state.protected(each) for each in others) >= service["desiredCount"]
        return "DEPLOYMENT_BLOCKED" if enable and blocked else None

    def _protection(self, task: Document) -> Document:
        enabled = self.state.protected(task)
        until = {"expirationDate": task["_protected_until"]} if enabled else {}
        return public({"taskArn": task["taskArn"], "protectionEnabled": enabled, **until})

    def _tasks(self, call: Call, names: Iterable[str]) -> tuple[list[Document], list[Document]]:
        cluster = self.state.cluster(call.params.get("cluster"))
        found, failures = [], []
        for name in names:
            task = self.state.task(cluster, name)
            if task is None:
                missing = arn("task", cluster["clusterName"], short(name))
                failures.append({"arn": missing, "reason": "MISSING"})
            else:
                found.append(task)
        return found, failures
