"""AWS Batch: jobs and arrays of jobs on managed environments of EC2 instances, and CloudFormation's types of them.

What it knows is in batchjobs.py, its own doings in batchkeeper.py.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from localcloud import catalog, substrate
from localcloud.batchjobs import ENDED, WAITING, Definition, Environment, Job, Queue, arn
from localcloud.batchkeeper import MARKETS, Keeper, joins
from localcloud.ecs_shapes import arn as ecs_arn
from localcloud.ecs_shapes import page, words
from localcloud.formation import NotPlayed, Resource, refuse_unplayed
from localcloud.inputs import valid_input
from localcloud.launch import Blueprint, Surveyor
from localcloud.wire import Call, Fault, Service, plays

if TYPE_CHECKING:
    from localcloud.ecs import Ecs
    from localcloud.instances import Instances

# ruff: noqa: ARG002 - the arguments of create, update and delete are formation.Resource's

LARGEST_ARRAY, SMALLEST_ARRAY = 10_000, 2
"""Batch User Guide, "Array jobs"."""
GONE_SECONDS = 600.0
"""AWS's time that a deletion waits for machines and jobs to end."""
STRATEGIES = {"SPOT": "SPOT_PRICE_CAPACITY_OPTIMIZED", "EC2": "BEST_FIT_PROGRESSIVE"}
"""What is played, by type of environment."""
COMPUTE = words(
    "Type AllocationStrategy MinvCpus MaxvCpus InstanceTypes Subnets SecurityGroupIds InstanceRole LaunchTemplate "
    "Ec2Configuration Tags"
)
CONTAINER = words(
    "image command jobRoleArn executionRoleArn resourceRequirements environment volumes mountPoints "
    "readonlyRootFilesystem linuxParameters logConfiguration"
)


class Batch(Service):
    """The `batch` service."""

    name = "batch"

    def __init__(self, ecs: Ecs, instances: Instances, surveyor: Surveyor) -> None:
        self.world = ecs.world
        self.keeper = Keeper(ecs, instances)
        self.ecs, self.surveyor = ecs, surveyor

    def answer(self, call: Call) -> Mapping[str, Any]:
        """Carry one operation out."""
        with self.world.lock:
            return super().answer(call)

    @plays("jobName", "jobQueue", "jobDefinition", "arrayProperties", "containerOverrides")
    def submit_job(self, call: Call) -> Mapping[str, Any]:
        """A job, or an array of them."""
        params, keeper = call.params, self.keeper
        queue, definition = self._queue(params["jobQueue"]), self._definition(params["jobDefinition"])
        overrides = params.get("containerOverrides", {})
        if unplayed := sorted(set(overrides) - {"environment"}):
            raise Fault("NotPlayed", f"the local cloud does not play {', '.join(unplayed)} of containerOverrides")
        told = {one["name"]: one["value"] for one in overrides.get("environment", ())}
        if ours := sorted(name for name in told if name.startswith("AWS_BATCH")):
            raise Fault("ClientException", f"Environment variables may not start with AWS_BATCH: {', '.join(ours)}")
        size = params.get("arrayProperties", {}).get("size")
        if size is not None and not SMALLEST_ARRAY <= size <= LARGEST_ARRAY:
            raise Fault("ClientException", f"Array size must be between {SMALLEST_ARRAY} and {LARGEST_ARRAY}.")

        def job(number: int | None) -> Job:
            identity = key if number is None else f"{key}:{number}"
            return Job(identity, params["jobName"], queue.arn, definition, told, keeper.now, keeper.due(), number)

        key = str(uuid.UUID(int=self.world.dice.getrandbits(128)))
        made = job(None)
        made.children = [job(number) for number in range(size or 0)]
        keeper.jobs[key] = made
        self.world.note("batch submitted", key, queue=queue.name, size=size or 1)
        return {"jobArn": arn("job", key), "jobName": made.name, "jobId": key}

    @plays("jobs")
    def describe_jobs(self, call: Call) -> Mapping[str, Any]:
        """A hundred jobs at most. What is not known is left out."""
        if len(call.params["jobs"]) > 100:
            raise Fault("ClientException", "At most 100 jobs can be described.")
        found = [self.keeper.find(one) for one in call.params["jobs"]]
        return {"jobs": [self._detail(one) for one in found if one]}

    @plays("jobQueue", "arrayJobId", "jobStatus", "filters", "maxResults", "nextToken")
    def list_jobs(self, call: Call) -> Mapping[str, Any]:
        """Jobs of a queue or children of an array in one status, RUNNING unless said; or all created after a time."""
        params = call.params
        if ("jobQueue" in params) == ("arrayJobId" in params):
            raise Fault("ClientException", "Exactly one of jobQueue and arrayJobId is required.")
        status = params.get("jobStatus", "RUNNING")
        if "arrayJobId" in params:
            parent = self.keeper.find(params["arrayJobId"])
            found = [one for one in parent.children if one.status == status] if parent else []
        else:
            queue = self._queue(params["jobQueue"])
            found = [one for one in self.keeper.jobs.values() if one.queue == queue.arn]
            if filters := params.get("filters"):
                if [one["name"] for one in filters] != ["AFTER_CREATED_AT"]:
                    raise Fault("NotPlayed", "the local cloud plays the filter AFTER_CREATED_AT")
                found = [one for one in found if one.created > int(filters[0]["values"][0])]
            else:
                found = [one for one in found if one.status == status]
        return page("jobSummaryList", [self._summary(one) for one in found], call)  # type: ignore[misc]

    @plays("jobId", "reason")
    def terminate_job(self, call: Call) -> Mapping[str, Any]:
        """End a job or an array, whatever it does."""
        if job := self.keeper.find(call.params["jobId"]):
            self.keeper.end(job, call.params["reason"])
        return {}

    @plays("jobId", "reason")
    def cancel_job(self, call: Call) -> Mapping[str, Any]:
        """End what has not started; the rest goes on."""
        job = self.keeper.find(call.params["jobId"])
        for one in job.each if job else ():
            if one.status in WAITING:
                one.cancelled = True
                self.keeper.end(one, call.params["reason"])
        return {}

    @plays("jobQueues", "maxResults", "nextToken")
    def describe_job_queues(self, call: Call) -> Mapping[str, Any]:
        """Queues."""
        wanted = call.params.get("jobQueues")
        found = [one for one in self.keeper.queues.values() if not wanted or {one.arn, one.name} & set(wanted)]
        return {
            "jobQueues": [
                {
                    "jobQueueName": one.name,
                    "jobQueueArn": one.arn,
                    "state": one.state,
                    "status": "VALID",
                    "priority": one.priority,
                    "computeEnvironmentOrder": [
                        {"order": place, "computeEnvironment": each} for place, each in enumerate(one.order, start=1)
                    ],
                    "tags": dict(one.tags),
                }
                for one in found
            ]
        }

    @plays("computeEnvironments", "maxResults", "nextToken")
    def describe_compute_environments(self, call: Call) -> Mapping[str, Any]:
        """Compute environments."""
        wanted = call.params.get("computeEnvironments")
        found = [one for one in self.keeper.environments.values() if not wanted or {one.arn, one.name} & set(wanted)]
        return {
            "computeEnvironments": [
                {
                    "computeEnvironmentName": one.name,
                    "computeEnvironmentArn": one.arn,
                    "ecsClusterArn": ecs_arn("cluster", one.cluster),
                    "type": "MANAGED",
                    "state": "DISABLED" if one.deleting else "ENABLED",
                    "status": "DELETING" if one.deleting else "UPDATING" if one.outdated else "VALID",
                    "tags": dict(one.tags),
                }
                for one in found
            ]
        }

    @plays("status", "jobDefinitionName", "maxResults", "nextToken")
    def describe_job_definitions(self, call: Call) -> Mapping[str, Any]:
        """All revisions, unless a status is named: AWS shows one that was deregistered for 180 days more."""
        name, status = call.params.get("jobDefinitionName"), call.params.get("status")
        return {
            "jobDefinitions": [
                {
                    "jobDefinitionName": one.name,
                    "jobDefinitionArn": one.arn,
                    "revision": one.revision,
                    "status": one.status,
                    "type": "container",
                    "tags": dict(one.asked.get("tags", {})),
                }
                for one in self.keeper.definitions.values()
                if name in (None, one.name) and status in (None, one.status)
            ]
        }

    @plays("jobDefinition")
    def deregister_job_definition(self, call: Call) -> Mapping[str, Any]:
        """Of an ARN or name:revision."""
        short = call.params["jobDefinition"].rpartition("/")[2]
        for one in self.keeper.definitions.values():
            if short == f"{one.name}:{one.revision}":
                self.keeper.deregister(one)
                return {}
        raise Fault("ClientException", f"JobDefinition {short} not found.")

    def _queue(self, name: str) -> Queue:
        for queue in self.keeper.queues.values():
            if name in (queue.name, queue.arn):
                return queue
        raise Fault("ClientException", f"JobQueue {name} not found.")

    def _definition(self, name: str) -> Definition:
        """Of an ARN, name:revision or name, which is its newest; active."""
        short = name.rpartition("/")[2]
        active = [one for one in self.keeper.definitions.values() if one.status == "ACTIVE"]
        found = [one for one in active if short in (one.name, f"{one.name}:{one.revision}")]
        if not found:
            raise Fault("ClientException", f"JobDefinition {name} not found.")
        return found[-1]

    def _summary(self, job: Job) -> dict[str, Any]:
        last = job.attempts[-1]["container"] if job.attempts else {}
        return {
            "jobArn": arn("job", job.id),
            "jobId": job.id,
            "jobName": job.name,
            "createdAt": job.created,
            "status": job.status,
            **({"statusReason": job.reason} if job.reason else {}),
            **({"startedAt": job.started} if job.started else {}),
            **({"stoppedAt": job.stopped} if job.stopped else {}),
            **({"container": {key: last[key] for key in ("exitCode", "reason") if key in last}} if last else {}),
            **_array(job),
            "jobDefinition": job.definition.arn,
            "isCancelled": job.cancelled,
        }

    def _detail(self, job: Job) -> dict[str, Any]:
        container = job.definition.asked["containerProperties"]
        said = {one["name"]: one["value"] for one in container.get("environment", ())}
        said.update(job.environment)
        summary = {key: value for key, value in self._summary(job).items() if key != "container"}
        return {
            **summary,
            "jobQueue": job.queue,
            "startedAt": job.started,
            "attempts": job.attempts,
            "container": {
                "image": container["image"],
                "environment": [{"name": name, "value": value} for name, value in said.items()],
            },
        }


def _array(job: Job) -> dict[str, Any]:
    if job.children:
        return {"arrayProperties": {"size": len(job.children), "statusSummary": job.counts}}
    return {} if job.index is None else {"arrayProperties": {"index": job.index}}


# CloudFormation


def resources(service: Batch) -> dict[str, Resource]:
    """The resource types, by name."""
    return {
        "AWS::Batch::ComputeEnvironment": EnvironmentResource(service),
        "AWS::Batch::JobQueue": QueueResource(service),
        "AWS::Batch::JobDefinition": DefinitionResource(service),
    }


class Kind:
    """What they have in common."""

    def __init__(self, service: Batch) -> None:
        self._service, self._keeper, self._world = service, service.keeper, service.world
        self._closing = threading.Event()
        service.world.on_stop(self._closing.set)

    def _wait(self, reached: Callable[[], bool], what: str) -> None:
        """Wait in a thread of CloudFormation's own."""
        deadline = time.monotonic() + self._world.scaled(GONE_SECONDS)
        while not self._closing.wait(0.2):
            with self._world.lock:
                if reached():
                    return
            if time.monotonic() > deadline:
                raise RuntimeError(f"Resource did not stabilize: {what}")
        raise RuntimeError("the local cloud was stopped")

    def _new(self, logical_id: str) -> str:
        return f"{logical_id}-{self._world.dice.getrandbits(64):016x}"


class EnvironmentResource(Kind):
    """AWS::Batch::ComputeEnvironment: managed, on EC2, with a launch template, renewed in place."""

    _played = words("Type ComputeResources ReplaceComputeEnvironment UpdatePolicy Tags State")

    def create(self, logical_id: str, properties: dict[str, Any], stack: str) -> tuple[str, dict[str, Any]]:
        """CreateComputeEnvironment, with a cluster of ECS. It is VALID at once."""
        drawn = self._drawn(properties)
        with self._world.lock:
            name = self._new(logical_id)
            cluster = f"AWSBatch-{name}"
            self._service.ecs.perform("CreateCluster", {"clusterName": cluster})
            environment = Environment(
                arn=arn("compute-environment", name),
                name=name,
                cluster=cluster,
                **self._settings(properties, drawn, cluster),
            )
            self._keeper.environments[environment.arn] = environment
        return environment.arn, {"ComputeEnvironmentArn": environment.arn}

    def update(
        self, physical_id: str, old: dict[str, Any], new: dict[str, Any], stack: str
    ) -> tuple[str, dict[str, Any]]:
        """UpdateComputeEnvironment: other machines take the place of those there are, which may end their jobs."""
        if old.get("Tags") != new.get("Tags"):
            return self.create("ComputeEnvironment", new, stack)
        drawn = self._drawn(new)
        with self._world.lock:
            environment = self._keeper.environments[physical_id]
            changed = self._settings(new, drawn, environment.cluster)
            blueprint = changed.pop("blueprint")
            for key, value in changed.items():
                setattr(environment, key, value)
            # Only how many there may be changes no machine.
            before, after = ({**one["ComputeResources"], "MaxvCpus": 0, "MinvCpus": 0} for one in (old, new))
            if before != after:
                self._keeper.replace_machines(environment, blueprint)
        return physical_id, {"ComputeEnvironmentArn": physical_id}

    def delete(self, physical_id: str, properties: dict[str, Any]) -> None:
        """DeleteComputeEnvironment: its machines end, then its cluster."""
        with self._world.lock:
            environment = self._keeper.environments.get(physical_id)
            if environment is None:
                return
            users = [one.name for one in self._keeper.queues.values() if physical_id in one.order]
            if users:
                raise NotPlayed(f"Cannot delete, found existing JobQueue relationship: {', '.join(users)}")
            environment.deleting = True
        state = self._service.ecs.state
        cluster = ecs_arn("cluster", environment.cluster)

        def gone() -> bool:
            members = (one for one in state.instances.values() if one["_cluster"] == cluster)
            left = any(one["status"] != "INACTIVE" for one in members)
            return not left and not self._keeper.instances_of(environment)

        self._wait(gone, f"{environment.name} still has instances")
        with self._world.lock:
            self._service.ecs.perform("DeleteCluster", {"cluster": environment.cluster})
            del self._keeper.environments[physical_id]

    def _drawn(self, properties: Mapping[str, Any]) -> tuple[Blueprint, tuple[Any, ...]]:
        """What the launch template, the instance profile and the subnets are. Raises NotPlayed or Fault."""
        refuse_unplayed("AWS::Batch::ComputeEnvironment", properties, set(self._played), {})
        api = {
            name: properties[name] for name in properties if name not in ("ReplaceComputeEnvironment", "UpdatePolicy")
        }
        valid_input("batch", "CreateComputeEnvironment", {"ComputeEnvironmentName": "its", **api})
        compute = properties["ComputeResources"]
        refuse_unplayed("ComputeResources", compute, set(COMPUTE), {})
        kind = compute["Type"]
        if properties["Type"] != "MANAGED" or STRATEGIES.get(kind) != compute.get("AllocationStrategy"):
            raise NotPlayed(f"the local cloud plays managed environments of {STRATEGIES}")
        if str(properties.get("ReplaceComputeEnvironment", "true")).lower() != "false" or int(
            compute.get("MinvCpus", 0)
        ):
            raise NotPlayed("the local cloud plays ReplaceComputeEnvironment false and MinvCpus 0")
        if unknown := sorted(set(compute["InstanceTypes"]) - set(catalog.names())):
            raise NotPlayed(f"instance types that do not exist: {', '.join(unknown)}")
        blueprint = self._service.surveyor.blueprint(compute["LaunchTemplate"])
        if blueprint.user_data:
            raise NotPlayed("the local cloud does not merge user data of a launch template into Batch's")
        images = [one["ImageIdOverride"] for one in compute.get("Ec2Configuration", ()) if "ImageIdOverride" in one]
        role = self._role(compute["InstanceRole"])
        drawn = replace(
            blueprint,
            image_id=images[0] if images else blueprint.image_id,
            profile_arn=compute["InstanceRole"],
            role_arn=role,
            security_groups=tuple(compute["SecurityGroupIds"]),
        )
        return drawn, tuple(self._service.surveyor.subnets(compute["Subnets"]).values())

    def _role(self, profile: str) -> str:
        """Of an instance profile. Raises NotPlayed."""
        try:
            found = substrate.operator("iam").get_instance_profile(InstanceProfileName=profile.rpartition("/")[2])
        except ClientError as error:
            raise NotPlayed(f"instanceRole {profile}: {error}") from error
        roles = [one["Arn"] for one in found["InstanceProfile"]["Roles"]]
        if not roles or not self._service.surveyor.trusts(roles[0], "ec2.amazonaws.com"):
            raise NotPlayed(f"instanceRole {profile}: ec2.amazonaws.com may not assume its role")
        return str(roles[0])

    def _settings(
        self, properties: Mapping[str, Any], drawn: tuple[Blueprint, tuple[Any, ...]], cluster: str
    ) -> dict[str, Any]:
        """What of an Environment may change."""
        compute = properties["ComputeResources"]
        return {
            "market": MARKETS[compute["Type"]],
            "strategy": compute["AllocationStrategy"],
            "types": tuple(compute["InstanceTypes"]),
            "most_vcpus": int(compute["MaxvCpus"]),
            "blueprint": joins(drawn[0], cluster),
            "subnets": drawn[1],
            "update_minutes": int(properties.get("UpdatePolicy", {}).get("JobExecutionTimeoutMinutes", 30)),
            "tags": compute.get("Tags", {}),
        }


class QueueResource(Kind):
    """AWS::Batch::JobQueue."""

    _played = words("JobQueueName Priority ComputeEnvironmentOrder State Tags")

    def create(self, logical_id: str, properties: dict[str, Any], stack: str) -> tuple[str, dict[str, Any]]:
        """CreateJobQueue."""
        refuse_unplayed("AWS::Batch::JobQueue", properties, set(self._played), {})
        with self._world.lock:
            given = {"JobQueueName": self._new(logical_id), **properties}
            queue = self._made(valid_input("batch", "CreateJobQueue", given))
            if queue.arn in self._keeper.queues:
                raise NotPlayed(f"{queue.arn}: Object already exists")
            self._keeper.queues[queue.arn] = queue
        return queue.arn, {"JobQueueArn": queue.arn}

    def update(
        self, physical_id: str, old: dict[str, Any], new: dict[str, Any], stack: str
    ) -> tuple[str, dict[str, Any]]:
        """UpdateJobQueue; another name is another queue."""
        refuse_unplayed("AWS::Batch::JobQueue", new, set(self._played), {})
        if old.get("JobQueueName") != new.get("JobQueueName"):
            return self.create("JobQueue", new, stack)
        with self._world.lock:
            given = {"JobQueueName": physical_id.rpartition("/")[2], **new}
            self._keeper.queues[physical_id] = self._made(valid_input("batch", "CreateJobQueue", given))
        return physical_id, {"JobQueueArn": physical_id}

    def delete(self, physical_id: str, properties: dict[str, Any]) -> None:
        """DeleteJobQueue: all its jobs are terminated."""
        with self._world.lock:
            queue = self._keeper.queues.get(physical_id)
            if queue is None:
                return
            queue.state = "DISABLED"
            mine = [job for job in self._keeper.jobs.values() if job.queue == physical_id]
            for job in mine:
                self._keeper.end(job, "JobQueue deleted")
        self._wait(lambda: all(job.status in ENDED for job in mine), f"{physical_id} still has jobs")
        with self._world.lock:
            del self._keeper.queues[physical_id]

    def _made(self, asked: Mapping[str, Any]) -> Queue:
        name = asked["jobQueueName"]
        order = sorted(asked["computeEnvironmentOrder"], key=lambda one: int(one["order"]))
        chosen = tuple(one["computeEnvironment"] for one in order)
        if unknown := sorted(set(chosen) - set(self._keeper.environments)):
            raise NotPlayed(f"{name}: no compute environment {', '.join(unknown)}")
        state, tags = asked.get("state", "ENABLED"), asked.get("tags", {})
        return Queue(arn("job-queue", name), name, int(asked["priority"]), chosen, state, tags)


class DefinitionResource(Kind):
    """AWS::Batch::JobDefinition: every change is another revision, and the one before is deregistered unless it is said
    otherwise.
    """

    _played = words(
        "JobDefinitionName Type PlatformCapabilities ContainerProperties RetryStrategy Timeout PropagateTags Tags "
        "ResourceRetentionPolicy"
    )

    def create(self, logical_id: str, properties: dict[str, Any], stack: str) -> tuple[str, dict[str, Any]]:
        """RegisterJobDefinition."""
        refuse_unplayed("AWS::Batch::JobDefinition", properties, set(self._played), {})
        given = {"JobDefinitionName": self._new(logical_id), **properties}
        # CloudFormation's own: Batch knows nothing of it.
        policy = given.pop("ResourceRetentionPolicy", {})
        refuse_unplayed("ResourceRetentionPolicy", policy, {"SkipDeregisterOnUpdate"}, {})
        asked = valid_input("batch", "RegisterJobDefinition", given)
        if (asked["type"], asked.get("platformCapabilities")) != ("container", ["EC2"]):
            raise NotPlayed("the local cloud plays job definitions of one container, on EC2")
        self._refuse(asked)
        name = asked["jobDefinitionName"]
        with self._world.lock:
            task = self._service.ecs.perform("RegisterTaskDefinition", _task(name, asked["containerProperties"]))
            definition = task["taskDefinition"]["taskDefinitionArn"]
            revision = definition.rpartition(":")[2]
            made = Definition(
                arn("job-definition", f"{name}:{revision}"),
                json.loads(json.dumps(asked)),
                definition,
                leaves_earlier=str(policy.get("SkipDeregisterOnUpdate", "false")).lower() == "true",
            )
            self._keeper.definitions[made.arn] = made
        return made.arn, {"JobDefinitionArn": made.arn}

    def update(
        self, physical_id: str, old: dict[str, Any], new: dict[str, Any], stack: str
    ) -> tuple[str, dict[str, Any]]:
        """Another revision. The one before goes with the clean-up of the update, as a replaced resource does."""
        name = physical_id.rpartition("/")[2].rpartition(":")[0]
        return self.create("", {"JobDefinitionName": name, **new}, stack)

    def delete(self, physical_id: str, properties: dict[str, Any]) -> None:
        """DeregisterJobDefinition, unless an update is to leave it. What earlier updates left stays: AWS does not say
        whether CloudFormation takes it too when the stack goes.
        """
        with self._world.lock:
            definition = self._keeper.definitions.get(physical_id)
            if definition is None:
                return
            newest = [one for one in self._keeper.definitions.values() if one.name == definition.name][-1]
            if newest is definition or not newest.leaves_earlier:
                self._keeper.deregister(definition)

    def _refuse(self, asked: Mapping[str, Any]) -> None:
        container = asked["containerProperties"]
        if unplayed := sorted(set(container) - set(CONTAINER)):
            raise NotPlayed(f"the local cloud does not play {', '.join(unplayed)} of ContainerProperties")
        retry = asked.get("retryStrategy", {})
        if not 1 <= retry.get("attempts", 1) <= 10 or len(retry.get("evaluateOnExit", ())) > 5:
            raise NotPlayed("RetryStrategy: 1 to 10 attempts and at most 5 conditions")
        if asked.get("timeout", {}).get("attemptDurationSeconds", 60) < 60:
            raise NotPlayed("Timeout: at least 60 seconds")


def _task(name: str, container: Mapping[str, Any]) -> dict[str, Any]:
    """ECS's task definition of a job."""
    needs = {one["type"]: one["value"] for one in container["resourceRequirements"]}
    plain = {
        key: container[key]
        for key in (
            *("image", "command", "environment", "mountPoints"),
            *("readonlyRootFilesystem", "linuxParameters", "logConfiguration"),
        )
        if key in container
    }
    roles = {"taskRoleArn": "jobRoleArn", "executionRoleArn": "executionRoleArn"}
    return {
        "family": name,
        "networkMode": "bridge",
        "requiresCompatibilities": ["EC2"],
        **{ours: container[theirs] for ours, theirs in roles.items() if theirs in container},
        "volumes": container.get("volumes", []),
        "containerDefinitions": [
            {
                "name": "default",
                "essential": True,
                "cpu": int(needs["VCPU"]) * 1024,
                "memory": int(needs["MEMORY"]),
                **({"resourceRequirements": [{"type": "GPU", "value": needs["GPU"]}]} if "GPU" in needs else {}),
                **plain,
            }
        ],
    }


def furnish(ecs: Ecs, instances: Instances, surveyor: Surveyor) -> tuple[Batch, dict[str, Resource]]:
    """Batch, wired to the containers and the instances that its jobs run on; and its resource types."""
    batch = Batch(ecs, instances, surveyor)
    return batch, resources(batch)
