"""What On-Demand is bought and kept for: its own work, and what Spot does not bring, as the urgency allows. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

from capacity.breaker import tripped_until
from capacity.moves import Moves
from capacity.need import Needed, most_on_demand, pressing
from capacity.nouns import Notes, Policy, Seen, Urgency
from capacity.pace import comes_before_spot, comes_in_time

CALMLY = 0.2
"""Of the longest wait: On-Demand stays until Spot alone leaves so much to spare."""
INSURED = 0.5
"""Of the shared work: so much is On-Demand's while the breaker is tripped."""


def doomed(seen: Seen) -> int:
    """Units of Spot instances under notice."""
    return sum(i.units for i in seen.instances if i.spot and i.id in seen.noticed)


@dataclass(frozen=True, kw_only=True)
class _Help:
    """What On-Demand may do of the shared work, in units: what is worth buying now, and `why`, and what may stay."""

    buy: int
    stay: int
    why: str


def top_up(seen: Seen, policy: Policy, notes: Notes, now: Needed, held: Needed, spot: Moves) -> tuple[int, str]:
    """How many On-Demand instances are wanted, and why.

    What only On-Demand may do is wanted at once; the rest makes up for Spot. What was bought for that, be it ready or
    not, stays until Spot stands for it.
    """
    if policy.urgency is Urgency.DEADLINE:
        aid = _by_deadline(seen, policy, now, held, spot)
    else:
        aid = _at_once(seen, policy, notes, now, held, spot)
    size = policy.on_demand_units
    buy, stay = ceil((now.on_demand + aid.buy) / size), ceil((held.on_demand + aid.stay) / size)
    wanted = min(most_on_demand(policy), max(buy, min(seen.on_demand_requested, stay)))

    if not now.units:
        return wanted, "no work"
    if aid.buy:
        why = aid.why
    elif now.spot > spot.have:
        why = f"Spot has {now.spot - spot.have} more to bring"
    elif aid.stay and wanted > ceil(held.on_demand / size):
        why = "Spot is whole but not calm yet: On-Demand stays"
    elif seen.on_demand_present > wanted:
        why = "Spot is whole and calm: On-Demand leaves"
    else:
        why = "Spot is whole"
    told = f", {now.on_demand} of them On-Demand alone" if now.on_demand else ""
    return wanted, f"{now.units} units needed{told}, {why}"


def _at_once(seen: Seen, policy: Policy, notes: Notes, now: Needed, held: Needed, spot: Moves) -> _Help:
    """Make up for what is lost at once, for what has yet to be launched after patience, for more in a storm.

    What worked and is still needed, and is not there, is lost: however it went, and whoever saw it go. A replacement
    that boots stands for it, unless On-Demand is ready sooner.
    """
    aid = _after_patience(seen, policy, now, held, spot)
    lost = max(0, notes.worked - (spot.joined if comes_before_spot(seen, notes.on_demand_took, policy) else spot.have))
    if lost > aid.buy:
        aid = replace(aid, buy=lost, why=f"Spot lost {lost}: On-Demand makes up for it at once")
    until = tripped_until(notes.waves)
    if until is None or seen.at >= until or comes_in_time(notes.on_demand_took):
        return aid
    insured = ceil(now.shared * INSURED)
    why = f"EC2 takes Spot again and again: On-Demand does at least {insured} until {until:%H:%M} UTC"
    return replace(aid, buy=max(insured, aid.buy), stay=held.shared, why=why)


def _after_patience(seen: Seen, policy: Policy, now: Needed, held: Needed, spot: Moves) -> _Help:
    """Make up for a shortage that lasts. What is bought stays for the work that Spot has not settled to yet."""
    shortage = max(0, now.shared - spot.have)
    short_since = seen.notes.short_since
    impatient = short_since is not None and seen.at - short_since >= policy.patience
    return _Help(
        buy=shortage if impatient else min(shortage, _late(seen, policy)),
        stay=max(0, held.shared - spot.settled),
        why=f"Spot short of {shortage} for longer than {policy.patience}: On-Demand makes up for it",
    )


def _late(seen: Seen, policy: Policy) -> int:
    """Units of Spot that boot for longer than patience lasts."""
    return sum(
        i.units
        for i in seen.instances
        if i.spot and not i.joined and i.id not in seen.noticed and seen.at - i.launched >= policy.patience
    )


def _by_deadline(seen: Seen, policy: Policy, now: Needed, held: Needed, spot: Moves) -> _Help:
    """Make up for what would be late on Spot alone; what cannot be told is taken for a shortage that lasts."""
    now_or_late, calmly = pressing(seen, policy), pressing(seen, policy, CALMLY)
    aid = _after_patience(seen, policy, now, held, spot)
    if now_or_late is None or calmly is None:
        return replace(aid, why=f"how long jobs take is not known, and {aid.why}")
    late = max(0, min(now_or_late, now.shared) - spot.have)
    stay = min(aid.stay, max(0, calmly - spot.joined))
    return _Help(buy=late, stay=stay, why=f"jobs would be late on Spot alone: On-Demand does {late}")
