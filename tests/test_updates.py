import copy
import json
from functools import cache
from typing import get_args

import pytest

from judges.filled import settled
from judges.rules.stack import Stack
from judges.rules.upkeep import stateful
from judges.updates import lost, removed, replaced, stuck
from templates.settings import BadSettings, Section, Settings
from tests.stacks_make import GIVEN_VPC, IMAGE, TABLES, stack

MAIL = {"email": "gpu-team@example.com"}
BUDGET = {**MAIL, "monthly_budget_usd": 5}
ONE_TYPE = {"instance_types": ["g5.xlarge"]}

WEIGHED = {"compute": ONE_TYPE, "on_demand": ONE_TYPE}


def queue(**keys):
    return {"queues": [{"name": "default", **keys}]}


def attributes(**keys):
    return {"compute": {"attributes": keys}, "spot": {"allocation_strategy": "priceCapacityOptimized"}}


NOTHING, FLEET, TASKS = set(), {"the fleet"}, {"the tasks"}
CHANGES = {
    # key: settings before, settings after, what is made anew whichever way one goes
    "profile": ({}, {"profile": "groups"}, NOTHING),
    "network.vpc_id": ({}, {"network": GIVEN_VPC}, {"the fleet", "the network"}),
    "network.subnet_ids": ({"network": GIVEN_VPC}, {"network": {**GIVEN_VPC, "subnet_ids": ["subnet-33333333"]}}, FLEET),
    "network.cidr": ({}, {"network": {"cidr": "10.43.0.0/16"}}, {"the fleet", "the network"}),
    "network.zones": ({}, {"network": {"zones": 2}}, FLEET),
    "network.private": ({}, {"network": {"private": True}}, NOTHING),
    "compute.instance_types": ({}, {"compute": {"instance_types": ["g4dn.xlarge", "g5.xlarge"]}}, FLEET),
    "compute.attributes.gpu_names": (attributes(), attributes(gpu_names=["t4"]), FLEET),
    "compute.attributes.min_vcpus": (attributes(), attributes(min_vcpus=8), FLEET),
    "compute.attributes.max_vcpus": (attributes(), attributes(max_vcpus=16), FLEET),
    "compute.attributes.min_memory_mib": (attributes(), attributes(min_memory_mib=32768), FLEET),
    "compute.attributes.max_memory_mib": (attributes(), attributes(max_memory_mib=65536), FLEET),
    "compute.attributes.exclude": (attributes(), attributes(exclude=["p3.*"]), FLEET),
    "compute.weights": (WEIGHED, {**WEIGHED, "compute": {**ONE_TYPE, "weights": {"g5.xlarge": 3}}}, FLEET),
    "compute.max_units": ({}, {"compute": {"max_units": 10}}, NOTHING),
    "compute.root_volume_gib": ({}, {"compute": {"root_volume_gib": 100}}, FLEET),
    "spot.allocation_strategy": ({}, {"spot": {"allocation_strategy": "priceCapacityOptimized"}}, FLEET),
    "on_demand.instance_types": ({}, {"on_demand": ONE_TYPE}, NOTHING),
    "on_demand.max_units": ({}, {"on_demand": {"max_units": 2}}, NOTHING),
    "on_demand.warm_units": ({"on_demand": ONE_TYPE}, {"on_demand": {**ONE_TYPE, "warm_units": 1}}, NOTHING),
    "on_demand.urgency": (queue(max_wait_seconds=3600), {**queue(max_wait_seconds=3600), "on_demand": {"urgency": "deadline"}}, NOTHING),
    "on_demand.patience_seconds": ({}, {"on_demand": {"patience_seconds": 60}}, NOTHING),
    "on_demand.calm_seconds": ({}, {"on_demand": {"calm_seconds": 60}}, NOTHING),
    "queues.name": ({}, queue(name="work"), NOTHING),
    "queues.prefix": ({}, queue(prefix="in/"), NOTHING),
    "queues.placement": ({}, queue(placement="spot"), NOTHING),
    "queues.lease_seconds": ({}, queue(lease_seconds=90), TASKS),
    "queues.jobs_per_task": ({}, queue(jobs_per_task=5), NOTHING),
    "queues.max_tasks": ({}, queue(max_tasks=4), NOTHING),
    "queues.max_failures": ({}, queue(max_failures=5), TASKS),
    "queues.max_wait_seconds": ({}, queue(max_wait_seconds=3600), NOTHING),
    "worker.cpu": ({}, {"worker": {"cpu": 2048}}, TASKS),
    "worker.memory_mib": ({}, {"worker": {"memory_mib": 8192}}, TASKS),
    "worker.processor": ({}, {"worker": {"processor": "mine:work"}}, TASKS),
    "worker.command": ({}, {"worker": {"command": ["/app/sharpen", "{input}"]}}, TASKS),
    "worker.options": ({}, {"worker": {"options": {"quality": 90}}}, TASKS),
    "worker.job_seconds": ({}, {"worker": {"job_seconds": 60}}, TASKS),
    "worker.max_input_mib": ({}, {"worker": {"max_input_mib": 16}}, TASKS),
    "worker.max_output_mib": ({}, {"worker": {"max_output_mib": 16}}, TASKS),
    "worker.processors": ({}, {"worker": {"processors": 2}}, TASKS),
    "worker.batch": ({}, {"worker": {"batch": 8}}, TASKS),
    "worker.scratch": ({}, {"worker": {"scratch": "memory"}}, TASKS),
    "worker.stop_timeout_seconds": ({}, {"worker": {"stop_timeout_seconds": 60}}, {"the fleet", "the tasks"}),
    "worker.shared_files": ({}, {"worker": {"shared_files": True}}, TASKS),
    "image.apps": ({}, IMAGE, TASKS),
    "uploads.ingest": ({}, {"uploads": {"ingest": "direct"}}, NOTHING),
    "uploads.delete_after_success": ({}, {"uploads": {"delete_after_success": True}}, TASKS),
    "security.customer_key": ({}, {"security": {"customer_key": False}}, NOTHING),
    "security.session_manager": ({}, {"security": {"session_manager": True}}, NOTHING),
    "notify.email": ({"notify": BUDGET}, {"notify": {**BUDGET, "email": "others@example.com"}}, {"the mail subscription", "the budget"}),
    "notify.scaling": ({"notify": MAIL}, {"notify": {**MAIL, "scaling": True}}, NOTHING),
    "notify.on_demand_hours": ({}, {"notify": {"on_demand_hours": 12}}, NOTHING),
    "notify.monthly_budget_usd": ({"notify": BUDGET}, {"notify": {**BUDGET, "monthly_budget_usd": 9}}, NOTHING),
    "logs.retention_days": ({}, {"logs": {"retention_days": 7}}, NOTHING),
    "tags": ({}, {"tags": {"team": "imaging"}}, FLEET),
}  # fmt: skip
OF_ANOTHER_STACK = {"image.instance_types", "image.keep", "image.in_use_days", "batch.attempts"}
"""Settings that change nothing of the cluster."""
PARAMETERS = {"AmiId": FLEET, "AssetsBucket": FLEET, "WorkerImage": TASKS}
WORDS = {
    "AWS::Budgets::Budget": "the budget",
    "AWS::EC2::SpotFleet": "the fleet",
    "AWS::ECS::TaskDefinition": "the tasks",
    "AWS::SNS::Subscription": "the mail subscription",
    "AWS::Batch::ComputeEnvironment": "the environments",
    "AWS::ImageBuilder::Component": "the recipe",
    "AWS::ImageBuilder::ImageRecipe": "the recipe",
}
OTHERS = {
    "image": {
        "network.vpc_id": {"the network"},
        "network.cidr": {"the network"},
        "compute.root_volume_gib": {"the recipe"},
        "worker.memory_mib": {"the recipe"},
        "image.apps": {"the recipe"},
        "AssetsBucket": {"the recipe"},
        "WorkerImage": {"the recipe"},
    },
    "batch": {
        "network.vpc_id": {"the network"},
        "network.cidr": {"the network"},
        "tags": {"the environments"},
    },
}
"""Of the other stacks: the settings and parameters that make anything anew, and what."""
PAGE = """\
# What an update changes

Change spindrift.toml, run `python build.py` and deploy again: CloudFormation changes what it can in place and makes anew
what it cannot. This page is made from CloudFormation's own schemas by a test (`pytest tests/test_updates.py --update`).

Nothing that holds work or history is ever made anew, and none of it is taken away: buckets, the table, the queues of
jobs, the dead letters, the key and the shared files outlive every change here, and the stack itself. What stays behind
is no longer part of the stack: empty it, then delete it by hand.

- **the fleet**: it may be replaced. CloudFormation's reference says so for everything that the fleet launches from, its
  schema for less; we count on the worse. A new fleet starts and the old one ends with all its instances, which is an
  interruption of all of them: workers give their jobs back, others take them, and nothing is lost.
- **the tasks**: a new revision of the task definition. ECS stops workers and starts new ones; jobs are given back.
- **the network**: VPC, subnets and what is in them; with them the fleet.
- **the mail subscription**: AWS asks the new address to confirm. **the budget**: this month counts on.

The profile takes one kind of Spot capacity away and brings the other: for the jobs it is as a new fleet.
The On-Demand group is never replaced; its instances stay as they were launched until they leave.

`AmiId` names an SSM parameter. Every update of the stack reads it again, so that any of them takes a new ECS image when
AWS has published one. To decide that for yourself, set AmiId to the SSM parameter of one version of the image. A new
version of the agent is a new fleet too: user data has its hash. New code of the Lambdas changes nothing else.

| setting | made anew | taken away | stays behind |
|---|---|---|---|
"""

OTHERS_PAGE = """
## The stacks image and batch

What the same settings make anew there; everything else changes in place, and buckets, key and shared files stay as above.

- **the recipe**: the next image is baked from it. The images that there are stay as they are.
- **the environments**: jobs that run on Batch's old machines are tried again on the new ones. For any other change Batch
  renews its machines in place, each when its jobs are done. A queue that leaves the settings goes with all its jobs.
- **the jobs**: what changes them (the worker's image, its settings) is another revision of the job definition; the ones
  before it stay active. Jobs that were submitted before go on with the image and the settings of that time, so delete
  neither that image nor `worker.shared_files` while any wait. `python build.py down` deregisters every revision.

| stack | setting or parameter | made anew |
|---|---|---|
"""


@cache
def rendered(text):
    return stack(json.loads(text))


def cluster(table):
    return rendered(json.dumps(table))


def both_ways(before, after):
    before, after = cluster(before), cluster(after)
    return (before, after), (after, before)


def words(template, titles):
    kinds = {template["Resources"][title]["Type"] for title in titles}
    return {WORDS.get(kind, "the network" if kind.startswith("AWS::EC2::") else kind) for kind in kinds}


def keys(section=Settings, path=""):
    for name, field in section.model_fields.items():
        inner = [kind for kind in kinds(field.annotation) if isinstance(kind, type) and issubclass(kind, Section)]
        if inner:
            yield from keys(inner[0], f"{path}{name}.")
        else:
            yield f"{path}{name}"


def kinds(annotation):
    return [annotation, *(inner for part in get_args(annotation) for inner in kinds(part))]


def test_every_setting_and_every_parameter_says_what_its_change_makes_anew():
    assert list(CHANGES) == [key for key in keys() if key not in OF_ANOTHER_STACK]
    for table in TABLES.values():
        assert set(PARAMETERS) == set(cluster(table)["Parameters"])


@pytest.mark.parametrize("key", CHANGES)
def test_a_setting_makes_anew_what_it_says(key):
    before, after, anew = CHANGES[key]
    assert cluster(before) != cluster(after), "nothing changes at all"

    assert set().union(*(words(old, replaced(old, new)) for old, new in both_ways(before, after))) == anew


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_parameter_makes_anew_what_it_says(name):
    assert words(cluster({}), replaced(cluster({}), cluster({}), {name})) == PARAMETERS[name]


def test_a_new_agent_is_a_new_fleet():
    old = cluster({})

    assert words(old, replaced(old, stack({}, agent_sha256="f" * 64))) == FLEET


@pytest.mark.parametrize("base", TABLES)
def test_no_change_loses_work_or_stops_at_a_name(base):
    """From any settings to any others that differ in one key, there and back."""
    tried = 0
    for before, after, _ in CHANGES.values():
        try:
            ways = both_ways(over(TABLES[base], before), over(TABLES[base], after))
        except BadSettings:
            continue  # this key does not go with that base
        tried += 1
        for old, new in ways:
            assert lost(old, new) == set()
            assert stuck(old, new) == set()
    assert tried > len(CHANGES) / 2
    for parameter in PARAMETERS:
        assert lost(cluster(TABLES[base]), cluster(TABLES[base]), {parameter}) == set()


def over(base, changes):
    return {
        **base,
        **{key: {**base.get(key, {}), **value} if isinstance(value, dict) else value for key, value in changes.items()},
    }


@pytest.mark.parametrize("name", OTHERS)
def test_of_the_other_stacks_a_change_loses_no_more_and_makes_anew_what_is_said(name):
    anew = {}
    for key, (before, after, _) in CHANGES.items():
        sides = [stack(table, name=name) for table in (before, after)]
        for old, new in (sides, reversed(sides)):
            assert (lost(old, new), stuck(old, new)) == (set(), set())
            anew.setdefault(key, set()).update(words(old, replaced(old, new)))
    plain = stack({}, name=name)
    for parameter in plain["Parameters"]:
        assert lost(plain, plain, {parameter}) == set()
        anew[parameter] = words(plain, replaced(plain, plain, {parameter}))

    assert {key: found for key, found in anew.items() if found} == OTHERS[name]


def test_what_holds_work_is_known():
    held = stateful(Stack(settled(cluster(TABLES["everything"]), True)))

    assert held == {
        "UploadsBucket", "ResultsBucket", "JobsTable", "Key", "SharedFiles", "DeadLetter",
        "DefaultJobs", "UrgentJobs", "BigOnesJobs",
    }  # fmt: skip


# Awake


def changed(change):
    template = copy.deepcopy(cluster({}))
    change(template["Resources"])
    return template


@pytest.mark.parametrize(
    ("case", "change", "expected"),
    [
        ("a new name for a queue", lambda r: r["DefaultJobs"]["Properties"].update(QueueName="jobs"), {"DefaultJobs"}),
        ("another key for the table", lambda r: r["JobsTable"]["Properties"]["KeySchema"][0].update(AttributeName="id"), {"JobsTable"}),
        ("no results any more", lambda r: r.pop("ResultsBucket"), set()),
        ("tags on a bucket", lambda r: r["ResultsBucket"]["Properties"]["Tags"].append({"Key": "a", "Value": "b"}), set()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_loss_of_work_is_seen(case, change, expected):
    assert lost(cluster({}), changed(change)) == expected


def test_what_is_not_kept_is_lost_when_it_is_removed():
    old = changed(lambda resources: resources["ResultsBucket"].pop("DeletionPolicy"))

    assert lost(old, changed(lambda resources: resources.pop("ResultsBucket"))) == {"ResultsBucket"}


def test_what_refers_to_a_replaced_resource_is_replaced_where_it_cannot_change():
    anew = replaced(cluster({}), changed(lambda r: r["Vpc"]["Properties"].update(CidrBlock="10.43.0.0/16")))

    assert anew["Vpc"] == ["CidrBlock"]
    assert anew["Routes"] == ["VpcId"]
    assert anew["SpotFleet"] == ["SpotFleetRequestConfigData/LaunchTemplateConfigs"]
    assert "OnDemandGroup" not in anew


def test_a_service_that_is_replaced_under_its_name_is_stuck():
    new = changed(lambda resources: resources["DefaultService"]["Properties"].update(SchedulingStrategy="DAEMON"))

    assert stuck(cluster({}), new) == {"DefaultService"}


# The page


def test_the_page_says_so_too(golden):
    rows = [row(key, *both_ways(*CHANGES[key][:2]), anew=CHANGES[key][2]) for key in CHANGES]
    rows += [f"| parameter `{name}` | {', '.join(sorted(PARAMETERS[name]))} | | |" for name in PARAMETERS]

    others = [
        f"| `{name}` | `{key}` | {', '.join(anew)} |" for name, keys in OTHERS.items() for key, anew in keys.items()
    ]

    golden("../../docs/updates.md", "\n".join([PAGE + "\n".join(rows), OTHERS_PAGE + "\n".join(others), ""]))


def row(key, *ways, anew):
    gone = {title: stays for old, new in ways for title, stays in removed(old, new).items()}
    types = {
        old["Resources"][title]["Type"].removeprefix("AWS::")
        for old, new in ways
        for title, stays in removed(old, new).items()
        if not stays
    }
    kept = sorted(title for title, stays in gone.items() if stays)
    return f"| `{key}` | {', '.join(sorted(anew))} | {', '.join(sorted(types))} | {', '.join(kept)} |"
