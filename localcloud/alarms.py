"""CloudWatch's metric alarms: when they are evaluated, what state they come to, and what they do then.

Sources: CloudWatch user guide, "Alarm evaluation", "Configuring how CloudWatch alarms treat missing data", "Alarm
warm-up periods", "Alarm actions". An alarm is evaluated every minute, at a second of its own, on the minutes that are
over; when it looks back over more than a day, every hour.
"""

from __future__ import annotations

import json
import math
import operator
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from localcloud import metricqueries, substrate
from localcloud.metricqueries import Query
from localcloud.metrics import Metrics
from localcloud.world import ACCOUNT, REGION, World

OK, ALARM, INSUFFICIENT = "OK", "ALARM", "INSUFFICIENT_DATA"
ACTIONS = {OK: "OKActions", ALARM: "AlarmActions", INSUFFICIENT: "InsufficientDataActions"}
REGION_NAME = "US East (N. Virginia)"
EXTRA_PERIODS = 2
"""How many periods more than its evaluation periods an alarm looks back for data. AWS does not publish the rule; the
guide's examples look at 5 for 3, and an alarm of one daily period was seen to go on for three days without data."""
MINUTE, HOUR, DAY = 60, 3600, 86_400
COMPARISONS: Mapping[str, tuple[Callable[[float, float], bool], str]] = {
    "GreaterThanThreshold": (operator.gt, "greater than"),
    "GreaterThanOrEqualToThreshold": (operator.ge, "greater than or equal to"),
    "LessThanThreshold": (operator.lt, "less than"),
    "LessThanOrEqualToThreshold": (operator.le, "less than or equal to"),
}
MISSING, IGNORE, BREACHING, NOT_BREACHING = "missing", "ignore", "breaching", "notBreaching"


def judge(points: Sequence[bool | None], periods: int, to_alarm: int, treat: str) -> str | None:
    """The state that the evaluation range comes to, or None to keep the one there is. `points`: oldest first, whether
    each breaches, None for missing.

    With as many real points as evaluation periods only the newest of these count. Otherwise all do, and what is wanting
    is filled in as `treat` says. A few breaching points followed by silence are an alarm once the oldest is old enough
    ("Avoiding premature transitions to alarm state"); before that, an older edition of the table says that the data are
    insufficient.
    """
    real = [(age, bad) for age, bad in enumerate(reversed(points)) if bad is not None][:periods]
    bad = sum(breach for _, breach in real)
    wanting = periods - len(real)
    if bad >= to_alarm or (treat == BREACHING and bad + wanting >= to_alarm):
        return ALARM
    if not wanting or treat in (BREACHING, NOT_BREACHING) or bad < len(real):
        return OK
    if treat == IGNORE:
        return None
    return ALARM if real and real[-1][0] + 1 >= to_alarm else INSUFFICIENT


@dataclass(kw_only=True)
class Alarm:
    """One metric alarm."""

    params: Mapping[str, Any]
    """As PutMetricAlarm was given it."""
    queries: Mapping[str, Query]
    watched: str
    """Id of the query that returns the data."""
    configured: datetime
    created: datetime
    updated: datetime
    transitioned: datetime
    second: float
    """When in a minute or hour of AWS's it is evaluated, as a share of it."""
    enabled: bool = True
    state: str = INSUFFICIENT
    reason: str = "Unchecked: Initial alarm creation"
    evaluated: int = -1
    """The last minute or hour that was over when it was evaluated."""
    warm: bool = False
    """Whether its warm-up is over."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """As DescribeAlarmHistory tells it, newest first."""

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.params["AlarmName"])

    @property
    def arn(self) -> str:
        """Its ARN."""
        return f"arn:aws:cloudwatch:{REGION}:{ACCOUNT}:alarm:{self.name}"

    @property
    def period(self) -> int:
        """Seconds of AWS's."""
        return self.queries[self.watched].period

    @property
    def periods(self) -> int:
        """Evaluation periods."""
        return int(self.params["EvaluationPeriods"])

    @property
    def to_alarm(self) -> int:
        """Breaching points that it takes."""
        return int(self.params.get("DatapointsToAlarm", self.periods))

    @property
    def interval(self) -> int:
        """Seconds of AWS's between two evaluations."""
        return HOUR if self.period * self.periods > DAY else MINUTE

    def breaches(self, value: float) -> bool:
        """Whether a value is beyond the threshold."""
        return COMPARISONS[self.params["ComparisonOperator"]][0](value, self.params["Threshold"])


@dataclass(frozen=True)
class Breach:
    """What an alarm hands to a scaling policy."""

    alarm: str
    """Name."""
    state: str
    values: Sequence[float]
    """Of the newest evaluation periods, those that exist, oldest first."""
    threshold: float


Scale = Callable[[str, Breach], None]
"""Execute the policy of that ARN. Called with the world's lock held."""
Tell = Callable[[str, str, str, str], None]
"""`(topic ARN, alarm ARN, subject, message)`; does not wait."""


class Alarms:
    """Every alarm of the account. Every method is called with the world's lock held."""

    def __init__(self, world: World, metrics: Metrics, tell: Tell = substrate.alert) -> None:
        self._world = world
        self._metrics = metrics
        self._tell = tell
        self._scale: Scale = lambda arn, _: self._world.note("alarm action", arn, trouble="nobody has such a policy")
        self._alarms: dict[str, Alarm] = {}
        self._dice = random.Random(f"{world.seed} alarms")  # noqa: S311
        world.every_heartbeat(self.step)

    def scale_by(self, scale: Scale) -> None:
        """Let `scale` carry out the actions that are scaling policies."""
        self._scale = scale

    def all(self) -> list[Alarm]:
        """Every alarm by name."""
        return [self._alarms[name] for name in sorted(self._alarms)]

    def get(self, name: str) -> Alarm | None:
        """The alarm of that name, if there is one."""
        return self._alarms.get(name)

    def put(self, params: Mapping[str, Any], queries: Mapping[str, Query], watched: str) -> None:
        """A new alarm, or another configuration of an old one, which keeps its state."""
        now = self._world.now()
        alarm = self._alarms.get(params["AlarmName"])
        if alarm is None:
            alarm = Alarm(
                params=params,
                queries=queries,
                watched=watched,
                configured=now,
                created=now,
                updated=now,
                transitioned=now,
                second=self._dice.random(),
            )
            self._alarms[alarm.name] = alarm
            self._remember(alarm, "ConfigurationUpdate", f'Alarm "{alarm.name}" created', {"type": "Create"})
        else:
            alarm.params, alarm.queries, alarm.watched, alarm.configured = params, queries, watched, now
            self._remember(alarm, "ConfigurationUpdate", f'Alarm "{alarm.name}" updated', {"type": "Update"})
        alarm.enabled = params.get("ActionsEnabled", True)
        alarm.evaluated = self._over(alarm, now)

    def _over(self, alarm: Alarm, now: datetime) -> int:
        """How many of the alarm's minutes or hours were over when its second last came."""
        return math.floor(now.timestamp() / self._world.scaled(alarm.interval) - alarm.second)

    def delete(self, name: str) -> None:
        """Forget an alarm. One that does not exist is no error."""
        self._alarms.pop(name, None)

    def set(self, alarm: Alarm, state: str, reason: str) -> None:
        """Set a state from outside: it lasts until the next evaluation."""
        self._become(alarm, state, reason, [])

    def step(self, now: datetime) -> None:
        """Evaluate the alarms that are due."""
        for alarm in self.all():
            over = self._over(alarm, now)
            if over > alarm.evaluated:
                alarm.evaluated = over
                self._evaluate(alarm, over * self._world.scaled(alarm.interval), now)

    def _evaluate(self, alarm: Alarm, end: float, now: datetime) -> None:
        seconds = self._world.scaled(alarm.period)
        reach = alarm.periods + EXTRA_PERIODS
        times = [end - seconds * before for before in range(reach, 0, -1)]
        found = metricqueries.answer(alarm.queries, alarm.watched, self._metrics, times, seconds, now.timestamp())
        points = [(time, found.get(time)) for time in times]
        if not self._is_warm(alarm, [value for _, value in points[-alarm.periods :]], now):
            return
        breaches = [None if value is None else alarm.breaches(value) for _, value in points]
        treat = alarm.params.get("TreatMissingData", MISSING)
        state = judge(breaches, alarm.periods, alarm.to_alarm, treat) or alarm.state
        real = [(time, value) for time, value in points if value is not None][-alarm.periods :]
        self._become(alarm, state, _reason(alarm, state, real, treat), [value for _, value in real])

    def _is_warm(self, alarm: Alarm, newest: Sequence[float | None], now: datetime) -> bool:
        """Whether the warm-up is over: by time, or because there are data for the whole window."""
        asked = alarm.params.get("WarmUpConfiguration")
        if asked and not alarm.warm:
            lasts = self._world.scaled(MINUTE * asked["WarmUpPeriodDurationInMinutes"])
            early = not asked.get("OnlyStartEvaluatingAfterWarmUpPeriodEnds") and None not in newest
            alarm.warm = early or now >= alarm.created + timedelta(seconds=lasts)
        return alarm.warm or not asked

    def _become(self, alarm: Alarm, state: str, reason: str, values: Sequence[float]) -> None:
        """Take a state. Its actions follow when it is a new one; scaling policies for as long as it lasts."""
        before, now = alarm.state, self._world.now()
        if state != before:
            alarm.state, alarm.reason, alarm.updated, alarm.transitioned = state, reason, now, now
            self._world.note("alarm", alarm.name, state=state, before=before, reason=reason)
            told = {"oldState": {"stateValue": before}, "newState": {"stateValue": state, "stateReason": reason}}
            self._remember(alarm, "StateUpdate", f"Alarm updated from {before} to {state}", told)
        if not alarm.enabled:
            return
        for action in alarm.params.get(ACTIONS[state], ()):
            if ":scalingPolicy:" in action:
                self._scale(action, Breach(alarm.name, state, values, alarm.params["Threshold"]))
            elif state != before:
                subject = f'{state}: "{alarm.name}" in {REGION_NAME}'[:100]
                self._tell(action, alarm.arn, subject, json.dumps(_message(alarm, before)))

    def _remember(self, alarm: Alarm, kind: str, summary: str, told: Mapping[str, Any]) -> None:
        alarm.history.insert(
            0,
            {
                "AlarmName": alarm.name,
                "AlarmType": "MetricAlarm",
                "Timestamp": self._world.now(),
                "HistoryItemType": kind,
                "HistorySummary": summary,
                "HistoryData": json.dumps({"version": "1.0", **told}),
            },
        )


def _reason(alarm: Alarm, state: str, real: Sequence[tuple[float, float]], treat: str) -> str:
    """In CloudWatch's words, with the points that were looked at."""
    wanting = alarm.periods - len(real)
    if not real:
        if treat in (BREACHING, NOT_BREACHING):
            kind = "Breaching" if treat == BREACHING else "NonBreaching"
            return (
                f"Threshold Crossed: no datapoints were received for {alarm.periods} periods and {wanting} missing "
                f"datapoints were treated as [{kind}]."
            )
        return f"Insufficient Data: {wanting} datapoints were unknown."
    told = [(time, value) for time, value in real if alarm.breaches(value)] if state == ALARM else list(real)
    shown = ", ".join(
        f"{value} ({datetime.fromtimestamp(time, UTC):%d/%m/%y %H:%M:%S})" for time, value in reversed(told)
    )
    verb = "was" if len(told) == 1 else "were"
    words = COMPARISONS[alarm.params["ComparisonOperator"]][1]
    return (
        f"Threshold Crossed: {len(told)} out of the last {alarm.periods} datapoints [{shown}] {verb} "
        f"{'' if state == ALARM else 'not '}{words} the threshold ({alarm.params['Threshold']})."
    )


def _message(alarm: Alarm, before: str) -> dict[str, Any]:
    """What a topic gets, in the form that CloudWatch sends."""
    params = alarm.params
    trigger: dict[str, Any] = {
        "Period": alarm.period,
        "EvaluationPeriods": alarm.periods,
        "DatapointsToAlarm": alarm.to_alarm,
        "ComparisonOperator": params["ComparisonOperator"],
        "Threshold": params["Threshold"],
        "TreatMissingData": params.get("TreatMissingData", MISSING),
        "EvaluateLowSampleCountPercentile": "",
    }
    if "Metrics" in params:
        trigger["Metrics"] = [_spelt(query) for query in params["Metrics"]]
    else:
        trigger |= {
            "MetricName": params["MetricName"],
            "Namespace": params["Namespace"],
            "StatisticType": "Statistic" if "Statistic" in params else "ExtendedStatistic",
            **({"Statistic": params["Statistic"].upper()} if "Statistic" in params else {}),
            **({"ExtendedStatistic": params["ExtendedStatistic"]} if "ExtendedStatistic" in params else {}),
            "Unit": params.get("Unit"),
            "Dimensions": _spelt_dimensions(params.get("Dimensions", ())),
        }
    return {
        "AlarmName": alarm.name,
        "AlarmDescription": params.get("AlarmDescription"),
        "AWSAccountId": ACCOUNT,
        "AlarmConfigurationUpdatedTimestamp": _spelt_time(alarm.configured),
        "NewStateValue": alarm.state,
        "NewStateReason": alarm.reason,
        "StateChangeTime": _spelt_time(alarm.transitioned),
        "Region": REGION_NAME,
        "AlarmArn": alarm.arn,
        "OldStateValue": before,
        **{key: list(params.get(key, ())) for key in ACTIONS.values()},
        "Trigger": trigger,
    }


def _spelt(query: Mapping[str, Any]) -> dict[str, Any]:
    if "MetricStat" not in query:
        return dict(query)
    metric = query["MetricStat"]["Metric"]
    spelt = {**metric, "Dimensions": _spelt_dimensions(metric.get("Dimensions", ()))}
    return {**query, "MetricStat": {**query["MetricStat"], "Metric": spelt}}


def _spelt_dimensions(given: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    return [{"value": one["Value"], "name": one["Name"]} for one in given]


def _spelt_time(at: datetime) -> str:
    return f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03d}+0000"
