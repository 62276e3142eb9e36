"""CloudWatch, Auto Scaling's groups and ECS with a clock in the test's hand: no network, no processes."""

from typing import Any

from botocore.validate import ParamValidator
from ec2_make import Cloud

from localcloud import monitoring, telemetry, wire
from localcloud.ecs import Ecs
from localcloud.fleet import Fleets
from localcloud.herald import Herald
from localcloud.metrics import Metric, sample
from localcloud.wire import Call

MINUTE = 60
QUEUE = {"Namespace": "AWS/SQS", "Dimensions": [{"Name": "QueueName", "Value": "jobs"}]}
WAITING, IN_FLIGHT = "ApproximateNumberOfMessagesVisible", "ApproximateNumberOfMessagesNotVisible"
TOPIC = "arn:aws:sns:us-east-1:123456789012:notices"


class Watched(Cloud):
    """The EC2 part with CloudWatch and ECS beside it. `told` is what alarms said to topics."""

    def __init__(self, folder, seed: int = 0) -> None:
        super().__init__(folder, seed)
        self.told: list[tuple[str, str, str, str]] = []
        self.queues: dict[str, list[dict[str, Any]]] = {}
        self.ecs = Ecs(self.world, lambda *_: None)
        (self.cloudwatch, self.services), self.resources = monitoring.furnish(self.world, self.ecs, self.autoscaling)
        self.alarms = self.cloudwatch.alarms
        self.alarms._tell = lambda *told: self.told.append(told)
        self.telemetry = telemetry.Telemetry(
            self.world,
            self.cloudwatch.metrics,
            self.autoscaling.groups,
            Fleets(self.instances, Herald(self.world, lambda *_: None)),
            queues=lambda: self.queues,
        )

    def ask(self, operation: str, **params: Any) -> Any:
        """An API call, held to botocore's shapes on the way in and out. Of Application Auto Scaling: `ask_aas`."""
        if not self.cloudwatch.plays(operation):
            return super().ask(operation, **params)
        return self._held(self.cloudwatch, operation, params)

    def ask_aas(self, operation: str, **params: Any) -> Any:
        if "Describe" not in operation or operation == "DescribeScalingActivities":
            params = {"ScalableDimension": "ecs:service:DesiredCount", **params}
        return self._held(self.services, operation, {"ServiceNamespace": "ecs", **params})

    def _held(self, service, operation: str, params: dict[str, Any]) -> Any:
        shape = wire.model(service.name).operation_model(operation)
        report = ParamValidator().validate(params, shape.input_shape)
        assert not report.has_errors(), report.generate_report()
        answer = service.answer(Call(operation, params, "arn:aws:sts::123456789012:assumed-role/r/s"))
        wire.hold_to_model(shape, answer)
        return answer

    def measure(self, value: float, name: str = "Load", minutes_ago: float = 0) -> None:
        """A value of a custom metric without dimensions, known at once."""
        now = self.world.now().timestamp() - minutes_ago * MINUTE
        self.cloudwatch.metrics.put(Metric("Spindrift", name), sample(now, now, [(value, 1.0)]))

    def alarm(self, name: str = "load", **changes: Any) -> None:
        whole = {
            "AlarmName": name,
            "Namespace": "Spindrift",
            "MetricName": "Load",
            "Statistic": "Maximum",
            "Period": MINUTE,
            "EvaluationPeriods": 1,
            "Threshold": 5,
            "ComparisonOperator": "GreaterThanThreshold",
            **changes,
        }
        if "Metrics" in changes:
            for key in ("Namespace", "MetricName", "Statistic", "Period"):
                del whole[key]
        self.ask("PutMetricAlarm", **whole)

    def state(self, name: str = "load") -> str:
        return self.ask("DescribeAlarms", AlarmNames=[name])["MetricAlarms"][0]["StateValue"]

    def minutes(self, count: float) -> None:
        self.world.advance(count * MINUTE)

    def until(self, reached, minutes: float = 60) -> float:
        """How many minutes it takes."""
        for passed in range(int(minutes * 12)):
            if reached():
                return passed / 12
            self.world.advance(5)
        raise AssertionError(f"not within {minutes} minutes")

    def service(self, desired: int = 0) -> None:
        """An ECS service `workers` in the cluster `jobs`, which gets no instances."""
        self.ecs.perform("CreateCluster", {"clusterName": "jobs"})
        container = {"name": "worker", "image": "x", "memory": 128}
        self.ecs.perform("RegisterTaskDefinition", {"family": "work", "containerDefinitions": [container]})
        named = {"cluster": "jobs", "serviceName": "workers", "taskDefinition": "work"}
        self.ecs.perform("CreateService", {**named, "desiredCount": desired})
        self.world.advance(5)

    @property
    def tasks(self) -> int:
        """What the service wants."""
        (one,) = self.ecs.state.services.values()
        return int(one["desiredCount"])


def message(now: float, sent: float = 0, hidden: float = 0, received: int = 0) -> dict[str, Any]:
    """ministack's record of a message: sent so many seconds ago, hidden for so many more."""
    return {"sent_at": now - sent, "visible_at": now + hidden, "receive_count": received}


def of_queue(identity: str, name: str, period: int = MINUTE) -> dict[str, Any]:
    metric = {"MetricName": name, **QUEUE}
    return {"Id": identity, "ReturnData": False, "MetricStat": {"Metric": metric, "Period": period, "Stat": "Maximum"}}


def math(expression: str) -> list[dict[str, Any]]:
    """An expression over `waiting` and `in_flight` of the queue `jobs`."""
    result = {"Id": "jobs", "Expression": expression, "ReturnData": True}
    return [result, of_queue("waiting", WAITING), of_queue("in_flight", IN_FLIGHT)]
