"""What ministack does with each property of each resource that our templates use; any other property is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from localcloud.formation import NotPlayed, refuse_unplayed

Operator = Callable[[str], Any]
Supply = Callable[[Operator, str, Any], None]

HONOURED = {
    "AWS::CloudWatch::Dashboard": "DashboardBody DashboardName",
    "AWS::DynamoDB::Table": "AttributeDefinitions BillingMode KeySchema TableName Tags",
    "AWS::EC2::InternetGateway": "Tags",
    "AWS::EC2::Route": "DestinationCidrBlock GatewayId RouteTableId",
    "AWS::EC2::RouteTable": "Tags VpcId",
    "AWS::EC2::SecurityGroup": "GroupDescription GroupName SecurityGroupEgress SecurityGroupIngress Tags VpcId",
    "AWS::EC2::Subnet": "AvailabilityZone CidrBlock MapPublicIpOnLaunch Tags VpcId",
    "AWS::EC2::SubnetRouteTableAssociation": "RouteTableId SubnetId",
    "AWS::EC2::VPC": "CidrBlock EnableDnsHostnames EnableDnsSupport Tags",
    "AWS::EC2::VPCGatewayAttachment": "InternetGatewayId VpcId",
    "AWS::EFS::AccessPoint": "AccessPointTags FileSystemId PosixUser RootDirectory",
    "AWS::EFS::FileSystem": "Encrypted FileSystemPolicy FileSystemTags KmsKeyId PerformanceMode",
    "AWS::EFS::MountTarget": "FileSystemId SecurityGroups SubnetId",
    "AWS::Events::Rule": "Description EventPattern Name ScheduleExpression State Tags Targets",
    "AWS::IAM::InstanceProfile": "InstanceProfileName Path Roles",
    "AWS::IAM::Role": "AssumeRolePolicyDocument Description ManagedPolicyArns MaxSessionDuration Path Policies RoleName"
    " Tags",
    "AWS::KMS::Key": "Description EnableKeyRotation Enabled KeyPolicy KeySpec KeyUsage PendingWindowInDays Tags",
    "AWS::Lambda::EventSourceMapping": "BatchSize Enabled EventSourceArn FunctionName FunctionResponseTypes"
    " ScalingConfig",
    "AWS::Lambda::Function": "Code Description Environment FunctionName Handler LoggingConfig PackageType Role Tags"
    " Timeout",
    "AWS::Lambda::Permission": "Action FunctionName Principal SourceArn",
    "AWS::Logs::LogGroup": "LogGroupName RetentionInDays Tags",
    "AWS::S3::Bucket": "BucketName CorsConfiguration NotificationConfiguration PublicAccessBlockConfiguration"
    " VersioningConfiguration",
    "AWS::S3::BucketPolicy": "Bucket PolicyDocument",
    "AWS::SNS::Subscription": "Endpoint FilterPolicy FilterPolicyScope Protocol RawMessageDelivery TopicArn",
    "AWS::SNS::Topic": "DisplayName Subscription Tags TopicName",
    "AWS::SNS::TopicPolicy": "PolicyDocument Topics",
    "AWS::SQS::Queue": "DelaySeconds KmsMasterKeyId MaximumMessageSize MessageRetentionPeriod QueueName"
    " ReceiveMessageWaitTimeSeconds RedriveAllowPolicy RedrivePolicy SqsManagedSseEnabled Tags VisibilityTimeout",
    "AWS::SQS::QueuePolicy": "PolicyDocument Queues",
}
"""Properties by type that ministack takes and acts on (read in its provisioners, held by tests/test_localcloud.py)."""

INERT: Mapping[str, Mapping[str, str]] = {
    "AWS::CloudWatch::Dashboard": {"Tags": "nobody looks for a dashboard by tag"},
    "AWS::EFS::FileSystem": {
        "BackupPolicy": "nothing here lasts until a backup",
        "LifecyclePolicies": "no file is here for 30 days",
        "ThroughputMode": "the laptop's disk is as fast as it is",
    },
    "AWS::Lambda::EventSourceMapping": {
        "MaximumBatchingWindowInSeconds": "batches are never held back, which a window of 0 asks for",
        "Tags": "nobody looks for a mapping by tag",
    },
    "AWS::Lambda::Function": {
        "Architectures": "the function runs on the laptop's own processor",
        "MemorySize": "a process of the laptop takes what it needs",
        "Runtime": "the laptop's Python runs it; the unit tests say which versions the code is written for",
    },
    "AWS::S3::Bucket": {
        "LifecycleConfiguration": "no object lives long enough here to expire",
    },
    "AWS::SQS::Queue": {"KmsDataKeyReusePeriodSeconds": "a matter of price"},
}
"""Properties without effect here, each with the reason for which that cannot flatter the product."""


def _encrypt_bucket(operator: Operator, bucket: str, value: Any) -> None:
    rules = []
    for rule in value["ServerSideEncryptionConfiguration"]:
        default = rule["ServerSideEncryptionByDefault"]
        key = {"KMSMasterKeyID": default["KMSMasterKeyID"]} if "KMSMasterKeyID" in default else {}
        rules.append(
            {
                "ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": default["SSEAlgorithm"], **key},
                "BucketKeyEnabled": rule.get("BucketKeyEnabled", False),
            }
        )
    operator("s3").put_bucket_encryption(Bucket=bucket, ServerSideEncryptionConfiguration={"Rules": rules})


def _tag_bucket(operator: Operator, bucket: str, value: Any) -> None:
    operator("s3").put_bucket_tagging(Bucket=bucket, Tagging={"TagSet": value})


def _encrypt_table(operator: Operator, table: str, value: Any) -> None:
    key = {"KMSMasterKeyId": value["KMSMasterKeyId"]} if "KMSMasterKeyId" in value else {}
    operator("dynamodb").update_table(
        TableName=table,
        SSESpecification={"Enabled": value["SSEEnabled"], "SSEType": value.get("SSEType", "KMS"), **key},
    )


def _recover_table(operator: Operator, table: str, value: Any) -> None:
    operator("dynamodb").update_continuous_backups(TableName=table, PointInTimeRecoverySpecification=value)


def _expire_items(operator: Operator, table: str, value: Any) -> None:
    operator("dynamodb").update_time_to_live(TableName=table, TimeToLiveSpecification=value)


def _encrypt_topic(operator: Operator, topic: str, value: Any) -> None:
    operator("sns").set_topic_attributes(TopicArn=topic, AttributeName="KmsMasterKeyId", AttributeValue=value)


def _reserve_concurrency(operator: Operator, function: str, value: Any) -> None:
    operator("lambda").put_function_concurrency(FunctionName=function, ReservedConcurrentExecutions=int(value))


SUPPLIED: Mapping[str, Mapping[str, Supply]] = {
    "AWS::DynamoDB::Table": {
        "PointInTimeRecoverySpecification": _recover_table,
        "SSESpecification": _encrypt_table,
        "TimeToLiveSpecification": _expire_items,
    },
    "AWS::Lambda::Function": {"ReservedConcurrentExecutions": _reserve_concurrency},
    "AWS::S3::Bucket": {"BucketEncryption": _encrypt_bucket, "Tags": _tag_bucket},
    "AWS::SNS::Topic": {"KmsMasterKeyId": _encrypt_topic},
}
"""Properties that ministack's API has and its CloudFormation drops: set by the API once the resource is there."""


def hold(kind: str, properties: Mapping[str, Any]) -> None:
    """Refuse a type or a property that is neither honoured, supplied nor knowingly inert. Raises NotPlayed."""
    if kind not in HONOURED:
        raise NotPlayed(f"{kind}: the local cloud does not play this type")
    refuse_unplayed(kind, properties, {*HONOURED[kind].split(), *SUPPLIED.get(kind, {})}, INERT.get(kind, {}))


def supply(operator: Operator, kind: str, physical_id: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Set by API what CloudFormation should have set. Raises NotPlayed for a property that an update takes away."""
    for name, setter in SUPPLIED.get(kind, {}).items():
        if name in old and name not in new:
            raise NotPlayed(f"{kind}: the local cloud cannot take {name} away")
        if name in new and new[name] != old.get(name):
            setter(operator, physical_id, new[name])
