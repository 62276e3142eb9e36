"""Take a stack down, and prove by API that nothing of it runs any more.

First the brain is stilled (its Lambda may not run again), then the workers give their jobs back, fleets and groups are
set to zero, and CloudFormation deletes; instances that nobody owns any more are ended while it does. What retention
keeps is told, or deleted too. What could not be looked at is told as such: it is never taken for nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import takewhile
from typing import Any, TypeVar

from botocore.exceptions import BotoCoreError, ClientError

from ops.account import Account, NoSuchStack, code, told
from ops.ami import ENDED
from ops.batch import AT_WORK, WAITING
from ops.kept import EMPTY, KEY, KEY_DAYS, KINDS, QUEUE, Kind
from ops.remains import Look, Remains, Resource

Found = TypeVar("Found")
OURS = "Spindrift"
"""How the description of every stack of ours begins."""
BRAIN = "CapacityFunction"
JOBS = "Jobs"
"""What the titles of job queues end with."""
LAUNCHERS = (
    "AWS::EC2::SpotFleet",
    "AWS::AutoScaling::AutoScalingGroup",
    "AWS::ECS::Service",
    "AWS::Batch::ComputeEnvironment",
)
"""Who owns instances or the work on them. While one of these is there, it takes its instances with it, gently."""
DELETED, SKIPPED, FAILED = "DELETE_COMPLETE", "DELETE_SKIPPED", "DELETE_FAILED"
SETTLE_SECONDS = 60
"""So long after the last sender has gone SQS's counts can be believed (SQS API reference, GetQueueAttributes)."""
PATIENCE_SECONDS = 90
"""How long a thing may still be seen that has gone: SQS takes 60 s for a queue, EC2 is consistent in the end."""
PAUSE_SECONDS = 5
"""Between looks. One alone proves nothing: Lambda may write its log group anew in the seconds after its end."""
LONGEST_PAUSE_SECONDS = 15


class CouldNotTakeDown(Exception):
    """CloudFormation refused, or not in time, or there is work that would be lost; the message says what to do."""


class Down:
    """The end of one stack. Raises NoSuchStack; any method may raise ClientError or BotoCoreError."""

    def __init__(
        self,
        account: Account,
        name: str,
        *,
        say: Callable[[str], None],
        wait_minutes: float,
        end_jobs: bool = False,
    ) -> None:
        self._account = account
        self._name = name
        self._say = say
        self._end_jobs = end_jobs
        self._until = time.monotonic() + 60 * wait_minutes
        self._cloudformation = account.client("cloudformation")
        stack = self._find()
        self._id = str(stack["StackId"])
        self._deleted_before = stack["StackStatus"] == DELETED
        self._remains = Remains(account, name, self._resources())

    def plan(self, delete_data: bool) -> Iterator[str]:
        """What will go and what will stay, for a person to read before it happens.

        Raises CouldNotTakeDown, once it has told all, when jobs of Batch would end that may not.
        """
        if self._deleted_before:
            yield f"stack {self._name} in {self._account.region} is deleted already; this is what may be left of it"
        else:
            yield f"stack {self._name} in {self._account.region}: {len(self._listed())} resources"
        for thing in (*self._remains.instances(), *self._found("job definitions", self._remains.definitions)):
            yield f"goes: {thing}"
        data, unseen = self._data()
        titles = {(kind, kind.name(one.id)): one.title for kind in KINDS for one in self._remains.of(kind.type)}
        for kind, name, state in data:
            if titles.get((kind, name), "").endswith(JOBS):
                yield f"jobs: {titles[kind, name]}: {state}"
        retained = self._retained()
        own = {kind: self._remains.own(kind) for kind in {kind for kind, _, _ in data}}
        for kind, name, state in data:
            ours = name in own[kind]
            if not ours or kind.find or titles[kind, name] in retained:
                yield f"{_fate(kind, ours, delete_data)}: {kind.noun} {name} ({state})"
        for noun, reason in unseen.items():
            yield f"could not look for {noun}: {reason}"
        jobs = self._unfinished_jobs()
        for job in jobs:
            yield f"ends: job {job['jobId']} of Batch ({job['status']})"
        if jobs and not self._end_jobs:
            raise CouldNotTakeDown(
                "Batch is not done with these jobs, and what is left of them would end with the stack: wait "
                f"(python build.py batch status --stack {self._name}), or add --end-jobs"
            )

    def run(self, delete_data: bool) -> bool:
        """Take it down. Returns whether it is proved that nothing is left but what is kept on purpose."""
        if not self._deleted_before:
            self._still()
            failed = self._delete()
            if failed:
                # Most often an instance held them that took its time; by now it can have gone.
                self._say(f"{len(failed)} resources could not be deleted; once more, without any instance")
                self._end_instances(wait=True)
                failed = self._delete()
            if failed:
                self._tell_failed(failed)
                data = {one[:2] for one in self._data()[0]}
                self._tell_left(self._remains.look(keeping=data, removed=()), {})
                return False
        wanted, removed = self._remove_data(delete_data)
        keeping = [one for one in self._data()[0] if one[:2] not in wanted]
        look, refused = self._look_until_clean({one[:2] for one in keeping}, removed)
        self._tell_left(look, refused)
        for kind, name, state in keeping:
            self._say(f"kept: {kind.noun} {name} ({state})\n      {kind.command(self._account, name)}")
        if keeping:
            self._say(f"      or all of it: python build.py down --stack {self._name} --delete-data")
        if look.clean:
            but = " but those named above" if any(kind is QUEUE for kind, _, _ in keeping) else ""
            self._say(
                f"proved: of {self._name} there is no instance, Spot Fleet, Auto Scaling group, network interface, log "
                f"group, job definition or queue{but}"
            )
        return look.clean

    def _find(self) -> Mapping[str, Any]:
        """The stack of that name, or the last one that was deleted under it."""
        try:
            found = self._cloudformation.describe_stacks(StackName=self._name)["Stacks"][0]
        except ClientError as error:
            if code(error) != "ValidationError":
                raise
            past = self._account.all("cloudformation", "list_stacks", "StackSummaries", StackStatusFilter=[DELETED])
            named = [one for one in past if one["StackName"] == self._name]
            if not named:
                missing = f"there is no stack {self._name} in {self._account.region}"
                raise NoSuchStack(f"{missing}; {self._ours()}") from error
            last = max(named, key=lambda one: one["CreationTime"])["StackId"]
            found = self._cloudformation.describe_stacks(StackName=last)["Stacks"][0]
        if not found.get("Description", "").startswith(OURS):
            raise NoSuchStack(f"{self._name} is not a stack of Spindrift; {self._ours()}")
        stack: Mapping[str, Any] = found
        return stack

    def _ours(self) -> str:
        stacks = self._account.all("cloudformation", "describe_stacks", "Stacks")
        names = sorted(one["StackName"] for one in stacks if one.get("Description", "").startswith(OURS))
        return f"there are {', '.join(names)}" if names else "there is none of ours"

    def _resources(self) -> frozenset[Resource]:
        """What the stack has and had: an update may have failed to remove what it replaced."""
        events = self._account.all("cloudformation", "describe_stack_events", "StackEvents", StackName=self._id)
        return frozenset(
            Resource(one["LogicalResourceId"], one["ResourceType"], one["PhysicalResourceId"])
            for one in [*events, *self._listed()]
            if one.get("PhysicalResourceId") not in (None, "", self._id)
        )

    def _listed(self) -> list[Mapping[str, Any]]:
        """The stack's resources that CloudFormation has not done with."""
        found = self._account.all(
            "cloudformation", "list_stack_resources", "StackResourceSummaries", StackName=self._id
        )
        return [one for one in found if one["ResourceStatus"] not in (DELETED, SKIPPED)]

    def _retained(self) -> set[str]:
        """Titles of what survives the stack's end."""
        body = self._cloudformation.get_template(StackName=self._id)["TemplateBody"]
        return {title for title, one in body["Resources"].items() if "Retain" in one.get("DeletionPolicy", "")}

    def _data(self) -> tuple[list[tuple[Kind, str, str]], dict[str, str]]:
        """All that holds data and is there (kind, name, state), and by noun why others could not be looked for."""
        data, unseen = [], {}
        for kind in KINDS:
            try:
                for name in self._remains.candidates(kind):
                    if (state := kind.state(self._account, name)) is not None:
                        data.append((kind, name, state))
            except (BotoCoreError, ClientError) as error:
                unseen[f"{kind.noun}s"] = told(error)
        return data, unseen

    def _still(self) -> None:
        """Let nothing launch again. What fails is told and goes on: CloudFormation ends the same things."""
        for job in self._found("jobs of Batch", self._unfinished_jobs):
            self._attempt(
                f"job {job['jobId']} of Batch is told to end",
                "batch",
                "terminate_job",
                jobId=job["jobId"],
                reason="the stack is taken down",
            )
        for build in self._found("images that are being baked", self._running_builds):
            self._attempt(f"{build} is cancelled", "imagebuilder", "cancel_image_creation", imageBuildVersionArn=build)
        brain = [one.id for one in self._remains.of("AWS::Lambda::Function") if one.title == BRAIN]
        for name in brain:
            # No concurrency stops it whoever calls: the event source, the minute, an alarm.
            self._attempt(
                f"the capacity Lambda {name} runs no more",
                "lambda",
                "put_function_concurrency",
                FunctionName=name,
                ReservedConcurrentExecutions=0,
            )
        for service in self._remains.of("AWS::ECS::Service"):
            _, its_cluster, name = service.id.split("/")
            self._attempt(
                f"service {name} wants no task any more",
                "ecs",
                "update_service",
                cluster=its_cluster,
                service=name,
                desiredCount=0,
            )
        for cluster in self._remains.of("AWS::ECS::Cluster"):
            self._stop_tasks(cluster.id)
        for fleet in self._remains.fleets():
            self._attempt(
                f"Spot Fleet {fleet.name} wants nothing any more",
                "ec2",
                "modify_spot_fleet_request",
                SpotFleetRequestId=fleet.name,
                TargetCapacity=0,
                # Its instances go with it, after their workers were told to stop.
                ExcessCapacityTerminationPolicy="noTermination",
            )
        for group in self._remains.groups():
            self._attempt(
                f"group {group.name} wants nothing any more",
                "autoscaling",
                "update_auto_scaling_group",
                AutoScalingGroupName=group.name,
                MinSize=0,
                MaxSize=0,
                DesiredCapacity=0,
            )

    def _unfinished_jobs(self) -> list[Mapping[str, Any]]:
        """Batch's jobs that are not over; of an array the array. Its queues may have gone before."""
        names = [one.id for one in self._remains.of("AWS::Batch::JobQueue")]
        if self._deleted_before or not names:
            return []
        there = self._account.all("batch", "describe_job_queues", "jobQueues", jobQueues=names)
        return [
            job
            for queue in there
            for status in (*WAITING, *AT_WORK)
            for job in self._account.all(
                "batch", "list_jobs", "jobSummaryList", jobQueue=queue["jobQueueArn"], jobStatus=status
            )
        ]

    def _running_builds(self) -> list[str]:
        """Images that are being baked. Their instances are not the pipeline's: they would outlive it."""
        return [
            one["arn"]
            for pipeline in self._remains.of("AWS::ImageBuilder::ImagePipeline")
            if pipeline.id in {listed.get("PhysicalResourceId") for listed in self._listed()}
            for one in self._account.all(
                "imagebuilder", "list_image_pipeline_images", "imageSummaryList", imagePipelineArn=pipeline.id
            )
            if one["state"]["status"] not in ENDED
        ]

    def _stop_tasks(self, cluster: str) -> None:
        """Have each worker give its job back. A busy one is protected, and would go on as long as there is work."""
        try:
            tasks = self._account.all("ecs", "list_tasks", "taskArns", cluster=cluster)
            for task in tasks:
                self._account.client("ecs").stop_task(cluster=cluster, task=task, reason="the stack is taken down")
        except (BotoCoreError, ClientError) as error:
            if code(error) != "ClusterNotFoundException":
                self._say(f"not so: every task of {cluster} is told to stop: {told(error)}")
        else:
            self._say(f"{len(tasks)} tasks are told to stop: their jobs go back to the queues")

    def _found(self, what: str, look: Callable[[], list[Found]]) -> list[Found]:
        try:
            return look()
        except (BotoCoreError, ClientError) as error:
            self._say(f"could not look for {what}: {told(error)}")
            return []

    def _attempt(self, done: str, service: str, operation: str, /, **parameters: Any) -> None:
        try:
            getattr(self._account.client(service), operation)(**parameters)
        except (BotoCoreError, ClientError) as error:
            self._say(f"not so: {done}: {told(error)}")
        else:
            self._say(done)

    def _delete(self) -> list[Mapping[str, Any]]:
        """Have CloudFormation delete it; the events of what it could not delete. Raises CouldNotTakeDown."""
        last = self._cloudformation.describe_stack_events(StackName=self._id)["StackEvents"][0]["EventId"]
        total, told_last = len(self._listed()), ""
        try:
            self._cloudformation.delete_stack(StackName=self._id)
        except ClientError as error:
            raise CouldNotTakeDown(f"CloudFormation does not delete {self._name}: {told(error)}") from error
        for _ in self._pauses():
            status = self._cloudformation.describe_stacks(StackName=self._id)["Stacks"][0]["StackStatus"]
            there = [] if status == DELETED else self._listed()
            now = ", ".join(one["LogicalResourceId"] for one in there if one["ResourceStatus"] == "DELETE_IN_PROGRESS")
            progress = f"{total - len(there)} of {total} resources are done with{f'; now {now}' if now else ''}"
            if progress != told_last:
                self._say(progress)
                told_last = progress
            if not any(one["ResourceType"] in LAUNCHERS for one in there):
                self._end_instances(wait=False)
            if status == DELETED:
                return []
            if status != "DELETE_IN_PROGRESS":
                break
        else:
            raise CouldNotTakeDown(f"{self._name} is still being deleted; run this again to go on waiting for it")
        pages = self._cloudformation.get_paginator("describe_stack_events").paginate(StackName=self._id)
        events = (event for page in pages for event in page["StackEvents"])
        return [
            event
            for event in takewhile(lambda event: event["EventId"] != last, events)
            if event["ResourceStatus"] == FAILED and event["PhysicalResourceId"] != self._id
        ]

    def _tell_failed(self, events: list[Mapping[str, Any]]) -> None:
        for event in events:
            self._say(
                f"could not be deleted: {event['LogicalResourceId']} ({event['ResourceType']} "
                f"{event['PhysicalResourceId']}): {event.get('ResourceStatusReason', 'no reason given')}"
            )
        names = " ".join(event["LogicalResourceId"] for event in events)
        self._say(
            f"Take away what each reason names and run this again. Or leave these behind, and then run this again:\n"
            f"  aws cloudformation delete-stack --stack-name {self._name} --retain-resources {names}"
        )

    def _tell_left(self, look: Look, refused: Mapping[str, str]) -> None:
        for noun, reason in look.unseen.items():
            self._say(f"could not look for {noun}: {reason}")
        for thing in look.things:
            self._say(f"left: {thing}{': ' + refused[thing.name] if thing.name in refused else ''}")

    def _end_instances(self, *, wait: bool) -> None:
        for _ in self._pauses():
            things = self._remains.instances()
            if strays := [thing for thing in things if not thing.leaving]:
                self._say(f"ending {', '.join(thing.name for thing in strays)}")
                self._remains.end(strays)
            if not things or not wait:
                return

    def _remove_data(self, everything: bool) -> tuple[set[tuple[Kind, str]], set[tuple[Kind, str]]]:
        """Delete what holds data: empty queues, or everything that the stack made. What should go, and what went."""
        wanted: set[tuple[Kind, str]] = set()
        removed: set[tuple[Kind, str]] = set()
        found = [one for one in self._data()[0] if one[1] in self._remains.own(one[0])]
        if not everything:
            found = [one for one in found if one[0] is QUEUE and one[2] == EMPTY]
            if found:
                self._settle()
        for kind, name, _ in found:
            if not everything and QUEUE.state(self._account, name) != EMPTY:
                continue
            wanted.add((kind, name))
            if kind is KEY and removed != wanted - {(kind, name)}:
                self._say(f"key {name} is not deleted: it reads what could not be deleted")
                continue
            try:
                kind.remove(self._account, name)
            except (BotoCoreError, ClientError) as error:
                self._say(f"{kind.noun} {name} is not deleted: {told(error)}")
            else:
                removed.add((kind, name))
                when = f"; its end is in {KEY_DAYS} days: aws kms cancel-key-deletion --key-id {name}" * (kind is KEY)
                self._say(f"{kind.noun} {name} is deleted{when}")
        return wanted, removed

    def _settle(self) -> None:
        """Wait until SQS's counts can be believed: they are approximate while, and shortly after, somebody sends."""
        events = self._cloudformation.describe_stack_events(StackName=self._id)["StackEvents"]
        since = (datetime.now(UTC) - events[0]["Timestamp"]).total_seconds()
        if (rest := SETTLE_SECONDS - since) > 0:
            self._say(f"waiting {min(rest, SETTLE_SECONDS):.0f} s: only then SQS is sure that a queue is empty")
            time.sleep(min(rest, SETTLE_SECONDS))

    def _look_until_clean(
        self, keeping: set[tuple[Kind, str]], removed: set[tuple[Kind, str]]
    ) -> tuple[Look, dict[str, str]]:
        """The last look, and why strays could not be ended. It is clean only if the one before it was clean too."""
        patience, clean_before, refused = time.monotonic() + PATIENCE_SECONDS, False, dict[str, str]()
        look = Look()
        self._until = max(self._until, patience)
        for _ in self._pauses(PAUSE_SECONDS):
            look = self._remains.look(keeping=keeping, removed=removed)
            if look.clean and clean_before:
                return look, refused
            clean_before = look.clean
            refused = self._remains.end(look.things)
            going = any(thing.leaving for thing in look.things)
            if not look.clean and not going and time.monotonic() > patience:
                break
        else:
            if look.clean:
                look.unseen["anything a second time"] = "the time was up"
        return look, refused

    def _pauses(self, least: float = 0.5) -> Iterator[None]:
        """Let the caller look again and again, less and less often, until the deadline."""
        pause = least
        yield
        while (left := self._until - time.monotonic()) > 0:
            time.sleep(min(pause, left))
            yield
            pause = min(pause * 1.5, LONGEST_PAUSE_SECONDS)


def _fate(kind: Kind, ours: bool, delete_data: bool) -> str:
    """What becomes of something that outlives its stack."""
    if not ours:
        return "stays, for this stack did not make it"
    if not delete_data:
        return "stays unless it is empty" if kind is QUEUE else "stays"
    if kind is KEY:
        return f"goes in {KEY_DAYS} days"
    return f"goes, and {kind.without}" if kind.without else "goes with all that is in it"
