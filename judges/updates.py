"""What an update of a stack makes anew, by CloudFormation's own resource schemas (cfn-lint's copy).

CloudFormation replaces a resource when a property changes that can only be set on creation. A property changes when its
text does, or when it refers to something that is itself new: a replaced resource, a parameter, a launch template's
latest version.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any

from cfnlint.schema.manager import PROVIDER_SCHEMA_MANAGER

from judges import Template
from judges.filled import settled
from judges.rules.stack import Stack
from judges.rules.upkeep import KEPT, stateful

DOCUMENTED = {
    # CloudFormation's reference, FleetLaunchTemplateSpecification and LaunchTemplateOverrides: "Update requires:
    # Replacement". The schema does not say so; we count on the worse.
    "AWS::EC2::SpotFleet": ["/properties/SpotFleetRequestConfigData/LaunchTemplateConfigs"],
}
NEVER = {
    # Only with an UpdatePolicy of AutoScalingReplacingUpdate, which we do not have.
    "AWS::AutoScaling::AutoScalingGroup": "conditionalCreateOnlyProperties",
    # Only where ReplaceComputeEnvironment is not false, which a rule of ours asks for.
    "AWS::Batch::ComputeEnvironment": "conditionalCreateOnlyProperties",
}
OWN_PARTS = {
    # A new version for every change of what is launched.
    "AWS::EC2::LaunchTemplate": "LatestVersionNumber",
}

Resources = dict[str, Any]
"""By title, with every condition true."""


def replaced(old: Template, new: Template, changed: Collection[str] = ()) -> dict[str, list[str]]:
    """Title -> the properties for which it is replaced. `changed` are the parameters that get another value."""
    return _replaced(_resources(old), _resources(new), changed)


def _replaced(before: Resources, after: Resources, changed: Collection[str]) -> dict[str, list[str]]:
    both = [title for title in before if title in after]
    moved, found = set(changed), dict[str, list[str]]()
    while True:
        for title in both:
            was, is_now = before[title], after[title]
            if was["Type"] != is_now["Type"]:
                found[title] = ["Type"]
            elif properties := [path for path in _fixed(was["Type"]) if _differs(was, is_now, path, moved)]:
                found[title] = [path.removeprefix("/properties/") for path in properties]
        more = set(found) | {
            f"{title}.{OWN_PARTS[after[title]['Type']]}"
            for title in both
            if after[title]["Type"] in OWN_PARTS and _differs(before[title], after[title], "/properties", moved)
        }
        if more <= moved:
            return found
        moved |= more


def removed(old: Template, new: Template) -> dict[str, bool]:
    """Title of what the new template has no longer -> whether it stays in the account (DeletionPolicy)."""
    return _removed(_resources(old), _resources(new))


def _removed(before: Resources, after: Resources) -> dict[str, bool]:
    return {title: body.get("DeletionPolicy") in KEPT for title, body in before.items() if title not in after}


def lost(old: Template, new: Template, changed: Collection[str] = ()) -> set[str]:
    """What holds work or history and would be replaced, or removed without being kept. Must be nothing."""
    before, after = _resources(old), _resources(new)
    gone = {title for title, stays in _removed(before, after).items() if not stays}
    return stateful(Stack({"Resources": before})) & ({*_replaced(before, after, changed)} | gone)


def _resources(template: Template) -> Resources:
    resources: Resources = settled(template, True)["Resources"]
    return resources


def _fixed(kind: str) -> list[str]:
    """The paths of a type's properties that can only be set on creation."""
    schema = PROVIDER_SCHEMA_MANAGER.get_resource_schema("us-east-1", kind).schema
    names = {"createOnlyProperties", "conditionalCreateOnlyProperties"} - {NEVER.get(kind)}
    return [*(path for name in sorted(names) for path in schema.get(name) or ()), *DOCUMENTED.get(kind, ())]


def _differs(was: Any, is_now: Any, path: str, moved: Collection[str]) -> bool:
    value = _at(is_now, _steps(path))
    return value != _at(was, _steps(path)) or any(
        name in moved or name.partition(".")[0] in moved for name in _references(value)
    )


def _steps(path: str) -> list[str]:
    """The way from a resource to a property: the schema's `/properties/A/B` is Properties, A, B."""
    return path.strip("/").replace("properties", "Properties", 1).split("/")


def _at(value: Any, steps: list[str]) -> Any:
    for place, step in enumerate(steps):
        if step == "*" and isinstance(value, list):
            return [_at(item, steps[place + 1 :]) for item in value]
        value = value.get(step) if isinstance(value, dict) else None
    return value


def _references(value: Any) -> Iterator[str]:
    """The resources, attributes (`Title.Attribute`) and parameters that a value is made of."""
    if isinstance(value, list):
        for item in value:
            yield from _references(item)
    if not isinstance(value, dict):
        return
    for key, said in value.items():
        if key == "Ref":
            yield said
        elif key == "Fn::GetAtt":
            yield said if isinstance(said, str) else ".".join(said)
        elif key == "Fn::Sub":
            yield from re.findall(r"\$\{([\w:.]+)\}", said if isinstance(said, str) else said[0])
            yield from _references(said)
        else:
            yield from _references(said)


def stuck(old: Template, new: Template, changed: Collection[str] = ()) -> set[str]:
    """What would be replaced under the name that it has: CloudFormation makes the new one first, and AWS refuses it."""
    after = _resources(new)
    return {
        title
        for title, properties in _replaced(_resources(old), after, changed).items()
        for path in _fixed(after[title]["Type"])
        if path.endswith(f"/{after[title]['Type'].rpartition('::')[2]}Name")
        and path.removeprefix("/properties/") not in properties
        and _at(after[title], _steps(path)) is not None
    }
