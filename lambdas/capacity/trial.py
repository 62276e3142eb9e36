"""Machines that are of no use, one after the other: after three, one is tried each quarter of an hour until one works.

An image without its driver, or a false alarm, spoils whatever is launched. Replaced at once, such machines would come
and go for ever, be paid for, and do no job. Spot and On-Demand are doubted each by itself: their types differ. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from capacity.moves import Standing, standing, works
from capacity.nouns import Bad, Instance, Policy, Seen

IN_A_ROW = 3
PAUSE = timedelta(minutes=15)
"""From one launch to the next; an instance that will never join is known by then."""
FORGOTTEN = timedelta(hours=2)
"""After its launch. Whoever has work tries one more often; who has none begins anew."""
PROVEN = timedelta(minutes=5)
"""So long after it joined, a machine that runs a task works: a worker looks at its GPU before anything else, but its
image may have to be pulled first.
"""


def in_a_row(seen: Seen, policy: Policy) -> tuple[Bad, ...]:
    """The machines of no use that were launched after the newest that works, of each kind the latest three.

    They are told apart by their ids: of a machine with eight workers one hears eight times.
    """
    found = {bad.id: bad for bad in seen.notes.bad if seen.at - bad.launched < FORGOTTEN}
    found |= {i.id: Bad(i.id, i.spot, i.launched) for i in seen.instances if _is_bad(i, seen, policy)}
    row: list[Bad] = []
    for spot in (True, False):
        proofs = [i.launched for i in seen.instances if i.spot is spot and i.id not in found and _works(i, seen.at)]
        later = (bad for bad in found.values() if bad.spot is spot and all(bad.launched > proof for proof in proofs))
        row += sorted(later, key=lambda bad: (bad.launched, bad.id))[-IN_A_ROW:]
    return tuple(row)


def is_doubted(bad: Sequence[Bad], *, spot: bool) -> bool:
    """Whether the last three of this kind were of no use."""
    return sum(one.spot is spot for one in bad) >= IN_A_ROW


def doubts(bad: Sequence[Bad]) -> list[str]:
    """Which kinds are doubted, in words."""
    return [
        f"the last {IN_A_ROW} {name} machines were of no use ({', '.join(one.id for one in bad if one.spot is spot)}): "
        f"one is tried every {PAUSE // timedelta(minutes=1)} min"
        for name, spot in (("Spot", True), ("On-Demand", False))
        if is_doubted(bad, spot=spot)
    ]


def tried(wanted: int, seen: Seen, bad: Sequence[Bad], policy: Policy, *, spot: bool) -> int:
    """How much is asked for where so much is wanted: units of Spot, instances of On-Demand.

    Of a kind that is doubted, that is what is there and may yet be of use, and one machine more if none of those is on
    trial and the last was launched a while ago. A unit brings one machine, however large.
    """
    if not is_doubted(bad, spot=spot):
        return wanted
    there = [
        i
        for i in seen.instances
        if i.spot is spot
        and i.id not in seen.noticed
        and standing(i, seen.at, policy) not in (Standing.BROKEN, Standing.LEAVING)
    ]
    is_due = all(seen.at - one.launched >= PAUSE for one in bad if one.spot is spot)
    another = is_due and all(_is_settled(i, seen.at) or i.surplus for i in there)
    return min(wanted, sum(i.units if spot else 1 for i in there) + int(another))


def _is_bad(instance: Instance, seen: Seen, policy: Policy) -> bool:
    """Whether a worker found its GPU broken, or it joined without one, or never will."""
    if instance.joined and instance.joined.arn in seen.broken:
        return True
    return instance.id not in seen.noticed and standing(instance, seen.at, policy) is Standing.BROKEN


def _is_settled(instance: Instance, at: datetime) -> bool:
    """Whether a worker on it would have told by now."""
    joined = instance.joined
    return joined is not None and works(joined) and at - joined.since >= PROVEN


def _works(instance: Instance, at: datetime) -> bool:
    return _is_settled(instance, at) and instance.joined is not None and instance.joined.running > 0
