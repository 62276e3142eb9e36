"""The types and functions of CloudFormation that the product's options use, against the real process."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from tests import formation_make as make
from tests.cloud import Laptop, eventually, running_cloud

SPEED = 60
LEFT_IN_THE_WAY = 300 / SPEED
"""Seconds for which a deletion tries again."""


@dataclass
class Stack:
    cloud: Laptop
    name: str
    outputs: dict[str, str]

    def client(self, service: str) -> Any:
        return self.cloud.client(service)

    def hear(self, quiet: float = 0.5) -> list[str]:
        """What reached the queue Heard, until nothing came for `quiet` seconds."""
        sqs, bodies, last = self.client("sqs"), [], time.monotonic()
        while time.monotonic() - last < quiet:
            for message in sqs.receive_message(QueueUrl=self.outputs["Heard"], MaxNumberOfMessages=10).get(
                "Messages", []
            ):
                sqs.delete_message(QueueUrl=self.outputs["Heard"], ReceiptHandle=message["ReceiptHandle"])
                bodies.append(message["Body"])
                last = time.monotonic()
            time.sleep(0.05)
        return bodies


def settled(formation: Any, name: str) -> str | None:
    try:
        status = formation.describe_stacks(StackName=name)["Stacks"][0]["StackStatus"]
    except ClientError:
        return "DELETE_COMPLETE"
    return None if status.endswith("IN_PROGRESS") else str(status)


def reasons(formation: Any, name: str) -> str:
    events = formation.describe_stack_events(StackName=name)["StackEvents"]
    return "\n".join(event.get("ResourceStatusReason", "") for event in events)


def create(cloud: Laptop, name: str, body: str) -> Stack:
    formation = cloud.client("cloudformation")
    formation.create_stack(StackName=name, TemplateBody=body)
    status = eventually(lambda: settled(formation, name), within=30, what=f"{name} settles")
    assert status == "CREATE_COMPLETE", reasons(formation, name)
    told = formation.describe_stacks(StackName=name)["Stacks"][0]["Outputs"]
    return Stack(cloud, name, {output["OutputKey"]: output["OutputValue"] for output in told})


def delete(cloud: Laptop, name: str) -> str:
    formation = cloud.client("cloudformation")
    formation.delete_stack(StackName=name)
    time.sleep(0.2)
    return str(eventually(lambda: settled(formation, name), within=60, what=f"{name} settles"))


@pytest.fixture(scope="module")
def cloud() -> Iterator[Laptop]:
    with running_cloud(speed=SPEED, seed=1) as cloud:
        cloud.remote.do("chaos/duplicates", rate=0)
        yield cloud


@pytest.fixture(scope="module")
def stack(cloud: Laptop) -> Stack:
    return create(cloud, "pieces", make.rendered())


# Functions of templates


def test_a_list_keeps_what_its_conditions_leave(stack: Stack) -> None:
    (ecs,) = stack.client("ec2").describe_vpc_endpoints(VpcEndpointIds=[stack.outputs["Ecs"]])["VpcEndpoints"]
    made = stack.client("cloudformation").list_stack_resources(StackName=stack.name)["StackResourceSummaries"]

    assert len(ecs["SubnetIds"]) == 2
    assert "Subnet3" not in [one["LogicalResourceId"] for one in made]
    assert stack.outputs["Console"] == "console.aws.amazon.com"


def test_what_metadata_refers_to_is_made_first(stack: Stack) -> None:
    events = stack.client("cloudformation").describe_stack_events(StackName=stack.name)["StackEvents"]
    made = [one["LogicalResourceId"] for one in reversed(events) if one["ResourceStatus"] == "CREATE_COMPLETE"]
    assert max(made.index("Subnet1Routes"), made.index("Subnet2Routes")) < made.index("AGroup")


def test_an_export_can_be_imported_and_then_holds_its_stack(stack: Stack) -> None:
    topic = {"Type": "AWS::SNS::Topic", "Properties": {"DisplayName": {"Fn::ImportValue": "pieces-Vpc"}}}
    body = {"Resources": {"Topic": topic}, "Outputs": {"Topic": {"Value": {"Ref": "Topic"}}}}
    other = create(stack.cloud, "importer", json.dumps(body))
    shown = stack.client("sns").get_topic_attributes(TopicArn=other.outputs["Topic"])["Attributes"]

    assert shown["DisplayName"] == stack.outputs["Vpc"]
    with pytest.raises(ClientError, match="is imported by"):
        stack.client("cloudformation").delete_stack(StackName=stack.name)
    assert delete(stack.cloud, "importer") == "DELETE_COMPLETE"


# Networks


def test_an_endpoint_has_an_interface_in_each_of_its_subnets(stack: Stack) -> None:
    ec2 = stack.client("ec2")
    vpc = {"Name": "vpc-id", "Values": [stack.outputs["Vpc"]]}
    found = ec2.describe_network_interfaces(Filters=[vpc])["NetworkInterfaces"]

    assert sorted(one["InterfaceType"] for one in found) == ["efs", "vpc_endpoint", "vpc_endpoint"]
    assert all(one["RequesterManaged"] for one in found)
    kinds = {"Name": "interface-type", "Values": ["efs"]}
    assert len(ec2.describe_network_interfaces(Filters=[vpc, kinds])["NetworkInterfaces"]) == 1


def test_a_rule_of_its_own_is_in_its_group(stack: Stack) -> None:
    (found,) = stack.client("ec2").describe_security_groups(GroupIds=[stack.outputs["Group"]])["SecurityGroups"]
    assert [rule["FromPort"] for rule in found["IpPermissionsEgress"]] == [443, 2049]
    assert len(found["IpPermissionsEgress"][1]["UserIdGroupPairs"]) == 1


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"Vpc.EnableDnsHostnames": False}, "requires both enableDnsSupport and enableDnsHostnames"),
        ({"Ecs.ServiceName": "com.amazonaws.us-east-1.esc"}, "does not exist"),
        ({"Ecs.SubnetIds": [{"Ref": "Subnet1"}, {"Ref": "Subnet1"}]}, "another VPC endpoint subnet"),
        ({"Ecs.SecurityGroupIds": ["sg-0123456789abcdef0"]}, "is not in the VPC"),
        ({"Ecs.IpAddressType": "ipv4"}, "does not play IpAddressType"),
        ({"Files.ReplicationConfiguration": {}}, "does not play ReplicationConfiguration"),
        ({"ReachFiles.DestinationPrefixListId": "pl-1"}, "does not play DestinationPrefixListId"),
        ({"Budget.Tags": []}, "does not play Tags"),
        ({"Board.Widgets": []}, "does not play Widgets"),
    ],
)
def test_what_aws_or_we_do_not_have_fails_the_stack(cloud: Laptop, changes: dict[str, Any], complaint: str) -> None:
    formation, name = cloud.client("cloudformation"), f"bad-{abs(hash(json.dumps(changes)))}"
    formation.create_stack(StackName=name, TemplateBody=make.rendered(changes))
    status = eventually(lambda: settled(formation, name), within=30, what=f"{name} settles")
    assert status == "ROLLBACK_COMPLETE"
    assert complaint in reasons(formation, name)


def test_two_endpoints_cannot_have_one_name(cloud: Laptop) -> None:
    formation = cloud.client("cloudformation")
    formation.create_stack(StackName="twice", TemplateBody=make.rendered(Again=make.interface("ecs")))
    assert eventually(lambda: settled(formation, "twice"), within=30, what="settles") == "ROLLBACK_COMPLETE"
    assert "conflicting DNS domain" in reasons(formation, "twice")


# News


def test_a_mail_address_is_asked_first_and_gets_nothing(stack: Stack) -> None:
    listed = stack.client("sns").list_subscriptions_by_topic(TopicArn=stack.outputs["Topic"])["Subscriptions"]
    assert {one["Protocol"]: one["SubscriptionArn"] for one in listed}["email"] == "PendingConfirmation"


def emit(stack: Stack, what: str) -> None:
    stack.cloud.remote.do(
        "events/emit", source="aws.ec2spotfleet", detail_type="EC2 Spot Fleet Error", detail={"sub-type": what}
    )


def test_a_rule_tells_a_topic_in_a_sentence(stack: Stack) -> None:
    stack.hear(quiet=0.2)
    emit(stack, "spotInstanceCountLimitExceeded")
    assert stack.hear() == ['"EC2 Spot Fleet Error in pieces: spotInstanceCountLimitExceeded"']


@pytest.mark.parametrize(
    "statement",
    [
        make.publish("cloudwatch.amazonaws.com"),
        make.publish("events.amazonaws.com", ArnLike={"aws:SourceArn": "arn:aws:events:*:*:rule/*"}),
    ],
    ids=["of another service", "with a source, which EventBridge does not name to a topic"],
)
def test_a_topic_hears_only_whom_its_policy_lets_in(stack: Stack, statement: dict[str, Any]) -> None:
    sns, topic = stack.client("sns"), stack.outputs["Topic"]
    before = sns.get_topic_attributes(TopicArn=topic)["Attributes"]["Policy"]
    document = {"Version": "2012-10-17", "Statement": [{**statement, "Resource": topic}]}
    sns.set_topic_attributes(TopicArn=topic, AttributeName="Policy", AttributeValue=json.dumps(document))
    try:
        emit(stack, "unheard")
        assert stack.hear() == []
    finally:
        sns.set_topic_attributes(TopicArn=topic, AttributeName="Policy", AttributeValue=before)


@pytest.fixture(scope="module")
def group(stack: Stack) -> str:
    """An Auto Scaling group in the stack's subnet, made beside the stack."""
    data = {"InstanceType": "g5.xlarge", "SecurityGroupIds": [stack.outputs["Group"]]}
    made = stack.client("ec2").create_launch_template(LaunchTemplateName="beside", LaunchTemplateData=data)
    template = {"LaunchTemplateId": made["LaunchTemplate"]["LaunchTemplateId"], "Version": "1"}
    stack.client("autoscaling").create_auto_scaling_group(
        AutoScalingGroupName="beside",
        MinSize=0,
        MaxSize=2,
        LaunchTemplate=template,
        VPCZoneIdentifier=stack.outputs["Subnet"],
    )
    return "beside"


def test_auto_scaling_tells_a_topic_whose_key_lets_its_role(stack: Stack, group: str) -> None:
    """The service-linked role has no permission for keys of its own, so the key's policy must name it."""
    told = {
        "AutoScalingGroupName": group,
        "TopicARN": stack.outputs["Topic"],
        "NotificationTypes": ["autoscaling:EC2_INSTANCE_LAUNCH"],
    }
    stack.client("autoscaling").put_notification_configuration(**told)
    assert [json.loads(body)["Event"] for body in stack.hear()] == ["autoscaling:TEST_NOTIFICATION"]

    kms, key = stack.client("kms"), stack.outputs["Key"]
    before = kms.get_key_policy(KeyId=key, PolicyName="default")["Policy"]
    without = {**json.loads(before), "Statement": json.loads(before)["Statement"][:-1]}
    kms.put_key_policy(KeyId=key, PolicyName="default", Policy=json.dumps(without))
    try:
        stack.client("autoscaling").put_notification_configuration(**told)
        assert stack.hear() == []
    finally:
        kms.put_key_policy(KeyId=key, PolicyName="default", Policy=before)


def test_a_budget_is_kept_with_its_subscribers(stack: Stack) -> None:
    budgets, where = stack.client("budgets"), {"AccountId": "123456789012", "BudgetName": stack.outputs["Budget"]}
    budget = budgets.describe_budget(**where)["Budget"]
    (notification,) = budgets.describe_notifications_for_budget(**where)["Notifications"]

    assert float(budget["BudgetLimit"]["Amount"]) == 500
    assert notification["Threshold"] == 80


# Deleting


def test_a_bucket_with_something_in_it_stays(cloud: Laptop) -> None:
    bucket = {"Resources": {"Kept": {"Type": "AWS::S3::Bucket"}}, "Outputs": {"Kept": {"Value": {"Ref": "Kept"}}}}
    made = create(cloud, "bucket", json.dumps(bucket))
    s3 = cloud.client("s3")
    s3.put_object(Bucket=made.outputs["Kept"], Key="x", Body=b"x")

    assert delete(cloud, "bucket") == "DELETE_FAILED"
    assert "not empty" in reasons(cloud.client("cloudformation"), "bucket")
    s3.delete_object(Bucket=made.outputs["Kept"], Key="x")
    assert delete(cloud, "bucket") == "DELETE_COMPLETE"


def test_a_stack_waits_for_what_is_in_its_way_then_fails_and_goes_when_it_is_gone(stack: Stack, group: str) -> None:
    scaling, ec2 = stack.client("autoscaling"), stack.client("ec2")
    scaling.set_desired_capacity(AutoScalingGroupName=group, DesiredCapacity=1)
    subnet = {"Name": "subnet-id", "Values": [stack.outputs["Subnet"]]}
    eventually(lambda: ec2.describe_instances(Filters=[subnet])["Reservations"], within=20, what="an instance")

    begun = time.monotonic()
    assert delete(stack.cloud, stack.name) == "DELETE_FAILED"
    assert time.monotonic() - begun >= LEFT_IN_THE_WAY
    said = reasons(stack.client("cloudformation"), stack.name)
    assert f"DependencyViolation: subnet {stack.outputs['Subnet']}" in said
    assert f"DependencyViolation: resource {stack.outputs['Group']}" in said

    scaling.delete_auto_scaling_group(AutoScalingGroupName=group, ForceDelete=True)
    assert delete(stack.cloud, stack.name) == "DELETE_COMPLETE"
    vpc = [{"Name": "vpc-id", "Values": [stack.outputs["Vpc"]]}]
    assert ec2.describe_vpc_endpoints(Filters=vpc)["VpcEndpoints"] == []
    assert ec2.describe_security_groups(Filters=vpc)["SecurityGroups"] == []
    assert stack.client("efs").describe_file_systems()["FileSystems"] == []
    assert stack.client("budgets").describe_budgets(AccountId="123456789012").get("Budgets", []) == []
    assert stack.client("cloudwatch").list_dashboards()["DashboardEntries"] == []


# The record of every decision


def test_every_decision_about_a_role_is_written_down_once(cloud: Laptop) -> None:
    iam, trust = cloud.client("iam"), {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}}
    trust["Action"] = "sts:AssumeRole"
    document = {"Version": "2012-10-17", "Statement": [trust]}
    arn = iam.create_role(RoleName="asker", AssumeRolePolicyDocument=json.dumps(document))["Role"]["Arn"]
    allow = {"Effect": "Allow", "Action": "sqs:ListQueues", "Resource": "*"}
    allowed = json.dumps({"Version": "2012-10-17", "Statement": [allow]})
    iam.put_role_policy(RoleName="asker", PolicyName="its", PolicyDocument=allowed)
    keys = cloud.remote.do("iam/session", role_arn=arn, name="test")
    session = boto3.Session(keys["AccessKeyId"], keys["SecretAccessKey"], keys["Token"], region_name="us-east-1")

    for _ in range(2):
        session.client("sqs", endpoint_url=cloud.endpoint).list_queues()
        with pytest.raises(ClientError):
            session.client("sns", endpoint_url=cloud.endpoint).list_topics()

    lines = [json.loads(line) for line in (cloud.state / "iam.jsonl").read_text().splitlines()]
    told = [line for line in lines if line["principal"] == "asker"]
    assert [(line["action"], line["allowed"]) for line in told] == [("sqs:ListQueues", True), ("sns:ListTopics", False)]
    assert all(line["resource"].startswith(("arn:", "*")) for line in told)
