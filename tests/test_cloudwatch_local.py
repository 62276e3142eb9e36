"""CloudWatch of the local cloud by its API: who may, what functions and logs tell, whom an alarm reaches, what stacks make."""

import io
import json
import time
import zipfile
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from tests.cloud import Laptop, eventually, running_cloud
from tests.localcloud_make import allow, att, key_policy, policy, ref, trust
from tests.test_localcloud import create

SPEED = 60
ACCOUNT = "123456789012"
SOURCE = """
import json, time
def handler(event, context):
    print(json.dumps({
        "_aws": {"Timestamp": int(time.time() * 1000), "CloudWatchMetrics": [
            {"Namespace": "Mine", "Dimensions": [["Stack"]], "Metrics": [{"Name": "Passes", "Unit": "Count"}]}]},
        "Stack": event["stack"], "Passes": 3,
    }))
    if event.get("fail"):
        raise RuntimeError("as it was told")
"""


@pytest.fixture(scope="module")
def cloud() -> Iterator[Laptop]:
    with running_cloud(speed=SPEED, seed=1) as running:
        running.remote.do("chaos/duplicates", rate=0)
        yield running


def within(cloud: Laptop, namespace: str, name: str, statistic: str = "Sum", **dimensions: str) -> float | None:
    """A statistic over the last hours of the clock; None without data."""
    now = time.time()
    points = cloud.client("cloudwatch").get_metric_statistics(
        Namespace=namespace,
        MetricName=name,
        Dimensions=[{"Name": key, "Value": value} for key, value in dimensions.items()],
        StartTime=now - 600,
        EndTime=now + 60,
        Period=86400,
        Statistics=[statistic],
    )["Datapoints"]
    return sum(point[statistic] for point in points) if points else None


def acting(cloud: Laptop, name: str, *statements: dict[str, Any]) -> Any:
    """A CloudWatch client with a role that has these statements."""
    iam = cloud.client("iam")
    role = iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(trust("lambda.amazonaws.com")))["Role"]
    iam.put_role_policy(RoleName=name, PolicyName="its", PolicyDocument=json.dumps(policy(*statements)))
    given = cloud.remote.do("iam/session", role_arn=role["Arn"], name="test")
    return boto3.client(
        "cloudwatch",
        endpoint_url=cloud.endpoint,
        region_name="us-east-1",
        aws_access_key_id=given["AccessKeyId"],
        aws_secret_access_key=given["SecretAccessKey"],
        aws_session_token=given["Token"],
    )


def always(name: str, *topics: str) -> dict[str, Any]:
    """An alarm that goes off because its metric says nothing."""
    return {
        "AlarmName": name,
        "Namespace": "Mine",
        "MetricName": "Nothing",
        "Statistic": "Sum",
        "Period": 60,
        "EvaluationPeriods": 1,
        "Threshold": 0,
        "ComparisonOperator": "GreaterThanThreshold",
        "TreatMissingData": "breaching",
        "AlarmActions": list(topics),
    }


# Who may


def test_a_role_puts_into_its_namespace_only(cloud: Laptop) -> None:
    mine = {"StringEquals": {"cloudwatch:namespace": "Mine"}}
    client = acting(cloud, "writer", allow("cloudwatch:PutMetricData", "*", **mine))
    client.put_metric_data(Namespace="Mine", MetricData=[{"MetricName": "Own", "Value": 4}])
    assert within(cloud, "Mine", "Own") == 4
    for call in (
        lambda: client.put_metric_data(Namespace="Other", MetricData=[{"MetricName": "Own", "Value": 4}]),
        lambda: client.describe_alarms(),
        lambda: client.list_dashboards(),
    ):
        with pytest.raises(ClientError) as denied:
            call()
        assert denied.value.response["Error"]["Code"] in ("AccessDenied", "AccessDeniedException")


def test_a_role_may_be_held_to_its_alarms(cloud: Laptop) -> None:
    arn = f"arn:aws:cloudwatch:us-east-1:{ACCOUNT}:alarm:mine-*"
    client = acting(cloud, "watcher", allow(["cloudwatch:PutMetricAlarm", "cloudwatch:DeleteAlarms"], arn))
    client.put_metric_alarm(**always("mine-1"))
    client.delete_alarms(AlarmNames=["mine-1"])
    with pytest.raises(ClientError, match="alarm:other"):
        client.put_metric_alarm(**always("other"))


@pytest.mark.parametrize(
    ("operation", "params", "said"),
    [
        ("put_metric_data", {"Namespace": "AWS/SQS", "MetricData": [{"MetricName": "X", "Value": 1}]}, "AWS/"),
        ("put_metric_data", {"Namespace": "N", "MetricData": [{"MetricName": "X"}]}, "one of Value"),
        (
            "put_metric_data",
            {"Namespace": "N", "MetricData": [{"MetricName": "X", "Value": 1, "Timestamp": 1}]},
            "two weeks",
        ),
        ("put_composite_alarm", {"AlarmName": "a", "AlarmRule": "ALARM(b)"}, "does not play"),
        ("delete_alarms", {"AlarmNames": ["nobody"]}, "Unknown alarm nobody"),
        ("put_anomaly_detector", {"Namespace": "N", "MetricName": "X", "Stat": "Sum"}, "does not play"),
    ],
)
def test_what_aws_refuses_or_nobody_plays_is_refused(cloud: Laptop, operation: str, params: Any, said: str) -> None:
    with pytest.raises(ClientError, match=said):
        getattr(cloud.client("cloudwatch"), operation)(**params)


def test_metric_math_by_the_api(cloud: Laptop) -> None:
    client, now = cloud.client("cloudwatch"), time.time()
    client.put_metric_data(
        Namespace="Math",
        MetricData=[{"MetricName": name, "Values": [value], "Counts": [2]} for name, value in (("A", 6), ("B", 4))],
    )
    stats = [
        {
            "Id": name.lower(),
            "ReturnData": False,
            "MetricStat": {"Metric": {"Namespace": "Math", "MetricName": name}, "Period": 60, "Stat": "Average"},
        }
        for name in "AB"
    ]
    whole = [{"Id": "e", "Expression": "IF(a > b, a - b, 0) * PERIOD(a)", "Label": "more"}, *stats]
    [found] = client.get_metric_data(MetricDataQueries=whole, StartTime=now - 10, EndTime=now + 10)["MetricDataResults"]
    assert (found["Id"], found["Label"], found["Values"]) == ("e", "more", [120])


# What functions and logs tell


@pytest.fixture(scope="module")
def functions(cloud: Laptop) -> list[str]:
    """Two functions that print a metric: `told`, whose role may write logs, and `mute`, whose role may not."""
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("it.py", SOURCE)
    logs = ["logs:CreateLogGroup", "logs:CreateLogStream", "logs:PutLogEvents"]
    for name, statements in (("told", [allow(logs, "*")]), ("mute", [allow("s3:ListAllMyBuckets", "*")])):
        acting(cloud, f"{name}-role", *statements)
        cloud.client("lambda").create_function(
            FunctionName=name,
            Runtime="python3.13",
            Role=f"arn:aws:iam::{ACCOUNT}:role/{name}-role",
            Handler="it.handler",
            Code={"ZipFile": zipped.getvalue()},
        )
        for fail in (False, True, False):
            payload = json.dumps({"stack": name, "fail": fail})
            cloud.client("lambda").invoke(FunctionName=name, Payload=payload)
    return ["told", "mute"]


def test_a_line_of_a_functions_log_is_a_metric(cloud: Laptop, functions: list[str]) -> None:
    eventually(lambda: within(cloud, "Mine", "Passes", Stack="told") == 9, within=20, what="three passes")


def test_without_a_log_there_is_no_metric(cloud: Laptop, functions: list[str]) -> None:
    eventually(lambda: within(cloud, "Mine", "Passes", Stack="told") == 9, within=20, what="three passes")
    assert within(cloud, "Mine", "Passes", Stack="mute") is None


def test_lambda_counts_invocations_and_errors_a_minute_later(cloud: Laptop, functions: list[str]) -> None:
    eventually(lambda: within(cloud, "AWS/Lambda", "Invocations", FunctionName="told") == 3, within=20, what="calls")
    assert within(cloud, "AWS/Lambda", "Errors", FunctionName="told") == 1
    assert within(cloud, "AWS/Lambda", "Throttles", FunctionName="told") == 0


def test_what_is_turned_away_is_a_throttle_and_no_invocation(cloud: Laptop, functions: list[str]) -> None:
    client = cloud.client("lambda")
    client.put_function_concurrency(FunctionName="mute", ReservedConcurrentExecutions=0)
    before = within(cloud, "AWS/Lambda", "Invocations", FunctionName="mute")
    with pytest.raises(ClientError):
        client.invoke(FunctionName="mute", Payload=b"{}")
    eventually(lambda: within(cloud, "AWS/Lambda", "Throttles", FunctionName="mute"), within=20, what="a throttle")
    assert within(cloud, "AWS/Lambda", "Invocations", FunctionName="mute") in (before, 3)


# Whom an alarm reaches


def heard(cloud: Laptop, queue: str) -> list[dict[str, Any]]:
    received = cloud.client("sqs").receive_message(QueueUrl=queue, MaxNumberOfMessages=10).get("Messages", [])
    return [json.loads(message["Body"]) for message in received]


def topic_into_queue(cloud: Laptop, name: str, policy_of: Any = None, key: str = "") -> tuple[str, str]:
    """ARN of a topic, and the URL of the queue that hears it raw."""
    sns, sqs = cloud.client("sns"), cloud.client("sqs")
    attributes = {"KmsMasterKeyId": key} if key else {}
    topic = sns.create_topic(Name=name, Attributes=attributes)["TopicArn"]
    if policy_of:
        sns.set_topic_attributes(
            TopicArn=topic, AttributeName="Policy", AttributeValue=json.dumps(policy(policy_of(topic)))
        )
    url = sqs.create_queue(QueueName=f"{name}-heard")["QueueUrl"]
    arn = f"arn:aws:sqs:us-east-1:{ACCOUNT}:{name}-heard"
    lets = {
        "Effect": "Allow",
        "Principal": {"Service": "sns.amazonaws.com"},
        "Action": "sqs:SendMessage",
        "Resource": arn,
    }
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"Policy": json.dumps(policy(lets))})
    sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn, Attributes={"RawMessageDelivery": "true"})
    return topic, url


def let_alarm(alarm: str) -> Any:
    source = f"arn:aws:cloudwatch:us-east-1:{ACCOUNT}:alarm:{alarm}"
    return lambda topic: {
        "Effect": "Allow",
        "Principal": {"Service": "cloudwatch.amazonaws.com"},
        "Action": "sns:Publish",
        "Resource": topic,
        "Condition": {"ArnEquals": {"aws:SourceArn": source}, "StringEquals": {"aws:SourceAccount": ACCOUNT}},
    }


def key(cloud: Laptop, *services: str) -> str:
    """Id of a customer key whose policy lets these services use it."""
    document = json.loads(json.dumps(key_policy(*services)).replace("${AWS::AccountId}", ACCOUNT))
    document["Statement"][0]["Principal"] = {"AWS": f"arn:aws:iam::{ACCOUNT}:root"}
    return str(cloud.client("kms").create_key(Policy=json.dumps(document))["KeyMetadata"]["KeyId"])


def test_a_topics_policy_lets_in_the_alarm_that_it_names_and_no_other(cloud: Laptop) -> None:
    topic, queue = topic_into_queue(cloud, "picky", let_alarm("friend"))
    for name in ("stranger", "friend"):
        cloud.client("cloudwatch").put_metric_alarm(**always(name, topic))
    eventually(
        lambda: cloud.client("cloudwatch").describe_alarms(StateValue="ALARM", AlarmNamePrefix="stranger")[
            "MetricAlarms"
        ],
        within=20,
        what="ALARM",
    )
    told = eventually(lambda: heard(cloud, queue), within=20, what="the friend's word")
    time.sleep(1)
    assert {one["AlarmName"] for one in [*told, *heard(cloud, queue)]} == {"friend"}


@pytest.mark.parametrize(
    ("services", "reached"),
    [(("cloudwatch.amazonaws.com", "sns.amazonaws.com"), True), (("sns.amazonaws.com",), False), ((), False)],
    ids=["a key that lets CloudWatch", "a key that does not", "AWS's own key"],
)
def test_a_topics_key_must_let_cloudwatch(cloud: Laptop, services: tuple[str, ...], reached: bool) -> None:
    name = f"locked{len(services)}"
    topic, queue = topic_into_queue(cloud, name, key=key(cloud, *services) if services else "alias/aws/sns")
    client = cloud.client("cloudwatch")
    client.put_metric_alarm(**always(name, topic))
    eventually(
        lambda: client.describe_alarms(StateValue="ALARM", AlarmNames=[name])["MetricAlarms"], within=20, what="ALARM"
    )
    if reached:
        eventually(lambda: heard(cloud, queue), within=20, what="its word")
    else:
        time.sleep(0.5)
        assert heard(cloud, queue) == []


# What stacks make


def stack(**changes: Any) -> str:
    alarm = {key: value for key, value in always("", "").items() if key not in ("AlarmName", "AlarmActions")}
    resources = {
        "Topic": {"Type": "AWS::SNS::Topic"},
        "Alarm": {
            "Type": "AWS::CloudWatch::Alarm",
            "Properties": {**alarm, "Threshold": "0", "AlarmActions": [ref("Topic")], **changes},
        },
    }
    return json.dumps(
        {"Resources": resources, "Outputs": {"Arn": {"Value": att("Alarm")}, "Name": {"Value": ref("Alarm")}}}
    )


def test_a_stack_makes_changes_and_removes_an_alarm(cloud: Laptop) -> None:
    formation, client = cloud.client("cloudformation"), cloud.client("cloudwatch")
    status, reasons = create(formation, "watching", stack(Tags=[{"Key": "team", "Value": "imaging"}]))
    assert status == "CREATE_COMPLETE", reasons
    outputs = formation.describe_stacks(StackName="watching")["Stacks"][0]["Outputs"]
    told = {one["OutputKey"]: one["OutputValue"] for one in outputs}
    assert told["Name"].startswith("watching-Alarm-")
    assert told["Arn"] == f"arn:aws:cloudwatch:us-east-1:{ACCOUNT}:alarm:{told['Name']}"
    assert {"Key": "team", "Value": "imaging"} in client.list_tags_for_resource(ResourceARN=told["Arn"])["Tags"]
    eventually(
        lambda: client.describe_alarms(AlarmNames=[told["Name"]], StateValue="ALARM")["MetricAlarms"],
        within=20,
        what="ALARM",
    )

    formation.update_stack(StackName="watching", TemplateBody=stack(Threshold=7))
    eventually(
        lambda: client.describe_alarms(AlarmNames=[told["Name"]])["MetricAlarms"][0]["Threshold"] == 7,
        within=20,
        what="7",
    )
    formation.delete_stack(StackName="watching")
    eventually(
        lambda: not client.describe_alarms(AlarmNames=[told["Name"]])["MetricAlarms"], within=20, what="no alarm"
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ThresholdMetricId": "x"}, "does not play ThresholdMetricId"),
        ({"ComparisonOperator": "GreaterThanUpperThreshold"}, "does not play GreaterThanUpperThreshold"),
        ({"Metrics": [{"Id": "a", "Expression": "SEARCH('x')"}]}, "Metrics must not be specified together"),
        ({"Statistic": "tm99"}, "failed validation|tm99"),
        ({"Nonsense": 1}, "Nonsense"),
    ],
)
def test_a_template_that_asks_too_much_of_an_alarm_fails(cloud: Laptop, changes: dict[str, Any], said: str) -> None:
    name = f"bad-{next(iter(changes))}"
    status, reasons = create(cloud.client("cloudformation"), name, stack(**changes))
    assert status == "ROLLBACK_COMPLETE"
    assert any(part in reasons for part in said.split("|")), reasons
