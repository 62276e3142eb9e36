"""The local cloud's alarms: judged as CloudWatch judges, no sooner, and their actions."""

import json
from datetime import timedelta

import pytest
from alarms_make import IN_FLIGHT, TOPIC, WAITING, Watched, math, message
from hypothesis import given
from hypothesis import strategies as st

from localcloud import embedded, telemetry
from localcloud.alarms import ALARM, INSUFFICIENT, OK, judge
from localcloud.metrics import Metric, Metrics, Sample, Unknown, sample, statistic_of
from localcloud.wire import Fault

KEEP = None
X, O, _ = True, False, None  # noqa: E741 - the guide's own signs


@pytest.fixture
def cloud(tmp_path):
    return Watched(tmp_path)


# The tables of "Configuring how CloudWatch alarms treat missing data"


@pytest.mark.parametrize(
    ("points", "to_alarm", "missing", "ignore", "breaching", "not_breaching"),
    [
        ([O, _, X, _, X], 3, OK, OK, OK, OK),
        ([O, _, _, _, _], 3, OK, OK, OK, OK),
        ([_, _, _, _, _], 3, INSUFFICIENT, KEEP, ALARM, OK),
        ([O, X, X, _, X], 3, ALARM, ALARM, ALARM, ALARM),
        ([_, _, X, _, _], 3, ALARM, KEEP, ALARM, OK),
        ([O, _, X, _, X], 2, ALARM, ALARM, ALARM, ALARM),
        ([O, O, X, O, X], 2, ALARM, ALARM, ALARM, ALARM),
        ([O, _, X, _, _], 2, OK, OK, ALARM, OK),
        ([_, _, _, _, O], 2, OK, OK, ALARM, OK),
        ([_, _, _, X, _], 2, ALARM, KEEP, ALARM, OK),
        # By the words before the tables: more than enough points, and points from farther back.
        ([X, X, O, O, X], 2, OK, OK, OK, OK),
        ([X, _, X, _, O], 2, ALARM, ALARM, ALARM, ALARM),
        # Of the text on premature transitions, and of the older edition's table.
        ([_, _, _, _, X], 3, INSUFFICIENT, KEEP, ALARM, OK),
        ([_, _, _, X, _], 3, INSUFFICIENT, KEEP, ALARM, OK),
    ],
)
def test_the_tables_of_the_guide(points, to_alarm, missing, ignore, breaching, not_breaching):
    said = [judge(points, 3, to_alarm, treat) for treat in ("missing", "ignore", "breaching", "notBreaching")]
    assert said == [missing, ignore, breaching, not_breaching]


points = st.lists(st.sampled_from([X, O, _]), min_size=5, max_size=5)
treats = st.sampled_from(["missing", "ignore", "breaching", "notBreaching"])


@given(points, st.integers(1, 3), treats)
def test_one_more_breach_never_calms_an_alarm(points, to_alarm, treat):
    worse = [X if one is O else one for one in points]
    if judge(points, 3, to_alarm, treat) == ALARM:
        assert judge(worse, 3, to_alarm, treat) == ALARM


@given(points, st.integers(1, 3))
def test_real_points_alone_decide_when_there_are_enough(points, to_alarm):
    said = {judge(points, 3, to_alarm, treat) for treat in ("missing", "ignore", "breaching", "notBreaching")}
    if sum(one is not None for one in points) >= 3:
        assert len(said) == 1


# When an alarm is evaluated


def test_a_new_alarm_has_no_state_until_it_was_evaluated(cloud):
    cloud.measure(9)
    cloud.alarm()
    assert cloud.state() == INSUFFICIENT
    assert 0 < cloud.until(lambda: cloud.state() == ALARM) <= 2


def test_a_minute_counts_only_when_it_is_over(cloud):
    cloud.alarm(TreatMissingData="notBreaching")
    cloud.minutes(3)
    cloud.world.advance(60 - cloud.world.now().timestamp() % 60)
    cloud.measure(9)
    alarm = cloud.alarms.get("load")
    assert cloud.until(lambda: cloud.state() == ALARM) >= 1
    assert alarm.transitioned.timestamp() % 60 == pytest.approx(60 * alarm.second, abs=0.5)


def test_each_alarm_has_a_second_of_its_own(cloud):
    for number in range(20):
        cloud.alarm(f"alarm{number}", TreatMissingData="breaching")
    assert len({alarm.second for alarm in cloud.alarms.all()}) == 20
    cloud.world.advance(6)
    assert len(cloud.ask("DescribeAlarms", StateValue="ALARM")["MetricAlarms"]) < 10
    cloud.world.advance(60)
    assert len(cloud.ask("DescribeAlarms", StateValue="ALARM")["MetricAlarms"]) == 20


def test_a_breach_in_the_past_is_over_after_the_evaluation_range(cloud):
    cloud.alarm(TreatMissingData="notBreaching")
    cloud.measure(9)
    cloud.until(lambda: cloud.state() == ALARM)
    assert 2 <= cloud.until(lambda: cloud.state() == OK) <= 3.1


def test_long_periods_slide_by_the_minute(cloud):
    cloud.alarm(Period=300, Statistic="Sum", Threshold=11, TreatMissingData="notBreaching")
    cloud.minutes(3.5)
    cloud.measure(6)
    cloud.minutes(3)
    cloud.measure(6)
    # The two are in no five minutes of the clock, but in five minutes.
    assert cloud.until(lambda: cloud.state() == ALARM) <= 2


def test_an_alarm_over_more_than_a_day_is_evaluated_by_the_hour(cloud):
    cloud.alarm(Period=3600, EvaluationPeriods=25, DatapointsToAlarm=1, TreatMissingData="notBreaching")
    cloud.minutes(61)
    cloud.measure(9)
    changed = cloud.until(lambda: cloud.state() == ALARM, minutes=130)
    assert changed > 30
    alarm = cloud.alarms.get("load")
    assert alarm.transitioned.timestamp() % 3600 == pytest.approx(3600 * alarm.second, abs=0.5)


def test_a_warm_up_holds_an_alarm_until_it_is_over_or_the_data_are_there(cloud):
    warm = {"EvaluationPeriods": 3, "TreatMissingData": "breaching"}
    cloud.alarm("late", WarmUpConfiguration={"WarmUpPeriodDurationInMinutes": 10}, **warm)
    cloud.alarm("fed", MetricName="Fed", WarmUpConfiguration={"WarmUpPeriodDurationInMinutes": 10}, **warm)
    whole = {"WarmUpPeriodDurationInMinutes": 10, "OnlyStartEvaluatingAfterWarmUpPeriodEnds": True}
    cloud.alarm("whole", MetricName="Fed", WarmUpConfiguration=whole, **warm)
    for _minute in range(5):
        cloud.measure(1, "Fed")
        cloud.minutes(1)
    assert [cloud.state(name) for name in ("late", "fed", "whole")] == [INSUFFICIENT, OK, INSUFFICIENT]
    cloud.minutes(7)
    assert cloud.state("late") == ALARM


def test_an_update_keeps_the_state_and_changes_the_rest(cloud):
    cloud.alarm(TreatMissingData="breaching")
    cloud.until(lambda: cloud.state() == ALARM)
    cloud.alarm(TreatMissingData="notBreaching")
    assert cloud.state() == ALARM
    cloud.until(lambda: cloud.state() == OK)


def test_the_speed_of_the_world_shortens_periods(tmp_path):
    fast = Watched(tmp_path)
    fast.world.speed = 60
    fast.alarm(TreatMissingData="breaching", EvaluationPeriods=5)
    fast.world.advance(2.5)
    assert fast.state() == ALARM


# What an alarm does


def test_a_topic_is_told_once_of_each_change(cloud):
    cloud.alarm(AlarmActions=[TOPIC], OKActions=[TOPIC], TreatMissingData="notBreaching")
    cloud.minutes(3)
    for _minute in range(4):
        cloud.measure(9)
        cloud.minutes(1)
    cloud.minutes(6)
    assert [subject.split(":")[0] for _topic, _alarm, subject, _message in cloud.told] == [OK, ALARM, OK]


def test_the_message_is_cloudwatchs(cloud):
    cloud.alarm(AlarmActions=[TOPIC], AlarmDescription="too much")
    cloud.measure(9)
    cloud.until(lambda: cloud.told)
    topic, alarm, subject, text = cloud.told[0]
    said = json.loads(text)
    assert (topic, alarm) == (TOPIC, "arn:aws:cloudwatch:us-east-1:123456789012:alarm:load")
    assert subject == 'ALARM: "load" in US East (N. Virginia)'
    assert (said["AlarmName"], said["NewStateValue"], said["OldStateValue"]) == ("load", ALARM, INSUFFICIENT)
    assert said["NewStateReason"].startswith("Threshold Crossed: 1 out of the last 1 datapoints [9.0 (")
    assert said["NewStateReason"].endswith(" was greater than the threshold (5.0).")
    assert said["Trigger"]["Statistic"] == "MAXIMUM"
    assert said["AlarmActions"] == [TOPIC]


def test_no_action_is_taken_when_they_are_switched_off(cloud):
    cloud.alarm(AlarmActions=[TOPIC], ActionsEnabled=False, TreatMissingData="breaching")
    cloud.minutes(3)
    assert cloud.state() == ALARM
    assert cloud.told == []
    cloud.ask("EnableAlarmActions", AlarmNames=["load"])
    cloud.ask("SetAlarmState", AlarmName="load", StateValue="OK", StateReason="a test")
    cloud.until(lambda: cloud.told)


def test_a_state_that_was_set_lasts_until_the_next_evaluation(cloud):
    cloud.alarm(AlarmActions=[TOPIC], TreatMissingData="notBreaching")
    cloud.minutes(3)
    cloud.ask("SetAlarmState", AlarmName="load", StateValue="ALARM", StateReason="a test")
    assert cloud.told[-1][2].startswith("ALARM")
    cloud.minutes(1.1)
    assert cloud.state() == OK
    history = cloud.ask("DescribeAlarmHistory", AlarmName="load", HistoryItemType="StateUpdate")["AlarmHistoryItems"]
    assert [line["HistorySummary"].split(" from ")[1] for line in history][:2] == ["ALARM to OK", "OK to ALARM"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ComparisonOperator": "GreaterThanUpperThreshold"}, "does not play GreaterThanUpperThreshold"),
        ({"Period": 10}, "whole minutes"),
        ({"Statistic": "Sum", "ExtendedStatistic": "p99"}, "Exactly one"),
        ({"DatapointsToAlarm": 2}, "DatapointsToAlarm"),
        ({"AlarmActions": ["arn:aws:lambda:us-east-1:123456789012:function:f"]}, "alarm action"),
        ({"Metrics": math("SUM(METRICS())")}, "SUM"),
        ({"Metrics": math("waiting + other")}, "unknown id other"),
        ({"Metrics": [{**one, "ReturnData": True} for one in math("waiting")]}, "Exactly one element"),
        ({"Metrics": [{"Id": "a", "Expression": "b"}, {"Id": "b", "Expression": "a"}]}, "refers to itself"),
        ({"TreatMissingData": "perhaps"}, "TreatMissingData"),
        ({"EvaluateLowSampleCountPercentile": "ignore"}, "does not play EvaluateLowSampleCountPercentile"),
    ],
)
def test_an_alarm_that_aws_refuses_or_nobody_plays_is_refused(cloud, changes, said):
    with pytest.raises(Fault, match=said):
        cloud.alarm(**changes)


# The metrics of queues, with their delays


def jobs(cloud, *messages):
    cloud.queues["jobs"] = list(messages)


def now(cloud):
    return cloud.world.now().timestamp()


def test_what_sqs_tells_of_a_queue_and_of_what_it_is_silent():
    at = 1000.0
    waits, runs = message(at, sent=90), message(at, sent=50, hidden=20, received=1)
    later, poison = message(at, sent=5, hidden=20), message(at, sent=500, hidden=20, received=3)
    assert telemetry.of_queue([], at) == {WAITING: 0}
    assert telemetry.of_queue([waits, runs, later, poison], at) == {
        WAITING: 1,
        IN_FLIGHT: 2,
        "ApproximateNumberOfMessagesDelayed": 1,
        "ApproximateAgeOfOldestMessage": 90,
    }


def test_a_queue_that_was_asleep_tells_nothing_for_up_to_a_quarter_of_an_hour(tmp_path):
    waits = []
    for seed in range(12):
        cloud = Watched(tmp_path / str(seed), seed)
        jobs(cloud, message(now(cloud)))
        waits.append(cloud.until(lambda cloud=cloud: cloud.cloudwatch.metrics.all(now(cloud)), minutes=20))
    assert max(waits) > 8
    assert max(waits) <= 17


def seen(cloud, name=WAITING):
    """The newest minute of a queue's metric that CloudWatch shows, as seconds ago; None when it shows none."""
    metric = Metric.of("AWS/SQS", name, {"QueueName": "jobs"})
    minute = now(cloud) // 60
    times = [60.0 * (minute - back) for back in range(60)]
    return next(
        (now(cloud) - time for time in times if cloud.cloudwatch.metrics.series(metric, "Sum", [time], 60, now(cloud))),
        None,
    )


def test_an_active_queue_is_told_of_one_to_four_minutes_late(cloud):
    jobs(cloud)
    cloud.minutes(30)
    ages = []
    for _minute in range(100):
        cloud.world.advance(20)
        ages.append(seen(cloud))
    assert 90 <= min(ages)
    assert 150 <= max(ages) <= 240


def test_an_idle_queue_falls_silent_after_six_hours_and_wakes_late(cloud):
    jobs(cloud)
    cloud.minutes(30)
    assert seen(cloud) is not None
    cloud.world.clock += timedelta(hours=6)
    cloud.minutes(10)
    assert seen(cloud) is None or seen(cloud) > 5 * 60
    cloud.telemetry.accessed("http://127.0.0.1:4566/123456789012/jobs")
    silent = cloud.until(lambda: seen(cloud) is not None and seen(cloud) < 300, minutes=20)
    assert silent > 1


def test_a_message_keeps_a_queue_awake(cloud):
    jobs(cloud, message(now(cloud)))
    cloud.minutes(30)
    cloud.world.clock += timedelta(hours=7)
    cloud.minutes(10)
    assert seen(cloud) < 300


def test_jobs_to_do_goes_off_minutes_after_a_job_came(cloud):
    cloud.alarm("todo", Metrics=math("IF(waiting > 0, waiting + FILL(in_flight, 0), 0)"), Threshold=0)
    jobs(cloud)
    cloud.minutes(30)
    assert cloud.state("todo") == OK
    jobs(cloud, message(now(cloud)))
    assert 1 <= cloud.until(lambda: cloud.state("todo") == ALARM) <= 5


def test_no_jobs_waits_for_five_empty_minutes_and_takes_silence_for_empty(cloud):
    none = {"Threshold": 0, "ComparisonOperator": "LessThanOrEqualToThreshold", "EvaluationPeriods": 5}
    cloud.alarm("none", Metrics=math("FILL(waiting, 0) + FILL(in_flight, 0)"), TreatMissingData="breaching", **none)
    jobs(cloud, message(now(cloud), hidden=36000, received=1))
    cloud.minutes(30)
    assert cloud.state("none") == OK
    jobs(cloud)
    # Five, less the newest ones, of which SQS says nothing yet and FILL says none.
    assert 3 <= cloud.until(lambda: cloud.state("none") == ALARM) <= 7


# The store


def test_statistics_of_values_with_counts():
    store, metric = Metrics(), Metric("n", "m")
    store.put(metric, sample(10, 10, [(1.0, 3.0), (5.0, 1.0)]))
    store.put(metric, sample(20, 20, [(3.0, 1.0)]))
    told = {
        statistic: store.series(metric, statistic, [0, 60], 60, now=100)
        for statistic in ("SampleCount", "Sum", "Average", "Minimum", "Maximum", "p50", "p99")
    }
    assert told == {
        "SampleCount": {0: 5},
        "Sum": {0: 11},
        "Average": {0: 2.2},
        "Minimum": {0: 1},
        "Maximum": {0: 5},
        "p50": {0: 1},
        "p99": {0: 5},
    }


def test_nothing_is_known_before_it_is_shown():
    store, metric = Metrics(), Metric("n", "m")
    store.put(metric, sample(10, 90, [(1.0, 1.0)]))
    assert store.series(metric, "Sum", [0], 60, now=89) == {}
    assert store.all(89) == []
    assert store.series(metric, "Sum", [0], 60, now=90) == {0: 1}


def test_a_set_of_statistics_tells_percentiles_only_of_one_value():
    ends = ((2.0, 1.0), (4.0, 1.0))
    assert statistic_of([Sample(0, 0, ends, 10, 30, whole=False)], "p90") is None
    assert statistic_of([Sample(0, 0, ends, 10, 30, whole=False)], "Average") == 3
    assert statistic_of([Sample(0, 0, ((2.0, 1.0), (2.0, 1.0)), 10, 20, whole=False)], "p90") == 2


def test_a_trimmed_mean_is_not_guessed():
    with pytest.raises(Unknown):
        statistic_of([sample(0, 0, [(1.0, 1.0)])], "tm99")


# The embedded metric format


LINE = {
    "_aws": {
        "Timestamp": 1_700_000_000_000,
        "CloudWatchMetrics": [
            {
                "Namespace": "Spindrift",
                "Dimensions": [["Stack"]],
                "Metrics": [{"Name": "Notices", "Unit": "Count"}, {"Name": "Took", "Unit": "Milliseconds"}],
            }
        ],
    },
    "Stack": "one",
    "Notices": 2,
    "Took": [5, 7.5],
}


def read(**changes):
    return {metric.name: taken for metric, taken in embedded.samples(json.dumps({**LINE, **changes}), 3.0)}


def test_a_log_line_is_a_measurement():
    found = read()
    assert found["Notices"] == Sample(1.7e9, 1.7e9 + 3, ((2.0, 1.0),), 1, 2, "Count")
    assert (found["Took"].count, found["Took"].total, found["Took"].unit) == (2, 12.5, "Milliseconds")
    [(metric, _taken)] = [one for one in embedded.samples(json.dumps(LINE), 0) if one[0].name == "Notices"]
    assert metric == Metric("Spindrift", "Notices", (("Stack", "one"),))


@pytest.mark.parametrize(
    "changes",
    [{"Notices": "2"}, {"Notices": None}, {"Notices": [1] * 101}, {"Notices": []}, {"Notices": True}, {"Stack": 5}],
)
def test_what_does_not_keep_to_the_format_is_no_measurement(changes):
    assert "Notices" not in read(**changes)


@pytest.mark.parametrize("line", ["START RequestId", '{"_aws": 5}', '"_aws"', '{"_aws": {"Timestamp": 1}}', "{}"])
def test_other_lines_are_none(line):
    assert list(embedded.samples(line, 0)) == []
