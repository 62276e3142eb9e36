"""What a pass has CloudWatch measure: the log line that tells of it is the measurement. Pure.

Lambda's log lines in the embedded metric format become metrics without a call (CloudWatch user guide, "Specification:
Embedded metric format").
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol

from capacity.notices import Kind, Notice
from capacity.nouns import Seen

NAMESPACE = "Spindrift"
DIMENSION = "Stack"
MOST_VALUES = 100
"""Of one metric in one line (the specification, "Target members")."""


class Metric(StrEnum):
    """The names that dashboard and alarms know. All are counts but the one in milliseconds."""

    NEEDED_UNITS = "NeededUnits"
    REQUESTED_SPOT_UNITS = "RequestedSpotUnits"
    REQUESTED_ON_DEMAND_UNITS = "RequestedOnDemandUnits"
    JOINED_SPOT_UNITS = "JoinedSpotUnits"
    JOINED_ON_DEMAND_UNITS = "JoinedOnDemandUnits"
    NOTICED_UNITS = "NoticedUnits"
    TOP_UP_UNITS = "TopUpUnits"
    NOTICES = "Notices"
    NOTICE_TO_DRAINING = "NoticeToDrainingMilliseconds"
    ERRORS = "PassErrors"


Values = Mapping[str, int | Sequence[int]]
"""By Metric."""


class Asked(Protocol):
    """What the decisions of all profiles have in common, in units."""

    @property
    def needed_units(self) -> int:
        """Of Spot and On-Demand, within their limits."""

    @property
    def spot_target(self) -> int:
        """Asked of Spot."""

    @property
    def on_demand_target(self) -> int:
        """Asked of On-Demand."""

    @property
    def noticed_units(self) -> int:
        """Of Spot, under notice."""

    @property
    def top_up_units(self) -> int:
        """Of On-Demand, in the place of Spot."""


def of_pass(seen: Seen, decision: Asked) -> Values:
    """What is needed, what this pass asked for, and what had joined when it looked."""
    joined = [i for i in seen.instances if i.joined and not i.joined.draining and i.id not in seen.noticed]
    return {
        Metric.NEEDED_UNITS: decision.needed_units,
        Metric.REQUESTED_SPOT_UNITS: decision.spot_target,
        Metric.REQUESTED_ON_DEMAND_UNITS: decision.on_demand_target,
        Metric.JOINED_SPOT_UNITS: sum(i.units for i in joined if i.spot),
        Metric.JOINED_ON_DEMAND_UNITS: sum(i.units for i in joined if not i.spot),
        Metric.NOTICED_UNITS: decision.noticed_units,
        Metric.TOP_UP_UNITS: decision.top_up_units,
        Metric.ERRORS: 0,
    }


def of_notices(heard: Iterable[Notice], drained: Collection[str], at: datetime) -> Values:
    """How many instances of ours were heard to be interrupted, and how long after that each was DRAINING, at `at`.

    One that two messengers tell of in one batch counts once, from the earlier time. In two batches it counts twice, and
    so does a batch that comes again after an error: never better than it was.
    """
    since: dict[str, list[datetime]] = {}
    for notice in heard:
        if notice.kind is Kind.INTERRUPTION and notice.instance in drained:
            since.setdefault(notice.instance, []).extend([notice.since] if notice.since else [])
    # Two clocks differ: a notice from the future was heard at once.
    took = sorted(max(0, (at - min(moments)) // timedelta(milliseconds=1)) for moments in since.values() if moments)
    values: dict[str, int | Sequence[int]] = {}
    if since:
        values[Metric.NOTICES] = len(since)
    if took:
        values[Metric.NOTICE_TO_DRAINING] = took[-MOST_VALUES:]
    return values


def embedded(stack: str, values: Values, at: datetime) -> dict[str, object]:
    """The values in embedded metric format, to be merged into a line of the log."""
    metrics = [
        {"Name": name, "Unit": "Milliseconds" if name == Metric.NOTICE_TO_DRAINING else "Count"} for name in values
    ]
    return {
        "_aws": {
            "Timestamp": int(at.timestamp() * 1000),
            "CloudWatchMetrics": [{"Namespace": NAMESPACE, "Dimensions": [[DIMENSION]], "Metrics": metrics}],
        },
        DIMENSION: stack,
        **values,
    }
