"""What On-Demand is bought and kept for: its own work, and what Spot does not bring, as the urgency allows. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

from capacity.breaker import tripped_until
from capacity.moves import Moves, Standing, standing
from capacity.need import Needed, most_on_demand, units_in_time
from capacity.nouns import Notes, Policy, Seen, Urgency

EASILY = 0.5
"""Of the time that is left: On-Demand stays until Spot alone would be done within so much of it."""
INSURED = 0.5
"""Of the shared work: so much is On-Demand's while the breaker is tripped."""


def doomed(seen: Seen) -> int:
    """Units of Spot instances under notice."""
    return sum(i.units for i in seen.instances if i.spot and i.id in seen.noticed)


@dataclass(frozen=True, kw_only=True)
class _Help:
    """What On-Demand may do of the shared work, in units.

    `buy` is worth buying now, and `why`; of what is there, booting instances are worth `boot`, joined ones `stay`.
    """

    buy: int
    boot: int
    stay: int
    why: str


def top_up(seen: Seen, policy: Policy, notes: Notes, now: Needed, held: Needed, spot: Moves) -> tuple[int, str]:
    """How many On-Demand instances are wanted, and why.

    What only On-Demand may do is wanted at once; the rest makes up for Spot.
    """
    if policy.urgency is Urgency.DEADLINE:
        aid = _by_deadline(seen, policy, now, held, spot)
    else:
        aid = _at_once(seen, policy, notes, now, held, spot)
    size = policy.on_demand_units
    joined = sum(i.joined is not None and not i.spot and i.id not in seen.noticed for i in seen.instances)
    stay = max(min(joined, ceil((held.on_demand + aid.stay) / size)), ceil((now.on_demand + aid.boot) / size))
    buy = ceil((now.on_demand + aid.buy) / size)
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

    An interruption is told from a fleet that still launches without counting events: if Spot was whole at the last
    pass, then whatever is missing of the target *requested* then has been lost since. If Spot was short already, only
    what is under notice now is known to be lost. What was bought stays; so it is enough that one pass sees a loss.
    """
    aid = _after_patience(seen, policy, now, held, spot)
    shortage = max(0, now.shared - spot.have)
    lost = min(shortage, max(doomed(seen), 0 if seen.notes.short_since else seen.requested - spot.have))
    if not aid.buy:
        aid = replace(aid, buy=lost, why=f"Spot lost {lost}: On-Demand makes up for it at once")
    until = tripped_until(notes.waves)
    insured = ceil(now.shared * INSURED)
    if until is None or seen.at >= until:
        return aid
    why = f"EC2 takes Spot again and again: On-Demand does at least {insured} until {until:%H:%M} UTC"
    return replace(aid, buy=max(insured, aid.buy), stay=held.shared, why=why)


def _after_patience(seen: Seen, policy: Policy, now: Needed, held: Needed, spot: Moves) -> _Help:
    """Make up for a shortage that lasts. What has joined stays for the work that Spot has not settled to yet."""
    shortage = max(0, now.shared - spot.have)
    short_since = seen.notes.short_since
    impatient = short_since is not None and seen.at - short_since >= policy.patience
    return _Help(
        buy=shortage if impatient else 0,
        boot=max(0, now.shared - _as_soon(seen, policy)),
        stay=max(0, held.shared - spot.settled),
        why=f"Spot short of {shortage} for longer than {policy.patience}: On-Demand makes up for it",
    )


def _as_soon(seen: Seen, policy: Policy) -> int:
    """Units of Spot that have joined, or will as soon as On-Demand that boots: they were launched no later."""
    booting = [i.launched for i in seen.instances if not i.spot and not i.joined and i.id not in seen.noticed]
    latest = min(booting, default=seen.at) + policy.settle
    return sum(
        i.units
        for i in seen.instances
        if i.spot
        and i.id not in seen.noticed
        and standing(i, seen.at, policy) is Standing.USABLE
        and (i.joined or i.launched <= latest)
    )


def _by_deadline(seen: Seen, policy: Policy, now: Needed, held: Needed, spot: Moves) -> _Help:
    """Make up for what would be late on Spot alone; what cannot be told is taken for a shortage that lasts."""
    in_time, easily = units_in_time(seen, policy), units_in_time(seen, policy, EASILY)
    aid = _after_patience(seen, policy, now, held, spot)
    if in_time is None or easily is None:
        return replace(aid, why=f"how long jobs take is not known, and {aid.why}")
    late = max(0, min(in_time, now.shared) - spot.have)
    stay = min(aid.stay, max(0, easily - spot.have))
    return _Help(buy=late, boot=stay, stay=stay, why=f"jobs would be late on Spot alone: On-Demand does {late}")
