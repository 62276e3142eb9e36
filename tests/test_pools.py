"""`build.py pools`: what an operator is shown of the Spot market, and what is proposed."""

import json
import re
import subprocess
import sys
import time
import tomllib

import pytest
from click.testing import CliRunner
from market_make import NOON, World, answered_by, session
from moto import mock_aws

from build import cli
from localcloud.laptop import PROJECT
from localcloud.market import Pool
from localcloud.wire import Fault
from ops.account import Account
from ops.pools import NoSuchStack, NothingFits, Wanted, of_settings, of_stack, propose
from templates.instance_types import INSTANCE_TYPES
from templates.settings import Settings
from tests.cloud import eventually, running_cloud


@pytest.fixture
def world(tmp_path):
    with mock_aws():
        yield World(tmp_path, steered=False)


@pytest.fixture
def account(world):
    found = Account(session())
    for client in (found.client("ec2"), found.client("pricing", "us-east-1")):
        answered_by(client, world.answer)
    answered_by(found.client("cloudformation"), stack_resource)
    return found


def stack_resource(service, operation, params):
    """CloudFormation knows one stack, whose table is the market Lambda's."""
    assert (operation, params["LogicalResourceId"]) == ("DescribeStackResource", "PoolsTable")
    if params["StackName"] != "one":
        raise Fault("ValidationError", f"Stack '{params['StackName']}' does not exist")
    table = {"LogicalResourceId": "PoolsTable", "PhysicalResourceId": "pools", "ResourceType": "AWS::DynamoDB::Table"}
    return {"StackResourceDetail": {**table, "LastUpdatedTimestamp": NOON, "ResourceStatus": "CREATE_COMPLETE"}}


def cells(text):
    """The table as printed, by pool: {column: value}."""
    head, *rows = [re.split(r"\s{2,}", line.strip()) for line in text.split("\n\n")[0].splitlines()]
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows}


def shown(report):
    return cells("\n".join(report.text()))


# What the settings would have.


def test_every_pool_of_the_settings_is_shown_with_its_prices(account, world):
    settings = Settings.read({"compute": {"instance_types": ["g5.xlarge", "g6.xlarge", "g4dn.xlarge"]}})

    found = shown(of_settings(account, settings, world.now))

    assert len(found) == 3 * 3
    one = found["g5.xlarge/us-east-1b"]
    spot = world.ec2.market.price(Pool("g5.xlarge", "us-east-1b"))
    assert one["on-demand"] == "1.0060"
    assert 0.05 < float(one["spot"]) < 1.006
    assert one["saving"] == f"{1 - float(one['spot']) / 1.006:.0%}"
    assert (one["state"], one["taken"]) == ("open", "-")
    assert int(one["score"]) in range(1, 11)
    assert float(one["spot"]) == pytest.approx(spot, rel=0.5)


def test_a_dear_pool_is_shown_as_the_lambda_would_judge_it(account, world):
    settings = Settings.read({"compute": {"instance_types": ["g5.xlarge", "g6.xlarge", "g4dn.xlarge"]}})
    of_settings(account, settings, world.now)  # who asks for prices opens the local market
    world.price("g6.xlarge/us-east-1a", 0.8048)
    world.ec2.world.clock = world.now.replace(hour=14)

    found = shown(of_settings(account, settings, world.now))["g6.xlarge/us-east-1a"]

    assert (found["state"], found["why"], found["saving"]) == ("dear", "Spot costs 100% of On-Demand", "0%")


def test_given_subnets_are_in_their_own_zones(account, world):
    network = {"vpc_id": "vpc-12345678", "subnet_ids": ["subnet-11111111"]}
    chosen = Settings.read({"network": network})
    settings = chosen.model_copy(update={"network": chosen.network.model_copy(update={"subnet_ids": ("subnet-b",)})})

    found = shown(of_settings(account, settings, world.now))

    assert {pool.split("/")[1] for pool in found} == {"us-east-1b"}


def test_with_attributes_the_types_that_fit_are_shown(account, world):
    settings = Settings.read(
        {
            "spot": {"allocation_strategy": "priceCapacityOptimized"},
            "compute": {"attributes": {"gpu_names": ["l4"], "max_vcpus": 8}},
        }
    )

    found = shown(of_settings(account, settings, world.now))

    assert {pool.split("/")[0] for pool in found} == {"g6.xlarge", "g6.2xlarge"}


def test_what_aws_does_not_tell_is_a_dash_and_a_note(account, world):
    world.refuse |= {"GetProducts": "AccessDeniedException", "GetSpotPlacementScores": "MaxConfigLimitExceeded"}

    text = "\n".join(of_settings(account, Settings(), world.now).text())

    assert {row["score"] for row in cells(text).values()} == {"-"}
    assert "no placement scores: MaxConfigLimitExceeded" in text
    assert re.search(r"On-Demand prices are those of 20\d\d-\d\d-\d\d, for the price list says AccessDenied", text)


# What a stack has.


def test_a_stack_shows_what_its_lambda_knows(account, world):
    world.take("g5.xlarge/us-east-1a", world.now, world.now)
    world.run()

    report = of_stack(account, "one")

    found = shown(report)
    assert len(found) == 8
    taken = found["g5.xlarge/us-east-1a"]
    assert (taken["state"], taken["taken"]) == ("avoided", "2")
    assert taken["why"].startswith("EC2 took it once in a day")
    assert report.notes == ["7 of 8 pools are open, seen at 2026-08-01 12:00 UTC", "On-Demand by the price list"]


def test_what_a_stack_buys_on_demand_alone_is_no_pool(account, world):
    world.run()
    row = {"pool": "p3.2xlarge/us-east-1a", "on_demand_usd": 3, "seen_at": int(world.now.timestamp())}
    world.table.put_item(Item=row)

    assert len(shown(of_stack(account, "one"))) == 8


def test_before_the_first_look_there_is_nothing_but_that(account, world):
    world.take("g5.xlarge/us-east-1a", world.now)

    report = of_stack(account, "one")

    assert [line.pool for line in report.lines] == ["g5.xlarge/us-east-1a"]
    assert "has not looked yet" in report.notes[0]


def test_in_the_midst_of_a_look_every_pool_is_shown(account, world):
    world.run()
    earlier = int(world.now.timestamp()) - 310
    row = world.rows()["g5.xlarge/us-east-1a"]
    world.table.put_item(Item={**row, "seen_at": earlier})

    assert len(shown(of_stack(account, "one"))) == 8


def test_pools_that_an_update_took_away_are_not_shown(account, world):
    world.table.put_item(Item={"pool": "p3.2xlarge/us-east-1a", "state": "open", "seen_at": 1000})
    world.run()

    assert "p3.2xlarge/us-east-1a" not in shown(of_stack(account, "one"))


def test_a_stack_that_is_not_there_is_said_so(account):
    with pytest.raises(NoSuchStack, match="stack none has no table of pools in us-east-1"):
        of_stack(account, "none")


# What is proposed.


@pytest.mark.parametrize("gpus", [1, 4, 8])
@pytest.mark.parametrize("zones", [1, 3])
def test_a_proposal_can_be_pasted_into_the_settings(account, world, gpus, zones):
    proposed = propose(account, Wanted(gpus=gpus, memory_gib=16, zones=zones), world.now)

    settings = Settings.read(tomllib.loads(proposed))
    assert settings.network.zones == zones
    names = settings.compute.instance_types
    assert {INSTANCE_TYPES[name].gpus for name in (*names, *settings.on_demand.instance_types)} == {gpus}
    assert 3 <= len(names) <= 8
    assert len({name.split(".")[0] for name in names}) >= 3


def test_a_proposal_has_the_memory_that_is_wanted_for_each_gpu(account, world):
    proposed = propose(account, Wanted(gpus=1, memory_gib=60, zones=3), world.now)

    names = Settings.read(tomllib.loads(proposed)).compute.instance_types
    assert min(INSTANCE_TYPES[name].memory_mib for name in names) >= 60 * 1024


def test_each_family_comes_before_the_next_size_of_one(account, world):
    names = tomllib.loads(propose(account, Wanted(gpus=1, memory_gib=16, zones=3), world.now))["compute"]

    families = [name.split(".")[0] for name in names["instance_types"]]
    first = families[: len(set(families))]
    assert len(set(first)) == len(first)


def test_nothing_is_proposed_that_costs_more_on_spot_than_the_cheapest_on_demand(account, world):
    names = tomllib.loads(propose(account, Wanted(gpus=1, memory_gib=16, zones=3), world.now))["compute"]
    dearest = max(
        world.ec2.market.price(Pool(name, f"us-east-1{zone}"))
        for name in names["instance_types"]
        for zone in "abc"
        if Pool(name, f"us-east-1{zone}") in world.ec2.market.pools()
    )

    assert dearest < 0.526 * 1.2  # g4dn.xlarge, and what a price may move within the hour


def test_what_nobody_sells_is_not_proposed(account, world):
    with pytest.raises(NothingFits, match="no type that we know has 3 GPUs"):
        propose(account, Wanted(gpus=3, memory_gib=16, zones=3), world.now)
    with pytest.raises(NothingFits, match="4096 GiB"):
        propose(account, Wanted(gpus=1, memory_gib=4096, zones=3), world.now)


# The command.


@pytest.mark.parametrize(
    "words, message",
    [
        (["--gpus", "4"], "--gpus: only with --propose"),
        (["--propose", "--stack", "one"], "--stack: not with --propose"),
        (["--settings", "nowhere.toml"], "nowhere.toml: there is no such file"),
    ],
)
def test_a_mistake_of_the_operators_is_said_and_is_status_2(words, message):
    done = CliRunner().invoke(cli, ["pools", *words])

    assert (done.exit_code, message in done.output) == (2, True)


def test_without_a_region_nothing_is_asked(monkeypatch):
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")

    done = CliRunner().invoke(cli, ["pools"])

    assert (done.exit_code, "region" in done.output) == (2, True)


def test_help_tells_a_situation_and_its_command():
    said = CliRunner().invoke(cli, ["pools", "--help"]).output

    assert re.search(r"To see why .*:\s+python build.py pools --stack NAME", said)
    assert re.search(r"To choose instance types .*\s+.*:\s+python build.py pools --propose --gpus 1", said)


# The whole chain.


@pytest.mark.timeout(200)
def test_the_deployed_lambda_takes_a_pool_out_of_the_fleet_and_may_do_no_more_than_that(tmp_path):
    """By its own rule, with its own role, on the built zip."""
    with running_cloud(speed=60, seed=3) as cloud:
        subprocess.run([sys.executable, "build.py", "--out", tmp_path], cwd=PROJECT, check=True, capture_output=True)
        outputs = cloud.deploy(tmp_path, "market")
        ec2, dynamodb = cloud.client("ec2"), cloud.client("dynamodb")
        table, fleet = outputs["PoolsTable"], outputs["SpotFleetId"]

        def offered():
            (found,) = ec2.describe_spot_fleet_requests(SpotFleetRequestIds=[fleet])["SpotFleetRequestConfigs"]
            (config,) = found["SpotFleetRequestConfig"]["LaunchTemplateConfigs"]
            return found["SpotFleetRequestState"], len(config["Overrides"])

        assert offered()[1] == 15
        eventually(lambda: dynamodb.scan(TableName=table)["Count"] == 15, within=60, what="a first look")
        for zone in "abc":
            dynamodb.update_item(
                TableName=table,
                Key={"pool": {"S": f"g6.xlarge/us-east-1{zone}"}},
                UpdateExpression="SET taken = :now",
                ExpressionAttributeValues={":now": {"L": [{"N": str(int(time.time()))}]}},
            )
        eventually(lambda: offered() == ("active", 12), within=60, what="three pools less")
        text = cloud.run(sys.executable, "build.py", "pools", "--stack", "market")
        decisions = [json.loads(line) for line in (cloud.state / "iam.jsonl").read_text().splitlines()]

    found = cells(text)
    assert len(found) == 15
    assert {pool for pool, row in found.items() if row["state"] == "avoided"} == {
        f"g6.xlarge/us-east-1{zone}" for zone in "abc"
    }
    assert "12 of 15 pools are open" in text
    asked = [one for one in decisions if "MarketRole" in one["principal"]]
    assert not [one for one in asked if not one["allowed"]]
    assert {one["action"] for one in asked} >= {"ec2:ModifySpotFleetRequest", "pricing:GetProducts", "dynamodb:Scan"}
