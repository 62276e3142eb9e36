"""Auto Scaling's calls about what a group has beside itself: a warm pool, a lifecycle hook, tags, news, metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from localcloud import listing
from localcloud.groupkeeper import LAUNCHING, Group, Groups, Hook, WarmPool
from localcloud.groupnews import KINDS
from localcloud.instances import Instance
from localcloud.wire import Call, Fault, plays
from localcloud.world import World

METRICS = (
    *("GroupMinSize", "GroupMaxSize", "GroupDesiredCapacity", "GroupInServiceInstances", "GroupPendingInstances"),
    *("GroupStandbyInstances", "GroupTerminatingInstances", "GroupTotalInstances", "GroupInServiceCapacity"),
    *("GroupPendingCapacity", "GroupStandbyCapacity", "GroupTerminatingCapacity", "GroupTotalCapacity"),
    *("WarmPoolDesiredCapacity", "WarmPoolWarmedCapacity", "WarmPoolPendingCapacity", "WarmPoolTerminatingCapacity"),
    *("WarmPoolTotalCapacity", "GroupAndWarmPoolDesiredCapacity", "GroupAndWarmPoolTotalCapacity"),
)
"""All that EnableMetricsCollection knows; telemetry.py measures those that are switched on."""
DAY_SECONDS = 86_400
HOUR_SECONDS = 3600


class GroupExtras:
    """Operations of Auto Scaling. Part of `groups.AutoScaling`."""

    world: World
    groups: Groups

    def group(self, name: str) -> Group:
        """The group of that name. Raises Fault."""
        raise NotImplementedError

    # The warm pool

    @plays("AutoScalingGroupName", "MaxGroupPreparedCapacity", "MinSize", "PoolState", "InstanceReusePolicy")
    def put_warm_pool(self, call: Call) -> Mapping[str, Any]:
        """Keep instances ready, or another number of them."""
        params = call.params
        if params.get("InstanceReusePolicy", {}).get("ReuseOnScaleIn"):
            raise Fault("NotPlayed", "the local cloud does not play ReuseOnScaleIn, which ECS does not support")
        if params.get("PoolState", "Stopped") not in ("Stopped", "Running"):
            raise Fault("NotPlayed", f"the local cloud does not play PoolState {params['PoolState']}")
        with self.world.lock:
            group = self.group(params["AutoScalingGroupName"])
            if "MixedInstancesPolicy" in group.settings.shown:
                message = "You can't add a warm pool to an Auto Scaling group that has a mixed instances policy."
                raise Fault("ValidationError", message)
            prepared = params.get("MaxGroupPreparedCapacity", -1)
            pool = WarmPool(
                least=params.get("MinSize", 0),
                prepared=None if prepared == -1 else prepared,
                state=params.get("PoolState", "Stopped"),
            )
            group.warm_pool, group.pool_deleting, group.check_at = pool, False, self.world.now()
        return {}

    @plays("AutoScalingGroupName", "MaxRecords", "NextToken")
    def describe_warm_pool(self, call: Call) -> Mapping[str, Any]:
        """The pool and its instances, which the group's own description leaves out."""
        with self.world.lock:
            group = self.group(call.params["AutoScalingGroupName"])
            if group.warm_pool is None:
                return {"Instances": []}
            members = [member_of(group, one) for one in self.groups.members(group, warm=True)]
            shown, more = listing.page(members, call.params, 50, "MaxRecords")
            return {"WarmPoolConfiguration": pool_of(group), "Instances": list(shown), **more}

    @plays("AutoScalingGroupName", "ForceDelete")
    def delete_warm_pool(self, call: Call) -> Mapping[str, Any]:
        """Let the pool's instances go, and then the pool."""
        with self.world.lock:
            group = self.group(call.params["AutoScalingGroupName"])
            if group.warm_pool is None:
                raise Fault("ValidationError", f"No warm pool found for group {group.name}")
            group.pool_deleting, group.check_at = True, self.world.now()
        return {}

    # The hook

    @plays("AutoScalingGroupName", "LifecycleHookName", "LifecycleTransition", "HeartbeatTimeout", "DefaultResult")
    def put_lifecycle_hook(self, call: Call) -> Mapping[str, Any]:
        """Hold instances that launch."""
        with self.world.lock:
            group = self.group(call.params["AutoScalingGroupName"])
            hook = hook_of(call.params)
            if group.hook is not None and group.hook.name != hook.name:
                raise Fault("NotPlayed", "the local cloud plays one lifecycle hook of a group")
            group.hook = hook
        return {}

    @plays("AutoScalingGroupName", "LifecycleHookName")
    def delete_lifecycle_hook(self, call: Call) -> Mapping[str, Any]:
        """Hold them no more; those that are held go on."""
        with self.world.lock:
            group = self.group(call.params["AutoScalingGroupName"])
            if group.hook is None or group.hook.name != call.params["LifecycleHookName"]:
                raise Fault("ValidationError", "No Lifecycle Hook found")
            group.hook = None
            for stage in group.stages.values():
                stage.result = "CONTINUE"
        return {}

    @plays("AutoScalingGroupName", "LifecycleHookNames")
    def describe_lifecycle_hooks(self, call: Call) -> Mapping[str, Any]:
        """The hook, if there is one."""
        with self.world.lock:
            group = self.group(call.params["AutoScalingGroupName"])
            names = call.params.get("LifecycleHookNames")
            hooks = [group.hook] if group.hook and (not names or group.hook.name in names) else []
        return {
            "LifecycleHooks": [
                {
                    "LifecycleHookName": hook.name,
                    "AutoScalingGroupName": group.name,
                    "LifecycleTransition": LAUNCHING,
                    "HeartbeatTimeout": hook.heartbeat,
                    "GlobalTimeout": min(100 * hook.heartbeat, 2 * DAY_SECONDS),
                    "DefaultResult": hook.result,
                }
                for hook in hooks
            ]
        }

    @plays("AutoScalingGroupName", "LifecycleHookName", "InstanceId", "LifecycleActionResult")
    def complete_lifecycle_action(self, call: Call) -> Mapping[str, Any]:
        """Let an instance go on that a hook holds."""
        with self.world.lock:
            group = self.group(call.params["AutoScalingGroupName"])
            stage = group.stages.get(call.params.get("InstanceId", ""))
            if stage is None or not stage.name.endswith(":Wait"):
                message = f"No active Lifecycle Action found with instance ID {call.params.get('InstanceId')}"
                raise Fault("ValidationError", message)
            stage.result = call.params["LifecycleActionResult"]
        return {}

    # Tags

    @plays("Tags")
    def create_or_update_tags(self, call: Call) -> Mapping[str, Any]:
        """Tag groups; instances that are there already do not get it."""
        with self.world.lock:
            for tag in call.params["Tags"]:
                told = (tag.get("Value", ""), bool(tag.get("PropagateAtLaunch", False)))
                self.group(tag["ResourceId"]).tags[tag["Key"]] = told
        return {}

    @plays("Tags")
    def delete_tags(self, call: Call) -> Mapping[str, Any]:
        """Remove tags of groups by key; one that is not there is no error."""
        with self.world.lock:
            for tag in call.params["Tags"]:
                self.group(tag["ResourceId"]).tags.pop(tag["Key"], None)
        return {}

    # News and metrics

    @plays("AutoScalingGroupName", "TopicARN", "NotificationTypes")
    def put_notification_configuration(self, call: Call) -> Mapping[str, Any]:
        """Tell a topic what happens; it gets a test message first."""
        if unknown := sorted(set(call.params["NotificationTypes"]) - KINDS):
            raise Fault("ValidationError", f"{', '.join(unknown)} is not a valid Notification Type")
        with self.world.lock:
            group = self.group(call.params["AutoScalingGroupName"])
            group.news[call.params["TopicARN"]] = list(call.params["NotificationTypes"])
            self.groups.news.test(group, call.params["TopicARN"], self.world.now())
        return {}

    @plays("AutoScalingGroupName", "TopicARN")
    def delete_notification_configuration(self, call: Call) -> Mapping[str, Any]:
        """Tell a topic no more."""
        with self.world.lock:
            self.group(call.params["AutoScalingGroupName"]).news.pop(call.params["TopicARN"], None)
        return {}

    @plays("AutoScalingGroupNames", "MaxRecords", "NextToken")
    def describe_notification_configurations(self, call: Call) -> Mapping[str, Any]:
        """Which topics hear what of which groups."""
        names = call.params.get("AutoScalingGroupNames")
        with self.world.lock:
            told = [
                {"AutoScalingGroupName": group.name, "TopicARN": topic, "NotificationType": kind}
                for group in self.groups.all()
                if not names or group.name in names
                for topic, kinds in group.news.items()
                for kind in kinds
            ]
        shown, more = listing.page(told, call.params, 50, "MaxRecords")
        return {"NotificationConfigurations": list(shown), **more}

    @plays("AutoScalingGroupName", "Metrics", "Granularity")
    def enable_metrics_collection(self, call: Call) -> Mapping[str, Any]:
        """Switch metrics on; all when none is named."""
        if call.params["Granularity"] != "1Minute":
            raise Fault("ValidationError", "Granularity must be 1Minute")
        with self.world.lock:
            group = self.group(call.params["AutoScalingGroupName"])
            wanted = call.params.get("Metrics") or METRICS
            group.metrics = [name for name in METRICS if name in {*group.metrics, *wanted}]
        return {}

    @plays("AutoScalingGroupName", "Metrics")
    def disable_metrics_collection(self, call: Call) -> Mapping[str, Any]:
        """Switch metrics off; all when none is named."""
        with self.world.lock:
            group = self.group(call.params["AutoScalingGroupName"])
            unwanted = call.params.get("Metrics") or METRICS
            group.metrics = [name for name in group.metrics if name not in unwanted]
        return {}


def hook_of(params: Mapping[str, Any]) -> Hook:
    """The hook that a request or a group's specification describes. Raises Fault."""
    if params["LifecycleTransition"] != LAUNCHING:
        raise Fault("NotPlayed", f"the local cloud does not play hooks of {params['LifecycleTransition']}")
    result = params.get("DefaultResult", "ABANDON")
    return Hook(params["LifecycleHookName"], params.get("HeartbeatTimeout", HOUR_SECONDS), result)


def pool_of(group: Group) -> dict[str, Any]:
    """The warm pool's configuration, as it is shown; {} without one."""
    if group.warm_pool is None:
        return {}
    return {
        "MaxGroupPreparedCapacity": -1 if group.warm_pool.prepared is None else group.warm_pool.prepared,
        "MinSize": group.warm_pool.least,
        "PoolState": group.warm_pool.state,
        **({"Status": "PendingDelete"} if group.pool_deleting else {}),
    }


def member_of(group: Group, one: Instance) -> dict[str, Any]:
    """An instance as a group or its warm pool shows it."""
    return {
        "InstanceId": one.id,
        "InstanceType": one.pool.type,
        "AvailabilityZone": one.pool.zone,
        "LifecycleState": group.stages[one.id].name,
        "HealthStatus": "Unhealthy" if one.ended_for_good else "Healthy",
        "ProtectedFromScaleIn": one.id in group.protected,
        **({"WeightedCapacity": str(group.units(one))} if group.weights else {}),
        "LaunchTemplate": {
            "LaunchTemplateId": one.blueprint.template_id,
            "Version": str(one.blueprint.version),
        },
    }
