import json
import re
from copy import deepcopy
from pathlib import Path

import botocore.session
import pytest
from botocore import xform_name
from cfnlint.helpers import REGIONS
from cfnlint.schema import ResourceNotFoundError
from cfnlint.schema.manager import PROVIDER_SCHEMA_MANAGER
from metrics_make import TABLES, as_text, of_type, template, wrong

from capacity import metrics
from judges.cfn_lint import judge
from judges.filled import filled
from templates import alarms

DOCS = Path(__file__).parents[1] / "docs"
TOPIC = {"Ref": "OperatorsTopic"}
TOLD = {"email": "gpu-team@example.com"}
SESSION = botocore.session.get_session()
"""One for all: it keeps what it has read of AWS's services."""


def alarms_in(built):
    return of_type("AWS::CloudWatch::Alarm", built)


def telling(built):
    """The alarms that people hear of; a profile may have others that steer."""
    return {title: alarm for title, alarm in alarms_in(built).items() if TOPIC in alarm.get("AlarmActions", [])}


def watched(alarm):
    """The metrics of an alarm: namespace, name, dimensions as Fn::Sub would write them, period."""
    queries = [
        (query["MetricStat"]["Metric"], query["MetricStat"]["Period"])
        for query in alarm.get("Metrics", [])
        if "MetricStat" in query
    ]
    for metric, period in queries or [(alarm, alarm.get("Period"))]:
        dimensions = {d["Name"]: as_text(d["Value"]) for d in metric.get("Dimensions", [])}
        yield metric.get("Namespace"), metric.get("MetricName"), dimensions, period


def faults(built):
    """What is wrong with the alarms, by title."""
    found = {title: [] for title in alarms_in(built)}
    for title, alarm in alarms_in(built).items():
        found[title] += [] if alarm.get("AlarmActions") else ["nobody is told"]
        for namespace, name, dimensions, period in watched(alarm):
            found[title] += wrong(built, namespace, name, dimensions)
            # PutMetricAlarm: Period and EvaluationPeriods.
            most = 86_400 if period < 3600 else 604_800
            found[title] += [] if period * alarm["EvaluationPeriods"] <= most else ["looks back too far"]
        found[title] += [] if alarm.get("DatapointsToAlarm", 1) <= alarm["EvaluationPeriods"] else ["never rings"]
        found[title] += wrong_math(alarm.get("Metrics", []))
    for title, alarm in telling(built).items():
        says = filled(built, alarm.get("AlarmDescription", ""))
        found[title] += [] if len(says) <= 1024 else ["says too much"]
        found[title] += wrong_commands(says)
    return {title: what for title, what in found.items() if what}


def wrong_math(queries):
    if not queries:
        return []
    ids = [query["Id"] for query in queries]
    shown = [query for query in queries if query.get("ReturnData", True)]
    used = {word for query in queries for word in re.findall(r"\b[a-z][a-z_0-9]*\b", query.get("Expression", ""))}
    return [
        *([] if len(shown) == 1 else ["not one result"]),
        *(f"no {name} to reckon with" for name in sorted(used - set(ids))),
    ]


def wrong_commands(says):
    """What is wrong with the commands in an alarm's description; there must be one."""
    commands = re.findall(r"\baws ([a-z0-9-]+) ([a-z0-9-]+)((?: --[a-z-]+ (?:\S+?(?=[.,:]? |[.,:]?$)))*)", says)
    found = [] if commands else ["says nothing to do"]
    for service, command, options in commands:
        if (service, command) == ("logs", "tail"):  # the command line's own
            known = {"since", "follow", "filter-pattern", "format"}
        elif service not in SESSION.get_available_services():
            found.append(f"no aws {service}")
            continue
        else:
            model = SESSION.get_service_model(service)
            names = {xform_name(name, "-"): name for name in model.operation_names}
            if command not in names:
                found.append(f"no aws {service} {command}")
                continue
            known = {xform_name(name, "-") for name in model.operation_model(names[command]).input_shape.members}
        found += [f"{command} has no --{o}" for o in re.findall(r"--([a-z-]+)", options) if o not in known]
    return found


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_every_alarm_tells_somebody_what_to_do_about_something_that_is_measured(table):
    built = template(**table)

    assert len(telling(built)) >= 10
    assert faults(built) == {}


def renamed(alarm):
    alarm["MetricName"] = "ApproximateNumberOfMessages"


def of_no_queue(alarm):
    alarm["Dimensions"][0]["Value"] = {"Fn::GetAtt": ["DeadLetters", "QueueName"]}


def by_url(alarm):
    alarm["Dimensions"][0]["Value"] = {"Ref": "DeadLetter"}


def by_another_dimension(alarm):
    alarm["Dimensions"][0]["Name"] = "Queue"


def to_nobody(alarm):
    alarm["AlarmActions"] = []


def silent(alarm):
    alarm["AlarmDescription"] = "Something is wrong."


def misspelt_command(alarm):
    alarm["AlarmDescription"] = "Empty it: aws sqs purge --queue-url x"


def misspelt_option(alarm):
    alarm["AlarmDescription"] = "Empty it: aws sqs purge-queue --url x"


def long_winded(alarm):
    alarm["AlarmDescription"] = "Do it: aws sqs list-queues. " * 50


def too_far(alarm):
    alarm.update(Period=300, EvaluationPeriods=289)


def impossible(alarm):
    alarm.update(EvaluationPeriods=2, DatapointsToAlarm=3)


@pytest.mark.parametrize(
    "fault, says",
    [
        (renamed, "AWS/SQS has no ApproximateNumberOfMessages by QueueName"),
        (of_no_queue, "QueueName is no QueueName: ${DeadLetters.QueueName}"),
        (by_url, "QueueName is no QueueName: ${DeadLetter}"),
        (by_another_dimension, "AWS/SQS has no ApproximateNumberOfMessagesVisible by Queue"),
        (to_nobody, "nobody is told"),
        (silent, "says nothing to do"),
        (misspelt_command, "no aws sqs purge"),
        (misspelt_option, "purge-queue has no --url"),
        (long_winded, "says too much"),
        (too_far, "looks back too far"),
        (impossible, "never rings"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_fault_in_an_alarm_is_caught(fault, says):
    built = template()
    fault(built["Resources"]["DeadLetterAlarm"]["Properties"])

    found = faults(built)

    assert list(found) == ["DeadLetterAlarm"]
    assert says in found["DeadLetterAlarm"]


def test_a_fault_in_metric_math_is_caught():
    built = template()
    unfilled = built["Resources"]["UnfilledAlarm"]["Properties"]
    broken = deepcopy(unfilled["Metrics"])
    broken[0]["Expression"] = "needed - joined"
    broken[1]["ReturnData"] = True
    broken[2]["MetricStat"]["Metric"]["MetricName"] = "SpotUnitsJoined"
    unfilled["Metrics"] = broken

    assert faults(built)["UnfilledAlarm"] == [
        "Spindrift has no SpotUnitsJoined by Stack", "not one result", "no joined to reckon with",
    ]  # fmt: skip


def test_the_metrics_are_those_of_the_capacity_lambda():
    assert alarms.NAMESPACE == metrics.NAMESPACE


def test_each_queue_of_each_kind_is_watched():
    built = template(queues=[{"name": "default"}, {"name": "big-ones", "prefix": "big/"}])
    queues = {d["QueueName"] for a in telling(built).values() for _, _, d, _ in watched(a) if "QueueName" in d}

    assert queues == {
        "${DefaultJobs.QueueName}", "${BigOnesJobs.QueueName}", "${DeadLetter.QueueName}", "${Notices.QueueName}",
        "${NoticesDead.QueueName}", "${UploadEventsDead.QueueName}",
    }  # fmt: skip


def test_without_the_ingest_lambda_there_is_no_alarm_about_it():
    titles = telling(template(uploads={"ingest": "direct"}))

    assert {"CapacityErrorsAlarm", "CapacityThrottlesAlarm"} <= titles.keys()
    assert not {"IngestErrorsAlarm", "IngestThrottlesAlarm", "UploadEventsDeadAlarm"} & titles.keys()


def test_silence_of_the_brain_is_an_alarm_but_not_while_its_stack_is_young():
    alarm = alarms_in(template())["CapacityPassAlarm"]

    assert alarm["TreatMissingData"] == "breaching"
    assert alarm["Period"] * alarm["EvaluationPeriods"] == 300
    assert alarm["WarmUpConfiguration"]["WarmUpPeriodDurationInMinutes"] > 5
    others = [a["TreatMissingData"] for title, a in telling(template()).items() if title != "CapacityPassAlarm"]
    assert set(others) == {"notBreaching"}  # an idle stack is silent, and that is well


@pytest.mark.parametrize("hours", [1, 6, 24])
def test_on_demand_may_run_as_long_as_was_chosen(hours):
    built = template(notify={"on_demand_hours": hours})
    alarm = alarms_in(built)["OnDemandLongAlarm"]

    assert alarm["Period"] * alarm["EvaluationPeriods"] == hours * 3600
    assert (alarm["Statistic"], alarm["ComparisonOperator"], alarm["Threshold"]) == (
        "Minimum",
        "GreaterThanThreshold",
        0,
    )
    assert f"for {hours} hours" in filled(built, alarm["AlarmDescription"])
    assert faults(built) == {}


def test_nobody_is_told_that_a_dead_letter_queue_was_emptied():
    quiet = {title for title, alarm in telling(template()).items() if "OKActions" not in alarm}

    assert quiet == {"DeadLetterAlarm", "NoticesDeadAlarm", "UploadEventsDeadAlarm"}


def test_the_page_about_alarms_names_them_all_and_no_others():
    page = (DOCS / "operations.md").read_text("utf-8")

    assert set(re.findall(r"^\| `(\w+Alarm)` \|", page, re.MULTILINE)) == telling(template()).keys()


# The topic


def statements(built, title="OperatorsTopicPolicy"):
    return {
        statement["Principal"]["Service"]: statement
        for statement in built["Resources"][title]["Properties"]["PolicyDocument"]["Statement"]
    }


def test_only_our_alarms_may_publish():
    built = template()
    (said,) = statements(built).items()

    assert said[0] == "cloudwatch.amazonaws.com"
    assert filled(built, said[1]["Condition"]) == {
        "StringEquals": {"aws:SourceAccount": "111122223333"},
        "ArnLike": {"aws:SourceArn": "arn:aws:cloudwatch:eu-west-1:111122223333:alarm:spindrift-*"},
    }
    assert all("AlarmName" not in alarm for alarm in telling(built).values())  # so their names begin with the stack's


def test_eventbridge_may_publish_without_a_condition_and_only_when_there_is_news():
    """It names no source to SNS: with a condition it would be refused, and nobody would see."""
    said = statements(template(notify={**TOLD, "scaling": True}))["events.amazonaws.com"]

    assert (said["Action"], said["Resource"]) == ("sns:Publish", TOPIC)
    assert "Condition" not in said
    assert "events.amazonaws.com" not in statements(template(notify=TOLD))


def test_alarms_go_to_the_address():
    built = template(notify=TOLD)

    (mail,) = [s for s in of_type("AWS::SNS::Subscription", built).values() if s["Protocol"] == "email"]
    assert (mail["TopicArn"], mail["Endpoint"]) == (TOPIC, "gpu-team@example.com")
    assert not [s for s in of_type("AWS::SNS::Subscription", template()).values() if s["Protocol"] == "email"]


def key_statements(built):
    return built["Resources"]["Key"]["Properties"]["KeyPolicy"]["Statement"]


def test_the_topic_is_encrypted_with_the_key_and_whoever_publishes_may_use_it():
    """SNS Developer Guide, "Managing Amazon SNS encryption keys": Auto Scaling needs its role in the key's policy."""
    built = template(notify={**TOLD, "scaling": True})
    services = [s for statement in key_statements(built) for s in statement["Principal"].get("Service", [])]
    (role,) = [s for s in key_statements(built) if "aws:PrincipalArn" in json.dumps(s)]

    assert built["Resources"]["OperatorsTopic"]["Properties"]["KmsMasterKeyId"] == {"Fn::GetAtt": ["Key", "Arn"]}
    assert {"cloudwatch.amazonaws.com", "events.amazonaws.com"} <= set(services)
    assert filled(built, role["Condition"]["ArnEquals"]) == {
        "aws:PrincipalArn": "arn:aws:iam::111122223333:role/aws-service-role/autoscaling.amazonaws.com/AWSServiceRoleForAutoScaling"
    }
    assert role["Action"] == ["kms:Decrypt", "kms:GenerateDataKey"]
    assert "aws:PrincipalArn" not in json.dumps(key_statements(template(notify=TOLD)))


def test_without_a_key_of_our_own_the_topic_has_none():
    """CloudWatch and EventBridge may not use the key that AWS manages for SNS: they would be refused in silence."""
    assert "KmsMasterKeyId" not in template(**TABLES["no key"])["Resources"]["OperatorsTopic"]["Properties"]


# News of scaling


def news(sample):
    """What EventBridge makes of an event: paths that are not there are left out, and nothing is escaped."""
    built = template(notify={**TOLD, "scaling": True})
    event = json.loads((DOCS / "events" / f"eventbridge-{sample}.json").read_text("utf-8"))
    (target,) = built["Resources"]["ScalingNews"]["Properties"]["Targets"]
    said = filled(built, target["InputTransformer"]["InputTemplate"])
    for name, path in target["InputTransformer"]["InputPathsMap"].items():
        value = event
        for part in path.removeprefix("$.").split("."):
            value = value.get(part, "")
        said = said.replace(f"<{name}>", value)
    return json.loads(said)


def test_an_instance_that_starts_is_told_in_a_sentence():
    assert news("spot-fleet-instance-change") == (
        "EC2 Spot Fleet Instance Change in stack spindrift at 2024-05-01T12:00:00Z: launched i-0123456789abcdef0"
    )


def test_an_error_of_the_fleet_is_told_in_a_sentence():
    assert news("spot-fleet-error").strip() == (
        "EC2 Spot Fleet Error in stack spindrift at 2024-05-01T12:00:00Z: spotInstanceCountLimitExceeded"
    )


def test_news_is_of_our_fleet_and_only_when_asked_for():
    pattern = template(notify={**TOLD, "scaling": True})["Resources"]["ScalingNews"]["Properties"]["EventPattern"]

    assert pattern["detail-type"] == ["EC2 Spot Fleet Instance Change", "EC2 Spot Fleet Error"]
    assert "${SpotFleet}" in json.dumps(pattern["resources"])
    assert "ScalingNews" not in template(notify=TOLD)["Resources"]


# The budget


def test_the_budget_counts_this_stack_and_warns_before_and_when_it_is_spent():
    built = template(notify={**TOLD, "monthly_budget_usd": 500}, tags={"team": "imaging"})
    budget = built["Resources"]["Budget"]["Properties"]

    assert budget["Budget"]["BudgetLimit"] == {"Amount": 500, "Unit": "USD"}
    assert filled(built, budget["Budget"]["CostFilters"]) == {"TagKeyValue": ["user:spindrift:stack$spindrift"]}
    warned = [
        (n["Notification"]["NotificationType"], n["Notification"]["Threshold"], n["Subscribers"][0]["Address"])
        for n in budget["NotificationsWithSubscribers"]
    ]
    assert warned == [
        (kind, percent, TOLD["email"]) for kind, percent in (("ACTUAL", 80), ("ACTUAL", 100), ("FORECASTED", 100))
    ]
    assert "BudgetName" not in budget["Budget"]  # a new subscriber replaces it: the old one has the name still
    assert {tag["Key"] for tag in budget["ResourceTags"]} == {"spindrift:stack", "team"}
    assert "Budget" not in template(notify=TOLD)["Resources"]


def test_the_budget_is_made_where_cloudformation_knows_budgets_and_counts_dollars():
    def knows(region):
        try:
            return bool(PROVIDER_SCHEMA_MANAGER.get_resource_schema(region, "AWS::Budgets::Budget"))
        except ResourceNotFoundError:
            return False

    commercial = [r for r in REGIONS if not r.startswith(("cn-", "us-gov-", "eusc-")) and "-iso" not in r]

    assert set(alarms.BUDGET_REGIONS) == {region for region in commercial if knows(region)}


def test_the_condition_of_the_budget_is_true_in_its_regions_and_no_others():
    conditions = template(notify={**TOLD, "monthly_budget_usd": 500})["Conditions"]

    def holds(condition, region):
        ((function, said),) = condition.items()
        if function == "Fn::Or":
            assert 2 <= len(said) <= alarms.MOST_IN_OR
            return any(holds(inner, region) for inner in said)
        assert function == "Fn::Equals"
        return said == [{"Ref": "AWS::Region"}, region]

    assert [r for r in sorted(REGIONS) if holds(conditions["BudgetsAreHere"], r)] == sorted(alarms.BUDGET_REGIONS)


# By other judges


def test_cfn_lint_would_find_a_budget_in_a_region_that_knows_none():
    built = template(notify={**TOLD, "monthly_budget_usd": 500})
    del built["Resources"]["Budget"]["Condition"]

    assert any("Resources/Budget" in f.where and "E3006" in f.what for f in judge({"cluster": built}))
