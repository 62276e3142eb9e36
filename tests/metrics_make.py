"""What CloudWatch can know, and what in a rendered template asks it for more."""

import json
import re
import tomllib
from pathlib import Path

from capacity import metrics
from gpu_worker import metrics as workers
from templates.assets import Asset, Assets
from templates.settings import Settings
from templates.stacks import STACKS, rendered

HASH = "0123456789abcdef" * 4
ASSETS = Assets(*(Asset(f"{name}-{HASH[:16]}.zip", HASH) for name in ("ingest", "capacity", "market", "agent")))
EVERYTHING = tomllib.loads((Path(__file__).parent / "everything.toml").read_text("utf-8"))
TABLES = {
    "defaults": {},
    "everything": EVERYTHING,
    "groups": {"profile": "groups"},
    "groups that tell of scaling": {"profile": "groups", "notify": {"email": "a@example.com", "scaling": True}},
    "no key": {"security": {"customer_key": False}, "notify": {"email": "a@example.com", "scaling": True}},
    "warm, with the ingest Lambda": {
        "on_demand": {"instance_types": ["g4dn.xlarge"], "warm_units": 1},
        "queues": [{"name": "default"}, {"name": "big-ones", "prefix": "big/"}],
    },
}

KNOWN = {
    # SQS Developer Guide, "Available CloudWatch metrics for Amazon SQS".
    "AWS/SQS": {
        ("QueueName",): {
            "ApproximateAgeOfOldestMessage", "ApproximateNumberOfMessagesDelayed",
            "ApproximateNumberOfMessagesNotVisible", "ApproximateNumberOfMessagesVisible", "NumberOfEmptyReceives",
            "NumberOfMessagesDeleted", "NumberOfMessagesReceived", "NumberOfMessagesSent", "SentMessageSize",
        },
    },
    # Lambda Developer Guide, "Types of metrics for Lambda functions".
    "AWS/Lambda": {("FunctionName",): {"ConcurrentExecutions", "Duration", "Errors", "Invocations", "Throttles"}},
    # EC2 User Guide, "Monitor your EC2 Fleet or Spot Fleet using CloudWatch".
    "AWS/EC2Spot": {
        ("FleetRequestId",): {
            "AvailableInstancePoolsCount", "BidsSubmittedForCapacity", "EligibleInstancePoolCount",
            "FulfilledCapacity", "MaxPercentCapacityAllocation", "PendingCapacity", "PercentCapacityAllocation",
            "TargetCapacity", "TerminatingCapacity",
        },
    },
    # Auto Scaling User Guide, "Amazon CloudWatch metrics for Amazon EC2 Auto Scaling".
    "AWS/AutoScaling": {
        ("AutoScalingGroupName",): {
            "GroupDesiredCapacity", "GroupInServiceInstances", "GroupMaxSize", "GroupMinSize",
            "GroupPendingInstances", "GroupStandbyInstances", "GroupTerminatingInstances", "GroupTotalInstances",
            "WarmPoolDesiredCapacity", "WarmPoolMinSize", "WarmPoolPendingCapacity", "WarmPoolTerminatingCapacity",
            "WarmPoolTotalCapacity", "WarmPoolWarmedCapacity",
        },
    },
    # ECS Developer Guide, "Amazon ECS CloudWatch metrics": those without Container Insights.
    "AWS/ECS": {
        ("ClusterName",): {
            "CPUReservation", "CPUUtilization", "GPUReservation", "MemoryReservation", "MemoryUtilization",
        },
        ("ClusterName", "ServiceName"): {"CPUUtilization", "MemoryUtilization"},
    },
    metrics.NAMESPACE: {
        (metrics.DIMENSION,): set(metrics.Metric),
        tuple(sorted(workers.DIMENSIONS)): set(workers.Metric),
    },
}  # fmt: skip
"""Namespace -> dimensions -> metrics: what there is to watch."""

NAMES = {
    "QueueName": ("AWS::SQS::Queue", "QueueName"),
    "FunctionName": ("AWS::Lambda::Function", None),
    "FleetRequestId": ("AWS::EC2::SpotFleet", None),
    "AutoScalingGroupName": ("AWS::AutoScaling::AutoScalingGroup", None),
    "ClusterName": ("AWS::ECS::Cluster", None),
}
"""Dimension -> the type of resource that it names, and by which attribute; None is its Ref."""


def template(**table):
    return json.loads(rendered(STACKS["cluster"](Settings.read(table), ASSETS)))


def of_type(kind, built):
    return {title: body["Properties"] for title, body in built["Resources"].items() if body["Type"] == kind}


def wrong(built, namespace, metric, dimensions):
    """What is wrong with a metric; `dimensions` are name -> text as in Fn::Sub."""
    known = KNOWN.get(namespace, {}).get(tuple(sorted(dimensions)), set())
    found = [] if metric in known else [f"{namespace} has no {metric} by {', '.join(sorted(dimensions))}"]
    return found + [
        f"{name} is no {name}: {said}" for name, said in dimensions.items() if not _named(built, name, said)
    ]


def _named(built, name, said):
    if name == metrics.DIMENSION:
        return said == "${AWS::StackName}"
    if name == "Queue":
        return said in queues_of_workers(built)
    if name == "ServiceName":
        services = of_type("AWS::ECS::Service", built).values()
        return said in [as_text(service["ServiceName"]) for service in services]
    kind, attribute = NAMES.get(name, (None, None))
    known = [f"${{{title}.{attribute}}}" if attribute else f"${{{title}}}" for title in of_type(kind, built)]
    return said in known


def queues_of_workers(built):
    """What each worker calls its queue."""
    return {
        each["Value"]
        for task in of_type("AWS::ECS::TaskDefinition", built).values()
        for each in task["ContainerDefinitions"][0]["Environment"]
        if each["Name"] == "SPINDRIFT_QUEUE"
    }


def as_text(value):
    """A Ref, a Fn::GetAtt or a Fn::Sub as Fn::Sub writes it; its variables are put in."""
    match value:
        case {"Ref": name}:
            return f"${{{name}}}"
        case {"Fn::GetAtt": [name, attribute]}:
            return f"${{{name}.{attribute}}}"
        case {"Fn::Sub": [text, variables]}:
            return re.sub(
                r"\$\{(\w+)\}", lambda hit: as_text(variables[hit[1]]) if hit[1] in variables else hit[0], text
            )
        case {"Fn::Sub": text}:
            return text
    return value
