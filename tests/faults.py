"""Faults planted in good templates, each a small change, and the judge that must see it.

`change` gets a copy of the good template and changes it; `said` must be in what the judge says, so that it is this fault
which is seen and no other.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Fault:
    judge: str
    name: str
    said: str
    change: Callable[[dict], Any]
    of: str = "defaults"


def p(template, title):
    return template["Resources"][title]["Properties"]


def fleet(template):
    return p(template, "SpotFleet")["SpotFleetRequestConfigData"]


def launch(template):
    return p(template, "LaunchTemplate")["LaunchTemplateData"]


def pool(template):
    return fleet(template)["LaunchTemplateConfigs"][0]["Overrides"][0]


def root(template):
    return launch(template)["BlockDeviceMappings"][0]["Ebs"]


def machines(template):
    return p(template, "SpotMachines")["ComputeResources"]


def container(template, title="DefaultTask"):
    return p(template, title)["ContainerDefinitions"][0]


def statements(template, role):
    return p(template, role)["Policies"][0]["PolicyDocument"]["Statement"]


def allowed(template, role, action):
    return next(s for s in statements(template, role) if action in s["Action"])


def allow(template, role, actions, resource, **condition):
    new = {"Effect": "Allow", "Action": actions, "Resource": resource}
    statements(template, role).append({**new, "Condition": condition} if condition else new)


def door(template, policy):
    return p(template, policy)["PolicyDocument"]["Statement"]


def key_statements(template, service):
    return [
        s for s in p(template, "Key")["KeyPolicy"]["Statement"] if service in s["Principal"].get("Service", ())
    ]  # fmt: skip


def rewrite_user_data(template, old, new, title="LaunchTemplate"):
    """In the script of Fn::Sub, wherever it stands."""
    said = p(template, title)["LaunchTemplateData"]["UserData"]["Fn::Base64"]["Fn::Sub"]
    text = said[0] if isinstance(said, list) else said
    assert old in text, old
    changed = text.replace(old, new)
    whole = [changed, *said[1:]] if isinstance(said, list) else changed
    p(template, title)["LaunchTemplateData"]["UserData"]["Fn::Base64"]["Fn::Sub"] = whole


def add(template, title, kind, **properties):
    template["Resources"][title] = {"Type": kind, "Properties": properties}


def put(thing, **values):
    thing.update(values)


def drop(thing, *keys):
    for key in keys:
        del thing[key]


def everywhere(template, old, new):
    """In the whole text of the template."""
    text = json.dumps(template)
    assert old in text, old
    template.clear()
    template.update(json.loads(text.replace(old, new)))


FAULTS = [
    # What CloudFormation itself would refuse.
    Fault("cfn-lint", "a misspelt property", "E3002", lambda t: put(fleet(t), AllocationStratgy="diversified")),
    Fault("cfn-lint", "a misspelt strategy", "E3030", lambda t: put(fleet(t), AllocationStrategy="diversifed")),
    Fault("cfn-lint", "a text for a number", "E3012", lambda t: put(p(t, "DefaultJobs"), VisibilityTimeout="60")),
    Fault("cfn-lint", "a queue that hides for 13 hours", "E3034", lambda t: put(p(t, "DefaultJobs"), VisibilityTimeout=46800)),
    Fault("cfn-lint", "a reference to nothing", "NoTopic", lambda t: put(p(t, "NoticesSubscription"), TopicArn={"Ref": "NoTopic"})),
    Fault("cfn-lint", "an attribute that a role has not", "E1010", lambda t: put(fleet(t), IamFleetRole={"Fn::GetAtt": ["SpotFleetRole", "RoleArn"]})),
    Fault("cfn-lint", "a circle of dependencies", "E3004", lambda t: put(t["Resources"]["Key"], DependsOn="DefaultJobs")),
    Fault("cfn-lint", "a container without an image", "Image", lambda t: drop(container(t), "Image")),
    Fault("cfn-lint", "a Lambda runtime that has ended", "python3.7", lambda t: put(p(t, "CapacityFunction"), Runtime="python3.7")),
    Fault("cfn-lint", "every 1 minutes", "E3027", lambda t: put(p(t, "EveryMinute"), ScheduleExpression="rate(1 minutes)")),
    Fault("cfn-lint", "a type that there is not", "E3006", lambda t: put(t["Resources"]["SpotFleet"], Type="AWS::EC2::SpotFleets")),
    Fault("cfn-lint", "a type that a region lacks", "cn-north-1", lambda t: add(t, "App", "AWS::AppRunner::VpcConnector", Subnets=["subnet-11111111"])),
    Fault("cfn-lint", "a budget where CloudFormation knows none", "eu-north-1", lambda t: everywhere(t, '"me-south-1"', '"eu-north-1"'), of="everything"),
    Fault("cfn-lint", "metadata tokens that are wished for", "E3030", lambda t: put(launch(t)["MetadataOptions"], HttpTokens="wanted")),
    Fault("cfn-lint", "a key that a table does not define", "E3039", lambda t: p(t, "JobsTable")["KeySchema"][0].update(AttributeName="id")),
    Fault("cfn-lint", "an ARN of one partition", "I3042", lambda t: everywhere(t, "arn:${AWS::Partition}:iam::aws:policy", "arn:aws:iam::aws:policy")),
    Fault("cfn-lint", "a condition that is not there", "NoSuch", lambda t: put(t["Resources"]["EveryMinute"], Condition="NoSuch")),
    # What an auditor would not let pass.
    Fault("checkov", "SSH for everybody", "CKV_AWS_24 ", lambda t: put(p(t, "WorkerSecurityGroup"), SecurityGroupIngress=[{"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "CidrIp": "0.0.0.0/0"}])),
    Fault("checkov", "IMDSv1", "CKV_AWS_79 ", lambda t: put(launch(t)["MetadataOptions"], HttpTokens="optional")),
    Fault("checkov", "a bucket that may be made public", "CKV_AWS_54 ", lambda t: put(p(t, "UploadsBucket")["PublicAccessBlockConfiguration"], BlockPublicPolicy=False)),
    Fault("checkov", "a bucket without versions", "CKV_AWS_21 ", lambda t: drop(p(t, "ResultsBucket"), "VersioningConfiguration")),
    Fault("checkov", "a table that cannot go back", "CKV_AWS_28 ", lambda t: drop(p(t, "JobsTable"), "PointInTimeRecoverySpecification")),
    Fault("checkov", "a key that never changes", "CKV_AWS_7 ", lambda t: put(p(t, "Key"), EnableKeyRotation=False)),
    Fault("checkov", "a secret in a function's environment", "CKV_AWS_45 ", lambda t: put(p(t, "CapacityFunction")["Environment"]["Variables"], AWS_SECRET_ACCESS_KEY="wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")),
    Fault("checkov", "an administrator", "CKV_AWS_111 ", lambda t: allow(t, "CapacityRole", ["ec2:RunInstances"], "*")),
    # What IAM takes and never matches, or matches too often.
    Fault("parliament", "a misspelt action", "UNKNOWN_ACTION", lambda t: allow(t, "CapacityRole", ["ecs:UpdateContainerInstanceState"], "*")),
    Fault("parliament", "a service that there is not", "UNKNOWN_PREFIX", lambda t: allow(t, "CapacityRole", ["spotfleet:Modify"], "*")),
    Fault("parliament", "a misspelt condition key", "UNKNOWN_CONDITION_FOR_ACTION", lambda t: allow(t, "WorkerRole", ["ecs:UpdateTaskProtection"], [{"Fn::Sub": "arn:${AWS::Partition}:ecs:${AWS::Region}:${AWS::AccountId}:task/*"}], ArnEquals={"ecs:clustr": {"Fn::GetAtt": ["Cluster", "Arn"]}})),
    Fault("parliament", "a table for a queue", "RESOURCE_MISMATCH", lambda t: put(allowed(t, "CapacityRole", "sqs:ReceiveMessage"), Resource=[{"Fn::GetAtt": ["JobsTable", "Arn"]}])),
    Fault("parliament", "any instance may be terminated", "RESOURCE_STAR", lambda t: put(allowed(t, "CapacityRole", "ec2:TerminateInstances"), Resource="*")),
    Fault("parliament", "a misspelt operator", "UNKNOWN_OPERATOR", lambda t: allow(t, "WorkerRole", ["s3:PutObject"], [{"Fn::Sub": "${ResultsBucket.Arn}/*"}], StringEqual={"s3:prefix": "a"})),
    Fault("parliament", "a misspelt action in a queue's policy", "UNKNOWN_ACTION", lambda t: put(door(t, "NoticesPolicy")[0], Action="sqs:SendMessages")),
    Fault("cfn-policy-validator", "a managed policy that there is not", "AmazonEC2SpotFleetTagRole", lambda t: everywhere(t, "AmazonEC2SpotFleetTaggingRole", "AmazonEC2SpotFleetTagRole")),
    Fault("cfn-policy-validator", "a managed policy in the wrong place", "policy/AmazonEC2SpotFleetTaggingRole", lambda t: everywhere(t, "service-role/AmazonEC2SpotFleetTaggingRole", "AmazonEC2SpotFleetTaggingRole")),
    Fault("cfn-policy-validator", "a policy about what is not there", "NoSuchQueue", lambda t: allow(t, "CapacityRole", ["sqs:SendMessage"], [{"Fn::GetAtt": ["NoSuchQueue", "Arn"]}])),
    # What fails on the first boot.
    Fault("shellcheck", "a misspelt variable", "SC2154", lambda t: rewrite_user_data(t, "$imds/meta-data", "$imd/meta-data")),
    Fault("shellcheck", "an expansion without quotes", "SC2086", lambda t: rewrite_user_data(t, 'PUT -H "X', 'PUT -d $RANDOM$HOME -H "X')),
    Fault("systemd", "a misspelt directive", "Restarts", lambda t: rewrite_user_data(t, "Restart=always", "Restarts=always")),
    Fault("systemd", "a time of no form", "soon", lambda t: rewrite_user_data(t, "RestartSec=1", "RestartSec=soon")),
    # The nine that no judge of others finds.
    Fault("rules", "an instance type without a GPU", "m5.large has no GPU", lambda t: put(pool(t), InstanceType="m5.large")),
    Fault("rules", "an instance type that there is not", "g5.3xlarge does not exist", lambda t: p(t, "OnDemandGroup")["MixedInstancesPolicy"]["LaunchTemplate"]["Overrides"][0].update(InstanceType="g5.3xlarge")),
    Fault("rules", "a fleet role that trusts EC2", "must trust spotfleet.amazonaws.com", lambda t: p(t, "SpotFleetRole")["AssumeRolePolicyDocument"]["Statement"][0].update(Principal={"Service": "ec2.amazonaws.com"})),
    Fault("rules", "a delay without a termination", "TerminationDelay", lambda t: put(fleet(t), SpotMaintenanceStrategies={"CapacityRebalance": {"ReplacementStrategy": "launch", "TerminationDelay": 120}})),
    Fault("rules", "user data of 17 KB", "EC2 takes 16384", lambda t: rewrite_user_data(t, "set -euo pipefail", "set -euo pipefail\n#" + "x" * 17000)),
    Fault("rules", "the latest version", "$Latest: must be a number", lambda t: fleet(t)["LaunchTemplateConfigs"][0]["LaunchTemplateSpecification"].update(Version="$Latest")),
    Fault("rules", "a misspelt protocol", "'sqss' is none of", lambda t: put(p(t, "NoticesSubscription"), Protocol="sqss")),
    Fault("rules", "100 and 100", "MinimumHealthyPercent must be 0, got 100", lambda t: put(p(t, "DefaultService"), DeploymentConfiguration={"MinimumHealthyPercent": 100, "MaximumPercent": 100})),
    Fault("rules", "another attribute of the fleet's role", "must be the ARN of a role", lambda t: put(fleet(t), IamFleetRole={"Fn::GetAtt": ["SpotFleetRole", "RoleId"]})),
    Fault("rules", "the fleet role's name", "must be the ARN of a role", lambda t: put(fleet(t), IamFleetRole={"Ref": "SpotFleetRole"})),
    # Machines.
    Fault("rules", "a fleet role that cannot tag", "lacks AmazonEC2SpotFleetTaggingRole", lambda t: drop(p(t, "SpotFleetRole"), "ManagedPolicyArns")),
    Fault("rules", "a weight that is not the GPUs", "WeightedCapacity 2.0, but it has 1", lambda t: put(pool(t), WeightedCapacity=2.0)),
    Fault("rules", "a weight that the Lambda is not told", "WeightedCapacity 2.0, but the capacity Lambda counts 4", lambda t: put(pool(t), WeightedCapacity=2.0), of="plain"),
    Fault("rules", "a fleet that counts instances", "no WeightedCapacity", lambda t: drop(pool(t), "WeightedCapacity")),
    Fault("rules", "attributes for one or two GPUs", "one number of GPUs", lambda t: pool(t)["InstanceRequirements"]["AcceleratorCount"].update(Max=2), of="everything"),
    Fault("rules", "a fleet that terminates what is too much", "must be noTermination", lambda t: put(fleet(t), ExcessCapacityTerminationPolicy="default")),
    Fault("rules", "a fleet that buys before there is work", "TargetCapacity must be 0", lambda t: put(fleet(t), TargetCapacity=4)),
    Fault("rules", "a group that each update resets", "DesiredCapacity must be left out", lambda t: put(p(t, "OnDemandGroup"), DesiredCapacity="0")),
    Fault("rules", "a service that each update resets", "DesiredCount must be left out", lambda t: put(p(t, "DefaultService"), DesiredCount=0)),
    Fault("rules", "a warm pool of mixed types", "cannot have a warm pool", lambda t: add(t, "WarmPool", "AWS::AutoScaling::WarmPool", AutoScalingGroupName={"Ref": "OnDemandGroup"})),
    Fault("rules", "instances that return to the warm pool", "ReuseOnScaleIn", lambda t: put(p(t, "WarmPool"), InstanceReusePolicy={"ReuseOnScaleIn": True}), of="everything"),
    Fault("rules", "pooled instances that join", "ECS_WARM_POOLS_CHECK", lambda t: rewrite_user_data(t, "ECS_WARM_POOLS_CHECK=true", "", "WarmLaunchTemplate"), of="everything"),
    Fault("rules", "a hop for containers", "HttpPutResponseHopLimit must be 1", lambda t: put(launch(t)["MetadataOptions"], HttpPutResponseHopLimit=2)),
    Fault("rules", "IMDSv1", "HttpTokens must be required", lambda t: drop(launch(t)["MetadataOptions"], "HttpTokens")),
    Fault("rules", "an SSH key", "there is no SSH", lambda t: put(launch(t), KeyName="mine")),
    Fault("rules", "a root that cannot boot", "cannot boot", lambda t: put(root(t), VolumeType="st1")),
    Fault("rules", "a root under another name", "no block device /dev/xvda", lambda t: launch(t)["BlockDeviceMappings"][0].update(DeviceName="/dev/sda1")),
    Fault("rules", "a root smaller than its image", "has 8 GiB", lambda t: put(root(t), VolumeSize=8)),
    Fault("rules", "a root under the customer key", "wants grants", lambda t: put(root(t), KmsKeyId={"Ref": "Key"})),
    Fault("rules", "an open root", "is not encrypted", lambda t: drop(root(t), "Encrypted")),
    Fault("rules", "user data that calls aws", "calls `aws`", lambda t: rewrite_user_data(t, "set -euo pipefail", "set -euo pipefail\naws s3 ls")),
    Fault("rules", "an instance that joins no cluster", "lacks ECS_CLUSTER=", lambda t: rewrite_user_data(t, "ECS_CLUSTER=", "ECS_CLUSTERS=")),
    # Work.
    Fault("rules", "a worker that is killed after 30 s", "no StopTimeout", lambda t: drop(container(t), "StopTimeout")),
    Fault("rules", "a worker that stops longer than a notice", "StopTimeout must be 2 to 110", lambda t: put(container(t), StopTimeout=120)),
    Fault("rules", "a worker without a GPU", "asks for no GPU", lambda t: drop(container(t), "ResourceRequirements")),
    Fault("rules", "a worker on its host's network", "host network", lambda t: put(p(t, "DefaultTask"), NetworkMode="host")),
    Fault("rules", "a worker that writes to its host", "must be mounted ReadOnly", lambda t: next(m for m in container(t)["MountPoints"] if m["SourceVolume"] == "host").update(ReadOnly=False)),
    Fault("rules", "a lifecycle that no instance has", "attribute:lifecycle == ondemand", lambda t: everywhere(t, "attribute:lifecycle == on-demand", "attribute:lifecycle == ondemand"), of="everything"),
    Fault("rules", "shared files in clear on the way", "TransitEncryption must be ENABLED", lambda t: everywhere(t, '"TransitEncryption": "ENABLED"', '"TransitEncryption": "DISABLED"'), of="everything"),
    Fault("rules", "shared files for whoever reaches them", "AuthorizationConfig.IAM", lambda t: everywhere(t, '"IAM": "ENABLED"', '"IAM": "DISABLED"'), of="everything"),
    Fault("rules", "shared files in clear on disk", "the file system is not encrypted", lambda t: put(p(t, "SharedFiles"), Encrypted=False), of="everything"),
    # Messages.
    Fault("rules", "a message that comes back while it is handled", "is less than the Timeout", lambda t: put(p(t, "Notices"), VisibilityTimeout=5)),
    Fault("rules", "a message that comes back for ever", "no RedrivePolicy", lambda t: drop(p(t, "Notices"), "RedrivePolicy")),
    Fault("rules", "a batch that fails whole", "ReportBatchItemFailures", lambda t: drop(p(t, "CapacitySource"), "FunctionResponseTypes")),
    Fault("rules", "a job lost to its interruptions", "maxReceiveCount must be at least", lambda t: p(t, "DefaultJobs")["RedrivePolicy"].update(maxReceiveCount=3)),
    Fault("rules", "dead letters of four days", "MessageRetentionPeriod of a dead-letter queue", lambda t: drop(p(t, "DeadLetter"), "MessageRetentionPeriod")),
    Fault("rules", "a queue that S3 cannot write to", "does not let s3.amazonaws.com write", lambda t: t["Resources"].pop("UploadEventsPolicy")),
    Fault("rules", "a queue that the rules cannot write to", "does not let events.amazonaws.com write", lambda t: p(t, "NoticesPolicy")["PolicyDocument"].update(Statement=[s for s in door(t, "NoticesPolicy") if "events" not in str(s["Principal"])])),
    Fault("rules", "a queue open to rules of every account", "without aws:SourceArn", lambda t: [s.pop("Condition") for s in door(t, "NoticesPolicy")]),
    Fault("rules", "a key that EventBridge cannot use", "does not let events.amazonaws.com use it", lambda t: [s["Principal"]["Service"].remove("events.amazonaws.com") for s in key_statements(t, "events.amazonaws.com")]),
    Fault("rules", "a key for everybody", "its policy is for everybody", lambda t: p(t, "Key")["KeyPolicy"]["Statement"].append({"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "kms:Decrypt", "Resource": "*"})),
    Fault("rules", "a topic under AWS's own key", "an AWS-managed key", lambda t: put(p(t, "NoticesTopic"), KmsMasterKeyId="alias/aws/sns")),
    Fault("rules", "a table under another key", "does not name the stack's key", lambda t: p(t, "JobsTable")["SSESpecification"].pop("KMSMasterKeyId")),
    Fault("rules", "a queue that nobody encrypts", "not encrypted", lambda t: drop(p(t, "DefaultJobs"), "SqsManagedSseEnabled"), of="plain"),
    Fault("rules", "a bucket before its queue is open", "DependsOn lacks UploadEventsPolicy", lambda t: drop(t["Resources"]["UploadsBucket"], "DependsOn")),
    Fault("rules", "mail for a queue", "does not go with the endpoint", lambda t: put(p(t, "OperatorsMail"), Protocol="sqs"), of="everything"),
    Fault("rules", "an event that AWS does not send", "sends no 'EC2 Spot Interruption Warning'", lambda t: everywhere(t, "EC2 Spot Instance Interruption Warning", "EC2 Spot Interruption Warning")),
    Fault("rules", "an alarm that nobody hears", "no AlarmActions", lambda t: drop(p(t, "DeadLetterAlarm"), "AlarmActions")),
    Fault("rules", "an alarm that does not say what to do", "no AlarmDescription", lambda t: drop(p(t, "DeadLetterAlarm"), "AlarmDescription")),
    Fault("rules", "an alarm undecided about silence", "no TreatMissingData", lambda t: drop(p(t, "DeadLetterAlarm"), "TreatMissingData")),
    Fault("rules", "an alarm on a dimension that there is not", "has no metric by", lambda t: p(t, "DeadLetterAlarm")["Dimensions"][0].update(Name="Queue")),
    Fault("rules", "a sum over an idle queue", "without FILL", lambda t: everywhere(t, "FILL(", "ABS("), of="groups"),
    # Access.
    Fault("rules", "an action with a wildcard", "sqs:*: actions must be named", lambda t: put(allowed(t, "CapacityRole", "sqs:ReceiveMessage"), Action=["sqs:*"])),
    Fault("rules", "everything but", "NotAction", lambda t: statements(t, "CapacityRole").append({"Effect": "Allow", "NotAction": "iam:PassRole", "Resource": "*"})),
    Fault("rules", "a role with a name", "RoleName must be left out", lambda t: put(p(t, "CapacityRole"), RoleName="capacity")),
    Fault("rules", "one partition", "the partition is fixed (arn:aws:)", lambda t: everywhere(t, "arn:${AWS::Partition}:iam::aws:policy", "arn:aws:iam::aws:policy")),
    Fault("rules", "one region", "the region is fixed (eu-west-1a)", lambda t: put(p(t, "Subnet1"), AvailabilityZone="eu-west-1a")),
    Fault("rules", "one account", "the account is fixed", lambda t: everywhere(t, ":${AWS::AccountId}:", ":123456789012:")),
    Fault("rules", "one domain", "the domain is fixed", lambda t: everywhere(t, "${AWS::URLSuffix}", "amazonaws.com")),
    Fault("rules", "an inbound rule on instances", "nothing has to come in", lambda t: put(p(t, "WorkerSecurityGroup"), SecurityGroupIngress=[{"IpProtocol": "tcp", "FromPort": 443, "ToPort": 443, "CidrIp": "10.0.0.0/8"}])),
    Fault("rules", "a bucket that speaks in clear", "aws:SecureTransport", lambda t: t["Resources"].pop("ResultsBucketPolicy")),
    # Upkeep.
    Fault("rules", "a bucket that goes with the stack", "DeletionPolicy must be Retain", lambda t: drop(t["Resources"]["UploadsBucket"], "DeletionPolicy")),
    Fault("rules", "jobs that go when their queue is replaced", "UpdateReplacePolicy must be Retain", lambda t: drop(t["Resources"]["DefaultJobs"], "UpdateReplacePolicy")),
    Fault("rules", "logs that are kept for ever", "no RetentionInDays", lambda t: drop(p(t, "WorkerLogs"), "RetentionInDays")),
    Fault("rules", "a function that makes its own logs", "names no log group", lambda t: drop(p(t, "CapacityFunction"), "LoggingConfig")),
    Fault("rules", "an output that is not exported", "must be exported as", lambda t: drop(t["Outputs"]["ClusterName"], "Export")),
    # Images.
    Fault("cfn-lint", "a build on Spot, which there is not", "E3002", lambda t: put(p(t, "Infrastructure"), SpotPrice="0.1"), of="image"),
    Fault("checkov", "SSH for everybody while it is built", "CKV_AWS_24 ", lambda t: put(p(t, "WorkerSecurityGroup"), SecurityGroupIngress=[{"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "CidrIp": "0.0.0.0/0"}]), of="image"),
    Fault("parliament", "an asset that is a bucket", "RESOURCE_MISMATCH", lambda t: put(allowed(t, "BuildRole", "s3:GetObject"), Resource=[{"Fn::Sub": "arn:${AWS::Partition}:s3:::${AssetsBucket}"}]), of="image"),
    Fault("cfn-policy-validator", "a policy of Image Builder that there is not", "EC2ImageBuilderExecutorPolicy", lambda t: everywhere(t, "EC2ImageBuilderExecutionPolicy", "EC2ImageBuilderExecutorPolicy"), of="image"),
    Fault("shellcheck", "a misspelt variable of a component", "SC2154", lambda t: everywhere(t, "docker pull --quiet \\\"$image\\\"", "docker pull --quiet \\\"$imag\\\""), of="image"),
    Fault("systemd", "a misspelt directive of a component", "RemainAfterExits", lambda t: everywhere(t, "RemainAfterExit=yes", "RemainAfterExits=yes"), of="image"),
    Fault("rules", "a component that is no YAML", "must be YAML", lambda t: everywhere(t, "phases:\\n", "phases: [\\n"), of="image"),
    Fault("rules", "a component with a phase that there is not", "must be YAML", lambda t: everywhere(t, "name: test", "name: tests"), of="image"),
    Fault("rules", "a component with a variable of Image Builder's", "Data has {{", lambda t: everywhere(t, "docker image inspect", "docker image inspect --format '{{.Id}}'"), of="image"),
    Fault("rules", "a component that is too long", "characters", lambda t: everywhere(t, "docker image inspect", "#" * 16_000), of="image"),
    Fault("rules", "a component that calls aws", "Data calls `aws`", lambda t: everywhere(t, "docker image inspect", "aws ecr"), of="image"),
    Fault("rules", "a recipe that can be made once", "Version must have one x", lambda t: put(p(t, "Recipe"), Version="1.0.0"), of="image"),
    Fault("rules", "IMDSv1 while it is built", "must be IMDSv2", lambda t: put(p(t, "Infrastructure")["InstanceMetadataOptions"], HttpTokens="optional"), of="image"),
    Fault("rules", "an SSH key for the build", "there is no SSH", lambda t: put(p(t, "Infrastructure"), KeyPair="mine"), of="image"),
    Fault("rules", "a failed build that runs on", "TerminateInstanceOnFailure", lambda t: put(p(t, "Infrastructure"), TerminateInstanceOnFailure=False), of="image"),
    Fault("rules", "an image's id where Image Builder may not write", "below /imagebuilder/", lambda t: everywhere(t, "/imagebuilder/${AWS::StackName}/ami", "/spindrift/ami"), of="image"),
    Fault("rules", "snapshots that stay", "Amis and Snapshots", lambda t: put(p(t, "CleanUp")["PolicyDetails"][0]["Action"]["IncludeResources"], Snapshots=False), of="image"),
    Fault("rules", "an image in use that goes", "no LastLaunched", lambda t: drop(p(t, "CleanUp")["PolicyDetails"][0], "ExclusionRules"), of="image"),
    Fault("rules", "images of another recipe that go", "no LifecyclePolicy for Recipe", lambda t: put(p(t, "CleanUp")["ResourceSelection"]["Recipes"][0], Name="other"), of="image"),
    # Batch.
    Fault("cfn-lint", "a strategy of Batch that there is not", "E3030", lambda t: put(machines(t), AllocationStrategy="SPOT_PRICE_OPTIMIZED"), of="batch"),
    Fault("cfn-lint", "a reference of Batch's to nothing", "NoLogs", lambda t: put(p(t, "DefaultJob")["ContainerProperties"]["LogConfiguration"]["Options"], **{"awslogs-group": {"Ref": "NoLogs"}}), of="batch by default"),
    Fault("checkov", "results of Batch without versions", "CKV_AWS_21 ", lambda t: drop(p(t, "ResultsBucket"), "VersioningConfiguration"), of="batch"),
    Fault("checkov", "IMDSv1 on machines of Batch", "CKV_AWS_79 ", lambda t: put(launch(t)["MetadataOptions"], HttpTokens="optional"), of="batch"),
    Fault("parliament", "a manifest that is a bucket", "RESOURCE_MISMATCH", lambda t: put(statements(t, "WorkerRole")[0], Resource=[{"Fn::GetAtt": ["ResultsBucket", "Arn"]}]), of="batch"),
    Fault("parliament", "a misspelt action of Batch's machines", "UNKNOWN_ACTION", lambda t: allow(t, "InstanceRole", ["ecs:Polls"], "*"), of="batch"),
    Fault("cfn-policy-validator", "a policy of Batch about what is not there", "NoSuchBucket", lambda t: allow(t, "WorkerRole", ["s3:ListBucket"], [{"Fn::GetAtt": ["NoSuchBucket", "Arn"]}]), of="batch"),
    Fault("shellcheck", "a misspelt variable of Batch's machines", "SC2154", lambda t: put(launch(t), UserData={"Fn::Base64": "#!/bin/bash\necho \"ECS_CLUSTER=$cluster\"\n"}), of="batch"),
    Fault("systemd", "a misspelt directive of Batch's machines", "Restarts", lambda t: put(launch(t), UserData={"Fn::Base64": "#!/bin/bash\ncat > /etc/systemd/system/own.service <<'END'\n[Service]\nExecStart=/bin/true\nRestarts=no\nEND\n"}), of="batch"),
    Fault("rules", "machines that cannot be renewed", "AllocationStrategy 'BEST_FIT'", lambda t: put(machines(t), AllocationStrategy="BEST_FIT"), of="batch"),
    Fault("rules", "a role of our own for Batch", "ServiceRole must be left out", lambda t: put(p(t, "SpotMachines"), ServiceRole={"Fn::GetAtt": ["InstanceRole", "Arn"]}), of="batch"),
    Fault("rules", "an environment made anew", "ReplaceComputeEnvironment must be false", lambda t: drop(p(t, "SpotMachines"), "ReplaceComputeEnvironment"), of="batch"),
    Fault("rules", "vCPUs that an update resets", "DesiredvCpus is Batch's own", lambda t: put(machines(t), DesiredvCpus=4), of="batch"),
    Fault("rules", "a launch template whose changes Batch does not see", "must be a number", lambda t: put(machines(t)["LaunchTemplate"], Version="$Latest"), of="batch"),
    Fault("rules", "machines without a GPU", "optimal", lambda t: put(machines(t), InstanceTypes=["optimal"]), of="batch"),
    Fault("rules", "a job that ends with its machine", "would be lost", lambda t: p(t, "DefaultJob")["RetryStrategy"].update(EvaluateOnExit=[{"Action": "EXIT", "OnReason": "*"}]), of="batch"),
    Fault("rules", "a job of one attempt", "Attempts must be above 1", lambda t: put(p(t, "DefaultJob")["RetryStrategy"], Attempts=1), of="batch"),
    Fault("rules", "a rejected input that is tried again", "exit code 3 must end the job", lambda t: p(t, "DefaultJob")["RetryStrategy"]["EvaluateOnExit"].pop(2), of="batch"),
    Fault("rules", "a job whose definition an update takes away", "SkipDeregisterOnUpdate must be true", lambda t: put(p(t, "DefaultJob")["ResourceRetentionPolicy"], SkipDeregisterOnUpdate=False), of="batch"),
    Fault("rules", "a job without an end", "no Timeout", lambda t: drop(p(t, "DefaultJob"), "Timeout"), of="batch"),
    Fault("rules", "a job that Batch ends first", "above SPINDRIFT_JOB_SECONDS", lambda t: put(p(t, "DefaultJob")["Timeout"], AttemptDurationSeconds=900), of="batch"),
    Fault("rules", "a job without a GPU", "asks for no GPU", lambda t: p(t, "DefaultJob")["ContainerProperties"]["ResourceRequirements"].pop(), of="batch"),
    Fault("rules", "a job that may write to its host", "must be mounted ReadOnly", lambda t: put(p(t, "DefaultJob")["ContainerProperties"]["MountPoints"][1], ReadOnly=False), of="batch by default"),
    Fault("rules", "shared files of a job in clear", "TransitEncryption must be ENABLED", lambda t: put(p(t, "DefaultJob")["ContainerProperties"]["Volumes"][1]["EfsVolumeConfiguration"], TransitEncryption="DISABLED"), of="batch"),
    Fault("rules", "a parameter without a word", "no Description", lambda t: drop(t["Parameters"]["WorkerImage"], "Description")),
]  # fmt: skip

DOCKERFILE_FAULTS = [
    ("an image without a version", "DL3006", "FROM ${BASE_IMAGE}", "FROM python"),
    ("a user without a number", "DL3066", "USER 10001", "USER worker"),
    ("a shell that swallows SIGTERM", "DL3025", 'ENTRYPOINT ["python", "-m", "gpu_worker"]', "ENTRYPOINT python -m gpu_worker"),
    ("a cache in a layer", "DL3042", "pip install --no-cache-dir", "pip install"),
]  # fmt: skip
"""(name, what hadolint says, text of the Dockerfile, text in its place)"""
