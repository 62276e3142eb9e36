"""One look at a running stack: what waits, what works, what it costs, and what is in the way when nothing starts.

It asks what the capacity Lambda asks, reads what that Lambda logged last, and reads the job records: as many as a few
seconds allow, so that in a table of millions those numbers are of a part, and are said to be.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from math import ceil
from typing import Any

from ops.account import Account, cluster_resources, depth, plain
from ops.obstacles import Function, Look, Machine, Market, Pass, Queue, Stopped, obstacle
from ops.report import Capacity, Report, spend, why
from ops.work import FIELDS, RECENT, Work, work
from templates.settings import STACK_TAG

LOGGED = timedelta(minutes=15)
"""How far back the last pass is looked for; one is due every minute."""
REFUSED = timedelta(hours=1)
"""How far back a refusal of EC2's may be: a fleet leaves a bad pool alone for at least 13 minutes."""
MOST_PAGES = 25
"""Of job records, a megabyte each: some 50,000 jobs, and less than a tenth of a cent."""


class Status:
    """One stack. Any method may raise ClientError or BotoCoreError."""

    def __init__(self, account: Account, stack: str) -> None:
        """Find its resources. Raises NoSuchStack."""
        self._account = account
        self._stack = stack
        self._ids = cluster_resources(account, stack)

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
            spot=Capacity.of(look.spot, (one for one in look.machines if one.spot)),
            on_demand=Capacity.of(look.on_demand, (one for one in look.machines if not one.spot)),
            why=why(look.last),
            work=replace(found, per_minute=rate),
            to_empty=timedelta(minutes=look.backlog / rate) if rate and look.backlog else None,
            spend=spend(look.machines, self._pools(), region),
            dead_letters=depth(self._account, self._ids["DeadLetter"]).total,
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
            uploads=depth(self._account, uploads).visible if uploads else 0,
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
            there = depth(self._account, one["queue_url"])
            yield Queue(
                name=name,
                placement=one["placement"],
                max_tasks=one["max_tasks"],
                desired=service.get("desiredCount", 0),
                running=service.get("runningCount", 0),
                event=events[0]["message"],
                oldest=self._oldest(one["queue_url"], found.oldest.get(name), now) if there.visible else None,
                visible=there.visible,
                in_flight=there.in_flight,
                delayed=there.delayed,
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


def _sizes(brain: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """Units and GPUs by instance type, as the capacity Lambda was told."""
    units = json.loads(brain["UNITS_BY_TYPE"])
    gpus = json.loads(brain.get("GPUS_BY_TYPE", brain["UNITS_BY_TYPE"]))
    return {kind: (units[kind], gpus[kind]) for kind in units}


def _gpus(joined: Mapping[str, Any]) -> int:
    return sum(len(each["stringSetValue"]) for each in joined["registeredResources"] if each["name"] == "GPU")


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
