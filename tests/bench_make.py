"""A stack for a benchmark, with a clock in the test's hand: S3 and DynamoDB are moto's, what it must see is played."""

import base64
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from market_make import answered_by, session

from ingest.routing import Upload
from localcloud.wire import Fault
from ops.account import Account
from ops.bench import Asked, Bench
from templates.instance_types import INSTANCE_TYPES
from templates.settings import Settings

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
WORK = 12.0
"""Seconds of a job on a GPU of speed 1."""
SPEEDS = {"g4dn.xlarge": 1.0, "g6.xlarge": 2.4, "g5.xlarge": 3.7, "g4dn.12xlarge": 1.0}
SUBNETS = {"subnet-aaaaaaaa": "us-east-1a", "subnet-bbbbbbbb": "us-east-1b"}
IDS = {
    "DefaultTask": "arn:aws:ecs:us-east-1:123456789012:task-definition/default:1",
    "LaunchTemplate": "lt-0123456789abcdef0",
    "Cluster": "cluster",
    "JobsTable": "jobs",
    "PoolsTable": "pools",
    "UploadsBucket": "uploads",
    "ResultsBucket": "results",
    "OnDemandGroup": "group",
}
TEMPLATE = {
    "UserData": base64.b64encode(b"#!/bin/bash\nset -e\njoin\n").decode(),
    "TagSpecifications": [
        {"ResourceType": kind, "Tags": [{"Key": "spindrift:stack", "Value": "one"}]} for kind in ("instance", "volume")
    ],
}


class Stage:
    """One stack. The clock goes on when the benchmark pauses, and each task then does one job."""

    def __init__(self) -> None:
        self.now = NOON
        self.ids = dict(IDS)
        self.instances: dict[str, dict[str, Any]] = {}
        self.tasks: dict[str, dict[str, Any]] = {}
        self.ran: list[dict[str, Any]] = []
        """What RunInstances was asked."""
        self.full: set[str] = set()
        """Subnets without room for more."""
        self.rare: set[str] = set()
        """Types that no subnet has."""
        self.quota = 99
        self.joining = timedelta(seconds=30)
        self.unseen = timedelta(0)
        """For how long EC2 does not tell of an instance that it has launched."""
        self.gpus: dict[str, int] = {}
        """Of a type, where its instances come with others than they should."""
        self.crashing = False
        self.ends = "SUCCEEDED"
        """What each job ends as."""
        self.out_of_sight = 0
        """So many of the first jobs come to no worker."""
        self.serving = False
        """Whether a service has a task for each ACTIVE instance without one."""
        self.paused = 0
        self.on_pause = lambda stage: None
        self.account = Account(session())
        for service in ("cloudformation", "ec2", "ecs", "autoscaling"):
            answered_by(self.account.client(service), self.answer)
        self.s3, self.table = self.account.client("s3"), self.account.client("dynamodb")
        for bucket in ("uploads", "results"):
            self.s3.create_bucket(Bucket=bucket)
            self.s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
        for table, key in (("jobs", "job_id"), ("pools", "pool")):
            self.table.create_table(
                TableName=table,
                KeySchema=[{"AttributeName": key, "KeyType": "HASH"}],
                AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"}],
                BillingMode="PAY_PER_REQUEST",
            )

    def bench(self, files: list[Path], **changes: Any) -> Bench:
        self.said: list[str] = []
        asked = {"types": ["g4dn.xlarge", "g5.xlarge"], "jobs": 4, "queue": "default", "minutes": 30, **changes}
        return Bench(
            self.account,
            "one",
            Settings.read(
                {
                    "compute": {"instance_types": ["g4dn.xlarge", "g5.xlarge"]},
                    "queues": [{"prefix": "in/"}],
                    "on_demand": {"instance_types": ["g4dn.xlarge"]},
                }
            ),
            Asked(files=files, **asked),
            say=self.said.append,
            pause=self.pause,
            now=lambda: self.now,
        )

    def pause(self, seconds: float) -> None:
        self.paused += 1
        self.on_pause(self)
        self.now += timedelta(seconds=seconds)
        waiting = self._ingest()
        for task in list(self.tasks.values()):
            if self.instances[task["instance"]]["state"] != "running":
                task["status"] = "STOPPED"
            if task["status"] == "RUNNING" and waiting:
                self._work(task, *waiting.pop(0))
            if task["status"] == "STOPPING" or self.crashing:
                task["status"] = "STOPPED"
        for name in self.alive if self.serving else ():
            if self.instances[name]["joins"] <= self.now and self.instances[name]["status"] == "ACTIVE":
                self.on(name) or self.place(name)

    def _ingest(self) -> list[tuple[str, str]]:
        """Record what was uploaded. Key and job of all that waits."""
        known = self.jobs()
        waiting = {job_id: job["key"] for job_id, job in known.items() if job["state"] == "QUEUED"}
        for one in self.s3.list_object_versions(Bucket="uploads").get("Versions", ()):
            upload = Upload(bucket="uploads", key=one["Key"], version=one["VersionId"], etag="", size=0)
            if upload.job_id not in known:
                waiting[upload.job_id] = upload.key
                item = {"job_id": {"S": upload.job_id}, "state": {"S": "QUEUED"}, "key": {"S": upload.key}}
                self.table.put_item(TableName="jobs", Item=item)
        in_order = sorted((key, job_id) for job_id, key in waiting.items())
        return [one for one in in_order if int(one[0].rpartition("/")[2].partition("-")[0]) >= self.out_of_sight]

    def jobs(self) -> dict[str, dict[str, str]]:
        items = self.table.scan(TableName="jobs")["Items"]
        return {item["job_id"]["S"]: {k: v.get("S") or v.get("N", "") for k, v in item.items()} for item in items}

    def _work(self, task: dict[str, Any], key: str, job_id: str) -> None:
        kind = self.instances[task["instance"]]["type"]
        item = {
            "job_id": {"S": job_id},
            "key": {"S": key},
            "state": {"S": self.ends},
            "error": {"S": "cannot be decoded"},
            "attempts": {"N": "1"},
            "owner": {"S": task["arn"]},
            "started": {"S": self.now.isoformat()},
            "instance_type": {"S": kind},
            "gpu_seconds": {"N": str(WORK / SPEEDS[kind])},
        }
        self.table.put_item(TableName="jobs", Item=item)
        self.s3.put_object(Bucket="results", Key=f"{key}/{job_id}/a.webp", Body=b"done")

    def place(self, instance: str, by: str = "service") -> None:
        """A task on an instance."""
        arn = f"arn:aws:ecs:us-east-1:123456789012:task/cluster/{len(self.tasks):032x}"
        self.tasks[arn] = {"arn": arn, "instance": instance, "status": "RUNNING", "by": by}

    @property
    def alive(self) -> list[str]:
        return [name for name, one in self.instances.items() if one["state"] == "running"]

    def on(self, instance: str) -> list[dict[str, Any]]:
        """Tasks there that have not stopped."""
        return [one for one in self.tasks.values() if one["instance"] == instance and one["status"] != "STOPPED"]

    def answer(self, service: str, operation: str, params: dict[str, Any]) -> dict[str, Any]:
        return getattr(self, operation)(params)

    # The calls, as AWS spells them.

    def ListStackResources(self, params):
        if params["StackName"] != "one":
            raise Fault("ValidationError", "Stack with id two does not exist")
        held = {"ResourceStatus": "CREATE_COMPLETE", "LastUpdatedTimestamp": NOON, "ResourceType": "AWS::X::Y"}
        summaries = [{**held, "LogicalResourceId": name, "PhysicalResourceId": one} for name, one in self.ids.items()]
        return {"StackResourceSummaries": summaries}

    def DescribeStackResource(self, params):
        held = {"ResourceStatus": "CREATE_COMPLETE", "LastUpdatedTimestamp": NOON, "ResourceType": "AWS::X::Y"}
        name = params["LogicalResourceId"]
        return {"StackResourceDetail": {**held, "LogicalResourceId": name, "PhysicalResourceId": IDS[name]}}

    def DescribeAutoScalingGroups(self, params):
        group = {
            **{"AutoScalingGroupName": "group", "MinSize": 0, "MaxSize": 1, "DesiredCapacity": 0, "DefaultCooldown": 1},
            **{"AvailabilityZones": ["us-east-1a"], "HealthCheckType": "EC2", "CreatedTime": NOON},
            "VPCZoneIdentifier": ",".join(SUBNETS),
        }
        return {"AutoScalingGroups": [group]}

    def DescribeSubnets(self, params):
        return {"Subnets": [{"SubnetId": name, "AvailabilityZone": zone} for name, zone in SUBNETS.items()]}

    def DescribeSpotPriceHistory(self, params):
        one = {"AvailabilityZone": "us-east-1a", "Timestamp": NOON - timedelta(hours=2), "SpotPrice": "0.25"}
        return {"SpotPriceHistory": [{**one, "InstanceType": kind} for kind in params["InstanceTypes"]]}

    def DescribeLaunchTemplateVersions(self, params):
        assert params["Versions"] == ["$Latest"]
        return {"LaunchTemplateVersions": [{"VersionNumber": 7, "LaunchTemplateData": TEMPLATE}]}

    def RunInstances(self, params):
        self.ran.append(params)
        if params["SubnetId"] in self.full or params["InstanceType"] in self.rare:
            raise Fault("InsufficientInstanceCapacity", f"no capacity in {SUBNETS[params['SubnetId']]}")
        if len(self.alive) >= self.quota:
            raise Fault("MaxSpotInstanceCountExceeded", "Max spot instance count exceeded")
        name = f"i-{len(self.instances):017x}"
        kind = params["InstanceType"]
        self.instances[name] = {"type": kind, "state": "running", "at": self.now, "joins": self.now + self.joining}
        self.instances[name]["status"] = "ACTIVE"
        return {"Instances": [{"InstanceId": name}]}

    def DescribeInstances(self, params):
        wanted = {one["Name"]: one["Values"] for one in params["Filters"]}
        assert wanted["instance-state-name"] == ["pending", "running"]
        held = [{"InstanceId": name} for name in self.alive if name in wanted["instance-id"]]
        held = [one for one in held if self.now - self.instances[one["InstanceId"]]["at"] >= self.unseen]
        return {"Reservations": [{"Instances": [one]} for one in held]}

    def TerminateInstances(self, params):
        for name in params["InstanceIds"]:
            assert not self.on(name), "nothing is cut off"
            self.instances[name]["state"] = "terminated"
        return {}

    def ListContainerInstances(self, params):
        return {"containerInstanceArns": [f"arn:{name}" for name in self.alive if self._has_joined(name, params)]}

    def _has_joined(self, name, params):
        return name in params["filter"] and self.instances[name]["joins"] <= self.now

    def DescribeContainerInstances(self, params):
        return {"containerInstances": [self._member(arn.removeprefix("arn:")) for arn in params["containerInstances"]]}

    def _member(self, name):
        kind = self.instances[name]["type"]
        gpus = self.gpus.get(kind, INSTANCE_TYPES[kind].gpus)
        return {
            "ec2InstanceId": name,
            "containerInstanceArn": f"arn:{name}",
            "status": self.instances[name]["status"],
            "agentConnected": True,
            "runningTasksCount": len(self.on(name)),
            "pendingTasksCount": 0,
            "registeredResources": [
                {"name": "GPU", "type": "STRINGSET", "stringSetValue": [f"g{n}" for n in range(gpus)]}
            ],
        }

    def RunTask(self, params):
        assert params["taskDefinition"] == IDS["DefaultTask"]
        name = params["placementConstraints"][0]["expression"].removeprefix("ec2InstanceId == ")
        before = set(self.tasks)
        for _ in range(params["count"]):
            self.place(name, params["startedBy"])
        return {"tasks": [{"taskArn": arn} for arn in self.tasks if arn not in before]}

    def ListTasks(self, params):
        tasks = self.on(params["containerInstance"].removeprefix("arn:"))
        return {"taskArns": [one["arn"] for one in tasks if one["status"] == "RUNNING"]}

    def DescribeTasks(self, params):
        return {"tasks": [{"taskArn": arn, "stoppedReason": "CannotPullContainerError"} for arn in params["tasks"]]}

    def StopTask(self, params):
        self.tasks[params["task"]]["status"] = "STOPPING"
        return {}

    def UpdateContainerInstancesState(self, params):
        for arn in params["containerInstances"]:
            self.instances[arn.removeprefix("arn:")]["status"] = params["status"]
        return {}
