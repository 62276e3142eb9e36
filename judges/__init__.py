"""Independent judges of what Spindrift renders. Each looks, says what it finds, and changes nothing.

No AWS account is asked: what AWS would refuse, or take and then silently not do, must be found here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Template = dict[str, Any]
"""A CloudFormation template as JSON reads it."""
Templates = Mapping[str, Template]
"""Templates by the name under which findings speak of them."""


@dataclass(frozen=True, order=True)
class Finding:
    """One judge's objection: to what, and why."""

    judge: str
    where: str
    what: str

    def __str__(self) -> str:
        """As a line for people."""
        return f"{self.judge}: {self.where}: {self.what}"


class NotSetUp(Exception):
    """A judge's program or environment is missing; the message says what installs it."""


class NotHere(Exception):
    """This machine has not what the judge needs, and we do not install it; the message says what."""
