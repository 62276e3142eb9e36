"""CloudWatch and what scales by its alarms, wired together, and their CloudFormation types."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from botocore.validate import ParamValidator

from localcloud import wire
from localcloud.alarms import Alarms, Breach
from localcloud.applicationscaling import ApplicationAutoScaling, alarms_of
from localcloud.cloudwatch import ALARM_SETTINGS, CloudWatch
from localcloud.ecs_shapes import words
from localcloud.formation import NotPlayed, Resource, refuse_unplayed
from localcloud.groups import AutoScaling
from localcloud.metrics import Metrics
from localcloud.scalingresources import typed
from localcloud.wire import Call, Service
from localcloud.world import World

if TYPE_CHECKING:
    from localcloud.ecs import Ecs

# ruff: noqa: ARG002 - the arguments are formation.Resource's

CALLER = "cloudformation.amazonaws.com"


def furnish(world: World, containers: Ecs, scaling: AutoScaling) -> tuple[list[Service], dict[str, Resource]]:
    """CloudWatch and Application Auto Scaling. Alarms execute the policies of groups and of services."""
    alarms = Alarms(world, metrics := Metrics())
    watch, services = CloudWatch(world, metrics, alarms), ApplicationAutoScaling(world, containers, alarms)
    scaling.alarms_of = lambda arn: alarms_of(alarms, arn)

    def scale(arn: str, breach: Breach) -> None:
        (services if ":resource/" in arn else scaling).act(arn, breach)

    alarms.scale_by(scale)
    return [watch, services], {
        "AWS::ApplicationAutoScaling::ScalableTarget": TargetResource(services),
        "AWS::ApplicationAutoScaling::ScalingPolicy": ServicePolicyResource(services),
        "AWS::AutoScaling::ScalingPolicy": GroupPolicyResource(scaling),
        "AWS::CloudWatch::Alarm": AlarmResource(watch),
    }


class _Kind:
    kind: str

    def __init__(self, service: Service) -> None:
        self._service = service

    def _perform(self, operation: str, properties: Mapping[str, Any], played: Collection[str]) -> Mapping[str, Any]:
        """An operation as CloudFormation asks for it, held to the same shapes as any request."""
        refuse_unplayed(self.kind, properties, set(played), {})
        shape = wire.model(self._service.name).operation_model(operation).input_shape
        params = typed(dict(properties), shape, self.kind)
        report = ParamValidator().validate(params, shape)
        if report.has_errors():
            raise NotPlayed(report.generate_report())
        return self._service.answer(Call(operation, params, CALLER))


def _tags(properties: Mapping[str, Any]) -> dict[str, str]:
    return {one["Key"]: one["Value"] for one in properties.get("Tags", ())}


class AlarmResource(_Kind):
    """AWS::CloudWatch::Alarm."""

    kind = "AWS::CloudWatch::Alarm"

    def __init__(self, service: CloudWatch) -> None:
        super().__init__(service)
        self._watch = service

    def create(self, logical_id: str, properties: dict[str, Any], stack: str) -> tuple[str, dict[str, Any]]:
        """Put the alarm. Ref is its name."""
        suffix = "".join(self._watch.world.dice.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", k=12))
        return self._put(properties.get("AlarmName") or f"{stack}-{logical_id}-{suffix}", properties)

    def update(
        self, physical_id: str, old: dict[str, Any], new: dict[str, Any], stack: str
    ) -> tuple[str, dict[str, Any]]:
        """Put it again; its state stays. Another name is another alarm."""
        if old.get("AlarmName") != new.get("AlarmName"):
            return self.create("", new, stack)
        return self._put(physical_id, new)

    def delete(self, physical_id: str, properties: dict[str, Any]) -> None:
        """Delete it."""
        with self._watch.world.lock:
            known = self._watch.alarms.get(physical_id) is not None
        if known:
            self._perform("DeleteAlarms", {"AlarmNames": [physical_id]}, {"AlarmNames"})

    def _put(self, name: str, properties: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        self._perform("PutMetricAlarm", {**properties, "AlarmName": name}, {*ALARM_SETTINGS, "Tags"})
        return name, {"Arn": self._watch.retag(name, _tags(properties))}


class GroupPolicyResource(_Kind):
    """AWS::AutoScaling::ScalingPolicy."""

    kind = "AWS::AutoScaling::ScalingPolicy"
    _played = words(
        "AutoScalingGroupName PolicyType AdjustmentType MinAdjustmentMagnitude ScalingAdjustment Cooldown "
        "StepAdjustments MetricAggregationType EstimatedInstanceWarmup"
    )

    def __init__(self, service: AutoScaling) -> None:
        super().__init__(service)
        self._scaling = service

    def create(self, logical_id: str, properties: dict[str, Any], stack: str) -> tuple[str, dict[str, Any]]:
        """Put the policy. Ref is its ARN."""
        suffix = "".join(self._scaling.world.dice.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", k=12))
        return self._put(f"{stack}-{logical_id}-{suffix}", properties)

    def update(
        self, physical_id: str, old: dict[str, Any], new: dict[str, Any], stack: str
    ) -> tuple[str, dict[str, Any]]:
        """Put it again; in another group it is another policy."""
        name = physical_id.rsplit(":policyName/", 1)[-1]
        if old["AutoScalingGroupName"] != new["AutoScalingGroupName"]:
            return self.create(name, new, stack)
        return self._put(name, new)

    def delete(self, physical_id: str, properties: dict[str, Any]) -> None:
        """Delete it; one that went with its group is gone."""
        with self._scaling.world.lock:
            self._scaling.policies.pop(physical_id, None)

    def _put(self, name: str, properties: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        refuse_unplayed(self.kind, properties, set(self._played), {})
        made = self._perform("PutScalingPolicy", {**properties, "PolicyName": name}, {*self._played, "PolicyName"})
        return made["PolicyARN"], {"Arn": made["PolicyARN"], "PolicyName": name}


class TargetResource(_Kind):
    """AWS::ApplicationAutoScaling::ScalableTarget."""

    kind = "AWS::ApplicationAutoScaling::ScalableTarget"
    _played = words("ServiceNamespace ResourceId ScalableDimension MinCapacity MaxCapacity Tags")
    _identity = ("ResourceId", "ScalableDimension", "ServiceNamespace")

    def create(self, logical_id: str, properties: dict[str, Any], stack: str) -> tuple[str, dict[str, Any]]:
        """Register the target. Ref is its three names."""
        tags = {"Tags": _tags(properties)} if "Tags" in properties else {}
        self._perform("RegisterScalableTarget", {**properties, **tags}, self._played)
        identity = "|".join(properties[name] for name in self._identity)
        return identity, {"Id": identity}

    def update(
        self, physical_id: str, old: dict[str, Any], new: dict[str, Any], stack: str
    ) -> tuple[str, dict[str, Any]]:
        """Other bounds, or another target."""
        return self.create("", new, stack)

    def delete(self, physical_id: str, properties: dict[str, Any]) -> None:
        """Deregister it."""
        named = dict(zip(self._identity, physical_id.split("|"), strict=True))
        found = self._service.answer(
            Call("DescribeScalableTargets", {"ServiceNamespace": "ecs", "ResourceIds": [named["ResourceId"]]}, CALLER)
        )
        if found["ScalableTargets"]:
            self._perform("DeregisterScalableTarget", named, set(named))


class ServicePolicyResource(_Kind):
    """AWS::ApplicationAutoScaling::ScalingPolicy."""

    kind = "AWS::ApplicationAutoScaling::ScalingPolicy"
    _played = words(
        "PolicyName PolicyType ServiceNamespace ResourceId ScalableDimension StepScalingPolicyConfiguration "
        "TargetTrackingScalingPolicyConfiguration"
    )
    _identity = ("PolicyName", "ServiceNamespace", "ResourceId", "ScalableDimension", "ScalingTargetId")

    def create(self, logical_id: str, properties: dict[str, Any], stack: str) -> tuple[str, dict[str, Any]]:
        """Put the policy. Ref is its ARN."""
        made = self._perform("PutScalingPolicy", _with_target(properties), self._played)
        return made["PolicyARN"], {"Arn": made["PolicyARN"]}

    def update(
        self, physical_id: str, old: dict[str, Any], new: dict[str, Any], stack: str
    ) -> tuple[str, dict[str, Any]]:
        """Put it again. Another name or target is another policy, whose ARN differs."""
        return self.create("", new, stack)

    def delete(self, physical_id: str, properties: dict[str, Any]) -> None:
        """Delete it, if it did not go with its target."""
        named = _with_target(properties)
        where = {name: named[name] for name in self._identity if name in named}
        asked = {"ServiceNamespace": "ecs", "PolicyNames": [named["PolicyName"]], "ResourceId": named["ResourceId"]}
        found = self._service.answer(Call("DescribeScalingPolicies", asked, CALLER))["ScalingPolicies"]
        if physical_id in {one["PolicyARN"] for one in found}:
            self._perform("DeleteScalingPolicy", where, set(where))


def _with_target(properties: Mapping[str, Any]) -> dict[str, Any]:
    """The target by its three names, where it is given by its id."""
    rest = {name: value for name, value in properties.items() if name != "ScalingTargetId"}
    if "ScalingTargetId" in properties:
        rest |= zip(TargetResource._identity, properties["ScalingTargetId"].split("|"), strict=True)
    return rest
