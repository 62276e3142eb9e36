"""What outlives the stack, what a second stack needs, and what an operator reads."""

from __future__ import annotations

from collections.abc import Iterator

from judges.filled import reference
from judges.rules.messages import job_queues
from judges.rules.stack import Objection, Rule, Stack

STATEFUL = {"DynamoDB::Table", "EFS::FileSystem", "KMS::Key", "S3::Bucket"}
"""Types that hold work or history, or the key to it."""
KNOWLEDGE = {"PoolsTable"}
"""Titles of what is worth nothing without the stack."""
KEPT = {"Retain", "RetainExceptOnCreate"}


def stateful(stack: Stack) -> set[str]:
    """Titles of what must survive: by type, and the queues that hold jobs, finished for good or not."""
    queues = dict(job_queues(stack))
    dead = {reference(body["RedrivePolicy"].get("deadLetterTargetArn")) for body in queues.values()}
    held = {title for title in stack.resources if stack.kind(title) in STATEFUL} - KNOWLEDGE
    return held | set(queues) | dead


def work_is_kept(stack: Stack) -> Iterator[Objection]:
    """CloudFormation deletes by default, when the stack goes and when it replaces."""
    for title in sorted(stateful(stack)):
        body = stack.resources.get(title, {})
        if body.get("DeletionPolicy") not in KEPT:
            yield title, f"DeletionPolicy must be Retain, got {body.get('DeletionPolicy')}: it holds work or history"
        if body.get("UpdateReplacePolicy") != "Retain":
            yield title, f"UpdateReplacePolicy must be Retain, got {body.get('UpdateReplacePolicy')}"


def logs_end(stack: Stack) -> Iterator[Objection]:
    """A group without retention is kept, and paid, for ever; one that Lambda makes itself has none and stays."""
    for title, properties in stack.of("Logs::LogGroup"):
        if "RetentionInDays" not in properties:
            yield title, "no RetentionInDays: kept for ever"
    for title, properties in stack.of("Lambda::Function"):
        group = reference(properties.get("LoggingConfig", {}).get("LogGroup"))
        if stack.kind(group) != "Logs::LogGroup":
            yield title, "LoggingConfig names no log group of this stack: Lambda would make one that stays"


def outputs_are_exported(stack: Stack) -> Iterator[Objection]:
    """Under the stack's name, so that two stacks in one region do not collide."""
    for title, output in stack.template.get("Outputs", {}).items():
        wanted = {"Fn::Sub": f"${{AWS::StackName}}-{title}"}
        if output.get("Export", {}).get("Name") != wanted:
            yield title, f"must be exported as {wanted['Fn::Sub']}, got {output.get('Export')}"


def people_can_read_it(stack: Stack) -> Iterator[Objection]:
    """Each parameter and output says what it is."""
    for part in ("Parameters", "Outputs"):
        for title, body in stack.template.get(part, {}).items():
            if not body.get("Description"):
                yield title, "no Description"


RULES: tuple[Rule, ...] = (work_is_kept, logs_end, outputs_are_exported, people_can_read_it)
