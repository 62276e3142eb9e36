"""CloudFormation's Spot Fleet, Auto Scaling group and warm pool."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from botocore.validate import ParamValidator

from localcloud import wire
from localcloud.formation import NotPlayed, refuse_unplayed
from localcloud.groups import SETTABLE, AutoScaling, tags_of
from localcloud.wire import Call, Service
from localcloud.world import World

if TYPE_CHECKING:
    from localcloud.ec2 import Ec2

# ruff: noqa: ARG002 - the arguments are formation.Resource's

IN_PLACE = {"TargetCapacity", "ExcessCapacityTerminationPolicy", "Context"}
"""A change of any other member makes a new fleet, and then ends the old one with its instances. The schema of
AWS::EC2::SpotFleet has LaunchTemplateConfigs in place, but the reference of what is in it (the template's version, the
overrides) says "Update requires: Replacement" of each: the harder one is played.
"""
SCALARS: Mapping[str, Callable[[Any], Any]] = {
    "boolean": lambda value: value if isinstance(value, bool) else str(value).lower() == "true",
    "integer": int,
    "long": int,
    "double": float,
    "float": float,
    "string": str,
}
MOST_SECONDS = 900.0
CALLER = "cloudformation.amazonaws.com"


class SpotFleetResource:
    """AWS::EC2::SpotFleet."""

    def __init__(self, service: Ec2) -> None:
        self._service = service

    def create(self, logical_id: str, properties: dict[str, Any], stack: str) -> tuple[str, dict[str, Any]]:
        """Request the fleet. Ref and GetAtt Id are its id."""
        config = _config(properties)
        fleet_id = _perform(self._service, "RequestSpotFleet", {"SpotFleetRequestConfig": config})["SpotFleetRequestId"]
        return fleet_id, {"Id": fleet_id}

    def update(
        self, physical_id: str, old: dict[str, Any], new: dict[str, Any], stack: str
    ) -> tuple[str, dict[str, Any]]:
        """Modify the target and the policy, or replace the fleet; CloudFormation then deletes the old one."""
        before, after = _config(old), _config(new)
        changed = {key for key in {*before, *after} if before.get(key) != after.get(key)}
        if changed - IN_PLACE:
            return self.create(physical_id, new, stack)
        if changed:
            self._until_active(physical_id)
            wanted = {key: after[key] for key in IN_PLACE & set(after)}
            _perform(self._service, "ModifySpotFleetRequest", {"SpotFleetRequestId": physical_id, **wanted})
        return physical_id, {"Id": physical_id}

    def delete(self, physical_id: str, properties: dict[str, Any]) -> None:
        """Cancel it; with TerminateInstancesWithExpiration its instances end too, and it returns when they have."""
        terminate = _config(properties).get("TerminateInstancesWithExpiration", False)
        world = self._service.world
        with world.lock:
            known = physical_id in {fleet.id for fleet in self._service.fleets.all()}
        if not known:
            return
        _perform(
            self._service,
            "CancelSpotFleetRequests",
            {"SpotFleetRequestIds": [physical_id], "TerminateInstances": terminate},
        )
        if terminate:
            _wait(world, lambda: not _unfinished(self._service.instances.all(), physical_id))

    def _until_active(self, fleet_id: str) -> None:
        _wait(self._service.world, lambda: self._service.fleets.get(fleet_id).state == "active")


class GroupResource:
    """AWS::AutoScaling::AutoScalingGroup."""

    def __init__(self, service: AutoScaling) -> None:
        self._service = service

    def create(self, logical_id: str, properties: dict[str, Any], stack: str) -> tuple[str, dict[str, Any]]:
        """Create the group. Ref is its name."""
        suffix = "".join(self._service.world.dice.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", k=12))
        name = properties.get("AutoScalingGroupName") or f"{stack}-{logical_id}-{suffix}"
        _perform(self._service, "CreateAutoScalingGroup", {**_group(properties), "AutoScalingGroupName": name})
        self._furnish(name, {}, properties)
        return name, self._attributes(name)

    def update(
        self, physical_id: str, old: dict[str, Any], new: dict[str, Any], stack: str
    ) -> tuple[str, dict[str, Any]]:
        """Change it in place; without DesiredCapacity in the template the number stays. A new name replaces it."""
        if old.get("AutoScalingGroupName") != new.get("AutoScalingGroupName"):
            return self.create(physical_id, new, stack)
        params = _group(new)
        tags = params.pop("Tags", [])
        hooks = {one["LifecycleHookName"]: one for one in params.pop("LifecycleHookSpecificationList", [])}
        before = [one["LifecycleHookName"] for one in old.get("LifecycleHookSpecificationList", [])]
        for name in before:
            if name not in hooks:
                gone = {"AutoScalingGroupName": physical_id, "LifecycleHookName": name}
                _perform(self._service, "DeleteLifecycleHook", gone)
        for hook in hooks.values():
            _perform(self._service, "PutLifecycleHook", {**hook, "AutoScalingGroupName": physical_id})
        _perform(self._service, "UpdateAutoScalingGroup", {**params, "AutoScalingGroupName": physical_id})
        with self._service.world.lock:
            group = self._service.group(physical_id)
            group.tags = tags_of(tags)
        self._furnish(physical_id, old, new)
        return physical_id, self._attributes(physical_id)

    def _furnish(self, name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        """News and metrics, which have calls of their own."""
        where = {"AutoScalingGroupName": name}
        before, after = _news(old), _news(new)
        for topic in before.keys() - after.keys():
            _perform(self._service, "DeleteNotificationConfiguration", {**where, "TopicARN": topic})
        for topic, kinds in after.items():
            if before.get(topic) != kinds:
                told = {**where, "TopicARN": topic, "NotificationTypes": kinds}
                _perform(self._service, "PutNotificationConfiguration", told)
        if old.get("MetricsCollection") != new.get("MetricsCollection"):
            _perform(self._service, "DisableMetricsCollection", where)
            for chosen in new.get("MetricsCollection", []):
                _perform(self._service, "EnableMetricsCollection", {**where, **chosen})

    def delete(self, physical_id: str, properties: dict[str, Any]) -> None:
        """Remove it with its instances, and return when they are gone."""
        world, groups = self._service.world, self._service.groups
        with world.lock:
            if physical_id not in {group.name for group in groups.all()}:
                return
        _perform(self._service, "DeleteAutoScalingGroup", {"AutoScalingGroupName": physical_id, "ForceDelete": True})
        _wait(world, lambda: physical_id not in {group.name for group in groups.all()})

    def _attributes(self, name: str) -> dict[str, Any]:
        with self._service.world.lock:
            return {"AutoScalingGroupARN": self._service.group(name).arn}


class WarmPoolResource:
    """AWS::AutoScaling::WarmPool."""

    def __init__(self, service: AutoScaling) -> None:
        self._service = service

    def create(self, logical_id: str, properties: dict[str, Any], stack: str) -> tuple[str, dict[str, Any]]:
        """Give the group its warm pool. Ref is the group's name."""
        shape = wire.model("autoscaling").operation_model("PutWarmPool").input_shape
        params = typed(properties, shape, "AWS::AutoScaling::WarmPool")
        _perform(self._service, "PutWarmPool", params)
        return properties["AutoScalingGroupName"], {}

    def update(
        self, physical_id: str, old: dict[str, Any], new: dict[str, Any], stack: str
    ) -> tuple[str, dict[str, Any]]:
        """Another size, or another group's."""
        return self.create("", new, stack)

    def delete(self, physical_id: str, properties: dict[str, Any]) -> None:
        """Take it away with its instances, and return when they are gone."""

        def pool() -> object:
            return next((group.warm_pool for group in self._service.groups.all() if group.name == physical_id), None)

        world = self._service.world
        with world.lock:
            if pool() is None:
                return
        _perform(self._service, "DeleteWarmPool", {"AutoScalingGroupName": physical_id, "ForceDelete": True})
        _wait(world, lambda: pool() is None)


def _news(properties: Mapping[str, Any]) -> dict[str, list[str]]:
    """By topic: the kinds of news."""
    return {
        topic: list(one["NotificationTypes"])
        for one in properties.get("NotificationConfigurations", [])
        for topic in ([one["TopicARN"]] if isinstance(one["TopicARN"], str) else one["TopicARN"])
    }


def _config(properties: Mapping[str, Any]) -> dict[str, Any]:
    """SpotFleetRequestConfigData in the types of the API."""
    refuse_unplayed("AWS::EC2::SpotFleet", properties, {"SpotFleetRequestConfigData"}, {})
    shape = wire.model("ec2").operation_model("RequestSpotFleet").input_shape
    config: dict[str, Any] = typed(
        properties["SpotFleetRequestConfigData"], shape.members["SpotFleetRequestConfig"], "AWS::EC2::SpotFleet"
    )
    return config


def _group(properties: Mapping[str, Any]) -> dict[str, Any]:
    """The template's properties as CreateAutoScalingGroup takes them."""
    kind = "AWS::AutoScaling::AutoScalingGroup"
    renamed = {"Cooldown": "DefaultCooldown"}
    apart = ("NotificationConfigurations", "MetricsCollection")
    params = {renamed.get(key, key): value for key, value in properties.items() if key not in apart}
    refuse_unplayed(kind, params, {*SETTABLE, "Tags", "LifecycleHookSpecificationList"}, {})
    if isinstance(params.get("VPCZoneIdentifier"), list):
        params["VPCZoneIdentifier"] = ",".join(params["VPCZoneIdentifier"])
    shape = wire.model("autoscaling").operation_model("CreateAutoScalingGroup").input_shape
    result: dict[str, Any] = typed(params, shape, kind)
    for tag in result.get("Tags", ()):
        tag.setdefault("PropagateAtLaunch", True)  # the stack's own tags reach the instances
    return result


def typed(value: Any, shape: Any, where: str) -> Any:
    """A template's value in the types of the API: templates write numbers and truths as strings too.

    Raises NotPlayed for a member that the API does not have.
    """
    if shape.type_name == "structure":
        if unknown := sorted(set(value) - set(shape.members)):
            raise NotPlayed(f"{where}: no {', '.join(unknown)}")
        return {key: typed(part, shape.members[key], f"{where}.{key}") for key, part in value.items()}
    if shape.type_name == "list":
        return [typed(part, shape.member, where) for part in value]
    if shape.type_name == "map":
        return {key: typed(part, shape.value, where) for key, part in value.items()}
    scalar: Callable[[Any], Any] = SCALARS.get(shape.type_name, lambda kept: kept)
    return scalar(value)


def _perform(service: Service, operation: str, params: dict[str, Any]) -> Mapping[str, Any]:
    """An operation asked for by CloudFormation, held to the same shapes as any request."""
    report = ParamValidator().validate(params, wire.model(service.name).operation_model(operation).input_shape)
    if report.has_errors():
        raise NotPlayed(report.generate_report())
    return service.answer(Call(operation, params, CALLER))


def _unfinished(instances: list[Any], owner: str) -> bool:
    return any(one.owner == owner and one.state != "terminated" for one in instances)


def _wait(world: World, done: Callable[[], bool]) -> None:
    """Return once `done()`, asked with the lock held, is true. Raises TimeoutError after 15 minutes."""
    deadline = time.monotonic() + MOST_SECONDS
    while time.monotonic() < deadline:
        with world.lock:
            if done():
                return
        time.sleep(0.1)
    raise TimeoutError("the instances did not go away")
