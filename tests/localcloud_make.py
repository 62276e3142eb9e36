"""A small stack with each thing that the product builds on, and a Lambda function that tells what it saw."""

import io
import json
import zipfile
from typing import Any

HANDLER = """
import json, os, time
from importlib import import_module
import boto3

def handler(event, context):
    store = boto3.client("dynamodb")
    failed = []
    for record in event["Records"]:
        body = record["body"]
        if body.startswith("slow"):
            print("asleep over", body)
            time.sleep(float(os.environ["NAP"]))
        if body.startswith("fail"):
            failed.append({"itemIdentifier": record["messageId"]})
            continue
        store.put_item(TableName=os.environ["TABLE"], Item={
            "job_id": {"S": body}, "pid": {"N": str(os.getpid())}, "batch": {"N": str(len(event["Records"]))},
            "caller": {"S": boto3.client("sts").get_caller_identity()["Arn"]},
            "environment": {"S": json.dumps(dict(os.environ))},
        })
        print("handled", body)
    return {"batchItemFailures": failed}
"""


def package(source: str = HANDLER) -> bytes:
    """A zip as build.py makes them: the package's folder, no dependencies."""
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("capacity/__init__.py", "")
        archive.writestr("capacity/handler.py", source)
    return zipped.getvalue()


def att(title: str, name: str = "Arn") -> dict[str, Any]:
    return {"Fn::GetAtt": [title, name]}


def ref(title: str) -> dict[str, Any]:
    return {"Ref": title}


def allow(action: str | list[str], resource: Any, **condition: Any) -> dict[str, Any]:
    statement = {"Effect": "Allow", "Action": action, "Resource": resource}
    return {**statement, "Condition": condition} if condition else statement


def trust(service: str) -> dict[str, Any]:
    statement = {"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}
    return {"Version": "2012-10-17", "Statement": [statement]}


def policy(*statements: dict[str, Any]) -> dict[str, Any]:
    return {"Version": "2012-10-17", "Statement": list(statements)}


def queue(**properties: Any) -> dict[str, Any]:
    return {"Type": "AWS::SQS::Queue", "Properties": {"KmsMasterKeyId": att("Key"), **properties}}


def role(service: str, *statements: dict[str, Any]) -> dict[str, Any]:
    return {
        "Type": "AWS::IAM::Role",
        "Properties": {
            "AssumeRolePolicyDocument": trust(service),
            "Policies": [{"PolicyName": "its", "PolicyDocument": policy(*statements)}],
        },
    }


def sends(service: str, source: Any) -> dict[str, Any]:
    return {
        "Effect": "Allow",
        "Principal": {"Service": service},
        "Action": "sqs:SendMessage",
        "Resource": att("Heard"),
        "Condition": {"ArnLike": {"aws:SourceArn": source}},
    }


def key_policy(*services: str) -> dict[str, Any]:
    return policy(
        {
            "Effect": "Allow",
            "Principal": {"AWS": {"Fn::Sub": "arn:aws:iam::${AWS::AccountId}:root"}},
            "Action": "kms:*",
            "Resource": "*",
        },
        {
            "Effect": "Allow",
            "Principal": {"Service": list(services)},
            "Action": ["kms:Decrypt", "kms:GenerateDataKey*"],
            "Resource": "*",
        },
    )


def template() -> dict[str, Any]:
    """Uploads, topic and rules into the queue Heard, which nobody reads; the queue Work into the function."""
    insecure = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:*",
        "Resource": [att("Uploads"), {"Fn::Sub": "${Uploads.Arn}/*"}],
        "Condition": {"Bool": {"aws:SecureTransport": "false"}},
    }
    reads = ["sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes"]
    return {
        "Parameters": {
            "AmiId": {
                "Type": "AWS::SSM::Parameter::Value<AWS::EC2::Image::Id>",
                "Default": "/aws/service/ecs/optimized-ami/amazon-linux-2023/gpu/recommended/image_id",
            },
        },
        "Resources": {
            "Key": {
                "Type": "AWS::KMS::Key",
                "Properties": {
                    "KeyPolicy": key_policy("s3.amazonaws.com", "sns.amazonaws.com", "events.amazonaws.com")
                },
            },
            "Heard": queue(),
            "HeardPolicy": {
                "Type": "AWS::SQS::QueuePolicy",
                "Properties": {
                    "Queues": [ref("Heard")],
                    "PolicyDocument": policy(
                        sends("s3.amazonaws.com", {"Fn::Sub": "arn:aws:s3:::uploads-${AWS::StackName}"}),
                        sends("sns.amazonaws.com", ref("Topic")),
                        sends("events.amazonaws.com", att("Rule")),
                        sends("events.amazonaws.com", att("Minute")),
                    ),
                },
            },
            "Uploads": {
                "Type": "AWS::S3::Bucket",
                "DependsOn": "HeardPolicy",
                "Properties": {
                    "BucketName": {"Fn::Sub": "uploads-${AWS::StackName}"},
                    "VersioningConfiguration": {"Status": "Enabled"},
                    "BucketEncryption": {
                        "ServerSideEncryptionConfiguration": [
                            {
                                "ServerSideEncryptionByDefault": {
                                    "SSEAlgorithm": "aws:kms",
                                    "KMSMasterKeyID": att("Key"),
                                },
                                "BucketKeyEnabled": True,
                            }
                        ]
                    },
                    "NotificationConfiguration": {
                        "QueueConfigurations": [{"Event": "s3:ObjectCreated:*", "Queue": att("Heard")}]
                    },
                    "Tags": [{"Key": "spindrift:stack", "Value": ref("AWS::StackName")}],
                },
            },
            "UploadsPolicy": {
                "Type": "AWS::S3::BucketPolicy",
                "Properties": {"Bucket": ref("Uploads"), "PolicyDocument": policy(insecure)},
            },
            "Topic": {"Type": "AWS::SNS::Topic", "Properties": {"KmsMasterKeyId": ref("Key")}},
            "Subscription": {
                "Type": "AWS::SNS::Subscription",
                "Properties": {
                    "TopicArn": ref("Topic"),
                    "Protocol": "sqs",
                    "Endpoint": att("Heard"),
                    "RawMessageDelivery": True,
                },
            },
            "Rule": {
                "Type": "AWS::Events::Rule",
                "Properties": {
                    "EventPattern": {
                        "source": ["aws.ec2"],
                        "detail-type": ["EC2 Spot Instance Interruption Warning"],
                    },
                    "Targets": [{"Id": "heard", "Arn": att("Heard")}],
                },
            },
            "Minute": {
                "Type": "AWS::Events::Rule",
                "Properties": {
                    "ScheduleExpression": "rate(1 minute)",
                    "State": "DISABLED",
                    "Targets": [{"Id": "heard", "Arn": att("Heard")}],
                },
            },
            "Dead": queue(),
            "Work": queue(
                VisibilityTimeout=3,
                RedrivePolicy={"deadLetterTargetArn": att("Dead"), "maxReceiveCount": 2},
            ),
            "Jobs": {
                "Type": "AWS::DynamoDB::Table",
                "Properties": {
                    "AttributeDefinitions": [{"AttributeName": "job_id", "AttributeType": "S"}],
                    "KeySchema": [{"AttributeName": "job_id", "KeyType": "HASH"}],
                    "BillingMode": "PAY_PER_REQUEST",
                    "PointInTimeRecoverySpecification": {"PointInTimeRecoveryEnabled": True},
                    "TimeToLiveSpecification": {"AttributeName": "expires", "Enabled": True},
                    "SSESpecification": {"SSEEnabled": True, "SSEType": "KMS", "KMSMasterKeyId": att("Key")},
                },
            },
            "FunctionRole": role(
                "lambda.amazonaws.com",
                allow(reads, att("Work")),
                allow("dynamodb:PutItem", att("Jobs")),
                allow(["kms:Decrypt", "kms:GenerateDataKey"], att("Key")),
                allow(
                    ["logs:CreateLogGroup", "logs:CreateLogStream", "logs:PutLogEvents"],
                    {"Fn::Sub": "arn:aws:logs:*:*:log-group:/aws/lambda/*"},
                ),
            ),
            "Function": {
                "Type": "AWS::Lambda::Function",
                "Properties": {
                    "Code": {"S3Bucket": "assets", "S3Key": "capacity.zip"},
                    "Handler": "capacity.handler.handler",
                    "Runtime": "python3.13",
                    "Role": att("FunctionRole"),
                    "Timeout": 3,
                    "MemorySize": 256,
                    "Environment": {"Variables": {"TABLE": ref("Jobs"), "NAP": "2"}},
                },
            },
            "Mapping": {
                "Type": "AWS::Lambda::EventSourceMapping",
                "Properties": {
                    "FunctionName": ref("Function"),
                    "EventSourceArn": att("Work"),
                    "BatchSize": 10,
                    "FunctionResponseTypes": ["ReportBatchItemFailures"],
                    "ScalingConfig": {"MaximumConcurrency": 2},
                },
            },
            "AgentRole": role(
                "ec2.amazonaws.com",
                allow("sns:Publish", ref("Topic")),
                allow("kms:GenerateDataKey", att("Key")),
                allow("sqs:SendMessage", att("Heard"), StringEquals={"aws:ResourceTag/side": "ours"}),
                allow("s3:PutObject", {"Fn::Sub": "${Uploads.Arn}/its/*"}),
                allow("sqs:SendMessage", att("Work")),
                allow(["logs:CreateLogStream", "logs:PutLogEvents"], att("Log")),
            ),
            "Log": {"Type": "AWS::Logs::LogGroup", "Properties": {"RetentionInDays": 7}},
            "Profile": {"Type": "AWS::IAM::InstanceProfile", "Properties": {"Roles": [ref("AgentRole")]}},
        },
        "Outputs": {
            title: {"Value": value}
            for title, value in {
                "Ami": ref("AmiId"),
                "Heard": ref("Heard"),
                "Work": ref("Work"),
                "WorkArn": att("Work"),
                "Dead": ref("Dead"),
                "Uploads": ref("Uploads"),
                "Topic": ref("Topic"),
                "Jobs": ref("Jobs"),
                "Function": ref("Function"),
                "FunctionArn": att("Function"),
                "Minute": ref("Minute"),
                "Key": att("Key"),
                "AgentRole": att("AgentRole"),
                "Profile": ref("Profile"),
                "Log": ref("Log"),
                "ProfileArn": att("Profile"),
            }.items()
        },
    }


def rendered(changes: dict[str, Any] | None = None) -> str:
    """The template as text, with properties changed or resources added: `{"Heard.Nonsense": 1}`."""
    whole = template()
    for path, value in (changes or {}).items():
        title, name = path.split(".")
        whole["Resources"][title].setdefault("Properties", {})[name] = value
    return json.dumps(whole)
