"""The replay beside results that others computed on recorded traces, and the shipped policy on these.

The traces are not part of the project: SPINDRIFT_TRACES names a folder that has them.
"""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from build import cli

FOLDER = Path(os.environ.get("SPINDRIFT_TRACES", ""))
A16 = ("--availability", str(FOLDER / "aws_p3.2xlarge_16node_3az_2023-08-27_300s.csv"))
B9 = (
    *("--availability", str(FOLDER / "aws_p3.2xlarge_1node_9az_2023-02-15_195s.csv")),
    *("--prices", str(FOLDER / "aws_p3.2xlarge_spot_price_9az_2023-02-15_changes.csv")),
)
WEST = "us-west-2a,us-west-2b,us-west-2c"
TRACES = {
    "A16": A16,
    "B9, 4 per zone": (*B9, "--depth", "4"),
    "B9, 16 per zone": (*B9, "--depth", "16"),
    "B9, us-west-2": (*B9, "--depth", "16", "--zones", WEST),
}
REFERENCE = {
    ("A16", "on-demand"): (1.0, 0.0),
    ("A16", "spot-one-zone"): (0.185, 55.0),
    ("A16", "spot-fleet"): (0.278, 23.3),
    ("A16", "reactive"): (0.467, 1.20),
    ("A16", "source-004"): (0.467, 1.86),
    ("A16", "spothedge-1"): (0.503, 1.02),
    ("A16", "spothedge-2"): (0.532, 0.96),
    ("A16", "spothedge-4"): (0.590, 0.80),
    ("A16", "fixed-25"): (0.462, 20.1),
    ("A16", "fixed-50"): (0.643, 18.0),
    ("A16", "bound"): (0.446, 0.0),
    ("A16", "bound-never-short"): (0.472, 0.0),
    ("B9, 4 per zone", "on-demand"): (1.0, 0.0),
    ("B9, 4 per zone", "spot-fleet"): (0.303, 16.1),
    ("B9, 4 per zone", "reactive"): (0.369, 1.32),
    ("B9, 4 per zone", "source-004"): (0.369, 1.85),
    ("B9, 4 per zone", "spothedge-2"): (0.439, 1.03),
    ("B9, 4 per zone", "bound"): (0.354, 0.0),
    ("B9, us-west-2", "on-demand"): (1.0, 0.0),
    ("B9, us-west-2", "spot-fleet"): (0.298, 4.2),
    ("B9, us-west-2", "reactive"): (0.340, 0.26),
    ("B9, us-west-2", "source-004"): (0.340, 0.33),
    ("B9, us-west-2", "spothedge-2"): (0.385, 0.26),
    ("B9, us-west-2", "bound"): (0.335, 0.0),
}

pytestmark = pytest.mark.skipif(
    "SPINDRIFT_TRACES" not in os.environ, reason="SPINDRIFT_TRACES names no folder of traces"
)


def replayed(*words):
    result = CliRunner().invoke(cli, ["replay", *words, "--json"])
    assert result.exit_code == 0, result.output
    return {each["policy"]: each for each in json.loads(result.stdout)}


@pytest.fixture(scope="module")
def results():
    return {name: replayed(*words) for name, words in TRACES.items()}


@pytest.mark.parametrize("trace, policy", REFERENCE)
def test_costs_and_shortages_are_those_of_the_reference(results, trace, policy):
    cost, short = REFERENCE[trace, policy]
    ours = results[trace][policy]

    assert ours["cost_share"] == pytest.approx(cost, abs=0.01)
    assert 100 * ours["short_share"] == pytest.approx(short, abs=0.2)


@pytest.mark.parametrize(
    "delay, short, within", [(60, 0, 0.2), (120, 0, 0.2), (180, 1.2, 0.2), (300, 3.4, 0.2), (600, 8.4, 0.31)]
)
def test_what_decides_over_the_shortage_is_the_launch_delay(delay, short, within):
    ours = replayed(*A16, "--policy", "reactive", "--launch-delay", str(delay), "--spot-delay", str(delay))

    assert 100 * ours["reactive"]["short_share"] == pytest.approx(short, abs=within)


@pytest.mark.parametrize("trace", TRACES)
def test_no_policy_is_both_cheaper_and_less_short_than_the_shipped_one(results, trace):
    shipped = results[trace]["shipped"]
    better = [
        policy
        for policy, each in results[trace].items()
        if each["cost_share"] < shipped["cost_share"] and each["short_share"] < shipped["short_share"]
    ]

    assert set(better) <= {"bound", "bound-never-short"}


@pytest.mark.parametrize("spot", ["100", "180"])
def test_on_demand_that_comes_within_a_notice_is_never_missed(spot):
    ours = replayed(*A16, "--policy", "shipped-now", "--launch-delay", "100", "--spot-delay", spot)["shipped-now"]

    assert ours["short_share"] == 0
    assert ours["cost_share"] <= 0.475
