"""One look at a running stack through its public APIs, and the picture of it that a person wants to see."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

Client = Callable[[str], Any]
Line = tuple[float, str]
"""Something that happened: the second of the run, and words with rich's markup."""


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
        running = self._instances()
        joined = self._container_instances()
        spot = {id_: line for id_, line in running.items() if line.get("InstanceLifecycle") == "spot"}
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
            on_demand_running=len(running) - len(spot),
            on_demand_joined=len(active & set(running) - set(spot)),
            draining=sum(status == "DRAINING" for status in joined.values()),
            busy=frozenset(
                job["instance_id"]["S"] for job in jobs if job["state"]["S"] == "RUNNING" and "instance_id" in job
            ),
            pools={
                id_: f"{line['InstanceType']}/{line['Placement']['AvailabilityZone']}" for id_, line in spot.items()
            },
        )

    def _spot_requested(self) -> int:
        """Of the Spot Fleet, or of the group of Spot instances, whichever the stack has."""
        if fleet := self._outputs.get("SpotFleetId"):
            told = self._clients["ec2"].describe_spot_fleet_requests(SpotFleetRequestIds=[fleet])
            return int(told["SpotFleetRequestConfigs"][0]["SpotFleetRequestConfig"]["TargetCapacity"])
        named = [self._outputs["SpotGroupName"]]
        told = self._clients["autoscaling"].describe_auto_scaling_groups(AutoScalingGroupNames=named)
        return int(told["AutoScalingGroups"][0]["DesiredCapacity"])

    def _instances(self) -> dict[str, Any]:
        pages = (
            self._clients["ec2"]
            .get_paginator("describe_instances")
            .paginate(
                Filters=[
                    {"Name": "tag:spindrift:stack", "Values": [self._stack]},
                    {"Name": "instance-state-name", "Values": ["pending", "running"]},
                ]
            )
        )
        return {
            line["InstanceId"]: line for page in pages for held in page["Reservations"] for line in held["Instances"]
        }

    def _container_instances(self) -> dict[str, str]:
        ecs, cluster = self._clients["ecs"], self._outputs["ClusterName"]
        pages = ecs.get_paginator("list_container_instances").paginate(cluster=cluster)
        # A page holds what one description takes: a hundred.
        listed = [arns for page in pages if (arns := page["containerInstanceArns"])]
        described = [ecs.describe_container_instances(cluster=cluster, containerInstances=arns) for arns in listed]
        return {line["ec2InstanceId"]: line["status"] for reply in described for line in reply["containerInstances"]}


def picture(scene: Scene, uploaded: int, notices: int, seconds: float, story: list[Line]) -> RenderableType:
    """The scene for the terminal: how far the work is, what runs it, and the latest that happened."""
    facts = Table.grid(padding=(0, 3))
    facts.add_row(
        f"[bold]{scene.finished}[/]/{uploaded} jobs done",
        f"queue [bold]{scene.waiting}[/] waiting, [bold]{scene.in_flight}[/] in flight",
        f"tasks [bold]{scene.tasks_running}[/]/{scene.tasks_wanted}",
    )
    facts.add_row(
        f"Spot units [bold green]{scene.spot_joined}[/] joined, {scene.spot_running} running, "
        f"{scene.spot_requested} requested",
        f"On-Demand [bold yellow]{scene.on_demand_joined}[/] joined, {scene.on_demand_running} running",
        f"notices [bold red]{notices}[/]   draining [bold]{scene.draining}[/]",
    )
    clock = Text(f"{seconds:5.0f} s")
    bar = ProgressBar(total=max(uploaded, 1), completed=scene.finished, width=70)
    return Group(
        facts, Text(), _beside(clock, bar), *(Text.from_markup(f"{at:5.0f} s  {words}") for at, words in story[-9:])
    )


def _beside(*parts: RenderableType) -> Table:
    row = Table.grid(padding=(0, 1))
    row.add_row(*parts)
    return row


def line(scene: Scene, uploaded: int, notices: int, seconds: float) -> str:
    """The scene for a log: one line."""
    return (
        f"{seconds:5.0f} s  jobs {scene.finished}/{uploaded}  queue {scene.waiting}+{scene.in_flight}  "
        f"tasks {scene.tasks_running}/{scene.tasks_wanted}  "
        f"spot {scene.spot_joined}/{scene.spot_running}/{scene.spot_requested} (joined/running/requested)  "
        f"on-demand {scene.on_demand_joined}/{scene.on_demand_running}  notices {notices}  draining {scene.draining}"
    )
