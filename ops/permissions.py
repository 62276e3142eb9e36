"""What whoever deploys must be allowed to do, and the service-linked roles that must be there. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from templates.settings import Settings

SPOT_FLEET_ROLE = "AWSServiceRoleForEC2SpotFleet"
LINKED_ROLES: Mapping[str, tuple[str, str]] = {
    "AWSServiceRoleForEC2Spot": ("spot.amazonaws.com", "Spot Instances"),
    SPOT_FLEET_ROLE: ("spotfleet.amazonaws.com", "Spot Fleets"),
    "AWSServiceRoleForECS": ("ecs.amazonaws.com", "the ECS cluster"),
    "AWSServiceRoleForAutoScaling": ("autoscaling.amazonaws.com", "Auto Scaling groups"),
}
"""Service-linked roles: their service, and what does not start without them. The console makes them on first use,
CloudFormation does not (EC2 User Guide, "Service-linked role for Spot Fleet"; the others alike)."""
MADE_IN_PASSING: Mapping[str, str] = {
    "AWSServiceRoleForBatch": "Batch makes it with the first environment",
    "AWSServiceRoleForImageBuilder": "Image Builder makes it with the first pipeline",
}
"""Those that a service makes itself when whoever deploys may do so, iam:CreateServiceLinkedRole (Batch API reference,
CreateComputeEnvironment; Image Builder User Guide, "Using service-linked roles")."""
ROLES: Mapping[str, tuple[str, ...]] = {
    "cluster": tuple(LINKED_ROLES),
    "image": ("AWSServiceRoleForImageBuilder",),
    "batch": (
        *("AWSServiceRoleForBatch", "AWSServiceRoleForEC2Spot"),
        *("AWSServiceRoleForECS", "AWSServiceRoleForAutoScaling"),
    ),
}
"""By template: Batch buys without Spot Fleets."""
COMMON = (
    "cloudformation:CreateChangeSet cloudformation:ExecuteChangeSet cloudformation:DescribeStacks"
    " cloudformation:DeleteStack ec2:CreateSecurityGroup ec2:AuthorizeSecurityGroupEgress ec2:CreateTags"
    " iam:CreateRole iam:PutRolePolicy iam:PassRole iam:CreateInstanceProfile iam:DeleteRole logs:CreateLogGroup"
    " logs:PutRetentionPolicy s3:PutObject s3:GetObject"
)
ACTIONS = (
    "autoscaling:CreateAutoScalingGroup autoscaling:UpdateAutoScalingGroup autoscaling:DeleteAutoScalingGroup"
    " cloudwatch:PutMetricAlarm cloudwatch:PutDashboard dynamodb:CreateTable dynamodb:UpdateContinuousBackups"
    " ec2:CreateLaunchTemplate ec2:RunInstances ecs:CreateCluster ecs:RegisterTaskDefinition ecs:CreateService"
    " ecs:DeleteService events:PutRule events:PutTargets iam:AttachRolePolicy lambda:CreateFunction"
    " lambda:CreateEventSourceMapping lambda:DeleteFunction s3:PutBucketNotification sns:CreateTopic sns:Subscribe"
    " sqs:CreateQueue sqs:SetQueueAttributes sqs:DeleteQueue"
)
BUCKETS = "s3:CreateBucket s3:PutBucketPolicy s3:PutEncryptionConfiguration s3:PutBucketVersioning ssm:GetParameters"
ACTIONS_OF: Mapping[str, str] = {
    "cluster": f"{COMMON} {BUCKETS} {ACTIONS}",
    "image": (
        f"{COMMON} iam:AttachRolePolicy iam:CreateServiceLinkedRole imagebuilder:CreateComponent"
        " imagebuilder:CreateImageRecipe imagebuilder:CreateInfrastructureConfiguration"
        " imagebuilder:CreateDistributionConfiguration imagebuilder:CreateImagePipeline"
        " imagebuilder:CreateLifecyclePolicy imagebuilder:TagResource imagebuilder:StartImagePipelineExecution"
        " imagebuilder:DeleteImagePipeline"
    ),
    "batch": (
        f"{COMMON} {BUCKETS} batch:CreateComputeEnvironment batch:UpdateComputeEnvironment batch:CreateJobQueue"
        " batch:RegisterJobDefinition batch:DescribeJobDefinitions batch:DeregisterJobDefinition batch:TagResource"
        " batch:SubmitJob batch:UpdateJobQueue batch:DeleteJobQueue batch:DeleteComputeEnvironment"
        " ec2:CreateLaunchTemplate iam:CreateServiceLinkedRole"
    ),
}
"""By template: what its deployment, its use and its end cannot do without (Service Authorization Reference)."""
EVERY, WITH_DATA, ONLY_CLUSTER = ("cluster", "image", "batch"), ("cluster", "batch"), ("cluster",)
ACTIONS_FOR: Mapping[str, tuple[tuple[str, ...], Callable[[Settings], bool], str]] = {
    "a VPC": (
        EVERY,
        lambda settings: not settings.network.vpc_id,
        "ec2:CreateVpc ec2:CreateSubnet ec2:CreateRouteTable ec2:CreateVpcEndpoint ec2:DeleteVpc",
    ),
    "a Spot Fleet": (
        ONLY_CLUSTER,
        lambda settings: settings.profile == "fleet",
        "ec2:RequestSpotFleet ec2:CancelSpotFleetRequests",
    ),
    "scaling": (
        ONLY_CLUSTER,
        lambda settings: settings.profile == "groups",
        "application-autoscaling:RegisterScalableTarget application-autoscaling:PutScalingPolicy",
    ),
    "a key": (WITH_DATA, lambda settings: settings.security.customer_key, "kms:CreateKey kms:EnableKeyRotation"),
    "shared files": (
        WITH_DATA,
        lambda settings: settings.worker.shared_files,
        "elasticfilesystem:CreateFileSystem elasticfilesystem:CreateMountTarget elasticfilesystem:CreateAccessPoint",
    ),
    "a budget": (ONLY_CLUSTER, lambda settings: settings.notify.monthly_budget_usd is not None, "budgets:ModifyBudget"),
}
"""What only some settings need, and in which templates."""


def actions_for(settings: Settings, template: str = "cluster") -> list[str]:
    """What a deployment of these settings must be allowed to do."""
    some = (actions for where, needed, actions in ACTIONS_FOR.values() if template in where and needed(settings))
    wanted = [ACTIONS_OF[template], *some]
    return " ".join(wanted).split()


def roles_for(settings: Settings, template: str) -> list[str]:
    """The service-linked roles without which it does not work."""
    return [one for one in ROLES[template] if one != SPOT_FLEET_ROLE or settings.profile == "fleet"]


def principal_of(caller: str) -> tuple[str, str]:
    """What kind of principal an ARN of GetCallerIdentity is, and its name: `("role", "deployer")`."""
    resource = caller.split(":", 5)[5]
    kind, _, rest = resource.partition("/")
    if kind == "assumed-role":
        return "role", rest.partition("/")[0]
    return kind, rest.rpartition("/")[2]
