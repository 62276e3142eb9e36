"""AWS Batch's own doings as time passes: it buys machines, has ECS run jobs on them, and tries again.

A job is a task of ECS on an instance of EC2, so it is interrupted by the same rules as any other: the same market, the
same notice, the same end of the machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from localcloud import catalog
from localcloud.allocation import Offer, Quote, choose
from localcloud.batchjobs import AT_WORK, ENDED, Definition, Environment, Job, Queue, is_tried_again
from localcloud.instances import Instance, Instances, NoCapacity, OverQuota
from localcloud.launch import Blueprint
from localcloud.market import ON_DEMAND, SPOT, Pool
from localcloud.wire import Fault

if TYPE_CHECKING:
    from localcloud.ecs import Ecs

LOOK_SECONDS = 5.0
"""AWS's time between two looks of the scheduler."""
RUNNABLE_SECONDS = 3.0
"""From the submission of a job until it may run."""
RETRY_SECONDS = 30.0
"""Before an environment that found no room tries to launch again."""
IDLE_SECONDS = 120.0
"""How long an instance without a job is kept: chosen, AWS states none."""
USER_DATA = """#!/bin/bash
mkdir -p /etc/ecs
echo ECS_CLUSTER={cluster} >> /etc/ecs/ecs.config
"""
"""What Batch adds to an instance. It is not documented to let the log driver use the execution role: so it does not."""
UNKNOWN = "NotPlayed: its job definition was deregistered while it waited, and AWS does not say what follows"
"""Why a job has failed that may do so on AWS, or wait for ever, or run."""


class Keeper:
    """Everything that Batch has, and its heartbeat. Every method is called with the world's lock held."""

    def __init__(self, ecs: Ecs, instances: Instances) -> None:
        self.world = ecs.world
        self.environments: dict[str, Environment] = {}
        self.queues: dict[str, Queue] = {}
        self.definitions: dict[str, Definition] = {}
        """By ARN like the others; in the order of their registration."""
        self.jobs: dict[str, Job] = {}
        """By id, children not among them."""
        self._ecs, self._instances = ecs, instances
        self._next_look = self.world.now()
        self.world.every_heartbeat(self.step)

    @property
    def now(self) -> int:
        """Milliseconds since the epoch."""
        return int(self.world.now().timestamp() * 1000)

    def due(self) -> datetime:
        """When what is submitted now may run."""
        return self._in(RUNNABLE_SECONDS)

    def find(self, job_id: str) -> Job | None:
        """A job, or the child `<array>:<index>`."""
        parent, _, index = job_id.partition(":")
        job = self.jobs.get(parent)
        if job is None or not index:
            return job
        return job.children[int(index)] if index.isdigit() and int(index) < len(job.children) else None

    def end(self, job: Job, reason: str) -> None:
        """Terminate it: what waits has failed, what runs is told to stop."""
        for one in job.each:
            if one.status in AT_WORK:
                self._stop(one, reason)
            elif one.status not in ENDED:
                self._over(one, "FAILED", reason)
        job.settle(self.now)

    def instances_of(self, environment: Environment) -> list[Instance]:
        """Those that live."""
        return self._instances.of(owner_of(environment))

    def replace_machines(self, environment: Environment, blueprint: Blueprint) -> None:
        """Launch from another blueprint, and let the machines of the earlier one go as soon as they are idle."""
        environment.blueprint = blueprint
        latest = self._in(environment.update_minutes * 60)
        for instance in self.instances_of(environment):
            environment.outdated[instance.id] = latest

    def step(self, now: datetime) -> None:
        """One heartbeat."""
        for job in self.jobs.values():
            if job.status not in ENDED:
                for one in job.each:
                    self._follow(one, now)
                job.settle(self.now)
        if now < self._next_look:
            return
        self._next_look = self._in(LOOK_SECONDS)
        self._refuse_unknown()
        waiting = self._place()
        self._grow(waiting, now)
        for environment in self.environments.values():
            self._shrink(environment, now)

    def deregister(self, definition: Definition) -> None:
        """Let nothing more be submitted with it. An attempt that runs goes on, as a task of ECS does."""
        if definition.status == "ACTIVE":
            definition.status = "INACTIVE"
            self._ecs.perform("DeregisterTaskDefinition", {"taskDefinition": definition.task_definition})

    def _refuse_unknown(self) -> None:
        """Fail what waits with a job definition that was deregistered: AWS does not say what becomes of it."""
        for job in self._runnable():
            if job.definition.status != "ACTIVE":
                self.world.note("fault", job.id, definition=job.definition.arn)
                self._over(job, "FAILED", UNKNOWN)

    # Jobs

    def _follow(self, job: Job, now: datetime) -> None:
        """What became of it since the last look."""
        if job.status == "SUBMITTED" and job.due <= now:
            job.status = "RUNNABLE"
        if job.status not in AT_WORK:
            return
        task = self._ecs.state.tasks[job.task]
        if task["lastStatus"] == "RUNNING" and job.status == "STARTING":
            job.status, job.started = "RUNNING", self.now
        if task["lastStatus"] == "STOPPED":
            self._judge(job, task)
        elif job.status == "RUNNING" and (limit := job.definition.seconds) and self.now - job.started > limit * 1000:
            self._stop(job, "Job attempt duration exceeded timeout")

    def _judge(self, job: Job, task: dict[str, Any]) -> None:
        """An attempt is over."""
        container = task["containers"][0]
        code, reason = container.get("exitCode"), container.get("reason", "")
        why = job.ending or task.get("stoppedReason", "")
        job.attempts.append(
            {
                "container": {
                    "containerInstanceArn": task["containerInstanceArn"],
                    "taskArn": task["taskArn"],
                    **({} if code is None else {"exitCode": code}),
                    **({"reason": reason} if reason else {}),
                },
                "startedAt": job.started,
                "stoppedAt": self.now,
                "statusReason": why,
            }
        )
        self.world.note("batch attempt", job.id, attempt=len(job.attempts), exit=code, reason=why)
        if code == 0 and not job.ending:
            self._over(job, "SUCCEEDED", why)
        elif is_tried_again(job, code, reason, why):
            job.status, job.task = "RUNNABLE", ""
        else:
            self._over(job, "FAILED", why)

    def _over(self, job: Job, status: str, reason: str) -> None:
        job.status, job.reason, job.stopped = status, reason, self.now
        self.world.note("batch job", job.id, status=status, reason=reason)

    def _stop(self, job: Job, reason: str) -> None:
        if not job.ending:
            job.ending = reason
            self._ecs.state.stop_task(self._ecs.state.tasks[job.task], "UserInitiated", reason)

    def _place(self) -> list[Job]:
        """Have what may run run where there is room, in the order of the queues; what is left waits."""
        full: set[tuple[str, str]] = set()
        waiting = []
        for job in self._runnable():
            queue = self.queues[job.queue]
            for where in queue.order:
                if (where, job.definition.arn) in full or self.environments[where].deleting:
                    continue
                if self._start(job, queue, self.environments[where]):
                    break
                full.add((where, job.definition.arn))
            else:
                waiting.append(job)
        return waiting

    def _runnable(self) -> Iterator[Job]:
        for queue in sorted(self.queues.values(), key=lambda one: -one.priority):
            if queue.state == "ENABLED":
                mine = [job for job in self.jobs.values() if job.queue == queue.arn and job.status not in ENDED]
                yield from (one for job in mine for one in job.each if one.status == "RUNNABLE")

    def _start(self, job: Job, queue: Queue, environment: Environment) -> bool:
        """Have ECS run it; False when there is no room."""
        told = {
            **job.environment,
            "AWS_BATCH_JOB_ID": job.id,
            "AWS_BATCH_JOB_ATTEMPT": str(len(job.attempts) + 1),
            "AWS_BATCH_JQ_NAME": queue.name,
            "AWS_BATCH_CE_NAME": environment.name,
            **({} if job.index is None else {"AWS_BATCH_JOB_ARRAY_INDEX": str(job.index)}),
        }
        variables = [{"name": name, "value": value} for name, value in told.items()]
        try:
            answer = self._ecs.perform(
                "RunTask",
                {
                    "cluster": environment.cluster,
                    "taskDefinition": job.definition.task_definition,
                    "overrides": {"containerOverrides": [{"name": "default", "environment": variables}]},
                },
            )
        except Fault:  # no instance has joined
            return False
        if not answer["tasks"]:
            return False
        job.status, job.task = "STARTING", answer["tasks"][0]["taskArn"]
        return True

    # Machines

    def _grow(self, waiting: list[Job], now: datetime) -> None:
        """Launch what those that wait need beyond what is on its way, each in the first environment that finds room."""
        coming = {arn: self._coming(one) for arn, one in self.environments.items()}
        for job in waiting:
            for where in self.queues[job.queue].order:
                environment = self.environments[where]
                needs = job.definition.needs
                if (
                    not environment.deleting
                    and coming[where] < needs["GPU"]
                    and (launched := self._launch(environment, job.definition, now))
                ):
                    coming[where] += catalog.gpus(launched.pool.type)
                if coming[where] >= needs["GPU"]:
                    coming[where] -= needs["GPU"]
                    break

    def _coming(self, environment: Environment) -> int:
        """GPUs of instances that have not joined yet."""
        joined = {
            one["ec2InstanceId"]
            for one in self._ecs.state.instances.values()
            if one["_cluster"].endswith(f"/{environment.cluster}")
        }
        return sum(catalog.gpus(one.pool.type) for one in self.instances_of(environment) if one.id not in joined)

    def _launch(self, environment: Environment, definition: Definition, now: datetime) -> Instance | None:
        """One instance on which the job fits; None when there is no room, or the environment has all it may."""
        if environment.retry_at and now < environment.retry_at:
            return None
        environment.retry_at = None
        have = sum(catalog.vcpus(one.pool.type) for one in self.instances_of(environment))
        offers = [
            offer
            for offer in self._offers(environment, definition)
            if have + catalog.vcpus(offer.pool.type) <= environment.most_vcpus
        ]
        if not offers:
            return None
        while offers:
            offer = self._best(environment, offers)
            offers.remove(offer)
            try:
                return self._instances.launch(
                    offer.pool.type,
                    environment.market,
                    offer.subnet,
                    environment.blueprint,
                    owner_of(environment),
                    environment.tags,
                    now,
                )
            except (NoCapacity, OverQuota):
                continue
        environment.retry_at = self._in(RETRY_SECONDS)
        self.world.note("batch found no capacity", environment.name)
        return None

    def _offers(self, environment: Environment, definition: Definition) -> list[Offer]:
        needs = definition.needs
        fit = [
            kind
            for kind in environment.types
            if catalog.gpus(kind) >= needs["GPU"]
            and catalog.vcpus(kind) >= needs["VCPU"]
            and catalog.memory_mib(kind) >= needs["MEMORY"]
        ]
        return [
            Offer(Pool(kind, subnet.zone), subnet, catalog.vcpus(kind), 0, environment.blueprint)
            for kind in fit
            for subnet in environment.subnets
        ]

    def _best(self, environment: Environment, offers: list[Offer]) -> Offer:
        """By price and room on Spot; On-Demand the cheapest for a vCPU, in whatever zone."""
        market, minute = self._instances.market, timedelta(seconds=self.world.scaled(60))
        quotes = []
        for offer in offers:
            market.open(offer.pool, catalog.on_demand_usd(offer.pool.type), self.world.now(), minute)
            price = market.price(offer.pool, environment.market)
            quotes.append(Quote(offer, price, market.free(offer.pool), 0))
        strategy = "priceCapacityOptimized" if environment.market == SPOT else "lowestPrice"
        return choose(strategy, quotes, self.world.dice).offer

    def _shrink(self, environment: Environment, now: datetime) -> None:
        """Let go what has been idle for long, and what an update replaces."""
        joined = {
            one["ec2InstanceId"]: one for one in self._ecs.state.instances.values() if one["status"] != "INACTIVE"
        }
        for instance in self.instances_of(environment):
            host = joined.get(instance.id)
            outdated = environment.outdated.get(instance.id)
            if outdated and host and host["status"] == "ACTIVE":
                self._ecs.state.change_instance(host, status="DRAINING")
            busy = host is None or any(self._ecs.state.tasks_of(instance=host["containerInstanceArn"]))
            if busy:
                environment.idle.pop(instance.id, None)
            else:
                environment.idle.setdefault(instance.id, now)
            patience = timedelta(seconds=self.world.scaled(0 if outdated else IDLE_SECONDS))
            rests = instance.id in environment.idle and now - environment.idle[instance.id] >= patience
            if environment.deleting or rests or (outdated and now >= outdated):
                environment.idle.pop(instance.id, None)
                environment.outdated.pop(instance.id, None)
                self._instances.terminate(instance, "group", now)

    def _in(self, seconds: float) -> datetime:
        return self.world.now() + timedelta(seconds=self.world.scaled(seconds))


def owner_of(environment: Environment) -> str:
    """Whose instances they are: Batch has an Auto Scaling group for each environment, which is not shown here."""
    return f"{environment.cluster}-asg"


def joins(blueprint: Blueprint, cluster: str) -> Blueprint:
    """A blueprint with what Batch adds to it."""
    return replace(blueprint, user_data=USER_DATA.format(cluster=cluster))


MARKETS = {"SPOT": SPOT, "EC2": ON_DEMAND}
