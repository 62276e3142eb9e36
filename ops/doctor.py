"""Will what the settings ask for work in this account? One finding a line, as soon as it is known.

What is decided from an answer is a function of the answer; what asks AWS is below it and decides nothing. An answer
that AWS does not give is told as such: "could not look" is neither good nor bad, and never "all well".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil
from typing import Any, Literal

from botocore.exceptions import BotoCoreError, ClientError

from ops.account import Account, code, told
from templates.image import ECS_GPU_IMAGE
from templates.instance_types import INSTANCE_TYPES, InstanceType
from templates.machines import requirements
from templates.network import USUAL_ZONES, ZONES
from templates.settings import OnDemand, Settings, Worker

OK: Literal["ok"] = "ok"
PROBLEM: Literal["problem"] = "problem"
COULD_NOT_LOOK: Literal["could not look"] = "could not look"
State = Literal["ok", "problem", "could not look"]
Market = Literal["spot", "on-demand"]

QUOTAS: Mapping[tuple[Market, str], tuple[str, str]] = {
    ("spot", "g"): ("L-3819A6DF", "All G and VT Spot Instance Requests"),
    ("spot", "p"): ("L-7212CCBC", "All P4, P3 and P2 Spot Instance Requests"),
    ("spot", "p5"): ("L-C4BD4855", "All P5 Spot Instance Requests"),
    ("on-demand", "g"): ("L-DB2E81BA", "Running On-Demand G and VT instances"),
    ("on-demand", "p"): ("L-417A185B", "Running On-Demand P instances"),
    **{("on-demand", letter): ("L-1216C47A", "Running On-Demand Standard instances") for letter in "acdimrt"},
}
"""Code and name of EC2's quotas, in vCPUs, by market and family (EC2 User Guide, "Spot Instance quotas" and
"On-Demand Instance quotas"; 0 in a new account)."""
LINKED_ROLES: Mapping[str, tuple[str, str]] = {
    "AWSServiceRoleForEC2Spot": ("spot.amazonaws.com", "Spot Instances"),
    "AWSServiceRoleForEC2SpotFleet": ("spotfleet.amazonaws.com", "Spot Fleets"),
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
ECR = re.compile(
    r"(?P<account>\d{12})\.dkr\.ecr(-fips)?\.(?P<region>[a-z0-9-]+)\.amazonaws\.com(\.cn)?/"
    r"(?P<repository>[a-z0-9][a-z0-9._/-]*)(@(?P<digest>sha256:[0-9a-f]{64})|:(?P<tag>[\w.-]+))?"
)
ROOT_DEVICE = "/dev/xvda"
"""The root of the ECS AL2023 images, whose size the launch template sets."""
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
        " batch:RegisterJobDefinition batch:TagResource batch:SubmitJob batch:UpdateJobQueue batch:DeleteJobQueue"
        " batch:DeleteComputeEnvironment ec2:CreateLaunchTemplate iam:CreateServiceLinkedRole"
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


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    state: State
    what: str
    do: str = ""
    """What the operator can do about it."""


@dataclass(frozen=True)
class Offered:
    """An instance type as EC2 describes it."""

    size: InstanceType
    markets: frozenset[str]
    """`spot`, `on-demand`, `capacity-block`."""


def family(name: str, market: Market) -> str:
    """Which quota an instance type counts against: `g`, `p` or `p5`. That of newer P is not known."""
    generation = name[:2]
    if market == "spot" and generation > "p4":
        return generation
    return name[0]


def vcpus_for(units: int, size: InstanceType) -> int:
    """The vCPUs of as many whole instances as `units` GPUs take."""
    return ceil(units / size.gpus) * size.vcpus


def weigh_quota(
    market: Market, group: str, limit: float, units: int, key: str, sizes: Sequence[InstanceType]
) -> Finding:
    """A quota of `limit` vCPUs against the `units` that `key` of the settings could ask of these sizes."""
    quota, name = QUOTAS[market, group]
    needs = sorted(vcpus_for(units, size) for size in sizes)
    allows = sorted(min(units, int(limit // size.vcpus) * size.gpus) for size in sizes)
    least, most = f"{needs[0]:,}", f"{needs[-1]:,}"
    subject = f"quota {name} ({quota}): {limit:,.0f} vCPUs"
    span = most if least == most else f"{least} to {most}, by the types that it gets"
    asked = f"{key} = {units} takes {span}"
    raised = (
        "aws service-quotas request-service-quota-increase --service-code ec2 "
        f"--quota-code {quota} --desired-value {needs[-1]}"
    )
    if limit >= needs[-1]:
        return Finding(OK, f"{subject}; {asked}")
    if not allows[-1]:
        none = "is nothing: not one instance will ever start" if limit == 0 else "is less than one instance"
        return Finding(PROBLEM, f"{subject} {none}; {asked}", raised)
    allowed = f"{allows[0]} to {allows[-1]}" if allows[0] != allows[-1] else f"{allows[0]}"
    return Finding(
        PROBLEM, f"{subject} allow {allowed} of {units} units; {asked}", f"{raised}, or lower {key} to {allows[0] or 1}"
    )


def weigh_build(limit: float, quota: str, name: str, kind: str, vcpus: int) -> Finding:
    """A quota against one instance of a type that an image is baked on; there is one at a time."""
    subject = f"quota {name} ({quota}): {limit:,.0f} vCPUs; a build takes {vcpus} ({kind})"
    if limit >= vcpus:
        return Finding(OK, subject)
    raised = (
        "aws service-quotas request-service-quota-increase --service-code ec2 "
        f"--quota-code {quota} --desired-value {vcpus}"
    )
    return Finding(PROBLEM, subject, f"{raised}, or choose other image.instance_types")


def weigh_pools(names: Sequence[str], zones: Collection[str], there: Collection[tuple[str, str]]) -> list[Finding]:
    """The pools (type, zone) that exist, against those that the settings name."""
    nowhere = [name for name in names if not any((name, zone) in there for zone in zones)]
    missing = [
        f"{name} in {zone}" for name in names if name not in nowhere for zone in zones if (name, zone) not in there
    ]
    found = len(names) * len(zones) - len(missing) - len(nowhere) * len(zones)
    findings = [
        Finding(PROBLEM, f"instance type {name} is in none of {', '.join(zones)}", f"take {name} out of the settings")
        for name in nowhere
    ]
    without = f"; passed over: {', '.join(missing)}" if missing else ""
    if found:
        findings.append(Finding(OK, f"pools (type and zone): {found} of {len(names) * len(zones)} exist{without}"))
    return findings


def weigh_attributes(names: Sequence[str], zones: Collection[str], there: Collection[tuple[str, str]]) -> Finding:
    """The types that EC2 finds by attributes, and the pools that they make."""
    pools = [(name, zone) for name in names for zone in zones if (name, zone) in there]
    if not pools:
        what = f"compute.attributes: no type in {', '.join(zones)} satisfies them"
        return Finding(PROBLEM, what, "widen compute.attributes")
    return Finding(OK, f"compute.attributes: {len(pools)} pools today, of {', '.join(names)}")


def weigh_task(worker: Worker, sizes: Mapping[str, InstanceType]) -> list[Finding]:
    """One task for each GPU, against what ECS will register of each type."""
    tight = min(sizes, key=lambda name: sizes[name].memory_mib_per_gpu)
    slow = min(sizes, key=lambda name: sizes[name].cpu_per_gpu)
    memory, cpu = sizes[tight].memory_mib_per_gpu, sizes[slow].cpu_per_gpu
    findings = []
    if worker.memory_mib > memory:
        what = f"task: {worker.memory_mib:,} MiB do not fit beside one GPU of {tight}, which leaves {memory:,} MiB"
        findings.append(Finding(PROBLEM, what, f"lower worker.memory_mib to {memory}, or take {tight} out"))
    if worker.cpu > cpu:
        what = f"task: {worker.cpu:,} CPU units do not fit beside one GPU of {slow}, which has {cpu:,}"
        findings.append(Finding(PROBLEM, what, f"lower worker.cpu to {cpu}, or take {slow} out"))
    fits = (
        f"task: {worker.cpu:,} CPU units and {worker.memory_mib:,} MiB fit beside each GPU; the tightest are "
        f"{cpu:,} units ({slow}) and {memory:,} MiB ({tight})"
    )
    return findings or [Finding(OK, fits)]


def weigh_types(wanted: Collection[tuple[str, Market]], offered: Mapping[str, Offered]) -> Iterator[Finding]:
    """What EC2 says of each type, against our table and the market that it is wanted from. The pools tell of others."""
    for name, market in wanted:
        if name in offered and market not in offered[name].markets:
            yield Finding(PROBLEM, f"instance type {name}: EC2 does not sell it as {market}", f"take {name} out")
    for name in sorted({name for name, _ in wanted} & offered.keys()):
        size, known = offered[name].size, INSTANCE_TYPES.get(name)
        if known and known != size:
            yield Finding(
                PROBLEM,
                f"instance type {name}: EC2 has {size.gpus} GPUs, {size.vcpus} vCPUs, {size.memory_mib} MiB, our table "
                f"{known.gpus}, {known.vcpus}, {known.memory_mib}",
                "correct templates/instance_types.py, or its weight and its tasks are wrong",
            )


def weigh_image(parameter: str, image: Mapping[str, Any], root_gib: int) -> Finding:
    """The instances' image: for x86, and with a root that the launch template knows and is large enough for."""
    subject = f"image of the instances: {parameter} is {image['ImageId']}"
    if image["Architecture"] != "x86_64":
        return Finding(PROBLEM, f"{subject}, for {image['Architecture']}", "choose an image for x86_64")
    if image["RootDeviceName"] != ROOT_DEVICE:
        what = f"{subject} with its root at {image['RootDeviceName']}; the launch template sizes {ROOT_DEVICE}"
        return Finding(PROBLEM, what, "choose an image that is built on Amazon Linux 2023")
    (size,) = [
        disk["Ebs"]["VolumeSize"] for disk in image["BlockDeviceMappings"] if disk.get("DeviceName") == ROOT_DEVICE
    ]
    if size > root_gib:
        what = f"{subject} of {size} GiB; compute.root_volume_gib is {root_gib}"
        return Finding(PROBLEM, what, f"raise compute.root_volume_gib to {size} or more")
    return Finding(OK, f"{subject}, {size} GiB on a root volume of {root_gib}")


def weigh_subnets(
    vpc: str, wanted: Sequence[str], zones: Mapping[str, tuple[str, str]], one_each: bool = True
) -> Iterator[Finding]:
    """The subnets of a given VPC. `zones`: of those that exist, the VPC and the zone. `one_each`: of a zone."""
    for subnet in wanted:
        if subnet not in zones:
            yield Finding(PROBLEM, f"{subnet} does not exist in this region", "correct network.subnet_ids")
        elif zones[subnet][0] != vpc:
            yield Finding(PROBLEM, f"{subnet} is in {zones[subnet][0]}, not in {vpc}", "correct network.subnet_ids")
    places = [zones[subnet][1] for subnet in wanted if subnet in zones]
    for zone in sorted({place for place in places if one_each and places.count(place) > 1}):
        twice = ", ".join(subnet for subnet in wanted if subnet in zones and zones[subnet][1] == zone)
        what = f"{twice} are all in {zone}: a Spot Fleet takes one subnet of a zone"
        yield Finding(PROBLEM, what, "keep one of them in network.subnet_ids")


def actions_for(settings: Settings, template: str = "cluster") -> list[str]:
    """What a deployment of these settings must be allowed to do."""
    some = (actions for where, needed, actions in ACTIONS_FOR.values() if template in where and needed(settings))
    wanted = [ACTIONS_OF[template], *some]
    return " ".join(wanted).split()


def principal_of(caller: str) -> tuple[str, str]:
    """What kind of principal an ARN of GetCallerIdentity is, and its name: `("role", "deployer")`."""
    resource = caller.split(":", 5)[5]
    kind, _, rest = resource.partition("/")
    if kind == "assumed-role":
        return "role", rest.partition("/")[0]
    return kind, rest.rpartition("/")[2]


class Doctor:
    """One examination. Nothing is changed, unless `fix` is set; then missing service-linked roles are made."""

    def __init__(
        self,
        account: Account,
        settings: Settings,
        *,
        template: str = "cluster",
        image: str | None,
        bucket: str | None,
        ami: str = ECS_GPU_IMAGE,
        fix: bool,
    ) -> None:
        """`image`: the worker's. `ami`: the SSM parameter that is to be AmiId."""
        self._account = account
        self._settings = settings
        self._template = template
        self._ami = ami
        self._image = image
        self._bucket = bucket
        self._fix = fix

    def examine(self) -> Iterator[Finding]:
        """Every finding, when it is known. Without credentials there is only that one."""
        caller = self._credentials()
        yield caller
        if caller.state != OK:
            return
        machines: dict[str, Callable[[], Iterable[Finding]]] = {
            "instance types": self._types,
            "Spot quota": self._spot_quotas,
            "On-Demand quota": self._on_demand_quotas,
        }
        checks: dict[str, Callable[[], Iterable[Finding]]] = {
            "permissions": self._permissions,
            "service-linked roles": self._linked_roles,
            "subnets": self._subnets,
            **({"On-Demand quota": self._build_quota} if self._template == "image" else machines),
            "image of the instances": self._machine_image,
            "worker's image": self._worker_image,
            "assets bucket": self._assets_bucket,
        }
        for subject, check in checks.items():
            try:
                yield from check()
            except (BotoCoreError, ClientError) as error:
                yield Finding(COULD_NOT_LOOK, f"{subject}: {told(error)}")

    def _credentials(self) -> Finding:
        if not self._account.region:
            return Finding(
                PROBLEM, "region: none is set", "export AWS_DEFAULT_REGION=us-east-1, or set it in a profile"
            )
        try:
            self._caller = str(self._account.client("sts").get_caller_identity()["Arn"])
        except (BotoCoreError, ClientError) as error:
            return Finding(PROBLEM, f"credentials: {told(error)}", "aws configure, or aws sso login")
        return Finding(OK, f"credentials: {self._caller} in {self._account.region}")

    def _permissions(self) -> Iterator[Finding]:
        kind, name = principal_of(self._caller)
        if kind == "root":
            yield Finding(OK, "permissions: the root user may do everything (a role would be safer)")
            return
        if kind == "role":
            # A role's path is not in the ARN of its session.
            source = self._account.client("iam").get_role(RoleName=name)["Role"]["Arn"]
        elif kind == "user":
            source = self._caller
        else:
            yield Finding(COULD_NOT_LOOK, f"permissions: IAM cannot simulate a {kind}")
            return
        actions = actions_for(self._settings, self._template)
        results = self._account.all(
            "iam", "simulate_principal_policy", "EvaluationResults", PolicySourceArn=source, ActionNames=actions
        )
        denied = sorted(one["EvalActionName"] for one in results if one["EvalDecision"] != "allowed")
        if denied:
            what = f"permissions: {source} may not {', '.join(denied)}"
            yield Finding(PROBLEM, what, "have these allowed, or deploy as somebody else")
        else:
            yield Finding(OK, f"permissions: {source} may do the {len(actions)} actions that a deployment needs most")

    def _linked_roles(self) -> Iterator[Finding]:
        iam = self._account.client("iam")
        for name in ROLES[self._template]:
            if name == "AWSServiceRoleForEC2SpotFleet" and self._settings.profile != "fleet":
                continue
            try:
                iam.get_role(RoleName=name)
            except ClientError as error:
                if code(error) != "NoSuchEntity":
                    raise
                if name in MADE_IN_PASSING:
                    yield Finding(OK, f"service-linked role {name}: not there yet; {MADE_IN_PASSING[name]}")
                    continue
                service, purpose = LINKED_ROLES[name]
                what = f"service-linked role {name} is missing: without it {purpose} do not start"
                if self._fix:
                    yield from self._make_role(name, service)
                else:
                    by_hand = f"aws iam create-service-linked-role --aws-service-name {service}"
                    yield Finding(PROBLEM, what, f"add --fix to this command, or {by_hand}")
            else:
                yield Finding(OK, f"service-linked role {name}")

    def _make_role(self, name: str, service: str) -> Iterator[Finding]:
        yield Finding(OK, f"service-linked role {name} is missing; --fix makes it now")
        try:
            self._account.client("iam").create_service_linked_role(AWSServiceName=service)
        except (BotoCoreError, ClientError) as error:
            yield Finding(PROBLEM, f"service-linked role {name} was not made: {told(error)}", "have somebody make it")
        else:
            yield Finding(OK, f"service-linked role {name}: made")

    @cached_property
    def _places(self) -> dict[str, tuple[str, str]]:
        """Of the given subnets that exist: VPC and zone."""
        wanted = self._settings.network.subnet_ids
        found = self._account.all(
            "ec2", "describe_subnets", "Subnets", Filters=[{"Name": "subnet-id", "Values": list(wanted)}]
        )
        return {one["SubnetId"]: (one["VpcId"], one["AvailabilityZone"]) for one in found}

    @cached_property
    def _zones(self) -> list[str]:
        """Where the subnets are, or will be: CloudFormation takes the first zones of the region."""
        if self._settings.network.vpc_id:
            return sorted({zone for _, zone in self._places.values()})
        found = self._account.client("ec2").describe_availability_zones()["AvailabilityZones"]
        usable = sorted(
            one["ZoneName"]
            for one in found
            if one["State"] == "available" and one.get("ZoneType", "availability-zone") == "availability-zone"
        )
        return usable[: self._subnets_made]

    @property
    def _subnets_made(self) -> int:
        return min(self._settings.network.zones, ZONES.get(self._account.region or "", USUAL_ZONES))

    def _subnets(self) -> Iterator[Finding]:
        chosen = self._settings.network
        if chosen.vpc_id:
            # Batch takes several of a zone.
            one_each = self._template == "cluster"
            mistakes = list(weigh_subnets(chosen.vpc_id, chosen.subnet_ids, self._places, one_each))
            yield from mistakes or [Finding(OK, f"subnets: {len(chosen.subnet_ids)} of {chosen.vpc_id}, a zone each")]
        elif len(self._zones) < self._subnets_made:
            what = (
                f"zones: the template makes {self._subnets_made} subnets here, and only {len(self._zones)} can be used"
            )
            yield Finding(PROBLEM, what, f"set network.zones to {len(self._zones)}")
        else:
            yield Finding(OK, f"zones: {', '.join(self._zones)}")

    @cached_property
    def _spot_types(self) -> tuple[str, ...]:
        """The types that the Spot side may buy; by attributes, EC2 says which they are today."""
        wanted = self._settings.compute.attributes
        if wanted is None:
            return self._settings.compute.instance_types
        if self._template == "batch":
            return self._settings.on_demand.instance_types
        found = self._account.all(
            "ec2",
            "get_instance_types_from_instance_requirements",
            "InstanceTypes",
            ArchitectureTypes=["x86_64"],
            VirtualizationTypes=["hvm"],
            InstanceRequirements=requirements(wanted),
        )
        return tuple(sorted(one["InstanceType"] for one in found))

    @cached_property
    def _offered(self) -> dict[str, Offered]:
        """What EC2 says of the types that the settings name, those that the region has."""
        names = sorted({*self._spot_types, *self._settings.on_demand.instance_types})
        # A filter, because a name that the region lacks would fail a call that lists names.
        found = self._account.all(
            "ec2", "describe_instance_types", "InstanceTypes", Filters=[{"Name": "instance-type", "Values": names}]
        )
        return {
            one["InstanceType"]: Offered(
                InstanceType(
                    sum(gpu["Count"] for gpu in one.get("GpuInfo", {}).get("Gpus", ())),
                    one["VCpuInfo"]["DefaultVCpus"],
                    one["MemoryInfo"]["SizeInMiB"],
                ),
                frozenset(one["SupportedUsageClasses"]),
            )
            for one in found
        }

    def _types(self) -> Iterator[Finding]:
        markets: dict[Market, Sequence[str]] = {
            "spot": self._spot_types,
            "on-demand": self._settings.on_demand.instance_types,
        }
        wanted = sorted({(name, market) for market, names in markets.items() for name in names})
        named = sorted({name for name, _ in wanted})
        rows = self._account.all(
            "ec2",
            "describe_instance_type_offerings",
            "InstanceTypeOfferings",
            LocationType="availability-zone",
            Filters=[{"Name": "instance-type", "Values": named}],
        )
        there = {(row["InstanceType"], row["Location"]) for row in rows}
        if self._settings.compute.attributes and self._template == "cluster":
            yield weigh_attributes(self._spot_types, self._zones, there)
            named = sorted(self._settings.on_demand.instance_types)
        yield from weigh_pools(named, self._zones, there)
        yield from weigh_types(wanted, self._offered)
        if sizes := {name: offered.size for name, offered in self._offered.items()}:
            yield from weigh_task(self._settings.worker, sizes)

    def _spot_quotas(self) -> Iterator[Finding]:
        return self._quotas("spot", self._spot_types, self._settings.compute.max_units, "compute.max_units")

    def _on_demand_quotas(self) -> Iterator[Finding]:
        choice: OnDemand = self._settings.on_demand
        # Batch goes on to On-Demand whenever it may.
        batch = self._template == "batch" and choice.max_units
        if (
            batch
            or choice.urgency != "spot-only"
            or any(queue.placement == "on-demand" for queue in self._settings.queues)
        ):
            yield from self._quotas("on-demand", choice.instance_types, choice.max_units, "on_demand.max_units")

    def _quotas(self, market: Market, names: Iterable[str], units: int, key: str) -> Iterator[Finding]:
        groups: dict[str, list[InstanceType]] = {}
        for name in names:
            if name in self._offered:
                size = self._offered[name].size
                # A weight stands for the GPUs: the limits are in units, which it makes smaller.
                units_each = self._settings.compute.weights.get(name, size.gpus)
                groups.setdefault(family(name, market), []).append(replace(size, gpus=units_each))
        for group, sizes in sorted(groups.items()):
            if (market, group) not in QUOTAS:
                yield Finding(COULD_NOT_LOOK, f"{market} quota of {group}: its code is not known here")
                continue
            quota, _ = QUOTAS[market, group]
            answer = self._account.client("service-quotas").get_service_quota(ServiceCode="ec2", QuotaCode=quota)
            yield weigh_quota(market, group, answer["Quota"]["Value"], units, key, sizes)

    def _build_quota(self) -> Iterator[Finding]:
        wanted = self._settings.image.instance_types
        found = self._account.all(
            "ec2", "describe_instance_types", "InstanceTypes", Filters=[{"Name": "instance-type", "Values": wanted}]
        )
        sizes = {one["InstanceType"]: one["VCpuInfo"]["DefaultVCpus"] for one in found}
        for kind in wanted:
            if kind not in sizes:
                yield Finding(PROBLEM, f"instance type {kind}: EC2 has none in this region", f"take {kind} out")
            elif ("on-demand", family(kind, "on-demand")) not in QUOTAS:
                yield Finding(COULD_NOT_LOOK, f"on-demand quota of {kind}: its code is not known here")
            else:
                quota, name = QUOTAS["on-demand", family(kind, "on-demand")]
                answer = self._account.client("service-quotas").get_service_quota(ServiceCode="ec2", QuotaCode=quota)
                yield weigh_build(answer["Quota"]["Value"], quota, name, kind, sizes[kind])

    def _machine_image(self) -> Iterator[Finding]:
        try:
            found = self._account.client("ssm").get_parameter(Name=self._ami)
            images = self._account.client("ec2").describe_images(ImageIds=[found["Parameter"]["Value"]])["Images"]
        except ClientError as error:
            if code(error) not in ("ParameterNotFound", "InvalidAMIID.NotFound"):
                raise
            what = f"image of the instances: {self._ami}: {told(error)}"
            other = "deploy in a region that has it, or with AmiId=PARAMETER of your own"
            yield Finding(PROBLEM, what, other if self._ami == ECS_GPU_IMAGE else "python build.py ami bakes one")
        else:
            yield weigh_image(self._ami, images[0], self._settings.compute.root_volume_gib)

    def _worker_image(self) -> Iterator[Finding]:
        if not self._image:
            return
        subject, reference = f"worker's image {self._image}", ECR.fullmatch(self._image)
        private = self._settings.network.private
        if reference is None:
            if private:
                yield Finding(PROBLEM, f"{subject}: from a private subnet only ECR can be reached", "push it to ECR")
            else:
                yield Finding(COULD_NOT_LOOK, f"{subject}: not in ECR, and other registries are not looked into")
            return
        if private and reference["region"] != self._account.region:
            what = f"{subject}: from a private subnet only ECR in {self._account.region} can be reached"
            yield Finding(PROBLEM, what, "push it there")
            return
        which = (
            {"imageDigest": reference["digest"]} if reference["digest"] else {"imageTag": reference["tag"] or "latest"}
        )
        registry = self._account.client("ecr", reference["region"])
        try:
            found = registry.describe_images(
                registryId=reference["account"], repositoryName=reference["repository"], imageIds=[which]
            )["imageDetails"]
        except ClientError as error:
            if code(error) not in ("RepositoryNotFoundException", "ImageNotFoundException"):
                raise
            found = []
        if found:
            yield Finding(OK, f"{subject}: there, {found[0]['imageSizeInBytes'] / 2**20:,.0f} MiB to pull")
        else:
            yield Finding(PROBLEM, f"{subject}: is not there", "docker push it, or correct the name")

    def _assets_bucket(self) -> Iterator[Finding]:
        if not self._bucket:
            return
        subject = f"assets bucket {self._bucket}"
        try:
            region = self._account.client("s3").head_bucket(Bucket=self._bucket)["BucketRegion"]
        except ClientError as error:
            # S3 answers a HEAD without a body: the status is all there is.
            if code(error) != "404":
                raise
            yield Finding(PROBLEM, f"{subject}: does not exist", f"aws s3 mb s3://{self._bucket}")
            return
        if region == self._account.region:
            yield Finding(OK, f"{subject}: there, in {region}")
        else:
            what = f"{subject} is in {region}; Lambda takes its code only from {self._account.region}"
            yield Finding(PROBLEM, what, "publish to a bucket in the region of the stack")
