"""What AWS Batch knows: definitions, queues, environments and jobs; and whether a job that failed is tried again.

Times of jobs are milliseconds since the epoch, as Batch gives them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from localcloud.launch import Blueprint, Subnet
from localcloud.world import ACCOUNT, REGION

WAITING = ("SUBMITTED", "PENDING", "RUNNABLE")
AT_WORK = ("STARTING", "RUNNING")
ENDED = ("SUCCEEDED", "FAILED")
STATUSES = (*WAITING, *AT_WORK, *ENDED)


def arn(kind: str, name: str) -> str:
    """The ARN of something of Batch."""
    return f"arn:aws:batch:{REGION}:{ACCOUNT}:{kind}/{name}"


@dataclass
class Definition:
    """One revision of a job definition."""

    arn: str
    asked: Mapping[str, Any]
    """As RegisterJobDefinition got it."""
    task_definition: str
    """Of ECS."""
    leaves_earlier: bool = False
    """Whether CloudFormation, which registered it in an update, left the revisions before it as they were."""
    status: str = "ACTIVE"
    """Or INACTIVE: deregistered."""

    @property
    def name(self) -> str:
        """What all its revisions are called."""
        return str(self.asked["jobDefinitionName"])

    @property
    def revision(self) -> int:
        """Counted from 1."""
        return int(self.arn.rpartition(":")[2])

    @property
    def needs(self) -> Mapping[str, int]:
        """VCPU, MEMORY in MiB, GPU."""
        given = self.asked["containerProperties"]["resourceRequirements"]
        return {"GPU": 0, **{one["type"]: int(one["value"]) for one in given}}

    @property
    def most_attempts(self) -> int:
        """Once, unless a retry strategy says more."""
        return int(self.asked.get("retryStrategy", {}).get("attempts", 1))

    @property
    def seconds(self) -> float | None:
        """How long an attempt may take."""
        limit = self.asked.get("timeout", {}).get("attemptDurationSeconds")
        return None if limit is None else float(limit)


@dataclass
class Queue:
    """A job queue."""

    arn: str
    name: str
    priority: int
    order: tuple[str, ...]
    """ARNs of its compute environments."""
    state: str
    tags: Mapping[str, str]


@dataclass
class Environment:
    """A managed compute environment."""

    arn: str
    name: str
    cluster: str
    """Its ECS cluster's name."""
    market: str
    strategy: str
    types: tuple[str, ...]
    most_vcpus: int
    blueprint: Blueprint
    subnets: tuple[Subnet, ...]
    update_minutes: int
    tags: Mapping[str, str]
    retry_at: datetime | None = None
    """Until when it does not try to launch: there was no room."""
    outdated: dict[str, datetime] = field(default_factory=dict)
    """Instances that an update replaces, and when at the latest."""
    idle: dict[str, datetime] = field(default_factory=dict)
    """Since when instances have had nothing to do."""
    deleting: bool = False


@dataclass
class Job:
    """A job, an array of jobs, or one of its children."""

    id: str
    name: str
    queue: str
    definition: Definition
    environment: Mapping[str, str]
    created: int
    due: datetime
    """When a submitted one becomes RUNNABLE."""
    index: int | None = None
    children: list[Job] = field(default_factory=list)
    status: str = "SUBMITTED"
    reason: str = ""
    attempts: list[dict[str, Any]] = field(default_factory=list)
    task: str = ""
    """ARN of the attempt that runs."""
    started: int = 0
    stopped: int = 0
    ending: str = ""
    """Why it ends with this attempt, whatever that exits with."""
    cancelled: bool = False

    @property
    def counts(self) -> dict[str, int]:
        """How many children have which status."""
        return {status: sum(one.status == status for one in self.children) for status in STATUSES}

    @property
    def each(self) -> Iterator[Job]:
        """Itself, or its children: what runs."""
        return iter(self.children or [self])

    def settle(self, now: int) -> None:
        """An array is over when all its children are, and has failed if one has."""
        if not self.children or self.status in ENDED:
            return
        counts = self.counts
        if counts["SUCCEEDED"] + counts["FAILED"] == len(self.children):
            self.status, self.stopped = ("FAILED" if counts["FAILED"] else "SUCCEEDED"), now
            self.reason = "Array Child Job failed" if counts["FAILED"] else ""
        else:
            self.status = "PENDING"


def is_tried_again(job: Job, exit_code: int | None, reason: str, status_reason: str) -> bool:
    """Whether another attempt follows one that failed: the first condition that holds decides, and none means yes
    (Batch User Guide, "Automated job retries"). One that was terminated or took too long is never tried again.
    """
    if job.ending or len(job.attempts) >= job.definition.most_attempts:
        return False
    said = {"onExitCode": "" if exit_code is None else str(exit_code), "onReason": reason}
    said["onStatusReason"] = status_reason
    conditions: Sequence[Mapping[str, str]] = job.definition.asked.get("retryStrategy", {}).get("evaluateOnExit", ())
    for one in conditions:
        if all(_fits(one[key], said[key]) for key in said if key in one):
            return one["action"].upper() == "RETRY"
    return True


def _fits(pattern: str, text: str) -> bool:
    """The whole text, or its beginning before an asterisk."""
    return text.startswith(pattern[:-1]) if pattern.endswith("*") else text == pattern
