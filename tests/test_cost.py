"""What an attempt costs, to the cent and beyond; what is not known is never zero."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worker_make import Bench, until

from gpu_worker.cost import NOTHING, Price, Share, Spent, pool_of, usd_per_hour
from templates.assets import Asset, Assets
from templates.settings import Settings
from templates.stacks import build_cluster

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
ROW = {"pool": "g5.xlarge/us-east-1a", "spot_usd": 0.36, "on_demand_usd": 1.008}


@pytest.mark.parametrize(
    "case, seconds, price, share, expected",
    [
        ("an hour of an instance with one GPU", 3600, 1.0, Share(), Spent(3600.0, 1.0)),
        ("ten seconds of it", 10, 0.36, Share(), Spent(10.0, 0.001)),
        ("one GPU of four", 3600, 4.0, Share(instance_gpus=4), Spent(3600.0, 1.0)),
        ("all four in one task", 3600, 4.0, Share(instance_gpus=4, task_gpus=4), Spent(14_400.0, 4.0)),
        ("two processors share a GPU", 3600, 1.0, Share(lanes=2), Spent(1800.0, 0.5)),
        ("to the millisecond and the billionth of a dollar", 0.123456, 0.36, Share(), Spent(0.123, 0.000012346)),
        ("nothing was done", 0, 1.0, Share(), Spent(0.0, 0.0)),
        ("nobody knows the price", 60, None, Share(), Spent(60.0, None)),
    ],
)
def test_an_attempt_costs(case, seconds, price, share, expected):
    assert share.spent(timedelta(seconds=seconds), price) == expected


@given(
    times=st.lists(st.integers(0, 10_000), max_size=6),
    lanes=st.integers(1, 8),
    gpus=st.integers(1, 8),
    price=st.floats(0.01, 100),
)
def test_processors_that_never_rest_cost_together_what_the_instance_does(times, lanes, gpus, price):
    share = Share(instance_gpus=gpus, lanes=lanes)
    parts = [share.spent(timedelta(seconds=each), price).usd for each in times]

    whole = sum(parts) * lanes * gpus

    assert whole == pytest.approx(sum(times) / 3600 * price, abs=1e-6)


@pytest.mark.parametrize(
    "row, lifecycle, price",
    [
        (ROW, "spot", 0.36),
        (ROW, "on-demand", 1.008),
        ({"pool": "p", "on_demand_usd": 1.008}, "spot", None),
        ({"pool": "p", "spot_usd": 0}, "spot", None),
        (ROW, "scheduled", None),
        (ROW, None, None),
        (None, "spot", None),
    ],
)
def test_a_price_is_that_of_the_market_the_instance_is_from(row, lifecycle, price):
    assert usd_per_hour(row, lifecycle) == price


def test_a_pool_is_known_when_type_and_zone_are():
    assert pool_of({"instance_type": "g5.xlarge", "zone": "us-east-1a"}) == "g5.xlarge/us-east-1a"
    assert pool_of({"instance_type": "g5.xlarge"}) is None
    assert pool_of({}) is None


def test_a_price_is_asked_for_every_quarter_of_an_hour_and_sooner_while_it_is_unknown():
    price = Price()
    minutes = {0: None, 1: 0.36, 16: None, 17: 0.4}
    asked = []

    for minute in range(20):
        now = NOON + timedelta(minutes=minute)
        if price.is_due(now):
            asked.append(minute)
            assert not price.is_due(now), "two ask at once"
            price.told(minutes[minute], now)
        assert price.usd_per_hour == (None if minute < 1 else 0.36 if minute < 17 else 0.4)

    assert asked == [0, 1, 16, 17]


def test_an_unknown_price_is_asked_for_again_after_ten_seconds():
    price = Price()

    assert [price.is_due(NOON + timedelta(seconds=each)) for each in (0, 9, 10, 19, 20)] == [True, False] * 2 + [True]


def test_an_attempt_that_got_nowhere_has_spent_nothing():
    assert Share().spent(timedelta(0), None) == NOTHING


# As a process


@pytest.fixture
def bench(endpoint, tmp_path):
    """A worker's surroundings on an instance of four GPUs, which costs 3,600 USD an hour: a job, one every 4 s."""
    made = Bench(endpoint, tmp_path)
    facts = {"instanceId": "i-1", "instanceType": "g5.12xlarge", "availabilityZone": "a", "lifecycle": "spot"}
    (made.host_dir / "instance.json").write_text(json.dumps(facts))
    made.pools = f"{made.table}-pools"
    made.dynamodb.create_table(
        TableName=made.pools,
        KeySchema=[{"AttributeName": "pool", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "pool", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )
    made.prices = {"SPINDRIFT_POOLS_TABLE": made.pools, "SPINDRIFT_GPUS_BY_TYPE": '{"g5.12xlarge": 4}'}
    return made


def price(bench, **columns):
    item = {"pool": {"S": "g5.12xlarge/a"}, **{name: {"N": str(usd)} for name, usd in columns.items()}}
    bench.dynamodb.put_item(TableName=bench.pools, Item=item)


def test_a_job_costs_what_its_processor_had_of_the_instance(bench):
    price(bench, spot_usd=3600, on_demand_usd=7200)
    job_id = bench.job(b"sleep 0.5")
    with bench.worker(**bench.prices):
        record = bench.until_state(job_id, "SUCCEEDED")

    assert 0.5 <= record["gpu_seconds"] < 5
    assert record["cost_usd"] == pytest.approx(record["gpu_seconds"] / 4, abs=1e-3)


def test_attempts_that_came_to_nothing_cost_as_well(bench):
    price(bench, spot_usd=3600)
    failed, twice = bench.job(b"raise"), bench.job(b"sleep 0.5", "b.jpg", gpu_seconds=100, attempts=1)
    bench.write(twice, cost_usd=25)
    with bench.worker(SPINDRIFT_MAX_FAILURES="1", **bench.prices):
        records = [bench.until_state(failed, "FAILED"), bench.until_state(twice, "SUCCEEDED")]

    assert records[0]["cost_usd"] > 0
    assert 100.5 <= records[1]["gpu_seconds"] < 105
    assert records[1]["cost_usd"] == pytest.approx(records[1]["gpu_seconds"] / 4, abs=1e-3)


def test_a_job_that_is_given_back_has_cost_something(bench):
    price(bench, spot_usd=3600)
    job_id = bench.job(b"sleep 60")
    with bench.worker(**bench.prices):
        until(bench.diary.exists)
        bench.notice(11)
        record = bench.until_state(job_id, "QUEUED")

    assert record["releases"] == 1
    assert record["cost_usd"] == pytest.approx(record["gpu_seconds"] / 4, abs=1e-3)


@pytest.mark.parametrize("environment", [{}, {"SPINDRIFT_POOLS_TABLE": "there-is-none"}])
def test_what_a_job_cost_is_not_said_where_nobody_knows(bench, environment):
    job_id = bench.job(b"nothing")
    with bench.worker(**environment):
        record = bench.until_state(job_id, "SUCCEEDED")

    assert "cost_usd" not in record
    assert record["gpu_seconds"] > 0


def test_a_worker_is_told_of_instances_that_have_more_gpus_than_its_task():
    nothing = Asset("nothing", "0")
    types = {"instance_types": ["g5.12xlarge", "g5.xlarge"]}
    settings = Settings.read({"compute": types, "on_demand": {"instance_types": ["g4dn.12xlarge"], "max_units": 4}})
    template = build_cluster(settings, Assets(ingest=nothing, capacity=nothing, market=nothing, agent=nothing))
    [container] = template.to_dict()["Resources"]["DefaultTask"]["Properties"]["ContainerDefinitions"]
    told = {one["Name"]: one["Value"] for one in container["Environment"]}

    assert json.loads(told["SPINDRIFT_GPUS_BY_TYPE"]) == {"g5.12xlarge": 4, "g4dn.12xlarge": 4}
    assert told["SPINDRIFT_POOLS_TABLE"] == {"Ref": "PoolsTable"}
