"""A small EC2 with a clock in the test's hand: no network, no processes."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from botocore.validate import ParamValidator
from hypothesis import strategies as st

from localcloud import wire
from localcloud.control import Control
from localcloud.ec2 import Ec2
from localcloud.fleet import Fleets
from localcloud.groupkeeper import Groups
from localcloud.groupnews import News
from localcloud.groups import AutoScaling
from localcloud.herald import Herald
from localcloud.instances import Instances
from localcloud.interruptions import Interruptions
from localcloud.launch import Blueprint, Subnet
from localcloud.market import Market, Pool
from localcloud.network import Network
from localcloud.wire import Call
from localcloud.world import World

NOON = datetime(2026, 8, 1, 12, tzinfo=UTC)
ROLE = "arn:aws:iam::123456789012:role/fleet"
SUBNETS = {f"subnet-{letter}": Subnet(f"subnet-{letter}", f"us-east-1{letter}", "vpc-1") for letter in "abc"}
pools = st.sampled_from([Pool(kind, f"us-east-1{zone}") for kind in ("g5.xlarge", "g4dn.xlarge") for zone in "ab"])


class ClockedWorld(World):
    """Time passes when the test says so."""

    clock = NOON

    def now(self) -> datetime:
        return self.clock

    def advance(self, seconds: float) -> None:
        end = self.clock + timedelta(seconds=seconds)
        while self.clock < end:
            self.clock += timedelta(seconds=0.5)
            for step in self._steps:
                step(self.clock)


class Hollow:
    """Instances with nothing inside."""

    def __init__(self) -> None:
        self.booted, self.halted, self.killed = [], [], []

    def boot(self, instance) -> None:
        self.booted.append(instance.id)

    def halt(self, instance) -> None:
        self.halted.append(instance.id)

    def kill(self, instance) -> None:
        self.killed.append(instance.id)


class Surveyed:
    """One launch template, three subnets, one role."""

    def blueprint(self, template) -> Blueprint:
        version, tags = int(template["Version"]), {"spindrift:stack": "one"}
        return Blueprint(template_id="lt-1", version=version, instance_type="g4dn.xlarge", tags=tags)

    def subnets(self, ids) -> dict[str, Subnet]:
        return {one: SUBNETS[one] for one in ids}

    def trusts(self, role_arn: str, principal: str) -> bool:
        return role_arn == ROLE and principal == "spotfleet.amazonaws.com"


class Cloud:
    """The EC2 part of a local cloud, and what it said to EventBridge."""

    def __init__(self, folder, seed: int = 0) -> None:
        self.world = ClockedWorld(state=folder, endpoint="http://127.0.0.1:1", seed=seed)
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.inside = Hollow()
        self.forbidden: set[str] = set()
        herald = Herald(self.world, lambda _source, kind, detail, _resources: self.events.append((kind, detail)))
        self.control = Control(self.world)
        self.market = Market(seed)
        self.instances = Instances(self.world, self.market, self.inside, herald)
        self.fate = Interruptions(self.instances, self.control)
        surveyor = Surveyed()
        network = Network(self.instances, records=lambda kind: [])
        self.ec2 = Ec2(self.instances, Fleets(self.instances, herald, self.may), surveyor, network)
        self.news: list[dict[str, Any]] = []
        news = News(lambda topic, subject, message: self.news.append(json.loads(message)))
        self.autoscaling = AutoScaling(Groups(self.instances, news), surveyor)

    def may(self, role: str, session: str, action: str, resource: str, keys: Any) -> bool:
        """Whether the fleet's role may; a test names what it may not."""
        return action not in self.forbidden

    def ask(self, operation: str, **params: Any) -> Any:
        """An API call, held to botocore's shapes on the way in and out."""
        service = self.ec2 if self.ec2.plays(operation) else self.autoscaling
        shape = wire.model(service.name).operation_model(operation)
        report = ParamValidator().validate(params, shape.input_shape)
        assert not report.has_errors(), report.generate_report()
        answer = service.answer(Call(operation, params, "arn:aws:sts::123456789012:assumed-role/r/s"))
        wire.hold_to_model(shape, answer)
        return answer

    def fleet(self, target: int = 4, **changes: Any) -> str:
        config = {**config_of(target), **changes}
        return self.ask("RequestSpotFleet", SpotFleetRequestConfig=config)["SpotFleetRequestId"]

    def retarget(self, fleet: str, target: int, policy: str = "noTermination") -> None:
        self.ask(
            "ModifySpotFleetRequest",
            SpotFleetRequestId=fleet,
            TargetCapacity=target,
            ExcessCapacityTerminationPolicy=policy,
        )

    def described(self, fleet: str) -> Any:
        return self.ask("DescribeSpotFleetRequests", SpotFleetRequestIds=[fleet])["SpotFleetRequestConfigs"][0]

    def fulfilled(self, fleet: str) -> float:
        return self.described(fleet)["SpotFleetRequestConfig"]["FulfilledCapacity"]

    def members(self, fleet: str) -> list[str]:
        answer = self.ask("DescribeSpotFleetInstances", SpotFleetRequestId=fleet)
        return [one["InstanceId"] for one in answer["ActiveInstances"]]

    def status_of(self, instance: str) -> str:
        filters = [{"Name": "instance-id", "Values": [instance]}]
        (request,) = self.ask("DescribeSpotInstanceRequests", Filters=filters)["SpotInstanceRequests"]
        return request["Status"]["Code"]

    def said(self, kind: str) -> list[dict[str, Any]]:
        return [detail for what, detail in self.events if what == kind]

    def history(self, fleet: str) -> list[str]:
        answer = self.ask("DescribeSpotFleetRequestHistory", SpotFleetRequestId=fleet, StartTime=NOON)
        return [one["EventInformation"]["EventSubType"] for one in answer["HistoryRecords"]]

    def group(self, desired: int = 0, **changes: Any) -> None:
        self.ask(
            "CreateAutoScalingGroup",
            **{
                "AutoScalingGroupName": "top-up",
                "MinSize": 0,
                "MaxSize": 8,
                "DesiredCapacity": desired,
                "VPCZoneIdentifier": "subnet-a,subnet-b",
                "MixedInstancesPolicy": {
                    "LaunchTemplate": {
                        "LaunchTemplateSpecification": {"LaunchTemplateId": "lt-1", "Version": "1"},
                        "Overrides": [{"InstanceType": "g5.xlarge"}, {"InstanceType": "g4dn.xlarge"}],
                    },
                    "InstancesDistribution": {"OnDemandPercentageAboveBaseCapacity": 100},
                },
                "Tags": [{"Key": "spindrift:stack", "Value": "one", "PropagateAtLaunch": True}],
                **changes,
            },
        )

    def in_group(self) -> list[Any]:
        return self.ask("DescribeAutoScalingGroups")["AutoScalingGroups"][0]["Instances"]


def config_of(target: int, types=(("g5.xlarge", 1), ("g4dn.xlarge", 1)), zones: str = "abc") -> dict[str, Any]:
    """A fleet over types (with their weights) and zones."""
    return {
        "Type": "maintain",
        "TargetCapacity": target,
        "AllocationStrategy": "diversified",
        "IamFleetRole": ROLE,
        "ExcessCapacityTerminationPolicy": "noTermination",
        "LaunchTemplateConfigs": [
            {
                "LaunchTemplateSpecification": {"LaunchTemplateId": "lt-1", "Version": "1"},
                "Overrides": [
                    {"InstanceType": kind, "SubnetId": f"subnet-{zone}", "WeightedCapacity": float(weight)}
                    for kind, weight in types
                    for zone in zones
                ],
            }
        ],
    }
