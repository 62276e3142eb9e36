"""All judges, by name, in the order in which they are asked: the quick ones first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from judges import (
    Finding,
    Templates,
    cfn_lint,
    checkov,
    hadolint,
    parliament,
    policy_validator,
    rules,
    scripts,
)


@dataclass(frozen=True)
class Product:
    """What is judged: templates as JSON reads them, and the text of Dockerfiles, by name."""

    templates: Templates
    dockerfiles: Mapping[str, str]


JUDGES: dict[str, Callable[[Product], list[Finding]]] = {
    "rules": lambda product: rules.judge(product.templates),
    "shellcheck": lambda product: scripts.shellcheck(product.templates),
    "systemd": lambda product: scripts.systemd(product.templates),
    "hadolint": lambda product: hadolint.judge(product.dockerfiles),
    "parliament": lambda product: parliament.judge(product.templates),
    "cfn-policy-validator": lambda product: policy_validator.judge(product.templates),
    "checkov": lambda product: checkov.judge(product.templates),
    "cfn-lint": lambda product: cfn_lint.judge(product.templates),
}
"""The name stands first in each of a judge's findings. Any may raise NotSetUp or NotHere."""
