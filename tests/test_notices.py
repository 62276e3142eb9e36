"""Every dialect of bad news, from the sample events in docs/events."""

import json
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lambdas_make import EVENTS as SAMPLES
from lambdas_make import sample

from capacity.notices import BROKEN_GPU, EVENTS, WARNING, Broken, Ignored, Kind, Notice, Wake, read
from gpu_worker.health import BROKEN

INSTANCE = "i-0123456789abcdef0"
ARN = "arn:aws:ecs:eu-west-1:123456789012:container-instance/spindrift/0f1e2d3c4b5a69788796a5b4c3d2e1f0"
DEADLINE = datetime(2024, 5, 1, 12, 2, tzinfo=UTC)
OBSERVED = datetime(2024, 5, 1, 12, 0, 1, tzinfo=UTC)
FROM_AGENT = Notice(
    kind=Kind.INTERRUPTION, instance=INSTANCE, since=OBSERVED, deadline=DEADLINE, container_instance=ARN
)
FROM_004 = Notice(kind=Kind.INTERRUPTION, instance=INSTANCE, container_instance=ARN)
ALARM = Wake("alarm spindrift-jobs-to-do is ALARM")


@pytest.mark.parametrize(
    "name, heard",
    [
        ("notice-interruption", FROM_AGENT),
        ("notice-rebalance", replace(FROM_AGENT, kind=Kind.REBALANCE, deadline=None)),
        ("notice-lifecycle", replace(FROM_AGENT, kind=Kind.LIFECYCLE, deadline=None)),
        ("notice-source-004", FROM_004),
        ("sns-notice", FROM_AGENT),
        ("sns-lambda-notice-source-004", FROM_004),
        ("wake", Wake("first upload after a quiet time")),
        ("alarm", ALARM),
        ("alarm-jobs-to-do", Wake("alarm spindrift-DefaultJobsToDoAlarm-7G8H9I0J1K2L is ALARM")),
        ("alarm-no-jobs", Wake("alarm spindrift-DefaultNoJobsAlarm-3M4N5O6P7Q8R is ALARM")),
        ("sns-alarm", ALARM),
        (
            "eventbridge-interruption-warning",
            Notice(kind=Kind.INTERRUPTION, instance=INSTANCE, since=DEADLINE - WARNING, deadline=DEADLINE),
        ),
        ("eventbridge-rebalance-recommendation", Notice(kind=Kind.REBALANCE, instance=INSTANCE)),
        ("eventbridge-instance-state", Wake(f"{INSTANCE} is shutting-down")),
        ("eventbridge-spot-fleet-instance-change", Wake("EC2 Spot Fleet Instance Change: launched")),
        ("eventbridge-spot-fleet-error", Wake("EC2 Spot Fleet Error: spotInstanceCountLimitExceeded")),
        ("eventbridge-terminate-lifecycle", Notice(kind=Kind.LIFECYCLE, instance=INSTANCE)),
        ("eventbridge-launch-lifecycle", Wake(f"{INSTANCE} launches")),
        ("eventbridge-container-instance", Wake(f"{INSTANCE} is ACTIVE in ECS")),
        ("eventbridge-task-stopped", Broken(ARN)),
        ("eventbridge-schedule", Wake("the minute")),
    ],
)
def test_every_dialect_is_understood(name, heard):
    assert read(sample(name)) == [heard]


def test_only_the_worker_that_found_the_gpu_broken_speaks_of_its_machine():
    event = json.loads(sample("eventbridge-task-stopped"))
    event["detail"]["containers"][0]["exitCode"] = 137

    assert read(json.dumps(event)) == [Ignored("a task stopped for another reason than a broken GPU")]
    assert BROKEN_GPU == BROKEN, "the worker says it in other words"


def test_every_sample_but_those_of_s3_is_understood():
    names = [path.stem for path in SAMPLES.glob("*.json") if not path.stem.startswith("s3-")]

    assert not [name for name in names for heard in read(sample(name)) if isinstance(heard, Ignored)]


def test_there_is_a_sample_of_every_event():
    shown = {json.loads(path.read_text()).get("detail-type") for path in SAMPLES.glob("*.json")}

    assert set(EVENTS) <= shown


@pytest.mark.parametrize(
    "body, reason",
    [
        ("hello", "not JSON"),
        ("[]", "in no dialect we know"),
        ('{"detail-type": "AWS Health Event"}', "no use for the event 'AWS Health Event'"),
        ('{"schema": "spindrift.notice/2"}', "in no dialect we know"),
        (
            '{"schema": "spindrift.notice/1", "kind": "interruption"}',
            "from_agent cannot read it: KeyError 'instanceId'",
        ),
        ('{"schema": "spindrift.notice/1", "kind": "rain", "instanceId": "i-1"}', "'rain' is not a valid Kind"),
        ('{"terminationNotificiation": "true", "instanceId": "i-1\'] or true"}', "is no instance id"),
        ('{"detail-type": "EC2 Instance Rebalance Recommendation", "detail": null}', "cannot read it: TypeError"),
        ('{"Type": "Notification", "Message": "plain words"}', "not JSON"),
    ],
)
def test_anything_else_is_ignored_with_its_reason(body, reason):
    [heard] = read(body)

    assert isinstance(heard, Ignored)
    assert reason in heard.reason


@pytest.mark.parametrize("name", ["x-0123", "i-", "i-'0123", "i-0 or 1", 5, None])
def test_what_is_no_instance_id_never_comes_near_a_query(name):
    message = {"schema": "spindrift.notice/1", "kind": "interruption", "instanceId": name}

    [heard] = read(json.dumps(message))

    assert isinstance(heard, Ignored) and "no instance id" in heard.reason


@pytest.mark.parametrize("time", ["soon", "", None, 5, "2024-05-01T12:00:00", {}])
def test_a_notice_with_a_bad_time_is_a_notice(time):
    agent = {"schema": "spindrift.notice/1", "kind": "interruption", "instanceId": INSTANCE}
    event = json.loads(sample("eventbridge-interruption-warning"))

    for message in (agent | {"observedAt": time, "deadline": time}, event | {"time": time}):
        assert read(json.dumps(message)) == [Notice(kind=Kind.INTERRUPTION, instance=INSTANCE)]


def test_only_a_recommendation_does_not_mean_leaving():
    assert [kind for kind in Kind if not Notice(kind=kind, instance="i-1").leaving] == [Kind.REBALANCE]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["schema", "kind", "instanceId", "detail-type", "detail", "Records", "Sns", "Type", "Message", "time"]
            ),
            inner | st.sampled_from(["spindrift.notice/1", "interruption", "Notification", "i-1", *EVENTS]),
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(json_values)
def test_no_message_can_stop_the_others(message):
    assert all(isinstance(heard, Notice | Wake | Ignored) for heard in read(json.dumps(message)))


@given(st.text())
def test_no_text_can_stop_the_others(text):
    read(text)


def test_a_message_nested_without_end_is_ignored():
    assert isinstance(read('{"Records": [' * 100_000)[0], Ignored)


@pytest.mark.parametrize(
    "module",
    ["capacity.policy", "capacity.notices", "capacity.notes", "capacity.pools", "capacity.metrics", "ingest.routing"],
)
def test_importing_the_pure_part_loads_no_aws_library(module):
    code = f"import {module}, sys; sys.exit(any(m.startswith('boto') for m in sys.modules))"
    lambdas = Path(__file__).parent.parent / "lambdas"

    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(lambdas)}).returncode == 0
