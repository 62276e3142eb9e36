"""ECS's clusters, task definitions and services: the operations. What keeps a service at its count is ecs_keeper."""

from __future__ import annotations

from localcloud import ecshealth
from localcloud.ecs_shapes import Document, arn, at_most, page, public, short, without_tags, words
from localcloud.ecs_state import Part, demand_of
from localcloud.wire import Call, Fault, plays

_CONTAINER_PLAYED = words(
    "name image cpu memory memoryReservation essential entryPoint command environment mountPoints "
    "resourceRequirements stopTimeout logConfiguration workingDirectory healthCheck"
)
_CONTAINER_INERT = words(
    # Of no effect on a plain process, and harmless to leave out: it runs as the laptop's user in its own session.
    "linuxParameters readonlyRootFilesystem ulimits user privileged dockerLabels dockerSecurityOptions "
    "hostname interactive pseudoTerminal versionConsistency systemControls"
)


class Services(Part):
    """Clusters, task definitions, services."""

    # Clusters

    @plays("clusterName", "settings", "configuration", "tags")
    def create_cluster(self, call: Call) -> Document:
        """A cluster; the same name again is the same cluster."""
        name = call.params.get("clusterName", "default")
        if name not in self.state.clusters or self.state.clusters[name]["status"] != "ACTIVE":
            self.state.clusters[name] = {
                "clusterArn": arn("cluster", name),
                "clusterName": name,
                "status": "ACTIVE",
                "settings": call.params.get("settings", []),
                "capacityProviders": [],
                "defaultCapacityProviderStrategy": [],
                "statistics": [],
                "tags": call.params.get("tags", []),
            }
        return {"cluster": self._show_cluster(self.state.clusters[name])}

    @plays("clusters", "include")
    def describe_clusters(self, call: Call) -> Document:
        """Clusters with their counts."""
        found, failures = [], []
        for name in call.params.get("clusters", ["default"]):
            cluster = self.state.clusters.get(short(name))
            if cluster is None:
                failures.append({"arn": arn("cluster", short(name)), "reason": "MISSING"})
            else:
                found.append(without_tags(self._show_cluster(cluster), call))
        return {"clusters": found, "failures": failures}

    @plays("maxResults", "nextToken")
    def list_clusters(self, call: Call) -> Document:
        """ARNs of the active clusters."""
        arns = [each["clusterArn"] for each in self.state.clusters.values() if each["status"] == "ACTIVE"]
        return page("clusterArns", arns, call)

    @plays("cluster")
    def delete_cluster(self, call: Call) -> Document:
        """Delete an empty cluster."""
        cluster = self.state.cluster(call.params["cluster"])
        shown = self._show_cluster(cluster)
        if shown["registeredContainerInstancesCount"]:
            raise Fault(
                "ClusterContainsContainerInstancesException",
                "The Cluster cannot be deleted while Container Instances are active or draining.",
            )
        if shown["activeServicesCount"]:
            raise Fault("ClusterContainsServicesException", "The Cluster cannot be deleted while Services are active.")
        if shown["runningTasksCount"] or shown["pendingTasksCount"]:
            raise Fault("ClusterContainsTasksException", "The Cluster cannot be deleted while Tasks are active.")
        cluster["status"] = "INACTIVE"
        self.state.clusters[cluster["clusterName"]] = cluster
        return {"cluster": self._show_cluster(cluster)}

    def _show_cluster(self, cluster: Document) -> Document:
        state, key = self.state, cluster["clusterArn"]
        tasks = [task["lastStatus"] for task in state.tasks.values() if task["clusterArn"] == key]
        return {
            **public(cluster),
            "registeredContainerInstancesCount": sum(
                each["_cluster"] == key and each["status"] != "INACTIVE" for each in state.instances.values()
            ),
            "runningTasksCount": tasks.count("RUNNING"),
            "pendingTasksCount": tasks.count("PENDING"),
            "activeServicesCount": sum(
                each["clusterArn"] == key and each["status"] != "INACTIVE" for each in state.services.values()
            ),
        }

    # Task definitions

    @plays(
        "family",
        "containerDefinitions",
        "taskRoleArn",
        "executionRoleArn",
        "networkMode",
        "volumes",
        "placementConstraints",
        "requiresCompatibilities",
        "cpu",
        "memory",
        "tags",
    )
    def register_task_definition(self, call: Call) -> Document:
        """A new revision, kept whole."""
        given = dict(call.params)
        if given.setdefault("networkMode", "bridge") != "bridge":
            raise Fault("NotPlayed", f"the local cloud does not play network mode {given['networkMode']}")
        if unplayed := set(given.get("requiresCompatibilities", [])) - {"EC2"}:
            raise Fault("NotPlayed", f"the local cloud does not play {', '.join(unplayed)}")
        for container in given["containerDefinitions"]:
            if unknown := sorted(set(container) - _CONTAINER_PLAYED - _CONTAINER_INERT):
                raise Fault("NotPlayed", f"the local cloud does not play {', '.join(unknown)} of a container")
            if "memory" not in container and "memoryReservation" not in container and "memory" not in given:
                raise Fault(
                    "ClientException",
                    "Invalid setting for container. At least one of 'memory' or 'memoryReservation' must be specified.",
                )
            if "healthCheck" in container and (wrong := ecshealth.complaint(container["healthCheck"])):
                raise Fault("ClientException", wrong)
            for key, default in (("cpu", 0), ("essential", True), ("environment", []), ("mountPoints", [])):
                container.setdefault(key, default)
            for volume in given.get("volumes", []):
                _check_volume(volume)
            if strange := {each["sourceVolume"] for each in container["mountPoints"]} - {
                volume["name"] for volume in given.get("volumes", [])
            }:
                raise Fault("ClientException", f"Unknown volume '{min(strange)}'.")
        revisions = [each["revision"] for each in self.state.definitions.values() if each["family"] == given["family"]]
        name = f"{given['family']}:{max(revisions, default=0) + 1}"
        definition = {
            "volumes": [],
            "placementConstraints": [],
            **{key: value for key, value in given.items() if key != "tags"},
            "taskDefinitionArn": arn("task-definition", name),
            "revision": max(revisions, default=0) + 1,
            "status": "ACTIVE",
            "compatibilities": ["EXTERNAL", "EC2"],
            "registeredAt": self.state.now,
            "registeredBy": call.caller,
            "_tags": given.get("tags", []),
        }
        demand_of(definition)
        self.state.definitions[name] = definition
        return {"taskDefinition": public(definition), "tags": given.get("tags", [])}

    @plays("taskDefinition", "include")
    def describe_task_definition(self, call: Call) -> Document:
        """One revision."""
        definition = self.state.definition(call.params["taskDefinition"])
        tags = {"tags": definition["_tags"]} if "TAGS" in call.params.get("include", []) else {}
        return {"taskDefinition": public(definition), **tags}

    @plays("taskDefinition")
    def deregister_task_definition(self, call: Call) -> Document:
        """Make a revision INACTIVE: what runs goes on, nothing new can use it after its service changes."""
        definition = self.state.definition(call.params["taskDefinition"])
        definition["status"] = "INACTIVE"
        self.state.definitions[short(definition["taskDefinitionArn"])] = definition
        return {"taskDefinition": public(definition)}

    @plays("familyPrefix", "status", "maxResults", "nextToken")
    def list_task_definitions(self, call: Call) -> Document:
        """ARNs of revisions, ACTIVE ones unless asked otherwise."""
        arns = [
            each["taskDefinitionArn"]
            for each in self.state.definitions.values()
            if each["status"] == call.params.get("status", "ACTIVE")
            and call.params.get("familyPrefix", each["family"]) == each["family"]
        ]
        return page("taskDefinitionArns", arns, call)

    # Services

    @plays(
        "cluster",
        "serviceName",
        "taskDefinition",
        "desiredCount",
        "deploymentConfiguration",
        "placementConstraints",
        "placementStrategy",
        "launchType",
        "schedulingStrategy",
        "tags",
        "propagateTags",
        "enableECSManagedTags",
        "clientToken",
    )
    def create_service(self, call: Call) -> Document:
        """A REPLICA service on EC2. Without desiredCount it starts at 1, as CloudFormation's services do."""
        params = call.params
        cluster = self.state.cluster(params.get("cluster"))
        key = arn("service", cluster["clusterName"], params["serviceName"])
        if key in self.state.services and self.state.services[key]["status"] != "INACTIVE":
            raise Fault("InvalidParameterException", "Creation of service was not idempotent.")
        for name, expected in (("launchType", "EC2"), ("schedulingStrategy", "REPLICA")):
            if params.get(name, expected) != expected:
                raise Fault("NotPlayed", f"the local cloud does not play {name} {params[name]}")
        definition = self.state.usable(params["taskDefinition"])
        service = {
            "serviceArn": key,
            "serviceName": params["serviceName"],
            "clusterArn": cluster["clusterArn"],
            "status": "ACTIVE",
            "desiredCount": params.get("desiredCount", 1),
            "runningCount": 0,
            "pendingCount": 0,
            "launchType": "EC2",
            "taskDefinition": definition["taskDefinitionArn"],
            "deploymentConfiguration": _deployment_configuration(params.get("deploymentConfiguration", {})),
            "deployments": [],
            "events": [],
            "loadBalancers": [],
            "serviceRegistries": [],
            "createdAt": self.state.now,
            "createdBy": call.caller,
            "placementConstraints": params.get("placementConstraints", []),
            "placementStrategy": params.get("placementStrategy", []),
            "schedulingStrategy": "REPLICA",
            "deploymentController": {"type": "ECS"},
            "enableECSManagedTags": params.get("enableECSManagedTags", False),
            "propagateTags": params.get("propagateTags", "NONE"),
            "enableExecuteCommand": False,
            "tags": params.get("tags", []),
            "_failures": 0,
            "_start_after": 0.0,
            "_steady": False,
        }
        demand_of(definition, service["placementConstraints"], service["placementStrategy"])
        self._deploy(service)
        return {"service": public(service)}

    @plays(
        "cluster",
        "service",
        "desiredCount",
        "taskDefinition",
        "deploymentConfiguration",
        "placementConstraints",
        "placementStrategy",
        "forceNewDeployment",
        "propagateTags",
        "enableECSManagedTags",
    )
    def update_service(self, call: Call) -> Document:
        """Change what is named and keep the rest; a task definition or a forced deployment starts a new one."""
        params = dict(call.params)
        service = self._active_service(params.pop("cluster", None), params.pop("service"))
        deploys = params.pop("forceNewDeployment", False)
        if "taskDefinition" in params:
            params["taskDefinition"] = self.state.usable(params["taskDefinition"])["taskDefinitionArn"]
            deploys |= params["taskDefinition"] != service["taskDefinition"]
        if "deploymentConfiguration" in params:
            params["deploymentConfiguration"] = _deployment_configuration(
                {**service["deploymentConfiguration"], **params["deploymentConfiguration"]}
            )
        if params.get("desiredCount", service["desiredCount"]) != service["desiredCount"]:
            self.world.note(
                "service desired", service["serviceName"], desired=params["desiredCount"], caller=call.caller
            )
            service["_steady"] = False
        service.update(params)
        if deploys:
            self._deploy(service)
        self.state.services[service["serviceArn"]] = service
        return {"service": public(service)}

    def _deploy(self, service: Document) -> None:
        """Start a deployment of the service's task definition; the ones before it become ACTIVE, to be replaced."""
        for earlier in service["deployments"]:
            earlier["status"] = "ACTIVE"
        identifier = f"ecs-svc/{self.world.dice.randrange(10**18, 10**19)}"
        primary = {
            "id": identifier,
            "status": "PRIMARY",
            "taskDefinition": service["taskDefinition"],
            "desiredCount": service["desiredCount"],
            "runningCount": 0,
            "pendingCount": 0,
            "failedTasks": 0,
            "createdAt": self.state.now,
            "updatedAt": self.state.now,
            "launchType": "EC2",
            "rolloutState": "IN_PROGRESS",
            "rolloutStateReason": f"ECS deployment {identifier} in progress.",
        }
        service.update(deployments=[primary, *service["deployments"]], _failures=0, _start_after=0.0, _steady=False)
        self.state.services[service["serviceArn"]] = service

    @plays("cluster", "services", "include")
    def describe_services(self, call: Call) -> Document:
        """Ten services at most."""
        cluster = self.state.cluster(call.params.get("cluster"))
        asked = at_most(call.params["services"], 10, "Services")
        found, failures = [], []
        for name in asked:
            service = self.state.service(cluster, name)
            if service is None:
                missing = arn("service", cluster["clusterName"], short(name))
                failures.append({"arn": missing, "reason": "MISSING"})
            else:
                found.append(without_tags(public(service), call))
        return {"services": found, "failures": failures}

    @plays("cluster", "maxResults", "nextToken", "launchType", "schedulingStrategy")
    def list_services(self, call: Call) -> Document:
        """ARNs of the services that are not INACTIVE, ten a page unless asked otherwise."""
        cluster = self.state.cluster(call.params.get("cluster"))
        arns = [
            each["serviceArn"]
            for each in self.state.services.values()
            if each["clusterArn"] == cluster["clusterArn"] and each["status"] != "INACTIVE"
        ]
        return page("serviceArns", arns, call, default=10)

    @plays("cluster", "service", "force")
    def delete_service(self, call: Call) -> Document:
        """Drain the service; it is INACTIVE when its last task has stopped (a protected one stays until then)."""
        service = self._active_service(call.params.get("cluster"), call.params["service"])
        if service["desiredCount"] > 0 and not call.params.get("force"):
            raise Fault("InvalidParameterException", "The service cannot be stopped while it is scaled above 0.")
        service.update(status="DRAINING", desiredCount=0)
        self.state.services[service["serviceArn"]] = service
        return {"service": public(service)}

    def _active_service(self, cluster: str | None, name: str) -> Document:
        service = self.state.service(self.state.cluster(cluster), name)
        if service is None:
            raise Fault("ServiceNotFoundException", "Service not found.")
        if service["status"] != "ACTIVE":
            raise Fault("ServiceNotActiveException", "Service was not ACTIVE.")
        return service


def _check_volume(volume: Document) -> None:
    """Refuse a volume that is not played, and of EFS what ECS refuses (API reference, EFSVolumeConfiguration)."""
    if unknown := sorted(set(volume) - {"name", "host", "efsVolumeConfiguration"}):
        raise Fault("NotPlayed", f"the local cloud does not play {', '.join(unknown)} of a volume")
    shared = volume.get("efsVolumeConfiguration", {})
    access = shared.get("authorizationConfig", {})
    if access and shared.get("transitEncryption") != "ENABLED":
        message = "Transit encryption must be enabled if Amazon EFS IAM authorization or an access point is used."
        raise Fault("ClientException", message)
    if "accessPointId" in access and shared.get("rootDirectory", "/") != "/":
        raise Fault("ClientException", "The root directory must be omitted or / when an access point is specified.")
    if "transitEncryptionPort" in shared:
        raise Fault("NotPlayed", "the local cloud does not play transitEncryptionPort")


def _deployment_configuration(given: Document) -> Document:
    if given.get("deploymentCircuitBreaker", {}).get("enable") or given.get("alarms", {}).get("enable"):
        raise Fault("NotPlayed", "the local cloud does not play circuit breakers and alarms of deployments")
    return {"minimumHealthyPercent": 100, "maximumPercent": 200, **given}
