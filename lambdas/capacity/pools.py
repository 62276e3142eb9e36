"""What the market is told of pools: when EC2 took instances of ours. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from capacity.nouns import Instance

MOST_TAKEN = 20


@dataclass(frozen=True)
class Taken:
    """Of one pool: when each instance was taken, in seconds since 1970, and which it was; the latest last."""

    taken: list[int]
    ids: list[str]


def by_pool(instances: Iterable[Instance]) -> dict[str, list[str]]:
    """Ids of instances by their pool."""
    pools: dict[str, list[str]] = {}
    for instance in instances:
        pools.setdefault(instance.pool, []).append(instance.id)
    return pools


def with_taken(row: Mapping[str, Any], instances: Sequence[str], at: datetime) -> Taken | None:
    """A pool's row with these instances, None when it stays as it is.

    An instance is taken once, however often a look shows it under notice. Of very many at once the list has no room for
    all; those that it has then stay, or each look would replace them and the time with them.
    """
    before = Taken([int(moment) for moment in row.get("taken", ())], [str(one) for one in row.get("taken_ids", ())])
    room = MOST_TAKEN - len(set(before.ids) & set(instances))
    new = sorted(set(instances) - set(before.ids))[:room]
    if not new:
        return None
    return Taken([*before.taken, *[int(at.timestamp())] * len(new)][-MOST_TAKEN:], [*before.ids, *new][-MOST_TAKEN:])
