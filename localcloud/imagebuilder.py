"""EC2 Image Builder: CloudFormation's types, and builds that take AWS's time and leave an image.

The scripts of the components are not run here (tests/test_components.py runs them). A build resolves its base image,
looks for what the components fetch and pull, asks IAM what the roles may do, registers the image, writes its parameter,
and lets the lifecycle policies remove old ones.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from botocore.exceptions import ClientError

from localcloud import substrate
from localcloud.ecsagent import PULL_ACTIONS
from localcloud.formation import NotPlayed, Resource
from localcloud.image import REGISTRY, Images, NoSuchImage
from localcloud.inputs import valid_input
from localcloud.launch import Surveyor
from localcloud.offerings import Amis
from localcloud.wire import Call, Fault, Service, plays
from localcloud.world import ACCOUNT, REGION, World

# ruff: noqa: ARG002 - the arguments of create, update and delete are formation.Resource's

STAGES = (("PENDING", 30.0), ("BUILDING", 840.0), ("TESTING", 420.0), ("DISTRIBUTING", 60.0))
"""What an image goes through, and for how many of AWS's seconds: chosen, AWS states none."""
WORKFLOWS = {"BUILDING": ("BUILD", 14), "TESTING": ("TEST", 9), "DISTRIBUTING": ("DISTRIBUTION", 3)}
"""By stage: its workflow, and how many steps that has."""
ENDED = ("AVAILABLE", "FAILED", "CANCELLED", "DELETED")
PULLED = re.compile(r"^\s*image='([^']+)'$(?=.*^\s*docker pull)", re.MULTILINE | re.DOTALL)
"""What a component's script pulls into the image."""
BUCKET = re.compile(r"https://s3\.[^/]+/([^/]+)/\$1")
FETCHED = re.compile(r"^\s*(?:fetch|place \S+ \S+) ([^\s\"$]+)", re.MULTILINE)
"""Of what bucket, and what of it, a component's script fetches."""
PREFIX = f"arn:aws:imagebuilder:{REGION}:{ACCOUNT}"


class CannotBuild(Exception):
    """Why a build fails, as GetImage gives the reason."""


@dataclass
class Build:
    """An image resource, from the start of its build."""

    arn: str
    pipeline: str
    recipe: str
    tags: Mapping[str, str]
    started: datetime
    stages: dict[str, datetime] = field(default_factory=dict)
    """When each began; the last is the one that it is in."""
    reason: str = ""
    ami: str = ""

    @property
    def status(self) -> str:
        """The stage that it is in."""
        return list(self.stages)[-1]


class ImageBuilder(Service):
    """The `imagebuilder` service, as far as a pipeline of AMIs needs it."""

    name = "imagebuilder"

    def __init__(self, world: World, surveyor: Surveyor, amis: Amis, images: Images) -> None:
        super().__init__()
        self.world = world
        self.kept: dict[str, dict[str, Any]] = {}
        """By ARN: what a Create call was asked for."""
        self.builds: dict[str, Build] = {}
        self._surveyor, self._amis, self._images = surveyor, amis, images
        self._closing = threading.Event()
        world.on_stop(self._closing.set)

    @plays("imagePipelineArn", "clientToken", "tags")
    def start_image_pipeline_execution(self, call: Call) -> Mapping[str, Any]:
        """Start a build."""
        with self.world.lock:
            arn = call.params["imagePipelineArn"]
            pipeline = self._known(arn)
            recipe = pipeline["imageRecipeArn"]
            version = recipe.replace(":image-recipe/", ":image/")
            number = 1 + sum(one.arn.startswith(f"{version}/") for one in self.builds.values())
            tags = {**pipeline.get("imageTags", {}), **call.params.get("tags", {})}
            now = self.world.now()
            build = Build(f"{version}/{number}", arn, recipe, tags, now, {"PENDING": now})
            self.builds[build.arn] = build
        threading.Thread(target=self._bake, args=(build,), name=build.arn, daemon=True).start()
        return {"clientToken": call.params["clientToken"], "imageBuildVersionArn": build.arn}

    @plays("imageBuildVersionArn", "clientToken")
    def cancel_image_creation(self, call: Call) -> Mapping[str, Any]:
        """End a build."""
        with self.world.lock:
            build = self._build(call.params["imageBuildVersionArn"])
            if build.status in ENDED:
                raise Fault("InvalidRequestException", f"The image is {build.status} and cannot be cancelled.")
            build.stages["CANCELLED"] = self.world.now()
        return {"clientToken": call.params["clientToken"], "imageBuildVersionArn": build.arn}

    @plays("imageBuildVersionArn")
    def get_image(self, call: Call) -> Mapping[str, Any]:
        """An image, or the build that is to become one."""
        with self.world.lock:
            return {"image": self._shown(self._build(call.params["imageBuildVersionArn"]))}

    @plays("imagePipelineArn", "maxResults", "nextToken")
    def list_image_pipeline_images(self, call: Call) -> Mapping[str, Any]:
        """A pipeline's images and builds."""
        with self.world.lock:
            self._known(call.params["imagePipelineArn"])
            found = [one for one in self.builds.values() if one.pipeline == call.params["imagePipelineArn"]]
            return {"imageSummaryList": [self._shown(one) for one in found]}

    @plays("imagePipelineArn")
    def get_image_pipeline(self, call: Call) -> Mapping[str, Any]:
        """A pipeline."""
        with self.world.lock:
            arn = call.params["imagePipelineArn"]
            shown = {key: value for key, value in self._known(arn).items() if key != "clientToken"}
            return {"imagePipeline": {"arn": arn, "platform": "Linux", **shown}}

    @plays("imageRecipeArn")
    def get_image_recipe(self, call: Call) -> Mapping[str, Any]:
        """A recipe."""
        with self.world.lock:
            arn = call.params["imageRecipeArn"]
            recipe = self._known(arn)
            shown = {key: recipe[key] for key in ("name", "components", "parentImage", "blockDeviceMappings", "tags")}
            return {"imageRecipe": {"arn": arn, "version": arn.rsplit("/", 1)[-1], **shown}}

    @plays("imageBuildVersionArn", "maxResults", "nextToken")
    def list_workflow_executions(self, call: Call) -> Mapping[str, Any]:
        """How far a build is."""
        with self.world.lock:
            build = self._build(call.params["imageBuildVersionArn"])
            shown = [self._workflow(build, stage) for stage in build.stages if stage in WORKFLOWS]
        return {"workflowExecutions": shown, "imageBuildVersionArn": build.arn}

    def pulled(self, ami: str) -> set[str]:
        """The container images on the disk of an instance of that AMI."""
        with self.world.lock:
            found = [one for one in self.builds.values() if one.ami == ami]
            return self._pulls(found[0]) if found else set()

    # A build

    def _bake(self, build: Build) -> None:
        try:
            for stage, seconds in STAGES:
                with self.world.lock:
                    if build.status in ENDED:
                        return
                    build.stages[stage] = self.world.now()
                if stage == "BUILDING":
                    self._prepare(build)
                if self._closing.wait(self.world.scaled(seconds)):
                    return
            if build.status not in ENDED:
                self._finish(build)
        except (CannotBuild, Fault) as error:
            with self.world.lock:
                build.reason = str(error)
                build.stages["FAILED"] = self.world.now()
            self.world.note("image failed", build.arn, reason=build.reason)

    def _prepare(self, build: Build) -> None:
        with self.world.lock:
            parent, pulls = self.kept[build.recipe]["parentImage"], self._pulls(build)
            machine = self.kept[self.kept[build.pipeline]["infrastructureConfigurationArn"]]
        if parent.startswith("ssm:"):
            _parameter(parent.removeprefix("ssm:"))
        self._surveyor.subnets([machine["subnetId"]])
        role = _role(machine["instanceProfileName"])
        for action, resource in self._asks(build):
            if not substrate.role_may(role, "build", action, resource):
                raise CannotBuild(f"{role} is not authorized to perform {action} on {resource}")
            if action == "s3:GetObject":
                _must_be_there(*resource.removeprefix("arn:aws:s3:::").split("/", 1))
        for name in sorted(pulls):
            try:
                self._images.pull(name)
            except NoSuchImage as error:
                raise CannotBuild(f"component worker: {name}: not found") from error

    def _finish(self, build: Build) -> None:
        with self.world.lock:
            pipeline, recipe = self.kept[build.pipeline], self.kept[build.recipe]
            goals = self.kept[pipeline["distributionConfigurationArn"]]["distributions"]
            root = recipe["blockDeviceMappings"][0]["ebs"]["volumeSize"]
            told = {one["parameterName"] for goal in goals for one in goal.get("ssmParameterConfigurations", ())}
            tags = {"CreatedBy": "EC2 Image Builder", **goals[0]["amiDistributionConfiguration"].get("amiTags", {})}
            ami = self._amis.register(recipe["name"], root, tags, self.world.now())
        role = pipeline["executionRole"]
        if not self._surveyor.trusts(role, "imagebuilder.amazonaws.com"):
            raise CannotBuild(f"{role} does not trust imagebuilder.amazonaws.com")
        for name in sorted(told):
            arn = f"arn:aws:ssm:{REGION}:{ACCOUNT}:parameter{name}"
            if not substrate.role_may(role, "imagebuilder", "ssm:PutParameter", arn):
                raise CannotBuild(f"{role} is not authorized to perform ssm:PutParameter on {arn}")
            substrate.operator("ssm").put_parameter(Name=name, Value=ami, Type="String", Overwrite=True)
        with self.world.lock:
            build.ami = ami
            build.stages["AVAILABLE"] = self.world.now()
            self._clean_up(recipe["name"])
        self.world.note("image available", build.arn, ami=ami)

    def _clean_up(self, recipe: str) -> None:
        """The lifecycle policies, which AWS runs once a day."""
        for policy in [one for arn, one in self.kept.items() if ":lifecycle-policy/" in arn]:
            if policy.get("status", "ENABLED") != "ENABLED" or recipe not in {
                one["name"] for one in policy["resourceSelection"]["recipes"]
            }:
                continue
            for detail in policy["policyDetails"]:
                if (detail["action"]["type"], detail["filter"]["type"]) != ("DELETE", "COUNT"):
                    continue
                mine = [one for one in self.builds.values() if f":image/{_slug(recipe)}/" in one.arn and one.ami]
                for old in mine[: -detail["filter"]["value"]]:
                    if not self._amis.launched(old.ami):
                        self._amis.deregister(old.ami)
                        del self.builds[old.arn]

    def _scripts(self, build: Build) -> list[str]:
        return [self.kept[one["componentArn"]]["data"] for one in self.kept[build.recipe]["components"]]

    def _pulls(self, build: Build) -> set[str]:
        return {name for script in self._scripts(build) for name in PULLED.findall(script)}

    def _asks(self, build: Build) -> Iterator[tuple[str, str]]:
        """Action and resource of what the scripts do with the role of the instance."""
        for script in self._scripts(build):
            for bucket in BUCKET.findall(script):
                yield from (("s3:GetObject", f"arn:aws:s3:::{bucket}/{key}") for key in FETCHED.findall(script))
        for name in self._pulls(build):
            registry, _, image = name.partition("/")
            if registry == REGISTRY:
                repository = f"arn:aws:ecr:{REGION}:{ACCOUNT}:repository/{image.partition(':')[0]}"
                yield from ((one, "*" if one == "ecr:GetAuthorizationToken" else repository) for one in PULL_ACTIONS)

    # What is shown

    def _known(self, arn: str) -> dict[str, Any]:
        if arn not in self.kept:
            raise Fault("ResourceNotFoundException", f"The resource with ARN '{arn}' cannot be found.")
        return self.kept[arn]

    def _build(self, arn: str) -> Build:
        if arn not in self.builds:
            raise Fault("ResourceNotFoundException", f"The resource with ARN '{arn}' cannot be found.")
        return self.builds[arn]

    def _shown(self, build: Build) -> dict[str, Any]:
        amis = [{"region": REGION, "image": build.ami, "accountId": ACCOUNT}] if build.ami else []
        return {
            "arn": build.arn,
            "name": build.arn.split("/")[1],
            "version": build.arn.split("/", 2)[2],
            "type": "AMI",
            "platform": "Linux",
            "state": {"status": build.status, **({"reason": build.reason} if build.reason else {})},
            "dateCreated": build.started.isoformat(),
            "outputResources": {"amis": amis},
            "tags": dict(build.tags),
            "buildType": "USER_INITIATED",
        }

    def _workflow(self, build: Build, stage: str) -> dict[str, Any]:
        kind, steps = WORKFLOWS[stage]
        began, names = build.stages[stage], list(build.stages)
        later = names[names.index(stage) + 1 :]
        failed = later == ["FAILED"]
        seconds = dict(STAGES)[stage]
        gone = (self.world.now() - began).total_seconds() / self.world.scaled(seconds)
        done = steps if later and not failed else min(steps - 1, int(steps * gone))
        return {
            "workflowExecutionId": f"wf-{kind.lower()}-{began.timestamp():.0f}",
            "type": kind,
            "status": ("FAILED" if failed else "COMPLETED") if later else "RUNNING",
            "totalStepCount": steps,
            "totalStepsSucceeded": done,
            "startTime": began.isoformat(),
            **({"endTime": build.stages[later[0]].isoformat()} if later else {}),
        }


def _role(profile: str) -> str:
    """Of an instance profile. Raises CannotBuild."""
    try:
        found = substrate.operator("iam").get_instance_profile(InstanceProfileName=profile)
    except ClientError as error:
        raise CannotBuild(f"instance profile {profile}: {error}") from error
    return str(found["InstanceProfile"]["Roles"][0]["Arn"])


def _must_be_there(bucket: str, key: str) -> None:
    try:
        substrate.operator("s3").head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        raise CannotBuild(f"https://s3/{bucket}/{key}: The requested URL returned error: 404") from error


def _parameter(name: str) -> str:
    try:
        return str(substrate.operator("ssm").get_parameter(Name=name)["Parameter"]["Value"])
    except ClientError as error:
        raise CannotBuild(f"The SSM parameter {name} cannot be read: {error}") from error


# CloudFormation


def resources(service: ImageBuilder) -> dict[str, Resource]:
    """The resource types, by name."""
    kinds = {
        "Component": "component",
        "DistributionConfiguration": "distribution-configuration",
        "ImagePipeline": "image-pipeline",
        "ImageRecipe": "image-recipe",
        "InfrastructureConfiguration": "infrastructure-configuration",
        "LifecyclePolicy": "lifecycle-policy",
    }
    return {f"AWS::ImageBuilder::{name}": Kind(service, f"Create{name}", word) for name, word in kinds.items()}


class Kind:
    """One of Image Builder's types. Components and recipes never change: an update makes another version."""

    def __init__(self, service: ImageBuilder, operation: str, word: str) -> None:
        self._service, self._operation, self._word = service, operation, word

    def create(self, logical_id: str, properties: dict[str, Any], stack: str) -> tuple[str, dict[str, Any]]:
        """Make it. Ref and Arn are its ARN."""
        asked = self._input(properties)
        with self._service.world.lock:
            arn = self._arn(asked)
            if arn in self._service.kept:
                raise NotPlayed(f"Resource of type 'AWS::ImageBuilder' with identifier '{arn}' already exists.")
            self._service.kept[arn] = asked
        return arn, {"Arn": arn}

    def update(
        self, physical_id: str, old: dict[str, Any], new: dict[str, Any], stack: str
    ) -> tuple[str, dict[str, Any]]:
        """Change it in place; what has versions, or another name, is made anew."""
        if self._word in ("component", "image-recipe") or old["Name"] != new["Name"]:
            return self.create("", new, stack)
        with self._service.world.lock:
            self._service.kept[physical_id] = self._input(new)
        return physical_id, {"Arn": physical_id}

    def delete(self, physical_id: str, properties: dict[str, Any]) -> None:
        """Remove it, unless something is made of it."""
        with self._service.world.lock:
            if any(physical_id in _strings(one) for one in self._service.kept.values()):
                raise NotPlayed(f"{physical_id}: ResourceDependencyException: something depends on it")
            self._service.kept.pop(physical_id, None)

    def _input(self, properties: Mapping[str, Any]) -> dict[str, Any]:
        return valid_input("imagebuilder", self._operation, {"ClientToken": "cloudformation", **properties})

    def _arn(self, asked: Mapping[str, Any]) -> str:
        base = f"{PREFIX}:{self._word}/{_slug(asked['name'])}"
        if self._word == "component":
            base = f"{base}/{asked['semanticVersion']}"
            return next(arn for number in range(1, 10_000) if (arn := f"{base}/{number}") not in self._service.kept)
        if self._word == "image-recipe":
            if "x" not in asked["semanticVersion"]:
                return f"{base}/{asked['semanticVersion']}"
            versions = (asked["semanticVersion"].replace("x", str(number)) for number in range(10_000))
            return next(arn for one in versions if (arn := f"{base}/{one}") not in self._service.kept)
        return base


def _slug(name: str) -> str:
    return name.lower().replace(" ", "-")


def _strings(value: Any) -> set[str]:
    if isinstance(value, Mapping):
        return {text for inner in value.values() for text in _strings(inner)}
    if isinstance(value, list):
        return {text for inner in value for text in _strings(inner)}
    return {value} if isinstance(value, str) else set()
