"""How much capacity, of which kind, and why: a pure function of one look.

Nothing is remembered between passes but what AWS keeps for us (`Notes`), so a pass that is repeated, cut short, or run
twice at once ends in the same place. What is needed follows the backlog (`need`); Spot is asked for all of it;
On-Demand makes up for what Spot does not bring (`topup`); and who leaves or comes back follows from that (`moves`).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from math import ceil

from capacity import gpus
from capacity.breaker import with_loss
from capacity.moves import Moves, Standing, Wanted, moves, standing
from capacity.need import Needed, limits, lingering, needed, tasks_for, units_for
from capacity.nouns import Decision, Instance, Notes, Policy, Seen
from capacity.pace import comes_in_time, on_demand_took
from capacity.topup import doomed, top_up
from capacity.trial import doubts, in_a_row, tried


def decide(seen: Seen, policy: Policy) -> Decision:
    """Turn one look into absolute numbers and the reason for them."""
    staying = [i for i in seen.instances if i.id not in seen.noticed]
    there = gpus.of(i for i in staying if standing(i, seen.at, policy) is Standing.USABLE)
    units = units_for(seen, policy)
    kept, ample_since = lingering(seen, units, there, policy)
    now, held = needed(units, policy, there), needed(kept, policy, there)

    taken = [i for i in seen.instances if i.spot and i.id in seen.noticed and not i.surplus]
    risky = _at_risk(seen, policy)
    twice = min(sum(i.units for i in seen.instances if i.id in risky), ceil(held.spot * policy.risk_share))
    took = on_demand_took(seen)
    bad = in_a_row(seen, policy)
    lasting, all_spot = (tried(units, seen, bad, policy, spot=True) for units in (held.spot, held.spot + twice))
    spot = moves(
        (i for i in staying if i.spot),
        Wanted(
            units=all_spot,
            floor=lasting,
            calm=timedelta(0) if comes_in_time(took) else policy.calm,
            size=lambda i: i.units,
            may_be_relieved=lambda i: i.id in risky,
        ),
        seen.at,
        policy,
    )
    notes = Notes(
        short_since=(seen.notes.short_since or seen.at) if spot.have < now.spot else None,
        ample_since=ample_since,
        waves=with_loss(
            seen.notes.waves,
            taken=sum(i.units for i in taken),
            left=spot.joined,
            at=seen.at,
        ),
        worked=min(now.shared, max(seen.notes.worked, spot.joined + _helping(seen, now, taken))),
        on_demand_took=took,
        bad=bad,
    )
    wanted, why = top_up(seen, policy, notes, now, held, spot)
    wanted = tried(wanted, seen, bad, policy, spot=False)
    on_demand = moves(
        (i for i in staying if not i.spot),
        Wanted(units=wanted, floor=wanted, calm=policy.calm, size=lambda _: 1, may_be_relieved=lambda _: True),
        seen.at,
        policy,
    )
    desired = _desired(wanted, seen)
    too_many = desired - wanted

    asides = [f"{held.units - now.units} more linger, for the work has just become less"] if held != now else []
    if twice:
        asides.append(f"{twice} are had twice, for instances at risk are to be replaced")
    if now.units:
        asides += doubts(bad)
    return Decision(
        reason="; ".join([why, *limits(units, policy), *asides]),
        needed_units=now.units,
        healthy_units=spot.have,
        noticed_units=doomed(seen),
        spot_target=_target(seen, spot, all_spot, lasting),
        on_demand_desired=desired,
        on_demand_target=desired * policy.on_demand_units,
        top_up_units=max(0, wanted - ceil(held.on_demand / policy.on_demand_units)) * policy.on_demand_units,
        services=tasks_for(kept, gpus.of([*spot.stay, *on_demand.stay]), policy),
        notes=notes,
        evacuate=tuple(i.id for i in seen.instances if i.id in seen.overdue and i.joined and not i.joined.draining),
        taken=tuple(i.id for i in taken),
        warn=tuple(i.id for i in seen.instances if i.spot and i.id in seen.warned and not _known(i, seen, policy)),
        drain=on_demand.drain + spot.drain,
        relieve=on_demand.relieve + spot.relieve,
        reactivate=spot.back + on_demand.back,
        terminate_spot=spot.end,
        terminate_on_demand=on_demand.end[:too_many],
        replace_on_demand=on_demand.end[too_many:],
    )


def _target(seen: Seen, spot: Moves, wanted: int, lasting: int) -> int:
    """The fleet's target.

    While something is missing, the fleet is also asked for what it counts and we do not: an instance that is being
    taken, or ends its last job, is its own until it ends, and would not be replaced before. When all is there, it is
    asked for what is to last: at a higher target it would replace what leaves.
    """
    if spot.have >= wanted:
        return lasting
    settled = {*spot.back, *spot.end}
    leaving = sum(
        i.units
        for i in seen.instances
        if i.spot and (i.id in seen.noticed or (i.joined and i.joined.draining)) and i.id not in settled
    )
    return wanted + max(0, min(leaving, int(seen.fulfilled) - spot.have))


def _helping(seen: Seen, now: Needed, taken: Sequence[Instance]) -> int:
    """Units that work, or did until a moment ago, beside the Spot that stays; On-Demand that rests can be had back."""
    on_demand = sum(
        i.units
        for i in seen.instances
        if not i.spot and i.joined and (i.surplus or not i.joined.draining) and i.id not in seen.noticed
    )
    return max(0, on_demand - now.on_demand) + sum(i.units for i in taken if i.joined)


def _at_risk(seen: Seen, policy: Policy) -> frozenset[str]:
    """Spot that works, and that EC2 recommends to replace."""
    return frozenset(
        i.id
        for i in seen.instances
        if i.spot
        and (i.id in seen.warned or _known(i, seen, policy))
        and i.id not in seen.noticed
        and standing(i, seen.at, policy) is Standing.USABLE
    )


def _known(instance: Instance, seen: Seen, policy: Policy) -> bool:
    """Whether a recommendation is written on the instance, and not too old."""
    return instance.warned is not None and seen.at - instance.warned < policy.risk


def _desired(wanted: int, seen: Seen) -> int:
    """Raise at once; lower only what has not been launched.

    A group whose desired capacity falls below its size picks a victim itself, perhaps a busy one.
    """
    return max(wanted, min(seen.on_demand_requested, seen.on_demand_present))
