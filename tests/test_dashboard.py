import json
import re
from copy import deepcopy
from itertools import combinations
from pathlib import Path

import pytest
from metrics_make import TABLES, as_text, of_type, template, wrong

from capacity import metrics
from gpu_worker import metrics as workers

COLUMNS = 24
PATTERN = re.compile(r"\$\{([\w:.]+)\}")


def body_of(built):
    """The dashboard as the template has it, with `${...}` as in Fn::Sub."""
    return json.loads(as_text(built["Resources"]["Dashboard"]["Properties"]["DashboardBody"]))


def metrics_of(widget):
    """Metrics of a graph as CloudWatch reads them: namespace, name, dimension, value, ..., options."""
    for metric in widget["properties"].get("metrics", []):
        *path, options = metric if isinstance(metric[-1], dict) else [*metric, {}]
        yield path, options


def faults(built, body):
    """What is wrong with a dashboard, by CloudWatch User Guide, "Dashboard body structure and syntax"."""
    widgets = body["widgets"]
    found = [] if len(widgets) <= 500 else ["too many widgets"]
    for widget in widgets:
        found += wrong_place(widget)
        match widget["type"]:
            case "metric":
                found += wrong_graph(built, widget)
            case "alarm":
                known = {f"${{{title}.Arn}}" for title in of_type("AWS::CloudWatch::Alarm", built)}
                found += [f"no alarm {arn}" for arn in widget["properties"]["alarms"] if arn not in known]
                found += [] if 1 <= len(widget["properties"]["alarms"]) <= 100 else ["1 to 100 alarms"]
            case "log":
                found += [] if widget["properties"]["query"].startswith("SOURCE '") else ["a query of nothing"]
            case "text":
                found += [] if widget["properties"]["markdown"].strip() else ["an empty text"]
            case kind:
                found.append(f"no widget {kind}")
    found += [f"{name(a)} over {name(b)}" for a, b in combinations(widgets, 2) if overlap(a, b)]
    known = {f"${{{title}}}" for title in built["Resources"]}
    said = {f"${{{hit.partition('.')[0]}}}" for hit in PATTERN.findall(json.dumps(body)) if not hit.startswith("AWS::")}
    return found + [f"no {name}" for name in sorted(said - known)]


def name(widget):
    return widget["properties"].get("title", widget["type"])


def overlap(a, b):
    apart = (
        a["x"] + a["width"] <= b["x"] or b["x"] + b["width"] <= a["x"]
        or a["y"] + a["height"] <= b["y"] or b["y"] + b["height"] <= a["y"]
    )  # fmt: skip
    return not apart


def wrong_place(widget):
    fits = 0 <= widget["x"] and 1 <= widget["width"] and widget["x"] + widget["width"] <= COLUMNS
    return [] if fits and 1 <= widget["height"] <= 1000 and widget["y"] >= 0 else [f"{name(widget)} is off the grid"]


def wrong_graph(built, widget):
    found, ids, used = [], [], set()
    for path, options in metrics_of(widget):
        ids += [options["id"]] if "id" in options else []
        if "expression" in options:
            used |= set(re.findall(r"\b[a-z][a-z_0-9]*\b", options["expression"]))
        else:
            namespace, metric, *dimensions = path
            found += wrong(built, namespace, metric, dict(zip(dimensions[::2], dimensions[1::2], strict=True)))
    found += [f"{name(widget)}: two {identity}" for identity in {i for i in ids if ids.count(i) > 1}]
    found += [f"{name(widget)}: no {identity} to reckon with" for identity in sorted(used - set(ids))]
    found += [] if widget["properties"].get("region") else [f"{name(widget)} is of no region"]
    return found + ([] if widget["properties"].get("title") else ["a graph without a title"])


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_the_dashboard_shows_only_what_is_measured_and_fits_its_grid(table):
    built = template(**table)
    body = body_of(built)

    assert faults(built, body) == []
    assert len(json.dumps(body)) < 100_000


def graph(body, title):
    (found,) = [w for w in body["widgets"] if w["properties"].get("title") == title]
    return found


def metric_renamed(body):
    graph(body, "Units: needed, requested, joined")["properties"]["metrics"][0][1] = "UnitsNeeded"


def queue_unknown(body):
    graph(body, "Oldest job, in seconds")["properties"]["metrics"][0][3] = "${Jobs.QueueName}"


def queue_by_its_url(body):
    graph(body, "Oldest job, in seconds")["properties"]["metrics"][0][3] = "${DefaultJobs}"


def service_unknown(body):
    graph(body, "Tasks: GPUs taken and CPU used, in percent")["properties"]["metrics"][1][5] = (
        "${AWS::StackName}-workers"
    )


def worker_s_queue_unknown(body):
    graph(body, "How attempts ended, in five minutes")["properties"]["metrics"][0][5] = "DefaultJobs"


def worker_s_metric_without_its_queue(body):
    del graph(body, "How attempts ended, in five minutes")["properties"]["metrics"][0][4:6]


def dimension_missing(body):
    del graph(body, "Tasks: GPUs taken and CPU used, in percent")["properties"]["metrics"][1][2:4]


def expression_of_nothing(body):
    graph(body, "GPU-hours in each hour, by market")["properties"]["metrics"][0][0]["expression"] = "spots*2"


def two_alike(body):
    graph(body, "GPU-hours in each hour, by market")["properties"]["metrics"][3][-1]["id"] = "spot"


def one_over_the_other(body):
    body["widgets"][3]["x"] -= 1


def off_the_grid(body):
    body["widgets"][1]["width"] += 1


def alarm_unknown(body):
    graph(body, "Alarms")["properties"]["alarms"].append("${QuietAlarm.Arn}")


def misspelt_kind(body):
    body["widgets"][1]["type"] = "alarms"


def of_no_region(body):
    del graph(body, "Dead letters")["properties"]["region"]


@pytest.mark.parametrize(
    "fault, says",
    [
        (metric_renamed, "Spindrift has no UnitsNeeded by Stack"),
        (queue_unknown, "QueueName is no QueueName: ${Jobs.QueueName}"),
        (queue_by_its_url, "QueueName is no QueueName: ${DefaultJobs}"),
        (service_unknown, "ServiceName is no ServiceName: ${AWS::StackName}-workers"),
        (worker_s_queue_unknown, "Queue is no Queue: DefaultJobs"),
        (worker_s_metric_without_its_queue, "Spindrift has no JobsSucceeded by Stack"),
        (dimension_missing, "AWS/ECS has no CPUUtilization by ServiceName"),
        (expression_of_nothing, "GPU-hours in each hour, by market: no spots to reckon with"),
        (two_alike, "GPU-hours in each hour, by market: two spot"),
        (one_over_the_other, "Units: needed, requested, joined over Top-up, and units under notice"),
        (off_the_grid, "Alarms is off the grid"),
        (alarm_unknown, "no alarm ${QuietAlarm.Arn}"),
        (misspelt_kind, "no widget alarms"),
        (of_no_region, "Dead letters is of no region"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_fault_in_the_dashboard_is_caught(fault, says):
    built = template()
    body = deepcopy(body_of(built))
    fault(body)

    assert says in faults(built, body)


def shown(body):
    return {(path[0], path[1]) for w in body["widgets"] for path, _ in metrics_of(w) if path}


def test_it_shows_what_an_operator_asks_for():
    """Queues, oldest job, units by market, notices, latency, top-up, what failed, and all that workers tell."""
    own = {metric for namespace, metric in shown(body_of(template())) if namespace == "Spindrift"}

    assert own == {
        "NeededUnits", "RequestedSpotUnits", "RequestedOnDemandUnits", "JoinedSpotUnits", "JoinedOnDemandUnits",
        "TopUpUnits", "NoticedUnits", "Notices", "NoticeToDrainingMilliseconds", "PassErrors", *workers.Metric,
    }  # fmt: skip
    latency = graph(body_of(template()), "From notice to DRAINING, in milliseconds")
    assert [options["stat"] for _, options in metrics_of(latency)] == ["p50", "p99"]


def test_every_metric_is_explained():
    page = (Path(__file__).parent.parent / "docs/operations.md").read_text("utf-8")

    assert not [each for each in (*metrics.Metric, *workers.Metric) if f"`{each}`" not in page]


def test_every_queue_is_on_it():
    body = body_of(template(queues=[{"name": "default"}, {"name": "big-ones", "prefix": "big/"}]))

    for title in ("Oldest job, in seconds", "Jobs: waiting and in flight"):
        named = {path[3] for path, _ in metrics_of(graph(body, title))}
        assert named == {"${DefaultJobs.QueueName}", "${BigOnesJobs.QueueName}"}
    for title in (
        "How attempts ended, in five minutes",
        "Busy processors and GPUs of the workers, in percent",
        "Stages of a job, in milliseconds: half take less",
    ):
        assert {path[5] for path, _ in metrics_of(graph(body, title))} == {"default", "big-ones"}


def test_each_profile_shows_its_own_machines():
    fleet, groups = (shown(body_of(template(profile=profile))) for profile in ("fleet", "groups"))

    assert ("AWS/EC2Spot", "FulfilledCapacity") in fleet
    assert "AWS/EC2Spot" not in {namespace for namespace, _ in groups}
    assert graph(body_of(template(profile="groups")), "Spot group, in instances")
    assert ("AWS/AutoScaling", "GroupInServiceInstances") in fleet & groups


def test_the_warm_pool_is_on_it_where_there_is_one():
    warm = ("AWS/AutoScaling", "WarmPoolWarmedCapacity")

    assert warm in shown(body_of(template(on_demand={"instance_types": ["g4dn.xlarge"], "warm_units": 1})))
    assert warm not in shown(body_of(template()))


def test_every_alarm_that_people_hear_of_is_on_it():
    built = template(**TABLES["everything"])
    told = {
        f"${{{title}.Arn}}" for title, alarm in of_type("AWS::CloudWatch::Alarm", built).items()
        if {"Ref": "OperatorsTopic"} in alarm["AlarmActions"]
    }  # fmt: skip

    assert set(graph(body_of(built), "Alarms")["properties"]["alarms"]) == told


def test_gpu_hours_are_units_times_hours():
    widget = graph(body_of(template()), "GPU-hours in each hour, by market")
    (spot, *_) = [options for _, options in metrics_of(widget)]

    assert widget["properties"]["period"] == 3600
    assert (spot["expression"], spot["label"]) == ("spot*PERIOD(spot)/3600", "Spot")


def test_two_regions_do_not_share_one_dashboard():
    """PutDashboard: dashboards are global, and one overwrites the other of its name."""
    assert template()["Resources"]["Dashboard"]["Properties"]["DashboardName"] == {
        "Fn::Sub": "${AWS::StackName}-${AWS::Region}"
    }
