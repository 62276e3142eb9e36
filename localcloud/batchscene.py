"""One look at a running stack `batch` through public APIs, and the picture of it that a person wants to see."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from localcloud.scene import Client, pools_of, running

AT_A_TIME = 100
"""Jobs that DescribeJobs takes, and tasks that DescribeTasks does."""
LOST = "Host EC2"
"""How Batch's reason begins when an attempt ended with its machine (Batch User Guide, "Automated job retries")."""


@dataclass(frozen=True, kw_only=True)
class BatchScene:
    """The stack at one moment."""

    jobs: Mapping[str, int]
    """Objects by Batch's status."""
    spot_running: int
    on_demand_running: int
    busy: frozenset[str] = field(default_factory=frozenset)
    """Instances on which a job runs."""
    pools: Mapping[str, str] = field(default_factory=dict)
    """Pool (type/zone) by id of each running Spot instance."""

    @property
    def finished(self) -> int:
        """Objects that SUCCEEDED or FAILED."""
        return self._in("SUCCEEDED", "FAILED")

    @property
    def at_zero(self) -> bool:
        """Nothing waits and nothing runs."""
        return self._unfinished == self.spot_running == self.on_demand_running == 0

    def facts(self, uploaded: int, notices: int) -> list[tuple[str, str, str]]:
        """For the terminal."""
        return [
            (
                f"[bold]{self.finished}[/]/{uploaded} objects done",
                f"[bold]{self._waiting}[/] waiting, [bold]{self._at_work}[/] at work",
                f"succeeded [bold]{self._in('SUCCEEDED')}[/], failed [bold]{self._in('FAILED')}[/]",
            ),
            (
                f"Spot instances [bold green]{self.spot_running}[/]",
                f"On-Demand [bold yellow]{self.on_demand_running}[/]",
                f"notices [bold red]{notices}[/]",
            ),
        ]

    def told(self, uploaded: int, notices: int) -> str:
        """For a log."""
        return (
            f"objects {self.finished}/{uploaded}  waiting {self._waiting}  at work {self._at_work}  "
            f"spot {self.spot_running}  on-demand {self.on_demand_running}  notices {notices}"
        )

    @property
    def _unfinished(self) -> int:
        return sum(self.jobs.values()) - self.finished

    @property
    def _at_work(self) -> int:
        return self._in("STARTING", "RUNNING")

    @property
    def _waiting(self) -> int:
        return self._unfinished - self._at_work

    def _in(self, *statuses: str) -> int:
        return sum(self.jobs.get(status, 0) for status in statuses)


class BatchWindow:
    """Looks at what was submitted to one stack, with clients that are made once."""

    def __init__(self, client: Client, stack: str, jobs: Sequence[str]) -> None:
        """`jobs`: ids of arrays, or of jobs of one object."""
        self._stack, self._jobs = stack, jobs
        self._batch, self._ecs, self._ec2 = client("batch"), client("ecs"), client("ec2")

    def look(self) -> BatchScene:
        """The stack now."""
        described = self._batch.describe_jobs(jobs=list(self._jobs))["jobs"]
        machines = running(self._ec2, self._stack)
        pools = pools_of(machines)
        return BatchScene(
            jobs=sum((_statuses(one) for one in described), Counter()),
            spot_running=len(pools),
            on_demand_running=len(machines) - len(pools),
            busy=frozenset(self._busy()),
            pools=pools,
        )

    def lost_attempts(self) -> dict[str, int]:
        """By id of a job or of an array's child: how many of its attempts ended with their machine."""
        described = self._batch.describe_jobs(jobs=list(self._jobs))["jobs"]
        ids = [one for job in described for one in _each(job)]
        counted = Counter[str]()
        for start in range(0, len(ids), AT_A_TIME):
            for job in self._batch.describe_jobs(jobs=ids[start : start + AT_A_TIME])["jobs"]:
                counted[job["jobId"]] += sum(one["statusReason"].startswith(LOST) for one in job["attempts"])
        return +counted

    def _busy(self) -> Iterator[str]:
        environments = self._batch.get_paginator("describe_compute_environments").paginate()
        for cluster in [one["ecsClusterArn"] for page in environments for one in page["computeEnvironments"]]:
            pages = self._ecs.get_paginator("list_tasks").paginate(cluster=cluster)
            for arns in (page["taskArns"] for page in pages if page["taskArns"]):
                tasks = self._ecs.describe_tasks(cluster=cluster, tasks=arns)["tasks"]
                hosts = {one["containerInstanceArn"] for one in tasks if one["lastStatus"] == "RUNNING"}
                if hosts:
                    found = self._ecs.describe_container_instances(cluster=cluster, containerInstances=sorted(hosts))
                    yield from (one["ec2InstanceId"] for one in found["containerInstances"])


def _statuses(job: Mapping[str, Any]) -> Counter[str]:
    return Counter(job.get("arrayProperties", {}).get("statusSummary", {job["status"]: 1}))


def _each(job: Mapping[str, Any]) -> list[str]:
    """The job, or its children."""
    size = job.get("arrayProperties", {}).get("size")
    return [job["jobId"]] if size is None else [f"{job['jobId']}:{number}" for number in range(size)]
