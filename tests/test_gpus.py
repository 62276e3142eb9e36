"""Tasks and units: what GPUs of unequal worth make of one in the other, in numbers."""

from dataclasses import replace
from fractions import Fraction

import pytest
from lambdas_make import PLACED, instance, od, placed, policy, seen

from capacity.gpus import Gpu, Share, of, shares, shares_of, tasks_worth, worth_of_a_task
from capacity.need import Needed, needed
from capacity.nouns import Placement

ONE, THREE, FIVE, ELEVEN = Fraction(1), Fraction(3), Fraction(5), Fraction(11)
NAMES = {placement: name for name, placement in PLACED.items()}
ANY, SPOT, ON_DEMAND = NAMES[Placement.ANY], NAMES[Placement.SPOT], NAMES[Placement.ON_DEMAND]


@pytest.mark.parametrize(
    "units, there, tasks",
    [
        (0, [THREE], 0),
        (1, [THREE], 1),
        (3, [THREE, ELEVEN], 1),
        (4, [THREE, ELEVEN], 2),
        (14, [THREE, ELEVEN], 2),
        (15, [THREE, ELEVEN], 3),
        (17, [THREE, ELEVEN], 3),
        (18, [THREE, ELEVEN], 4),
        (4, [], 2),
    ],
)
def test_tasks_are_worth_the_units_wherever_they_are_and_those_to_come_are_worth_the_least(units, there, tasks):
    assert tasks_worth(units, there, THREE) == tasks


def test_an_instance_has_its_gpus_the_least_first():
    found = of([instance("i-1", units=22, worth=ELEVEN), od("i-2", units=3, worth=THREE)])

    assert found == [Gpu(THREE, spot=False), Gpu(ELEVEN, spot=True), Gpu(ELEVEN, spot=True)]


def test_a_gpu_may_be_worth_half_a_unit_more():
    assert of([instance("i-1", units=7, worth=Fraction(7, 2))]) == [Gpu(Fraction(7, 2), spot=True)] * 2


def test_a_service_takes_only_gpus_that_it_may_have_and_none_that_another_has():
    gpus = [Gpu(THREE, spot=False), Gpu(THREE, spot=True), Gpu(ELEVEN, spot=True)]

    dealt = shares({ON_DEMAND: 2, SPOT: 3, ANY: 4}, gpus, placed(least=THREE))

    assert dealt == {ON_DEMAND: Share(1, THREE), SPOT: Share(1, THREE), ANY: Share(1, ELEVEN)}


def test_work_for_spot_waits_for_spot_and_for_on_demand_likewise():
    gpus = [Gpu(THREE, spot=False), Gpu(ELEVEN, spot=True)]
    chosen = placed(least=THREE)

    assert shares({SPOT: 4}, gpus, chosen) == {SPOT: Share(1, ELEVEN)}
    assert shares({ON_DEMAND: 4}, gpus, chosen) == {ON_DEMAND: Share(2, Fraction(4))}


def test_tasks_without_a_gpu_are_worth_the_least():
    assert shares_of({ANY: 3}, [], placed(least=THREE)) == {ANY: Share(3, Fraction(9))}
    assert shares_of({ANY: 2}, [Gpu(ELEVEN, spot=True)], placed(least=THREE)) == {ANY: Share(2, ELEVEN)}


@pytest.mark.parametrize(
    "case, instances, worth",
    [
        ("the tasks at work", [("i-1", 3, THREE, 1), ("i-2", 11, ELEVEN, 0)], 3),
        ("on average", [("i-1", 3, THREE, 1), ("i-2", 11, ELEVEN, 1)], 7),
        ("by their number", [("i-1", 3, THREE, 1), ("i-2", 33, ELEVEN, 3)], 9),
        ("while none is, the GPUs that are there", [("i-1", 3, THREE, 0), ("i-2", 33, ELEVEN, 0)], 9),
        ("without any, the least there is", [], 2),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_jobs_are_timed_by_tasks_of_the_worth_of(case, instances, worth):
    there = [
        instance(name, units=units, worth=each, gpus=int(units / each), tasks=tasks)
        for name, units, each, tasks in instances
    ]

    assert worth_of_a_task(seen(1, there), policy(least=Fraction(2))) == worth


def test_services_find_room_beside_each_other_on_the_gpus_of_their_kind():
    both = [Gpu(ELEVEN, spot=True), Gpu(ELEVEN, spot=True), Gpu(FIVE, spot=False), Gpu(FIVE, spot=False)]
    chosen = placed(least=THREE, max_units=99, max_on_demand_units=99)
    chosen = replace(chosen, loads={**chosen.loads, "firm": chosen.loads[ON_DEMAND]})

    found = needed({ANY: 4, SPOT: 3, ON_DEMAND: 4, "firm": 3}, chosen, both)

    # Of each kind one service has a whole GPU to itself, and the other takes its units.
    assert found == Needed(spot=11 + 3, shared=4, on_demand=5 + 3)
