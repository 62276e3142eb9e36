"""The laws of ECS's service scheduler and placement, as the local cloud plays them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localcloud.query import Unreadable, parse
from localcloud.scheduler import Demand, Room, ServiceSeen, TaskSeen, decide, place


def task(arn: str = "t", **parts: object) -> TaskSeen:
    return TaskSeen(arn=arn, **parts)


def tasks_of(*many: dict[str, object]) -> tuple[TaskSeen, ...]:
    return tuple(task(f"t{index}", **parts) for index, parts in enumerate(many))


booleans = {name: st.booleans() for name in ("running", "stopping", "protected", "draining", "current", "sick", "well")}
some_tasks = st.lists(st.fixed_dictionaries({**booleans, "zone": st.sampled_from("ab")}), max_size=6).map(
    lambda many: tasks_of(*many)
)
looks = st.builds(
    ServiceSeen,
    desired=st.integers(0, 5),
    minimum_healthy_percent=st.sampled_from([0, 50, 100]),
    maximum_percent=st.sampled_from([100, 150, 200]),
    tasks=some_tasks,
    throttled=st.booleans(),
)


@pytest.mark.parametrize(
    "case, seen, stops, starts",
    [
        ("a new service starts what it wants", {"desired": 2}, {}, 2),
        ("enough is enough", {"desired": 1, "tasks": tasks_of({})}, {}, 0),
        (
            "scale-in spares the protected",
            {"desired": 1, "tasks": tasks_of({}, {"protected": True})},
            {"t0": "scaling"},
            0,
        ),
        ("protected ones stay beyond the count", {"desired": 0, "tasks": tasks_of({"protected": True})}, {}, 0),
        (
            "scale-in takes pending ones first",
            {"desired": 1, "tasks": tasks_of({}, {"running": False})},
            {"t1": "scaling"},
            0,
        ),
        (
            "draining with minimum 0 stops at once and replaces",
            {"desired": 1, "minimum_healthy_percent": 0, "tasks": tasks_of({"draining": True})},
            {"t0": "draining"},
            1,
        ),
        (
            "draining with minimum 100 waits for the replacement",
            {"desired": 1, "tasks": tasks_of({"draining": True})},
            {},
            1,
        ),
        ("and stops once it runs", {"desired": 1, "tasks": tasks_of({"draining": True}, {})}, {"t0": "draining"}, 0),
        ("100/100 deadlocks", {"desired": 1, "maximum_percent": 100, "tasks": tasks_of({"draining": True})}, {}, 0),
        (
            "a pending task on a draining instance stops at once",
            {"desired": 1, "maximum_percent": 100, "tasks": tasks_of({"draining": True, "running": False})},
            {"t0": "draining"},
            0,
        ),
        (
            "a protected task on a draining instance is left, and replaced when there is room",
            {"desired": 1, "minimum_healthy_percent": 0, "tasks": tasks_of({"draining": True, "protected": True})},
            {},
            1,
        ),
        (
            "what is stopping still counts against the maximum",
            {"desired": 1, "minimum_healthy_percent": 0, "maximum_percent": 100, "tasks": tasks_of({"stopping": True})},
            {},
            0,
        ),
        (
            "a deployment replaces the old",
            {"desired": 1, "minimum_healthy_percent": 0, "tasks": tasks_of({"current": False})},
            {"t0": "deployment"},
            1,
        ),
        ("a crash loop waits", {"desired": 2, "throttled": True}, {}, 0),
        ("a sick task is replaced first", {"desired": 1, "tasks": tasks_of({"sick": True})}, {}, 1),
        (
            "it stays while nothing is known of its replacement",
            {"desired": 1, "tasks": tasks_of({"sick": True}, {"well": False})},
            {},
            0,
        ),
        ("and goes when that is well", {"desired": 1, "tasks": tasks_of({"sick": True}, {})}, {"t0": "health"}, 0),
        (
            "protection is against scale-in only",
            {"desired": 1, "tasks": tasks_of({"sick": True, "protected": True}, {})},
            {"t0": "health"},
            0,
        ),
        (
            "of two sick ones for one place one goes",
            {"desired": 1, "tasks": tasks_of(*[{"sick": True}] * 2)},
            {"t0": "health"},
            0,
        ),
        ("scale-in takes a sick one", {"desired": 1, "tasks": tasks_of({}, {"sick": True})}, {"t1": "health"}, 0),
        (
            "where the maximum forbids a replacement, one sick task goes first",
            {"desired": 2, "maximum_percent": 100, "tasks": tasks_of(*[{"sick": True}] * 2)},
            {"t0": "health"},
            0,
        ),
        (
            "and the next when that one is gone",
            {"desired": 2, "maximum_percent": 100, "tasks": tasks_of({"sick": True, "stopping": True}, {"sick": True})},
            {},
            0,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_decide(case, seen, stops, starts):
    decision = decide(ServiceSeen(**seen))

    assert ({stop.arn: stop.why for stop in decision.stops}, decision.starts) == (stops, starts)


@given(looks)
def test_a_protected_task_is_not_stopped_unless_sick_and_none_is_stopped_twice(seen):
    stopped = [stop.arn for stop in decide(seen).stops]

    assert not {each.arn for each in seen.tasks if (each.protected and not each.sick) or each.stopping} & set(stopped)
    assert len(stopped) == len(set(stopped))


@given(looks)
def test_replacing_never_goes_below_the_minimum_nor_starting_above_the_maximum(seen):
    decision = decide(seen)
    stopped = {stop.arn for stop in decision.stops}
    healthy = [each for each in seen.tasks if each.running and not each.stopping and not each.sick]
    left = [each for each in healthy if each.arn not in stopped]

    lower = -(-seen.desired * seen.minimum_healthy_percent // 100)
    assert len(left) >= min(lower, len(healthy))
    assert decision.starts == 0 or len(seen.tasks) + decision.starts <= seen.desired * seen.maximum_percent / 100


@given(looks)
def test_a_service_left_alone_comes_to_rest(seen):
    """Starts come to run, stops come to pass, and nothing is decided for ever."""
    for turn in range(12):
        decision = decide(seen)
        if not decision.stops and not decision.starts and not any(t.stopping or not t.running for t in seen.tasks):
            return
        gone = {stop.arn for stop in decision.stops} | {each.arn for each in seen.tasks if each.stopping}
        left = [
            TaskSeen(**{**vars(each), "running": True, "well": True}) for each in seen.tasks if each.arn not in gone
        ]
        new = [task(f"{turn}-{index}") for index in range(decision.starts)]
        seen = ServiceSeen(**{**vars(seen), "tasks": (*left, *new)})
    pytest.fail("still deciding")


rooms = st.lists(
    st.fixed_dictionaries(
        {
            "zone": st.sampled_from("ab"),
            "cpu": st.integers(0, 8),
            "memory": st.integers(0, 8),
            "gpus": st.integers(0, 3),
            "active": st.booleans(),
            "connected": st.booleans(),
            "facts": st.sampled_from([{"attribute:lifecycle": "spot"}, {"attribute:lifecycle": "on-demand"}, {}]),
            "tasks_alike": st.integers(0, 2),
        }
    ),
    max_size=4,
).map(lambda many: [Room(arn=f"r{index}", **parts) for index, parts in enumerate(many)])
strategies = st.sampled_from(
    [
        Demand.strategy,
        (("binpack", "memory"),),
        (("spread", "attribute:lifecycle"), ("binpack", "cpu")),
        (("random", ""),),
        (("spread", "instanceId"),),
    ]
)
demands = st.builds(
    Demand,
    cpu=st.integers(0, 3),
    memory=st.integers(0, 3),
    gpus=st.integers(0, 2),
    distinct=st.booleans(),
    constraints=st.sampled_from([(), (parse("attribute:lifecycle == spot"),)]),
    strategy=strategies,
)


@given(demands, st.integers(0, 6), rooms)
def test_no_instance_gets_more_than_it_has_and_none_that_is_leaving_gets_any(demand, count, rooms):
    placed = place(demand, count, rooms, lambda: 0.5)

    for room in rooms:
        there = placed.instances.count(room.arn)
        assert there * demand.gpus <= room.gpus or there == 0
        assert there * demand.cpu <= room.cpu or there == 0
        assert there * demand.memory <= room.memory or there == 0
        assert there == 0 or (room.active and room.connected)
        assert there == 0 or all(query(room.facts) for query in demand.constraints)
        assert there <= 1 or not demand.distinct
    assert (len(placed.instances) == count) == (placed.unplaced is None)


def test_strategies():
    full, free = (
        Room(arn="full", zone="a", cpu=2, memory=2, gpus=1),
        Room(arn="free", zone="b", cpu=9, memory=9, gpus=4),
    )

    def where(count: int, *strategy: tuple[str, str]) -> tuple[str, ...]:
        return place(Demand(gpus=1, strategy=strategy), count, [free, full], lambda: 0.5).instances

    assert where(2, ("binpack", "memory")) == ("full", "free")
    assert sorted(where(2, ("spread", "instanceId"))) == ["free", "full"]


def test_why_a_task_has_no_place_is_said_as_ecs_says_it():
    none = place(Demand(gpus=1), 1, [], lambda: 0.5)
    blind = place(Demand(gpus=1), 1, [Room(arn="x/i1", zone="a", cpu=9, memory=9, gpus=0)], lambda: 0.5)

    assert none.unplaced == "No Container Instances were found in your cluster"
    assert blind.unplaced == "The closest matching (container-instance i1) has insufficient GPU resource available"


@pytest.mark.parametrize(
    "expression, holds",
    [
        ("attribute:lifecycle == spot", True),
        ("attribute:lifecycle == on-demand", False),
        ("attribute:ecs.instance-type =~ g5.*", True),
        ("ec2InstanceId in [i-1, i-2]", True),
        ("ec2InstanceId !in [i-1, i-2]", False),
        ("ec2InstanceId in ['i-3']", False),
        ("attribute:stack exists and not attribute:lifecycle == spot", False),
        ("(attribute:stack exists or attribute:lifecycle == spot) and agentConnected == true", True),
        ("attribute:stack !exists", True),
        ("runningTasksCount < 2", True),
    ],
)
def test_the_cluster_query_language(expression, holds):
    facts = {
        "attribute:lifecycle": "spot",
        "attribute:ecs.instance-type": "g5.xlarge",
        "ec2InstanceId": "i-1",
        "agentConnected": "true",
        "runningTasksCount": "1",
    }

    assert parse(expression)(facts) is holds


@pytest.mark.parametrize("expression", ["", "attribute:a", "a == b c", "a in [b", "(a == b", "a ~ b"])
def test_what_is_not_of_the_language_is_refused(expression):
    with pytest.raises(Unreadable):
        parse(expression)
