"""RunInstances of the local cloud: one Spot instance of a type and a zone that the caller chooses."""

import base64
from datetime import timedelta

import pytest
from ec2_make import Cloud

from localcloud.market import Pool
from localcloud.wire import Call, Fault

SPOT = {
    "MarketType": "spot",
    "SpotOptions": {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"},
}
ASKED = {
    "LaunchTemplate": {"LaunchTemplateId": "lt-1", "Version": "3"},
    "InstanceType": "g5.xlarge",
    "MinCount": 1,
    "MaxCount": 1,
    "SubnetId": "subnet-b",
    "InstanceMarketOptions": SPOT,
    "InstanceInitiatedShutdownBehavior": "terminate",
}


@pytest.fixture
def cloud(tmp_path):
    return Cloud(tmp_path)


def run(cloud, **changes):
    (made,) = cloud.ask("RunInstances", **{**ASKED, **changes})["Instances"]
    return made


def refusal(cloud, **changes):
    with pytest.raises(Fault) as refused:
        run(cloud, **changes)
    return refused.value.code


def test_an_instance_is_of_the_type_and_in_the_zone_that_were_asked_for(cloud):
    made = run(cloud)

    assert (made["InstanceType"], made["Placement"]["AvailabilityZone"]) == ("g5.xlarge", "us-east-1b")
    assert (made["InstanceLifecycle"], made["State"]["Name"]) == ("spot", "pending")
    cloud.world.advance(60)
    assert cloud.instances.get(made["InstanceId"]).state == "running"
    assert cloud.inside.booted == [made["InstanceId"]]


def test_user_data_and_tags_of_the_request_are_in_the_place_of_the_templates(cloud):
    tags = [{"ResourceType": "instance", "Tags": [{"Key": "spindrift:bench", "Value": "noon"}]}]

    made = run(cloud, UserData=base64.b64encode(b"#!/bin/sh\n").decode(), TagSpecifications=tags)

    assert cloud.instances.get(made["InstanceId"]).blueprint.user_data == "#!/bin/sh\n"
    worn = {tag["Key"]: tag["Value"] for tag in made["Tags"] if not tag["Key"].startswith("aws:")}
    assert worn == {"spindrift:bench": "noon"}
    assert {"Key": "spindrift:stack", "Value": "one"} in run(cloud)["Tags"], "without any, the template's hold"


def test_a_client_token_is_one_instance_however_often_it_is_sent(cloud):
    first = run(cloud, ClientToken="a")

    assert run(cloud, ClientToken="a")["InstanceId"] == first["InstanceId"]
    assert run(cloud, ClientToken="b")["InstanceId"] != first["InstanceId"]
    assert refusal(cloud, ClientToken="a", SubnetId="subnet-c") == "IdempotentParameterMismatch"
    assert len(cloud.instances.all()) == 2


def test_a_full_pool_and_a_used_up_quota_are_refused_in_ec2s_words(cloud):
    cloud.fate.capacity("g5.xlarge/us-east-1b", 0)
    assert refusal(cloud) == "InsufficientInstanceCapacity"
    cloud.fate.quota(4)
    run(cloud, SubnetId="subnet-a")
    assert refusal(cloud, SubnetId="subnet-a") == "MaxSpotInstanceCountExceeded"


def test_ec2_takes_it_back_as_it_does_a_fleets(cloud):
    made = run(cloud)
    cloud.world.advance(60)

    cloud.fate.reclaim(pool=str(Pool("g5.xlarge", "us-east-1b")))

    doomed = cloud.instances.get(made["InstanceId"])
    assert doomed.notice - cloud.world.now() == timedelta(seconds=120)
    cloud.world.advance(130)
    assert doomed.ended_for_good
    (request,) = cloud.ask("DescribeSpotInstanceRequests")["SpotInstanceRequests"]
    assert request["Status"]["Code"] == "instance-terminated-no-capacity"


@pytest.mark.parametrize(
    "changes",
    [
        {"MaxCount": 2},
        {"InstanceMarketOptions": {"MarketType": "spot"}},
        {"InstanceMarketOptions": {**SPOT, "SpotOptions": {**SPOT["SpotOptions"], "MaxPrice": "0.1"}}},
        {"TagSpecifications": [{"ResourceType": "network-interface", "Tags": []}]},
        {"Monitoring": {"Enabled": True}},
    ],
)
def test_what_is_not_played_is_an_error(cloud, changes):
    assert refusal(cloud, **changes) == "NotPlayed"
    assert cloud.instances.all() == []


def test_a_spot_instance_that_would_stop_and_a_type_that_is_none_are_refused(cloud):
    assert refusal(cloud, InstanceInitiatedShutdownBehavior="stop") == "InvalidParameterCombination"
    assert refusal(cloud, InstanceType="g5.tiny") == "InvalidParameterValue"


def test_who_launches_needs_everything_that_a_launch_touches(cloud):
    tags = [{"ResourceType": "instance", "Tags": [{"Key": "spindrift:stack", "Value": "one"}]}]
    call = Call("RunInstances", {**ASKED, "TagSpecifications": tags}, "arn")

    needs = list(cloud.ec2.permissions(call))

    ran = {one.resource.rpartition(":")[2] for one in needs if one.action == "ec2:RunInstances"}
    assert {"launch-template/lt-1", "subnet/subnet-b", "instance/*", "volume/*", "spot-instances-request/*"} <= ran
    tagged = next(one for one in needs if (one.action, one.resource[-10:]) == ("ec2:CreateTags", "instance/*"))
    assert tagged.context["aws:RequestTag/spindrift:stack"] == "one"
