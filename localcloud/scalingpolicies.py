"""Auto Scaling's step and simple scaling policies: the calls, and what they do when a caller or an alarm executes one.

Source: Auto Scaling user guide, "Step and simple scaling policies", and the API reference of ExecutePolicy.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from localcloud import listing, stepscaling
from localcloud.alarms import Breach
from localcloud.groupkeeper import Group, Groups
from localcloud.stepscaling import Ill
from localcloud.wire import Call, Fault, plays
from localcloud.world import ACCOUNT, REGION, World

STEP, SIMPLE = "StepScaling", "SimpleScaling"
OF_TYPE = {
    STEP: {"StepAdjustments", "MetricAggregationType", "EstimatedInstanceWarmup"},
    SIMPLE: {"ScalingAdjustment", "Cooldown"},
}
"""Parameters that only one type of policy takes."""
BY_ALARM = "CloudWatch alarm"


@dataclass(frozen=True, kw_only=True)
class Policy:
    """One scaling policy."""

    name: str
    arn: str
    group: str
    kind: str
    settings: Mapping[str, Any]
    """As PutScalingPolicy was given it."""


class PolicyCalls:
    """Operations of Auto Scaling. Part of `groups.AutoScaling`."""

    world: World
    groups: Groups
    policies: dict[str, Policy]
    """By ARN."""
    alarms_of: Callable[[str], list[dict[str, str]]]
    """By a policy's ARN: the alarms that execute it, as the API lists them."""

    def group(self, name: str) -> Group:
        """The group of that name. Raises Fault."""
        raise NotImplementedError

    @plays(
        *("AutoScalingGroupName", "PolicyName", "PolicyType", "AdjustmentType", "MinAdjustmentMagnitude"),
        *("ScalingAdjustment", "Cooldown", "StepAdjustments", "MetricAggregationType", "EstimatedInstanceWarmup"),
    )
    def put_scaling_policy(self, call: Call) -> Mapping[str, Any]:
        """A new policy, or other settings of an old one."""
        params = call.params
        kind = params.get("PolicyType", SIMPLE)
        if kind not in OF_TYPE:
            raise Fault("NotPlayed", f"the local cloud does not play scaling policies of type {kind}")
        _check(kind, params)
        with self.world.lock:
            group = self.group(params["AutoScalingGroupName"])
            old = next((one for one in self._of(group.name) if one.name == params["PolicyName"]), None)
            named = f"autoScalingGroupName/{group.name}:policyName/{params['PolicyName']}"
            arn = f"arn:aws:autoscaling:{REGION}:{ACCOUNT}:scalingPolicy:{uuid.uuid4()}:{named}"
            policy = Policy(
                name=params["PolicyName"],
                arn=old.arn if old else arn,
                group=group.name,
                kind=kind,
                settings={key: params[key] for key in params if key not in ("AutoScalingGroupName", "PolicyName")},
            )
            self.policies[policy.arn] = policy
        return {"PolicyARN": policy.arn, "Alarms": self.alarms_of(policy.arn)}

    @plays("AutoScalingGroupName", "PolicyNames", "PolicyTypes", "MaxRecords", "NextToken")
    def describe_policies(self, call: Call) -> Mapping[str, Any]:
        """Policies of one group, or of all."""
        params = call.params
        with self.world.lock:
            groups = [group.name for group in self.groups.all()]
            wanted = [params["AutoScalingGroupName"]] if "AutoScalingGroupName" in params else groups
            chosen = [
                policy
                for name in wanted
                for policy in self._of(name)
                if {policy.name, policy.arn} & set(params.get("PolicyNames", [policy.name]))
                and policy.kind in params.get("PolicyTypes", [policy.kind])
            ]
            shown, more = listing.page(chosen, params, 50, "MaxRecords")
            return {"ScalingPolicies": [self._told(policy) for policy in shown], **more}

    @plays("AutoScalingGroupName", "PolicyName")
    def delete_policy(self, call: Call) -> Mapping[str, Any]:
        """Remove a policy."""
        with self.world.lock:
            del self.policies[self._policy(call).arn]
        return {}

    @plays("AutoScalingGroupName", "PolicyName", "HonorCooldown", "MetricValue", "BreachThreshold")
    def execute_policy(self, call: Call) -> Mapping[str, Any]:
        """Do what the policy says: a step policy for a metric's value, a simple one as it is."""
        params = call.params
        with self.world.lock:
            policy = self._policy(call)
            group = self.group(policy.group)
            told = {"MetricValue", "BreachThreshold"} & set(params)
            if policy.kind == STEP:
                if len(told) < 2 or "HonorCooldown" in params:
                    message = (
                        "MetricValue and BreachThreshold, and not HonorCooldown, are for policies with step scaling"
                    )
                    raise Fault("ValidationError", message)
                self._step(policy, group, params["MetricValue"] - params["BreachThreshold"], call.caller)
            elif told:
                raise Fault("ValidationError", f"{', '.join(sorted(told))} is not for policies with simple scaling")
            else:
                if params.get("HonorCooldown") and self._must_wait(group):
                    raise Fault("ScalingActivityInProgress", "Scaling activities are in progress, or the cooldown is.")
                self._simple(policy, group, call.caller)
        return {}

    def act(self, arn: str, breach: Breach) -> None:
        """What an alarm has a policy do. Called with the world's lock held."""
        policy = self.policies.get(arn)
        if policy is None or policy.group not in {group.name for group in self.groups.all()}:
            self.world.note("alarm action", arn, trouble="no such policy", alarm=breach.alarm)
            return
        group = self.group(policy.group)
        if policy.kind == SIMPLE:
            if not self._must_wait(group):
                self._simple(policy, group, BY_ALARM)
            return
        try:
            beyond = stepscaling.beyond(policy.settings.get("MetricAggregationType"), breach.values, breach.threshold)
            self._step(policy, group, beyond, BY_ALARM)
        except (Fault, Ill) as error:
            self.world.note("alarm action", arn, trouble=str(error), alarm=breach.alarm)

    def _step(self, policy: Policy, group: Group, beyond: float, caller: str) -> None:
        """Out: from what is in service and warm, and never to less than is already asked for. In: not while instances
        are on their way.
        """
        by = stepscaling.step(policy.settings["StepAdjustments"], beyond)
        if by is None:
            raise Fault("ValidationError", f"No step adjustment found for a metric {beyond} above the threshold")
        wanted = self._adjusted(policy, group.desired, by)
        if wanted > group.desired or self._is_launching(group):
            warm_up = policy.settings.get("EstimatedInstanceWarmup", group.settings.cooldown)
            current = self.groups.current(group, warm_up, self.world.now())
            wanted = max(group.desired, self._adjusted(policy, current, by))
        self._set(policy, group, wanted, caller)

    def _simple(self, policy: Policy, group: Group, caller: str) -> None:
        self._set(policy, group, self._adjusted(policy, group.desired, policy.settings["ScalingAdjustment"]), caller)
        seconds = self.world.scaled(policy.settings.get("Cooldown", group.settings.cooldown))
        group.scaled = self.world.now() + timedelta(seconds=seconds)

    def _adjusted(self, policy: Policy, capacity: int, by: int) -> int:
        settings = policy.settings
        return stepscaling.adjusted(capacity, settings["AdjustmentType"], by, settings.get("MinAdjustmentMagnitude", 0))

    def _set(self, policy: Policy, group: Group, wanted: int, caller: str) -> None:
        desired = stepscaling.within(wanted, group.settings.minimum, group.settings.maximum)
        self.world.note("policy executed", policy.name, group=group.name, before=group.desired, desired=desired)
        self.groups.set_desired(group, desired, caller)

    def _is_launching(self, group: Group) -> bool:
        return any(group.stages[one.id].name.startswith("Pending") for one in self.groups.members(group))

    def _must_wait(self, group: Group) -> bool:
        """Whether a simple policy has to wait: for an activity, or for the cooldown of the last one."""
        ending = any(group.stages[one.id].name == "Terminating" for one in self.groups.members(group))
        cooling = group.scaled is not None and self.world.now() < group.scaled
        return cooling or ending or self._is_launching(group)

    def _of(self, group: str) -> list[Policy]:
        return [policy for policy in self.policies.values() if policy.group == group]

    def _policy(self, call: Call) -> Policy:
        """By ARN, or by name and group. Raises Fault."""
        name, group = call.params["PolicyName"], call.params.get("AutoScalingGroupName")
        for policy in self.policies.values():
            if name == policy.arn or (name == policy.name and group == policy.group):
                return policy
        raise Fault("ValidationError", f"Policy name not found: {name}")

    def _told(self, policy: Policy) -> dict[str, Any]:
        return {
            "AutoScalingGroupName": policy.group,
            "PolicyName": policy.name,
            "PolicyARN": policy.arn,
            **policy.settings,
            "PolicyType": policy.kind,
            "StepAdjustments": policy.settings.get("StepAdjustments", []),
            "Alarms": self.alarms_of(policy.arn),
            "Enabled": True,
        }


def group_of(policy: str) -> str:
    """The group that a policy's ARN names, "" for a plain name."""
    found = re.search(r"autoScalingGroupName/([^:]+):policyName/", policy)
    return found[1] if found else ""


def _check(kind: str, params: Mapping[str, Any]) -> None:
    """Refuse what AWS refuses. Raises Fault."""
    other = SIMPLE if kind == STEP else STEP
    if strange := sorted(OF_TYPE[other] & set(params)):
        raise Fault("ValidationError", f"{', '.join(strange)} cannot be specified for policies of type {kind}")
    adjustment = params.get("AdjustmentType", "")
    steps: Sequence[Mapping[str, Any]] = params.get("StepAdjustments", [{"MetricIntervalLowerBound": 0}])
    if kind == STEP and "StepAdjustments" not in params:
        raise Fault("ValidationError", "One or more step adjustments are required for policies of type StepScaling")
    if kind == SIMPLE and "ScalingAdjustment" not in params:
        raise Fault("ValidationError", "ScalingAdjustment is required for policies of type SimpleScaling")
    if "MinAdjustmentMagnitude" in params and adjustment != stepscaling.PERCENT:
        raise Fault("ValidationError", "MinAdjustmentMagnitude is for PercentChangeInCapacity only")
    try:
        stepscaling.check(adjustment, steps)
    except Ill as error:
        raise Fault("ValidationError", str(error)) from None
