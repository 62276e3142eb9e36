"""The CloudFormation resource types that our modules play."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol


class Resource(Protocol):
    """What a stack does with one type. Properties arrive resolved; a property that is not played is an error."""

    def create(self, logical_id: str, properties: dict[str, Any], stack: str) -> tuple[str, dict[str, Any]]:
        """Make it. Returns its physical id (what Ref gives) and its attributes (what GetAtt gives)."""
        ...

    def update(
        self, physical_id: str, old: dict[str, Any], new: dict[str, Any], stack: str
    ) -> tuple[str, dict[str, Any]]:
        """Change it, or replace it: then the id differs."""
        ...

    def delete(self, physical_id: str, properties: dict[str, Any]) -> None:
        """Remove it, and return when it is gone."""
        ...


Guard = Callable[[str], str | None]
"""Why the resource of that physical id cannot be deleted yet, in AWS's words; None when it can."""


class NotPlayed(Exception):
    """A template asks for something that the local cloud does not have: the deployment fails, as it should."""


def refuse_unplayed(kind: str, properties: Mapping[str, Any], honoured: set[str], inert: Mapping[str, str]) -> None:
    """Raise NotPlayed for a property that is neither honoured nor knowingly without effect here (`inert`: with why)."""
    if unknown := sorted(set(properties) - honoured - set(inert)):
        raise NotPlayed(f"{kind}: the local cloud does not play {', '.join(unknown)}")
