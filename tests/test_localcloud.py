"""The emulator as pinned, with our corrections: what the product relies on, and what AWS would refuse."""

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from localcloud.control import Refused
from tests import localcloud_make as make
from tests.cloud import Laptop, eventually, running_cloud

PROJECT = Path(__file__).parent.parent
SPEED = 60
MINUTE = 60 / SPEED


@dataclass(frozen=True)
class Stack:
    cloud: Laptop
    outputs: dict[str, str]
    clients: dict[str, Any] = field(default_factory=dict)

    def client(self, service: str) -> Any:
        if service not in self.clients:
            self.clients[service] = self.cloud.client(service)
        return self.clients[service]

    def send(self, queue: str, *bodies: str) -> None:
        for body in bodies:
            self.client("sqs").send_message(QueueUrl=self.outputs[queue], MessageBody=body)

    def receive(self, queue: str, hidden: int = 30) -> list[dict[str, Any]]:
        received = self.client("sqs").receive_message(
            QueueUrl=self.outputs[queue], MaxNumberOfMessages=10, VisibilityTimeout=hidden, AttributeNames=["All"]
        )
        return list(received.get("Messages", []))

    def drain(self, queue: str, quiet: float = 0.3) -> list[str]:
        """The bodies of all that comes, until nothing has come for `quiet` seconds; deleted."""
        bodies: list[str] = []
        last = time.monotonic()
        while time.monotonic() - last < quiet:
            for message in self.receive(queue):
                self.client("sqs").delete_message(QueueUrl=self.outputs[queue], ReceiptHandle=message["ReceiptHandle"])
                bodies.append(message["Body"])
                last = time.monotonic()
            time.sleep(0.02)
        return bodies

    def handled(self, body: str) -> dict[str, Any] | None:
        item = self.client("dynamodb").get_item(TableName=self.outputs["Jobs"], Key={"job_id": {"S": body}}).get("Item")
        return {name: next(iter(value.values())) for name, value in item.items()} if item else None

    def agent(self, service: str) -> Any:
        """A client with the agent's role."""
        credentials = self.cloud.remote.do("iam/session", role_arn=self.outputs["AgentRole"], name="agent")
        return boto3.client(
            service,
            endpoint_url=self.cloud.endpoint,
            region_name="us-east-1",
            aws_access_key_id=credentials["AccessKeyId"],
            aws_secret_access_key=credentials["SecretAccessKey"],
            aws_session_token=credentials["Token"],
        )


def create(formation: Any, name: str, body: str) -> tuple[str, str]:
    """(final status, every reason of failure) of a new stack."""
    formation.create_stack(StackName=name, TemplateBody=body, Capabilities=["CAPABILITY_IAM"])
    status = eventually(lambda: settled(formation, name), within=20, what=f"{name} settles")
    events = formation.describe_stack_events(StackName=name)["StackEvents"]
    return status, "\n".join(event.get("ResourceStatusReason", "") for event in events)


def settled(formation: Any, name: str) -> str | None:
    status = formation.describe_stacks(StackName=name)["Stacks"][0]["StackStatus"]
    return None if status.endswith("IN_PROGRESS") else status


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running_cloud(speed=SPEED, seed=1) as cloud:
        cloud.remote.do("chaos/duplicates", rate=0)
        cloud.client("s3").create_bucket(Bucket="assets")
        cloud.client("s3").put_object(Bucket="assets", Key="capacity.zip", Body=make.package())
        status, reasons = create(cloud.client("cloudformation"), "stack", make.rendered())
        assert status == "CREATE_COMPLETE", reasons
        described = cloud.client("cloudformation").describe_stacks(StackName="stack")["Stacks"][0]
        outputs = {output["OutputKey"]: output["OutputValue"] for output in described["Outputs"]}
        yield Stack(cloud, outputs)


@pytest.fixture(autouse=True)
def calm(stack: Stack) -> Iterator[None]:
    """Each test starts with an empty Heard and no chaos, and leaves it so."""
    stack.drain("Heard", quiet=0.1)
    yield
    stack.cloud.remote.do("chaos/duplicates", rate=0)


def code(error: pytest.ExceptionInfo[ClientError]) -> str:
    return str(error.value.response["Error"]["Code"])


# What a template gets


def test_public_parameter_of_the_gpu_image_resolves(stack: Stack) -> None:
    assert stack.outputs["Ami"].startswith("ami-")


def test_ref_of_an_instance_profile_is_its_name(stack: Stack) -> None:
    assert stack.outputs["ProfileArn"].endswith(f":instance-profile/{stack.outputs['Profile']}")


def test_properties_that_cloudformation_would_drop_are_set(stack: Stack) -> None:
    encryption = stack.client("s3").get_bucket_encryption(Bucket=stack.outputs["Uploads"])
    rule = encryption["ServerSideEncryptionConfiguration"]["Rules"][0]["ApplyServerSideEncryptionByDefault"]
    tags = stack.client("s3").get_bucket_tagging(Bucket=stack.outputs["Uploads"])["TagSet"]
    table = stack.client("dynamodb").describe_table(TableName=stack.outputs["Jobs"])["Table"]
    expiry = stack.client("dynamodb").describe_time_to_live(TableName=stack.outputs["Jobs"])
    topic = stack.client("sns").get_topic_attributes(TopicArn=stack.outputs["Topic"])["Attributes"]

    assert rule["KMSMasterKeyID"] == stack.outputs["Key"]
    assert {"Key": "spindrift:stack", "Value": "stack"} in tags
    assert table["SSEDescription"]["KMSMasterKeyArn"] == stack.outputs["Key"]
    assert expiry["TimeToLiveDescription"]["AttributeName"] == "expires"
    assert stack.outputs["Key"].endswith(topic["KmsMasterKeyId"])


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"Heard.FifoThroughputLimit": "perQueue"}, "AWS::SQS::Queue: the local cloud does not play"),
        ({"Uploads.AccelerateConfiguration": {"AccelerationStatus": "Enabled"}}, "does not play AccelerateConf"),
        ({"Mapping.FilterCriteria": {"Filters": []}}, "does not play FilterCriteria"),
        ({"Work.VisibilityTimeout": 2}, "Queue visibility timeout: 2 seconds is less than Function timeout: 3"),
        (
            {"FunctionRole.Policies": []},
            "does not have permissions to call sqs:ReceiveMessage",
        ),
        (
            {
                "FunctionRole.Policies": [
                    {
                        "PolicyName": "noKey",
                        "PolicyDocument": make.policy(
                            make.allow(
                                ["sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes"], make.att("Work")
                            )
                        ),
                    }
                ]
            },
            "does not have permissions to call kms:Decrypt",
        ),
    ],
)
def test_a_template_that_asks_too_much_fails(stack: Stack, changes: dict[str, Any], complaint: str) -> None:
    name = f"bad-{abs(hash(json.dumps(changes)))}"
    status, reasons = create(stack.client("cloudformation"), name, make.rendered(changes))
    assert status == "ROLLBACK_COMPLETE"
    assert complaint in reasons


def test_an_unknown_type_is_refused(stack: Stack) -> None:
    body = json.dumps({"Resources": {"Address": {"Type": "AWS::EC2::EIP"}, "Queue": {"Type": "AWS::SQS::Queue"}}})
    with pytest.raises(ClientError, match="AWS::EC2::EIP"):
        create(stack.client("cloudformation"), "unknown", body)


def test_a_type_without_a_ledger_is_refused(stack: Stack) -> None:
    resource = {"Type": "AWS::Kinesis::Stream", "Properties": {"ShardCount": 1}}
    status, reasons = create(
        stack.client("cloudformation"), "noledger", json.dumps({"Resources": {"Stream": resource}})
    )
    assert status == "ROLLBACK_COMPLETE"
    assert "AWS::Kinesis::Stream: the local cloud does not play this type" in reasons


def test_a_deleted_stack_leaves_nothing(stack: Stack) -> None:
    status, reasons = create(stack.client("cloudformation"), "shortlived", make.rendered())
    assert status == "CREATE_COMPLETE", reasons
    formation = stack.client("cloudformation")
    formation.delete_stack(StackName="shortlived")

    def gone() -> bool:
        try:
            return formation.describe_stacks(StackName="shortlived")["Stacks"][0]["StackStatus"] == "DELETE_COMPLETE"
        except ClientError:
            return True

    eventually(gone, within=20, what="the stack is gone")
    left = stack.client("sqs").list_queues(QueueNamePrefix="shortlived").get("QueueUrls", [])
    functions = [f["FunctionName"] for f in stack.client("lambda").list_functions()["Functions"]]
    roles = [role["RoleName"] for role in stack.client("iam").list_roles()["Roles"]]
    assert left == []
    assert not any(name.startswith("shortlived") for name in [*functions, *roles])


# Events on their way


def test_s3_announces_itself_first_and_encodes_keys(stack: Stack) -> None:
    status, reasons = create(stack.client("cloudformation"), "announcing", make.rendered())
    assert status == "CREATE_COMPLETE", reasons
    outputs = stack.client("cloudformation").describe_stacks(StackName="announcing")["Stacks"][0]["Outputs"]
    fresh = Stack(stack.cloud, {output["OutputKey"]: output["OutputValue"] for output in outputs})
    (test_event,) = [json.loads(body) for body in fresh.drain("Heard")]
    assert test_event["Event"] == "s3:TestEvent"
    assert "Records" not in test_event

    stored = fresh.client("s3").put_object(Bucket=fresh.outputs["Uploads"], Key="a b+c/ü%.jpg", Body=b"x")
    (event,) = [json.loads(body) for body in fresh.drain("Heard")]
    told = event["Records"][0]["s3"]["object"]
    assert told["key"] == "a+b%2Bc/%C3%BC%25.jpg"
    assert told["versionId"] == stored["VersionId"]


def test_a_publication_arrives_raw(stack: Stack) -> None:
    stack.client("sns").publish(TopicArn=stack.outputs["Topic"], Message='{"schema": "spindrift.notice/1"}')
    assert stack.drain("Heard") == ['{"schema": "spindrift.notice/1"}']


def emit_warning(stack: Stack, instance: str) -> None:
    stack.cloud.remote.do(
        "events/emit",
        source="aws.ec2",
        detail_type="EC2 Spot Instance Interruption Warning",
        detail={"instance-id": instance, "instance-action": "terminate"},
        resources=[f"arn:aws:ec2:us-east-1a:instance/{instance}"],
    )


def test_events_of_aws_itself_reach_the_queue(stack: Stack) -> None:
    emit_warning(stack, "i-1")
    stack.cloud.remote.do("events/emit", source="aws.ec2", detail_type="Something else", detail={})
    (event,) = [json.loads(body) for body in stack.drain("Heard")]
    assert event["detail"] == {"instance-id": "i-1", "instance-action": "terminate"}
    assert (event["source"], event["account"]) == ("aws.ec2", "123456789012")
    assert event["resources"] == ["arn:aws:ec2:us-east-1a:instance/i-1"]


def test_nobody_but_aws_may_send_events_of_aws(stack: Stack) -> None:
    entry = {"Source": "aws.ec2", "DetailType": "EC2 Spot Instance Interruption Warning", "Detail": "{}"}
    assert stack.client("events").put_events(Entries=[entry])["FailedEntryCount"] == 1


@pytest.mark.parametrize("changed", ["queue policy", "key policy"])
def test_a_service_that_no_policy_lets_in_stays_out(stack: Stack, changed: str) -> None:
    """Rules, topics and buckets send in their own name: without a statement for them nothing comes, and nobody says."""
    sqs, kms = stack.client("sqs"), stack.client("kms")
    queue, key = stack.outputs["Heard"], stack.outputs["Key"]
    policy = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["Policy"])["Attributes"]["Policy"]
    key_policy = kms.get_key_policy(KeyId=key, PolicyName="default")["Policy"]
    if changed == "queue policy":
        sqs.set_queue_attributes(QueueUrl=queue, Attributes={"Policy": ""})
    else:
        only_account = {**json.loads(key_policy), "Statement": json.loads(key_policy)["Statement"][:1]}
        kms.put_key_policy(KeyId=key, PolicyName="default", Policy=json.dumps(only_account))
    try:
        emit_warning(stack, "i-2")
        stack.client("sns").publish(TopicArn=stack.outputs["Topic"], Message="unheard")
        stack.client("s3").put_object(Bucket=stack.outputs["Uploads"], Key="unheard", Body=b"x")
        assert stack.drain("Heard") == []
    finally:
        sqs.set_queue_attributes(QueueUrl=queue, Attributes={"Policy": policy})
        kms.put_key_policy(KeyId=key, PolicyName="default", Policy=key_policy)


def test_schedules_keep_the_cloud_s_time(stack: Stack) -> None:
    """rate(1 minute) at speed 60: the first a minute after it is enabled, then one a minute."""
    events = stack.client("events")
    events.enable_rule(Name=stack.outputs["Minute"])
    time.sleep(3.5 * MINUTE)
    events.disable_rule(Name=stack.outputs["Minute"])
    heard = [json.loads(body)["detail-type"] for body in stack.drain("Heard", quiet=1.2 * MINUTE)]
    assert set(heard) == {"Scheduled Event"}
    assert 2 <= len(heard) <= 4


# Queues


def test_everything_twice_when_asked(stack: Stack) -> None:
    stack.cloud.remote.do("chaos/duplicates", rate=1.0)
    sent = [f"message {number}" for number in range(20)]
    stack.send("Heard", *sent)
    assert Counter(stack.drain("Heard", quiet=1.5)) == dict.fromkeys(sent, 2)

    stack.client("sns").publish(TopicArn=stack.outputs["Topic"], Message="published")
    assert stack.drain("Heard", quiet=1.5) == ["published"] * 4, "SNS delivers twice, and SQS each delivery twice"


def test_order_is_not_kept_and_nothing_is_lost(stack: Stack) -> None:
    sent = [str(number) for number in range(40)]
    stack.send("Heard", *sent)
    received = stack.drain("Heard")
    assert received != sent
    assert sorted(received) == sorted(sent)


def test_a_rate_that_is_no_share_is_refused(stack: Stack) -> None:
    with pytest.raises(Refused, match="0 to 1"):
        stack.cloud.remote.do("chaos/duplicates", rate=2)


def test_a_hidden_message_comes_back_and_at_once_when_released(stack: Stack) -> None:
    stack.send("Heard", "mine")
    assert [message["Body"] for message in stack.receive("Heard", hidden=1)] == ["mine"]
    assert stack.receive("Heard") == []
    (again,) = eventually(lambda: stack.receive("Heard", hidden=100), within=20, what="the message is seen again")
    assert again["Attributes"]["ApproximateReceiveCount"] == "2"
    counts = stack.client("sqs").get_queue_attributes(QueueUrl=stack.outputs["Heard"], AttributeNames=["All"])
    assert counts["Attributes"]["ApproximateNumberOfMessagesNotVisible"] == "1"
    stack.client("sqs").change_message_visibility(
        QueueUrl=stack.outputs["Heard"], ReceiptHandle=again["ReceiptHandle"], VisibilityTimeout=0
    )
    assert [message["Body"] for message in stack.receive("Heard")] == ["mine"]


def test_an_old_receipt_deletes_nothing_and_hides_nothing(stack: Stack) -> None:
    sqs, queue = stack.client("sqs"), stack.outputs["Heard"]
    stack.send("Heard", "mine")
    (first,) = stack.receive("Heard", hidden=0)
    sqs.change_message_visibility(QueueUrl=queue, ReceiptHandle=first["ReceiptHandle"], VisibilityTimeout=30)
    (second,) = stack.receive("Heard")
    sqs.delete_message(QueueUrl=queue, ReceiptHandle=first["ReceiptHandle"])
    with pytest.raises(ClientError, match="not available for visibility timeout change"):
        sqs.change_message_visibility(QueueUrl=queue, ReceiptHandle=first["ReceiptHandle"], VisibilityTimeout=30)
    sqs.change_message_visibility(QueueUrl=queue, ReceiptHandle=second["ReceiptHandle"], VisibilityTimeout=0)
    assert stack.drain("Heard") == ["mine"]


def test_the_same_in_batches_each_entry_by_itself(stack: Stack) -> None:
    sqs, queue = stack.client("sqs"), stack.outputs["Heard"]

    def hide(seconds: int, *receipts: str) -> dict[str, Any]:
        told = [{"ReceiptHandle": each, "VisibilityTimeout": seconds} for each in receipts]
        entries = [{"Id": str(n), **each} for n, each in enumerate(told)]
        return dict(sqs.change_message_visibility_batch(QueueUrl=queue, Entries=entries))

    stack.send("Heard", "seen", "mine")
    receipts = {message["Body"]: message["ReceiptHandle"] for message in stack.receive("Heard")}
    hide(0, receipts["seen"])
    answer = hide(30, receipts["seen"], receipts["mine"], "none")
    assert [each["Id"] for each in answer["Successful"]] == ["0", "1"]
    assert [(each["Id"], each["Code"]) for each in answer["Failed"]] == [("2", "InvalidParameterValue")]
    (seen,) = stack.receive("Heard")
    assert seen["Body"] == "seen", "hidden though it could be seen"

    old_and_new = [{"Id": "old", "ReceiptHandle": receipts["seen"]}, {"Id": "new", "ReceiptHandle": receipts["mine"]}]
    answer = dict(sqs.delete_message_batch(QueueUrl=queue, Entries=old_and_new))
    assert ([each["Id"] for each in answer["Successful"]], answer.get("Failed", [])) == (["old", "new"], [])
    hide(0, seen["ReceiptHandle"])
    assert stack.drain("Heard") == ["seen"]


def test_senders_and_receivers_at_once_lose_nothing(stack: Stack) -> None:
    """ministack rebuilds its lists of messages on several threads; a message must not fall between."""
    sent = [f"{sender}-{number}" for sender in range(4) for number in range(50)]

    def send(sender: int) -> None:
        client = stack.client("sqs")
        for number in range(50):
            client.send_message(QueueUrl=stack.outputs["Work"], MessageBody=f"{sender}-{number}")

    threads = [threading.Thread(target=send, args=(sender,)) for sender in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    table = stack.outputs["Jobs"]

    def all_there() -> bool:
        pages = stack.client("dynamodb").get_paginator("scan").paginate(TableName=table, ProjectionExpression="job_id")
        return set(sent) <= {item["job_id"]["S"] for page in pages for item in page["Items"]}

    eventually(all_there, within=20, what="every message was handled")


# The store


def test_put_if_none_match_keeps_the_first(stack: Stack) -> None:
    put = {"Bucket": stack.outputs["Uploads"], "Key": "once", "IfNoneMatch": "*"}
    stack.client("s3").put_object(**put, Body=b"first")
    with pytest.raises(ClientError) as refused:
        stack.client("s3").put_object(**put, Body=b"second")
    assert code(refused) == "PreconditionFailed"
    body = stack.client("s3").get_object(Bucket=stack.outputs["Uploads"], Key="once")["Body"].read()
    assert body == b"first"


CLAIM = """
import sys
import boto3
table, wanted = sys.argv[1:]
store, won = boto3.client("dynamodb"), []
for key in range(int(wanted)):
    try:
        store.put_item(TableName=table, Item={"job_id": {"S": f"claim-{key}"}},
                       ConditionExpression="attribute_not_exists(job_id)")
        won.append(key)
    except store.exceptions.ConditionalCheckFailedException:
        pass
print(*won)
"""


def test_one_of_eight_processes_wins_each_claim(stack: Stack) -> None:
    command = [sys.executable, "-c", CLAIM, stack.outputs["Jobs"], "40"]
    with ThreadPoolExecutor(8) as pool:
        runs = [pool.submit(subprocess.check_output, command, env=stack.cloud.environment) for _ in range(8)]
    won = [int(key) for run in runs for key in run.result().split()]
    assert sorted(won) == list(range(40))


# Functions


def test_a_function_runs_in_a_warm_process_of_its_own_role(stack: Stack) -> None:
    stack.send("Work", "first")
    eventually(lambda: stack.handled("first"), within=20, what="the function handled the message")
    stack.send("Work", "second")
    seen = eventually(lambda: stack.handled("second"), within=20, what="the function handled the second message")
    environment = json.loads(seen["environment"])
    assert ":assumed-role/stack-FunctionRole-" in seen["caller"]
    assert environment["AWS_ENDPOINT_URL"] == stack.cloud.endpoint
    assert not [name for name in environment if name.startswith(("PYTEST", "VIRTUAL_ENV", "PYTHONPATH"))]
    pids = set()
    for number in range(6):
        stack.send("Work", f"warm {number}")
        pids.add(eventually(lambda body=f"warm {number}": stack.handled(body), within=20, what="handled")["pid"])
    assert len(pids) <= 2, "an event source of two keeps at most two processes warm"


def test_what_a_function_prints_is_kept(stack: Stack) -> None:
    stack.send("Work", "printed")
    function = stack.outputs["Function"]
    eventually(
        lambda: "handled printed" in stack.cloud.remote.do("lambda/logs", function=function), within=20, what="log"
    )
    logs = stack.client("logs").filter_log_events(
        logGroupName=f"/aws/lambda/{function}", filterPattern='"handled printed"'
    )
    assert logs["events"]


def test_what_a_function_s_role_may_not_write_is_not_kept(stack: Stack) -> None:
    """Lambda writes a function's log with the function's role."""
    name, iam = stack.outputs["Function"], stack.client("iam")
    role = stack.client("lambda").get_function(FunctionName=name)["Configuration"]["Role"].rsplit("/", 1)[-1]
    deny = {"Version": "2012-10-17", "Statement": [{"Effect": "Deny", "Action": "logs:PutLogEvents", "Resource": "*"}]}
    iam.put_role_policy(RoleName=role, PolicyName="silent", PolicyDocument=json.dumps(deny))
    try:
        stack.send("Work", "unwritten")
        said = lambda: "handled unwritten" in stack.cloud.remote.do("lambda/logs", function=name)  # noqa: E731
        eventually(said, within=20, what="it says so")
    finally:
        iam.delete_role_policy(RoleName=role, PolicyName="silent")
    found = stack.client("logs").filter_log_events(logGroupName=f"/aws/lambda/{name}", filterPattern='"unwritten"')
    assert found["events"] == []


def test_only_the_failed_item_comes_back_and_then_goes_to_the_dead(stack: Stack) -> None:
    """Two receives three seconds apart; the third finds it dead."""
    stack.send("Work", "fail always", "fine")
    eventually(lambda: stack.handled("fine"), within=20, what="the other item is handled")
    dead = eventually(lambda: stack.receive("Dead"), within=20, what="the failed item is dead")
    assert [message["Body"] for message in dead] == ["fail always"]
    assert int(dead[0]["Attributes"]["ApproximateReceiveCount"]) == 3


def test_a_function_killed_in_mid_batch_gets_the_batch_again(stack: Stack) -> None:
    stack.send("Work", "slow but sure")
    function = stack.outputs["Function"]

    def killed() -> bool:
        try:
            return int(stack.cloud.remote.do("lambda/kill", function=function)) > 0
        except Refused:
            return False

    eventually(killed, within=20, what="the function runs, and is killed")
    assert stack.handled("slow but sure") is None
    eventually(lambda: stack.handled("slow but sure"), within=20, what="the batch came again and was handled")


def test_only_a_running_function_can_be_killed(stack: Stack) -> None:
    with pytest.raises(Refused, match="no invocation"):
        stack.cloud.remote.do("lambda/kill", function="nobody")


def test_a_function_has_boto3_and_nothing_else_of_the_laptop(stack: Stack) -> None:
    source = "import boto3\nimport pydantic\ndef handler(event, context): pass\n"
    client, role = stack.client("lambda"), stack.client("lambda").get_function(FunctionName=stack.outputs["Function"])
    client.create_function(
        FunctionName="greedy",
        Runtime="python3.13",
        Role=role["Configuration"]["Role"],
        Handler="capacity.handler.handler",
        Code={"ZipFile": make.package(source)},
    )
    answer = client.invoke(FunctionName="greedy")
    assert "No module named 'pydantic'" in answer["Payload"].read().decode()
    client.delete_function(FunctionName="greedy")


# Permissions


def test_a_role_may_what_its_policy_says_and_no_more(stack: Stack) -> None:
    agent = stack.agent
    agent("s3").put_object(Bucket=stack.outputs["Uploads"], Key="its/file", Body=b"x")
    with pytest.raises(ClientError) as refused:
        agent("s3").put_object(Bucket=stack.outputs["Uploads"], Key="other/file", Body=b"x")
    assert code(refused) == "AccessDenied"
    with pytest.raises(ClientError) as refused:
        agent("dynamodb").scan(TableName=stack.outputs["Jobs"])
    assert code(refused) == "AccessDeniedException"


def test_a_condition_on_a_tag_holds(stack: Stack) -> None:
    with pytest.raises(ClientError) as refused:
        stack.agent("sqs").send_message(QueueUrl=stack.outputs["Heard"], MessageBody="x")
    assert "AccessDenied" in code(refused)


def test_a_batch_is_allowed_by_the_single_action(stack: Stack) -> None:
    decrypt = json.dumps(make.policy(make.allow("kms:Decrypt", stack.outputs["Key"])))
    role = stack.outputs["AgentRole"].rsplit("/", 1)[-1]
    stack.client("iam").put_role_policy(RoleName=role, PolicyName="decrypt", PolicyDocument=decrypt)
    entries = [{"Id": "1", "MessageBody": "batched"}]
    sent = stack.agent("sqs").send_message_batch(QueueUrl=stack.outputs["Work"], Entries=entries)
    assert [entry["Id"] for entry in sent["Successful"]] == ["1"]
    stack.client("iam").delete_role_policy(RoleName=role, PolicyName="decrypt")


def test_the_arn_of_a_log_group_lets_its_streams_be_written(stack: Stack) -> None:
    logs, names = stack.agent("logs"), {"logGroupName": stack.outputs["Log"], "logStreamName": "one"}
    logs.create_log_stream(**names)
    logs.put_log_events(**names, logEvents=[{"timestamp": int(time.time() * 1000), "message": "written"}])
    with pytest.raises(ClientError, match="AccessDenied"):
        logs.create_log_stream(logGroupName=f"/aws/lambda/{stack.outputs['Function']}", logStreamName="one")


def test_a_topic_s_key_must_be_allowed_too(stack: Stack) -> None:
    """The agent may publish and may generate a data key, but not decrypt: AWS refuses the publication."""
    agent, role = stack.agent("sns"), stack.outputs["AgentRole"].rsplit("/", 1)[-1]
    with pytest.raises(ClientError, match="not authorized"):
        agent.publish(TopicArn=stack.outputs["Topic"], Message="x")
    decrypt = json.dumps(make.policy(make.allow("kms:Decrypt", stack.outputs["Key"])))
    stack.client("iam").put_role_policy(RoleName=role, PolicyName="decrypt", PolicyDocument=decrypt)
    agent.publish(TopicArn=stack.outputs["Topic"], Message="x")
    stack.client("iam").delete_role_policy(RoleName=role, PolicyName="decrypt")


def test_a_stranger_is_nobody(stack: Stack) -> None:
    stranger = boto3.client(
        "sqs",
        endpoint_url=stack.cloud.endpoint,
        region_name="us-east-1",
        aws_access_key_id="AKIAIOSFODNN7EXAMPLE",
        aws_secret_access_key="x",
    )
    with pytest.raises(ClientError):
        stranger.list_queues()


# The rule of the house


def test_the_product_does_not_know_the_local_cloud() -> None:
    """Importing every module of the product loads nothing of localcloud, and none of its files names it."""
    roots = {"lambdas": "capacity ingest", "ecs-tasks/gpu-worker": "gpu_worker", ".": "agent templates"}
    files = [
        file
        for root, packages in roots.items()
        for package in packages.split()
        for file in (PROJECT / root / package).rglob("*.py")
    ]
    assert files
    assert [str(file) for file in files if "localcloud" in file.read_text()] == []


def test_the_cloud_goes_when_whoever_started_it_is_killed(tmp_path: Path) -> None:
    """A demo whose terminal was closed leaves nothing running."""
    code = (
        "import time; from pathlib import Path; from localcloud.laptop import laptop\n"
        f"with laptop(Path({str(tmp_path)!r})) as cloud: print(cloud.process.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        cloud = int(starter.stdout.readline())
        starter.kill()

    def gone() -> bool:
        try:
            os.kill(cloud, 0)
        except ProcessLookupError:
            return True
        stat = Path(f"/proc/{cloud}/stat")
        return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] == "Z"

    eventually(gone, within=20, what="the cloud ended too")
