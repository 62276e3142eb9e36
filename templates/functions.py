"""The Lambdas, and what they hear."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from troposphere import AWSObject, GetAtt, Ref, Sub, Template, awslambda, events, logs, sqs
from troposphere.validators import integer

from templates import policies
from templates.assets import Asset, Assets
from templates.cluster import Worker, service_name
from templates.data import CAPACITY_SECONDS, INGEST_SECONDS, Data, let_service_send
from templates.machines import Machines
from templates.settings import Settings
from templates.tags import tags

LEAVING = ["stopping", "stopped", "shutting-down", "terminated"]
"""The states of an instance that are news; an instance that runs is news when it joins the cluster."""


class MaximumConcurrency(awslambda.ScalingConfig):  # type: ignore[misc] # untyped
    """An SQS event source's ScalingConfig: Troposphere 4.11 gives it the properties of another type of that name."""

    props = {"MaximumConcurrency": (integer, True)}  # noqa: RUF012 - Troposphere's own form


@dataclass(frozen=True)
class Functions:
    """The resources that others refer to."""

    capacity: awslambda.Function
    ingest: awslambda.Function | None
    """None where S3 writes to the job queues itself."""
    ready: list[str]
    """Titles without which the capacity Lambda does not hear the minute."""
    market: awslambda.Function | None = None
    """Made when the machines are known (market.py)."""


def add(
    template: Template, settings: Settings, data: Data, worker: Worker, machines: Machines, assets: Assets
) -> Functions:
    """The Lambdas, their event sources and the rules."""
    ingest = _ingest(template, settings, data, assets.ingest)
    capacity = _capacity(template, settings, data, worker, machines, assets.capacity)
    source = _listen(template, settings, capacity, data.notices, at_once=2)
    rules = _rules(template, settings, data, worker, machines)
    policy = template.add_resource(
        sqs.QueuePolicy(
            "NoticesPolicy",
            Queues=[Ref(data.notices)],
            PolicyDocument={
                "Version": "2012-10-17",
                "Statement": [
                    let_service_send(
                        "sns.amazonaws.com", data.notices, ArnEquals={"aws:SourceArn": Ref(data.notices_topic)}
                    ),
                    let_service_send(
                        "events.amazonaws.com",
                        data.notices,
                        ArnEquals={"aws:SourceArn": [GetAtt(rule, "Arn") for rule in rules]},
                    ),
                ],
            },
        )
    )
    return Functions(capacity, ingest, sorted([source.title, policy.title, *(rule.title for rule in rules)]))


def _ingest(template: Template, settings: Settings, data: Data, code: Asset) -> awslambda.Function | None:
    if data.upload_events is None:
        return None
    routes = [
        {"prefix": queue.prefix, "queue": queue.name, "queue_url": _url(data.jobs[queue.name])}
        for queue in settings.queues
    ]
    function = add_function(
        template,
        settings,
        "Ingest",
        code,
        timeout=INGEST_SECONDS,
        statements=[
            policies.take_messages(data.upload_events),
            policies.record_jobs(data.table),
            policies.send_messages(*data.jobs.values(), data.notices),
            policies.measure_queues(*data.jobs.values()),
            *policies.open_and_seal(data.key),
            *policies.use_encrypted_table(data.key),
        ],
        environment={
            "JOBS_TABLE": Ref(data.table),
            "ROUTES": Sub(json.dumps(routes)),
            "NOTICES_QUEUE_URL": Ref(data.notices),
        },
    )
    _listen(template, settings, function, data.upload_events, at_once=10)
    return function


def _capacity(
    template: Template, settings: Settings, data: Data, worker: Worker, machines: Machines, code: Asset
) -> awslambda.Function:
    services = [
        {
            "name": service_name(queue),
            "queue_url": _url(data.jobs[queue.name]),
            "jobs_per_task": queue.jobs_per_task,
            "max_tasks": queue.max_tasks,
            "units_per_task": 1,
            "placement": queue.placement,
            "max_wait_seconds": queue.max_wait_seconds,
        }
        for queue in settings.queues
    ]
    return add_function(
        template,
        settings,
        "Capacity",
        code,
        timeout=CAPACITY_SECONDS,
        statements=[
            policies.take_messages(data.notices),
            policies.measure_queues(*data.jobs.values()),
            *policies.open_messages(data.key),
            *policies.drain_instances(worker.cluster),
            policies.note_taken(data.pools),
            *policies.use_encrypted_table(data.key),
            *machines.statements,
        ],
        environment={
            "PROFILE": settings.profile,
            "STACK": Ref("AWS::StackName"),
            "CLUSTER": Ref(worker.cluster),
            "POOLS_TABLE": Ref(data.pools),
            "SERVICES": Sub(json.dumps(services)),
            **machines.environment,
        },
    )


def _url(queue: sqs.Queue) -> str:
    """A queue's URL, for Fn::Sub."""
    return f"${{{queue.title}}}"


def add_function(
    template: Template,
    settings: Settings,
    title: str,
    code: Asset,
    timeout: int,
    statements: list[policies.Statement],
    environment: dict[str, Any],
) -> awslambda.Function:
    """A Lambda, its role and its log; `timeout` in seconds."""
    log_group = template.add_resource(
        logs.LogGroup(f"{title}Logs", RetentionInDays=settings.logs.retention_days, Tags=tags(settings))
    )
    role = template.add_resource(
        policies.role(
            f"{title}Role",
            "lambda.amazonaws.com",
            tags(settings),
            [policies.write_logs(log_group), *statements],
        )
    )
    return template.add_resource(
        awslambda.Function(
            f"{title}Function",
            Runtime="python3.13",
            Architectures=["arm64"],
            Handler=f"{title.lower()}.handler.handler",
            Code=awslambda.Code(S3Bucket=Ref("AssetsBucket"), S3Key=code.key),
            MemorySize=512,
            Timeout=timeout,
            Role=GetAtt(role, "Arn"),
            Environment=awslambda.Environment(Variables=environment),
            LoggingConfig=awslambda.LoggingConfig(LogGroup=Ref(log_group)),
            Tags=tags(settings),
        )
    )


def _listen(
    template: Template, settings: Settings, function: awslambda.Function, queue: sqs.Queue, at_once: int
) -> AWSObject:
    """Ten messages at a time, without waiting for ten; a message that fails comes back alone.

    With a batching window Lambda may wait for up to 20 s (docs/decisions/0022-what-the-capacity-policy-rests-on.md).
    """
    return template.add_resource(
        awslambda.EventSourceMapping(
            f"{function.title.removesuffix('Function')}Source",
            EventSourceArn=GetAtt(queue, "Arn"),
            FunctionName=Ref(function),
            BatchSize=10,
            MaximumBatchingWindowInSeconds=0,
            FunctionResponseTypes=["ReportBatchItemFailures"],
            ScalingConfig=MaximumConcurrency(MaximumConcurrency=at_once),
            Tags=tags(settings),
        )
    )


def _rules(template: Template, settings: Settings, data: Data, worker: Worker, machines: Machines) -> list[events.Rule]:
    """What AWS tells of itself, and the minute. Spot and state events are account-wide; the Lambda knows ours."""
    patterns: dict[str, dict[str, Any]] = {
        "SpotEvents": {
            "source": ["aws.ec2"],
            "detail-type": ["EC2 Spot Instance Interruption Warning", "EC2 Instance Rebalance Recommendation"],
        },
        "InstanceEvents": {
            "source": ["aws.ec2"],
            "detail-type": ["EC2 Instance State-change Notification"],
            "detail": {"state": LEAVING},
        },
        "ClusterEvents": {
            "source": ["aws.ecs"],
            "detail-type": ["ECS Container Instance State Change"],
            "detail": {"clusterArn": [GetAtt(worker.cluster, "Arn")]},
        },
        # A worker whose machine's GPU is broken (gpu_worker/health.py). All other tasks that stop are no news.
        "BrokenMachines": {
            "source": ["aws.ecs"],
            "detail-type": ["ECS Task State Change"],
            "detail": {
                "clusterArn": [GetAtt(worker.cluster, "Arn")],
                "lastStatus": ["STOPPED"],
                "containers": {"exitCode": [64]},
            },
        },
        **machines.patterns,
    }
    target = events.Target(Id="notices", Arn=GetAtt(data.notices, "Arn"))
    minute = events.Rule(
        "EveryMinute",
        Description="A look at the truth each minute, for what nobody tells",
        ScheduleExpression="rate(1 minute)",
        State="ENABLED",
        Targets=[target],
        Tags=tags(settings),
    )
    rules = [
        events.Rule(title, EventPattern=pattern, State="ENABLED", Targets=[target], Tags=tags(settings))
        for title, pattern in patterns.items()
    ]
    return [template.add_resource(rule) for rule in [minute, *rules]]
