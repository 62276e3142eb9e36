"""One page that says what is going on: what is needed, what was requested, what has joined, and what went wrong."""

from __future__ import annotations

import json
from typing import Any

from troposphere import Sub, Template, cloudwatch

from templates.alarms import NAMESPACE, telling
from templates.cluster import Worker, service_name
from templates.data import Data
from templates.functions import Functions
from templates.machines import Machines
from templates.settings import Settings
from templates.tags import tags

COLUMNS = 24
"""CloudWatch's grid."""
HOW_TO_READ = """\
# Spindrift: ${AWS::StackName}
1. **Alarms** come first: each says in its description what to do, and docs/operations.md says more.
2. **Jobs** wait or are in flight. The oldest is old because it waits or because it works: see whether any is in flight.
3. **Units** are GPUs. *Needed* is what the jobs want within your limits, *requested* what was asked of AWS, *joined* \
what ECS can use. Requested above joined is the market's doing, or machines that do not start.
4. **Top-up** is On-Demand bought because Spot is short. It should go back to zero; **GPU-hours** show what it costs.
5. A **notice** gives two minutes. From notice to DRAINING should take under 2 s, and 5 s at the worst.
6. **Busy** processors and idle GPUs: the work is the CPU's. Neither is busy, and jobs are in flight: they wait for S3.
"""
GREEN, ORANGE, GREY, RED = "#2ca02c", "#ff7f0e", "#7f7f7f", "#d62728"
Metric = list[Any]
Widget = dict[str, Any]


def add(
    template: Template, settings: Settings, data: Data, functions: Functions, machines: Machines, worker: Worker
) -> cloudwatch.Dashboard:
    """The dashboard, made after the alarms, which it shows."""
    rows = [
        [_text(HOW_TO_READ, width=COLUMNS, height=6)],
        [_alarms(template)],
        [_units(), _top_up(), _gpu_hours()],
        [_jobs(data), _oldest(data), _dead(functions)],
        [_ended(data), _busy(data), _stages(data)],
        [_tasks(settings, worker), _notices(), _latency()],
        [*_machines(settings, machines), _lambdas(functions)],
        [_decisions(functions)],
    ]
    body = {"start": "-PT6H", "periodOverride": "inherit", "widgets": _placed(rows)}
    return template.add_resource(
        cloudwatch.Dashboard(
            "Dashboard",
            # An account has one set of names for all regions.
            DashboardName=Sub("${AWS::StackName}-${AWS::Region}"),
            DashboardBody=Sub(json.dumps(body), **machines.metrics),
            Tags=tags(settings),
        )
    )


def _placed(rows: list[list[Widget]]) -> list[Widget]:
    """Row by row, from the left."""
    placed, y = [], 0
    for row in rows:
        x = 0
        for widget in row:
            placed.append({**widget, "x": x, "y": y})
            x += widget["width"]
        y += max(widget["height"] for widget in row)
    return placed


def _text(markdown: str, width: int, height: int) -> Widget:
    return {"type": "text", "width": width, "height": height, "properties": {"markdown": markdown}}


def _alarms(template: Template) -> Widget:
    properties = {"title": "Alarms", "alarms": [f"${{{title}.Arn}}" for title in telling(template)]}
    return {"type": "alarm", "width": COLUMNS, "height": 3, "properties": properties}


def _graph(title: str, metrics: list[Metric], *, stat: str = "Average", period: int = 60, **properties: Any) -> Widget:
    return {
        "type": "metric",
        "width": COLUMNS // 3,
        "height": 6,
        "properties": {
            "title": title,
            "region": "${AWS::Region}",
            "view": "timeSeries",
            "stacked": False,
            "stat": stat,
            "period": period,
            "yAxis": {"left": {"min": 0}},
            "metrics": metrics,
            **properties,
        },
    }


def _own(name: str, label: str, **look: Any) -> Metric:
    return [NAMESPACE, name, "Stack", "${AWS::StackName}", {"label": label, **look}]


def _workers(data: Data, metrics: dict[str, str], **look: Any) -> list[Metric]:
    """What the workers of each queue tell (gpu_worker/metrics.py): `metrics` are names, and what to call them."""
    return [
        [NAMESPACE, name, "Stack", "${AWS::StackName}", "Queue", queue, {"label": f"{queue}: {label}", **look}]
        for queue in data.jobs
        for name, label in metrics.items()
    ]


def _sqs(metric: str, title: str, label: str, **look: Any) -> Metric:
    return ["AWS/SQS", metric, "QueueName", f"${{{title}.QueueName}}", {"label": label, **look}]


def _units() -> Widget:
    return _graph(
        "Units: needed, requested, joined",
        [
            _own("NeededUnits", "needed", color=GREY),
            _own("RequestedSpotUnits", "requested, Spot", color="#98df8a"),
            _own("RequestedOnDemandUnits", "requested, On-Demand", color="#ffbb78"),
            _own("JoinedSpotUnits", "joined, Spot", color=GREEN),
            _own("JoinedOnDemandUnits", "joined, On-Demand", color=ORANGE),
        ],
    )


def _top_up() -> Widget:
    return _graph(
        "Top-up, and units under notice",
        [_own("TopUpUnits", "top-up", color=ORANGE), _own("NoticedUnits", "under notice", color=RED)],
        stat="Maximum",
    )


def _gpu_hours() -> Widget:
    markets = {"spot": ("JoinedSpotUnits", "Spot", GREEN), "od": ("JoinedOnDemandUnits", "On-Demand", ORANGE)}
    sums: list[Metric] = [
        [{"id": f"{name}_hours", "expression": f"{name}*PERIOD({name})/3600", "label": label, "color": color}]
        for name, (_, label, color) in markets.items()
    ]
    sources = [_own(metric, label, id=name, visible=False) for name, (metric, label, _) in markets.items()]
    return _graph("GPU-hours in each hour, by market", [*sums, *sources], period=3600, stacked=True)


def _jobs(data: Data) -> Widget:
    metrics = []
    for name, queue in data.jobs.items():
        metrics.append(_sqs("ApproximateNumberOfMessagesVisible", queue.title, f"{name}: waiting"))
        metrics.append(_sqs("ApproximateNumberOfMessagesNotVisible", queue.title, f"{name}: in flight"))
    return _graph("Jobs: waiting and in flight", metrics, stat="Maximum")


def _oldest(data: Data) -> Widget:
    metrics = [_sqs("ApproximateAgeOfOldestMessage", queue.title, name) for name, queue in data.jobs.items()]
    return _graph("Oldest job, in seconds", metrics, stat="Maximum")


def _dead(functions: Functions) -> Widget:
    told = {"DeadLetter": "jobs that failed", "NoticesDead": "news not handled"}
    if functions.ingest:
        told["UploadEventsDead"] = "uploads not handled"
    metrics = [_sqs("ApproximateNumberOfMessagesVisible", title, label) for title, label in told.items()]
    return _graph("Dead letters", metrics, stat="Maximum")


def _ended(data: Data) -> Widget:
    counts = {
        "JobsSucceeded": "succeeded",
        "JobsFailed": "failed",
        "JobsRetried": "failed, to be tried again",
        "JobsReleased": "given back",
    }
    return _graph("How attempts ended, in five minutes", _workers(data, counts), stat="Sum", period=300)


def _busy(data: Data) -> Widget:
    shares = {"ProcessorBusyPercent": "processors", "GpuBusyPercent": "GPUs"}
    return _graph("Busy processors and GPUs of the workers, in percent", _workers(data, shares))


def _stages(data: Data) -> Widget:
    stages = {
        "ReadyingMilliseconds": "readying",
        "WorkingMilliseconds": "working",
        "StoringMilliseconds": "storing",
    }
    error = {"EtaErrorPercent": "longer than thought, in percent"}
    metrics = [*_workers(data, stages), *_workers(data, error, yAxis="right")]
    return _graph("Stages of a job, in milliseconds: half take less", metrics, stat="p50", period=300)


def _tasks(settings: Settings, worker: Worker) -> Widget:
    """What ECS reports without Container Insights: shares, and only while tasks run; a count of tasks is not in it."""
    cluster = ["ClusterName", f"${{{worker.cluster.title}}}"]
    metrics: list[Metric] = [["AWS/ECS", "GPUReservation", *cluster, {"label": "GPUs that have a task"}]]
    metrics += [
        ["AWS/ECS", "CPUUtilization", *cluster, "ServiceName", service_name(queue), {"label": f"{queue.name}: CPU"}]
        for queue in settings.queues
    ]
    return _graph("Tasks: GPUs taken and CPU used, in percent", metrics)


def _notices() -> Widget:
    return _graph("Notices in five minutes", [_own("Notices", "notices", color=RED)], stat="Sum", period=300)


def _latency() -> Widget:
    return _graph(
        "From notice to DRAINING, in milliseconds",
        [
            _own("NoticeToDrainingMilliseconds", "half are faster", stat="p50"),
            _own("NoticeToDrainingMilliseconds", "99 % are faster", stat="p99", color=RED),
        ],
        period=300,
    )


def _machines(settings: Settings, machines: Machines) -> list[Widget]:
    """What AWS itself says of the fleet and the groups, whichever the profile has."""
    fleet = [
        ["AWS/EC2Spot", metric, "FleetRequestId", "${spot_fleet}", {"label": label}]
        for metric, label in {
            "TargetCapacity": "target",
            "FulfilledCapacity": "fulfilled",
            "PendingCapacity": "pending",
            "TerminatingCapacity": "terminating",
        }.items()
    ]
    widgets = {
        "spot_fleet": ("Spot Fleet, in units", fleet),
        "spot_group": ("Spot group, in instances", _group("spot_group")),
        "on_demand_group": ("On-Demand group, in instances", _group("on_demand_group")),
    }
    if settings.on_demand.warm_units:
        warm = ["AWS/AutoScaling", "WarmPoolWarmedCapacity", "AutoScalingGroupName", "${on_demand_group}"]
        widgets["on_demand_group"][1].append([*warm, {"label": "warm"}])
    return [_graph(title, metrics) for name, (title, metrics) in widgets.items() if name in machines.metrics]


def _group(name: str) -> list[Metric]:
    return [
        ["AWS/AutoScaling", metric, "AutoScalingGroupName", f"${{{name}}}", {"label": label}]
        for metric, label in {
            "GroupDesiredCapacity": "desired",
            "GroupInServiceInstances": "in service",
            "GroupPendingInstances": "pending",
            "GroupTerminatingInstances": "terminating",
        }.items()
    ]


def _lambdas(functions: Functions) -> Widget:
    metrics: list[Metric] = [_own("PassErrors", "capacity passes that failed", color=RED)]
    for function in (functions.capacity, functions.ingest, functions.market):
        if function:
            name = function.title.removesuffix("Function").lower()
            dimension = ["FunctionName", f"${{{function.title}}}"]
            metrics.append(["AWS/Lambda", "Errors", *dimension, {"label": f"{name}: errors"}])
            metrics.append(["AWS/Lambda", "Throttles", *dimension, {"label": f"{name}: throttles"}])
    return _graph("Errors of the Lambdas", metrics, stat="Sum")


def _decisions(functions: Functions) -> Widget:
    query = (
        f"SOURCE '${{{functions.capacity.title.removesuffix('Function')}Logs}}' | fields @timestamp, event, why "
        "| filter event in ['capacity', 'capacity-failed', 'drained'] | sort @timestamp desc | limit 50"
    )
    properties = {
        "title": "What the capacity Lambda decided, and why",
        "region": "${AWS::Region}",
        "view": "table",
        "query": query,
    }
    return {"type": "log", "width": COLUMNS, "height": 6, "properties": properties}
