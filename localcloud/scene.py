"""One look at a running stack through its public APIs, and the picture of it that a person wants to see."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

Client = Callable[[str], Any]
Line = tuple[float, str]
"""Something that happened: the second of the run, and words with rich's markup."""


class Shown(Protocol):
    """A stack at one moment, as far as the picture of it goes."""

    @property
    def finished(self) -> int:
        """How much of what was uploaded is done, well or not."""

    @property
    def at_zero(self) -> bool:
        """Nothing waits, nothing runs, nothing is asked for."""

    @property
    def on_demand_running(self) -> int:
        """Instances."""

    @property
    def busy(self) -> frozenset[str]:
        """Instance ids on which work is at hand."""

    @property
    def pools(self) -> Mapping[str, str]:
        """Pool (type/zone) by id of each running Spot instance."""

    def facts(self, uploaded: int, notices: int) -> list[tuple[str, str, str]]:
        """For the terminal, with rich's markup."""

    def told(self, uploaded: int, notices: int) -> str:
        """For a log: one line."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The stack at one moment. Units, tasks and jobs are counts."""

    jobs: Mapping[str, int]
    """Jobs by state."""
    waiting: int
    in_flight: int
    tasks_wanted: int
    tasks_running: int
    spot_requested: int
    spot_running: int
    spot_joined: int
    on_demand_running: int
    on_demand_joined: int
    draining: int
    busy: frozenset[str] = field(default_factory=frozenset)
    """Instance ids whose workers hold a job."""
    pools: Mapping[str, str] = field(default_factory=dict)
    """Pool (type/zone) by id of each running Spot instance."""

    @property
    def finished(self) -> int:
        """Jobs that are SUCCEEDED or FAILED."""
        return self.jobs.get("SUCCEEDED", 0) + self.jobs.get("FAILED", 0)

    @property
    def at_zero(self) -> bool:
        """Nothing waits, nothing runs, nothing is asked for."""
        return not any(
            (
                *(self.waiting, self.in_flight, self.tasks_wanted, self.tasks_running),
                *(self.spot_requested, self.spot_running, self.on_demand_running),
            )
        )

    def facts(self, uploaded: int, notices: int) -> list[tuple[str, str, str]]:
        """For the terminal."""
        return [
            (
                f"[bold]{self.finished}[/]/{uploaded} jobs done",
                f"queue [bold]{self.waiting}[/] waiting, [bold]{self.in_flight}[/] in flight",
                f"tasks [bold]{self.tasks_running}[/]/{self.tasks_wanted}",
            ),
            (
                f"Spot units [bold green]{self.spot_joined}[/] joined, {self.spot_running} running, "
                f"{self.spot_requested} requested",
                f"On-Demand [bold yellow]{self.on_demand_joined}[/] joined, {self.on_demand_running} running",
                f"notices [bold red]{notices}[/]   draining [bold]{self.draining}[/]",
            ),
        ]

    def told(self, uploaded: int, notices: int) -> str:
        """For a log."""
        return (
            f"jobs {self.finished}/{uploaded}  queue {self.waiting}+{self.in_flight}  "
            f"tasks {self.tasks_running}/{self.tasks_wanted}  "
            f"spot {self.spot_joined}/{self.spot_running}/{self.spot_requested} (joined/running/requested)  "
            f"on-demand {self.on_demand_joined}/{self.on_demand_running}  notices {notices}  draining {self.draining}"
        )


class Window:
    """Looks at one stack with clients that are made once."""

    def __init__(self, outputs: Mapping[str, str], client: Client, stack: str) -> None:
        self._outputs = outputs
        self._stack = stack
        services = ("dynamodb", "sqs", "ecs", "ec2", "autoscaling")
        self._clients = {service: client(service) for service in services}

    def look(self) -> Scene:
        """The stack now."""
        outputs, clients = self._outputs, self._clients
        scan = (
            clients["dynamodb"]
            .get_paginator("scan")
            .paginate(
                TableName=outputs["JobsTable"],
                ProjectionExpression="#s, instance_id",
                ExpressionAttributeNames={"#s": "state"},
            )
        )
        jobs = [item for page in scan for item in page["Items"]]
        queue = clients["sqs"].get_queue_attributes(QueueUrl=outputs["JobsQueueUrl"], AttributeNames=["All"])
        depth = {name: int(value) for name, value in queue["Attributes"].items() if name.startswith("Approximate")}
        service = clients["ecs"].describe_services(
            cluster=outputs["ClusterName"], services=[outputs["WorkerServiceName"]]
        )["services"][0]
        machines = running(clients["ec2"], self._stack)
        joined = self._container_instances()
        spot = pools_of(machines)
        active = {id_ for id_, status in joined.items() if status == "ACTIVE"}
        return Scene(
            jobs=Counter(job["state"]["S"] for job in jobs),
            waiting=depth["ApproximateNumberOfMessages"] + depth["ApproximateNumberOfMessagesDelayed"],
            in_flight=depth["ApproximateNumberOfMessagesNotVisible"],
            tasks_wanted=service["desiredCount"],
            tasks_running=service["runningCount"],
            spot_requested=self._spot_requested(),
            spot_running=len(spot),
            spot_joined=len(active & set(spot)),
            on_demand_running=len(machines) - len(spot),
            on_demand_joined=len(active & set(machines) - set(spot)),
            draining=sum(status == "DRAINING" for status in joined.values()),
            busy=frozenset(
                job["instance_id"]["S"] for job in jobs if job["state"]["S"] == "RUNNING" and "instance_id" in job
            ),
            pools=spot,
        )

    def _spot_requested(self) -> int:
        """Of the Spot Fleet, or of the group of Spot instances, whichever the stack has."""
        if fleet := self._outputs.get("SpotFleetId"):
            told = self._clients["ec2"].describe_spot_fleet_requests(SpotFleetRequestIds=[fleet])
            return int(told["SpotFleetRequestConfigs"][0]["SpotFleetRequestConfig"]["TargetCapacity"])
        named = [self._outputs["SpotGroupName"]]
        told = self._clients["autoscaling"].describe_auto_scaling_groups(AutoScalingGroupNames=named)
        return int(told["AutoScalingGroups"][0]["DesiredCapacity"])

    def _container_instances(self) -> dict[str, str]:
        ecs, cluster = self._clients["ecs"], self._outputs["ClusterName"]
        pages = ecs.get_paginator("list_container_instances").paginate(cluster=cluster)
        # A page holds what one description takes: a hundred.
        listed = [arns for page in pages if (arns := page["containerInstanceArns"])]
        described = [ecs.describe_container_instances(cluster=cluster, containerInstances=arns) for arns in listed]
        return {line["ec2InstanceId"]: line["status"] for reply in described for line in reply["containerInstances"]}


def running(ec2: Any, stack: str) -> dict[str, Any]:
    """Instances of the stack that run or are about to, by id, as EC2 describes them."""
    filters = [
        {"Name": "tag:spindrift:stack", "Values": [stack]},
        {"Name": "instance-state-name", "Values": ["pending", "running"]},
    ]
    pages = ec2.get_paginator("describe_instances").paginate(Filters=filters)
    return {line["InstanceId"]: line for page in pages for held in page["Reservations"] for line in held["Instances"]}


def pools_of(machines: Mapping[str, Any]) -> dict[str, str]:
    """Pool (type/zone) by id of those that are Spot."""
    return {
        id_: f"{line['InstanceType']}/{line['Placement']['AvailabilityZone']}"
        for id_, line in machines.items()
        if line.get("InstanceLifecycle") == "spot"
    }


def picture(scene: Shown, uploaded: int, notices: int, seconds: float, story: list[Line]) -> RenderableType:
    """The scene for the terminal: how far the work is, what runs it, and the latest that happened."""
    facts = Table.grid(padding=(0, 3))
    for row in scene.facts(uploaded, notices):
        facts.add_row(*row)
    clock = Text(f"{seconds:5.0f} s")
    bar = ProgressBar(total=max(uploaded, 1), completed=scene.finished, width=70)
    return Group(
        facts, Text(), _beside(clock, bar), *(Text.from_markup(f"{at:5.0f} s  {words}") for at, words in story[-9:])
    )


def _beside(*parts: RenderableType) -> Table:
    row = Table.grid(padding=(0, 1))
    row.add_row(*parts)
    return row
