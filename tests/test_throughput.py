"""What a benchmark makes of records and prices, and what it makes of the settings."""

import json
import tomllib
from math import ceil

import pytest
from hypothesis import assume, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from ops.bars import svg
from ops.retune import Tuned, changes, rewritten
from ops.throughput import HEAVIEST, MOST_ERROR, Line, Rate, Report, Sample, rate, sample, warm, weigh
from templates.instance_types import INSTANCE_TYPES
from templates.settings import BadSettings, Settings

TYPES = ("g4dn.xlarge", "g5.xlarge", "g6.xlarge", "g4dn.12xlarge", "g6e.xlarge")
RECORD = {
    "state": "SUCCEEDED",
    "attempts": 1,
    "instance_type": "g5.xlarge",
    "owner": "arn:aws:ecs:us-east-1:1:task/c/1#2",
    "started": "2026-11-20T12:00:00+00:00",
    "gpu_seconds": 2.5,
}
law = examples(max_examples=100, deadline=None, database=None)
# Throughputs within a factor of a thousand; what differs more is no choice.
speeds = st.integers(100, 100_000).map(lambda whole: whole / 10)
rates = st.dictionaries(st.sampled_from(TYPES), speeds, min_size=1)


# Records.


def one(began: int, seconds: float = 1.0, **changes) -> Sample:
    held = {"type": "g5.xlarge", "worker": "w", "file": "a", "began": f"2026-11-20T12:00:{began:02}", **changes}
    return Sample(gpu_seconds=seconds, **held)


def test_a_job_that_was_done_in_one_go_is_a_sample():
    found = sample(RECORD, "a.jpg")

    assert (found.type, found.gpu_seconds, found.file) == ("g5.xlarge", 2.5, "a.jpg")
    assert found.worker == "arn:aws:ecs:us-east-1:1:task/c/1", "a worker, whatever its claim is called"


@pytest.mark.parametrize(
    "changes",
    [
        {"state": "RUNNING"},
        {"state": "FAILED"},
        {"attempts": 2},  # its seconds are those of two, one of them cut short
        {"parts_total": 3},
        {"gpu_seconds": 0},
        {"instance_type": ""},
    ],
)
def test_what_was_not_is_none(changes):
    assert sample({**RECORD, **changes}, "a.jpg") is None


def test_the_first_job_of_each_processor_is_for_warming_up():
    jobs = [one(3), one(1, 9.0), one(2, 8.0), one(4, worker="v"), one(5, worker="v", type="g6.xlarge")]

    assert warm(jobs, at_once=1) == {"g5.xlarge": [one(2, 8.0), one(3)], "g6.xlarge": [jobs[4]]}
    assert warm(jobs, at_once=2) == {"g5.xlarge": [one(3)]}


def test_the_middle_job_counts_and_each_file_the_same():
    jobs = [one(n, seconds) for n, seconds in enumerate([2.0, 2.2, 60.0])]
    jobs += [one(n, 4.0, file="b") for n in range(9)]

    found = rate(jobs, gpus=4)

    assert found.jobs_per_hour == pytest.approx(3600 * 4 / ((2.2 + 4.0) / 2))
    assert found.jobs == 12


def test_the_spread_is_that_of_a_usual_job():
    assert rate([one(1, 10.0), one(2, 9.0), one(3, 11.0), one(4, 30.0), one(5, 10.0)], 1).spread == pytest.approx(0.1)


# Weights.


@law
@given(rates)
def test_weights_are_whole_and_the_error_that_is_told_is_the_error_there_is(given_rates):
    found = weigh(given_rates)

    assert found.weights.keys() == given_rates.keys()
    assert all(isinstance(weight, int) and weight >= 1 for weight in found.weights.values())
    worth = {name: found.weights[name] / value for name, value in given_rates.items()}
    units = {name: worth[name] / (1 + error) for name, error in found.errors.items()}
    assert max(units.values()) == pytest.approx(min(units.values())), "one unit for all"


@law
@given(rates)
def test_the_error_is_small_or_nothing_up_to_the_limit_is_better(given_rates):
    found = weigh(given_rates)

    if found.error > MOST_ERROR + 1e-9:
        finest = {n: v * HEAVIEST / max(given_rates.values()) for n, v in given_rates.items()}
        assume(min(finest.values()) >= 0.5)
        weights = {name: max(1, round(value)) for name, value in finest.items()}
        worth = [weights[name] / value for name, value in given_rates.items()]
        assert found.error <= (max(worth) - min(worth)) / (max(worth) + min(worth)) + 1e-9


@law
@given(rates)
def test_no_smaller_weights_would_do(given_rates):
    found = weigh(given_rates)
    assume(found.error <= MOST_ERROR and max(found.weights.values()) <= 30)

    slowest = min(given_rates, key=given_rates.__getitem__)
    for less in range(1, found.weights[slowest]):
        # All weights that could go with this one.
        low, high = ((less + share) / given_rates[slowest] for share in (-0.03 * less, 0.03 * less))
        points = {(n + 0.5) / value for value in given_rates.values() for n in range(31)}
        for scale in [low, *sorted(point for point in points if low <= point <= high)]:
            weights = {name: max(1, int(value * scale + 0.5 + 1e-12)) for name, value in given_rates.items()}
            worth = [weights[name] / value for name, value in given_rates.items()]
            if weights[slowest] == less:
                assert (max(worth) - min(worth)) / (max(worth) + min(worth)) > float(MOST_ERROR) - 1e-9


@law
@given(rates, st.integers(-6, 6))
def test_only_the_proportions_count(given_rates, power):
    scaled = {name: value * 2.0**power for name, value in given_rates.items()}

    assert weigh(scaled) == weigh(given_rates)


@law
@given(rates)
def test_who_does_more_never_weighs_less(given_rates):
    weights = weigh(given_rates).weights

    order = sorted(given_rates, key=given_rates.__getitem__)
    assert [weights[name] for name in order] == sorted(weights.values())


def test_weights_are_as_small_as_they_can_be():
    assert weigh({"a": 100.0, "b": 200.0, "c": 300.0}).weights == {"a": 1, "b": 2, "c": 3}
    assert weigh({"a": 100.0, "b": 101.0}).weights == {"a": 1, "b": 1}
    found = weigh({"a": 1200.0, "b": 2880.0, "c": 4440.0})
    assert found.weights == {"a": 3, "b": 7, "c": 11}
    assert found.error < MOST_ERROR
    assert weigh({}).weights == {}


def test_types_too_far_apart_have_the_weights_they_can_have():
    found = weigh({"a": 1.0, "b": 1000.0})

    assert (found.weights["a"], found.weights["b"] >= 500) == (1, True)


# The table.


def line(kind: str, jobs_per_hour: float, spot: float | None, on_demand: float | None = None, **more) -> Line:
    return Line(type=kind, gpus=1, rate=Rate(jobs_per_hour, 0.01, 12), spot=spot, on_demand=on_demand, **more)


@law
@given(st.lists(st.tuples(speeds, st.floats(0.01, 50)), min_size=1))
def test_the_best_is_first_whatever_an_hour_costs(market):
    report = Report.of(line(f"t{n}", speed, spot) for n, (speed, spot) in enumerate(market))

    costs = [one.per_thousand(one.spot) for one in report.lines]
    assert costs == sorted(costs)


def test_what_is_not_known_comes_last_and_says_why():
    lost = Line(type="p3.2xlarge", gpus=1, spot=0.1, why="no capacity")
    report = Report.of([lost, line("b", 10, None, 4.0), line("c", 10, 0.5), line("a", 10, None)])

    assert [one.type for one in report.lines] == ["c", "b", "a", "p3.2xlarge"]
    assert list(report.text())[-1] == "p3.2xlarge is not measured: no capacity"
    assert json.loads(report.json())[0]["spot_per_thousand"] == 50.0


def test_a_thousand_jobs_cost_what_the_hours_do_in_which_they_are_done():
    assert line("a", 500, 0.3).per_thousand(0.3) == pytest.approx(0.6)


def test_the_plot_has_a_bar_for_each_price_that_is_known():
    report = Report.of([line("a", 100, 0.5, 1.0), line("b", 100, None, 2.0), Line(type="c", gpus=1, why="no")])

    drawn = svg(report)

    assert drawn.count('height="14" fill="#2a7f62"') == 1 + 1, "and one in the legend"
    assert drawn.count('height="14" fill="#c98b2b"') == 2 + 1
    assert ">a</text>" in drawn
    assert ">c</text>" not in drawn


# The settings.


def settings(types: tuple[str, ...], units: int = 8, jobs: int = 20, **on_demand) -> Settings:
    return Settings.read(
        {
            "compute": {"instance_types": list(types), "max_units": units},
            "on_demand": {"instance_types": [types[0]], "max_units": max(4, units), **on_demand},
            "queues": [{"jobs_per_task": jobs, "max_tasks": min(8, units)}],
            "worker": {"cpu": 1024, "memory_mib": 2048},
        }
    )


@law
@given(st.dictionaries(st.sampled_from(TYPES), st.integers(1, 100), min_size=1), st.integers(1, 60), st.data())
def test_weights_never_allow_more_machines_than_before(weights, units, data):
    types = tuple(data.draw(st.permutations(sorted(weights))))
    before = settings(types, units)

    wanted = {change.place: change.value for change in changes(before, weights)}

    for name in types:
        machines = ceil(units / INSTANCE_TYPES[name].gpus)
        assert ceil(wanted["compute", "max_units"] / weights[name]) <= machines
        assert ceil(wanted["queues", 0, "max_tasks"] / weights[name]) <= machines
    least = weights[types[0]]
    assert wanted["on_demand", "max_units"] // least == before.max_on_demand_instances


@law
@given(st.dictionaries(st.sampled_from(TYPES), st.integers(1, 100), min_size=1), st.integers(1, 60), st.integers(1, 99))
def test_what_is_written_are_settings_that_hold(weights, units, jobs):
    before = settings(tuple(sorted(weights)), units, jobs)
    text = rewritten(_toml(before), changes(before, weights))

    after = Settings.read(tomllib.loads(text))

    assert {name: after.units_of(name) for name in weights} == weights


def _toml(given_settings: Settings) -> str:
    compute, on_demand, queue = given_settings.compute, given_settings.on_demand, given_settings.queues[0]
    return f"""# Ours.
worker = {{ cpu = 1024, memory_mib = 2048 }}
[compute]
instance_types = {json.dumps(compute.instance_types)}
max_units = {compute.max_units}  # the quota
[on_demand]
instance_types = {json.dumps(on_demand.instance_types)}
max_units = {on_demand.max_units}
[[queues]]
jobs_per_task = {queue.jobs_per_task}
max_tasks = {queue.max_tasks}
"""


def test_comments_and_order_stay_and_what_changes_is_told(tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text(_toml(settings(("g4dn.xlarge", "g5.xlarge"), jobs=20)))

    tuned = Tuned.of(file, Settings.load(file), {"g4dn.xlarge": 3, "g5.xlarge": 7})

    assert "# Ours." in tuned.text
    assert "max_units = 24  # the quota" in tuned.text
    assert [str(change) for change in tuned.changes] == [
        "compute.weights: g4dn.xlarge 3, g5.xlarge 7 (was none)",
        "compute.max_units: 24 (was 8)",
        "on_demand.max_units: 24 (was 8)",
        "queues[0].jobs_per_task: 7 (was 20; as much as before is 6.67)",
        "queues[0].max_tasks: 24 (was 8)",
    ]


def test_settings_that_say_nothing_are_told_everything(tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text("# The defaults.\n")
    before = Settings.load(file)
    weights = dict.fromkeys((*before.compute.instance_types, *before.on_demand.instance_types), 5)

    after = Settings.read(tomllib.loads(Tuned.of(file, before, weights).text))

    assert after.compute.weights == weights
    assert (after.compute.max_units, after.on_demand.max_units) == (40, 20)
    assert (after.queues[0].jobs_per_task, after.queues[0].max_tasks) == (4, 40)


def test_a_second_benchmark_goes_on_from_the_first(tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text(_toml(settings(("g4dn.xlarge", "g5.xlarge"))))
    first, second = {"g4dn.xlarge": 4, "g5.xlarge": 8}, {"g4dn.xlarge": 2, "g5.xlarge": 5}
    file.write_text(Tuned.of(file, Settings.load(file), first).text)

    file.write_text(Tuned.of(file, Settings.load(file), second).text)

    after = Settings.load(file)
    assert after.compute.weights == second
    assert (after.compute.max_units, after.queues[0].jobs_per_task) == (16, 10)


def test_a_queue_for_on_demand_is_counted_in_its_units():
    given_queues = [
        {"name": "a", "prefix": "a/", "jobs_per_task": 8, "max_tasks": 4},
        {"name": "b", "prefix": "b/", "placement": "on-demand", "jobs_per_task": 8, "max_tasks": 4},
    ]
    before = Settings.read(
        {
            "compute": {"instance_types": ["g4dn.xlarge", "g5.xlarge"]},
            "on_demand": {"instance_types": ["g5.xlarge"], "max_units": 4, "warm_units": 2},
            "queues": given_queues,
        }
    )

    wanted = {change.place: change.value for change in changes(before, {"g4dn.xlarge": 2, "g5.xlarge": 4})}

    assert (wanted["queues", 0, "jobs_per_task"], wanted["queues", 0, "max_tasks"]) == (4, 8)
    assert (wanted["queues", 1, "jobs_per_task"], wanted["queues", 1, "max_tasks"]) == (2, 16)
    assert (wanted["on_demand", "max_units"], wanted["on_demand", "warm_units"]) == (16, 8)


def test_weights_that_the_settings_would_not_take_are_not_written(tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text(
        'profile = "groups"\n[compute]\ninstance_types = ["g5.xlarge"]\n[on_demand]\ninstance_types = ["g5.xlarge"]\n'
    )

    with pytest.raises(BadSettings, match="only with profile fleet"):
        Tuned.of(file, Settings.load(file), {"g5.xlarge": 2})
