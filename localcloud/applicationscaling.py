"""Application Auto Scaling of ECS services: scalable targets, step scaling, target tracking.

Source: Application Auto Scaling user guide, "Step scaling policies", "Target tracking scaling policies" and "Amazon ECS
and Application Auto Scaling". A cooldown is counted from the change, not from when the service has its tasks.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from localcloud import listing, metricqueries, stepscaling
from localcloud.alarms import Alarms, Breach
from localcloud.stepscaling import Ill
from localcloud.wire import Call, Fault, Permission, Service, plays
from localcloud.world import ACCOUNT, REGION, World

if TYPE_CHECKING:
    from localcloud.ecs import Ecs

DIMENSION = "ecs:service:DesiredCount"
ROLE = "AWSServiceRoleForApplicationAutoScaling_ECSService"
ROLE_ARN = f"arn:aws:iam::{ACCOUNT}:role/aws-service-role/ecs.application-autoscaling.amazonaws.com/{ROLE}"
CALLER = f"arn:aws:sts::{ACCOUNT}:assumed-role/{ROLE}/AutoScaling-UpdateDesiredCapacity"
STEP, TRACKING = "StepScaling", "TargetTrackingScaling"
STEP_SETTINGS = {"AdjustmentType", "StepAdjustments", "MinAdjustmentMagnitude", "Cooldown", "MetricAggregationType"}
TRACKING_SETTINGS = {
    *("TargetValue", "CustomizedMetricSpecification", "ScaleOutCooldown", "ScaleInCooldown", "DisableScaleIn"),
}
USUAL_COOLDOWN = 300
HIGH_PERIODS, LOW_PERIODS, LOW_SHARE = 3, 15, 0.9
"""The alarms that target tracking makes: above the target for three minutes, or a tenth below it for fifteen."""


@dataclass(kw_only=True)
class Target:
    """One scalable target: an ECS service."""

    resource: str
    """service/CLUSTER/SERVICE."""
    arn: str
    created: datetime
    minimum: int
    maximum: int
    tags: dict[str, str]
    cool: datetime
    """Until when the last change's cooldown lasts."""
    base: int | None = None
    """What the service had before the changes that cool down; None when the last one took tasks away."""
    activities: list[dict[str, Any]] = field(default_factory=list)
    """As DescribeScalingActivities tells them, newest first."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """One scaling policy."""

    name: str
    arn: str
    resource: str
    kind: str
    settings: Mapping[str, Any]
    created: datetime
    alarms: tuple[str, ...] = ()
    """Names of those that it made itself."""


class ApplicationAutoScaling(Service):
    """The `application-autoscaling` service, for the desired count of ECS services."""

    name = "application-autoscaling"

    def __init__(self, world: World, ecs: Ecs, alarms: Alarms) -> None:
        self.world = world
        self._ecs = ecs
        self._alarms = alarms
        self._targets: dict[str, Target] = {}
        self._policies: dict[str, Policy] = {}

    def permissions(self, call: Call) -> Iterable[Permission]:
        """A scalable target by its ARN, and which kind it is (Service Authorization Reference)."""
        kinds = {"ServiceNamespace": "service-namespace", "ScalableDimension": "scalable-dimension"}
        asked = {
            f"application-autoscaling:{key}": call.params[name] for name, key in kinds.items() if name in call.params
        }
        with self.world.lock:
            target = self._targets.get(call.params.get("ResourceId", ""))
            tags = {f"aws:ResourceTag/{key}": value for key, value in target.tags.items()} if target else {}
        arn = target.arn if target else _arn("*")
        action = f"{self.name}:{call.operation}"
        return [Permission(action, "*" if call.operation.startswith("Describe") else arn, {**asked, **tags})]

    # Targets

    @plays("ServiceNamespace", "ResourceId", "ScalableDimension", "MinCapacity", "MaxCapacity", "Tags")
    def register_scalable_target(self, call: Call) -> Mapping[str, Any]:
        """A new target, or other bounds of an old one. A service outside them is brought within."""
        params = call.params
        _check_kind(params)
        with self.world.lock:
            resource, now = params["ResourceId"], self.world.now()
            service = self._service(resource)
            if service is None or service["status"] != "ACTIVE":
                raise Fault("ValidationException", f"ECS service doesn't exist: {resource}")
            target = self._targets.get(resource)
            if target is None:
                if missing := sorted({"MinCapacity", "MaxCapacity"} - set(params)):
                    raise Fault("ValidationException", f"{', '.join(missing)} must be specified for a new target")
                arn = _arn(uuid.uuid4().hex)
                target = Target(resource=resource, arn=arn, created=now, minimum=0, maximum=0, tags={}, cool=now)
            bounds = params.get("MinCapacity", target.minimum), params.get("MaxCapacity", target.maximum)
            if bounds[0] > bounds[1]:
                raise Fault("ValidationException", "Maximum capacity cannot be less than minimum capacity")
            target.minimum, target.maximum = bounds
            target.tags = dict(params.get("Tags", target.tags))
            self._targets[resource] = target
            for which, bound, beyond in (
                ("minimum", target.minimum, service["desiredCount"] < target.minimum),
                ("maximum", target.maximum, service["desiredCount"] > target.maximum),
            ):
                if beyond:
                    self._set(target, bound, f"{which} capacity was set to {bound}")
            return {"ScalableTargetARN": target.arn}

    @plays("ServiceNamespace", "ResourceId", "ScalableDimension")
    def deregister_scalable_target(self, call: Call) -> Mapping[str, Any]:
        """Forget a target with its policies."""
        with self.world.lock:
            target = self._target(call.params)
            for policy in self._of(target.resource):
                self._drop(policy)
            del self._targets[target.resource]
        return {}

    @plays("ServiceNamespace", "ResourceIds", "ScalableDimension", "MaxResults", "NextToken")
    def describe_scalable_targets(self, call: Call) -> Mapping[str, Any]:
        """Targets; those that do not exist are left out."""
        params = call.params
        with self.world.lock:
            chosen = [
                target
                for target in self._targets.values()
                if params["ServiceNamespace"] == "ecs"
                and target.resource in params.get("ResourceIds", [target.resource])
            ]
            shown, more = listing.page(chosen, params, 50)
            kept = dict.fromkeys(
                ("DynamicScalingInSuspended", "DynamicScalingOutSuspended", "ScheduledScalingSuspended"), False
            )
            return {
                "ScalableTargets": [
                    {
                        **_kind(target.resource),
                        "MinCapacity": target.minimum,
                        "MaxCapacity": target.maximum,
                        "RoleARN": ROLE_ARN,
                        "CreationTime": target.created,
                        "SuspendedState": kept,
                        "ScalableTargetARN": target.arn,
                    }
                    for target in shown
                ],
                **more,
            }

    @plays("ServiceNamespace", "ResourceId", "ScalableDimension", "MaxResults", "NextToken")
    def describe_scaling_activities(self, call: Call) -> Mapping[str, Any]:
        """What was done with one target or all, newest first."""
        params = call.params
        with self.world.lock:
            for target in self._targets.values():
                self._conclude(target)
            told = [
                activity
                for target in self._targets.values()
                if params.get("ResourceId", target.resource) == target.resource
                for activity in target.activities
            ]
        shown, more = listing.page(sorted(told, key=lambda one: one["StartTime"], reverse=True), params, 50)
        return {"ScalingActivities": list(shown), **more}

    @plays("ResourceARN")
    def list_tags_for_resource(self, call: Call) -> Mapping[str, Any]:
        """The tags of a target."""
        with self.world.lock:
            for target in self._targets.values():
                if target.arn == call.params["ResourceARN"]:
                    return {"Tags": dict(target.tags)}
        raise Fault("ResourceNotFoundException", f"The resource {call.params['ResourceARN']} does not exist.")

    # Policies

    @plays(
        *("PolicyName", "ServiceNamespace", "ResourceId", "ScalableDimension", "PolicyType"),
        *("StepScalingPolicyConfiguration", "TargetTrackingScalingPolicyConfiguration"),
    )
    def put_scaling_policy(self, call: Call) -> Mapping[str, Any]:
        """A new policy, or another configuration of an old one. Target tracking makes its alarms."""
        params = call.params
        _check_kind(params)
        kind = params.get("PolicyType", STEP)
        settings = _settings(kind, params)
        with self.world.lock:
            target = self._target(params)
            named = [policy for policy in self._of(target.resource) if policy.name == params["PolicyName"]]
            if kind == TRACKING and any(one.kind == TRACKING for one in self._of(target.resource) if one not in named):
                raise Fault("NotPlayed", "the local cloud plays one target tracking policy of a target")
            path = f"resource/ecs/{target.resource}:policyName/{params['PolicyName']}"
            arn = f"arn:aws:autoscaling:{REGION}:{ACCOUNT}:scalingPolicy:{uuid.uuid4()}:{path}"
            for old in named:
                arn = old.arn
                self._drop(old)
            names = self._watch(target, arn, settings) if kind == TRACKING else ()
            self._policies[arn] = Policy(
                name=params["PolicyName"],
                arn=arn,
                resource=target.resource,
                kind=kind,
                settings=settings,
                created=self.world.now(),
                alarms=names,
            )
            return {"PolicyARN": arn, "Alarms": self.alarms_of(arn)}

    @plays("PolicyNames", "ServiceNamespace", "ResourceId", "ScalableDimension", "MaxResults", "NextToken")
    def describe_scaling_policies(self, call: Call) -> Mapping[str, Any]:
        """Policies, of one target or of all."""
        params = call.params
        with self.world.lock:
            chosen = [
                policy
                for policy in self._policies.values()
                if params.get("ResourceId", policy.resource) == policy.resource
                and policy.name in params.get("PolicyNames", [policy.name])
            ]
            shown, more = listing.page(chosen, params, 50)
            return {
                "ScalingPolicies": [
                    {
                        **_kind(policy.resource),
                        "PolicyARN": policy.arn,
                        "PolicyName": policy.name,
                        "PolicyType": policy.kind,
                        f"{policy.kind}PolicyConfiguration": dict(policy.settings),
                        "Alarms": self.alarms_of(policy.arn),
                        "CreationTime": policy.created,
                    }
                    for policy in shown
                ],
                **more,
            }

    @plays("PolicyName", "ServiceNamespace", "ResourceId", "ScalableDimension")
    def delete_scaling_policy(self, call: Call) -> Mapping[str, Any]:
        """Remove a policy, and the alarms that it made."""
        with self.world.lock:
            for policy in self._of(call.params["ResourceId"]):
                if policy.name == call.params["PolicyName"]:
                    self._drop(policy)
                    return {}
        raise Fault("ObjectNotFoundException", f"No scaling policy found for {call.params['PolicyName']}")

    def alarms_of(self, arn: str) -> list[dict[str, str]]:
        """The alarms that execute a policy, as the API lists them."""
        return alarms_of(self._alarms, arn)

    def act(self, arn: str, breach: Breach) -> None:
        """What an alarm has a policy do. Called with the world's lock held."""
        policy = self._policies.get(arn)
        target = self._targets.get(policy.resource) if policy else None
        service = self._service(policy.resource) if policy else None
        if policy is None or target is None or service is None:
            self.world.note("alarm action", arn, trouble="no such policy, target or service", alarm=breach.alarm)
            return
        try:
            wanted, cooldown = self._wanted(policy, target, service["desiredCount"], breach)
        except Ill as error:
            self.world.note("alarm action", arn, trouble=str(error), alarm=breach.alarm)
            return
        wanted = stepscaling.within(wanted, target.minimum, target.maximum)
        before, now = service["desiredCount"], self.world.now()
        if wanted == before or (wanted < before and (now < target.cool or _is_deploying(service))):
            return
        if self._set(
            target, wanted, f"monitor alarm {breach.alarm} in state {breach.state} triggered policy {policy.name}"
        ):
            still = now < target.cool and target.base is not None
            target.base = None if wanted < before else target.base if still else before
            target.cool = now + timedelta(seconds=self.world.scaled(cooldown))

    def _wanted(self, policy: Policy, target: Target, desired: int, breach: Breach) -> tuple[int, float]:
        """How many tasks, before bounds, and the cooldown after that. Raises Ill when that cannot be told."""
        settings = policy.settings
        # What was added is not added again while it cools down.
        base = target.base if target.base is not None and self.world.now() < target.cool else desired
        if policy.kind == TRACKING:
            if not breach.values:
                raise Ill("the alarm has no data")
            share = breach.values[-1] / settings["TargetValue"]
            if share > 1:
                return max(desired, math.ceil(base * share)), settings.get("ScaleOutCooldown", USUAL_COOLDOWN)
            return math.ceil(desired * share), settings.get("ScaleInCooldown", USUAL_COOLDOWN)
        beyond = stepscaling.beyond(settings.get("MetricAggregationType"), breach.values, breach.threshold)
        by = stepscaling.step(settings["StepAdjustments"], beyond)
        if by is None:
            raise Ill(f"no step adjustment is for a metric {beyond} above the threshold")
        kind, least = settings["AdjustmentType"], settings.get("MinAdjustmentMagnitude", 0)
        wanted = stepscaling.adjusted(desired, kind, by, least)
        if wanted > desired:
            wanted = max(desired, stepscaling.adjusted(base, kind, by, least))
        return wanted, settings.get("Cooldown", USUAL_COOLDOWN)

    def _set(self, target: Target, count: int, cause: str) -> bool:
        """Have ECS run so many tasks; whether it took that."""
        self._conclude(target, "Overridden")
        cluster, service = target.resource.split("/")[1:]
        activity = {
            "ActivityId": str(uuid.uuid4()),
            **_kind(target.resource),
            "Description": f"Setting desired count to {count}.",
            "Cause": cause,
            "StartTime": self.world.now(),
            "StatusCode": "InProgress",
            "StatusMessage": f"Successfully set desired count to {count}. Waiting for change to be fulfilled by ecs.",
        }
        target.activities.insert(0, activity)
        try:
            params = {"cluster": cluster, "service": service, "desiredCount": count}
            self._ecs.answer(Call("UpdateService", params, CALLER))
        except Fault as fault:
            activity["StatusCode"] = "Failed"
            activity["StatusMessage"] = f"Failed to set desired count to {count}. Reason: {fault.message}"
            return False
        return True

    def _conclude(self, target: Target, otherwise: str = "InProgress") -> None:
        """See whether the service has the tasks that the newest activity asked for."""
        service = self._service(target.resource)
        for activity in target.activities[:1]:
            if activity["StatusCode"] != "InProgress" or service is None:
                continue
            if service["runningCount"] == service["desiredCount"]:
                activity["StatusCode"] = "Successful"
                said = activity["StatusMessage"].partition(" Waiting")[0]
                activity["StatusMessage"] = f"{said} Change successfully fulfilled by ecs."
                activity["EndTime"] = self.world.now()
            else:
                activity["StatusCode"] = otherwise

    def _watch(self, target: Target, arn: str, settings: Mapping[str, Any]) -> tuple[str, ...]:
        """The alarms of a target tracking policy."""
        metric, names = settings["CustomizedMetricSpecification"], []
        for title, operator, threshold, periods in (
            ("AlarmHigh", "GreaterThanThreshold", settings["TargetValue"], HIGH_PERIODS),
            ("AlarmLow", "LessThanThreshold", settings["TargetValue"] * LOW_SHARE, LOW_PERIODS),
        ):
            if title == "AlarmLow" and settings.get("DisableScaleIn"):
                continue
            asked = _asked(metric)
            params = {
                "AlarmName": f"TargetTracking-{target.resource}-{title}-{uuid.uuid4()}",
                "AlarmDescription": f"DO NOT EDIT OR DELETE. For TargetTrackingScaling policy {arn}.",
                "AlarmActions": [arn],
                "Metrics": asked,
                "EvaluationPeriods": periods,
                "Threshold": threshold,
                "ComparisonOperator": operator,
            }
            queries = metricqueries.read(asked)
            returned = [query.id for query in queries.values() if query.returned]
            if len(returned) != 1:
                raise Fault("ValidationException", "Exactly one metric data query must return data.")
            self._alarms.put(params, queries, returned[0])
            names.append(params["AlarmName"])
        return tuple(names)

    def _drop(self, policy: Policy) -> None:
        for name in policy.alarms:
            self._alarms.delete(name)
        del self._policies[policy.arn]

    def _of(self, resource: str) -> list[Policy]:
        return [policy for policy in self._policies.values() if policy.resource == resource]

    def _target(self, params: Mapping[str, Any]) -> Target:
        if params["ResourceId"] not in self._targets:
            named = "service namespace: ecs, resource ID: {ResourceId}, scalable dimension: {ScalableDimension}"
            raise Fault("ObjectNotFoundException", f"No scalable target found for {named.format(**params)}")
        return self._targets[params["ResourceId"]]

    def _service(self, resource: str) -> dict[str, Any] | None:
        """ECS's own record of a target's service."""
        _, cluster, service = resource.split("/")
        found = self._ecs.state.clusters.get(cluster)
        return self._ecs.state.service(found, service) if found else None


def alarms_of(alarms: Alarms, arn: str) -> list[dict[str, str]]:
    """The alarms that execute a policy, as the APIs of both Auto Scalings list them."""
    return [
        {"AlarmName": alarm.name, "AlarmARN": alarm.arn}
        for alarm in alarms.all()
        if any(arn in alarm.params.get(kind, ()) for kind in ("AlarmActions", "OKActions", "InsufficientDataActions"))
    ]


def _arn(identity: str) -> str:
    return f"arn:aws:application-autoscaling:{REGION}:{ACCOUNT}:scalable-target/{identity}"


def _kind(resource: str) -> dict[str, str]:
    return {"ServiceNamespace": "ecs", "ResourceId": resource, "ScalableDimension": DIMENSION}


def _check_kind(params: Mapping[str, Any]) -> None:
    if params["ServiceNamespace"] != "ecs" or params["ScalableDimension"] != DIMENSION:
        raise Fault("NotPlayed", f"the local cloud scales {DIMENSION} only, not {params['ScalableDimension']}")
    parts = params["ResourceId"].split("/")
    if len(parts) != 3 or parts[0] != "service":
        raise Fault(
            "ValidationException", f"Unsupported service namespace, resource type or id: {params['ResourceId']}"
        )


def _settings(kind: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
    """A policy's configuration. Raises Fault for one that is refused or not played."""
    name = f"{kind}PolicyConfiguration"
    if kind not in (STEP, TRACKING) or name not in params:
        raise Fault("NotPlayed", f"the local cloud plays {STEP} and {TRACKING}, each with its configuration")
    settings: Mapping[str, Any] = params[name]
    if unplayed := sorted(set(settings) - (STEP_SETTINGS if kind == STEP else TRACKING_SETTINGS)):
        raise Fault("NotPlayed", f"the local cloud does not play {', '.join(unplayed)} of {name}")
    if kind == STEP:
        try:
            stepscaling.check(settings.get("AdjustmentType", ""), settings.get("StepAdjustments", ()))
        except Ill as error:
            raise Fault("ValidationException", str(error)) from None
    elif "CustomizedMetricSpecification" not in settings:
        raise Fault("NotPlayed", "the local cloud measures nothing of ECS: target tracking needs a customized metric")
    else:
        metricqueries.read(_asked(settings["CustomizedMetricSpecification"]))
    return settings


def _asked(metric: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A customized metric as the queries of an alarm, over minutes."""
    if "Metrics" in metric:
        return [
            {**one, "MetricStat": {**one["MetricStat"], "Period": metricqueries.MINUTE}}
            if "MetricStat" in one
            else dict(one)
            for one in metric["Metrics"]
        ]
    named = {key: metric[key] for key in ("Namespace", "MetricName", "Dimensions") if key in metric}
    unit = {"Unit": metric["Unit"]} if "Unit" in metric else {}
    stat = {"Metric": named, "Period": metricqueries.MINUTE, "Stat": metric.get("Statistic", "Average"), **unit}
    return [{"Id": "m1", "MetricStat": stat, "ReturnData": True}]


def _is_deploying(service: Mapping[str, Any]) -> bool:
    """Whether a deployment of the service is in progress, during which nothing is scaled in."""
    return any(one["rolloutState"] == "IN_PROGRESS" for one in service["deployments"])
