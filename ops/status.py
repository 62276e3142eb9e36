"""One look at a running stack: what waits, what works, what it costs, and what is in the way when nothing starts.

It asks what the capacity Lambda asks, reads what that Lambda logged last, and reads the job records: as many as a few
seconds allow, so that in a table of millions those numbers are of a part, and are said to be.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from math import ceil
from pathlib import Path
from typing import Any

from ops.account import Account, NoSuchStack, not_of_a_cluster, plain, resources
from ops.obstacles import Function, Look, Machine, Market, Obstacle, Pass, Queue, Retry, Stopped, obstacle
from ops.text import count, lasting, short, table
from templates.settings import STACK_TAG

sys.path.append(str(Path(__file__).resolve().parent.parent / "lambdas"))

from market import prices

RECENT = timedelta(minutes=10)
"""Over which throughput is told."""
LOGGED = timedelta(minutes=15)
"""How far back the last pass is looked for; one is due every minute."""
REFUSED = timedelta(hours=1)
"""How far back a refusal of EC2's may be: a fleet leaves a bad pool alone for at least 13 minutes."""
MOST_PAGES = 25
"""Of job records, a megabyte each: some 50,000 jobs, and less than a tenth of a cent."""
SHOWN = 12
"""Running jobs on the screen."""
FIELDS = (
    "job_id",
    "key",
    "queue",
    "state",
    "lease_until",
    "instance_id",
    "instance_type",
    "zone",
    "lifecycle",
    "created",
    "started",
    "finished",
    "failures",
    "error",
    "cost_usd",
    "gpu_seconds",
)
COUNTS = {
    "visible": "ApproximateNumberOfMessages",
    "in_flight": "ApproximateNumberOfMessagesNotVisible",
    "delayed": "ApproximateNumberOfMessagesDelayed",
}


@dataclass(frozen=True, kw_only=True)
class Running:
    """A job that a worker holds, and where; "" is not known."""

    job_id: str
    key: str
    queue: str
    instance_id: str
    pool: str
    lifecycle: str
    since: datetime


@dataclass(kw_only=True)
class Work:
    """What the job records say. `whole` is False when there are more than were read."""

    states: dict[str, int] = field(default_factory=dict)
    running: list[Running] = field(default_factory=list)
    retries: list[Retry] = field(default_factory=list)
    oldest: dict[str, datetime] = field(default_factory=dict)
    """By queue: since when its oldest job has waited."""
    per_minute: float | None = None
    """Jobs that ended; None when none did lately."""
    today: int = 0
    """Jobs that ended since midnight UTC, and what their attempts cost."""
    cost_usd: float | None = None
    gpu_seconds: float = 0.0
    whole: bool = True


def work(records: Iterable[Mapping[str, Any]], now: datetime) -> Work:
    """Add up job records. Pure."""
    found = Work()
    midnight, recently = now.replace(hour=0, minute=0, second=0, microsecond=0), now - RECENT
    ended, began = 0, now
    for record in records:
        state = str(record["state"])
        found.states[state] = found.states.get(state, 0) + 1
        if state == "RUNNING" and float(record.get("lease_until", 0)) >= now.timestamp():
            found.running.append(_running(record, now))
        elif state == "QUEUED":
            created = _moment(record.get("created")) or now
            queue = str(record.get("queue", ""))
            found.oldest[queue] = min(created, found.oldest.get(queue, created))
            if failures := int(record.get("failures", 0)):
                found.retries.append(
                    Retry(
                        job_id=str(record["job_id"]),
                        key=str(record.get("key", "")),
                        failures=failures,
                        error=str(record.get("error", "")),
                    )
                )
        finished = _moment(record.get("finished"))
        if finished and finished >= midnight:
            found.today += 1
            found.gpu_seconds += float(record.get("gpu_seconds", 0))
            if "cost_usd" in record:
                found.cost_usd = (found.cost_usd or 0.0) + float(record["cost_usd"])
        if finished and finished >= recently:
            ended += 1
            began = min(began, _moment(record.get("started")) or finished)
    if ended:
        # Who has just begun is not judged by the minutes before.
        span = now - max(began, recently)
        found.per_minute = ended / max(span / timedelta(minutes=1), 1 / 60)
    found.running.sort(key=lambda one: (one.instance_id, one.since))
    return found


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """Units of one market: asked of EC2, on instances, and joined and not leaving."""

    requested: int
    present: int
    joined: int


@dataclass(frozen=True, kw_only=True)
class Spend:
    """What the instances that run cost an hour, in US dollars, and what they would On-Demand."""

    usd: float
    on_demand_usd: float
    unknown: tuple[str, ...] = ()
    """Pools of ours without a price."""

    @property
    def saving(self) -> float | None:
        """As a share of On-Demand; None when nothing runs."""
        return 1 - self.usd / self.on_demand_usd if self.on_demand_usd else None


def spend(machines: Iterable[Machine], known: Mapping[str, Mapping[str, Any]], region: str) -> Spend:
    """What runs, at the prices of the table of pools, or of our own list for On-Demand. Pure."""
    usd = on_demand_usd = 0.0
    unknown = set()
    for one in machines:
        row = known.get(one.pool, {})
        listed = prices.tabled(one.pool.partition("/")[0], region)
        dear = row.get("on_demand_usd", listed.usd if listed else None)
        cheap = row.get("spot_usd") if one.spot else dear
        if dear is None or cheap is None:
            unknown.add(one.pool)
        else:
            usd, on_demand_usd = usd + float(cheap), on_demand_usd + float(dear)
    return Spend(usd=usd, on_demand_usd=on_demand_usd, unknown=tuple(sorted(unknown)))


@dataclass(frozen=True, kw_only=True)
class Report:
    """What an operator is told."""

    stack: str
    region: str
    at: datetime
    queues: Sequence[Queue]
    needed: int
    spot: Capacity
    on_demand: Capacity
    why: str
    """As the last pass of the capacity Lambda put it."""
    work: Work
    to_empty: timedelta | None
    """None when nothing is left, or nothing has ended lately."""
    spend: Spend
    dead_letters: int
    obstacle: Obstacle | None

    def json(self) -> str:
        """For programs, on one line: times in ISO 8601, spans in seconds, null for what is not known."""
        return json.dumps(
            {**asdict(self), "spend": {**asdict(self.spend), "saving": self.spend.saving}}, default=_for_json
        )

    def text(self) -> Iterator[str]:
        """As it is printed."""
        yield f"{self.stack} in {self.region}, {self.at:%Y-%m-%d %H:%M:%S} UTC"
        yield ""
        head = ("queue", "waiting", "in flight", "delayed", "oldest", "tasks", "wanted")
        rows = [
            (
                *(one.name, str(one.visible), str(one.in_flight), str(one.delayed)),
                *(lasting(one.oldest) if one.oldest is not None else "-", str(one.running), str(one.desired)),
            )
            for one in self.queues
        ]
        yield from table([head, *rows], numbers={1, 2, 3, 4, 5, 6})
        yield ""
        units = [("units", "requested", "present", "joined")]
        for name, one in (("Spot", self.spot), ("On-Demand", self.on_demand)):
            units.append((name, str(one.requested), str(one.present), str(one.joined)))
        yield from table(units, numbers={1, 2, 3})
        yield ""
        for name, words in self._facts():
            yield f"{name:<10}{words}"
        if self.work.running:
            yield ""
            yield from self._running()
        if self.obstacle:
            yield ""
            yield f"in the way: {self.obstacle.seen}"
            yield f"  -> {self.obstacle.do}"

    def _facts(self) -> Iterator[tuple[str, str]]:
        yield "needed", f"{count(self.needed, 'unit')}: {self.why}"
        states = ", ".join(f"{number:,} {state}" for state, number in sorted(self.work.states.items())) or "none yet"
        yield "jobs", states if self.work.whole else f"{states}; there are more, which were not read"
        rate = "none ended lately" if self.work.per_minute is None else f"{self.work.per_minute:,.1f} jobs a minute"
        yield "pace", rate + (f", empty in about {lasting(self.to_empty)}" if self.to_empty else "")
        saving = f", {self.spend.saving:.0%} less than On-Demand" if self.spend.saving is not None else ""
        unknown = f"; no price for {', '.join(self.spend.unknown)}" if self.spend.unknown else ""
        yield "spend", f"{self.spend.usd:.2f} USD an hour now{saving}{unknown}"
        if self.work.today:
            cost, seconds = self.work.cost_usd, count(round(self.work.gpu_seconds), "GPU second")
            money = (
                "at a cost not known" if cost is None else f"for {cost:.4f} USD, {cost / self.work.today:.6f} USD each"
            )
            yield "today", f"{count(self.work.today, 'job')} {money}, {seconds}"
        if self.dead_letters:
            see = f"python build.py dlq list --stack {self.stack}"
            yield "dead", f"{self.dead_letters} in the dead-letter queue: {see}"

    def _running(self) -> Iterator[str]:
        head = ("working", "pool", "market", "for", "job", "key")
        rows = [
            (
                *(one.instance_id or "-", one.pool or "-", one.lifecycle or "-"),
                *(lasting(self.at - one.since), one.job_id, short(one.key, 40)),
            )
            for one in self.work.running[:SHOWN]
        ]
        yield from table([head, *rows], numbers={3})
        if len(self.work.running) > SHOWN:
            yield f"and {len(self.work.running) - SHOWN:,} more"


class Status:
    """One stack. Any method may raise ClientError or BotoCoreError."""

    def __init__(self, account: Account, stack: str) -> None:
        """Find its resources. Raises NoSuchStack."""
        self._account = account
        self._stack = stack
        self._ids = resources(account, stack)
        if "CapacityFunction" not in self._ids:
            raise NoSuchStack(not_of_a_cluster(stack, self._ids))

    def report(self, now: datetime) -> Report:
        """Look at everything once."""
        found = self._work(now)
        brain = self._environment()
        look = self._look(brain, found, now)
        if look.short:
            look = replace(
                look,
                spot=replace(look.spot, refusals=self._spot_refusals(now)),
                on_demand=replace(look.on_demand, refusals=self._group_refusals("OnDemandGroup", now)),
            )
        if look.idle:
            look = replace(look, stopped=self._stopped())
        rate = found.per_minute if found.whole else self._ended_per_minute()
        region = str(self._account.region)
        return Report(
            stack=self._stack,
            region=region,
            at=now,
            queues=look.queues,
            needed=look.needed,
            spot=_capacity(look.spot, (one for one in look.machines if one.spot)),
            on_demand=_capacity(look.on_demand, (one for one in look.machines if not one.spot)),
            why=_why(look.last),
            work=replace(found, per_minute=rate),
            to_empty=timedelta(minutes=look.backlog / rate) if rate and look.backlog else None,
            spend=spend(look.machines, self._pools(), region),
            dead_letters=sum(self._counts(self._ids["DeadLetter"]).values()),
            obstacle=obstacle(look),
        )

    def _environment(self) -> Mapping[str, str]:
        """What the capacity Lambda was told of the stack."""
        function = self._account.client("lambda").get_function_configuration(FunctionName=self._ids["CapacityFunction"])
        told: Mapping[str, str] = function["Environment"]["Variables"]
        return told

    def _look(self, brain: Mapping[str, str], found: Work, now: datetime) -> Look:
        rule = self._account.client("events").describe_rule(Name=self._ids["EveryMinute"])
        uploads = self._ids.get("UploadEvents")
        return Look(
            at=now,
            queues=tuple(self._queues(brain, found, now)),
            uploads=self._counts(uploads)["visible"] if uploads else 0,
            ingest=self._function("Ingest") if "IngestFunction" in self._ids else None,
            capacity=self._function("Capacity"),
            minute=rule["State"] != "DISABLED",
            last=self._last_pass(now),
            urgency=brain["URGENCY"],
            spot=Market(requested=self._spot_requested()),
            on_demand=Market(requested=self._desired("OnDemandGroup") * int(brain["ON_DEMAND_UNITS"])),
            machines=tuple(self._machines(_sizes(brain), brain["CLUSTER"])),
            retries=tuple(found.retries),
            running=len(found.running),
        )

    def _counts(self, queue_url: str) -> dict[str, int]:
        answer = self._account.client("sqs").get_queue_attributes(
            QueueUrl=queue_url, AttributeNames=[*COUNTS.values()]
        )["Attributes"]
        return {name: int(answer[theirs]) for name, theirs in COUNTS.items()}

    def _queues(self, brain: Mapping[str, str], found: Work, now: datetime) -> Iterator[Queue]:
        told = json.loads(brain["SERVICES"])
        services: dict[str, Mapping[str, Any]] = {}
        for start in range(0, len(told), 10):
            names = [one["name"] for one in told[start : start + 10]]
            reply = self._account.client("ecs").describe_services(cluster=brain["CLUSTER"], services=names)
            services |= {one["serviceName"]: one for one in reply["services"]}
        for one in told:
            name, service = one["name"].removeprefix(f"{self._stack}-"), services.get(one["name"], {})
            events = service.get("events") or [{"message": ""}]
            counts = self._counts(one["queue_url"])
            yield Queue(
                name=name,
                placement=one["placement"],
                max_tasks=one["max_tasks"],
                desired=service.get("desiredCount", 0),
                running=service.get("runningCount", 0),
                event=events[0]["message"],
                oldest=self._oldest(one["queue_url"], found.oldest.get(name), now) if counts["visible"] else None,
                **counts,
            )

    def _oldest(self, queue_url: str, since: datetime | None, now: datetime) -> timedelta | None:
        """How long the oldest job has waited: by its record, or by CloudWatch where the worker is to make that."""
        if since:
            return now - since
        ages = self._measured(queue_url, "ApproximateAgeOfOldestMessage", "Maximum")
        return timedelta(seconds=ages[-1]) if ages else None

    def _function(self, title: str) -> Function:
        name, client = self._ids[f"{title}Function"], self._account.client("lambda")
        reserved = client.get_function_concurrency(FunctionName=name).get("ReservedConcurrentExecutions")
        source = client.get_event_source_mapping(UUID=self._ids[f"{title}Source"])
        return Function(name=name, halted=reserved == 0, source=source["State"])

    def _last_pass(self, now: datetime) -> Pass | None:
        """What the capacity Lambda logged last, one JSON object a line; None when it has told of no pass lately."""
        events = self._account.all(
            "logs",
            "filter_log_events",
            "events",
            logGroupName=self._ids["CapacityLogs"],
            startTime=_milliseconds(now - LOGGED),
            filterPattern='{ $.event = "capacity*" }',
        )
        for event in sorted(events, key=lambda one: int(one["timestamp"]), reverse=True):
            try:
                line = json.loads(event["message"])
            except ValueError:
                continue
            if isinstance(line, dict) and line.get("event") in ("capacity", "capacity-failed"):
                return Pass(
                    at=datetime.fromtimestamp(event["timestamp"] / 1000, UTC),
                    why=str(line["why"]),
                    failed=line["event"] == "capacity-failed",
                    needed=line.get("needed_units"),
                )
        return None

    def _spot_requested(self) -> int:
        if "SpotFleet" not in self._ids:
            return self._desired("SpotGroup")
        fleets = self._account.client("ec2").describe_spot_fleet_requests(SpotFleetRequestIds=[self._ids["SpotFleet"]])
        return int(fleets["SpotFleetRequestConfigs"][0]["SpotFleetRequestConfig"]["TargetCapacity"])

    def _desired(self, title: str) -> int:
        groups = self._account.client("autoscaling").describe_auto_scaling_groups(
            AutoScalingGroupNames=[self._ids[title]]
        )["AutoScalingGroups"]
        return int(groups[0]["DesiredCapacity"]) if groups else 0

    def _machines(self, sizes: Mapping[str, tuple[int, int]], cluster: str) -> Iterator[Machine]:
        joined = {one["ec2InstanceId"]: one for one in self._joined(cluster)}
        found = self._account.all(
            "ec2",
            "describe_instances",
            "Reservations",
            Filters=[
                {"Name": f"tag:{STACK_TAG}", "Values": [self._stack]},
                {"Name": "instance-state-name", "Values": ["pending", "running"]},
            ],
        )
        for one in (one for reservation in found for one in reservation["Instances"]):
            kind, there = one["InstanceType"], joined.get(one["InstanceId"])
            units, gpus = sizes.get(kind, sizes.get("*", (1, 1)))
            yield Machine(
                id=one["InstanceId"],
                pool=f"{kind}/{one['Placement']['AvailabilityZone']}",
                spot=one.get("InstanceLifecycle") == "spot",
                launched=one["LaunchTime"],
                joined=there is not None,
                draining=there is not None and there["status"] != "ACTIVE",
                units=ceil(_gpus(there) * units / gpus) if there else units,
            )

    def _joined(self, cluster: str) -> Iterator[Mapping[str, Any]]:
        arns = self._account.all("ecs", "list_container_instances", "containerInstanceArns", cluster=cluster)
        for start in range(0, len(arns), 100):
            yield from self._account.client("ecs").describe_container_instances(
                cluster=cluster, containerInstances=arns[start : start + 100]
            )["containerInstances"]

    def _spot_refusals(self, now: datetime) -> tuple[str, ...]:
        """What the fleet was refused since it last launched an instance, oldest first."""
        if "SpotFleet" not in self._ids:
            return self._group_refusals("SpotGroup", now)
        wanted: dict[str, Any] = {"SpotFleetRequestId": self._ids["SpotFleet"], "StartTime": now - REFUSED}
        refused: list[str] = []
        while True:
            reply = self._account.client("ec2").describe_spot_fleet_request_history(**wanted)
            for record in reply["HistoryRecords"]:
                told = record["EventInformation"]
                if told.get("EventSubType") == "launched":
                    refused.clear()
                elif record["EventType"] in ("error", "information"):
                    refused.append(f"{told.get('EventSubType', '')}: {told.get('EventDescription', '')}")
            if not reply.get("NextToken"):
                return tuple(refused)
            wanted["NextToken"] = reply["NextToken"]

    def _group_refusals(self, title: str, now: datetime) -> tuple[str, ...]:
        """Why a group's launches failed since its last one that did not, oldest first."""
        activities = self._account.client("autoscaling").describe_scaling_activities(
            AutoScalingGroupName=self._ids[title], MaxRecords=50
        )["Activities"]
        refused: list[str] = []
        for one in activities:  # newest first
            launch = one["Description"].startswith("Launching")
            if one["StartTime"] < now - REFUSED or (launch and one["StatusCode"] == "Successful"):
                break
            if launch and one["StatusCode"] in ("Failed", "Cancelled"):
                refused.insert(0, one.get("StatusMessage", "no reason is told"))
        return tuple(refused)

    def _stopped(self) -> tuple[Stopped, ...]:
        """Tasks that ended lately, newest first, a hundred at the most: ECS remembers them for an hour."""
        ecs, cluster = self._account.client("ecs"), self._ids["Cluster"]
        arns = ecs.list_tasks(cluster=cluster, desiredStatus="STOPPED")["taskArns"]
        tasks = ecs.describe_tasks(cluster=cluster, tasks=arns)["tasks"] if arns else []
        tasks.sort(key=lambda one: one.get("stoppedAt") or one["createdAt"], reverse=True)
        return tuple(
            Stopped(
                reason=" ".join(
                    [one.get("stoppedReason", ""), *(each.get("reason", "") for each in one["containers"])]
                ),
                code=next((each["exitCode"] for each in one["containers"] if "exitCode" in each), None),
            )
            for one in tasks
        )

    def _pools(self) -> dict[str, dict[str, Any]]:
        """The market Lambda's table, by pool."""
        items = self._account.all("dynamodb", "scan", "Items", TableName=self._ids["PoolsTable"])
        return {str(item["pool"]): item for item in map(plain, items)}

    def _work(self, now: datetime) -> Work:
        """Read the job records, but no more than MOST_PAGES."""
        names = {f"#{name}": name for name in FIELDS}
        wanted: dict[str, Any] = {
            "TableName": self._ids["JobsTable"],
            "ProjectionExpression": ", ".join(names),
            "ExpressionAttributeNames": names,
        }
        records: list[dict[str, Any]] = []
        for _ in range(MOST_PAGES):
            reply = self._account.client("dynamodb").scan(**wanted)
            records += map(plain, reply["Items"])
            if "LastEvaluatedKey" not in reply:
                return work(records, now)
            wanted["ExclusiveStartKey"] = reply["LastEvaluatedKey"]
        return replace(work(records, now), whole=False)

    def _ended_per_minute(self) -> float | None:
        """Messages deleted of late, by CloudWatch, which is some minutes behind."""
        urls = [url for title, url in self._ids.items() if title.endswith("Jobs")]
        deleted = sum(sum(self._measured(url, "NumberOfMessagesDeleted", "Sum")) for url in urls)
        return deleted / (RECENT / timedelta(minutes=1)) or None

    def _measured(self, queue_url: str, metric: str, statistic: str) -> list[float]:
        """What CloudWatch has of a queue for each of the last minutes, oldest first."""
        now = datetime.now(UTC)
        points = self._account.client("cloudwatch").get_metric_statistics(
            Namespace="AWS/SQS",
            MetricName=metric,
            Dimensions=[{"Name": "QueueName", "Value": queue_url.rpartition("/")[2]}],
            StartTime=now - RECENT,
            EndTime=now,
            Period=60,
            Statistics=[statistic],
        )["Datapoints"]
        return [point[statistic] for point in sorted(points, key=lambda one: one["Timestamp"])]


def _running(record: Mapping[str, Any], now: datetime) -> Running:
    kind, zone = record.get("instance_type"), record.get("zone")
    return Running(
        job_id=str(record["job_id"]),
        key=str(record.get("key", "")),
        queue=str(record.get("queue", "")),
        instance_id=str(record.get("instance_id", "")),
        pool=f"{kind}/{zone}" if kind and zone else "",
        lifecycle=str(record.get("lifecycle", "")),
        since=_moment(record.get("started")) or now,
    )


def _why(last: Pass | None) -> str:
    if last is None:
        return "the capacity Lambda has said nothing lately"
    return "the services want them; the last pass of the capacity Lambda failed" if last.failed else last.why


def _capacity(market: Market, machines: Iterable[Machine]) -> Capacity:
    ours = list(machines)
    return Capacity(
        requested=market.requested,
        present=sum(one.units for one in ours),
        joined=sum(one.units for one in ours if one.joined and not one.draining),
    )


def _sizes(brain: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """Units and GPUs by instance type, as the capacity Lambda was told."""
    units = json.loads(brain["UNITS_BY_TYPE"])
    gpus = json.loads(brain.get("GPUS_BY_TYPE", brain["UNITS_BY_TYPE"]))
    return {kind: (units[kind], gpus[kind]) for kind in units}


def _gpus(joined: Mapping[str, Any]) -> int:
    return sum(len(each["stringSetValue"]) for each in joined["registeredResources"] if each["name"] == "GPU")


def _moment(text: object) -> datetime | None:
    return datetime.fromisoformat(str(text)) if text else None


def _for_json(value: object) -> object:
    return value.total_seconds() if isinstance(value, timedelta) else str(value)


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
