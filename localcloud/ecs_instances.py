"""ECS's container instances: the operations of operators on them, and those of the agents that run there."""

from __future__ import annotations

import json

from localcloud.ecs_shapes import Document, arn, at_most, page, public, short, without_tags
from localcloud.ecs_state import Part
from localcloud.query import Unreadable, parse
from localcloud.wire import Call, Fault, plays

_STATUSES = ("ACTIVE", "DRAINING", "REGISTERING", "DEREGISTERING", "REGISTRATION_FAILED")


class Instances(Part):
    """Container instances."""

    @plays("cluster", "filter", "status", "maxResults", "nextToken")
    def list_container_instances(self, call: Call) -> Document:
        """ARNs of those that are not INACTIVE, filtered by status and by a cluster query."""
        cluster = self.state.cluster(call.params.get("cluster"))
        statuses = [call.params["status"]] if "status" in call.params else _STATUSES
        try:
            query = parse(call.params["filter"]) if call.params.get("filter") else None
        except Unreadable as error:
            raise Fault("InvalidParameterException", f"Invalid filter: {error}") from error
        arns = [
            each["containerInstanceArn"]
            for each in self.state.instances.values()
            if each["_cluster"] == cluster["clusterArn"]
            and each["status"] in statuses
            and (query is None or query(self.state.room(each, "").facts))
        ]
        return page("containerInstanceArns", arns, call)

    @plays("cluster", "containerInstances", "include")
    def describe_container_instances(self, call: Call) -> Document:
        """A hundred at most; a deregistered one is INACTIVE for a while."""
        cluster = self.state.cluster(call.params.get("cluster"))
        found, failures = [], []
        for name in at_most(call.params["containerInstances"], 100, "instanceIds"):
            instance = self.state.instance(cluster, name)
            if instance is None:
                failures.append(_failure(cluster, name, "MISSING"))
            else:
                found.append(without_tags(self.state.show_instance(instance), call))
        return {"containerInstances": found, "failures": failures}

    @plays("cluster", "containerInstances", "status")
    def update_container_instances_state(self, call: Call) -> Document:
        """ACTIVE or DRAINING, ten at most. One that is unknown (MISSING) or deregistered (INACTIVE) is a failure."""
        status = call.params["status"]
        if status not in ("ACTIVE", "DRAINING"):
            raise Fault("InvalidParameterException", "Container instance status should be one of [ACTIVE, DRAINING]")
        cluster = self.state.cluster(call.params.get("cluster"))
        found, failures = [], []
        for name in at_most(call.params["containerInstances"], 10, "instanceIds"):
            instance = self.state.instance(cluster, name)
            if instance is None or instance["status"] == "INACTIVE":
                failures.append(_failure(cluster, name, "INACTIVE" if instance else "MISSING"))
                continue
            if instance["status"] != status:
                self.state.change_instance(instance, status=status)
                if status == "DRAINING":
                    self.world.note("draining", instance["ec2InstanceId"], caller=call.caller)
            found.append(self.state.show_instance(instance))
        return {"containerInstances": found, "failures": failures}

    @plays(
        "cluster",
        "instanceIdentityDocument",
        "instanceIdentityDocumentSignature",
        "totalResources",
        "platformDevices",
        "attributes",
        "versionInfo",
        "containerInstanceArn",
        "tags",
        "clientToken",
    )
    def register_container_instance(self, call: Call) -> Document:
        """What an agent does first. Its GPUs come as platform devices. Not connected until its channel is open."""
        params = call.params
        cluster = self.state.cluster(params.get("cluster"))
        identity = json.loads(params["instanceIdentityDocument"])
        amounts = {each["name"]: each.get("integerValue", 0) for each in params["totalResources"]}
        attributes = {
            "ecs.os-type": "linux",
            "ecs.availability-zone": identity["availabilityZone"],
            "ecs.instance-type": identity["instanceType"],
            **{each["name"]: each.get("value", "") for each in params.get("attributes", [])},
        }
        again = self.state.instances.get(params.get("containerInstanceArn", ""))
        key = (
            again["containerInstanceArn"]
            if again
            else arn("container-instance", cluster["clusterName"], self.state.new_id())
        )
        instance = {
            "containerInstanceArn": key,
            "_cluster": cluster["clusterArn"],
            "ec2InstanceId": identity["instanceId"],
            "status": again["status"] if again else "ACTIVE",
            "agentConnected": False,
            "version": again["version"] if again else 0,
            "versionInfo": params.get("versionInfo", {}),
            "attributes": [
                {"name": name, "value": value} if value else {"name": name} for name, value in attributes.items()
            ],
            "attachments": [],
            "registeredAt": again["registeredAt"] if again else self.state.now,
            "tags": params.get("tags", []),
            "_cpu": amounts["CPU"],
            "_memory": amounts["MEMORY"],
            "_gpus": [each["id"] for each in params.get("platformDevices", []) if each["type"] == "GPU"],
        }
        self.state.change_instance(instance)
        return {"containerInstance": self.state.show_instance(instance)}

    @plays("cluster", "containerInstance", "force")
    def deregister_container_instance(self, call: Call) -> Document:
        """Take it out of the cluster; with tasks there only by force."""
        cluster = self.state.cluster(call.params.get("cluster"))
        instance = self.state.instance(cluster, call.params["containerInstance"])
        if instance is None:
            raise Fault("InvalidParameterException", "The referenced container instance was not found.")
        there = list(self.state.tasks_of(instance=instance["containerInstanceArn"]))
        if there and not call.params.get("force"):
            raise Fault("InvalidParameterException", "Found running tasks on the instance.")
        for task in there:
            self.state.stop_task(task, "ServiceSchedulerInitiated", "Container instance deregistration forced by user")
        self.state.deregister(instance, "Container instance deregistration forced by user")
        return {"containerInstance": self.state.show_instance(instance)}

    @plays("cluster", "attributes")
    def put_attributes(self, call: Call) -> Document:
        """Set attributes of container instances; ten at most."""
        cluster = self.state.cluster(call.params.get("cluster"))
        for given in call.params["attributes"]:
            instance = self.state.instance(cluster, given.get("targetId", ""))
            if instance is None or instance["status"] == "INACTIVE":
                raise Fault("TargetNotFoundException", "The specified target wasn't found.")
            kept = [each for each in instance["attributes"] if each["name"] != given["name"]]
            attribute = {key: given[key] for key in ("name", "value") if key in given}
            self.state.change_instance(instance, attributes=[*kept, attribute])
        return {"attributes": call.params["attributes"]}

    @plays("cluster", "containerInstance")
    def discover_poll_endpoint(self, call: Call) -> Document:
        """Where the agent would open its websockets; here the two are in one process (see Ecs.connect)."""
        self.state.cluster(call.params.get("cluster"))
        endpoint = self.world.endpoint
        return {"endpoint": endpoint, "telemetryEndpoint": endpoint}

    @plays(
        "cluster",
        "task",
        "status",
        "reason",
        "containers",
        "pullStartedAt",
        "pullStoppedAt",
        "executionStoppedAt",
    )
    def submit_task_state_change(self, call: Call) -> Document:
        """An agent tells that a task runs, or that it ended and how."""
        params = call.params
        task = self.state.task(self.state.cluster(params.get("cluster")), params["task"])
        if task is None:
            raise Fault("InvalidParameterException", "The referenced task was not found.")
        for key in ("pullStartedAt", "pullStoppedAt", "executionStoppedAt"):
            if key in params:
                task[key] = params[key].timestamp()
        if params["status"] == "RUNNING":
            self.state.task_running(task)
        elif params["status"] == "STOPPED":
            exits = {
                each["containerName"]: {key: each[key] for key in ("exitCode", "reason", "runtimeId") if key in each}
                for each in params.get("containers", [])
            }
            ran = "startedAt" in task
            code = "EssentialContainerExited" if ran else "TaskFailedToStart"
            reason = params.get("reason") or ("Essential container in task exited" if ran else "Task failed to start")
            self.state.task_stopped(task, code, reason, exits)
        return {"acknowledgment": "ACK"}

    @plays("cluster", "task", "containerName", "runtimeId", "status", "exitCode", "reason", "networkBindings")
    def submit_container_state_change(self, call: Call) -> Document:
        """Heard and not needed: the task's own change carries its containers'."""
        self.state.cluster(call.params.get("cluster"))
        return {"acknowledgment": "ACK"}

    @plays("resourceArn", "tags")
    def tag_resource(self, call: Call) -> Document:
        """Add tags to a cluster, service, container instance or task."""
        table, key = self._tagged(call)
        document = table[key]
        given = {tag["key"]: tag for tag in call.params["tags"]}
        document["tags"] = [*(tag for tag in document["tags"] if tag["key"] not in given), *given.values()]
        table[key] = document
        return {}

    @plays("resourceArn")
    def list_tags_for_resource(self, call: Call) -> Document:
        """Its tags."""
        table, key = self._tagged(call)
        return {"tags": public(table[key])["tags"]}

    def _tagged(self, call: Call) -> tuple[Document, str]:
        resource = call.params["resourceArn"]
        kind = resource.split(":", 5)[-1].partition("/")[0]
        tables = {
            "cluster": (self.state.clusters, short(resource)),
            "service": (self.state.services, resource),
            "container-instance": (self.state.instances, resource),
            "task": (self.state.tasks, resource),
        }
        table, key = tables.get(kind, ({}, resource))
        if key not in table:
            raise Fault("InvalidParameterException", "The specified resource was not found.")
        return table, key  # type: ignore[return-value]


def _failure(cluster: Document, name: str, reason: str) -> Document:
    return {"arn": arn("container-instance", cluster["clusterName"], short(name)), "reason": reason}
