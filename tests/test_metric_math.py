"""Metric math by the CloudWatch user guide, "Using math expressions with CloudWatch metrics": its examples, and ours."""

import pytest

from localcloud.metricmath import Scene, Unreadable, parse

TIMES = [0.0, 60.0, 120.0, 180.0, 240.0]


def series(*values):
    """A time series from its first minute on; None is missing."""
    return {time: float(value) for time, value in zip(TIMES, values, strict=False) if value is not None}


def evaluate(expression, **metrics):
    scene = Scene(metrics, dict.fromkeys(metrics, 60), TIMES)
    return dict(sorted(parse(expression).over(scene).items()))


def comes_to(expression, *values, **metrics):
    assert evaluate(expression, **metrics) == series(*values)


# The guide's own examples


@pytest.mark.parametrize(
    ("expression", "values"),
    [
        ("(metric1 < metric2)", [0, 0, 1, 0]),
        ("(metric1 >= 30)", [1, 0, 0, 0]),
        ("(metric1 > 15 AND metric2 > 15)", [1, 0, 0, 0]),
        ("metric1 > 15 && metric2 > 15", [1, 0, 0, 0]),
    ],
)
def test_comparisons_and_logic_of_the_guide(expression, values):
    comes_to(expression, *values, metric1=series(30, 20, 0, 0), metric2=series(20, None, 20, None))


CONDITION = {"metric1": series(1, 1, 0, 0, None)}


@pytest.mark.parametrize(
    ("expression", "values", "others"),
    [
        (
            "IF(metric1, metric2, metric3)",
            [30, 0, 20, None, None],
            {"metric2": series(30, None, 0, 0, 30), "metric3": series(0, 0, 20, None, 20)},
        ),
        ("IF(metric1, 5, metric3)", [5, 5, 20, None, None], {"metric3": series(0, 0, 20, None, 20)}),
        ("IF(metric1, metric2, 5)", [30, 0, 5, 5, None], {"metric2": series(30, None, 0, 0, 30)}),
        ("IF(metric1, metric2)", [30, 0, None, None, None], {"metric2": series(30, None, 0, 0, 30)}),
    ],
)
def test_ifs_of_the_guide(expression, values, others):
    comes_to(expression, *values, **CONDITION, **others)


def test_if_with_a_number_for_a_condition_takes_one_series_whole():
    comes_to("IF(1, a, b)", 1, 2, a=series(1, 2), b=series(3, 4))
    comes_to("IF(0, a, b)", 3, 4, a=series(1, 2), b=series(3, 4))


def test_missing_values_count_nothing_in_a_sum():
    comes_to("a + b", 3, 5, 4, a=series(1, None, 4), b=series(2, 5, None))


def test_a_division_by_zero_drops_the_point():
    comes_to("a / b", 2, None, None, 4, a=series(4, 4, 4, 4), b=series(2, 0, None, 1))


def test_products_bind_tighter_than_sums_and_comparisons_than_logic():
    comes_to("a + a * 3 - 4 / 2", 6, a=series(2))
    comes_to("a > 1 OR a < 0 AND a == 3", 1, a=series(2))
    comes_to("-(a - 5) * 2", 6, a=series(2))
    comes_to("a - 1 - 1", 0, a=series(2))


def test_a_period_is_told_in_seconds():
    comes_to("units * PERIOD(units) / 3600", 1, 2, units=series(60, 120))


def test_ceilings_floors_and_absolute_values():
    comes_to("CEIL(a) + FLOOR(a) + ABS(0 - a)", 3 + 2 + 2.5, a=series(2.5))


# FILL, which an alarm on an idle queue lives by


def test_fill_gives_every_period_a_value_the_newest_too():
    comes_to("FILL(a, 0)", 0, 7, 0, 0, 0, a=series(None, 7))


def test_fill_speaks_for_a_metric_that_says_nothing_at_all():
    comes_to("FILL(a, 10)", 10, 10, 10, 10, 10, a=series())


def test_fill_repeats_the_last_value_and_invents_none_before_the_first():
    comes_to("FILL(a, REPEAT)", None, 7, 7, 3, 3, a=series(None, 7, None, 3))


# The expressions of the templates


def test_jobs_to_do_is_what_waits_and_runs_while_something_waits():
    jobs = "IF(waiting > 0, waiting + FILL(in_flight, 0), 0)"
    comes_to(jobs, 5, 3, 0, None, None, waiting=series(3, 3, 0), in_flight=series(2))


def test_no_jobs_is_zero_where_sqs_is_silent():
    comes_to("FILL(waiting, 0) + FILL(in_flight, 0)", 3, 2, 0, 0, 0, waiting=series(1, 0), in_flight=series(2, 2))


def test_stuck_is_where_jobs_wait_and_nobody_works():
    stuck = "IF(waiting > 0 AND FILL(in_flight, 0) < 1, 1, 0)"
    comes_to(stuck, 1, 0, 0, 0, 0, waiting=series(3, 3, 0), in_flight=series(None, 1))


# What is not known is never guessed


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("SUM(METRICS())", "SUM"),
        ("SUM([a, b])", "[a, b]"),
        ("ANOMALY_DETECTION_BAND(a)", "ANOMALY_DETECTION_BAND"),
        ("FILL(a, LINEAR)", "LINEAR"),
        ("SEARCH('{AWS/EC2}', 'Average')", "{AWS/EC2}"),
        ("SELECT AVG(x) FROM y", "SELECT"),
        ("a ^ 2", "^ 2"),
        ("a +", "more"),
        ("(a", ")"),
        ("a b", "'b'"),
        ("IF(a)", "IF with 1"),
        ("Waiting + 1", "Waiting"),
    ],
)
def test_what_is_not_played_is_refused(expression, said):
    with pytest.raises(Unreadable) as refusal:
        parse(expression)
    assert said in str(refusal.value)


@pytest.mark.parametrize("expression", ["PERIOD(a)", "5", "1 / 0", "FILL(5, 0)", "FILL(a, b)"])
def test_what_comes_to_no_time_series_is_refused(expression):
    with pytest.raises(Unreadable):
        evaluate(expression, a=series(1), b=series(2))
