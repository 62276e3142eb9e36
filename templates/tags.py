"""The tags of everything that can be tagged."""

from __future__ import annotations

from typing import Any

from troposphere import Ref, Tags

from templates.settings import STACK_TAG, Settings


def tags(settings: Settings) -> Tags:
    """Ours, by which permissions know what belongs to this stack, and the operator's."""
    return Tags(as_mapping(settings))


def as_mapping(settings: Settings) -> dict[str, Any]:
    """The same, as a few services take them."""
    return {STACK_TAG: Ref("AWS::StackName"), **settings.tags}
