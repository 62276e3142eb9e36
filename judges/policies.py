"""Every policy document of a template, as AWS will have it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from judges import Template, Templates
from judges.filled import filled, settled


@dataclass(frozen=True)
class Policy:
    """One document and where it stands. Kinds: identity (what a role may do), trust (who may be it), resource."""

    where: str
    kind: str
    document: dict[str, Any]


def every(templates: Templates) -> list[Policy]:
    """The policies of all templates, whichever of their conditions hold, each once."""
    found: list[Policy] = []
    for name, template in templates.items():
        for holds in (True, False):
            for policy in _of(name, settled(template, holds)):
                if policy not in found:
                    found.append(policy)
    return found


def _of(name: str, template: Template) -> Iterator[Policy]:
    for title, body in template.get("Resources", {}).items():
        properties = body.get("Properties", {})
        where = f"{name}: {title}"
        in_role = body["Type"].startswith("AWS::IAM::")
        documents = [
            ("trust", properties.get("AssumeRolePolicyDocument")),
            ("identity" if in_role else "resource", properties.get("PolicyDocument")),
            ("resource", properties.get("KeyPolicy")),
            ("resource", _of_itself(properties.get("FileSystemPolicy"))),
            *(("identity", policy.get("PolicyDocument")) for policy in properties.get("Policies", ())),
        ]
        for kind, document in documents:
            if isinstance(document, dict):
                yield Policy(where, kind, filled(template, document))


def _of_itself(document: Any) -> Any:
    """A file system's own policy, which may leave out the resource that it cannot name."""
    if not isinstance(document, dict):
        return None
    return {**document, "Statement": [{"Resource": "*", **statement} for statement in document.get("Statement", ())]}
