"""Queues, topics, rules and alarms: who may write where, and whether anybody hears."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from judges.filled import reference
from judges.rules.stack import Objection, Rule, Stack, listed

TWO_WEEKS = 14 * 24 * 3600
FEW_RECEIVES = 100
"""SQS counts every receive, a release too: a queue of jobs with fewer loses jobs to interruptions."""
PROTOCOLS = {
    "application", "email", "email-json", "firehose", "http", "https", "lambda", "sms", "sqs",
}  # fmt: skip
"""SNS API reference, Subscribe."""
DETAIL_TYPES = {
    "aws.autoscaling": {
        "EC2 Instance Launch Successful", "EC2 Instance Launch Unsuccessful", "EC2 Instance Terminate Successful",
        "EC2 Instance Terminate Unsuccessful", "EC2 Instance-launch Lifecycle Action",
        "EC2 Instance-terminate Lifecycle Action",
    },
    "aws.ec2": {
        "EC2 Instance Rebalance Recommendation", "EC2 Instance State-change Notification",
        "EC2 Spot Instance Interruption Warning",
    },
    "aws.ec2spotfleet": {
        "EC2 Spot Fleet Error", "EC2 Spot Fleet Information", "EC2 Spot Fleet Instance Change",
        "EC2 Spot Fleet Spot Instance Request Change", "EC2 Spot Fleet State Change",
    },
    "aws.ecs": {
        "ECS Container Instance State Change", "ECS Deployment State Change", "ECS Service Action",
        "ECS Task State Change",
    },
}  # fmt: skip
"""EventBridge's words for what we may listen to; a pattern with another one matches nothing, silently."""
DIMENSIONS = {
    "AWS/AutoScaling": {"AutoScalingGroupName"},
    "AWS/DynamoDB": {"TableName", "Operation"},
    "AWS/EC2Spot": {"AvailabilityZone", "FleetRequestId", "InstanceType"},
    "AWS/ECS": {"ClusterName", "ServiceName"},
    "AWS/Events": {"RuleName"},
    "AWS/Lambda": {"FunctionName", "Resource"},
    "AWS/SNS": {"TopicName"},
    "AWS/SQS": {"QueueName"},
    "Spindrift": {"Stack"},
}
"""The dimensions under which a namespace publishes; an alarm on others has no data, silently."""


def queues_of_lambdas(stack: Stack) -> dict[str, str]:
    """Queue -> the function that reads it."""
    return {
        reference(properties.get("EventSourceArn")): reference(properties.get("FunctionName"))
        for _, properties in stack.of("Lambda::EventSourceMapping")
    }


def job_queues(stack: Stack) -> Iterator[tuple[str, dict[str, Any]]]:
    """The queues that workers read: they have a dead-letter queue and no function."""
    read = queues_of_lambdas(stack)
    return ((title, body) for title, body in stack.of("SQS::Queue") if "RedrivePolicy" in body and title not in read)


def messages_outlast_their_reader(stack: Stack) -> Iterator[Objection]:
    """A message that comes back while it is still handled is handled twice."""
    for queue, function in queues_of_lambdas(stack).items():
        if stack.kind(queue) != "SQS::Queue":
            continue
        hidden = stack.properties(queue).get("VisibilityTimeout", 30)
        timeout = stack.properties(function).get("Timeout", 3)
        if hidden < timeout:
            yield queue, f"VisibilityTimeout {hidden} is less than the Timeout {timeout} of {function}, which reads it"
        if "RedrivePolicy" not in stack.properties(queue):
            yield queue, f"no RedrivePolicy: what {function} cannot handle would come back until it expires"


def failures_come_back_alone(stack: Stack) -> Iterator[Objection]:
    """Without it, Lambda retries a whole batch for one message."""
    for title, properties in stack.of("Lambda::EventSourceMapping"):
        if "ReportBatchItemFailures" not in properties.get("FunctionResponseTypes", ()):
            yield title, "FunctionResponseTypes must have ReportBatchItemFailures"


def interruptions_do_not_count(stack: Stack) -> Iterator[Objection]:
    """The worker decides what is exhausted; SQS, which counts every receive, must not."""
    for title, properties in job_queues(stack):
        receives = properties["RedrivePolicy"].get("maxReceiveCount", 0)
        if int(receives) < FEW_RECEIVES:
            yield title, f"maxReceiveCount must be at least {FEW_RECEIVES} (a release is a receive too), got {receives}"


def dead_letters_are_kept(stack: Stack) -> Iterator[Objection]:
    """A message keeps its first date in the dead-letter queue: four days there may be none."""
    for _, properties in stack.of("SQS::Queue"):
        dead = reference(properties.get("RedrivePolicy", {}).get("deadLetterTargetArn"))
        kept = stack.properties(dead).get("MessageRetentionPeriod")
        if dead and kept != TWO_WEEKS:
            yield dead, f"MessageRetentionPeriod of a dead-letter queue must be {TWO_WEEKS}, got {kept}"


def writers(stack: Stack) -> Iterator[tuple[str, str, str]]:
    """(the resource that makes it write, the service that writes, the queue or topic it writes to)."""
    for title, properties in stack.of("SNS::Subscription"):
        if properties.get("Protocol") == "sqs":
            yield title, "sns.amazonaws.com", reference(properties.get("Endpoint"))
    for title, properties in stack.of("Events::Rule"):
        for target in properties.get("Targets", ()):
            yield title, "events.amazonaws.com", reference(target.get("Arn"))
    for title, properties in stack.of("S3::Bucket"):
        for said in properties.get("NotificationConfiguration", {}).get("QueueConfigurations", ()):
            yield title, "s3.amazonaws.com", reference(said.get("Queue"))
    for title, properties in stack.of("CloudWatch::Alarm"):
        for action in properties.get("AlarmActions", ()):
            yield title, "cloudwatch.amazonaws.com", reference(action)
    for title, properties in stack.of("Budgets::Budget"):
        for said in properties.get("NotificationsWithSubscribers", ()):
            for subscriber in said.get("Subscribers", ()):
                if subscriber.get("SubscriptionType") == "SNS":
                    yield title, "budgets.amazonaws.com", reference(subscriber.get("Address"))


def doors(stack: Stack) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Queue or topic with a policy -> service -> the statements that let it in."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for kind, key in (("SQS::QueuePolicy", "Queues"), ("SNS::TopicPolicy", "Topics")):
        for _, properties in stack.of(kind):
            for place in properties.get(key, ()):
                door = found.setdefault(reference(place), {})
                for statement in listed(properties.get("PolicyDocument", {}).get("Statement")):
                    principal = statement.get("Principal")
                    services = listed(principal.get("Service")) if isinstance(principal, dict) else []
                    for service in services if statement.get("Effect") == "Allow" else ():
                        door.setdefault(service, []).append(statement)
    return found


def writers_are_let_in(stack: Stack) -> Iterator[Objection]:
    """S3 refuses on deployment; SNS, EventBridge, CloudWatch and Budgets drop what they may not deliver, silently."""
    open_to = doors(stack)
    for title, service, place in writers(stack):
        kind = stack.kind(place)
        # A topic without a policy lets alarms of the account in, and neither rules nor budgets.
        needs = kind == "SQS::Queue" or (
            kind == "SNS::Topic" and (place in open_to or service != "cloudwatch.amazonaws.com")
        )
        if needs and service not in open_to.get(place, {}):
            yield place, f"its policy does not let {service} write, which {title} wants"


def doors_ask_whose(stack: Stack) -> Iterator[Objection]:
    """Without a condition on the source, the service writes for any account that asks it to.

    EventBridge names no source to a topic (its User Guide, "Using resource-based policies").
    """
    for place, services in doors(stack).items():
        for service, statements in services.items():
            if service == "events.amazonaws.com" and stack.kind(place) == "SNS::Topic":
                continue
            for statement in statements:
                keys = {key.lower() for test in statement.get("Condition", {}).values() for key in test}
                if not keys & {"aws:sourcearn", "aws:sourceaccount"}:
                    yield place, f"its policy lets {service} write without aws:SourceArn or aws:SourceAccount"


def keys_serve_writers(stack: Stack) -> Iterator[Objection]:
    """Who writes to what is encrypted must be able to use the key, or the message is dropped silently."""
    for title, service, place in writers(stack):
        key = reference(stack.properties(place).get("KmsMasterKeyId"))
        if stack.kind(key) != "KMS::Key":
            continue
        allowed = {
            action
            for statement in stack.properties(key).get("KeyPolicy", {}).get("Statement", ())
            if statement.get("Effect") == "Allow"
            and isinstance(statement.get("Principal"), dict)
            and service in listed(statement["Principal"].get("Service"))
            for action in listed(statement.get("Action"))
        }
        if "kms:Decrypt" not in allowed or not allowed & {"kms:GenerateDataKey", "kms:GenerateDataKey*"}:
            yield key, f"its policy does not let {service} use it for {place}, which {title} writes to"


def services_can_use_the_key(stack: Stack) -> Iterator[Objection]:
    """The AWS-managed keys' policies cannot be changed and let no service in."""
    for title, properties in stack.of("SQS::Queue", "SNS::Topic"):
        if str(stack.filled(properties.get("KmsMasterKeyId", ""))).startswith("alias/aws/"):
            yield title, "an AWS-managed key: S3, SNS, EventBridge and alarms could not write to it"


def queue_is_open_before_the_bucket_asks(stack: Stack) -> Iterator[Objection]:
    """S3 sends a test message when it is told to notify, and refuses when that fails."""
    policies = {
        reference(queue): title
        for title, properties in stack.of("SQS::QueuePolicy")
        for queue in properties.get("Queues", ())
    }
    for title, properties in stack.of("S3::Bucket"):
        first = listed(stack.resources[title].get("DependsOn"))
        for said in properties.get("NotificationConfiguration", {}).get("QueueConfigurations", ()):
            policy = policies.get(reference(said.get("Queue")))
            if policy not in first:
                yield title, f"DependsOn lacks {policy}: S3 tries the queue when the bucket is made"


def subscriptions_are_delivered(stack: Stack) -> Iterator[Objection]:
    """SNS refuses an unknown protocol on deployment; a wrong endpoint it takes."""
    for title, properties in stack.of("SNS::Subscription"):
        protocol, endpoint = properties.get("Protocol"), str(stack.filled(properties.get("Endpoint", "")))
        if protocol not in PROTOCOLS:
            yield title, f"Protocol {protocol!r} is none of {', '.join(sorted(PROTOCOLS))}"
        if (protocol == "sqs") != endpoint.startswith("arn:aws:sqs:") or (protocol == "email") != ("@" in endpoint):
            yield title, f"Protocol {protocol!r} does not go with the endpoint {endpoint}"


def events_have_their_names(stack: Stack) -> Iterator[Objection]:
    """A pattern with a name that AWS does not use matches nothing."""
    for title, properties in stack.of("Events::Rule"):
        pattern = properties.get("EventPattern", {})
        known = {name for source in pattern.get("source", ()) for name in DETAIL_TYPES.get(source, ())}
        for name in pattern.get("detail-type", ()):
            if name not in known:
                yield title, f"{', '.join(pattern.get('source', ()))} sends no {name!r}"


def alarms_can_ring(stack: Stack) -> Iterator[Objection]:
    """An alarm without data, without a reader or without a word on what to do is none."""
    for title, properties in stack.of("CloudWatch::Alarm"):
        if not properties.get("AlarmActions"):
            yield title, "no AlarmActions: nobody hears it"
        if not properties.get("AlarmDescription"):
            yield title, "no AlarmDescription: it must say what to do"
        if "TreatMissingData" not in properties:
            yield title, "no TreatMissingData: metrics of an idle queue or function stop, so it must be chosen"
        inner = [query.get("MetricStat", {}).get("Metric") for query in properties.get("Metrics", ())]
        metrics = [properties, *(metric for metric in inner if metric)]
        for metric in metrics:
            names = {dimension.get("Name") for dimension in metric.get("Dimensions", ())}
            space = metric.get("Namespace")
            if space in DIMENSIONS and not (names and names <= DIMENSIONS[space]):
                yield title, f"{space} has no metric by {sorted(names)}, only by {', '.join(sorted(DIMENSIONS[space]))}"
        sums = " ".join(str(query.get("Expression", "")) for query in properties.get("Metrics", ()))
        if sums.strip() and "FILL" not in sums and any(metric.get("Namespace") == "AWS/SQS" for metric in metrics):
            yield title, "metric math without FILL: a queue that is idle for six hours has no metrics, and the sum none"


RULES: tuple[Rule, ...] = (
    messages_outlast_their_reader,
    failures_come_back_alone,
    interruptions_do_not_count,
    dead_letters_are_kept,
    writers_are_let_in,
    doors_ask_whose,
    keys_serve_writers,
    services_can_use_the_key,
    queue_is_open_before_the_bucket_asks,
    subscriptions_are_delivered,
    events_have_their_names,
    alarms_can_ring,
)
