"""A Spot Fleet that says what its instances must have, and the local cloud that finds the types."""

import pytest
from ec2_make import Cloud, config_of

from localcloud import catalog
from localcloud.requirements import affordable, satisfying
from localcloud.wire import Fault

WANTED = {
    "VCpuCount": {"Min": 4, "Max": 16},
    "MemoryMiB": {"Min": 16384, "Max": 65536},
    "AcceleratorCount": {"Min": 1, "Max": 1},
    "AcceleratorManufacturers": ["nvidia"],
    "AcceleratorTypes": ["gpu"],
    "CpuManufacturers": ["intel", "amd"],
    "BareMetal": "excluded",
    "ExcludedInstanceTypes": ["g6f.*", "gr6f.*"],
}


@pytest.fixture
def cloud(tmp_path):
    return Cloud(tmp_path)


def overrides(**changes):
    one = {"InstanceRequirements": {**WANTED, "MaxSpotPriceAsPercentageOfOptimalOnDemandPrice": 999_999}, **changes}
    return [{**one, "SubnetId": f"subnet-{zone}"} for zone in "ab"]


def request(cloud, those, target: int = 2, strategy: str = "priceCapacityOptimized") -> str:
    (config,) = config_of(target)["LaunchTemplateConfigs"]
    return cloud.fleet(
        target, AllocationStrategy=strategy, LaunchTemplateConfigs=[{**config, "Overrides": list(those)}]
    )


def test_only_types_that_have_everything_fit():
    found = satisfying(WANTED)

    assert {"g4dn.xlarge", "g5.2xlarge", "g6.4xlarge"} <= set(found)
    for name in found:
        assert catalog.gpus(name) == 1
        assert 4 <= catalog.vcpus(name) <= 16
        assert 16384 <= catalog.memory_mib(name) <= 65536
    assert not [name for name in found if name.startswith(("g5g", "g6f", "gr6f"))]


@pytest.mark.parametrize(
    "changes, gone",
    [
        ({"AcceleratorNames": ["t4"]}, "g5.xlarge"),
        ({"CpuManufacturers": ["intel"]}, "g5.xlarge"),
        ({"VCpuCount": {"Min": 8}}, "g5.xlarge"),
        ({"MemoryMiB": {"Min": 32768}}, "g4dn.xlarge"),
        ({"ExcludedInstanceTypes": ["g4*"]}, "g4dn.xlarge"),
        ({"AcceleratorCount": {"Min": 4}}, "g4dn.xlarge"),
    ],
)
def test_each_attribute_leaves_something_out(changes, gone):
    assert gone in satisfying(WANTED)
    assert gone not in satisfying({**WANTED, **changes})


def test_a_type_has_the_architecture_of_the_image():
    wanted = {key: value for key, value in WANTED.items() if key != "CpuManufacturers"}

    assert "g5g.xlarge" not in satisfying(wanted)
    assert "g5g.2xlarge" in satisfying(wanted, "arm64")


def test_price_protection_leaves_out_what_is_dear():
    names, spot = ["g4dn.xlarge", "g6e.xlarge"], {"g4dn.xlarge": 0.16, "g6e.xlarge": 0.6}

    assert affordable(names, {}, spot.get) == ["g4dn.xlarge"], "the cheapest costs 0.526 On-Demand"
    assert affordable(names, {"MaxSpotPriceAsPercentageOfOptimalOnDemandPrice": 120}, spot.get) == names
    assert affordable(names, {"SpotMaxPricePercentageOverLowestPrice": 50}, spot.get) == ["g4dn.xlarge"]


def test_a_fleet_launches_only_what_fits_and_an_instance_counts_as_one(cloud):
    fleet = request(cloud, overrides(), target=6)

    cloud.world.advance(60)

    assert cloud.fulfilled(fleet) == 6
    assert {cloud.instances.get(one).pool.type for one in cloud.members(fleet)} <= set(satisfying(WANTED))


@pytest.mark.parametrize(
    "changes, strategy, complaint",
    [
        ({"WeightedCapacity": 1.0}, "priceCapacityOptimized", "WeightedCapacity"),
        ({"InstanceType": "g5.xlarge"}, "priceCapacityOptimized", "InstanceType"),
        ({}, "diversified", "diversified"),
        ({"InstanceRequirements": {**WANTED, "LocalStorage": "required"}}, "lowestPrice", "LocalStorage"),
        ({"InstanceRequirements": {**WANTED, "AcceleratorNames": ["k520"]}}, "lowestPrice", "No instance types"),
        ({"InstanceRequirements": {"MemoryMiB": {"Min": 1}}}, "lowestPrice", "VCpuCount"),
    ],
)
def test_what_ec2_would_refuse_is_refused(cloud, changes, strategy, complaint):
    with pytest.raises(Fault, match=complaint):
        request(cloud, overrides(**changes), strategy=strategy)


def test_more_than_four_structures_are_refused(cloud):
    five = [{**overrides()[0], "SubnetId": f"subnet-{zone}"} for zone in "abcab"]
    with pytest.raises(Fault, match="4 InstanceRequirements"):
        request(cloud, five)


@pytest.mark.parametrize("action", ["ec2:RunInstances", "iam:PassRole", "ec2:RequestSpotInstances", "ec2:CreateTags"])
def test_a_fleet_whose_role_may_not_launches_nothing_and_says_so(cloud, action, monkeypatch):
    monkeypatch.setattr(
        cloud.ec2.surveyor, "blueprint", lambda template: _with_role(type(cloud.ec2.surveyor)().blueprint(template))
    )
    cloud.forbidden.add(action)

    fleet = request(cloud, overrides())
    cloud.world.advance(60)

    assert cloud.fulfilled(fleet) == 0
    assert "iamFleetRoleInvalid" in cloud.history(fleet)
    cloud.forbidden.clear()
    cloud.world.advance(60)
    assert cloud.fulfilled(fleet) == 2


def _with_role(blueprint):
    from dataclasses import replace

    return replace(blueprint, role_arn="arn:aws:iam::123456789012:role/instance")


def test_a_fleet_whose_role_may_not_terminate_cannot_let_go(cloud):
    fleet = request(cloud, overrides())
    cloud.world.advance(60)
    cloud.forbidden.add("ec2:TerminateInstances")

    cloud.ask("CancelSpotFleetRequests", SpotFleetRequestIds=[fleet], TerminateInstances=True)
    cloud.world.advance(300)

    assert len(cloud.members(fleet)) == 2
