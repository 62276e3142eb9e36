"""What the roles of a stack are allowed, held against what they asked for: nothing is missing, and nothing is unused."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import pytest
from troposphere import encode_to_dict

from localcloud.laptop import Laptop
from templates import policies
from templates.settings import Settings
from templates.stacks import STACKS, rendered
from tests.stacks_make import EVERYTHING, IMAGE, assets

ACTORS = {
    "Ingest": "the ingest Lambda",
    "Worker": "a worker",
    "Execution": "ECS, which starts a worker",
    "Instance": "an instance: our agent and ECS's",
    "Capacity": "the capacity Lambda",
    "Market": "the market Lambda",
    "SpotFleet": "EC2, which keeps the Spot Fleet",
}
"""By the title of its role, less `Role`."""
OTHER_ACTORS = {
    "image": {
        "Build": "an instance on which an image is baked or tested",
        "Builder": "Image Builder, which hands images out",
        "CleanUp": "Image Builder, which removes old images",
    },
    "batch": {
        "Worker": "a worker",
        "Execution": "ECS, which starts a worker",
        "Instance": "an instance: ECS's agent",
    },
}
"""Of the other stacks, likewise."""


@dataclass(frozen=True, order=True)
class Grant:
    """One action that an actor may do on one resource, which goes by its title where the stack makes it."""

    actor: str
    action: str
    on: str


@dataclass(frozen=True)
class Answer:
    """What the local cloud said to an actor; `on` is an ARN."""

    actor: str
    action: str
    on: str
    allowed: bool


@dataclass(frozen=True)
class Unused:
    """Grants that no story uses, and why they are there all the same."""

    actors: tuple[str, ...]
    actions: tuple[str, ...]
    on: str
    why: str
    sometimes: bool = False
    """A story uses them if its timing wills it."""

    def grants(self) -> Iterator[Grant]:
        """What it speaks of."""
        return (Grant(actor, action, self.on) for actor in self.actors for action in self.actions)


Grants = Mapping[Grant, Collection[str]]
"""With the ARNs that IAM has for the resource, which may hold wildcards."""


def wrong(grants: Grants, answers: Iterable[Answer]) -> list[str]:
    """What was refused, and what was allowed by no statement of ours: one example for an actor and action."""
    found = {}
    for answer in answers:
        if not answer.allowed:
            found[answer.actor, answer.action, False] = f"was refused {answer.action} on {answer.on}"
        elif not any(_by(grants, answer)):
            told = f"did {answer.action} on {answer.on}, which its role does not allow"
            found[answer.actor, answer.action, True] = told
    return sorted(f"{actor} {told}" for (actor, _, _), told in found.items())


def unused(grants: Grants, answers: Iterable[Answer], reasons: Collection[Unused]) -> list[str]:
    """What is allowed, and neither used nor excused. An excuse for what is used, or is not allowed, is wrong as well."""
    used = {grant for answer in answers if answer.allowed for grant in _by(grants, answer)}
    excused = {grant for reason in reasons for grant in reason.grants()}
    found = [f"{_told(one)} is allowed, and never used" for one in grants.keys() - used - excused]
    never = {grant for reason in reasons if not reason.sometimes for grant in reason.grants()}
    found += [f"{_told(one)} has a reason for not being used, and is used" for one in never & used]
    found += [f"{_told(one)} has a reason for not being used, and is not allowed" for one in excused - grants.keys()]
    return sorted(found)


def _by(grants: Grants, answer: Answer) -> Iterator[Grant]:
    for grant, arns in grants.items():
        same = (grant.actor, grant.action) == (answer.actor, answer.action)
        if same and any(fnmatchcase(answer.on, arn) for arn in arns):
            yield grant


def _told(grant: Grant) -> str:
    return f"{grant.actor}: {grant.action} on {grant.on}"


OPTIONS: Mapping[str, Mapping[str, Any]] = {
    '`profile = "groups"`': {"profile": "groups"},
    '`on_demand.urgency = "deadline"`': {
        "on_demand": {"urgency": "deadline"},
        "queues": [{"name": "default", "max_wait_seconds": 600}],
    },
    '`uploads.ingest = "direct"`': {"uploads": {"ingest": "direct"}},
    "`uploads.delete_after_success`": {"uploads": {"delete_after_success": True}},
    "`worker.shared_files`": {"worker": {"shared_files": True}},
    "`security.session_manager`": {"security": {"session_manager": True}},
}
"""The settings that allow an actor more; a test finds any that is missing."""

DYNAMODB = (
    "kms:DescribeKey",
    "kms:Encrypt",
    "kms:GenerateDataKeyWithoutPlaintext",
    "kms:ReEncryptFrom",
    "kms:ReEncryptTo",
)
FOR_A_TABLE = (
    "DynamoDB asks for it in the caller's name when it makes or changes the keys that it keeps a table with; "
    "the local cloud plays reading them, kms:Decrypt"
)
OF_AWS = (
    "AmazonEC2SpotFleetTaggingRole is AWS's own policy and what EC2 wants of a Spot Fleet's role; "
    "{}, which the local cloud does not play as a call"
)
SPLIT = "no photograph of the story is so large that its job is split (test_examples.py)"
UNUSED = (
    Unused(("Capacity", "Ingest", "Market", "Worker"), DYNAMODB, "Key", FOR_A_TABLE),
    Unused(("Capacity", "Market"), ("kms:GenerateDataKey",), "Key", FOR_A_TABLE),
    Unused(
        ("Worker",),
        ("s3:ListBucket",),
        "UploadsBucket",
        "no call of ours: with it S3 says of an upload that is gone that it is gone, and not that it is forbidden",
    ),
    Unused(
        ("Worker",),
        ("s3:AbortMultipartUpload",),
        "ResultsBucket/*",
        "a large result that fails half-way is taken back; no photograph of the story is that large (test_transfer.py)",
    ),
    Unused(
        ("Worker",),
        ("ecs:DescribeTasks",),
        "task/Cluster/*",
        "a worker of the story seldom dies with a job in hand (test_worker.py)",
        sometimes=True,
    ),
    Unused(("Worker",), ("sqs:SendMessage",), "DefaultJobs", SPLIT),
    Unused(("Worker",), ("dynamodb:PutItem",), "JobsTable", SPLIT),
    Unused(("Worker",), ("s3:GetObject", "s3:DeleteObject"), "ResultsBucket/.parts/*", SPLIT),
    Unused(
        ("Worker",),
        ("s3:GetObject", "s3:DeleteObject"),
        "ResultsBucket/.checkpoints/*",
        "the photographs of the story take no time to speak of, and leave no checkpoint (test_examples.py)",
    ),
    Unused(
        ("Instance",),
        ("ecs:UpdateContainerInstancesState",),
        "container-instance/Cluster/*",
        "the ECS agent's own draining at a Spot notice; the local agent leaves it to ours, which is what is measured",
    ),
    Unused(
        ("Instance",),
        ("ecs:SubmitContainerStateChange",),
        "Cluster",
        "the ECS agent has it for a container that changes without its task; the local agent tells of tasks only",
    ),
    Unused(
        ("SpotFleet",),
        ("ec2:DescribeImages", "ec2:DescribeInstanceStatus", "ec2:DescribeSubnets"),
        "*",
        OF_AWS.format("EC2 looks at what it launches"),
    ),
    Unused(
        ("SpotFleet",),
        ("elasticloadbalancing:RegisterInstancesWithLoadBalancer",),
        "arn:aws:elasticloadbalancing:*:*:loadbalancer/*",
        OF_AWS.format("it can put instances behind a load balancer"),
    ),
    Unused(
        ("SpotFleet",),
        ("elasticloadbalancing:RegisterTargets",),
        "arn:aws:elasticloadbalancing:*:*:*/*",
        OF_AWS.format("it can put instances behind a load balancer"),
    ),
)
"""What the story of the defaults does not use (test_story.py)."""
SSM = "Session Manager's agent, which the local cloud does not have"
UNUSED_OPTIONS = (
    Unused(("Instance",), ("ssm:UpdateInstanceInformation",), "instance/*", SSM),
    Unused(
        ("Instance",),
        (
            "ssmmessages:CreateControlChannel",
            "ssmmessages:CreateDataChannel",
            "ssmmessages:OpenControlChannel",
            "ssmmessages:OpenDataChannel",
        ),
        "*",
        SSM,
    ),
)
"""And of what settings add, the story of all options (test_stacks.py)."""
UNUSED_BATCH = (
    *(reason for reason in UNUSED if reason.actions[0] in ("s3:ListBucket", "s3:AbortMultipartUpload")),
    Unused(
        ("Worker",),
        ("s3:GetObject", "s3:DeleteObject"),
        "ResultsBucket/.checkpoints/*",
        "the photographs of the story take no time to speak of, and leave no checkpoint (test_once.py)",
    ),
    Unused(
        ("Worker",),
        ("s3:ListBucket",),
        "ResultsBucket",
        "only a job that failed asks how often, and every photograph of this story is sound (test_once.py)",
    ),
    Unused(
        ("Instance",),
        ("ecs:UpdateContainerInstancesState",),
        "container-instance/*",
        "the ECS agent has it for draining itself at a Spot notice, which Batch does not turn on",
    ),
    Unused(
        ("Instance",),
        ("ecs:SubmitContainerStateChange",),
        "cluster/*",
        "the ECS agent has it for a container that changes without its task; the local agent tells of tasks only",
    ),
    Unused(
        ("Execution",),
        ("logs:CreateLogStream", "logs:PutLogEvents"),
        "WorkerLogs",
        "Batch does not say which of the two roles its log driver uses; the local cloud takes the instance's",
    ),
    *UNUSED_OPTIONS,
)
"""What the story of all options does not use on Batch (test_batch_local.py)."""

WIDE = {
    "UploadsBucket/*": "whoever uploads chooses the name",
    "ResultsBucket/*": "a result is named for its job",
    "ResultsBucket/.parts/*": "a part is named for its job",
    "ResultsBucket/.checkpoints/*": "a checkpoint is named for its job",
    "container-instance/Cluster/*": "AWS chooses the id when an instance joins; in this cluster only",
    "task/Cluster/*": "AWS chooses the id when a task starts; in this cluster only",
    "instance/*": "AWS chooses the id; what could do harm has a condition that holds it to this stack",
    "network-interface/*": "it does not exist before the launch that makes it",
    "volume/*": "it does not exist before the launch that makes it",
    "autoScalingGroup:*:autoScalingGroupName/OnDemandGroup": "the ARN has an id that only AWS knows",
    "autoScalingGroup:*:autoScalingGroupName/SpotGroup": "the ARN has an id that only AWS knows",
    "ResultsBucket/.manifests/*": "a manifest is named for what it says",
    "cluster/*": "Batch names the clusters that it makes, and says nowhere how",
    "container-instance/*": "AWS chooses the id when an instance joins, and Batch the cluster",
    "ecr:*:*:repository/*": "where the image lies is said at deployment, and may be another account or region",
}
"""Why a resource has a wildcard. A plain `*` is for actions that know no resource: parliament proves it of each."""


# What a template allows


@dataclass(frozen=True)
class Permission:
    """One statement of a role: resources by their titles, conditions as text, and the task that it is for."""

    actor: str
    actions: tuple[str, ...]
    on: tuple[str, ...]
    only_if: str
    task: str = ""


def permissions(table: Mapping[str, Any], name: str = "cluster") -> list[Permission]:
    """What settings come to in a template. A statement's task is what the function in policies.py that made it says of itself."""
    with pytest.MonkeyPatch.context() as patch:
        tasks = _overheard(patch)
        template = json.loads(rendered(STACKS[name](Settings.read(dict(table)), assets())))
    return [
        Permission(
            actor,
            tuple(_listed(statement["Action"])),
            tuple(sorted(named(one) for one in _listed(statement["Resource"]))),
            _conditions(statement.get("Condition", {})),
            tasks[json.dumps(statement, sort_keys=True)],
        )
        for actor, statement in statements(template)
    ]


def statements(template: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(actor, statement) of each role's own policies."""
    for title, role in roles(template):
        for policy in role.get("Policies", ()):
            for statement in policy["PolicyDocument"]["Statement"]:
                yield title.removesuffix("Role"), statement


def roles(template: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(title, properties) of the roles."""
    made = template["Resources"].items()
    return [(title, body["Properties"]) for title, body in made if body["Type"] == "AWS::IAM::Role"]


def named(resource: Any) -> str:
    """A resource of a policy as a person reads it: `{"Fn::GetAtt": ["JobsTable", "Arn"]}` is JobsTable."""
    if isinstance(resource, str):
        return resource
    ((function, said),) = resource.items()
    if function == "Fn::If":
        return named(said[1])
    if function == "Fn::GetAtt":
        return str(said[0])
    if function == "Ref":
        return "STACK" if said == "AWS::StackName" else str(said)
    text, own = said if isinstance(said, list) else (said, {})
    text = re.sub(r"^arn:\$\{AWS::Partition\}:(\w+:(\$\{AWS::Region\})?:(\$\{AWS::AccountId\})?:)?", "", text)
    text = re.sub(r"-[0-9a-f]{16}(?=\.)", "-HASH", text)  # of the agent that was built
    known = {"AWS::StackName": "STACK", "AWS::URLSuffix": "amazonaws.com"}

    def name(found: re.Match[str]) -> str:
        return named(own[found[1]]) if found[1] in own else known.get(found[1], found[1])

    return re.sub(r"\$\{(\w+|AWS::\w+)(?:\.Arn)?\}", name, text)


def _overheard(patch: pytest.MonkeyPatch) -> dict[str, str]:
    """The tasks by statement, filled while a template is made."""
    tasks: dict[str, str] = {}

    def heard(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            made = function(*arguments, **keywords)
            for statement in made if isinstance(made, list) else [made]:
                tasks[json.dumps(encode_to_dict(statement), sort_keys=True)] = _first_sentence(function)
            return made

        return call

    for name, function in inspect.getmembers(policies, inspect.isfunction):
        if name != "allow" and inspect.signature(function).return_annotation in ("Statement", "list[Statement]"):
            patch.setattr(policies, name, heard(function))
    return tasks


def _first_sentence(function: Callable[..., Any]) -> str:
    return re.split(r"[.:;] |\.$", " ".join(str(function.__doc__).split("\n\n")[0].split()))[0]


def _conditions(conditions: Mapping[str, Mapping[str, Any]]) -> str:
    def told(test: str, key: str, wanted: Any) -> str:
        if test == "Null":
            return f"{key} is given"
        each = "each of " if test.startswith("ForAllValues") else ""
        return f"{each}{key} is {' or '.join(named(one) for one in _listed(wanted))}"

    return "; ".join(told(test, key, wanted) for test, keys in conditions.items() for key, wanted in keys.items())


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


# The page


def page() -> str:
    """docs/permissions.md."""
    usual = permissions({})
    managed = [(role, named(arn)) for role, arn in _managed_policies()]
    added = [(option, one) for option, table in OPTIONS.items() for one in permissions(table) if one not in usual]
    return "\n".join(
        [
            INTRODUCTION,
            *_table("actor", "may", "by", "on", "only if"),
            *(_row(ACTORS[actor], *_cells(one)) for actor in ACTORS for one in usual if one.actor == actor),
            *(_row(ACTORS[actor], "what AWS's own policy says", f"`{policy}`", "", "") for actor, policy in managed),
            OPTIONAL,
            *_table("setting", "actor", "may", "by", "on", "only if"),
            *(_row(option, ACTORS[one.actor], *_cells(one)) for option, one in added),
            OTHERS,
            *_table("stack", "actor", "may", "by", "on", "only if"),
            *_others(),
            WILD,
            *_table("resource", "why"),
            *(_row(f"`{on}`", why) for on, why in WIDE.items()),
            NOT_USED,
            *_table("actor", "action", "on", "why"),
            *(
                _row(", ".join(ACTORS[actor] for actor in one.actors), _code(one.actions), f"`{one.on}`", one.why)
                for one in (*UNUSED, *UNUSED_OPTIONS)
            ),
            NOT_USED_BATCH,
            *_table("actor", "action", "on", "why"),
            *(
                _row(OTHER_ACTORS["batch"][one.actors[0]], _code(one.actions), f"`{one.on}`", one.why)
                for one in UNUSED_BATCH
            ),
            "",
        ]
    )


INTRODUCTION = """# What each actor may do

Every actor has a role of its own. This page is made from the templates by a test (`pytest tests/test_permissions.py
--update`): what an actor may do is the first sentence of the function in templates/policies.py that allows it.

It is held against what happens. The local cloud asks IAM at every call, and keeps a record of each answer. After the
story tests (`pytest -m story`), which deploy the template, work, lose instances, processes and Lambdas, and change the
stack in the midst of it, the record and the policies of the deployed roles must agree: nothing was refused, and
everything that is allowed was used on the resource that it names, but for the last table here.

Resources go by their titles in the template: `JobsTable` is the table of this stack, and no other.
"""
OPTIONAL = """
## What settings add

Held against the record of a stack with all of these at once (tests/test_stacks.py), but for the profile.
"""
OTHERS = """
## The stacks image and batch

Both with everything that settings can add. Of the stack `batch` all of it is held against the record of its story
(tests/test_batch_local.py), of the stack `image` all but what AWS's own policies say (tests/test_image_local.py): those
change with Image Builder, which is why they are there (docs/decisions/0030-an-image-of-our-own.md).
"""
WILD = """
## Why a resource has a wildcard

`*` alone is for actions that know no resource; of each, `python build.py check` proves it by parliament and the Service
Authorization Reference. Others:
"""
NOT_USED = """
## Allowed, and not used in the story tests
"""
NOT_USED_BATCH = """
Of the stack `batch`:
"""


def _others() -> Iterator[str]:
    for name, table in {"image": IMAGE, "batch": EVERYTHING}.items():
        actors = OTHER_ACTORS[name]
        yield from (_row(f"`{name}`", actors[one.actor], *_cells(one)) for one in permissions(table, name))
        for role, arn in _managed_policies(name):
            yield _row(f"`{name}`", actors[role], "what AWS's own policy says", f"`{named(arn)}`", "", "")


def _managed_policies(name: str = "cluster") -> Iterator[tuple[str, Any]]:
    template = json.loads(rendered(STACKS[name](Settings(), assets())))
    for title, role in roles(template):
        yield from ((title.removesuffix("Role"), arn) for arn in role.get("ManagedPolicyArns", ()))


def _cells(one: Permission) -> tuple[str, str, str, str]:
    return one.task[0].lower() + one.task[1:], _code(one.actions), _code(one.on), one.only_if


def _code(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _table(*heads: str) -> list[str]:
    return [_row(*heads), "|" + "---|" * len(heads)]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


# What a deployed stack allows, and what it asked for


def deployed_grants(
    cloud: Laptop, stack: str, template: Mapping[str, Any], managed: bool = True
) -> dict[Grant, set[str]]:
    """What the roles of a stack may do; with `managed` what AWS's own policies say, too."""
    grants: dict[Grant, set[str]] = {}
    for grant, arn in _deployed(cloud, stack, template, managed):
        grants.setdefault(grant, set()).add(arn)
    return grants


def _deployed(
    cloud: Laptop, stack: str, template: Mapping[str, Any], with_managed: bool
) -> Iterator[tuple[Grant, str]]:
    names, iam = _role_names(cloud, stack), cloud.client("iam")
    for title, role in roles(template):
        actor, name = title.removesuffix("Role"), names[title]
        for policy in role.get("Policies", ()):
            live = iam.get_role_policy(RoleName=name, PolicyName=policy["PolicyName"])["PolicyDocument"]["Statement"]
            for drawn, real in zip(policy["PolicyDocument"]["Statement"], live, strict=True):
                for one, arn in zip(_listed(drawn["Resource"]), _listed(real["Resource"]), strict=True):
                    yield from ((Grant(actor, action, named(one)), arn) for action in _listed(real["Action"]))
        attached = iam.list_attached_role_policies(RoleName=name)["AttachedPolicies"] if with_managed else []
        for managed in attached:
            version = iam.get_policy(PolicyArn=managed["PolicyArn"])["Policy"]["DefaultVersionId"]
            document = iam.get_policy_version(PolicyArn=managed["PolicyArn"], VersionId=version)["PolicyVersion"]
            for real in document["Document"]["Statement"]:
                for arn in _listed(real["Resource"]):
                    yield from ((Grant(actor, action, arn), arn) for action in _listed(real["Action"]))


def answers(cloud: Laptop, stack: str) -> list[Answer]:
    """What was said to the roles of the stack so far."""
    actors = {name: title.removesuffix("Role") for title, name in _role_names(cloud, stack).items()}
    lines = [json.loads(line) for line in (cloud.state / "iam.jsonl").read_text().splitlines()]
    return [
        Answer(actors[line["principal"]], line["action"], line["resource"], line["allowed"])
        for line in lines
        if line["principal"] in actors
    ]


def _role_names(cloud: Laptop, stack: str) -> dict[str, str]:
    pages = cloud.client("cloudformation").get_paginator("list_stack_resources").paginate(StackName=stack)
    made = (one for page in pages for one in page["StackResourceSummaries"])
    return {
        one["LogicalResourceId"]: one["PhysicalResourceId"] for one in made if one["ResourceType"] == "AWS::IAM::Role"
    }
