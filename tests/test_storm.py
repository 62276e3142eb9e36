"""Many notices at once cost a tenth of their number in calls, and the rest grows with the hundreds of instances."""

import runpy
from math import ceil
from pathlib import Path

import pytest

STORM = Path(__file__).parent.parent / "bench" / "storm.py"


@pytest.mark.parametrize("instances, notices", [(100, 50), (1000, 200)])
def test_a_storm_costs_what_it_must(instances, notices):
    told = runpy.run_path(str(STORM))["storm"](instances, notices, seconds=0, latency=0.002)

    assert (told["notices"], told["instances"]) == (notices, instances)
    assert told["drain_calls"] == ceil(notices / 10)
    a_pass = 20 + 3 * instances / 100
    assert told["api_calls"] - told["drain_calls"] <= told["passes"] * a_pass
    assert told["passes"] <= 8
