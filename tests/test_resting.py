"""A worker whose host ECS drains though nobody takes it: its job is the last one there, unless it is needed again."""

import json
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from types import SimpleNamespace

import pytest

from gpu_worker.carrier import Carrier
from gpu_worker.cloud import Cloud, Refused
from gpu_worker.host import Host, Protection
from gpu_worker.lanes import Lanes
from gpu_worker.pipeline import Worker

NOON = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
HOST = "arn:aws:ecs:eu-west-1:123456789012:container-instance/spindrift/0f1e2d3c4b5a69788796a5b4c3d2e1f0"


class Clock:
    """A clock that only pauses move; `then` acts at a moment."""

    def __init__(self):
        self.now, self.then = NOON, {}

    def __call__(self):
        return self.now

    def pass_time(self, seconds):
        self.now += timedelta(seconds=seconds)
        for moment in [moment for moment in self.then if moment <= self.now]:
            self.then.pop(moment)()


class Hosted(Host):
    """A host whose pauses pass by at once."""

    def __init__(self, folder, clock):
        super().__init__(folder, timedelta(seconds=110))
        self._clock = clock

    def pause(self, seconds):
        self._clock.pass_time(seconds)


class Quiet:
    """A queue without jobs, whose every receive takes two seconds, and a cluster that may drain the host."""

    def __init__(self, clock):
        self.drains, self.asked, self.receives, self._clock = False, [], [], clock

    def draining(self, host):
        self.asked.append(host)
        if self.drains is None:
            raise Refused("look at the host: AccessDeniedException")
        return self.drains

    def receive(self, most):
        self.receives.append(self._clock())
        self._clock.pass_time(2)
        return []


def idle_worker(folder, **told):
    """A worker that finds no job for two minutes; returns its clock, what was asked of AWS, and how to start it."""
    (folder / "instance.json").write_text(json.dumps({"lifecycle": "on-demand", "containerInstanceArn": HOST, **told}))
    clock = Clock()
    host, cloud = Hosted(folder, clock), Quiet(clock)
    lanes = Lanes([SimpleNamespace(kill=lambda: None)], None, clock)
    clock.then[NOON + timedelta(minutes=2)] = lambda: host.stop(clock())
    settings = SimpleNamespace(stack="cell", queue="default", batch=1)
    carrier = Carrier(settings, cloud, host, lanes, None, "task", clock)
    worker = Worker(settings, cloud, host, lanes, carrier, Protection(None), clock, start=lambda work: work())
    return clock, cloud, worker.run


def test_a_worker_whose_host_is_drained_takes_no_job_until_it_is_needed_again(tmp_path):
    clock, cloud, run = idle_worker(tmp_path)
    clock.then[NOON + timedelta(seconds=10)] = lambda: setattr(cloud, "drains", True)
    clock.then[NOON + timedelta(seconds=70)] = lambda: setattr(cloud, "drains", False)

    run()

    rest = [b - a for a, b in pairwise(cloud.receives) if b - a > timedelta(seconds=3)]
    assert len(rest) == 1 and timedelta(seconds=55) < rest[0] < timedelta(seconds=65)
    assert cloud.asked == [HOST] * 4


@pytest.mark.parametrize(
    "told, warned, asks",
    [({}, False, True), ({"lifecycle": "spot"}, False, False), ({"lifecycle": "spot"}, True, True),
     ({"containerInstanceArn": None}, True, False)],
)  # fmt: skip
def test_ecs_is_asked_only_where_a_busy_worker_may_be_drained(tmp_path, told, warned, asks):
    if warned:
        (tmp_path / "rebalance.json").write_text("{}")
    _, cloud, run = idle_worker(tmp_path, **told)

    run()

    assert bool(cloud.asked) is asks
    assert len(cloud.receives) > 50


def test_not_knowing_whether_the_host_is_drained_stops_nobody(tmp_path):
    _, cloud, run = idle_worker(tmp_path)
    cloud.drains = None

    run()

    assert len(cloud.asked) > 2 and len(cloud.receives) > 50


def test_ecs_is_asked_about_the_one_host(monkeypatch):
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    cloud = Cloud(None)
    asked = {}

    def describe(**request):
        asked.update(request)
        return {"containerInstances": [{"status": "DRAINING"}]}

    monkeypatch.setattr(Cloud, "_ecs", SimpleNamespace(describe_container_instances=describe))

    assert cloud.draining(HOST)
    assert asked == {"cluster": "spindrift", "containerInstances": [HOST]}
