"""What AWS measures of itself: queues, functions, groups, Spot Fleets, and metrics in logs. Knows ministack's names.

ECS's own metrics (AWS/ECS) are left out: nothing here knows what a task takes of a processor.

Every minute of AWS's, with the delay that it has there. Queues: "metrics … are pushed to CloudWatch at one-minute
intervals", of queues that are active: "for up to six hours if it contains any messages or if any action accesses it";
"a delay of up to 15 minutes occurs … when a queue is activated from an inactive state" (SQS developer guide,
"Monitoring Amazon SQS queues using CloudWatch"). How late the others are AWS does not say: the lags here are chosen.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ministack.core.responses import request_scope
from ministack.services import cloudwatch_logs, lambda_svc, sqs

from localcloud import embedded
from localcloud.cloudwatch import CloudWatch
from localcloud.ec2 import Ec2
from localcloud.fleet import Fleets
from localcloud.groupkeeper import Group, Groups
from localcloud.groups import AutoScaling
from localcloud.metrics import Metric, Metrics, sample
from localcloud.wire import Service
from localcloud.world import ACCOUNT, REGION, World

MINUTE = 60.0
QUEUE_LAG = (30.0, 120.0)
"""After a minute is over, until CloudWatch shows what SQS measured in it."""
LAG = (10.0, 60.0)
"""The same for the other services."""
LOG_LAG = (1.0, 10.0)
"""From a log line's time until its metrics are known."""
ACTIVE_SECONDS = 6 * 3600.0
WAKING_SECONDS = 15 * 60.0
POISON_RECEIVES = 3
"""Messages received so often are left out of the oldest one's age (SQS developer guide, available metrics)."""
COUNT, SECONDS, MILLISECONDS = "Count", "Seconds", "Milliseconds"


@dataclass
class Activity:
    """What SQS knows of a queue's use. Times are seconds since the epoch."""

    last: float
    woken: float
    """From when its metrics are shown, after it had been inactive."""


Message = Mapping[str, Any]
"""ministack's record of one: visible_at, sent_at, receive_count."""


def listen(world: World, services: Sequence[Service]) -> None:
    """Measure for the CloudWatch among the services, if there is one."""
    store = next((one.metrics for one in services if isinstance(one, CloudWatch)), None)
    groups = next((one.groups for one in services if isinstance(one, AutoScaling)), None)
    fleets = next((one.fleets for one in services if isinstance(one, Ec2)), None)
    if store and groups and fleets:
        Telemetry(world, store, groups, fleets).install()


def _queues_now() -> dict[str, list[Message]]:
    """The messages of every queue."""
    with request_scope(ACCOUNT, REGION), sqs._queues_lock:
        return {queue["name"]: [dict(message) for message in queue["messages"]] for queue in sqs._queues.values()}


def of_queue(messages: Sequence[Message], now: float) -> dict[str, float]:
    """What SQS tells of an active queue, and of which metrics it says nothing (SQS developer guide, "Available
    CloudWatch metrics").
    """
    visible = [one.get("visible_at", 0.0) <= now for one in messages]
    received = [one.get("receive_count", 0) for one in messages]
    flying = sum(not seen and count > 0 for seen, count in zip(visible, received, strict=True))
    # A message's age is the product's own time, which no speed divides.
    ages = [now - one["sent_at"] for one in messages if one.get("receive_count", 0) < POISON_RECEIVES]
    told = {
        "ApproximateNumberOfMessagesNotVisible": float(flying),
        "ApproximateNumberOfMessagesDelayed": float(len(messages) - sum(visible) - flying),
        "ApproximateAgeOfOldestMessage": max(ages, default=0.0),
    }
    told = {name: value for name, value in told.items() if value > 0}
    return {"ApproximateNumberOfMessagesVisible": float(sum(visible)), **told}


class Telemetry:
    """Measures, and tells the store."""

    def __init__(
        self,
        world: World,
        metrics: Metrics,
        groups: Groups,
        fleets: Fleets,
        queues: Callable[[], Mapping[str, Sequence[Message]]] = _queues_now,
    ) -> None:
        self._world = world
        self._look = queues
        self._metrics = metrics
        self._groups = groups
        self._fleets = fleets
        self._dice = random.Random(f"{world.seed} telemetry")  # noqa: S311
        self._queues: dict[str, Activity] = {}
        self._minute = self._minutes(world.now())
        world.every_heartbeat(self.step)

    def install(self) -> None:
        """Listen to calls of queues, to functions and to logs."""
        self._hear_queues()
        self._hear_functions()
        append = cloudwatch_logs._append_log_events

        @functools.wraps(append)
        def appended(stream: Any, events: Sequence[Mapping[str, Any]]) -> None:
            append(stream, events)
            for event in events:
                for metric, taken in embedded.samples(event["message"], self._lag(LOG_LAG)):
                    self._metrics.put(metric, taken)

        cloudwatch_logs._append_log_events = appended

    def _hear_queues(self) -> None:
        dispatch, receive = sqs._dispatch, sqs._receive_messages_for_esm

        async def dispatched(action: str, data: Mapping[str, Any], url: str) -> Any:
            self.accessed(str(data.get("QueueUrl") or url or data.get("QueueName", "")))
            return await dispatch(action, data, url)

        def received(url: str, most: int) -> Any:
            self.accessed(url)
            return receive(url, most)

        sqs._dispatch, sqs._receive_messages_for_esm = dispatched, received

    def _hear_functions(self) -> None:
        emit, write = lambda_svc._emit_lambda_metrics, lambda_svc._emit_lambda_logs

        @functools.wraps(emit)
        def emitted(function: str, duration_ms: float, error: bool, throttle: bool) -> None:  # noqa: ARG001 - theirs
            # Told where the function is turned away, and a second time, with a duration, where its caller hears of it.
            if throttle and not duration_ms:
                self._invoked(function, {"Throttles": 1})

        @functools.wraps(write)
        def written(
            function: Mapping[str, Any], request: str, text: str, error: bool, duration_ms: int, **rest: Any
        ) -> None:
            write(function, request, text, error, duration_ms, **rest)
            counted = {"Invocations": 1, "Errors": int(error), "Throttles": 0, "Duration": duration_ms}
            self._invoked(function["config"]["FunctionName"], counted)

        lambda_svc._emit_lambda_metrics, lambda_svc._emit_lambda_logs = emitted, written

    def _invoked(self, function: str, counted: Mapping[str, float]) -> None:
        now = self._world.now().timestamp()
        over = (math.floor(now / self._scaled(MINUTE)) + 1) * self._scaled(MINUTE)
        shown = over + self._lag(LAG)
        for name, value in counted.items():
            unit = MILLISECONDS if name == "Duration" else COUNT
            metric = Metric.of("AWS/Lambda", name, {"FunctionName": function})
            self._metrics.put(metric, sample(now, shown, [(value, 1.0)], unit))

    def accessed(self, url: str) -> None:
        """An action, or a message: the queue is active, and tells so some time later when it was not before."""
        name, now = url.rsplit("/", 1)[-1], self._world.now().timestamp()
        known = self._queues.get(name)
        if known is None or now - known.last > self._scaled(ACTIVE_SECONDS):
            self._queues[name] = Activity(now, now + self._scaled(self._dice.uniform(0, WAKING_SECONDS)))
        else:
            known.last = now

    def step(self, now: datetime) -> None:
        """Measure when a minute is over."""
        minute = self._minutes(now)
        if minute == self._minute:
            return
        self._minute = minute
        start, over = (minute - 1) * self._scaled(MINUTE), minute * self._scaled(MINUTE)
        self._measure_queues(start, over)
        for group in self._groups.all():
            self._tell("AWS/AutoScaling", {"AutoScalingGroupName": group.name}, self._of_group(group), start, over)
        for fleet in self._fleets.all():
            if fleet.state in ("active", "modifying"):
                fulfilled = self._fleets.fulfilled(fleet)
                leaving = [one for one in self._fleets.members(fleet) if one.notice is not None]
                told = {
                    "TargetCapacity": fleet.target,
                    "FulfilledCapacity": fulfilled,
                    "PendingCapacity": max(0.0, fleet.target - fulfilled),
                    "TerminatingCapacity": sum(fleet.weights[one.id] for one in leaving),
                }
                self._tell("AWS/EC2Spot", {"FleetRequestId": fleet.id}, told, start, over)

    def _measure_queues(self, start: float, over: float) -> None:
        """Each queue as it is when the minute is over."""
        now, queues = self._world.now().timestamp(), self._look()
        for gone in set(self._queues) - queues.keys():
            del self._queues[gone]
        for name, messages in queues.items():
            if messages or name not in self._queues:
                self.accessed(name)
            activity = self._queues[name]
            if now - activity.last > self._scaled(ACTIVE_SECONDS):
                continue
            shown = max(over + self._lag(QUEUE_LAG), activity.woken)
            for metric, value in of_queue(messages, now).items():
                unit = SECONDS if metric == "ApproximateAgeOfOldestMessage" else COUNT
                taken = sample(start, shown, [(value, 1.0)], unit)
                self._metrics.put(Metric.of("AWS/SQS", metric, {"QueueName": name}), taken)

    def _of_group(self, group: Group) -> dict[str, float]:
        """Those that are switched on ("Amazon CloudWatch metrics for Amazon EC2 Auto Scaling")."""
        if not group.metrics:
            return {}
        stages = [(group.stages[one.id], group.units(one)) for one in self._groups.members(group)]
        warm = [(group.stages[one.id], group.units(one)) for one in self._groups.members(group, warm=True)]
        told: dict[str, float] = {
            "GroupMinSize": group.settings.minimum,
            "GroupMaxSize": group.settings.maximum,
            "GroupDesiredCapacity": group.desired,
        }
        for title, part in (("InService", "InService"), ("Pending", "Pending"), ("Terminating", "Terminating")):
            units = [weight for stage, weight in stages if stage.name.startswith(part)]
            told |= {f"Group{title}Instances": len(units), f"Group{title}Capacity": sum(units)}
        told |= {"GroupStandbyInstances": 0, "GroupStandbyCapacity": 0, "GroupTotalInstances": len(stages)}
        told["GroupTotalCapacity"] = sum(weight for _, weight in stages)
        wanted = group.warm_pool.wanted(group) if group.warm_pool and not group.pool_deleting else 0
        for title, parts in (
            ("Warmed", ("Warmed:Stopped", "Warmed:Running")),
            ("Pending", ("Warmed:Pending",)),
            ("Terminating", ("Warmed:Terminating",)),
        ):
            told[f"WarmPool{title}Capacity"] = sum(weight for stage, weight in warm if stage.name.startswith(parts))
        told["WarmPoolDesiredCapacity"] = wanted
        told["WarmPoolTotalCapacity"] = sum(weight for _, weight in warm)
        told["GroupAndWarmPoolDesiredCapacity"] = group.desired + wanted
        told["GroupAndWarmPoolTotalCapacity"] = told["GroupTotalCapacity"] + told["WarmPoolTotalCapacity"]
        return {name: told[name] for name in group.metrics}

    def _tell(
        self, namespace: str, dimensions: Mapping[str, str], told: Mapping[str, float], start: float, over: float
    ) -> None:
        shown = over + self._lag(LAG)
        for name, value in told.items():
            taken = sample(start, shown, [(value, 1.0)])
            self._metrics.put(Metric.of(namespace, name, dimensions), taken)

    def _lag(self, bounds: tuple[float, float]) -> float:
        return self._scaled(self._dice.uniform(*bounds))

    def _minutes(self, now: datetime) -> int:
        return math.floor(now.timestamp() / self._scaled(MINUTE))

    def _scaled(self, seconds: float) -> float:
        return self._world.scaled(seconds)
