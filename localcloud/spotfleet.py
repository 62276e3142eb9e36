"""EC2's Spot Fleet calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from localcloud import catalog, listing
from localcloud.allocation import RANKS, Offer
from localcloud.fleet import Fleet, Fleets
from localcloud.instances import Instances
from localcloud.launch import Surveyor
from localcloud.market import Pool
from localcloud.requirements import affordable, satisfying
from localcloud.wire import Call, Fault, Permission, plays
from localcloud.world import ACCOUNT, REGION, World

ONLY = {
    "Type": ("maintain",),
    "InstanceInterruptionBehavior": ("terminate",),
    "OnDemandTargetCapacity": (0,),
    "TargetCapacityUnitType": ("units",),
    "ReplaceUnhealthyInstances": (False, True),
    "TerminateInstancesWithExpiration": (False, True),
    "ExcessCapacityTerminationPolicy": ("default", "noTermination"),
    "AllocationStrategy": tuple(RANKS),
}
"""Values that are played, by member of SpotFleetRequestConfig. Unhealthy instances do not occur here."""
ANY = {"IamFleetRole", "LaunchTemplateConfigs", "TargetCapacity", "TagSpecifications"}
OVERRIDES = {"InstanceType", "InstanceRequirements", "SubnetId", "WeightedCapacity", "Priority"}
ATTRIBUTE_STRATEGIES = ("priceCapacityOptimized", "capacityOptimized", "lowestPrice")
MOST_REQUIREMENTS = 4
"""InstanceRequirements in one request (EC2 User Guide, "Specify attributes for instance type selection")."""


class SpotFleetCalls:
    """Operations of EC2 about Spot Fleets. Part of `ec2.Ec2`."""

    world: World
    fleets: Fleets
    instances: Instances
    surveyor: Surveyor

    @plays("SpotFleetRequestConfig")
    def request_spot_fleet(self, call: Call) -> Mapping[str, Any]:
        """Create a fleet of type maintain from launch templates."""
        config = call.params["SpotFleetRequestConfig"]
        _check(config)
        if not self.surveyor.trusts(config["IamFleetRole"], "spotfleet.amazonaws.com"):
            message = (
                "Parameter: SpotFleetRequestConfig.IamFleetRole is invalid: spotfleet.amazonaws.com may not assume it"
            )
            raise Fault("InvalidSpotFleetRequestConfig", message)
        offers = self._offers(config["LaunchTemplateConfigs"], config.get("AllocationStrategy", "lowestPrice"))
        tags = {
            tag["Key"]: tag["Value"]
            for specification in config.get("TagSpecifications", ())
            if specification.get("ResourceType") == "spot-fleet-request"
            for tag in specification.get("Tags", ())
        }
        with self.world.lock:
            return {"SpotFleetRequestId": self.fleets.create(config, offers, tags).id}

    @plays("SpotFleetRequestIds", "MaxResults", "NextToken")
    def describe_spot_fleet_requests(self, call: Call) -> Mapping[str, Any]:
        """Fleets with their target and what they have of it."""
        with self.world.lock:
            wanted = call.params.get("SpotFleetRequestIds")
            fleets = [self.fleet(one) for one in wanted] if wanted else self.fleets.all()
            shown, more = listing.page(fleets, call.params, 1000)
            return {"SpotFleetRequestConfigs": [self._described(fleet) for fleet in shown], **more}

    @plays("SpotFleetRequestId", "MaxResults", "NextToken")
    def describe_spot_fleet_instances(self, call: Call) -> Mapping[str, Any]:
        """A fleet's running instances."""
        with self.world.lock:
            fleet = self.fleet(call.params["SpotFleetRequestId"])
            shown, more = listing.page(self.fleets.members(fleet), call.params, 1000)
            return {
                "SpotFleetRequestId": fleet.id,
                "ActiveInstances": [
                    {
                        "InstanceId": one.id,
                        "InstanceType": one.pool.type,
                        "SpotInstanceRequestId": one.request_id,
                        "InstanceHealth": "healthy",
                    }
                    for one in shown
                ],
                **more,
            }

    @plays("SpotFleetRequestId", "StartTime", "EventType", "MaxResults", "NextToken")
    def describe_spot_fleet_request_history(self, call: Call) -> Mapping[str, Any]:
        """What happened to a fleet since a time, oldest first."""
        start: datetime = call.params["StartTime"]
        start = start if start.tzinfo else start.replace(tzinfo=UTC)
        kind = call.params.get("EventType")
        with self.world.lock:
            fleet = self.fleet(call.params["SpotFleetRequestId"])
            records = [
                {
                    "Timestamp": at,
                    "EventType": what,
                    "EventInformation": {
                        "EventSubType": subtype,
                        **({"EventDescription": description} if description else {}),
                        **({"InstanceId": instance} if instance else {}),
                    },
                }
                for at, what, subtype, description, instance in fleet.history
                if at >= start and kind in (None, what)
            ]
        shown, more = listing.page(records, call.params, 1000)
        return {
            "SpotFleetRequestId": fleet.id,
            "StartTime": start,
            "LastEvaluatedTime": self.world.now(),
            "HistoryRecords": list(shown),
            **more,
        }

    @plays("SpotFleetRequestId", "TargetCapacity", "ExcessCapacityTerminationPolicy", "LaunchTemplateConfigs")
    def modify_spot_fleet_request(self, call: Call) -> Mapping[str, Any]:
        """Change target, policy or what is launched from; what is not given stays.

        Only an active fleet can be modified (EC2 API, "Error codes"). What AWS does not say is taken so: instances of
        a pool that is taken out run on, with the units that they had.
        """
        configs = call.params.get("LaunchTemplateConfigs")
        with self.world.lock:
            strategy = self.fleet(call.params["SpotFleetRequestId"]).strategy
        choice = (configs, self._offers(configs, strategy)) if configs else None
        with self.world.lock:
            fleet = self.fleet(call.params["SpotFleetRequestId"])
            if fleet.state != "active":
                message = f"Fleet Request: {fleet.id} is not in a modifiable state: {fleet.state}"
                raise Fault("FleetNotInModifiableState", message)
            policy = call.params.get("ExcessCapacityTerminationPolicy", fleet.excess_policy)
            self.fleets.modify(fleet, call.params.get("TargetCapacity", fleet.target), policy, call.caller, choice)
            return {"Return": True}

    @plays("SpotFleetRequestIds", "TerminateInstances")
    def cancel_spot_fleet_requests(self, call: Call) -> Mapping[str, Any]:
        """Cancel fleets; their instances end at once or stay."""
        done, failed = [], []
        with self.world.lock:
            for fleet_id in call.params["SpotFleetRequestIds"]:
                try:
                    fleet = self.fleets.get(fleet_id)
                except KeyError:
                    error = {"Code": "fleetRequestIdDoesNotExist", "Message": f"no Spot Fleet request {fleet_id}"}
                    failed.append({"SpotFleetRequestId": fleet_id, "Error": error})
                    continue
                before = fleet.state
                if before.startswith("cancelled"):
                    error = {"Code": "fleetRequestNotInCancellableState", "Message": f"{fleet_id} is {before}"}
                    failed.append({"SpotFleetRequestId": fleet_id, "Error": error})
                    continue
                self.fleets.cancel(fleet, call.params["TerminateInstances"])
                done.append(
                    {
                        "SpotFleetRequestId": fleet_id,
                        "PreviousSpotFleetRequestState": before,
                        "CurrentSpotFleetRequestState": fleet.state,
                    }
                )
        return {"SuccessfulFleetRequests": done, "UnsuccessfulFleetRequests": failed}

    def needed_to_launch(self, configs: Sequence[Mapping[str, Any]]) -> Iterator[Permission]:
        """What who changes a fleet's launch templates must be allowed: the change, and the launch itself.

        The resource types are the Service Authorization Reference's; that Spot Fleet asks for RunInstances in the
        caller's name is known of requests (EC2 User Guide, "Spot Fleet permissions"), and taken for so of changes.
        """
        for config in configs:
            blueprint = self.surveyor.blueprint(config["LaunchTemplateSpecification"])
            places = {
                one for override in config.get("Overrides", ()) for one in override.get("SubnetId", "").split(",")
            }
            template = _arn(f"launch-template/{blueprint.template_id}")
            subnets = [_arn(f"subnet/{place.strip()}") for place in sorted(places - {""})]
            yield from (Permission("ec2:ModifySpotFleetRequest", where) for where in (template, *subnets))
            groups = [_arn(f"security-group/{group}") for group in blueprint.security_groups]
            made = [_arn(f"{kind}/*") for kind in ("instance", "network-interface", "volume")]
            image = f"arn:aws:ec2:{REGION}::image/{blueprint.image_id}"
            for where in (template, image, *subnets, *groups, *made):
                yield Permission("ec2:RunInstances", where, {"ec2:LaunchTemplate": template})
            for kind in ("instance", "volume"):
                yield Permission("ec2:CreateTags", _arn(f"{kind}/*"), {"ec2:CreateAction": "RunInstances"})
            if blueprint.role_arn:
                yield Permission("iam:PassRole", blueprint.role_arn, {"iam:PassedToService": "ec2.amazonaws.com"})

    def fleet(self, fleet_id: str) -> Fleet:
        """The fleet of that id. Raises Fault."""
        try:
            return self.fleets.get(fleet_id)
        except KeyError:
            message = f"The Spot Fleet request ID '{fleet_id}' does not exist"
            raise Fault("InvalidSpotFleetRequestId.NotFound", message) from None

    def _described(self, fleet: Fleet) -> dict[str, Any]:
        fulfilled = self.fleets.fulfilled(fleet)
        return {
            "SpotFleetRequestId": fleet.id,
            "SpotFleetRequestState": fleet.state,
            "CreateTime": fleet.created,
            **({"ActivityStatus": _activity(fleet, fulfilled)} if fleet.state in ("active", "modifying") else {}),
            "Tags": [{"Key": key, "Value": value} for key, value in fleet.tags.items()],
            "SpotFleetRequestConfig": {
                **fleet.config,
                "AllocationStrategy": fleet.strategy,
                "TargetCapacity": fleet.target,
                "FulfilledCapacity": float(fulfilled),
                "OnDemandTargetCapacity": 0,
                "OnDemandFulfilledCapacity": 0.0,
                "ExcessCapacityTerminationPolicy": fleet.excess_policy,
                "Type": "maintain",
            },
        }

    def _offers(self, configs: Sequence[Mapping[str, Any]], strategy: str) -> list[Offer]:
        _check_attributes([one for config in configs for one in config.get("Overrides", ())], strategy)
        offers: list[Offer] = []
        for config in configs:
            blueprint = self.surveyor.blueprint(config["LaunchTemplateSpecification"])
            overrides = config.get("Overrides") or [{}]
            for override in overrides:
                if unplayed := sorted(set(override) - OVERRIDES):
                    raise Fault("NotPlayed", f"the local cloud does not play {', '.join(unplayed)} of an override")
            ids = {one.strip() for override in overrides for one in override.get("SubnetId", "").split(",")} - {""}
            if not ids:
                raise Fault("InvalidSpotFleetRequestConfig", "every override needs a SubnetId here")
            subnets = self.surveyor.subnets(ids)
            for override in overrides:
                for subnet in (subnets[one.strip()] for one in override["SubnetId"].split(",")):
                    offers += [
                        Offer(
                            Pool(kind, subnet.zone),
                            subnet,
                            float(override.get("WeightedCapacity", 1)),
                            float(override.get("Priority", 0)),
                            blueprint,
                        )
                        for kind in self._kinds(override, blueprint.instance_type, subnet.zone)
                    ]
        if len({offer.pool for offer in offers}) != len(offers):
            raise Fault("InvalidSpotFleetRequestConfig", "two overrides name the same instance type and zone")
        return offers

    def _kinds(self, override: Mapping[str, Any], default: str, zone: str) -> list[str]:
        """The types that an override means in a zone."""
        wanted = override.get("InstanceRequirements")
        if wanted is None:
            kind = override.get("InstanceType", default)
            if kind not in catalog.names():
                raise Fault("InvalidSpotFleetRequestConfig", f"Invalid instance type: {kind!r}")
            return [kind]

        def price(kind: str) -> float:
            return self.fleets.price(Pool(kind, zone))

        found = affordable(satisfying(wanted), wanted, price)
        if not found:
            raise Fault("InvalidSpotFleetRequestConfig", "No instance types match the InstanceRequirements")
        return found


def _check_attributes(overrides: Sequence[Mapping[str, Any]], strategy: str) -> None:
    """What EC2 refuses beside InstanceRequirements. Raises Fault."""
    asking = [one for one in overrides if "InstanceRequirements" in one]
    for one in asking:
        if beside := sorted({"InstanceType", "WeightedCapacity", "Priority"} & set(one)):
            raise Fault("InvalidParameterCombination", f"InstanceRequirements can't be used with {', '.join(beside)}")
    if asking and strategy not in ATTRIBUTE_STRATEGIES:
        raise Fault("InvalidParameterCombination", f"InstanceRequirements can't be used with strategy {strategy}")
    if len(asking) > MOST_REQUIREMENTS:
        raise Fault("InvalidSpotFleetRequestConfig", f"{MOST_REQUIREMENTS} InstanceRequirements at the most")


def _check(config: Mapping[str, Any]) -> None:
    if unplayed := sorted(set(config) - set(ONLY) - ANY):
        raise Fault("NotPlayed", f"the local cloud does not play {', '.join(unplayed)} of a Spot Fleet")
    for member, values in ONLY.items():
        if config.get(member, values[0]) not in values:
            raise Fault("NotPlayed", f"the local cloud plays {values} for {member}, not {config[member]!r}")
    if not config.get("LaunchTemplateConfigs"):
        raise Fault("InvalidSpotFleetRequestConfig", "LaunchTemplateConfigs is required here")
    if config["TargetCapacity"] < 0:
        raise Fault("InvalidTargetCapacity", "TargetCapacity must not be negative")


def _arn(resource: str) -> str:
    return f"arn:aws:ec2:{REGION}:{ACCOUNT}:{resource}"


def _activity(fleet: Fleet, fulfilled: float) -> str:
    if fleet.failing:
        return "error"
    if fulfilled < fleet.target:
        return "pending_fulfillment"
    return "fulfilled"
