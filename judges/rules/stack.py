"""A stack as the rules look at it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from judges import Template
from judges.filled import filled

Objection = tuple[str, str]
"""The title of a resource, an output or a parameter, and what is wrong with it."""


@dataclass(frozen=True)
class Stack:
    """One template whose conditions are decided."""

    template: Template

    def of(self, *kinds: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Title and properties of the resources of these types (without the `AWS::`)."""
        for title, body in self.resources.items():
            if body.get("Type", "").removeprefix("AWS::") in kinds:
                yield title, body.get("Properties", {})

    @property
    def resources(self) -> dict[str, Any]:
        """All of them, by title."""
        resources: dict[str, Any] = self.template.get("Resources", {})
        return resources

    def kind(self, title: str) -> str:
        """A resource's type without the `AWS::`; empty when there is no such resource."""
        return str(self.resources.get(title, {}).get("Type", "")).removeprefix("AWS::")

    def properties(self, title: str) -> dict[str, Any]:
        """A resource's properties; none when there is no such resource."""
        properties: dict[str, Any] = self.resources.get(title, {}).get("Properties", {})
        return properties

    def filled(self, value: Any) -> Any:
        """The value with references worked out."""
        return filled(self.template, value)


Rule = Callable[[Stack], Iterator[Objection]]


def listed(value: Any) -> list[Any]:
    """A list where IAM and CloudFormation take one thing or many."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def strings(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every string inside, with its path."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from strings(inner, (*path, key))
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from strings(inner, (*path, str(place)))
