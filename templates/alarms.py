"""What people are told, and when: a topic, alarms that each say what to do, and a budget."""

from __future__ import annotations

from typing import Any

from troposphere import Equals, GetAtt, Join, Or, Ref, Sub, Template, awslambda, budgets, cloudwatch, events, sns

from templates import policies
from templates.cluster import service_name
from templates.data import Data
from templates.functions import Functions
from templates.machines import Machines
from templates.settings import STACK_TAG, Queue, Settings
from templates.tags import tags

NAMESPACE = "Spindrift"
"""Of the capacity Lambda's metrics; their one dimension is `Stack`."""
BUDGET_REGIONS = (
    "ap-northeast-1",
    "ap-northeast-2",
    "ap-south-1",
    "ap-southeast-1",
    "ap-southeast-2",
    "ca-central-1",
    "eu-central-1",
    "eu-west-1",
    "eu-west-2",
    "eu-west-3",
    "me-south-1",
    "sa-east-1",
    "us-east-1",
    "us-east-2",
    "us-west-1",
    "us-west-2",
)
"""Where CloudFormation knows AWS::Budgets::Budget, in the partition whose currency is the US dollar."""
OPERATORS = "OperatorsTopic"
MOST_IN_OR = 10
"""Conditions in one Fn::Or (CloudFormation, "Condition functions")."""


def add_topic(template: Template, settings: Settings, data: Data) -> sns.Topic:
    """The topic of the alarms, and the mail of whoever listens."""
    topic = template.add_resource(sns.Topic(OPERATORS, Tags=tags(settings)))
    if data.key:
        topic.KmsMasterKeyId = GetAtt(data.key, "Arn")
    statements = [
        _let_publish(
            topic,
            "cloudwatch.amazonaws.com",
            StringEquals={"aws:SourceAccount": Ref("AWS::AccountId")},
            ArnLike={"aws:SourceArn": policies.arn("cloudwatch", "alarm:${AWS::StackName}-*")},
        )
    ]
    if settings.notify.scaling:
        # EventBridge names no source to a topic: a condition would shut it out, without a word (EventBridge User
        # Guide, "Using resource-based policies", Amazon SNS permissions). Auto Scaling needs no statement: it comes
        # with its service-linked role, which may publish to every topic of the account.
        statements.append(_let_publish(topic, "events.amazonaws.com"))
    template.add_resource(
        sns.TopicPolicy(
            f"{OPERATORS}Policy",
            Topics=[Ref(topic)],
            PolicyDocument={"Version": "2012-10-17", "Statement": statements},
        )
    )
    if settings.notify.email:
        template.add_resource(
            sns.SubscriptionResource(
                "OperatorsMail", TopicArn=Ref(topic), Protocol="email", Endpoint=settings.notify.email
            )
        )
    return topic


def add(
    template: Template, settings: Settings, data: Data, functions: Functions, machines: Machines, operators: sns.Topic
) -> None:
    """All alarms, and with notify.scaling and notify.monthly_budget_usd the news and the budget.

    What docs/operations.md says of them is held to these by a test.
    """
    watch = _Watch(template, settings, operators)
    _dead_letters(watch, data, functions)
    _notices(watch, data)
    for function in (functions.capacity, functions.ingest, functions.market):
        if function:
            _function(watch, function)
    _capacity(watch, settings)
    for queue in settings.queues:
        _queue(watch, data, queue)
    if settings.notify.scaling and "FleetEvents" in machines.patterns:
        _tell_of_scaling(template, settings, machines.patterns["FleetEvents"], operators)
    if settings.notify.monthly_budget_usd:
        _budget(template, settings, settings.notify.monthly_budget_usd)


def telling(template: Template) -> list[str]:
    """The titles of the alarms that people hear of; a profile may have others, which steer."""
    told = Ref(OPERATORS).to_dict()
    return sorted(
        title
        for title, alarm in template.resources.items()
        if isinstance(alarm, cloudwatch.Alarm)
        and told in [action.to_dict() for action in alarm.properties.get("AlarmActions", [])]
    )


def _let_publish(topic: sns.Topic, service: str, **condition: Any) -> policies.Statement:
    statement = {
        "Effect": "Allow",
        "Principal": {"Service": service},
        "Action": "sns:Publish",
        "Resource": Ref(topic),
    }
    return {**statement, "Condition": condition} if condition else statement


class _Watch:
    """Adds alarms that tell the operators. What an alarm says may hold ${...} as in Fn::Sub."""

    def __init__(self, template: Template, settings: Settings, operators: sns.Topic) -> None:
        self._template = template
        self._tags = tags(settings)
        self._operators = operators

    def __call__(self, title: str, says: str, *, all_clear: bool = True, **properties: Any) -> None:
        """One alarm; `all_clear` is whether its end is news too."""
        tell = [Ref(self._operators)]
        chosen = {"TreatMissingData": "notBreaching", "ComparisonOperator": "GreaterThanThreshold", "Threshold": 0}
        self._template.add_resource(
            cloudwatch.Alarm(
                f"{title}Alarm",
                AlarmDescription=Sub(says),
                AlarmActions=tell,
                Tags=self._tags,
                **({"OKActions": tell} if all_clear else {}),
                **{**chosen, **properties},
            )
        )


def _dead_letters(watch: _Watch, data: Data, functions: Functions) -> None:
    """SQS reports a queue's depth as long as there is something in it: silence is an empty queue.

    Nobody wants a mail that says that a dead-letter queue was emptied: whoever did it knows.
    """
    told = {
        data.dead_letter.title: "Jobs failed for good, by their own fault. See which and why: "
        "aws sqs receive-message --queue-url ${DeadLetter} --message-attribute-names All. "
        "Mend the cause, upload them again, then empty the queue: aws sqs purge-queue --queue-url ${DeadLetter}",
        f"{data.notices.title}Dead": "The capacity Lambda could not handle something that it heard, five times over. "
        "See why: aws logs tail ${CapacityLogs} --since 1d. News so old is worth nothing, so empty the queue: "
        "aws sqs purge-queue --queue-url ${NoticesDead}",
    }
    if functions.ingest and data.upload_events:
        told[f"{data.upload_events.title}Dead"] = (
            "Uploads did not become jobs: the ingest Lambda failed on them, ten times over. See why: "
            "aws logs tail ${IngestLogs} --since 1d. Once it is mended, let it try again: "
            "aws sqs start-message-move-task --source-arn ${UploadEventsDead.Arn}"
        )
    for title, says in told.items():
        watch(
            title,
            says,
            all_clear=False,
            **_metric("AWS/SQS", "ApproximateNumberOfMessagesVisible", QueueName=GetAtt(title, "QueueName")),
            Statistic="Maximum",
            Period=60,
            EvaluationPeriods=1,
        )


def _notices(watch: _Watch, data: Data) -> None:
    watch(
        "NoticesAge",
        "Notices wait for more than a minute, and a Spot notice is worth two: work will be cut off. See whether the "
        "capacity Lambda fails or is slow: aws logs tail ${CapacityLogs} --since 15m",
        **_metric("AWS/SQS", "ApproximateAgeOfOldestMessage", QueueName=GetAtt(data.notices, "QueueName")),
        Statistic="Maximum",
        Period=60,
        EvaluationPeriods=3,
        DatapointsToAlarm=2,
        Threshold=60,
    )


def _function(watch: _Watch, function: awslambda.Function) -> None:
    """One error is no news: SQS brings the message again, to a Lambda that bears it."""
    name = function.title.removesuffix("Function")
    for metric, says in {
        "Errors": f"The {name.lower()} Lambda keeps failing. What it says: aws logs tail ${{{name}Logs}} --since 30m",
        "Throttles": f"AWS keeps turning away calls of the {name.lower()} Lambda (${{{function.title}}}): the "
        "account's concurrency is used up. See the limit: aws lambda get-account-settings. Find what else uses it, or "
        "have the quota raised",
    }.items():
        watch(
            f"{name}{metric}",
            says,
            **_metric("AWS/Lambda", metric, FunctionName=Ref(function)),
            Statistic="Sum",
            Period=300,
            EvaluationPeriods=3,
            DatapointsToAlarm=2,
        )


def _capacity(watch: _Watch, settings: Settings) -> None:
    watch(
        "CapacityPass",
        "No capacity pass has succeeded for five minutes: nothing grows, shrinks or makes up for Spot. See why: "
        "aws logs tail ${CapacityLogs} --since 15m. If it is silent, see whether it is called each minute: "
        "aws events describe-rule --name ${EveryMinute}",
        **_own("PassErrors"),
        # One good pass makes a minute good; a minute without any pass is as bad as one of failures.
        Statistic="Minimum",
        TreatMissingData="breaching",
        Period=60,
        EvaluationPeriods=5,
        # In a new stack the first pass takes a moment.
        WarmUpConfiguration=cloudwatch.WarmUpConfiguration(WarmUpPeriodDurationInMinutes=10),
    )
    watch(
        "Unfilled",
        "For 15 minutes fewer units have joined than the work needs. See why: aws logs tail ${CapacityLogs} "
        "--since 20m. Usually Spot is short (more instance types and zones help), an account quota is used up, or "
        "instances start and do not join: aws ecs list-container-instances --cluster ${Cluster}",
        Metrics=[
            _result("missing", "needed - spot - on_demand", "Units needed that have not joined"),
            _query("needed", 60, "Average", **_own("NeededUnits")),
            _query("spot", 60, "Average", **_own("JoinedSpotUnits")),
            _query("on_demand", 60, "Average", **_own("JoinedOnDemandUnits")),
        ],
        EvaluationPeriods=15,
    )
    hours = settings.notify.on_demand_hours
    watch(
        "OnDemandLong",
        f"On-Demand has run for {hours} hours without a break, at about three times the price of Spot. See why Spot "
        "does not do: aws logs tail ${CapacityLogs} --since 1h. More instance types and zones help; where it is meant "
        "so, raise notify.on_demand_hours",
        **_own("JoinedOnDemandUnits"),
        Statistic="Minimum",
        # An alarm may look back over a day at the most when its periods are shorter than an hour, over seven days when
        # not (API reference, PutMetricAlarm).
        Period=3600,
        EvaluationPeriods=hours,
    )


def _queue(watch: _Watch, data: Data, queue: Queue) -> None:
    """Nobody at work is wrong whatever the jobs are; how old a job may get, only its owner knows, and SQS does not
    count the age of what was received three times.
    """
    name = {"QueueName": GetAtt(data.jobs[queue.name], "QueueName")}
    watch(
        f"{queue.title}Stuck",
        f"Jobs wait in queue {queue.name}, and for half an hour nobody has worked on any. See what ECS says of the "
        f"workers: aws ecs describe-services --cluster ${{Cluster}} --services {service_name(queue)}, and what they "
        "say themselves: aws logs tail ${WorkerLogs} --since 1h",
        Metrics=[
            # SQS reports what is in flight only while something is.
            _result("stuck", "IF(waiting > 0 AND FILL(in_flight, 0) < 1, 1, 0)", "Jobs wait and nobody works"),
            _query("waiting", 300, "Minimum", **_metric("AWS/SQS", "ApproximateNumberOfMessagesVisible", **name)),
            _query("in_flight", 300, "Maximum", **_metric("AWS/SQS", "ApproximateNumberOfMessagesNotVisible", **name)),
        ],
        EvaluationPeriods=6,
    )


def _own(name: str) -> dict[str, Any]:
    return _metric(NAMESPACE, name, Stack=Ref("AWS::StackName"))


def _metric(namespace: str, name: str, **dimensions: Any) -> dict[str, Any]:
    return {
        "Namespace": namespace,
        "MetricName": name,
        "Dimensions": [cloudwatch.MetricDimension(Name=key, Value=value) for key, value in dimensions.items()],
    }


def _query(identity: str, period: int, statistic: str, **metric: Any) -> cloudwatch.MetricDataQuery:
    stat = cloudwatch.MetricStat(Metric=cloudwatch.Metric(**metric), Period=period, Stat=statistic)
    return cloudwatch.MetricDataQuery(Id=identity, MetricStat=stat, ReturnData=False)


def _result(identity: str, expression: str, label: str) -> cloudwatch.MetricDataQuery:
    return cloudwatch.MetricDataQuery(Id=identity, Expression=expression, Label=label, ReturnData=True)


def _tell_of_scaling(template: Template, settings: Settings, pattern: dict[str, Any], operators: sns.Topic) -> None:
    """A sentence for each instance of the Spot Fleet and each of its errors. (The group tells of its own.)

    Not with the event's description: it holds quotes, and EventBridge puts values into a sentence as they are
    (User Guide, "Amazon EventBridge input transformation").
    """
    sentence = "<kind> in stack ${AWS::StackName} at <time>: <what> <instance>"
    template.add_resource(
        events.Rule(
            "ScalingNews",
            EventPattern=pattern,
            State="ENABLED",
            Targets=[
                events.Target(
                    Id="operators",
                    Arn=Ref(operators),
                    InputTransformer=events.InputTransformer(
                        InputPathsMap={
                            "kind": "$.detail-type",
                            "time": "$.time",
                            "what": "$.detail.sub-type",
                            "instance": "$.detail.instance-id",
                        },
                        InputTemplate=Sub(f'"{sentence}"'),
                    ),
                )
            ],
            Tags=tags(settings),
        )
    )


def _budget(template: Template, settings: Settings, limit: int) -> None:
    """Mail at 80 % and 100 % of what this stack's tag has cost in a month, and when 100 % are to be expected.

    It has no name of its own: a change of its subscribers replaces it, and two budgets cannot have one name.
    """
    here = [Equals(Ref("AWS::Region"), region) for region in BUDGET_REGIONS]
    parts = [Or(*here[start : start + MOST_IN_OR]) for start in range(0, len(here), MOST_IN_OR)]
    template.add_condition("BudgetsAreHere", Or(*parts))
    mail = budgets.Subscriber(SubscriptionType="EMAIL", Address=settings.notify.email)
    template.add_resource(
        budgets.Budget(
            "Budget",
            Condition="BudgetsAreHere",
            Budget=budgets.BudgetData(
                BudgetType="COST",
                TimeUnit="MONTHLY",
                BudgetLimit=budgets.Spend(Amount=limit, Unit="USD"),
                CostFilters={"TagKeyValue": [Join("$", [f"user:{STACK_TAG}", Ref("AWS::StackName")])]},
            ),
            NotificationsWithSubscribers=[
                budgets.NotificationWithSubscribers(
                    Notification=budgets.Notification(
                        NotificationType=kind,
                        ComparisonOperator="GREATER_THAN",
                        Threshold=percent,
                        ThresholdType="PERCENTAGE",
                    ),
                    Subscribers=[mail],
                )
                for kind, percent in (("ACTUAL", 80), ("ACTUAL", 100), ("FORECASTED", 100))
            ],
            ResourceTags=[
                budgets.ResourceTag(Key=key, Value=value)
                for key, value in {STACK_TAG: Ref("AWS::StackName"), **settings.tags}.items()
            ],
        )
    )
