"""How long a launch takes: the table, what the local cloud and the replay make of it, and what the documentation says."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from replay_make import lived, market, policy

from bench import launch
from localcloud.ecsagent import EcsAgent
from localcloud.host import Host
from localcloud.latency import launch_seconds
from localcloud.launchtimes import ASK, BUILT_IN, GPU, KINDS, baked, pulling, reading, stock, warm
from replay import shipped
from replay.comparisons import COMPARISONS, Follow
from replay.files import Arrival
from replay.generated import generated
from replay.market import Market, Price
from replay.shipped import Shipped
from replay.work import Endless, Jobs
from replay.world import Diary

PROJECT = Path(__file__).resolve().parent.parent


# The table


@pytest.mark.parametrize("kind", KINDS)
def test_an_instance_joins_before_it_works_and_no_part_takes_no_time(kind):
    for each in (KINDS[kind].spot, KINDS[kind].on_demand):
        parts = (each.pending, each.boot, each.register, each.pull, each.start)

        assert min(parts) > 0
        assert each.joins < each.seconds == sum(parts)


@pytest.mark.parametrize("image", [GPU, BUILT_IN])
def test_an_image_of_our_own_is_faster_and_a_stopped_instance_faster_still(image):
    assert stock(image).seconds > baked(image).seconds > warm(image).seconds


def test_what_a_gpu_image_costs_is_its_pull_or_else_its_first_read():
    assert stock(GPU).pull - stock(BUILT_IN).pull > 90
    assert baked(GPU).start - warm(GPU).start > 30
    assert baked(GPU).pull == baked(BUILT_IN).pull == ASK


def test_only_on_demand_comes_from_a_warm_pool():
    assert KINDS["warm"].spot == KINDS["baked"].spot
    assert KINDS["warm"].on_demand != KINDS["baked"].on_demand


# The local cloud


@pytest.fixture
def agent(tmp_path):
    """An ECS agent on an instance whose AMI brought the image `baked`; its clock is AWS's."""
    images = SimpleNamespace(pull=lambda name: name)
    host = Host(
        instance_id="i-1", instance_type="g5.xlarge", zone="us-east-1a", lifecycle="spot", gpus=1, vcpus=4,
        memory_mib=16384, root=tmp_path, config={}, credentials=dict, images={"baked"},
    )  # fmt: skip
    agent = EcsAgent(SimpleNamespace(scaled=lambda seconds: seconds), SimpleNamespace(images=images), host)
    yield agent
    agent.stop()


@pytest.mark.parametrize(
    "image, first",
    [("fresh", [pulling(BUILT_IN)]), ("baked", [ASK, reading(BUILT_IN)])],
)
def test_the_first_task_waits_for_its_image_and_the_next_only_for_the_registry(agent, image, first):
    waited = []
    task = SimpleNamespace(arn="task", id="task", definition={}, wait=waited.append)

    agent.pull(task, image)
    agent.pull(task, image)

    assert waited == [*first, ASK]


class Told:
    """An account in which tasks were told of; each is (launched, joined, pull begun, pull ended, started) in seconds."""

    def __init__(self, *tasks):
        self._tasks = tasks

    def __call__(self, service):
        return self

    def get_paginator(self, name):
        return SimpleNamespace(paginate=lambda cluster: [{"taskArns": [str(n) for n in range(len(self._tasks))]}])

    def describe_tasks(self, cluster, tasks):
        keys = ("pullStartedAt", "pullStoppedAt", "startedAt")
        return {
            "tasks": [
                {"containerInstanceArn": f"host/{n}"} | dict(zip(keys, map(_at, self._tasks[int(n)][2:]), strict=False))
                for n in tasks
            ]
        }

    def describe_container_instances(self, cluster, containerInstances):  # noqa: N803 - the API's own word
        return {
            "containerInstances": [
                {
                    "containerInstanceArn": arn,
                    "ec2InstanceId": f"i-{arn[5:]}",
                    "registeredAt": _at(self._tasks[int(arn[5:])][1]),
                }
                for arn in containerInstances
            ]
        }

    def describe_instances(self, InstanceIds):  # noqa: N803
        told = [{"InstanceId": each, "LaunchTime": _at(self._tasks[int(each[2:])][0])} for each in InstanceIds]
        return {"Reservations": [{"Instances": told}]}


def _at(seconds):
    return datetime(2026, 11, 20, tzinfo=UTC) + timedelta(seconds=seconds)


def test_the_parts_of_real_launches_are_read_from_what_aws_tells():
    told = launch_seconds(Told((0, 70, 72, 177, 180), (5, 70, 75, 185, 188), (9, 71, 74, 180, 184), (0, 70, 72)), "c")

    assert told == {"launched_to_joined": 65.0, "joined_to_pull": 3.0, "pull": 106.0, "start": 3.0}
    assert launch_seconds(Told(), "c") == launch_seconds(Told((0, 70, 72)), "c") == {}


# The replay


def test_what_has_joined_and_does_not_work_yet_is_missing():
    bill = lived(market(0, 2, 2), "spot-fleet", spot_starting=100.0)

    assert bill.short == 600 + 180


def test_on_demand_stays_until_spot_works_though_it_has_joined():
    bill = lived(market(0, 2, 2), "reactive", spot_starting=100.0)

    assert bill.on_demand_seconds == 2 * (600 + 180)


def test_the_policy_is_told_when_an_instance_joins_and_not_when_it_works(monkeypatch):
    looks = []
    decide = shipped.decide
    monkeypatch.setattr(shipped, "decide", lambda seen, policy: looks.append(seen) or decide(seen, policy))

    lived(market(2, 0, 2, 2), Shipped(policy()), spot_starting=100.0, on_demand_starting=60.0)

    took = {(each.spot, each.joined.since - each.launched) for seen in looks for each in seen.instances if each.joined}
    assert took == {(True, timedelta(seconds=80)), (False, timedelta(seconds=120))}


class TaskAt(Follow):
    """Spot alone, and no task before a moment."""

    def __init__(self, moment):
        super().__init__(COMPARISONS["spot-fleet"])
        self.moment = moment

    def act(self, world):
        super().act(world)
        world.set_tasks(int(world.now >= self.moment))
        return self.moment if world.now < self.moment else float("inf")


def test_an_image_is_pulled_when_the_first_task_comes():
    seen = Diary()

    lived(market(0, 1, 1, 1), TaskAt(1250.0), units=1, spot_starting=100.0, diary=seen)

    assert next(at for at, _, units in seen.moments if units == (1, 0)) == 1350


class LetsGo(Shipped):
    """On-Demand is drained once Spot has joined."""

    def act(self, world):
        world.ask_spot(2)
        for machine in world.on_demand:
            if not machine.draining and all(one.up for one in world.spot) and world.spot:
                world.drain(machine)
        return float("inf")


def test_a_drained_instance_ends_its_job_while_another_starts_in_its_place():
    """ECS starts it at once, with maximumPercent 200."""
    bill = lived(market(0, 2, 2), LetsGo(policy()), work=Endless(2, 150.0), spot_starting=100.0)

    # Spot joins at 680, and its task starts for 100 s; the jobs of On-Demand end at 750.
    assert bill.short == 780 - 750


def test_the_policy_takes_on_demand_back_while_what_is_to_stand_in_its_place_only_starts():
    bill = lived(market(0, 2, 2), Shipped(policy(calm=0)), work=Endless(2, 150.0), spot_starting=100.0)

    assert bill.short == 0


def test_a_notice_stops_the_task_that_is_being_pulled_for():
    seen = Diary()

    # Launched at 300 and joined at 350; the notice comes at 600, and the pull would be over at 700.
    lived(market(0, 1, 0, step=300.0), "spot-fleet", units=1, spot=400.0, spot_starting=350.0, diary=seen)

    assert {units for _, _, units in seen.moments} == {(0, 0)}


class OneTask(Follow):
    """Spot alone, and one task."""

    def begin(self, world):
        world.set_tasks(1)


def test_what_was_to_start_on_a_lost_instance_starts_on_the_next_at_once():
    work = Jobs([Arrival(at=0.0, jobs=1, seconds=5.0)], units=1, jobs_per_unit=1)
    rows = [(0, 0)] * 9 + [(1, 0), (0, 1), (0, 1), (0, 1)]

    # Launched at 540 and taken at 600, which leaves it until 720; the next is there at 700.
    lived(market(*rows, step=60.0), OneTask(COMPARISONS["spot-fleet"]), work, units=1, spot=100.0, spot_starting=90.0)

    assert work.waits(13 * 60.0).finished == [705.0]


@pytest.mark.parametrize("on_demand", [76.0, 188.0])
def test_the_passes_that_are_left_out_would_have_changed_nothing(on_demand):
    trace = _generated(1)
    parts = {"on_demand": on_demand, "on_demand_starting": 30.0, "spot": 188.0, "spot_starting": 118.0}

    some = lived(trace, Shipped(policy(8)), units=8, **parts)

    assert some == lived(trace, Shipped(policy(8), every_minute=True), units=8, **parts)
    assert some.interruptions > 20


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_what_a_launch_takes_longer_than_a_notice_decides_over_the_shortage(seed):
    delays = (30.0, 60.0, 90.0, 120.0, 180.0, 300.0, 600.0)
    bills = [lived(_generated(seed), Shipped(policy(8)), units=8, spot=delay, on_demand=delay) for delay in delays]
    short = dict(zip(delays, (bill.short / bill.span for bill in bills), strict=True))

    assert max(short[delay] for delay in delays if delay <= 120) == 0
    # One market in which another zone is taken makes a little of a difference.
    assert all(later >= earlier - 0.001 for earlier, later in pairwise(short.values()))
    assert short[600.0] > 2 * short[300.0] > 2 * short[180.0] > 0


def _generated(seed):
    made = generated(seed, 3, 4)
    return Market(
        zones=made.zones,
        available=made.rows,
        prices=[Price([(0.0, 1.0)])] * len(made.zones),
        on_demand=3.0,
        end=made.end,
    )


# The documentation


def test_the_table_of_the_documentation_is_what_the_command_prints():
    told = [line.strip() for line in (PROJECT / "docs/launch.md").read_text("utf-8").splitlines()]

    made = launch.table(launch.row(name, delays) for name, delays in launch.ways().items() if name in ("stock", "warm"))

    assert [line for line in made if line not in told] == [], "make bench-launch prints the table for docs/launch.md"


def test_the_documentation_tells_the_parts_that_the_table_has():
    text = (PROJECT / "docs/launch.md").read_text("utf-8")

    for name, each in {"stock": stock(), "baked": baked(), "warm": warm()}.items():
        parts = (each.pending, each.boot, each.register, each.pull, each.start, each.seconds)
        cells = [line.split("|")[2:8] for line in text.splitlines() if line.startswith(f"| `{name}`")]
        assert [[int(cell) for cell in line] for line in cells] == [[round(part) for part in parts]]
