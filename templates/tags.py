"""The tags of everything that can be tagged."""

from __future__ import annotations

from troposphere import Ref, Tags

from templates.settings import STACK_TAG, Settings


def tags(settings: Settings) -> Tags:
    """Ours, by which permissions know what belongs to this stack, and the operator's."""
    return Tags({STACK_TAG: Ref("AWS::StackName"), **settings.tags})
