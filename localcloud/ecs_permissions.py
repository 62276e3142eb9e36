"""What the operations of ECS must be allowed: resource types and condition keys of the Service Authorization Reference.

https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazonelasticcontainerservice.html
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from localcloud.ecs_shapes import arn, short
from localcloud.ecs_state import State
from localcloud.wire import Call, Permission

_RESOURCE = {
    "CreateCluster": ("cluster", "clusterName"),
    "DescribeClusters": ("cluster", "clusters"),
    "DeleteCluster": ("cluster", "cluster"),
    "RegisterTaskDefinition": ("task-definition", "family"),
    "RunTask": ("task-definition", "taskDefinition"),
    "CreateService": ("service", "serviceName"),
    "UpdateService": ("service", "service"),
    "DeleteService": ("service", "service"),
    "DescribeServices": ("service", "services"),
    "StopTask": ("task", "task"),
    "DescribeTasks": ("task", "tasks"),
    "UpdateTaskProtection": ("task", "tasks"),
    "GetTaskProtection": ("task", "tasks"),
    "ListTasks": ("container-instance", "containerInstance"),
    "ListContainerInstances": ("cluster", "cluster"),
    "DescribeContainerInstances": ("container-instance", "containerInstances"),
    "UpdateContainerInstancesState": ("container-instance", "containerInstances"),
    "RegisterContainerInstance": ("cluster", "cluster"),
    "DeregisterContainerInstance": ("cluster", "cluster"),
    "SubmitTaskStateChange": ("cluster", "cluster"),
    "SubmitContainerStateChange": ("cluster", "cluster"),
}
"""Operation -> type of its resource and the parameter that names it; any other asks for `*`.

ListTasks without a container instance asks for `*` too: a policy must then say so and hold the cluster by condition.
"""


def permissions(state: State, call: Call) -> Iterable[Permission]:
    """Everything that the caller of `call` must be allowed."""
    params = call.params
    cluster = short(params.get("cluster") or "default")
    context: dict[str, Any] = {"ecs:cluster": arn("cluster", cluster)}
    for resource in _resources(call, cluster):
        tags = _tags(state, resource)
        yield Permission(f"ecs:{call.operation}", resource, {**context, **tags} if resource != "*" else context)
    for role in _passed_roles(state, call):
        yield Permission("iam:PassRole", role, {"iam:PassedToService": "ecs-tasks.amazonaws.com"})
    if call.operation == "DiscoverPollEndpoint" and "containerInstance" in params:
        # The agent asks for the endpoint to open two websockets there; they are not played, their permissions are.
        instance = arn("container-instance", cluster, short(params["containerInstance"]))
        yield Permission("ecs:Poll", instance, context)
        yield Permission("ecs:StartTelemetrySession", instance, context)


def _resources(call: Call, cluster: str) -> Iterable[str]:
    kind, parameter = _RESOURCE.get(call.operation, ("", "resourceArn"))
    named = call.params.get(parameter, "default" if kind == "cluster" else [])
    names = [named] if isinstance(named, str) else named
    if call.operation == "ListTasks" and not names:
        return ["*"]
    if call.operation == "RegisterTaskDefinition":
        names = [f"{named}:*"]
    if kind in ("cluster", "task-definition"):
        return [arn(kind, short(name)) for name in names]
    if kind:
        return [arn(kind, cluster, short(name)) for name in names]
    return names or ["*"]


def _tags(state: State, resource: str) -> Mapping[str, str]:
    kind, _, name = resource.split(":", 5)[-1].partition("/") if ":" in resource else ("", "", "")
    tables = {
        "cluster": state.clusters.get(name),
        "service": state.services.get(resource),
        "container-instance": state.instances.get(resource),
        "task": state.tasks.get(resource),
    }
    document = tables.get(kind) or {}
    return {f"aws:ResourceTag/{tag['key']}": tag.get("value", "") for tag in document.get("tags", [])}


def _passed_roles(state: State, call: Call) -> Iterable[str]:
    if call.operation == "RegisterTaskDefinition":
        source = call.params
    elif call.operation == "RunTask":
        source = state.definition(call.params["taskDefinition"])
    else:
        return []
    return [source[key] for key in ("taskRoleArn", "executionRoleArn") if key in source]
