"""What a worker has CloudWatch measure, and that each metric is what its name says."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from gpu_worker.metrics import EVERY, Metric, Tally, embedded

NOON = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)


def seconds(count):
    return timedelta(seconds=count)


def test_a_minute_is_told_once_and_the_next_begins_at_nothing():
    tally = Tally(2, NOON)
    tally.count(Metric.SUCCEEDED)
    tally.count(Metric.SUCCEEDED)
    tally.time(Metric.WORKING, seconds(30))
    tally.time(Metric.WORKING, seconds(60))
    tally.err(seconds(10), seconds(15))
    tally.err(None, seconds(15))

    assert tally.due(NOON + seconds(59), None) is None
    assert tally.due(NOON + EVERY, 0.5) == {
        "JobsSucceeded": 2,
        "JobsFailed": 0,
        "JobsRetried": 0,
        "JobsReleased": 0,
        "ProcessorBusyPercent": 75.0,
        "GpuBusyPercent": 50.0,
        "WorkingMilliseconds": [30_000, 60_000],
        "EtaErrorPercent": [50],
    }
    assert tally.due(NOON + EVERY, None) is None
    assert set(tally.due(NOON + 2 * EVERY, None).values()) == {0}


def test_shares_have_one_decimal_and_an_eta_s_error_is_in_per_cent_of_it():
    tally = Tally(1, NOON)
    tally.time(Metric.WORKING, seconds(20))
    tally.err(seconds(10), seconds(30))
    told = tally.due(NOON + EVERY, 2 / 3)

    assert (told[Metric.BUSY], told[Metric.GPU_BUSY], told[Metric.ETA_ERROR]) == (33.3, 66.7, [200])


@pytest.mark.parametrize("count", [1, 100, 101])
def test_a_line_has_no_more_values_than_cloudwatch_takes(count):
    tally = Tally(1, NOON)
    for each in range(count):
        tally.time(Metric.STORING, timedelta(milliseconds=each))

    assert tally.due(NOON + EVERY, None)[Metric.STORING] == list(range(count))[-100:]


def test_a_job_of_many_minutes_keeps_a_processor_no_more_than_busy():
    tally = Tally(1, NOON)
    tally.time(Metric.WORKING, seconds(600))

    assert tally.due(NOON + EVERY, None)[Metric.BUSY] == 100


def test_the_line_is_in_the_format_that_cloudwatch_reads():
    tally = Tally(1, NOON)
    tally.time(Metric.READYING, seconds(1))
    tally.time(Metric.STORING, seconds(1))
    line = json.loads(json.dumps(embedded("cell", "default", tally.due(NOON + EVERY, None), NOON)))

    [directive] = line["_aws"]["CloudWatchMetrics"]
    assert (directive["Namespace"], directive["Dimensions"]) == ("Spindrift", [["Stack", "Queue"]])
    assert line["_aws"]["Timestamp"] == NOON.timestamp() * 1000
    assert [line["Stack"], line["Queue"]] == ["cell", "default"]
    assert {each["Name"]: each["Unit"] for each in directive["Metrics"]} == {
        "JobsSucceeded": "Count",
        "JobsFailed": "Count",
        "JobsRetried": "Count",
        "JobsReleased": "Count",
        "ProcessorBusyPercent": "Percent",
        "ReadyingMilliseconds": "Milliseconds",
        "StoringMilliseconds": "Milliseconds",
    }
    assert all(each["Name"] in line for each in directive["Metrics"])
