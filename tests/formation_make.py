"""A stack with a thing of each type that the product's options use, small enough to be made in a second."""

import json
from typing import Any

from tests.localcloud_make import att, key_policy, policy, ref

HTTPS = {"IpProtocol": "tcp", "FromPort": 443, "ToPort": 443}
NFS = {"IpProtocol": "tcp", "FromPort": 2049, "ToPort": 2049}


def only_if(condition: str, thing: Any, other: Any = None) -> dict[str, Any]:
    return {"Fn::If": [condition, thing, ref("AWS::NoValue") if other is None else other]}


def publish(service: str, **condition: Any) -> dict[str, Any]:
    statement = {
        "Effect": "Allow",
        "Principal": {"Service": service},
        "Action": "sns:Publish",
        "Resource": ref("Topic"),
    }
    return {**statement, "Condition": condition} if condition else statement


def subnet(number: int) -> dict[str, Any]:
    return {
        "Type": "AWS::EC2::Subnet",
        "Condition": f"Zone{number}",
        "Properties": {
            "VpcId": ref("Vpc"),
            "CidrBlock": f"10.42.{number}.0/24",
            "AvailabilityZone": {"Fn::Select": [number - 1, {"Fn::GetAZs": ""}]},
        },
    }


def interface(service: str, **changes: Any) -> dict[str, Any]:
    return {
        "Type": "AWS::EC2::VPCEndpoint",
        "Properties": {
            "ServiceName": {"Fn::Sub": f"com.amazonaws.${{AWS::Region}}.{service}"},
            "VpcEndpointType": "Interface",
            "VpcId": ref("Vpc"),
            "SubnetIds": [only_if(f"Zone{number}", ref(f"Subnet{number}")) for number in (1, 2, 3)],
            "SecurityGroupIds": [ref("EndsGroup")],
            "PrivateDnsEnabled": True,
            **changes,
        },
    }


def group(**properties: Any) -> dict[str, Any]:
    described = {"GroupDescription": "of a test", "VpcId": ref("Vpc"), **properties}
    return {"Type": "AWS::EC2::SecurityGroup", "Properties": described}


def template() -> dict[str, Any]:
    """Two zones of three, private; a shared file system; a topic that mail, a rule, an alarm and a budget use."""
    service_role = {"Fn::Sub": "arn:aws:iam::${AWS::AccountId}:role/aws-service-role/autoscaling.amazonaws.com/*"}
    key = key_policy("sns.amazonaws.com", "events.amazonaws.com")
    key["Statement"].append(
        {
            "Effect": "Allow",
            "Principal": {"AWS": "*"},
            "Action": ["kms:Decrypt", "kms:GenerateDataKey"],
            "Resource": "*",
            "Condition": {"ArnLike": {"aws:PrincipalArn": service_role}},
        }
    )
    heard = {
        "Effect": "Allow",
        "Principal": {"Service": "sns.amazonaws.com"},
        "Action": "sqs:SendMessage",
        "Resource": att("Heard"),
    }
    resources: dict[str, Any] = {
        "Vpc": {
            "Type": "AWS::EC2::VPC",
            "Properties": {"CidrBlock": "10.42.0.0/16", "EnableDnsSupport": True, "EnableDnsHostnames": True},
        },
        "Routes": {"Type": "AWS::EC2::RouteTable", "Properties": {"VpcId": ref("Vpc")}},
        **{f"Subnet{number}": subnet(number) for number in (1, 2, 3)},
        **{
            f"Subnet{number}Routes": {
                "Type": "AWS::EC2::SubnetRouteTableAssociation",
                "Condition": f"Zone{number}",
                "Properties": {"SubnetId": ref(f"Subnet{number}"), "RouteTableId": ref("Routes")},
            }
            for number in (1, 2, 3)
        },
        "AGroup": {
            **group(SecurityGroupEgress=[{**HTTPS, "CidrIp": "0.0.0.0/0"}]),
            "Metadata": {"WaitsFor": [only_if(f"Zone{n}", ref(f"Subnet{n}Routes"), "") for n in (1, 2, 3)]},
        },
        "EndsGroup": group(SecurityGroupIngress=[{**HTTPS, "SourceSecurityGroupId": ref("AGroup")}]),
        "FilesGroup": group(SecurityGroupIngress=[{**NFS, "SourceSecurityGroupId": ref("AGroup")}]),
        "ReachFiles": {
            "Type": "AWS::EC2::SecurityGroupEgress",
            "Properties": {"GroupId": ref("AGroup"), **NFS, "DestinationSecurityGroupId": ref("FilesGroup")},
        },
        "Ecs": interface("ecs"),
        "S3": {
            "Type": "AWS::EC2::VPCEndpoint",
            "Properties": {
                "ServiceName": {"Fn::Sub": "com.amazonaws.${AWS::Region}.s3"},
                "VpcId": ref("Vpc"),
                "RouteTableIds": [ref("Routes")],
            },
        },
        "Files": {
            "Type": "AWS::EFS::FileSystem",
            "Properties": {
                "Encrypted": True,
                "ThroughputMode": "elastic",
                "BackupPolicy": {"Status": "ENABLED"},
                "LifecyclePolicies": [{"TransitionToIA": "AFTER_30_DAYS"}],
                "FileSystemTags": [{"Key": "team", "Value": "imaging"}],
            },
        },
        "Mount": {
            "Type": "AWS::EFS::MountTarget",
            "Properties": {
                "FileSystemId": ref("Files"),
                "SubnetId": ref("Subnet1"),
                "SecurityGroups": [ref("FilesGroup")],
            },
        },
        "Access": {
            "Type": "AWS::EFS::AccessPoint",
            "Properties": {
                "FileSystemId": ref("Files"),
                "PosixUser": {"Uid": "10001", "Gid": "10001"},
                "RootDirectory": {
                    "Path": "/there",
                    "CreationInfo": {"OwnerUid": "10001", "OwnerGid": "10001", "Permissions": "0750"},
                },
            },
        },
        "Key": {"Type": "AWS::KMS::Key", "Properties": {"KeyPolicy": key}},
        "Topic": {"Type": "AWS::SNS::Topic", "Properties": {"KmsMasterKeyId": att("Key")}},
        "TopicPolicy": {
            "Type": "AWS::SNS::TopicPolicy",
            "Properties": {"Topics": [ref("Topic")], "PolicyDocument": policy(publish("events.amazonaws.com"))},
        },
        "Mail": {
            "Type": "AWS::SNS::Subscription",
            "Properties": {"TopicArn": ref("Topic"), "Protocol": "email", "Endpoint": "gpu-team@example.com"},
        },
        "Heard": {"Type": "AWS::SQS::Queue"},
        "HeardPolicy": {
            "Type": "AWS::SQS::QueuePolicy",
            "Properties": {"Queues": [ref("Heard")], "PolicyDocument": policy(heard)},
        },
        "Subscription": {
            "Type": "AWS::SNS::Subscription",
            "Properties": {
                "TopicArn": ref("Topic"),
                "Protocol": "sqs",
                "Endpoint": att("Heard"),
                "RawMessageDelivery": True,
            },
        },
        "News": {
            "Type": "AWS::Events::Rule",
            "Properties": {
                "EventPattern": {"source": ["aws.ec2spotfleet"]},
                "Targets": [
                    {
                        "Id": "topic",
                        "Arn": ref("Topic"),
                        "InputTransformer": {
                            "InputPathsMap": {"kind": "$.detail-type", "what": "$.detail.sub-type"},
                            "InputTemplate": {"Fn::Sub": '"<kind> in ${AWS::StackName}: <what>"'},
                        },
                    }
                ],
            },
        },
        "Board": {
            "Type": "AWS::CloudWatch::Dashboard",
            "Properties": {"DashboardName": {"Fn::Sub": "${AWS::StackName}-board"}, "DashboardBody": '{"widgets": []}'},
        },
        "Budget": {
            "Type": "AWS::Budgets::Budget",
            "Properties": {
                "Budget": {
                    "BudgetType": "COST",
                    "TimeUnit": "MONTHLY",
                    "BudgetLimit": {"Amount": 500, "Unit": "USD"},
                    "CostFilters": {"TagKeyValue": ["user:spindrift:stack$one"]},
                },
                "NotificationsWithSubscribers": [
                    {
                        "Notification": {
                            "NotificationType": "ACTUAL",
                            "ComparisonOperator": "GREATER_THAN",
                            "Threshold": 80,
                            "ThresholdType": "PERCENTAGE",
                        },
                        "Subscribers": [{"SubscriptionType": "EMAIL", "Address": "gpu-team@example.com"}],
                    }
                ],
            },
        },
        "Kept": {"Type": "AWS::S3::Bucket"},
    }
    outputs = {
        "Console": {"Fn::FindInMap": ["Consoles", ref("AWS::Partition"), "Domain"]},
        "Ecs": ref("Ecs"),
        "Subnet": ref("Subnet1"),
        "Group": ref("AGroup"),
        "Files": ref("Files"),
        "Topic": ref("Topic"),
        "Heard": ref("Heard"),
        "Budget": ref("Budget"),
        "Key": att("Key"),
        "Kept": ref("Kept"),
        "Vpc": ref("Vpc"),
    }
    return {
        "Mappings": {"Consoles": {"aws": {"Domain": "console.aws.amazon.com"}}},
        "Conditions": {
            "Zone1": {"Fn::Equals": ["a", "a"]},
            "Zone2": {"Fn::Not": [{"Fn::Equals": [ref("AWS::Region"), "cn-north-1"]}]},
            "Zone3": {
                "Fn::Or": [{"Fn::Equals": [ref("AWS::Region"), region]} for region in ("us-west-2", "eu-west-1")]
            },
        },
        "Resources": resources,
        "Outputs": {
            name: {"Value": value, "Export": {"Name": {"Fn::Sub": f"${{AWS::StackName}}-{name}"}}}
            for name, value in outputs.items()
        },
    }


def rendered(changes: dict[str, Any] | None = None, **resources: Any) -> str:
    """The template as text, with properties changed (`{"Ecs.PrivateDnsEnabled": False}`) or resources added."""
    whole = template()
    whole["Resources"].update(resources)
    for path, value in (changes or {}).items():
        title, name = path.split(".")
        whole["Resources"][title]["Properties"][name] = value
    return json.dumps(whole)
