"""The two Lambdas, and what they hear."""

from __future__ import annotations

import json
from typing import Any

from troposphere import AWSObject, GetAtt, Ref, Sub, Template, awslambda, events, logs, sqs
from troposphere.validators import integer

from templates import policies
from templates.assets import Asset, Assets
from templates.cluster import SERVICE_NAME, Worker
from templates.data import CAPACITY_SECONDS, INGEST_SECONDS, Data, let_service_send
from templates.fleet import Fleet
from templates.instance_types import INSTANCE_TYPES
from templates.settings import Settings
from templates.tags import tags

NOTES = ("spindrift:short-since", "spindrift:surplus")
"""The tags in which the capacity Lambda keeps what AWS does not tell: it has no memory of its own."""
LEAVING = ["stopping", "stopped", "shutting-down", "terminated"]
"""The states of an instance that are news; an instance that runs is news when it joins the cluster."""


class MaximumConcurrency(awslambda.ScalingConfig):  # type: ignore[misc] # untyped
    """An SQS event source's ScalingConfig: Troposphere 4.11 gives it the properties of another type of that name."""

    props = {"MaximumConcurrency": (integer, True)}  # noqa: RUF012 - Troposphere's own form


def add(template: Template, settings: Settings, data: Data, worker: Worker, fleet: Fleet, assets: Assets) -> list[str]:
    """Both Lambdas, their event sources and the rules. Returns the titles without which the minute is not heard."""
    _ingest(template, settings, data, assets.ingest)
    source = _capacity(template, settings, data, worker, fleet, assets.capacity)
    rules = _rules(template, settings, data, worker, fleet)
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
    return sorted([source.title, policy.title, *(rule.title for rule in rules)])


def _ingest(template: Template, settings: Settings, data: Data, code: Asset) -> None:
    routes = [{"prefix": settings.uploads.prefix, "queue": "default", "queue_url": "${JobsUrl}"}]
    function = _function(
        template,
        settings,
        "Ingest",
        code,
        timeout=INGEST_SECONDS,
        statements=[
            policies.take_messages(data.upload_events),
            policies.record_jobs(data.table),
            policies.send_messages(data.jobs, data.notices),
            policies.measure_queues(data.jobs),
            policies.open_and_seal(data.key),
            policies.use_encrypted_table(data.key),
        ],
        environment={
            "JOBS_TABLE": Ref(data.table),
            "ROUTES": Sub(json.dumps(routes), JobsUrl=Ref(data.jobs)),
            "NOTICES_QUEUE_URL": Ref(data.notices),
        },
    )
    _listen(template, settings, function, data.upload_events, at_once=10)


def _capacity(
    template: Template, settings: Settings, data: Data, worker: Worker, fleet: Fleet, code: Asset
) -> AWSObject:
    services = [
        {
            "name": SERVICE_NAME,
            "queue_url": "${JobsUrl}",
            "jobs_per_task": settings.queue.jobs_per_task,
            "max_tasks": settings.queue.max_tasks,
            "units_per_task": 1,
        }
    ]
    names = (*settings.compute.instance_types, *settings.on_demand.instance_types)
    function = _function(
        template,
        settings,
        "Capacity",
        code,
        timeout=CAPACITY_SECONDS,
        statements=[
            policies.take_messages(data.notices),
            policies.measure_queues(data.jobs),
            policies.open_and_seal(data.key),
            *policies.drain_instances(worker.cluster),
            policies.scale_service(worker.cluster, SERVICE_NAME),
            policies.see_capacity(),
            policies.steer_fleet(fleet.spot),
            policies.steer_group(fleet.on_demand),
            policies.terminate_own_instances(),
            *policies.remember_by_tags(fleet.spot, *NOTES),
        ],
        environment={
            "STACK": Ref("AWS::StackName"),
            "CLUSTER": Ref(worker.cluster),
            "SERVICES": Sub(json.dumps(services), JobsUrl=Ref(data.jobs)),
            "SPOT_FLEET_ID": Ref(fleet.spot),
            "ON_DEMAND_GROUP": Ref(fleet.on_demand),
            "UNITS_BY_TYPE": json.dumps({name: INSTANCE_TYPES[name].gpus for name in sorted(set(names))}),
            "ON_DEMAND_UNITS": str(settings.on_demand.units_per_instance),
            "MAX_UNITS": str(settings.compute.max_units),
            "MAX_ON_DEMAND_UNITS": str(settings.on_demand.max_units),
            "URGENCY": settings.on_demand.urgency,
            "PATIENCE_SECONDS": str(settings.on_demand.patience_seconds),
            "CALM_SECONDS": str(settings.on_demand.calm_seconds),
        },
    )
    return _listen(template, settings, function, data.notices, at_once=2)


def _function(
    template: Template,
    settings: Settings,
    title: str,
    code: Asset,
    timeout: int,
    statements: list[policies.Statement],
    environment: dict[str, Any],
) -> awslambda.Function:
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
    """Ten messages at a time, without waiting for ten; a message that fails comes back alone."""
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


def _rules(template: Template, settings: Settings, data: Data, worker: Worker, fleet: Fleet) -> list[events.Rule]:
    """What AWS tells of itself, and the minute. Spot and state events are account-wide; the Lambda knows ours."""
    fleet_arn = policies.arn("ec2", f"spot-fleet-request/${{{fleet.spot.title}}}")
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
        "FleetEvents": {
            "source": ["aws.ec2spotfleet"],
            "detail-type": ["EC2 Spot Fleet Instance Change", "EC2 Spot Fleet Error"],
            "resources": [fleet_arn],
        },
        "ClusterEvents": {
            "source": ["aws.ecs"],
            "detail-type": ["ECS Container Instance State Change"],
            "detail": {"clusterArn": [GetAtt(worker.cluster, "Arn")]},
        },
    }
    target = events.Target(Id="notices", Arn=GetAtt(data.notices, "Arn"))
    minute = events.Rule(
        "EveryMinute", ScheduleExpression="rate(1 minute)", State="ENABLED", Targets=[target], Tags=tags(settings)
    )
    rules = [
        events.Rule(title, EventPattern=pattern, State="ENABLED", Targets=[target], Tags=tags(settings))
        for title, pattern in patterns.items()
    ]
    return [template.add_resource(rule) for rule in [minute, *rules]]
