"""Permissions: each a function named for the task it allows, and one role for each actor.

Which resources an action can be limited to is from the Service Authorization Reference. Resource "*" is for what cannot
be limited there, and says so beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from troposphere import GetAtt, Ref, Sub, Tags, iam

from templates.settings import STACK_TAG

Statement = dict[str, Any]


def allow(actions: Sequence[str], resources: Any, **condition: Any) -> Statement:
    """One Allow statement; `condition` as operator=mapping."""
    statement: Statement = {"Effect": "Allow", "Action": list(actions), "Resource": resources}
    return {**statement, "Condition": condition} if condition else statement


def role(
    title: str, service: Any, tags: Tags, statements: Sequence[Statement], managed: Sequence[Any] = ()
) -> iam.Role:
    """A role for one actor: the service that may assume it, and all that it may do."""
    policy = iam.Policy(PolicyName=title, PolicyDocument={"Version": "2012-10-17", "Statement": list(statements)})
    return iam.Role(
        title,
        AssumeRolePolicyDocument={
            "Version": "2012-10-17",
            "Statement": [
                {"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"},
            ],
        },
        Tags=tags,
        **({"Policies": [policy]} if statements else {}),
        **({"ManagedPolicyArns": list(managed)} if managed else {}),
    )


def arn(service: str, resource: str) -> Sub:
    """An ARN in this account and region; `resource` may hold ${...}."""
    return Sub(f"arn:${{AWS::Partition}}:{service}:${{AWS::Region}}:${{AWS::AccountId}}:{resource}")


EC2 = Sub("ec2.${AWS::URLSuffix}")
"""EC2 as who assumes a role. Alone among those here it has another name in China, where IAM once refused this one
(aws/aws-cdk#1282, #24709).
"""


def in_this_cluster(cluster: Any) -> dict[str, Any]:
    """The condition that an ECS call is about this cluster."""
    return {"ArnEquals": {"ecs:cluster": GetAtt(cluster, "Arn")}}


# Queues, topic and key


def take_messages(*queues: Any) -> Statement:
    """Receive and finish messages, as a Lambda event source does: it can neither add nor purge them.

    What Lambda asks for is in AWSLambdaSQSQueueExecutionRole, AWS's own policy for it.
    """
    return allow(
        ["sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes"],
        [GetAtt(queue, "Arn") for queue in queues],
    )


def take_jobs(*queues: Any) -> Statement:
    """Receive, hold, give back and finish jobs."""
    return allow(
        ["sqs:ReceiveMessage", "sqs:ChangeMessageVisibility", "sqs:DeleteMessage"],
        [GetAtt(queue, "Arn") for queue in queues],
    )


def send_messages(*queues: Any) -> Statement:
    """Add messages."""
    return allow(["sqs:SendMessage"], [GetAtt(queue, "Arn") for queue in queues])


def measure_queues(*queues: Any) -> Statement:
    """See how many messages wait and how many are in flight."""
    return allow(["sqs:GetQueueAttributes"], [GetAtt(queue, "Arn") for queue in queues])


def time_jobs() -> Statement:
    """Read from CloudWatch how old jobs are and how long they take."""
    # GetMetricData knows no resource, and no condition on the namespace.
    return allow(["cloudwatch:GetMetricData"], "*")


def publish_notices(topic: Any) -> Statement:
    """Tell the capacity Lambda of an interruption: the one thing an instance may say."""
    return allow(["sns:Publish"], [Ref(topic)])


def open_messages(key: Any | None) -> list[Statement]:
    """Read what the key encrypts; nothing where AWS's own keys do (None)."""
    return [allow(["kms:Decrypt"], [GetAtt(key, "Arn")])] if key else []


def open_and_seal(key: Any | None) -> list[Statement]:
    """Read and write what the key encrypts in SQS, SNS and S3; nothing where AWS's own keys do (None)."""
    return [allow(["kms:Decrypt", "kms:GenerateDataKey"], [GetAtt(key, "Arn")])] if key else []


def use_encrypted_table(key: Any | None) -> list[Statement]:
    """Use a table under a customer key: DynamoDB asks for these in the caller's name. Nothing without one (None)."""
    actions = [
        "kms:Decrypt",
        "kms:DescribeKey",
        "kms:Encrypt",
        "kms:GenerateDataKey",
        "kms:GenerateDataKeyWithoutPlaintext",
        "kms:ReEncryptFrom",
        "kms:ReEncryptTo",
    ]
    return [allow(actions, [GetAtt(key, "Arn")])] if key else []


# Buckets and table


def record_jobs(table: Any) -> Statement:
    """Write a job's first record, and look whether there was one."""
    return allow(["dynamodb:PutItem", "dynamodb:GetItem"], [GetAtt(table, "Arn")])


def create_jobs(table: Any) -> Statement:
    """Write a job's first record."""
    return allow(["dynamodb:PutItem"], [GetAtt(table, "Arn")])


def note_taken(table: Any) -> Statement:
    """Note in which pool EC2 takes an instance of ours."""
    return allow(["dynamodb:BatchGetItem", "dynamodb:UpdateItem"], [GetAtt(table, "Arn")])


def read_pools(table: Any) -> Statement:
    """Read what is known of the pools."""
    return allow(["dynamodb:Scan"], [GetAtt(table, "Arn")])


def remember_pools(table: Any) -> Statement:
    """Read all that is known of the pools, and write what is seen and decided."""
    return allow(["dynamodb:Scan", "dynamodb:UpdateItem"], [GetAtt(table, "Arn")])


def price_pools(table: Any) -> Statement:
    """Read what one pool costs."""
    return allow(["dynamodb:GetItem"], [GetAtt(table, "Arn")])


def change_jobs(table: Any) -> Statement:
    """Claim, extend, release and finish jobs that exist."""
    return allow(["dynamodb:GetItem", "dynamodb:UpdateItem"], [GetAtt(table, "Arn")])


def read_uploads(bucket: Any) -> list[Statement]:
    """Fetch an upload, in the version that the job names, and no other: without a version S3 asks for s3:GetObject.

    Without ListBucket, S3 answers 403 instead of 404 for an upload that is gone (API reference, GetObject).
    """
    return [
        allow(["s3:GetObjectVersion"], [Sub(f"${{{bucket.title}.Arn}}/*")]),
        allow(["s3:ListBucket"], [GetAtt(bucket, "Arn")]),
    ]


def delete_uploads(bucket: Any) -> Statement:
    """Delete the version of an upload that a job was about, and no other: without a version S3 asks for
    s3:DeleteObject.
    """
    return allow(["s3:DeleteObjectVersion"], [Sub(f"${{{bucket.title}.Arn}}/*")])


def store_results(bucket: Any) -> Statement:
    """Add results, large ones in parts. A worker can neither read nor remove them."""
    return allow(["s3:PutObject", "s3:AbortMultipartUpload"], [Sub(f"${{{bucket.title}.Arn}}/*")])


def share_in_between(bucket: Any, folders: Sequence[str]) -> Statement:
    """Fetch and remove what workers leave for each other: the parts of a job that is split, and checkpoints."""
    return allow(["s3:GetObject", "s3:DeleteObject"], [Sub(f"${{{bucket.title}.Arn}}/{folder}*") for folder in folders])


def read_manifests(bucket: Any, folder: str) -> Statement:
    """Read which objects an array of jobs is about."""
    return allow(["s3:GetObject"], [Sub(f"${{{bucket.title}.Arn}}/{folder}*")])


def count_failures(bucket: Any, folder: str) -> Statement:
    """See how often a job has failed."""
    return allow(["s3:ListBucket"], [GetAtt(bucket, "Arn")], StringLike={"s3:prefix": f"{folder}*"})


def mount_files(file_system: Any, access_point: Any) -> Statement:
    """Mount the shared file system through its access point, to read and write, and in no other way."""
    return allow(
        ["elasticfilesystem:ClientMount", "elasticfilesystem:ClientWrite"],
        [GetAtt(file_system, "Arn")],
        ArnEquals={"elasticfilesystem:AccessPointArn": GetAtt(access_point, "Arn")},
    )


def fetch_asset(key: str) -> Statement:
    """Fetch one published file."""
    return allow(["s3:GetObject"], [Sub(f"arn:${{AWS::Partition}}:s3:::${{AssetsBucket}}/{key}")])


# Logs and images


def write_logs(group: Any) -> Statement:
    """Write to one log group, which exists already. (The Arn of a log group ends in `:*`, its streams.)"""
    return allow(["logs:CreateLogStream", "logs:PutLogEvents"], [GetAtt(group, "Arn")])


def pull_images() -> list[Statement]:
    """Pull the worker's image from ECR, here or in another account that lets us."""
    return [
        # A token is for the registry as a whole: the action knows no resource.
        allow(["ecr:GetAuthorizationToken"], "*"),
        allow(
            ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"],
            [Sub("arn:${AWS::Partition}:ecr:*:*:repository/*")],
        ),
    ]


# ECS


def join_cluster(cluster: Any) -> list[Statement]:
    """What the ECS agent does, on this cluster only: the managed policy allows every cluster, and to make new ones.

    UpdateContainerInstancesState is for the agent's own draining at a Spot notice (ECS_ENABLE_SPOT_INSTANCE_DRAINING).
    Of what AWS's policy has the agent never calls DeregisterContainerInstance (amazon-ecs-agent,
    ecs-agent/api/ecs/interface.go), and for tasks on the bridge it has no attachment to tell of.
    """
    return [
        # Asked before the instance belongs to anything: the action knows no resource.
        allow(["ecs:DiscoverPollEndpoint"], "*"),
        allow(
            [
                "ecs:RegisterContainerInstance",
                "ecs:SubmitContainerStateChange",
                "ecs:SubmitTaskStateChange",
            ],
            [GetAtt(cluster, "Arn")],
        ),
        allow(
            ["ecs:Poll", "ecs:StartTelemetrySession", "ecs:UpdateContainerInstancesState"],
            [_container_instances(cluster)],
            **in_this_cluster(cluster),
        ),
    ]


def join_clusters_of_batch() -> list[Statement]:
    """What the ECS agent does, on clusters that Batch makes: their names are known only when they are there, and
    documented nowhere.
    """
    clusters = arn("ecs", "cluster/*")
    return [
        # Asked before the instance belongs to anything: the action knows no resource.
        allow(["ecs:DiscoverPollEndpoint"], "*"),
        allow(
            ["ecs:RegisterContainerInstance", "ecs:SubmitContainerStateChange", "ecs:SubmitTaskStateChange"],
            [clusters],
        ),
        allow(
            ["ecs:Poll", "ecs:StartTelemetrySession", "ecs:UpdateContainerInstancesState"],
            [arn("ecs", "container-instance/*")],
        ),
    ]


def protect_own_task(cluster: Any) -> Statement:
    """Ask not to be scaled in while busy: the ECS agent's endpoint calls with the task's role."""
    return allow(
        ["ecs:UpdateTaskProtection"],
        [arn("ecs", f"task/${{{cluster.title}}}/*")],
        **in_this_cluster(cluster),
    )


def see_own_host(cluster: Any) -> Statement:
    """Look whether the host is being drained; which one it is, only ECS's own endpoint on the host knows."""
    return allow(["ecs:DescribeContainerInstances"], [_container_instances(cluster)], **in_this_cluster(cluster))


def see_dead_workers(cluster: Any) -> Statement:
    """Look what another worker died of, to know whether its job is to blame."""
    return allow(
        ["ecs:DescribeTasks"],
        [arn("ecs", f"task/${{{cluster.title}}}/*")],
        **in_this_cluster(cluster),
    )


def drain_instances(cluster: Any) -> list[Statement]:
    """See what has joined the cluster, and set it DRAINING."""
    return [
        allow(["ecs:ListContainerInstances"], [GetAtt(cluster, "Arn")]),
        allow(
            ["ecs:DescribeContainerInstances", "ecs:UpdateContainerInstancesState"],
            [_container_instances(cluster)],
            **in_this_cluster(cluster),
        ),
    ]


def scale_services(cluster: Any, *names: str) -> Statement:
    """Look at these services and set how many tasks they want; names for Fn::Sub."""
    return allow(
        ["ecs:DescribeServices", "ecs:UpdateService"],
        [arn("ecs", f"service/${{{cluster.title}}}/{name}") for name in names],
        **in_this_cluster(cluster),
    )


def _container_instances(cluster: Any) -> Sub:
    return arn("ecs", f"container-instance/${{{cluster.title}}}/*")


# EC2 and Auto Scaling


def see_capacity() -> Statement:
    """Look at fleets, their instances and groups."""
    # None of these lists knows a resource: neither EC2's nor Auto Scaling's Describe calls can be limited to one.
    return allow(
        [
            "autoscaling:DescribeAutoScalingGroups",
            "ec2:DescribeInstances",
            "ec2:DescribeSpotFleetRequests",
            "ec2:DescribeSpotInstanceRequests",
        ],
        "*",
    )


def see_groups() -> Statement:
    """Look at groups, at what became of their launches, and at instances."""
    # None of these lists knows a resource: neither EC2's nor Auto Scaling's Describe calls can be limited to one.
    return allow(
        [
            "autoscaling:DescribeAutoScalingGroups",
            "autoscaling:DescribeScalingActivities",
            "ec2:DescribeInstances",
            "ec2:DescribeSpotInstanceRequests",
        ],
        "*",
    )


def see_market() -> Statement:
    """Look at Spot and On-Demand prices, placement scores, and in which zones our subnets are."""
    # None of these knows a resource: the market belongs to nobody, and DescribeSubnets is a list.
    return allow(
        [
            "ec2:DescribeSpotPriceHistory",
            "ec2:DescribeSubnets",
            "ec2:GetSpotPlacementScores",
            "pricing:GetProducts",
        ],
        "*",
    )


def choose_pools(fleet: Any, launch: Any, instance_role: Any, group: Any, subnets: Sequence[Any]) -> list[Statement]:
    """Look at fleets, and say in which of its pools one fleet launches, always from its own launch template.

    Who changes what a Spot Fleet launches needs the right to launch it (EC2 User Guide, "Spot Fleet permissions"); the
    condition holds that to this template. `subnets` may hold Fn::If.
    """
    template = arn("ec2", f"launch-template/${{{launch.title}}}")
    from_it = {"ArnEquals": {"ec2:LaunchTemplate": template}}
    made = [arn("ec2", f"{kind}/*") for kind in ("instance", "network-interface", "volume")]
    image = Sub("arn:${AWS::Partition}:ec2:${AWS::Region}::image/${AmiId}")
    return [
        # A list of all fleets: EC2's Describe calls know no resource.
        allow(["ec2:DescribeSpotFleetRequests"], "*"),
        allow(
            ["ec2:ModifySpotFleetRequest"],
            [arn("ec2", f"spot-fleet-request/${{{fleet.title}}}"), template, *subnets],
        ),
        allow(["ec2:RunInstances"], [template, image, group, *subnets, *made], **from_it),
        allow(
            ["ec2:CreateTags"],
            [arn("ec2", f"{kind}/*") for kind in ("instance", "volume")],
            StringEquals={"ec2:CreateAction": "RunInstances"},
        ),
        allow(["iam:PassRole"], [GetAtt(instance_role, "Arn")], StringEquals={"iam:PassedToService": EC2}),
    ]


def execute_policies(*groups: Any) -> Statement:
    """Execute these groups' own scaling policies, and so resize them only as the template says."""
    return allow(["autoscaling:ExecutePolicy"], [_group(group) for group in groups])


def replace_instances(*groups: Any) -> Statement:
    """Take a chosen instance out of these groups."""
    return allow(["autoscaling:TerminateInstanceInAutoScalingGroup"], [_group(group) for group in groups])


def note_on_group(group: Any, *keys: str) -> Statement:
    """Set and remove these tags, and no others, on one group."""
    return allow(["autoscaling:CreateOrUpdateTags", "autoscaling:DeleteTags"], [_group(group)], **_only_tags(*keys))


def steer_fleet(fleet: Any) -> Statement:
    """Set one fleet's target."""
    return allow(["ec2:ModifySpotFleetRequest"], [arn("ec2", f"spot-fleet-request/${{{fleet.title}}}")])


def steer_group(group: Any) -> Statement:
    """Set one group's size, and take a chosen instance out of it."""
    return allow(["autoscaling:SetDesiredCapacity", "autoscaling:TerminateInstanceInAutoScalingGroup"], [_group(group)])


def _group(group: Any) -> Sub:
    """A group's ARN, which holds an id that only AWS knows."""
    return arn("autoscaling", f"autoScalingGroup:*:autoScalingGroupName/${{{group.title}}}")


def terminate_own_instances() -> Statement:
    """Terminate instances that carry this stack's tag, and no others."""
    return allow(
        ["ec2:TerminateInstances"],
        [arn("ec2", "instance/*")],
        StringEquals={f"ec2:ResourceTag/{STACK_TAG}": Ref("AWS::StackName")},
    )


def note_on_fleet(fleet: Any, *keys: str) -> Statement:
    """Set and remove these tags, and no others, on one fleet."""
    return allow(
        ["ec2:CreateTags", "ec2:DeleteTags"],
        [arn("ec2", f"spot-fleet-request/${{{fleet.title}}}")],
        **_only_tags(*keys),
    )


def note_on_instances(*keys: str) -> Statement:
    """Set and remove these tags, and no others, on this stack's instances."""
    return allow(
        ["ec2:CreateTags", "ec2:DeleteTags"],
        [arn("ec2", "instance/*")],
        **_only_tags(*keys),
        StringEquals={f"ec2:ResourceTag/{STACK_TAG}": Ref("AWS::StackName")},
    )


def _only_tags(*keys: str) -> dict[str, Any]:
    # Null: DeleteTags without a tag removes all, and ForAllValues is true of none (IAM User Guide, "Set operators").
    return {"ForAllValues:StringEquals": {"aws:TagKeys": list(keys)}, "Null": {"aws:TagKeys": "false"}}


def open_sessions() -> list[Statement]:
    """What the SSM agent needs for Session Manager; the managed policy also lets it run documents and read parameters
    (Systems Manager User Guide, "Verify or add instance permissions for Session Manager").
    """
    return [
        allow(["ssm:UpdateInstanceInformation"], [arn("ec2", "instance/*")]),
        # These four know no resource: a channel has no ARN.
        allow(
            [
                "ssmmessages:CreateControlChannel",
                "ssmmessages:CreateDataChannel",
                "ssmmessages:OpenControlChannel",
                "ssmmessages:OpenDataChannel",
            ],
            "*",
        ),
    ]
