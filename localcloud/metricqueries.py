"""MetricDataQuery: metrics and math on them, as GetMetricData asks for them and alarms watch them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from localcloud import metricmath, metrics
from localcloud.metricmath import Expression, Scene, Series, Unreadable
from localcloud.metrics import Metric, Metrics, Unknown
from localcloud.wire import Fault

MINUTE = 60
PLAYED = {"Id", "MetricStat", "Expression", "Label", "ReturnData", "Period"}


@dataclass(frozen=True, kw_only=True)
class Query:
    """A metric with a statistic over periods, or an expression."""

    id: str
    label: str
    returned: bool
    period: int
    """In AWS's seconds; of an expression that of its metrics."""
    metric: Metric | None = None
    statistic: str = ""
    unit: str = ""
    expression: Expression | None = None


def read(given: Sequence[Mapping[str, Any]]) -> dict[str, Query]:
    """The queries of one request, by id. Raises Fault."""
    found: dict[str, Query] = {}
    asked = {one["Id"]: one for one in given}
    if len(asked) < len(given):
        raise Fault("ValidationError", "The Id of each query must be unique within the request.")

    def made(identity: str, above: tuple[str, ...]) -> Query:
        if identity in above:
            raise Fault("ValidationError", f"Query {identity} refers to itself.")
        if identity not in asked:
            raise Fault("ValidationError", f"Error in expression: unknown id {identity}.")
        if identity not in found:
            found[identity] = _query(asked[identity], lambda name: made(name, (*above, identity)))
        return found[identity]

    for identity in asked:
        made(identity, ())
    return {identity: found[identity] for identity in asked}


def _query(given: Mapping[str, Any], other: Callable[[str], Query]) -> Query:
    if unplayed := sorted(set(given) - PLAYED):
        raise Fault("NotPlayed", f"the local cloud does not play {', '.join(unplayed)} of a MetricDataQuery")
    identity, returned = given["Id"], given.get("ReturnData", True)
    if not identity[:1].islower():
        raise Fault("ValidationError", f"The Id {identity} does not start with a lowercase letter.")
    if ("MetricStat" in given) == ("Expression" in given):
        raise Fault("ValidationError", f"Query {identity} must have either MetricStat or Expression.")
    if "MetricStat" in given:
        return _of_metric(identity, given.get("Label", ""), returned, given["MetricStat"])
    try:
        expression = metricmath.parse(given["Expression"])
    except Unreadable as error:
        raise Fault("NotPlayed", f"{error} (query {identity})") from None
    periods = {other(name).period for name in expression.names} | ({given["Period"]} if "Period" in given else set())
    if len(periods) != 1:
        raise Fault("NotPlayed", f"the local cloud plays an expression of metrics of one period, not {identity}")
    return Query(
        id=identity,
        label=given.get("Label", identity),
        returned=returned,
        period=periods.pop(),
        expression=expression,
    )


def _of_metric(identity: str, label: str, returned: bool, stat: Mapping[str, Any]) -> Query:
    asked = stat["Metric"]
    return of_metric(
        Metric.of(asked.get("Namespace", ""), asked["MetricName"], dimensions(asked.get("Dimensions", ()))),
        stat["Stat"],
        stat["Period"],
        stat.get("Unit", ""),
        id=identity,
        label=label or asked["MetricName"],
        returned=returned,
    )


def of_metric(metric: Metric, statistic: str, period: int, unit: str = "", **rest: Any) -> Query:
    """A query of one metric. Raises Fault for a period or statistic that is not played."""
    if period % MINUTE or period <= 0:
        raise Fault("NotPlayed", f"the local cloud plays periods of whole minutes, not of {period} seconds")
    try:
        metrics.check(statistic)
    except Unknown as error:
        raise Fault("NotPlayed", str(error)) from None
    return Query(
        **{"id": "m1", "label": metric.name, "returned": True, **rest},
        metric=metric,
        statistic=statistic,
        period=period,
        unit=unit,
    )


def dimensions(given: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """By name: the value."""
    return {one["Name"]: one["Value"] for one in given}


def answer(
    queries: Mapping[str, Query], wanted: str, store: Metrics, times: Sequence[float], seconds: float, now: float
) -> Series:
    """The time series of one query over periods of `seconds` that start at `times`. Raises Unreadable."""
    known: dict[str, Series] = {}

    def series(identity: str) -> Series:
        query = queries[identity]
        if query.metric is not None:
            return store.series(query.metric, query.statistic, times, seconds, now, query.unit)
        if query.expression is None:
            raise Unreadable(f"{identity} has neither a metric nor an expression")
        for name in query.expression.names:
            if name not in known:
                known[name] = series(name)
        return query.expression.over(Scene(known, periods, times))

    periods = {identity: one.period for identity, one in queries.items() if one.metric is not None}
    return series(wanted)
