"""Amazon EC2 Auto Scaling: the calls about groups. A group is all On-Demand or all Spot here."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from localcloud import catalog, listing
from localcloud.groupextras import GroupExtras, hook_of, member_of, pool_of
from localcloud.groupkeeper import PRIORITIZED, Activity, Group, Groups, Settings
from localcloud.instances import Instance
from localcloud.launch import Surveyor
from localcloud.requirements import satisfying
from localcloud.scalingpolicies import Policy, PolicyCalls, group_of
from localcloud.spotgroups import LOWEST_PRICE, STRATEGIES, USUAL_POOLS, SpotChoice
from localcloud.wire import Call, Fault, Permission, Service, plays
from localcloud.world import ACCOUNT, REGION

SETTABLE = (
    "AutoScalingGroupName",
    "MinSize",
    "MaxSize",
    "DesiredCapacity",
    "VPCZoneIdentifier",
    "LaunchTemplate",
    "MixedInstancesPolicy",
    "NewInstancesProtectedFromScaleIn",
    "HealthCheckType",
    "HealthCheckGracePeriod",
    "DefaultCooldown",
    "DefaultInstanceWarmup",
    "TerminationPolicies",
    "CapacityRebalance",
)
ONLY = {"HealthCheckType": "EC2", "TerminationPolicies": ["Default"], "CapacityRebalance": False}
DISTRIBUTION = {
    "OnDemandAllocationStrategy",
    "OnDemandBaseCapacity",
    "OnDemandPercentageAboveBaseCapacity",
    "SpotAllocationStrategy",
    "SpotInstancePools",
}
OVERRIDES = {"InstanceType", "WeightedCapacity", "InstanceRequirements"}
ATTRIBUTE_STRATEGIES = {"price-capacity-optimized", "capacity-optimized", LOWEST_PRICE}
"""What goes with InstanceRequirements (Auto Scaling user guide, "Create mixed instances group using attributes")."""


class AutoScaling(GroupExtras, PolicyCalls, Service):
    """The `autoscaling` service."""

    name = "autoscaling"

    def __init__(self, groups: Groups, surveyor: Surveyor) -> None:
        self.groups = groups
        self.world = groups.world
        self.surveyor = surveyor
        self.policies: dict[str, Policy] = {}
        self.alarms_of: Callable[[str], list[dict[str, str]]] = lambda _: []

    def permissions(self, call: Call) -> Iterable[Permission]:
        """Groups by ARN with their tags; Describe calls on everything (Service Authorization Reference)."""
        action = f"autoscaling:{call.operation}"
        with self.world.lock:
            name = call.params.get("AutoScalingGroupName") or group_of(call.params.get("PolicyName", ""))
            if call.operation in ("CreateOrUpdateTags", "DeleteTags"):
                return [self._to_tag(action, group, tags) for group, tags in _by_group(call.params["Tags"]).items()]
            if call.operation == "TerminateInstanceInAutoScalingGroup":
                name = next((one.owner for one in self._all() if one.id == call.params["InstanceId"]), "")
            if call.operation.startswith("Describe"):
                return [Permission(action)]
            return [Permission(action, *self._owned(name))]

    def _to_tag(self, action: str, group: str, keys: list[str]) -> Permission:
        arn, owned = self._owned(group)
        return Permission(action, arn, {**owned, "aws:TagKeys": keys})

    def _owned(self, name: str) -> tuple[str, dict[str, Any]]:
        """ARN and condition keys of a group."""
        arn, tags = f"arn:aws:autoscaling:{REGION}:{ACCOUNT}:autoScalingGroup:*:autoScalingGroupName/{name}", {}
        if name in {group.name for group in self.groups.all()}:
            group = self.groups.get(name)
            arn, tags = group.arn, _plain_tags(group)
        return arn, {
            f"{prefix}:ResourceTag/{key}": value for key, value in tags.items() for prefix in ("autoscaling", "aws")
        }

    def _all(self) -> list[Instance]:
        return self.groups.instances.all()

    @plays(*SETTABLE, "Tags", "LifecycleHookSpecificationList")
    def create_auto_scaling_group(self, call: Call) -> Mapping[str, Any]:
        """A new group; it starts launching some seconds later."""
        params = call.params
        name = params["AutoScalingGroupName"]
        settings = self._settings(params, None)
        hooks = [hook_of(one) for one in params.get("LifecycleHookSpecificationList", ())]
        if len(hooks) > 1:
            raise Fault("NotPlayed", "the local cloud plays one lifecycle hook of a group")
        with self.world.lock:
            if name in {group.name for group in self.groups.all()}:
                raise Fault("AlreadyExists", f"AutoScalingGroup by this name already exists - {name}")
            now = self.world.now()
            group = Group(
                name=name,
                arn=f"arn:aws:autoscaling:{REGION}:{ACCOUNT}:autoScalingGroup:{uuid.uuid4()}:autoScalingGroupName/{name}",
                settings=settings,
                desired=settings.minimum,
                created=now,
                tags=tags_of(params.get("Tags", ())),
                check_at=now,
                hook=next(iter(hooks), None),
            )
            self._set_desired(group, params.get("DesiredCapacity", settings.minimum), call.caller)
            self.groups.add(group)
        return {}

    @plays(*SETTABLE)
    def update_auto_scaling_group(self, call: Call) -> Mapping[str, Any]:
        """Change what is named. Running instances stay as they are."""
        with self.world.lock:
            before = self.group(call.params["AutoScalingGroupName"]).settings
        settings = self._settings(call.params, before)
        with self.world.lock:
            group = self.group(call.params["AutoScalingGroupName"])
            if group.warm_pool is not None and "MixedInstancesPolicy" in settings.shown:
                message = "You can't use a mixed instances policy with an Auto Scaling group that has a warm pool."
                raise Fault("ValidationError", message)
            self.groups.change(group, settings)
            within = min(max(group.desired, settings.minimum), settings.maximum)
            self._set_desired(group, call.params.get("DesiredCapacity", within), call.caller)
        return {}

    @plays("AutoScalingGroupName", "DesiredCapacity", "HonorCooldown")
    def set_desired_capacity(self, call: Call) -> Mapping[str, Any]:
        """Say how many. Cooldowns are not played: asking to honour one is refused."""
        if call.params.get("HonorCooldown"):
            raise Fault("NotPlayed", "the local cloud does not play cooldowns")
        with self.world.lock:
            group = self.group(call.params["AutoScalingGroupName"])
            self._set_desired(group, call.params["DesiredCapacity"], call.caller)
        return {}

    @plays("InstanceId", "ShouldDecrementDesiredCapacity")
    def terminate_instance_in_auto_scaling_group(self, call: Call) -> Mapping[str, Any]:
        """End one instance, and want one less if so asked."""
        instance_id, decrement = call.params["InstanceId"], call.params["ShouldDecrementDesiredCapacity"]
        with self.world.lock:
            named = {group.name: group for group in self.groups.all()}
            found = next((one for one in self._all() if one.id == instance_id and one.owner in named), None)
            if found is None or found.state == "terminated":
                message = f"Instance Id not found - No managed instance found for instance ID: {instance_id}"
                raise Fault("ValidationError", message)
            group = named[found.owner]
            if found.ended_for_good:
                raise Fault("ScalingActivityInProgress", f"{instance_id} is terminating")
            if decrement and group.stages[found.id].warm:
                raise Fault("ValidationError", f"{instance_id} is in the warm pool, which no desired capacity counts")
            if decrement and group.desired <= group.settings.minimum:
                message = (
                    f"Currently, desiredSize equals minSize ({group.settings.minimum}). Terminating instance without "
                    "replacement will violate group's min size constraint."
                )
                raise Fault("ValidationError", message)
            if decrement:
                self._set_desired(group, group.desired - 1, call.caller)
            activity = self.groups.terminate(group, found, "an instance was taken out of service by a user request")
            return {"Activity": self._activity(group, activity)}

    @plays("AutoScalingGroupName", "ForceDelete")
    def delete_auto_scaling_group(self, call: Call) -> Mapping[str, Any]:
        """Remove an empty group, or with force also its instances."""
        with self.world.lock:
            group = self.group(call.params["AutoScalingGroupName"])
            if group.stages and not call.params.get("ForceDelete"):
                message = "You cannot delete an AutoScalingGroup while there are instances still in the group."
                raise Fault("ResourceInUse", message)
            group.deleting, group.check_at = True, self.world.now()
        return {}

    @plays("AutoScalingGroupNames", "Filters", "MaxRecords", "NextToken", "IncludeInstances")
    def describe_auto_scaling_groups(self, call: Call) -> Mapping[str, Any]:
        """Groups with their instances. Names that do not exist are left out."""
        with self.world.lock:
            names = call.params.get("AutoScalingGroupNames")
            chosen = [group for group in self.groups.all() if not names or group.name in names]
            chosen = listing.filtered(
                chosen,
                call.params.get("Filters", ()),
                {},
                _plain_tags,
            )
            shown, more = listing.page(chosen, call.params, 50, "MaxRecords")
            return {"AutoScalingGroups": [self._described(group) for group in shown], **more}

    @plays("AutoScalingGroupName", "ActivityIds", "MaxRecords", "NextToken")
    def describe_scaling_activities(self, call: Call) -> Mapping[str, Any]:
        """What groups did, newest first."""
        wanted, name = call.params.get("ActivityIds"), call.params.get("AutoScalingGroupName")
        with self.world.lock:
            found = [
                (group, activity)
                for group in self.groups.all()
                if name in (None, group.name)
                for activity in group.activities
                if not wanted or activity.id in wanted
            ]
            shown, more = listing.page(found, call.params, 100, "MaxRecords")
            return {"Activities": [self._activity(*one) for one in shown], **more}

    def group(self, name: str) -> Group:
        """The group of that name. Raises Fault."""
        try:
            return self.groups.get(name)
        except KeyError:
            raise Fault("ValidationError", f"AutoScalingGroup name not found - {name}") from None

    def _set_desired(self, group: Group, desired: int, caller: str) -> None:
        for bound, limit, beyond in (
            ("above max", group.settings.maximum, desired > group.settings.maximum),
            ("below min", group.settings.minimum, desired < group.settings.minimum),
        ):
            if beyond:
                message = f"New SetDesiredCapacity value {desired} is {bound} value {limit} for the AutoScalingGroup."
                raise Fault("ValidationError", message)
        self.groups.set_desired(group, desired, caller)

    def _settings(self, params: Mapping[str, Any], before: Settings | None) -> Settings:
        for member, only in ONLY.items():
            if params.get(member, only) != only:
                raise Fault("NotPlayed", f"the local cloud plays {only!r} for {member}, not {params[member]!r}")
        template: Mapping[str, Any] | None = params.get("LaunchTemplate")
        mix = Mix((), PRIORITIZED, None, {})
        shown: dict[str, Any] = {"LaunchTemplate": template} if template else {}
        if mixed := params.get("MixedInstancesPolicy"):
            template, mix = mixed["LaunchTemplate"]["LaunchTemplateSpecification"], _mixed(mixed)
            shown = {"MixedInstancesPolicy": mixed}
        if template is None and before is None:
            raise Fault("ValidationError", "Valid requests must contain LaunchTemplate or MixedInstancesPolicy here.")
        if "VPCZoneIdentifier" not in params and before is None:
            raise Fault("ValidationError", "VPCZoneIdentifier is required here.")
        ids = [one.strip() for one in params.get("VPCZoneIdentifier", "").split(",") if one.strip()]
        subnets = self.surveyor.subnets(ids) if ids else {}
        blueprint = self.surveyor.blueprint(template) if template else None
        chosen = mix.types or ((blueprint.instance_type,) if blueprint else ())
        if unknown := sorted(set(chosen) - set(catalog.names())):
            raise Fault("ValidationError", f"You must use a valid fully-formed launch template: {unknown}")
        settings = Settings(
            minimum=params["MinSize"] if "MinSize" in params or before is None else before.minimum,
            maximum=params["MaxSize"] if "MaxSize" in params or before is None else before.maximum,
            blueprint=blueprint or _had(before).blueprint,
            types=chosen or _had(before).types,
            strategy=mix.strategy if template else _had(before).strategy,
            spot=mix.spot if template else _had(before).spot,
            weights=mix.weights if template else _had(before).weights,
            cooldown=params.get("DefaultCooldown", before.cooldown if before else 300),
            subnets=tuple(subnets[one] for one in ids) or _had(before).subnets,
            protect_new=params.get("NewInstancesProtectedFromScaleIn", before.protect_new if before else False),
            shown=shown or _had(before).shown,
        )
        if settings.minimum > settings.maximum:
            raise Fault("ValidationError", f"Max bound, {settings.maximum}, must be greater than or equal to min bound")
        return settings

    def _described(self, group: Group) -> dict[str, Any]:
        settings = group.settings
        return {
            "AutoScalingGroupName": group.name,
            "AutoScalingGroupARN": group.arn,
            **settings.shown,
            "MinSize": settings.minimum,
            "MaxSize": settings.maximum,
            "DesiredCapacity": group.desired,
            "DefaultCooldown": settings.cooldown,
            "AvailabilityZones": sorted({subnet.zone for subnet in settings.subnets}),
            "HealthCheckType": "EC2",
            "HealthCheckGracePeriod": 0,
            "VPCZoneIdentifier": ",".join(subnet.id for subnet in settings.subnets),
            "NewInstancesProtectedFromScaleIn": settings.protect_new,
            "TerminationPolicies": ["Default"],
            "CreatedTime": group.created,
            **({"Status": "Delete in progress"} if group.deleting else {}),
            "EnabledMetrics": [{"Metric": one, "Granularity": "1Minute"} for one in group.metrics],
            **({"WarmPoolConfiguration": pool_of(group)} if group.warm_pool else {}),
            **({"WarmPoolSize": len(self.groups.members(group, warm=True))} if group.warm_pool else {}),
            "Instances": [member_of(group, one) for one in self.groups.members(group)],
            "Tags": [
                {
                    "ResourceId": group.name,
                    "ResourceType": "auto-scaling-group",
                    "Key": key,
                    "Value": value,
                    "PropagateAtLaunch": propagated,
                }
                for key, (value, propagated) in group.tags.items()
            ],
        }

    def _activity(self, group: Group, activity: Activity) -> dict[str, Any]:
        states = {one.id: one.state for one in self._all()}
        state = states.get(activity.instance_id, "terminated")
        going = state == ("pending" if activity.description.startswith("Launching") else "shutting-down")
        status = "Failed" if activity.trouble else "InProgress" if going else "Successful"
        return {
            "ActivityId": activity.id,
            "AutoScalingGroupName": group.name,
            "AutoScalingGroupARN": group.arn,
            "Description": activity.description,
            "Cause": activity.cause,
            "StartTime": activity.start,
            "StatusCode": status,
            **({"StatusMessage": activity.trouble} if activity.trouble else {}),
            "Progress": 50 if going else 100,
        }


def _had(before: Settings | None) -> Settings:
    if before is None:
        raise Fault("ValidationError", "the group lacks a launch template, an instance type or subnets")
    return before


class Mix(NamedTuple):
    """What a mixed instances policy says, in our terms."""

    types: tuple[str, ...]
    strategy: str
    spot: SpotChoice | None
    weights: dict[str, int]


def _mixed(policy: Mapping[str, Any]) -> Mix:
    """A policy that is all On-Demand or all Spot. Raises Fault for any other."""
    distribution = policy.get("InstancesDistribution", {})
    overrides = policy["LaunchTemplate"].get("Overrides", ())
    unplayed = {key for one in overrides for key in one if key not in OVERRIDES} | (set(distribution) - DISTRIBUTION)
    if unplayed:
        raise Fault("NotPlayed", f"the local cloud does not play {', '.join(sorted(unplayed))} of a mixed policy")
    share, base = (
        distribution.get("OnDemandPercentageAboveBaseCapacity", 100),
        distribution.get("OnDemandBaseCapacity", 0),
    )
    if share not in (0, 100) or (base and share != 100):
        raise Fault("NotPlayed", "the local cloud plays groups that are 100 % On-Demand or 100 % Spot")
    strategy = distribution.get("OnDemandAllocationStrategy", PRIORITIZED)
    if strategy not in (PRIORITIZED, LOWEST_PRICE):
        raise Fault("NotPlayed", f"the local cloud does not play OnDemandAllocationStrategy {strategy}")
    wanted: Mapping[str, Any] = next(
        (one["InstanceRequirements"] for one in overrides if "InstanceRequirements" in one), {}
    )
    if share == 100:
        if wanted:
            raise Fault("NotPlayed", "the local cloud plays InstanceRequirements for Spot only")
        return Mix(tuple(one["InstanceType"] for one in overrides), strategy, None, _weights(overrides))
    spot = distribution.get("SpotAllocationStrategy", LOWEST_PRICE)
    if spot not in STRATEGIES or ("SpotInstancePools" in distribution and spot != LOWEST_PRICE):
        raise Fault("ValidationError", f"SpotAllocationStrategy {spot} with {sorted(distribution)} is not valid.")
    choice = SpotChoice(spot, distribution.get("SpotInstancePools", USUAL_POOLS), wanted)
    if not wanted:
        return Mix(tuple(one["InstanceType"] for one in overrides), strategy, choice, _weights(overrides))
    if len(overrides) > 1 or set(overrides[0]) != {"InstanceRequirements"}:
        raise Fault("NotPlayed", "the local cloud plays InstanceRequirements alone, without weights or types")
    if spot not in ATTRIBUTE_STRATEGIES or strategy != LOWEST_PRICE:
        raise Fault("ValidationError", f"InstanceRequirements can't be used with strategies {spot} and {strategy}.")
    return Mix(tuple(satisfying(wanted)), strategy, choice, {})


def _weights(overrides: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Units by type. Raises Fault when only some have a weight."""
    weights = {one["InstanceType"]: int(one["WeightedCapacity"]) for one in overrides if "WeightedCapacity" in one}
    if weights and any("WeightedCapacity" not in one for one in overrides):
        raise Fault("ValidationError", "If you specify a weight for one override, you must specify one for each.")
    return weights


def tags_of(tags: Iterable[Mapping[str, Any]]) -> dict[str, tuple[str, bool]]:
    """By key: the value, and whether instances get the tag too."""
    return {one["Key"]: (one.get("Value", ""), bool(one.get("PropagateAtLaunch", False))) for one in tags}


def _by_group(tags: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Keys of the tags by the group that each names."""
    keys: dict[str, list[str]] = {}
    for tag in tags:
        keys.setdefault(tag["ResourceId"], []).append(tag["Key"])
    return keys


def _plain_tags(group: Group) -> dict[str, str]:
    return {key: value for key, (value, _) in group.tags.items()}
