"""ECS as the local cloud plays it: over HTTP, with roles that are held to their policies and tasks that are processes."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from localcloud.image import Images, read_dockerfile
from tests.cloud import Laptop, eventually
from tests.ecs_make import AGENT_ACTIONS, LOUD, ecs_cloud, role

SPEED = 40
SOON = 20.0


@pytest.fixture(scope="module")
def cloud():
    with ecs_cloud(SPEED) as cloud:
        program = cloud.state / "loud"
        program.mkdir()
        (program / "loud.py").write_text(LOUD)
        cloud.remote.do("image/add", name="loud", folder=str(program), argv=["python", "loud.py"])
        role(cloud, "instance", "ec2.amazonaws.com", AGENT_ACTIONS)
        role(cloud, "worker", "ecs-tasks.amazonaws.com", ["ecs:UpdateTaskProtection", "ecs:GetTaskProtection"])
        role(cloud, "powerless", "ecs-tasks.amazonaws.com", ["s3:ListAllMyBuckets"])
        role(cloud, "untrusting", "ec2.amazonaws.com", ["s3:ListAllMyBuckets"])
        yield cloud


@pytest.fixture(scope="module")
def ecs(cloud):
    return cloud.client("ecs")


class Cluster:
    """The cluster `jobs` with its instances and services, emptied after each test."""

    def __init__(self, cloud: Laptop, ecs: Any) -> None:
        self.cloud, self.ecs = cloud, ecs
        self.instances: list[str] = []

    def boot(self, instance: str, **parts: Any) -> str:
        self.instances.append(instance)
        self.cloud.remote.do("test/boot", instance=instance, **parts)
        return self.joined(instance)

    def joined(self, instance: str) -> str:
        query = f"ec2InstanceId == {instance} and agentConnected == true"
        found = eventually(
            lambda: self.ecs.list_container_instances(cluster="jobs", filter=query)["containerInstanceArns"],
            within=SOON,
            what=f"{instance} joined",
        )
        return str(found[0])

    def define(self, family: str = "loud", *, environment: dict[str, str] | None = None, **parts: Any) -> str:
        container = {
            "name": "main",
            "image": "loud",
            "memory": 256,
            "resourceRequirements": [{"type": "GPU", "value": "1"}],
            "environment": [{"name": name, "value": value} for name, value in (environment or {}).items()],
            "stopTimeout": 2,
            **parts.pop("container", {}),
        }
        definition = self.ecs.register_task_definition(
            family=family,
            containerDefinitions=[container],
            **{"taskRoleArn": "arn:aws:iam::123456789012:role/worker", **parts},
        )
        return str(definition["taskDefinition"]["taskDefinitionArn"])

    def serve(self, name: str, definition: str, count: int = 1, **parts: Any) -> str:
        self.ecs.create_service(
            cluster="jobs",
            serviceName=name,
            taskDefinition=definition,
            desiredCount=count,
            deploymentConfiguration={"minimumHealthyPercent": 0, "maximumPercent": 200},
            **parts,
        )
        return name

    def service(self, name: str) -> dict[str, Any]:
        return dict(self.ecs.describe_services(cluster="jobs", services=[name])["services"][0])

    def tasks(self, status: str = "RUNNING", desired: str = "RUNNING", **which: str) -> list[dict[str, Any]]:
        arns = self.ecs.list_tasks(cluster="jobs", desiredStatus=desired, **which)["taskArns"]
        found = self.ecs.describe_tasks(cluster="jobs", tasks=arns)["tasks"] if arns else []
        return [task for task in found if task["lastStatus"] == status]

    def running(self, count: int, **which: str) -> list[dict[str, Any]]:
        def look() -> list[dict[str, Any]]:
            found = self.tasks(**which)
            return found if len(found) == count else []

        return list(eventually(look, within=SOON, what=f"{count} running tasks of {which}"))

    def stopped(self, task: dict[str, Any]) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            now = self.ecs.describe_tasks(cluster="jobs", tasks=[task["taskArn"]])["tasks"][0]
            return now if now["lastStatus"] == "STOPPED" else None

        return dict(eventually(look, within=SOON, what="the task stopped"))

    def drain(self, *container_instances: str) -> dict[str, Any]:
        return dict(
            self.ecs.update_container_instances_state(
                cluster="jobs", containerInstances=list(container_instances), status="DRAINING"
            )
        )

    def heard(self, task: dict[str, Any], what: str) -> Any:
        """What a loud task said under that name, once it has."""
        log = self.cloud.state / "tasks" / f"{task['taskArn'].rsplit('/', 1)[1]}.log"

        def look() -> Any:
            lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
            return [line[what] for line in lines if what in line]

        return eventually(look, within=SOON, what=f"{what} in {log}")[-1]

    def empty(self) -> None:
        for arn in self.ecs.list_services(cluster="jobs")["serviceArns"]:
            if self.service(arn)["status"] == "ACTIVE":
                self.ecs.delete_service(cluster="jobs", service=arn, force=True)
        for instance in self.instances:
            self.cloud.remote.do("test/die", instance=instance)
        eventually(
            lambda: (
                not self.ecs.list_container_instances(cluster="jobs")["containerInstanceArns"]
                and not self.ecs.list_services(cluster="jobs")["serviceArns"]
            ),
            within=SOON,
            what="an empty cluster",
        )


@pytest.fixture
def cluster(cloud, ecs):
    ecs.create_cluster(clusterName="jobs")
    made = Cluster(cloud, ecs)
    yield made
    made.empty()


def refused(call: Any, **params: Any) -> str:
    with pytest.raises(ClientError) as error:
        call(**params)
    return str(error.value.response["Error"]["Code"])


def refused_or_none(call: Any, **params: Any) -> str | None:
    try:
        call(**params)
    except ClientError as error:
        return str(error.response["Error"]["Code"])
    return None


def test_an_instance_joins_with_its_gpus_and_attributes(cluster, ecs):
    arn = cluster.boot("i-1", gpus=4)

    seen = ecs.describe_container_instances(cluster="jobs", containerInstances=[arn])["containerInstances"][0]

    assert (seen["status"], seen["agentConnected"], seen["runningTasksCount"]) == ("ACTIVE", True, 0)
    attributes = {each["name"]: each.get("value") for each in seen["attributes"]}
    assert attributes["lifecycle"] == "spot"
    assert attributes["ecs.instance-type"] == "g5.xlarge"
    gpus = next(each for each in seen["remainingResources"] if each["name"] == "GPU")
    assert len(gpus["stringSetValue"]) == 4
    listed = ecs.list_container_instances(cluster="jobs", filter="ec2InstanceId in [i-1, i-2]", status="ACTIVE")
    assert listed["containerInstanceArns"] == [arn]


def test_what_the_api_refuses_and_what_it_calls_a_failure(cluster, ecs):
    drain = ecs.update_container_instances_state

    assert refused(ecs.list_tasks, cluster="nowhere") == "ClusterNotFoundException"
    assert (
        refused(drain, cluster="jobs", containerInstances=["x"] * 11, status="DRAINING") == "InvalidParameterException"
    )
    assert refused(ecs.describe_services, cluster="jobs", services=["x"] * 11) == "InvalidParameterException"
    assert refused(ecs.update_service, cluster="jobs", service="none") == "ServiceNotFoundException"
    assert refused(ecs.create_cluster, clusterName="x", capacityProviders=["FARGATE"]) == "NotPlayed"
    assert cluster.drain("unknown")["failures"][0]["reason"] == "MISSING"
    arn = cluster.boot("i-2")
    ecs.deregister_container_instance(cluster="jobs", containerInstance=arn)
    assert cluster.drain(arn)["failures"][0]["reason"] == "INACTIVE"


def test_pages_hold_what_was_asked_and_the_next_goes_on(cluster, ecs):
    arns = [cluster.boot(f"i-p{index}") for index in range(3)]

    first = ecs.list_container_instances(cluster="jobs", maxResults=2)
    second = ecs.list_container_instances(cluster="jobs", maxResults=2, nextToken=first["nextToken"])

    assert sorted(first["containerInstanceArns"] + second["containerInstanceArns"]) == sorted(arns)
    assert "nextToken" not in second


def test_a_task_is_a_process_with_its_role_its_gpu_and_its_metadata(cluster, cloud):
    cluster.boot("i-3")
    definition = cluster.define(
        environment={"FLAG": "/run/spindrift/notice.json", "WHO": "am I", "AWS_DEFAULT_REGION": "us-east-1"},
        volumes=[{"name": "host", "host": {"sourcePath": "/run/spindrift"}}],
        container={"mountPoints": [{"sourceVolume": "host", "containerPath": "/run/spindrift", "readOnly": True}]},
    )
    cluster.serve("workers", definition)
    (task,) = cluster.running(1)

    assert cluster.heard(task, "caller").endswith(f":assumed-role/worker/{task['taskArn'].rsplit('/')[-1]}")
    metadata = cluster.heard(task, "metadata")
    assert (metadata["Cluster"], metadata["TaskARN"], metadata["Family"]) == ("jobs", task["taskArn"], "loud")
    environment = cluster.heard(task, "environment")
    assert environment["NVIDIA_VISIBLE_DEVICES"] == task["containers"][0]["gpuIds"][0]
    assert environment["FLAG"] == str(cloud.state / "i-3" / "run" / "spindrift" / "notice.json")
    assert "AWS_SECRET_ACCESS_KEY" not in environment
    assert cluster.service("workers")["runningCount"] == 1


def test_stopping_is_sigterm_and_after_the_stop_timeout_sigkill(cluster, ecs):
    cluster.boot("i-4", gpus=2)
    for name, deaf in (("hears", ""), ("deaf", "yes")):
        ecs.run_task(cluster="jobs", taskDefinition=cluster.define(name, environment={"DEAF": deaf}))
    tasks = {task["group"]: task for task in cluster.running(2)}
    gpus = [task["containers"][0]["gpuIds"] for task in tasks.values()]
    assert len({gpu for ids in gpus for gpu in ids}) == 2
    third = ecs.run_task(cluster="jobs", taskDefinition="hears")
    assert ([each["reason"] for each in third["failures"]], third["tasks"]) == (["RESOURCE:GPU"], [])
    for task in tasks.values():
        cluster.heard(task, "metadata")
    began = time.monotonic()
    for task in tasks.values():
        ecs.stop_task(cluster="jobs", task=task["taskArn"])

    hears = cluster.stopped(tasks["family:hears"])
    at_once = time.monotonic() - began
    deaf = cluster.stopped(tasks["family:deaf"])

    assert (hears["containers"][0]["exitCode"], deaf["containers"][0]["exitCode"]) == (7, 137)
    assert at_once < 1.5 < 2 <= time.monotonic() - began < 4
    assert cluster.heard(tasks["family:deaf"], "heard") == "SIGTERM"
    assert hears["stopCode"] == "UserInitiated"


def test_scale_in_and_draining_spare_a_protected_task_until_it_is_freed(cluster, ecs, cloud):
    arn = cluster.boot("i-5", gpus=2)
    flag = cloud.state / "freed"
    definition = cluster.define("guarded", environment={"PROTECT": "yes", "FLAG": str(flag)})
    cluster.serve("workers", definition, count=2)
    tasks = cluster.running(2)
    for task in tasks:
        assert cluster.heard(task, "protection")["protection"]["ProtectionEnabled"] is True
    told = ecs.update_task_protection(cluster="jobs", tasks=[tasks[1]["taskArn"]], protectionEnabled=False)
    assert told["protectedTasks"][0]["protectionEnabled"] is False

    ecs.update_service(cluster="jobs", service="workers", desiredCount=0)
    assert cluster.stopped(tasks[1])["stopCode"] == "ServiceSchedulerInitiated"
    cluster.drain(arn)
    time.sleep(0.7)
    assert [task["taskArn"] for task in cluster.tasks()] == [tasks[0]["taskArn"]]
    blocked = ecs.update_task_protection(cluster="jobs", tasks=[tasks[0]["taskArn"]], protectionEnabled=True)
    assert blocked["failures"][0]["reason"] == "DEPLOYMENT_BLOCKED"
    flag.touch()

    assert cluster.stopped(tasks[0])["containers"][0]["exitCode"] == 7


def test_draining_moves_service_tasks_leaves_standalone_ones_and_places_nothing_new(cluster, ecs, cloud):
    first = cluster.boot("i-6", gpus=2)
    definition = cluster.define()
    cluster.serve("workers", definition)
    ecs.run_task(cluster="jobs", taskDefinition=definition)
    cluster.running(2)
    (old,) = cluster.tasks(serviceName="workers")
    second = cluster.boot("i-7")

    cluster.drain(first)

    assert cluster.stopped(old)["stoppedReason"] == "Task stopped during instance draining"
    eventually(lambda: cluster.tasks(serviceName="workers"), within=SOON, what="the replacement")
    (new,) = cluster.tasks(serviceName="workers")
    assert new["containerInstanceArn"] == second
    assert len(cluster.tasks(containerInstance=first)) == 1
    assert cloud.remote.do("diary", what="draining")[-1]["subject"] == "i-6"


def test_no_room_is_a_service_event_and_a_host_without_its_gpu_gets_no_task(cluster):
    cluster.boot("i-8", gpus=0)
    cluster.serve("workers", cluster.define())

    def events() -> list[str]:
        return [event["message"] for event in cluster.service("workers")["events"] if "unable" in event["message"]]

    (message,) = eventually(events, within=SOON, what="the event")
    assert "no container instance met all of its requirements" in message
    assert "insufficient GPU resource" in message
    time.sleep(0.5)
    assert len(events()) == 1
    assert not cluster.tasks(status="PENDING")


def test_an_instance_that_dies_tells_nobody_and_its_task_is_replaced(cluster, cloud):
    cluster.boot("i-9")
    cluster.serve("workers", cluster.define(environment={"DEAF": "yes"}))
    (task,) = cluster.running(1)
    (pid,) = next(each["pids"] for each in cloud.remote.do("tasks/show") if each["task"] == task["taskArn"])
    cluster.boot("i-10")

    cluster.cloud.remote.do("test/die", instance="i-9")

    eventually(lambda: not Path(f"/proc/{pid}").exists(), within=1, what="the process is gone at once")
    assert cluster.tasks()[0]["lastStatus"] == "RUNNING", "ECS does not know yet"
    gone = cluster.stopped(task)
    assert gone["stoppedReason"] == "Host EC2 (instance i-9) terminated."
    assert "exitCode" not in gone["containers"][0]
    (new,) = cluster.running(1)
    assert new["taskArn"] != task["taskArn"]


def test_a_killed_container_ends_its_task_and_the_service_replaces_it(cluster, cloud):
    cluster.boot("i-11")
    cluster.serve("workers", cluster.define())
    (task,) = cluster.running(1)

    cloud.remote.do("task/kill", task=task["taskArn"])

    ended = cluster.stopped(task)
    assert ended["stopCode"] == "EssentialContainerExited"
    assert ended["containers"][0]["exitCode"] == 137
    (new,) = cluster.running(1)
    assert new["taskArn"] != task["taskArn"]


def test_what_cannot_start_is_said_and_restarts_slow_down(cluster, ecs):
    cluster.boot("i-12")
    cluster.serve("absent", cluster.define("absent", container={"image": "nowhere:1"}))

    def failed() -> list[dict[str, Any]]:
        return cluster.tasks(status="STOPPED", desired="STOPPED", family="absent")

    (first, *_) = eventually(failed, within=SOON, what="a failed start")
    assert first["stopCode"] == "TaskFailedToStart"
    assert first["stoppedReason"] == "CannotPullContainerError: nowhere:1: not found"
    # Unthrottled it would be a start each 0.2 s; two to the n AWS seconds between them allow seven.
    time.sleep(2)
    assert 2 <= len(failed()) <= 8
    messages = [event["message"] for event in cluster.service("absent")["events"]]
    assert any("unable to consistently start tasks" in message for message in messages)


def test_a_task_whose_role_does_not_trust_ecs_does_not_start(cluster, ecs):
    cluster.boot("i-13")
    definition = cluster.define("untrusting", taskRoleArn="arn:aws:iam::123456789012:role/untrusting")
    (task,) = ecs.run_task(cluster="jobs", taskDefinition=definition)["tasks"]

    assert "unable to assume the role" in cluster.stopped(task)["stoppedReason"]


def test_roles_are_held_to_their_policies(cluster, cloud, ecs):
    agent_role = role(cloud, "mute", "ec2.amazonaws.com", ["ecs:RegisterContainerInstance"])
    cluster.instances.append("i-mute")
    cloud.remote.do("test/boot", instance="i-mute", role=agent_role.rsplit("/")[-1])

    def refusals() -> list[dict[str, Any]]:
        return [line for line in cloud.remote.do("diary", what="ecs agent refused") if line["subject"] == "i-mute"]

    (line,) = eventually(refusals, within=SOON, what="the refusal")
    assert line["operation"] == "DiscoverPollEndpoint"
    assert "ecs:DiscoverPollEndpoint" in line["why"]

    cluster.boot("i-14")
    powerless = "arn:aws:iam::123456789012:role/powerless"
    cluster.serve("workers", cluster.define("powerless", taskRoleArn=powerless, environment={"PROTECT": "yes"}))
    (task,) = cluster.running(1)
    answer = cluster.heard(task, "protection")
    assert (answer["status"], answer["error"]["Code"]) == (400, "AccessDeniedException")
    assert "ecs:UpdateTaskProtection" in answer["error"]["Message"]


def test_conditions_see_the_cluster_and_resources_are_exact(cluster, cloud):
    import boto3

    arn = cluster.boot("i-15")
    iam = cloud.client("iam")
    allowed = role(cloud, "drainer", "lambda.amazonaws.com", ["s3:ListAllMyBuckets"]).rsplit("/")[-1]
    policy = {
        "Effect": "Allow",
        "Action": ["ecs:UpdateContainerInstancesState", "ecs:ListTasks"],
        "Resource": "arn:aws:ecs:us-east-1:123456789012:container-instance/jobs/*",
        "Condition": {"ArnEquals": {"ecs:cluster": "arn:aws:ecs:us-east-1:123456789012:cluster/jobs"}},
    }
    document = json.dumps({"Version": "2012-10-17", "Statement": [policy]})
    iam.put_role_policy(RoleName=allowed, PolicyName="drain", PolicyDocument=document)
    keys = cloud.remote.do("iam/session", role_arn=f"arn:aws:iam::123456789012:role/{allowed}", name="x")
    session = boto3.Session(keys["AccessKeyId"], keys["SecretAccessKey"], keys["Token"], region_name="us-east-1")
    drainer = session.client("ecs", endpoint_url=cloud.endpoint)
    cloud.client("ecs").create_cluster(clusterName="other")

    drainer.update_container_instances_state(cluster="jobs", containerInstances=[arn], status="DRAINING")
    drainer.list_tasks(cluster="jobs", containerInstance=arn)

    assert refused(drainer.list_tasks, cluster="jobs") == "AccessDeniedException", "it asks for *"
    other = {"cluster": "other", "containerInstances": ["x"], "status": "DRAINING"}
    assert refused(drainer.update_container_instances_state, **other) == "AccessDeniedException"
    assert refused(drainer.describe_clusters, clusters=["jobs"]) == "AccessDeniedException"


def test_actors_are_throttled_now_and_then_and_the_operator_is_not(cluster, cloud):
    import boto3
    from botocore.config import Config

    cluster.boot("i-17")
    looker = role(cloud, "looker", "lambda.amazonaws.com", ["ecs:DescribeClusters"])
    keys = cloud.remote.do("iam/session", role_arn=looker, name="looker")
    session = boto3.Session(keys["AccessKeyId"], keys["SecretAccessKey"], keys["Token"], region_name="us-east-1")
    once = session.client("ecs", endpoint_url=cloud.endpoint, config=Config(retries={"total_max_attempts": 1}))
    patient = session.client("ecs", endpoint_url=cloud.endpoint, config=Config(retries={"total_max_attempts": 10}))

    usual = cloud.remote.do("chaos/throttle", rate=0.5)
    try:
        answers = {refused_or_none(once.describe_clusters, clusters=["jobs"]) for _ in range(40)}
        assert answers == {None, "ThrottlingException"}
        assert patient.describe_clusters(clusters=["jobs"])["clusters"]
        assert {refused_or_none(cloud.client("ecs").describe_clusters, clusters=["jobs"]) for _ in range(20)} == {None}
    finally:
        cloud.remote.do("chaos/throttle", rate=usual)


def test_output_reaches_cloudwatch_logs_by_the_instance_role(cluster, cloud, ecs):
    logs = cloud.client("logs")
    logs.create_log_group(logGroupName="/workers")
    cluster.boot("i-16")
    options = {"awslogs-group": "/workers", "awslogs-region": "us-east-1", "awslogs-stream-prefix": "worker"}
    configuration = {"logDriver": "awslogs", "options": options}
    definition = cluster.define("logging", container={"logConfiguration": configuration})
    (task,) = ecs.run_task(cluster="jobs", taskDefinition=definition)["tasks"]
    cluster.running(1)
    cluster.heard(task, "metadata")
    ecs.stop_task(cluster="jobs", task=task["taskArn"])
    cluster.stopped(task)

    stream = f"worker/main/{task['taskArn'].rsplit('/')[-1]}"
    events = logs.get_log_events(logGroupName="/workers", logStreamName=stream)["events"]
    assert any(task["taskArn"] in event["message"] for event in events)

    lost = {"logDriver": "awslogs", "options": {**options, "awslogs-group": "/absent"}}
    definition = cluster.define("lost", container={"logConfiguration": lost})
    (task,) = ecs.run_task(cluster="jobs", taskDefinition=definition)["tasks"]
    assert "failed to initialize logging driver: ResourceNotFoundException" in cluster.stopped(task)["stoppedReason"]


def test_state_changes_are_events(cluster, cloud, ecs):
    queue = cloud.client("sqs").create_queue(QueueName="ecs-events")["QueueUrl"]
    events = cloud.client("events")
    pattern = {"source": ["aws.ecs"], "detail": {"clusterArn": ["arn:aws:ecs:us-east-1:123456789012:cluster/jobs"]}}
    events.put_rule(Name="ecs", EventPattern=json.dumps(pattern))
    events.put_targets(Rule="ecs", Targets=[{"Id": "q", "Arn": "arn:aws:sqs:us-east-1:123456789012:ecs-events"}])
    policy = {
        "Effect": "Allow",
        "Principal": {"Service": "events.amazonaws.com"},
        "Action": "sqs:SendMessage",
        "Resource": "*",
    }
    document = json.dumps({"Version": "2012-10-17", "Statement": [policy]})
    cloud.client("sqs").set_queue_attributes(QueueUrl=queue, Attributes={"Policy": document})
    arn = cluster.boot("i-17")
    cluster.drain(arn)
    heard: list[tuple[str, str]] = []

    def listen() -> bool:
        for message in cloud.client("sqs").receive_message(QueueUrl=queue, MaxNumberOfMessages=10).get("Messages", []):
            event = json.loads(message["Body"])
            heard.append((event["detail-type"], event["detail"].get("status")))
        return ("ECS Container Instance State Change", "DRAINING") in heard

    eventually(listen, within=SOON, what="the draining event")
    assert ("ECS Container Instance State Change", "ACTIVE") in heard


def test_a_stack_makes_its_service_waits_for_it_deploys_a_change_and_takes_it_away(cluster, cloud, ecs):
    cloudformation = cloud.client("cloudformation")

    def template(greeting: str) -> str:
        container = {
            "Name": "main",
            "Image": "loud",
            "Memory": 256,
            "Environment": [{"Name": "GREETING", "Value": greeting}],
            "ResourceRequirements": [{"Type": "GPU", "Value": "1"}],
        }
        task = {"ContainerDefinitions": [container], "NetworkMode": "bridge", "Tags": [{"Key": "a", "Value": "b"}]}
        service = {
            "Cluster": "jobs",
            "TaskDefinition": {"Ref": "Task"},
            "DeploymentConfiguration": {"MinimumHealthyPercent": 0, "MaximumPercent": "200"},
            "PlacementStrategies": [{"Type": "binpack", "Field": "memory"}],
        }
        resources = {
            "Task": {"Type": "AWS::ECS::TaskDefinition", "Properties": task},
            "Workers": {"Type": "AWS::ECS::Service", "Properties": service},
        }
        outputs = {"Name": {"Value": {"Fn::GetAtt": ["Workers", "Name"]}}, "Task": {"Value": {"Ref": "Task"}}}
        return json.dumps({"Resources": resources, "Outputs": outputs})

    def stack(status: str) -> dict[str, Any]:
        def look() -> Any:
            found = cloudformation.describe_stacks(StackName="s")["Stacks"][0]
            assert "ROLLBACK" not in found["StackStatus"], found
            return found if found["StackStatus"] == status else None

        return dict(eventually(look, within=SOON, what=status))

    def outputs(found: dict[str, Any]) -> dict[str, str]:
        return {each["OutputKey"]: each["OutputValue"] for each in found["Outputs"]}

    cloudformation.create_stack(StackName="s", TemplateBody=template("hello"))
    services = eventually(
        lambda: ecs.list_services(cluster="jobs")["serviceArns"], within=SOON, what="the service is made"
    )
    time.sleep(0.5)
    assert stack("CREATE_IN_PROGRESS"), "it wants one task and has no instance, so the stack waits"
    cluster.boot("i-18", gpus=2)
    made = outputs(stack("CREATE_COMPLETE"))
    (old,) = cluster.running(1, serviceName=made["Name"])

    cloudformation.update_stack(StackName="s", TemplateBody=template("good day"))
    changed = outputs(stack("UPDATE_COMPLETE"))

    assert changed["Task"] == made["Task"].removesuffix(":1") + ":2"
    assert cluster.stopped(old)["taskDefinitionArn"] == made["Task"]
    (new,) = cluster.running(1, serviceName=made["Name"])
    assert cluster.heard(new, "environment")["GREETING"] == "good day"
    assert len(cluster.service(made["Name"])["deployments"]) == 1
    cloudformation.delete_stack(StackName="s")
    eventually(
        lambda: ecs.describe_services(cluster="jobs", services=services)["services"][0]["status"] == "INACTIVE",
        within=SOON,
        what="the service is gone",
    )
    assert not cluster.tasks()


def test_a_template_property_that_is_not_played_fails_the_stack(cluster, cloud):
    cloudformation = cloud.client("cloudformation")
    service = {"Cluster": "jobs", "TaskDefinition": "x", "LoadBalancers": [{"ContainerName": "main"}]}
    body = json.dumps({"Resources": {"Workers": {"Type": "AWS::ECS::Service", "Properties": service}}})
    cloudformation.create_stack(StackName="odd", TemplateBody=body)

    def reasons() -> list[str]:
        events = cloudformation.describe_stack_events(StackName="odd")["StackEvents"]
        return [event.get("ResourceStatusReason", "") for event in events if "FAILED" in event["ResourceStatus"]]

    eventually(lambda: any("does not play LoadBalancers" in each for each in reasons()), within=SOON, what="the reason")


def test_nothing_outlives_the_cloud():
    with ecs_cloud(SPEED) as brief:
        role(brief, "instance", "ec2.amazonaws.com", AGENT_ACTIONS)
        ecs = brief.client("ecs")
        ecs.create_cluster(clusterName="jobs")
        container = {"name": "main", "image": "python", "memory": 64, "command": ["-c", "import time; time.sleep(99)"]}
        ecs.register_task_definition(family="sleeper", containerDefinitions=[container])
        brief.remote.do("test/boot", instance="i-1")
        ecs.create_service(cluster="jobs", serviceName="sleepers", taskDefinition="sleeper", desiredCount=2)

        def processes() -> list[int]:
            return [pid for task in brief.remote.do("tasks/show") for pid in task["pids"]]

        pids = eventually(lambda: len(processes()) == 2 and processes(), within=SOON, what="two sleepers")

    def dead(pid: int) -> bool:
        stat = Path(f"/proc/{pid}/stat")
        return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z"

    eventually(lambda: all(dead(pid) for pid in pids), within=SOON, what="they are gone")


# What stands between an instance and AWS


@pytest.mark.parametrize("lacks", ["ecs", "ecs-agent", "ecs-telemetry"])
def test_an_instance_without_a_way_to_ecs_never_joins(cluster, cloud, lacks):
    name = f"i-without-{lacks}"
    cluster.instances.append(name)
    cloud.remote.do("test/boot", instance=name, lacks=[lacks])

    def refused() -> list[dict[str, Any]]:
        return [line for line in cloud.remote.do("diary", what="ecs agent refused") if line["subject"] == name]

    eventually(refused, within=SOON, what="the agent complains")
    query = f"ec2InstanceId == {name} and agentConnected == true"
    assert not cluster.ecs.list_container_instances(cluster="jobs", filter=query)["containerInstanceArns"]


@pytest.mark.parametrize("account, joins", [("123456789012", True), ("999999999999", False)])
def test_the_policy_of_an_endpoint_holds(cluster, cloud, account, joins):
    own = {"StringEquals": {"aws:PrincipalAccount": account}}
    statement = {"Effect": "Allow", "Principal": "*", "Action": "*", "Resource": "*", "Condition": own}
    name = f"i-of-{account}"
    cluster.instances.append(name)
    cloud.remote.do("test/boot", instance=name, policy={"Version": "2012-10-17", "Statement": [statement]})

    if joins:
        assert cluster.joined(name)
        return
    lines = eventually(
        lambda: [line for line in cloud.remote.do("diary", what="ecs agent refused") if line["subject"] == name],
        within=SOON,
        what="the agent complains",
    )
    assert "AccessDenied" in lines[0]["why"]


def test_an_instance_of_a_warm_pool_joins_when_it_is_wanted_in_service(cluster, cloud):
    cluster.instances.append("i-warm")
    cloud.remote.do("test/boot", instance="i-warm", warm=True)
    time.sleep(3)
    assert not cluster.ecs.list_container_instances(cluster="jobs")["containerInstanceArns"]

    cloud.remote.do("test/want", instance="i-warm", state="InService")

    assert cluster.joined("i-warm")


ECR = "123456789012.dkr.ecr.us-east-1.amazonaws.com"
PULL = [
    "ecr:GetAuthorizationToken",
    "ecr:BatchCheckLayerAvailability",
    "ecr:GetDownloadUrlForLayer",
    "ecr:BatchGetImage",
]


def run(cluster: Cluster, definition: str) -> dict[str, Any]:
    (task,) = cluster.ecs.run_task(cluster="jobs", taskDefinition=definition)["tasks"]
    return dict(task)


@pytest.mark.parametrize("lacks", ["ecr.api", "ecr.dkr", "s3"])
def test_without_a_way_to_ecr_no_image_is_pulled(cluster, lacks):
    cluster.boot("i-far", lacks=[lacks])
    stopped = cluster.stopped(run(cluster, cluster.define(container={"image": f"{ECR}/loud"})))
    assert "CannotPullContainerError" in stopped["stoppedReason"]
    assert lacks in stopped["stoppedReason"]


def test_an_image_of_a_public_registry_needs_the_internet(cluster):
    cluster.boot("i-private", lacks=["internet"])
    stopped = cluster.stopped(run(cluster, cluster.define()))
    assert "CannotPullContainerError" in stopped["stoppedReason"]


@pytest.mark.parametrize("missing", [*PULL, None])
def test_ecr_asks_the_execution_role(cluster, cloud, missing):
    name = f"execution-{missing}".replace(":", "-")
    granted = role(cloud, name, "ecs-tasks.amazonaws.com", [action for action in PULL if action != missing])
    cluster.boot("i-1")
    task = run(cluster, cluster.define(container={"image": f"{ECR}/loud"}, executionRoleArn=granted))

    if missing is None:
        cluster.running(1)
    else:
        assert missing in cluster.stopped(task)["stoppedReason"]
    told = [json.loads(line) for line in (cloud.state / "iam.jsonl").read_text().splitlines()]
    mine = {line["action"]: line["allowed"] for line in told if line["principal"] == name}
    assert all(mine[action] == (action != missing) for action in mine)
    assert missing in mine or set(mine) == set(PULL)


def test_the_registry_knows_the_images_that_there_are(cluster, cloud):
    registry = cloud.client("ecr")

    def known(repository: str, tag: str) -> int:
        return len(registry.describe_images(repositoryName=repository, imageIds=[{"imageTag": tag}])["imageDetails"])

    assert (known("gpu-worker", "local"), known("loud", "latest"), known("loud", "2")) == (1, 1, 0)


# Health


def test_a_sick_worker_is_replaced_and_then_stopped(cluster, cloud):
    cluster.boot("i-sick", gpus=2)
    check = {"command": ["CMD-SHELL", 'test ! -e "$HOME/sick"'], "interval": 5, "retries": 1}
    cluster.serve("workers", cluster.define(container={"healthCheck": check}))
    (first,) = cluster.running(1)
    assert (first["healthStatus"], first["containers"][0]["healthStatus"]) == ("UNKNOWN", "UNKNOWN")
    (well,) = healthy(cluster, 1)
    assert well["containers"][0]["healthStatus"] == "HEALTHY"

    (cloud.state / "tasks" / first["taskArn"].rsplit("/", 1)[1] / "sick").touch()

    both = healthy(cluster, 1, besides=first)
    stopped = cluster.stopped(first)
    assert stopped["healthStatus"] == "UNHEALTHY"
    assert stopped["stopCode"] == "ServiceSchedulerInitiated"
    assert stopped["stoppedReason"] == "Task failed container health checks"
    assert any("failed container health checks" in said["message"] for said in cluster.service("workers")["events"])
    assert stopped["stoppingAt"] > both[0]["startedAt"], "the replacement came first"


def healthy(cluster: Cluster, count: int, besides: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    def look() -> list[dict[str, Any]]:
        found = [task for task in cluster.tasks() if task["healthStatus"] == "HEALTHY"]
        found = [task for task in found if besides is None or task["taskArn"] != besides["taskArn"]]
        return found if len(found) == count else []

    return list(eventually(look, within=30, what=f"{count} healthy tasks"))


@pytest.mark.parametrize(
    "check",
    [
        {"command": ["test", "-e", "/x"]},
        {"command": ["CMD"]},
        {"command": ["CMD-SHELL", "true", "false"]},
        {"command": ["CMD", "true"], "interval": 4},
        {"command": ["CMD", "true"], "startPeriod": 301},
    ],
)
def test_a_health_check_that_ecs_would_not_take_is_refused(cluster, check):
    with pytest.raises(ClientError, match="ClientException"):
        cluster.define(container={"healthCheck": check})


# Shared files


WRITE = """
import os, pathlib, sys, time
with (pathlib.Path(os.environ["SHARED"]) / "seen").open("a") as seen:
    seen.write("x")
time.sleep(60)
"""
MOUNT = ["elasticfilesystem:ClientMount", "elasticfilesystem:ClientWrite"]


class Files:
    """A file system with a mount target in the zone a, an access point, and a policy."""

    def __init__(self, cloud: Laptop) -> None:
        self.cloud, self.efs = cloud, cloud.client("efs")
        subnets = cloud.client("ec2").describe_subnets()["Subnets"]
        self.subnet = next(one["SubnetId"] for one in subnets if one["AvailabilityZone"] == "us-east-1a")
        made = self.efs.create_file_system(CreationToken=str(time.time()))
        self.id, self.arn = made["FileSystemId"], made["FileSystemArn"]
        self.mount = self.efs.create_mount_target(FileSystemId=self.id, SubnetId=self.subnet)["MountTargetId"]
        owner = {"OwnerUid": 10001, "OwnerGid": 10001, "Permissions": "0750"}
        self.point = self.efs.create_access_point(
            ClientToken=str(time.time()),
            FileSystemId=self.id,
            RootDirectory={"Path": "/spindrift", "CreationInfo": owner},
        )["AccessPointId"]

    def say(self, *statements: dict[str, Any]) -> None:
        policy = {"Version": "2012-10-17", "Statement": list(statements)}
        self.efs.put_file_system_policy(FileSystemId=self.id, Policy=json.dumps(policy))

    def volume(self, **changes: Any) -> dict[str, Any]:
        access = {"accessPointId": self.point, "iam": "ENABLED"}
        shared = {"fileSystemId": self.id, "transitEncryption": "ENABLED", "authorizationConfig": access, **changes}
        return {"name": "shared", "efsVolumeConfiguration": shared}

    def task(self, cluster: Cluster, role: str = "mounts", **changes: Any) -> str:
        return cluster.define(
            environment={"SHARED": "/shared"},
            container={"image": "writer", "mountPoints": [{"sourceVolume": "shared", "containerPath": "/shared"}]},
            volumes=[self.volume(**changes)],
            taskRoleArn=f"arn:aws:iam::123456789012:role/{role}",
        )


REFUSE_PLAIN = {
    "Effect": "Deny",
    "Principal": {"AWS": "*"},
    "Action": MOUNT,
    "Condition": {"Bool": {"aws:SecureTransport": "false"}},
}


@pytest.fixture(scope="module")
def roles(cloud):
    program = cloud.state / "writer"
    program.mkdir()
    (program / "writer.py").write_text(WRITE)
    cloud.remote.do("image/add", name="writer", folder=str(program), argv=["python", "writer.py"])
    role(cloud, "mounts", "ecs-tasks.amazonaws.com", MOUNT)
    role(cloud, "reads", "ecs-tasks.amazonaws.com", MOUNT[:1])


def test_tasks_on_two_instances_share_a_folder(cluster, cloud, roles):
    files = Files(cloud)
    files.say(REFUSE_PLAIN)
    cluster.boot("i-1")
    cluster.boot("i-2")
    cluster.serve("writers", files.task(cluster), count=2)

    assert len({task["containerInstanceArn"] for task in cluster.running(2)}) == 2
    seen = cloud.state / "files" / files.id / "spindrift" / "seen"
    eventually(lambda: seen.exists() and seen.read_text() == "xx", within=SOON, what="both wrote to one file")


@pytest.mark.parametrize(
    "parts, boot, changes, complaint",
    [
        ({"role": "powerless"}, {}, {}, "ClientMount"),
        ({"role": "reads"}, {}, {}, "ClientWrite"),
        ({}, {"zone": "us-east-1b"}, {}, "no mount target in us-east-1b"),
        ({}, {"lacks": ["nfs"]}, {}, "Connection timed out"),
        ({}, {}, {"authorizationConfig": {"iam": "DISABLED"}}, "ClientMount"),
        ({}, {}, {"authorizationConfig": {"iam": "ENABLED"}, "rootDirectory": "/nowhere"}, "no such directory"),
    ],
    ids=["no permission", "may not write", "no mount target", "no way", "anonymous", "no directory"],
)
def test_a_task_that_cannot_mount_does_not_start(cluster, cloud, roles, parts, boot, changes, complaint):
    files = Files(cloud)
    files.say(REFUSE_PLAIN)
    cluster.boot("i-1", **boot)

    stopped = cluster.stopped(run(cluster, files.task(cluster, **parts, **changes)))

    assert "ResourceInitializationError" in stopped["stoppedReason"]
    assert complaint in stopped["stoppedReason"]


def test_a_file_system_without_a_policy_is_open_to_whoever_reaches_it(cluster, cloud, roles):
    cluster.boot("i-1")
    run(cluster, Files(cloud).task(cluster, role="powerless"))
    cluster.running(1)


def test_ecs_refuses_an_access_point_in_the_clear(cluster, cloud, roles):
    with pytest.raises(ClientError, match="Transit encryption"):
        Files(cloud).task(cluster, transitEncryption="DISABLED")


def test_a_file_system_with_mount_targets_is_not_deleted(cloud, roles):
    files = Files(cloud)
    with pytest.raises(ClientError, match="FileSystemInUse"):
        files.efs.delete_file_system(FileSystemId=files.id)
    files.efs.delete_mount_target(MountTargetId=files.mount)
    files.efs.delete_file_system(FileSystemId=files.id)


def test_an_image_is_what_its_dockerfile_says(tmp_path):
    (tmp_path / "Dockerfile").write_text(
        """
        FROM builder
        ENV LOST=yes
        FROM python:3.13
        ENV GREETING="good day" \\
            HOME_DIR=/work/data
        ENV OLD style
        WORKDIR /work
        ENTRYPOINT ["python", "-m", "thing"]
        CMD ["--quiet"]
        """
    )

    image = read_dockerfile(tmp_path)

    assert image.argv(None, None) == [sys.executable, "-m", "thing", "--quiet"]
    assert image.argv(None, ["--loud", "/work/x"]) == [sys.executable, "-m", "thing", "--loud", f"{tmp_path}/x"]
    assert image.argv(["env"], None) == ["env"]
    assert image.environment == {"GREETING": "good day", "HOME_DIR": "/work/data", "OLD": "style"}
    assert image.local(image.environment["HOME_DIR"]) == f"{tmp_path}/data"


def test_the_worker_image_is_the_one_of_the_repository_and_takes_a_processor_on_top(tmp_path):
    images = Images()
    images.add("mine", str(tmp_path), base="gpu-worker:local")

    assert images.pull("mine").argv(None, None) == [sys.executable, "-m", "gpu_worker"]
    assert images.pull("mine").python_path.split(":") == [str(tmp_path), str(images.pull("gpu-worker:local").folder)]
