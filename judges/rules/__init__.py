"""Our own rules: what AWS takes, or refuses only on deployment, and no other judge knows.

Finds the faults that the others are blind to, and breaches of the AWS facts that this design rests on. Each rule is a
function of a stack whose conditions are decided; it yields the title of a resource and what is wrong with it.
"""

from __future__ import annotations

from judges import Finding, Templates
from judges.filled import settled
from judges.rules import access, images, jobs, machines, messages, upkeep, work
from judges.rules.stack import Rule, Stack

RULES: tuple[Rule, ...] = (
    *machines.RULES,
    *work.RULES,
    *messages.RULES,
    *access.RULES,
    *upkeep.RULES,
    *images.RULES,
    *jobs.RULES,
)


def judge(templates: Templates) -> list[Finding]:
    """All rules on all templates, with their conditions true and false."""
    return sorted(
        {
            Finding("rules", f"{name}: {title}", what)
            for name, template in templates.items()
            for stack in [Stack(settled(template, holds)) for holds in (True, False)]
            for rule in RULES
            for title, what in rule(stack)
        }
    )
