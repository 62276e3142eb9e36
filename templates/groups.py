"""Profile `groups`: a Spot group and an On-Demand group from one launch template, and the one that is worth it grows.

Alarms on the queues only announce; the capacity Lambda looks, and executes a scaling policy of one group. The services
scale by Application Auto Scaling, by the same alarms. See docs/decisions/0013-attributes-warm-pool-and-groups.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Any

from troposphere import GetAtt, Ref, Sub, Template, applicationautoscaling, autoscaling, cloudwatch, ec2, sns, sqs

from templates import machines, policies
from templates.assets import Assets
from templates.cluster import Worker, service_name
from templates.data import Data
from templates.instance_types import INSTANCE_TYPES
from templates.machines import Machines
from templates.network import Network
from templates.settings import Queue, Settings
from templates.tags import tags

GRACE_SECONDS = 300
"""How long nothing may have waited or been in flight before every instance leaves."""
NOTES = ("spindrift:bad", "spindrift:short-since", "spindrift:idle-since")
"""Tags of the Spot group in which passes of the capacity Lambda leave word for each other (lambdas/capacity)."""
MOST_STEPS = 20
"""Step adjustments in one scaling policy (quotas of EC2 Auto Scaling and of Application Auto Scaling)."""
MOST_POOLS = 20
"""The most that SpotInstancePools takes (API reference, InstancesDistribution)."""
STRATEGIES = {
    "diversified": "lowest-price",
    "lowestPrice": "lowest-price",
    "capacityOptimized": "capacity-optimized",
    "capacityOptimizedPrioritized": "capacity-optimized-prioritized",
    "priceCapacityOptimized": "price-capacity-optimized",
}
"""A group's words for a fleet's strategies; it spreads over pools by `lowest-price` with that many of them."""


def add(
    template: Template,
    settings: Settings,
    network: Network,
    data: Data,
    worker: Worker,
    assets: Assets,
    operators: sns.Topic,
) -> Machines:
    """The launch template, both groups with their policies, and the alarms by which groups and services scale."""
    launch = machines.launch_template(template, settings, network, data, worker, assets)
    spot = _spot_group(template, settings, network, launch, operators)
    on_demand = machines.on_demand_group(template, settings, network, launch, operators)
    alarms = [alarm for queue in settings.queues for alarm in _queue(template, settings, data, worker, queue)]
    _let_tell(template, data, alarms)
    return Machines(
        on_demand=on_demand,
        environment={
            "SPOT_GROUP": Ref(spot),
            # Spot is cheap: all that is missing at once. On-Demand is dear: an instance, and when it has had its time
            # and still something is missing, the next.
            "SPOT_GROW_POLICY": _grow(
                template, spot, _steps(autoscaling.StepAdjustments, settings.compute.max_units, each=1), warm_up=0
            ),
            "SPOT_SHRINK_POLICY": _shrink(template, spot),
            "ON_DEMAND_GROW_POLICY": _grow(
                template,
                on_demand,
                _steps(autoscaling.StepAdjustments, 1, each=1),
                warm_up=settings.on_demand.patience_seconds,
            ),
            "ON_DEMAND_SHRINK_POLICY": _shrink(template, on_demand),
            "GRACE_SECONDS": str(GRACE_SECONDS),
            **machines.environment(settings, on_demand),
        },
        statements=[
            policies.see_groups(),
            policies.execute_policies(spot, on_demand),
            policies.replace_instances(spot, on_demand),
            policies.note_on_group(spot, *NOTES),
            policies.read_pools(data.pools),
        ],
        patterns={},
        outputs={"SpotGroupName": ("The group of Spot instances", Ref(spot))},
        metrics={"spot_group": Ref(spot), "on_demand_group": Ref(on_demand)},
    )


def _spot_group(
    template: Template, settings: Settings, network: Network, launch: ec2.LaunchTemplate, operators: sns.Topic
) -> autoscaling.AutoScalingGroup:
    """Sized in units: an instance weighs its GPUs. With attributes EC2 takes no weights, and it is in instances."""
    strategy = settings.spot.allocation_strategy
    distribution = autoscaling.InstancesDistribution(
        OnDemandPercentageAboveBaseCapacity=0, SpotAllocationStrategy=STRATEGIES[strategy]
    )
    if wanted := settings.compute.attributes:
        required = autoscaling.InstanceRequirements.from_dict(None, machines.requirements(wanted))
        overrides = [autoscaling.LaunchTemplateOverrides(InstanceRequirements=required)]
        # Never used, but by default it is `prioritized`, which attributes do not go with.
        distribution.OnDemandAllocationStrategy = "lowest-price"
    else:
        overrides = [
            autoscaling.LaunchTemplateOverrides(InstanceType=name, WeightedCapacity=str(INSTANCE_TYPES[name].gpus))
            for name in settings.compute.instance_types
        ]
    if strategy == "diversified":
        distribution.SpotInstancePools = min(MOST_POOLS, len(settings.compute.instance_types))
    elif strategy == "lowestPrice":
        distribution.SpotInstancePools = 1
    return template.add_resource(
        autoscaling.AutoScalingGroup(
            "SpotGroup",
            MaxSize=str(settings.compute.max_units),
            MixedInstancesPolicy=autoscaling.MixedInstancesPolicy(
                LaunchTemplate=autoscaling.LaunchTemplate(
                    LaunchTemplateSpecification=machines.version_of(launch), Overrides=overrides
                ),
                InstancesDistribution=distribution,
            ),
            # A rebalance recommendation is often not followed by an interruption, and this would end the instance as
            # soon as another runs, whatever it works on.
            CapacityRebalance=False,
            **machines.group_properties(settings, network, operators),
        )
    )


def _grow(template: Template, group: autoscaling.AutoScalingGroup, steps: list[Any], warm_up: int) -> Ref:
    """The policy by which a group grows. The Lambda executes it with what its capacity in service lacks as MetricValue,
    and 0 as BreachThreshold. What was added less than `warm_up` seconds ago is not added again.
    """
    return Ref(
        template.add_resource(
            autoscaling.ScalingPolicy(
                f"{group.title}Grow",
                AutoScalingGroupName=Ref(group),
                PolicyType="StepScaling",
                AdjustmentType="ChangeInCapacity",
                StepAdjustments=steps,
                EstimatedInstanceWarmup=warm_up,
            )
        )
    )


def _shrink(template: Template, group: autoscaling.AutoScalingGroup) -> Ref:
    """The policy by which a group empties: all or nothing, for when nothing waits and nothing is in flight.

    So no instance is protected from scale-in: protection would hold this up as well, and the deletion of the stack.
    """
    return Ref(
        template.add_resource(
            autoscaling.ScalingPolicy(
                f"{group.title}Shrink",
                AutoScalingGroupName=Ref(group),
                PolicyType="SimpleScaling",
                AdjustmentType="PercentChangeInCapacity",
                ScalingAdjustment=-100,
                Cooldown="0",
            )
        )
    )


def _queue(
    template: Template, settings: Settings, data: Data, worker: Worker, queue: Queue
) -> Iterator[cloudwatch.Alarm]:
    """A queue's two alarms, and its service, which follows them.

    Each queue has its own: an alarm of metric math takes ten metrics (CloudWatch User Guide, "Limits that apply to
    alarms based on metric math expressions"), and ten queues have twenty. What holds for all, the Lambda looks up.
    """
    target = template.add_resource(
        applicationautoscaling.ScalableTarget(
            f"{queue.title}Scaling",
            ServiceNamespace="ecs",
            ScalableDimension="ecs:service:DesiredCount",
            ResourceId=Sub(f"service/${{{worker.cluster.title}}}/{service_name(queue)}"),
            MinCapacity=0,
            MaxCapacity=queue.max_tasks,
            Tags=tags(settings),
            # By title: services are made last (cluster.py).
            DependsOn=f"{queue.title}Service",
        )
    )
    steps = _steps(applicationautoscaling.StepAdjustment, queue.max_tasks, each=queue.jobs_per_task)
    none = applicationautoscaling.StepAdjustment(MetricIntervalUpperBound=0, ScalingAdjustment=0)
    says = "This is no fault, and nothing is to be done."
    yield _alarm(
        template,
        settings,
        data,
        queue,
        "JobsToDo",
        f"Jobs wait in queue {queue.name}: the capacity Lambda looks which group is worth it. {says}",
        # No jobs to take is no reason to look at those in flight: their workers stay until the other alarm.
        "IF(waiting > 0, waiting + FILL(in_flight, 0), 0)",
        _tasks(template, target, "ToWork", steps),
        ComparisonOperator="GreaterThanThreshold",
        EvaluationPeriods=1,
        TreatMissingData="notBreaching",
    )
    yield _alarm(
        template,
        settings,
        data,
        queue,
        "NoJobs",
        f"Nothing waits and nothing is in flight in queue {queue.name}: its workers stop, and once this holds for all "
        f"queues the instances leave. {says}",
        # SQS reports nothing of a queue that has been idle for six hours.
        "FILL(waiting, 0) + FILL(in_flight, 0)",
        _tasks(template, target, "ToNone", [none]),
        ComparisonOperator="LessThanOrEqualToThreshold",
        # More than one, because SQS tells late: until it does, FILL takes the newest minutes for idle ones.
        EvaluationPeriods=GRACE_SECONDS // 60,
        TreatMissingData="breaching",
    )


def _tasks(
    template: Template,
    target: applicationautoscaling.ScalableTarget,
    title: str,
    steps: list[applicationautoscaling.StepAdjustment],
) -> Ref:
    """How many tasks a service wants. A busy worker is protected from a smaller number until its job is done."""
    return Ref(
        template.add_resource(
            applicationautoscaling.ScalingPolicy(
                f"{target.title}{title}",
                PolicyName=f"{target.title}{title}",
                PolicyType="StepScaling",
                ScalingTargetId=Ref(target),
                StepScalingPolicyConfiguration=applicationautoscaling.StepScalingPolicyConfiguration(
                    AdjustmentType="ExactCapacity",
                    MetricAggregationType="Maximum",
                    Cooldown=60,
                    StepAdjustments=steps,
                ),
            )
        )
    )


def _alarm(
    template: Template,
    settings: Settings,
    data: Data,
    queue: Queue,
    title: str,
    says: str,
    expression: str,
    tasks: Ref,
    **properties: Any,
) -> cloudwatch.Alarm:
    """An alarm on what waits and what is in flight; it tells the capacity Lambda and sets the tasks."""
    jobs = data.jobs[queue.name]
    return template.add_resource(
        cloudwatch.Alarm(
            f"{queue.title}{title}Alarm",
            AlarmDescription=says,
            AlarmActions=[Ref(data.notices_topic), tasks],
            Metrics=[
                cloudwatch.MetricDataQuery(Id="jobs", Expression=expression, Label="Jobs", ReturnData=True),
                _count("waiting", "ApproximateNumberOfMessagesVisible", jobs),
                _count("in_flight", "ApproximateNumberOfMessagesNotVisible", jobs),
            ],
            Threshold=0,
            Tags=tags(settings),
            **properties,
        )
    )


def _count(identity: str, name: str, queue: sqs.Queue) -> cloudwatch.MetricDataQuery:
    dimension = cloudwatch.MetricDimension(Name="QueueName", Value=GetAtt(queue, "QueueName"))
    metric = cloudwatch.Metric(Namespace="AWS/SQS", MetricName=name, Dimensions=[dimension])
    return cloudwatch.MetricDataQuery(
        Id=identity, MetricStat=cloudwatch.MetricStat(Metric=metric, Period=60, Stat="Maximum"), ReturnData=False
    )


def _let_tell(template: Template, data: Data, alarms: list[cloudwatch.Alarm]) -> None:
    """The notices topic hears these alarms. Instances publish by what their role allows: within an account that does.

    It takes the place of the topic's default policy, under which any alarm of the account could speak.
    """
    template.add_resource(
        sns.TopicPolicy(
            "NoticesTopicPolicy",
            Topics=[Ref(data.notices_topic)],
            PolicyDocument={
                "Version": "2012-10-17",
                "Statement": [
                    {
                        "Effect": "Allow",
                        "Principal": {"Service": "cloudwatch.amazonaws.com"},
                        "Action": "sns:Publish",
                        "Resource": Ref(data.notices_topic),
                        "Condition": {
                            "ArnEquals": {"aws:SourceArn": [GetAtt(alarm, "Arn") for alarm in alarms]},
                            "StringEquals": {"aws:SourceAccount": Ref("AWS::AccountId")},
                        },
                    }
                ],
            },
        )
    )


def _steps(kind: Any, most: int, each: int) -> list[Any]:
    """One for each `each` begun, `most` at the most, as step adjustments above a threshold of 0.

    In more than MOST_STEPS steps they are rounded up, so that no work is left without.
    """
    places = min(most, MOST_STEPS)
    counts = [ceil(most * place / places) for place in range(1, places + 1)]
    # A step begins at its lower bound and ends before its upper one; jobs and units are whole.
    bounds = [0, *(count * each + 1 for count in counts[:-1])]
    ends: list[dict[str, int]] = [*({"MetricIntervalUpperBound": bound} for bound in bounds[1:]), {}]
    return [
        kind(MetricIntervalLowerBound=bound, ScalingAdjustment=count, **end)
        for bound, count, end in zip(bounds, counts, ends, strict=True)
    ]
