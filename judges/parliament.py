"""parliament: every policy against the Service Authorization Reference.

Finds unknown actions and prefixes, condition keys and operators that an action does not have, resources that an action
does not know, ARNs of no form, and Resource "*" for an action that can be limited.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from judges import Finding, Templates, apart, policies

PROGRAM = Path(__file__).with_name("parliament_apart.py")


def judge(templates: Templates) -> list[Finding]:
    """All policies but those of trust, which parliament cannot read, in one process of the judges' own environment."""
    found = [policy for policy in policies.every(templates) if policy.kind != "trust"]
    said = json.loads(apart.run([str(PROGRAM)], stdin=json.dumps([asdict(policy) for policy in found])))
    return sorted({Finding("parliament", where, what) for where, what in said})
