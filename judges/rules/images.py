"""What bakes an image: Image Builder's recipe, components and clean-up."""

from __future__ import annotations

import re
from collections.abc import Iterator

from judges.filled import reference
from judges.rules.stack import Objection, Rule, Stack
from judges.scripts import read
from templates.image import MOST_DATA

PHASES = {"build", "validate", "test"}
WRITABLE = "/imagebuilder/"


def components_can_be_read(stack: Stack) -> Iterator[Objection]:
    """Nobody looks into a component before it runs (Image Builder User Guide, "Component document schema")."""
    for title, properties in stack.of("ImageBuilder::Component"):
        text = str(stack.filled(properties.get("Data")))
        said = read(text)
        phases = [phase.get("name") for phase in said.get("phases", ())]
        if str(said.get("schemaVersion")) != "1.0" or not phases or not set(phases) <= PHASES:
            yield title, f"Data must be YAML of schema 1.0 with phases among {', '.join(sorted(PHASES))}, got {phases}"
        if len(text) > MOST_DATA:
            yield title, f"Data has {len(text)} characters; Image Builder takes {MOST_DATA}"
        if "{{" in text:
            yield title, "Data has {{, which Image Builder would take for a variable of its own"
        if re.search(r"^\s*aws\s", text, re.MULTILINE):
            yield title, "Data calls `aws`, which the image (al2023-ami-minimal) has not"


def versions_can_change(stack: Stack) -> Iterator[Objection]:
    """A recipe never changes: an update makes another one, which wants a version of its own."""
    for title, properties in stack.of("ImageBuilder::ImageRecipe"):
        if str(properties.get("Version")).count("x") != 1:
            yield title, f"Version must have one x, which Image Builder counts up, got {properties.get('Version')}"


def builders_are_closed(stack: Stack) -> Iterator[Objection]:
    """As other instances; and what failed must not go on costing."""
    for title, properties in stack.of("ImageBuilder::InfrastructureConfiguration"):
        metadata = properties.get("InstanceMetadataOptions", {})
        if metadata != {"HttpTokens": "required", "HttpPutResponseHopLimit": 1}:
            yield title, f"InstanceMetadataOptions must be IMDSv2 with one hop, got {metadata}"
        if "KeyPair" in properties:
            yield title, "KeyPair: there is no SSH"
        if properties.get("TerminateInstanceOnFailure") is not True:
            yield title, "TerminateInstanceOnFailure must be true: an instance of a failed build would run on"


def image_ids_are_told(stack: Stack) -> Iterator[Objection]:
    """Image Builder's own policy lets it write no other parameters; the build would fail at its very end."""
    for title, properties in stack.of("ImageBuilder::DistributionConfiguration"):
        for goal in properties.get("Distributions", ()):
            names = [str(stack.filled(one["ParameterName"])) for one in goal.get("SsmParameterConfigurations", ())]
            if not names or not all(name.startswith(WRITABLE) for name in names):
                yield title, f"each image's id goes to an SSM parameter below {WRITABLE}, got {names or 'none'}"


def old_images_go(stack: Stack) -> Iterator[Objection]:
    """By the name of the recipe that they came from; and with their snapshots, which cost all the money."""
    recipes = {str(stack.filled(properties.get("Name"))) for _, properties in stack.of("ImageBuilder::ImageRecipe")}
    cleaned = set()
    for title, properties in stack.of("ImageBuilder::LifecyclePolicy"):
        chosen = properties.get("ResourceSelection", {}).get("Recipes", ())
        cleaned |= {str(stack.filled(one["Name"])) for one in chosen}
        for detail in properties.get("PolicyDetails", ()):
            if detail["Action"].get("IncludeResources") != {"Amis": True, "Snapshots": True}:
                yield title, "IncludeResources must be Amis and Snapshots: a snapshot without its image is paid on"
            if "LastLaunched" not in detail.get("ExclusionRules", {}).get("Amis", {}):
                yield title, "no LastLaunched: an image that a fleet launches from would be removed"
    for title, properties in stack.of("ImageBuilder::ImagePipeline"):
        if recipes - cleaned:
            recipe = reference(properties.get("ImageRecipeArn"))
            yield title, f"no LifecyclePolicy for {recipe}: every image would be kept, and paid"


RULES: tuple[Rule, ...] = (
    components_can_be_read,
    versions_can_change,
    builders_are_closed,
    image_ids_are_told,
    old_images_go,
)
