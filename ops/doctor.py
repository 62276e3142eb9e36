"""Will what the settings ask for work in this account? One finding a line, as soon as it is known.

What asks AWS is here and decides nothing; what is decided from an answer is in findings.py, subnets.py and
permissions.py. An answer that AWS does not give is told as such: "could not look" is neither good nor bad, and never
"all well".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from ops import zones
from ops.account import Account, code, told
from ops.findings import (
    COULD_NOT_LOOK,
    OK,
    PROBLEM,
    QUOTAS,
    Finding,
    Market,
    Offered,
    family,
    weigh_attributes,
    weigh_build,
    weigh_image,
    weigh_pools,
    weigh_quota,
    weigh_task,
    weigh_types,
)
from ops.permissions import LINKED_ROLES, MADE_IN_PASSING, actions_for, principal_of, roles_for
from ops.subnets import Subnet, called, described, weigh_subnets, weigh_ways_out
from templates.image import ECS_GPU_IMAGE
from templates.instance_types import InstanceType
from templates.machines import requirements
from templates.settings import OnDemand, Settings

ECR = re.compile(
    r"(?P<account>\d{12})\.dkr\.ecr(-fips)?\.(?P<region>[a-z0-9-]+)\.amazonaws\.com(\.cn)?/"
    r"(?P<repository>[a-z0-9][a-z0-9._/-]*)(@(?P<digest>sha256:[0-9a-f]{64})|:(?P<tag>[\w.-]+))?"
)


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

    def _described(self, kind: str, by: str, values: Sequence[str]) -> list[Any]:
        """What EC2 has of a kind (`route_tables`). A filter, because a call that lists names fails for one unknown."""
        if not values:
            return []
        key = "".join(part.capitalize() for part in kind.split("_"))
        return self._account.all("ec2", f"describe_{kind}", key, Filters=[{"Name": by, "Values": [*values]}])

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
        for name in roles_for(self._settings, self._template):
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

    @property
    def _wanted(self) -> Sequence[str]:
        """The given subnets that are used: for a build the first one."""
        given = self._settings.network.subnet_ids
        return given[:1] if self._template == "image" else given

    @cached_property
    def _there(self) -> list[Any]:
        """Those of them that exist."""
        return self._described("subnets", "subnet-id", self._wanted)

    @cached_property
    def _given(self) -> dict[str, Subnet]:
        """The same by id, with what leads out of them."""
        vpcs = sorted({one["VpcId"] for one in self._there})
        tables, endpoints = (self._described(kind, "vpc-id", vpcs) for kind in ("route_tables", "vpc_endpoints"))
        return described(self._there, tables, endpoints)

    @cached_property
    def _zones(self) -> list[str]:
        """Where the subnets are, or will be."""
        if self._settings.network.vpc_id:
            return sorted({one["AvailabilityZone"] for one in self._there})
        return [*zones.first(self._account, self._settings.network.zones)]

    def _subnets(self) -> Iterator[Finding]:
        chosen = self._settings.network
        made = zones.made(self._account, chosen.zones)
        if chosen.vpc_id:
            # Batch takes several of a zone.
            yield from weigh_subnets(chosen.vpc_id, self._wanted, self._given, self._template == "cluster")
            yield from weigh_ways_out(self._given.values(), called(self._settings, self._template))
        elif len(self._zones) < made:
            what = f"zones: the template makes {made} subnets here, and only {len(self._zones)} can be used"
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
        found = self._described("instance_types", "instance-type", names)
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
            yield weigh_quota(market, group, self._limit(market, group), units, key, sizes)

    def _build_quota(self) -> Iterator[Finding]:
        wanted = self._settings.image.instance_types
        found = self._described("instance_types", "instance-type", wanted)
        sizes = {one["InstanceType"]: one["VCpuInfo"]["DefaultVCpus"] for one in found}
        for kind in wanted:
            if kind not in sizes:
                yield Finding(PROBLEM, f"instance type {kind}: EC2 has none in this region", f"take {kind} out")
            elif ("on-demand", group := family(kind, "on-demand")) not in QUOTAS:
                yield Finding(COULD_NOT_LOOK, f"on-demand quota of {kind}: its code is not known here")
            else:
                yield weigh_build(group, self._limit("on-demand", group), kind, sizes[kind])

    def _limit(self, market: Market, group: str) -> float:
        """A quota's value, in vCPUs."""
        client = self._account.client("service-quotas")
        return float(client.get_service_quota(ServiceCode="ec2", QuotaCode=QUOTAS[market, group][0])["Quota"]["Value"])

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
        private = self._settings.network.private or not all(one.way for one in self._given.values())
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
