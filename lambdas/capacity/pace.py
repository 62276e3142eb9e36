"""Who comes how soon: what instances have shown of it lately. Pure."""

from __future__ import annotations

from datetime import timedelta

from capacity.notices import WARNING
from capacity.nouns import Policy, Seen


def on_demand_took(seen: Seen) -> timedelta | None:
    """How long the On-Demand instance took that joined last, be it gone by now; None if none ever did."""
    return _last_took(seen, spot=False) or seen.notes.on_demand_took


def comes_in_time(took: timedelta | None) -> bool:
    """Whether it comes while a notice lasts, so that nothing is missed."""
    return took is not None and took <= WARNING


def comes_before_spot(seen: Seen, took: timedelta | None, policy: Policy) -> bool:
    """Whether On-Demand that takes so long is there sooner than Spot, and Spot comes too late for a notice.

    Of what never came, nothing is known: it is tried, once.
    """
    spot = _last_took(seen, spot=True)
    return spot is not None and not comes_in_time(spot) and (took is None or took + policy.settle <= spot)


def _last_took(seen: Seen, *, spot: bool) -> timedelta | None:
    joined = [(i.joined.since, i.joined.since - i.launched) for i in seen.instances if i.joined and i.spot is spot]
    return max(joined)[1] if joined else None
