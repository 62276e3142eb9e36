"""The part of parliament.py that runs in the judges' own environment: policies on stdin, [where, what] on stdout."""

from __future__ import annotations

import json
import sys
from typing import Any

import parliament

IN_A_RESOURCE_POLICY = {"RESOURCE_STAR", "RESOURCE_EFFECTIVELY_STAR"}
"""There `*` is the resource itself, and no more."""


def findings(policy: dict[str, Any]) -> list[tuple[str, str]]:
    """What parliament says of one policy."""
    return [
        (policy["where"], f"{finding.issue} {finding.detail or finding.location.get('string', '')}")
        for finding in parliament.analyze_policy_string(json.dumps(policy["document"])).findings
        if policy["kind"] == "identity" or finding.issue not in IN_A_RESOURCE_POLICY
    ]


if __name__ == "__main__":
    json.dump([line for policy in json.load(sys.stdin) for line in findings(policy)], sys.stdout)
