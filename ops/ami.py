"""Bake an image: start the pipeline of the stack `image`, follow it, and say what has changed."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from ops.account import Account, NoSuchStack, code, resources, told
from ops.text import lasting, table
from templates.image import PARAMETER

SOURCE, AGENT, WORKER, DIGEST = "spindrift:source", "spindrift:agent", "spindrift:worker", "spindrift:worker-digest"
"""Tags on each image. The template has those of the agent and the worker, the others are found when a build starts."""
ENDED = {"AVAILABLE", "CANCELLED", "FAILED", "DELETED", "DEPRECATED", "DISABLED"}
LOOK_SECONDS = 5.0
ECR = re.compile(
    r"(?P<account>\d{12})\.dkr\.ecr\.(?P<region>[a-z0-9-]+)\.[a-z.]+/(?P<name>[^:@]+)(?::(?P<tag>[^@]+))?(?:@(?P<digest>.+))?"
)
GIB = 2**30


class CannotBake(Exception):
    """The image was not made; the message says why."""


@dataclass(frozen=True)
class Image:
    """What is known of one image."""

    ami: str
    tags: Mapping[str, str]
    stored: int | None
    """Bytes of its snapshots; None where that is not to be known."""
    took: timedelta | None


class Baker:
    """The pipeline of one stack."""

    def __init__(
        self,
        account: Account,
        stack: str,
        say: Callable[[str], None],
        pause: Callable[[float], None] = time.sleep,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Raises NoSuchStack, ClientError or BotoCoreError."""
        self._account, self._stack = account, stack
        self._say, self._pause, self._now = say, pause, now
        self._builder = account.client("imagebuilder")
        self._pipeline = resources(account, stack).get("Pipeline", "")
        if ":image-pipeline/" not in self._pipeline:
            raise NoSuchStack(f"{stack} in {account.region} is no stack of build/image.json")

    def start(self) -> str:
        """Start a build, unless one runs. Returns its ARN. Raises CannotBake."""
        for one in self._images():
            if one["state"]["status"] not in ENDED:
                self._say(f"{one['arn']} is being built already")
                return str(one["arn"])
        started = self._builder.start_image_pipeline_execution(imagePipelineArn=self._pipeline, tags=self._facts())
        self._say(f"{started['imageBuildVersionArn']} is being built")
        return str(started["imageBuildVersionArn"])

    def follow(self, arn: str) -> None:
        """Tell of each step until it is there, and what is new in it. Raises CannotBake."""
        began, last = self._now(), ""
        # Now, since the clean-up may remove it as soon as there is a newer one.
        others = [one for one in self._images() if one["state"]["status"] == "AVAILABLE" and one["arn"] != arn]
        before = self._known(max(others, key=lambda one: str(one["dateCreated"]))) if others else None
        while True:
            image = self._builder.get_image(imageBuildVersionArn=arn)["image"]
            status = image["state"]["status"]
            line = f"{status:<14}{self._step(arn)}".rstrip()
            if line != last:
                self._say(f"{lasting(self._now() - began):>12}  {line}")
            last = line
            if status in ENDED:
                break
            self._pause(LOOK_SECONDS)
        if status != "AVAILABLE":
            raise CannotBake(f"{arn}: {status}: {_reason(image['state'])}")
        for text in changes(before, self._known(image)):
            self._say(text)
        name = PARAMETER.replace("${AWS::StackName}", self._stack)
        self._say(f"\nThe stack cluster takes it with its next deployment: AmiId={name}")

    def _images(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._account.all(
            "imagebuilder", "list_image_pipeline_images", "imageSummaryList", imagePipelineArn=self._pipeline
        )
        return found

    def _step(self, arn: str) -> str:
        """How many steps of the workflow that runs are done."""
        for one in self._workflows(arn):
            if one["status"] == "RUNNING":
                return f"{one.get('totalStepsSucceeded', 0)} of {one['totalStepCount']} steps"
        return ""

    def _workflows(self, arn: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._account.all(
            "imagebuilder", "list_workflow_executions", "workflowExecutions", imageBuildVersionArn=arn
        )
        return found

    def _facts(self) -> dict[str, str]:
        """What the image will be made of, as it is now."""
        pipeline = self._builder.get_image_pipeline(imagePipelineArn=self._pipeline)["imagePipeline"]
        recipe = self._builder.get_image_recipe(imageRecipeArn=pipeline["imageRecipeArn"])["imageRecipe"]
        parent = recipe["parentImage"].removeprefix("ssm:")
        source = self._account.client("ssm").get_parameter(Name=parent)["Parameter"]["Value"]
        tags = dict(pipeline.get("imageTags", {}))
        return {**tags, SOURCE: source, DIGEST: self._digest(tags.get(WORKER, ""))}

    def _digest(self, worker: str) -> str:
        """Of the worker's image, as its registry has it now; "unknown" when that is not ECR, or does not tell.

        Raises CannotBake when ECR has no such image: a build would fail after ten minutes.
        """
        if (found := ECR.fullmatch(worker)) is None:
            return "unknown"
        if found["digest"]:
            return found["digest"]
        try:
            images = self._account.client("ecr", found["region"]).describe_images(
                registryId=found["account"],
                repositoryName=found["name"],
                imageIds=[{"imageTag": found["tag"] or "latest"}],
            )["imageDetails"]
        except (ClientError, BotoCoreError) as error:
            if code(error) not in ("ImageNotFoundException", "RepositoryNotFoundException"):
                self._say(f"{worker}: its digest is unknown: {told(error)}")
                return "unknown"
            images = []
        if not images:
            raise CannotBake(f"{worker} is not in its registry: push it, or deploy this stack with another WorkerImage")
        return str(images[0]["imageDigest"])

    def _known(self, image: Mapping[str, Any]) -> Image:
        amis = image.get("outputResources", {}).get("amis", ())
        ami = next((one["image"] for one in amis if one["region"] == self._account.region), "")
        times = [
            datetime.fromisoformat(one[key].replace("Z", "+00:00"))
            for one in self._workflows(image["arn"])
            for key in ("startTime", "endTime")
            if one.get(key)
        ]
        took = max(times) - min(times) if times else None
        return Image(ami, image.get("tags", {}), stored(self._account, ami), took)


def stored(account: Account, ami: str) -> int | None:
    """Bytes of an image's snapshots; None where that is not to be known, or the image is gone."""
    ec2 = account.client("ec2")
    try:
        disks = ec2.describe_images(ImageIds=[ami])["Images"][0]["BlockDeviceMappings"]
        ids = [disk["Ebs"]["SnapshotId"] for disk in disks if "SnapshotId" in disk.get("Ebs", {})]
        shown = ec2.describe_snapshots(SnapshotIds=ids)["Snapshots"]
    except (ClientError, IndexError):
        return None
    sizes = [one["FullSnapshotSizeInBytes"] for one in shown if "FullSnapshotSizeInBytes" in one]
    return sum(sizes) if sizes else None


def changes(before: Image | None, now: Image) -> Iterator[str]:
    """Lines that hold an image against the one before it."""
    yield ""
    yield from table([("", "before", "now"), *_rows(before, now)])


def _rows(before: Image | None, now: Image) -> Iterator[tuple[str, str, str]]:
    facts: dict[str, Callable[[Image], str]] = {
        "source": lambda one: one.tags.get(SOURCE, "unknown"),
        "agent": lambda one: one.tags.get(AGENT, "unknown"),
        "worker": lambda one: one.tags.get(WORKER, "unknown"),
        "worker's digest": lambda one: one.tags.get(DIGEST, "unknown"),
        "image": lambda one: one.ami,
        "stored": lambda one: "unknown" if one.stored is None else f"{one.stored / GIB:.1f} GiB",
        "took": lambda one: "unknown" if one.took is None else lasting(one.took),
    }
    for name, tell in facts.items():
        old, new = tell(before) if before else "none", tell(now)
        yield name, old, "the same" if old == new != "unknown" else new


def _reason(state: Mapping[str, Any]) -> str:
    """Why it failed, and in which component if AWS says so."""
    failed = state.get("failureContext", {}).get("componentFailure", {})
    where = "/".join(failed[key] for key in ("componentArn", "phaseName", "stepName") if key in failed)
    return (
        ": ".join(filter(None, [state.get("reason", ""), where, failed.get("errorMessage", "")])) or "no reason given"
    )
