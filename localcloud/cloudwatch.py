"""Amazon CloudWatch: metrics and metric alarms. Dashboards are the emulator's; nothing else of it is played."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from localcloud import listing, metricqueries
from localcloud.alarms import ACTIONS, COMPARISONS, Alarm, Alarms
from localcloud.metricmath import Unreadable
from localcloud.metricqueries import Query
from localcloud.metrics import NO_UNIT, Metric, Metrics, Sample, sample
from localcloud.wire import Call, Fault, Permission, Service, plays
from localcloud.world import ACCOUNT, REGION, World

OLDEST, NEWEST = timedelta(weeks=2), timedelta(hours=2)
"""How old a value may be that is put, and how far in the future (API reference, PutMetricData)."""
MOST_METRICS = 10
"""In an alarm on metric math (CloudWatch user guide, "Alarms on math expressions")."""
ALARM_SETTINGS = (
    *("AlarmName", "AlarmDescription", "ActionsEnabled", "OKActions", "AlarmActions", "InsufficientDataActions"),
    *("MetricName", "Namespace", "Statistic", "ExtendedStatistic", "Dimensions", "Period", "Unit", "Metrics"),
    *("EvaluationPeriods", "DatapointsToAlarm", "Threshold", "ComparisonOperator", "TreatMissingData"),
    "WarmUpConfiguration",
)
ONE_METRIC = {"MetricName", "Namespace", "Statistic", "ExtendedStatistic", "Dimensions", "Period", "Unit"}


class CloudWatch(Service):
    """The `cloudwatch` service."""

    name = "cloudwatch"

    def __init__(self, world: World, metrics: Metrics, alarms: Alarms) -> None:
        self.world = world
        self.metrics = metrics
        self.alarms = alarms
        self._tags: dict[str, dict[str, str]] = {}

    def permissions(self, call: Call) -> Iterable[Permission]:
        """Alarms by ARN, what is put by its namespace (Service Authorization Reference)."""
        action, params = f"cloudwatch:{call.operation}", call.params
        if call.operation == "PutMetricData":
            return [Permission(action, "*", {"cloudwatch:namespace": params["Namespace"]})]
        if "Alarm" not in call.operation:
            return [Permission(action, params.get("ResourceARN", "*"))]
        names = params.get("AlarmNames") or [params.get("AlarmName", "*")]
        arns = [f"arn:aws:cloudwatch:{REGION}:{ACCOUNT}:alarm:{name}" for name in names]
        return [Permission(action, arn, self._tags_of(arn)) for arn in arns]

    def _tags_of(self, arn: str) -> dict[str, str]:
        return {f"aws:ResourceTag/{key}": value for key, value in self._tags.get(arn, {}).items()}

    # Metrics

    @plays("Namespace", "MetricData")
    def put_metric_data(self, call: Call) -> Mapping[str, Any]:
        """Custom metrics."""
        namespace = call.params["Namespace"]
        if namespace.startswith("AWS/"):
            raise Fault("InvalidParameterValue", "The value AWS/ for parameter Namespace is invalid.")
        now = self.world.now()
        taken = [(_metric(namespace, datum), _sample(datum, now)) for datum in call.params.get("MetricData", ())]
        for metric, one in taken:
            self.metrics.put(metric, one)
        return {}

    @plays("MetricDataQueries", "StartTime", "EndTime", "ScanBy")
    def get_metric_data(self, call: Call) -> Mapping[str, Any]:
        """Metrics and math on them, newest first unless asked otherwise."""
        params = call.params
        queries = metricqueries.read(params["MetricDataQueries"])
        newest_first = params.get("ScanBy", "TimestampDescending") == "TimestampDescending"
        results = []
        for one in queries.values():
            if not one.returned:
                continue
            found = sorted(self._over(queries, one, params).items(), reverse=newest_first)
            results.append(
                {
                    "Id": one.id,
                    "Label": one.label,
                    "Timestamps": [datetime.fromtimestamp(start, UTC) for start, _ in found],
                    "Values": [value for _, value in found],
                    "StatusCode": "Complete",
                }
            )
        return {"MetricDataResults": results, "Messages": []}

    @plays(
        *("Namespace", "MetricName", "Dimensions", "StartTime", "EndTime", "Period"),
        *("Statistics", "ExtendedStatistics", "Unit"),
    )
    def get_metric_statistics(self, call: Call) -> Mapping[str, Any]:
        """Statistics of one metric. AWS gives them in no order."""
        params = call.params
        metric, points = _metric(params["Namespace"], params), dict[float, dict[str, Any]]()
        for kind in ("Statistics", "ExtendedStatistics"):
            for statistic in params.get(kind, ()):
                query = metricqueries.of_metric(metric, statistic, params["Period"], params.get("Unit", ""))
                for start, value in self._over({query.id: query}, query, params).items():
                    point = points.setdefault(start, {"Timestamp": datetime.fromtimestamp(start, UTC)})
                    if kind == "Statistics":
                        point[statistic] = value
                    else:
                        point.setdefault("ExtendedStatistics", {})[statistic] = value
        return {"Label": metric.name, "Datapoints": list(points.values())}

    def _over(self, queries: Mapping[str, Query], wanted: Query, params: Mapping[str, Any]) -> Mapping[float, float]:
        seconds = self.world.scaled(wanted.period)
        first, last = (_utc(params[end]).timestamp() / seconds for end in ("StartTime", "EndTime"))
        times = [seconds * count for count in range(math.floor(first), math.ceil(last))]
        now = self.world.now().timestamp()
        try:
            return metricqueries.answer(queries, wanted.id, self.metrics, times, seconds, now)
        except Unreadable as error:
            raise Fault("ValidationError", str(error)) from None

    @plays("Namespace", "MetricName", "Dimensions", "NextToken")
    def list_metrics(self, call: Call) -> Mapping[str, Any]:
        """The metrics that have data. A dimension without a value is one that the metric must have."""
        params = call.params
        wanted = [(one["Name"], one.get("Value")) for one in params.get("Dimensions", ())]
        chosen = [
            metric
            for metric in self.metrics.all(self.world.now().timestamp())
            if params.get("Namespace", metric.namespace) == metric.namespace
            and params.get("MetricName", metric.name) == metric.name
            and all(
                dict(metric.dimensions).get(name) in ({value} if value else _values(metric)) for name, value in wanted
            )
        ]
        shown, more = listing.page(chosen, params, 500)
        return {
            "Metrics": [
                {
                    "Namespace": metric.namespace,
                    "MetricName": metric.name,
                    "Dimensions": [{"Name": name, "Value": value} for name, value in metric.dimensions],
                }
                for metric in shown
            ],
            **more,
        }

    # Alarms

    @plays(*ALARM_SETTINGS, "Tags")
    def put_metric_alarm(self, call: Call) -> Mapping[str, Any]:
        """A new alarm, or another configuration of an old one; tags are taken of a new one only."""
        params = {key: value for key, value in call.params.items() if key != "Tags"}
        _check(params)
        params["Threshold"] = float(params["Threshold"])
        queries, watched = _watched(params)
        with self.world.lock:
            new = self.alarms.get(params["AlarmName"]) is None
            self.alarms.put(params, queries, watched)
            if new:
                self._tags[self._alarm(params["AlarmName"]).arn] = _plain(call.params.get("Tags", ()))
        return {}

    @plays("AlarmNames", "AlarmNamePrefix", "AlarmTypes", "StateValue", "ActionPrefix", "MaxRecords", "NextToken")
    def describe_alarms(self, call: Call) -> Mapping[str, Any]:
        """Alarms by name."""
        params = call.params
        if "MetricAlarm" not in params.get("AlarmTypes", ["MetricAlarm"]):
            return {"MetricAlarms": [], "CompositeAlarms": []}
        with self.world.lock:
            chosen = [
                alarm
                for alarm in self.alarms.all()
                if alarm.name in params.get("AlarmNames", [alarm.name])
                and alarm.name.startswith(params.get("AlarmNamePrefix", ""))
                and params.get("StateValue", alarm.state) == alarm.state
                and any(one.startswith(params.get("ActionPrefix", "")) for one in ["", *_actions(alarm.params)])
            ]
            shown, more = listing.page(chosen, params, 50, "MaxRecords")
            return {"MetricAlarms": [_described(alarm) for alarm in shown], "CompositeAlarms": [], **more}

    @plays("AlarmName", "HistoryItemType", "StartDate", "EndDate", "ScanBy", "MaxRecords", "NextToken")
    def describe_alarm_history(self, call: Call) -> Mapping[str, Any]:
        """What became of alarms, newest first unless asked otherwise."""
        params = call.params
        with self.world.lock:
            told = sorted(
                (
                    line
                    for alarm in self.alarms.all()
                    if params.get("AlarmName", alarm.name) == alarm.name
                    for line in alarm.history
                    if params.get("HistoryItemType", line["HistoryItemType"]) == line["HistoryItemType"]
                    and _utc(params.get("StartDate", line["Timestamp"])) <= line["Timestamp"]
                    and line["Timestamp"] <= _utc(params.get("EndDate", line["Timestamp"]))
                ),
                key=lambda line: line["Timestamp"],
                reverse=params.get("ScanBy", "TimestampDescending") == "TimestampDescending",
            )
        shown, more = listing.page(told, params, 100, "MaxRecords")
        return {"AlarmHistoryItems": list(shown), **more}

    @plays("AlarmNames")
    def delete_alarms(self, call: Call) -> Mapping[str, Any]:
        """Remove alarms, all or none of those named."""
        with self.world.lock:
            gone = [self._alarm(name) for name in call.params["AlarmNames"]]
            for alarm in gone:
                self.alarms.delete(alarm.name)
                self._tags.pop(alarm.arn, None)
        return {}

    @plays("AlarmName", "StateValue", "StateReason")
    def set_alarm_state(self, call: Call) -> Mapping[str, Any]:
        """A state that lasts until the next evaluation, with its actions."""
        with self.world.lock:
            alarm = self._alarm(call.params["AlarmName"])
            self.alarms.set(alarm, call.params["StateValue"], call.params["StateReason"])
        return {}

    @plays("AlarmNames")
    def enable_alarm_actions(self, call: Call) -> Mapping[str, Any]:
        """Let alarms act."""
        return self._enable(call, True)

    @plays("AlarmNames")
    def disable_alarm_actions(self, call: Call) -> Mapping[str, Any]:
        """Have alarms not act."""
        return self._enable(call, False)

    def _enable(self, call: Call, enabled: bool) -> Mapping[str, Any]:
        with self.world.lock:
            for name in call.params["AlarmNames"]:
                self._alarm(name).enabled = enabled
        return {}

    @plays("ResourceARN", "Tags")
    def tag_resource(self, call: Call) -> Mapping[str, Any]:
        """Tags of an alarm."""
        with self.world.lock:
            self._tagged(call).update(_plain(call.params["Tags"]))
        return {}

    @plays("ResourceARN", "TagKeys")
    def untag_resource(self, call: Call) -> Mapping[str, Any]:
        """Take tags of an alarm away."""
        with self.world.lock:
            tags = self._tagged(call)
            for key in call.params["TagKeys"]:
                tags.pop(key, None)
        return {}

    @plays("ResourceARN")
    def list_tags_for_resource(self, call: Call) -> Mapping[str, Any]:
        """The tags of an alarm."""
        with self.world.lock:
            return {"Tags": [{"Key": key, "Value": value} for key, value in self._tagged(call).items()]}

    def retag(self, name: str, tags: Mapping[str, str]) -> str:
        """Give an alarm these tags in place of those it had. Returns its ARN."""
        with self.world.lock:
            arn = self._alarm(name).arn
            self._tags[arn] = dict(tags)
        return arn

    def _tagged(self, call: Call) -> dict[str, str]:
        arn = call.params["ResourceARN"]
        if arn not in self._tags:
            raise Fault("ResourceNotFoundException", f"Unknown {arn}")
        return self._tags[arn]

    def _alarm(self, name: str) -> Alarm:
        alarm = self.alarms.get(name)
        if alarm is None:
            raise Fault("ResourceNotFound", f"Unknown alarm {name}")
        return alarm


def _utc(at: datetime) -> datetime:
    """A time of a request, which the protocol layer gives without its zone."""
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _values(metric: Metric) -> set[str]:
    return {value for _, value in metric.dimensions}


def _plain(tags: Sequence[Mapping[str, str]]) -> dict[str, str]:
    return {one["Key"]: one["Value"] for one in tags}


def _metric(namespace: str, given: Mapping[str, Any]) -> Metric:
    return Metric.of(namespace, given["MetricName"], metricqueries.dimensions(given.get("Dimensions", ())))


def _sample(datum: Mapping[str, Any], now: datetime) -> Sample:
    """Raises Fault for a time that CloudWatch does not take, and for one value too few or too many."""
    at = _utc(datum.get("Timestamp", now))
    if not now - OLDEST <= at <= now + NEWEST:
        raise Fault(
            "InvalidParameterValue", "The parameter Timestamp must be within two weeks ago and two hours ahead."
        )
    if datum.get("StorageResolution", 60) != 60:
        raise Fault("NotPlayed", "the local cloud does not play metrics of high resolution")
    if sum(key in datum for key in ("Value", "Values", "StatisticValues")) != 1:
        raise Fault("InvalidParameterCombination", "MetricData needs one of Value, Values and StatisticValues.")
    moment, known, unit = at.timestamp(), now.timestamp(), datum.get("Unit", NO_UNIT)
    if "StatisticValues" in datum:
        told = datum["StatisticValues"]
        ends = ((told["Minimum"], 1.0), (told["Maximum"], 1.0))
        return Sample(moment, known, ends, told["SampleCount"], told["Sum"], unit, whole=False)
    values = datum.get("Values", [datum.get("Value")])
    counts = datum.get("Counts", [1.0] * len(values))
    if len(values) != len(counts):
        raise Fault("InvalidParameterValue", "Values and Counts must have the same length.")
    return sample(moment, known, list(zip(values, counts, strict=True)), unit)


def _watched(params: Mapping[str, Any]) -> tuple[dict[str, Query], str]:
    """What an alarm looks at: its queries, and the id of the one that returns the data. Raises Fault."""
    if "Metrics" not in params:
        if missing := sorted({"MetricName", "Namespace", "Period"} - set(params)):
            raise Fault("ValidationError", f"The parameters {', '.join(missing)} are missing.")
        if ("Statistic" in params) == ("ExtendedStatistic" in params):
            raise Fault("ValidationError", "Exactly one of Statistic and ExtendedStatistic must be specified.")
        statistic = params.get("Statistic") or params["ExtendedStatistic"]
        metric = _metric(params["Namespace"], params)
        query = metricqueries.of_metric(metric, statistic, params["Period"], params.get("Unit", ""))
        return {query.id: query}, query.id
    if both := sorted(ONE_METRIC & set(params)):
        raise Fault("ValidationError", f"Metrics must not be specified together with {', '.join(both)}.")
    queries = metricqueries.read(params["Metrics"])
    returned = [one for one in queries.values() if one.returned]
    if len(returned) != 1:
        raise Fault("ValidationError", "Exactly one element of the metrics list should return data.")
    if len({one.period for one in queries.values()}) != 1:
        raise Fault("ValidationError", "Metrics list must contain only metrics with the same period.")
    if sum(one.metric is not None for one in queries.values()) > MOST_METRICS:
        raise Fault("ValidationError", f"Metrics list must contain at most {MOST_METRICS} metrics.")
    return queries, returned[0].id


def _check(params: Mapping[str, Any]) -> None:
    """Refuse what AWS refuses of an alarm, and what is not played. Raises Fault."""
    if params["ComparisonOperator"] not in COMPARISONS:
        raise Fault("NotPlayed", f"the local cloud does not play {params['ComparisonOperator']}")
    if "Threshold" not in params:
        raise Fault("ValidationError", "The parameter Threshold is missing.")
    if params.get("DatapointsToAlarm", 1) > params["EvaluationPeriods"]:
        raise Fault("ValidationError", "DatapointsToAlarm must be less than or equal to EvaluationPeriods.")
    if params.get("TreatMissingData", "missing") not in ("missing", "ignore", "breaching", "notBreaching"):
        raise Fault("ValidationError", f"Option {params['TreatMissingData']} is not supported for TreatMissingData.")
    for action in _actions(params):
        if not action.startswith("arn:aws:sns:") and ":scalingPolicy:" not in action:
            raise Fault("NotPlayed", f"the local cloud does not play the alarm action {action}")


def _actions(params: Mapping[str, Any]) -> list[str]:
    return [action for kind in ACTIONS.values() for action in params.get(kind, ())]


def _described(alarm: Alarm) -> dict[str, Any]:
    return {
        **alarm.params,
        **{kind: list(alarm.params.get(kind, ())) for kind in ACTIONS.values()},
        **({} if "Metrics" in alarm.params else {"Dimensions": list(alarm.params.get("Dimensions", ()))}),
        "AlarmArn": alarm.arn,
        "ActionsEnabled": alarm.enabled,
        "AlarmConfigurationUpdatedTimestamp": alarm.configured,
        "StateValue": alarm.state,
        "StateReason": alarm.reason,
        "StateUpdatedTimestamp": alarm.updated,
        "StateTransitionedTimestamp": alarm.transitioned,
    }
