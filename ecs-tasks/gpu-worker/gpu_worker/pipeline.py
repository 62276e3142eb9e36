"""The worker: takes jobs, carries each through its stages, and leaves nothing in hand.

A message tells of one job, or is an S3 event of any number of uploads; it is deleted when all its jobs are over.

Every message in hand has a thread of its own that claims its job, downloads, waits for a processor, uploads, and writes
down how it ended: so one job is downloaded while another is processed and a third stored. How many are in hand is
bounded by what can begin soon. The main thread keeps their leases, decides when a job must be given back, and gives it
back at any moment, whatever its own thread is stuck in.

The two may contradict each other, and the job's record decides: each write asks for the same owner and attempt, so of a
release and a finish one wins and the other hears of it. The record is always written first and the message changed
last: what dies in between leaves a message that finds out, and never a job without one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from threading import Lock, Thread
from typing import TypeVar

from gpu_worker import health, parts, results, sharing
from gpu_worker.checkpoint import Checkpoint, stop_at, tell
from gpu_worker.cloud import Cloud, CloudError, LostLease, Message, Trouble
from gpu_worker.cost import Price, Share, Spent, pool_of, usd_per_hour
from gpu_worker.handover import LAST_CALL, Pace, give_back_at
from gpu_worker.held import GivenBack, Held
from gpu_worker.host import Host, Protection
from gpu_worker.intake import NOW, free_in, to_take
from gpu_worker.job import Job, NotAJob
from gpu_worker.lanes import Lanes
from gpu_worker.lease import Bury, Drop, Hide, Lapsed, Lease, Suspect, inquest, renew_at, when_refused
from gpu_worker.log import log
from gpu_worker.metrics import Metric, Tally, embedded
from gpu_worker.outbox import Outbox
from gpu_worker.outcome import DONE, NOT_NOW, REJECTED, Finish, Outcome, Reject, Rejected, Release, Retry, settle
from gpu_worker.parts import Piece, Work
from gpu_worker.processor import parts_dir
from gpu_worker.scratch import NoRoom, Scratch
from gpu_worker.settings import Settings
from gpu_worker.upload import told_by_s3

T = TypeVar("T")

TICK = 0.05
"""Seconds between two looks at the clock and the notice file."""

AGAIN = timedelta(seconds=1)

ASK_EVERY = timedelta(seconds=30)
"""Between two questions whether the host is being drained: ECS answers some twenty a second for the whole account."""

PATIENCE = timedelta(seconds=30)
"""A job that waits so long behind another is given back: some other worker may have a processor for it."""


@dataclass(frozen=True)
class Attempt:
    """How the work on a job ended, and the keys of what it stored; or the parts that it was split into instead."""

    outcome: Outcome
    outputs: tuple[str, ...] = ()
    parts: tuple[Piece, ...] = ()


def in_a_thread(work: Callable[[], None]) -> None:
    """Start the work; nobody waits for it when the worker leaves."""
    Thread(target=work, daemon=True).start()


class Worker:
    """Takes jobs until it is told to go."""

    def __init__(
        self,
        settings: Settings,
        cloud: Cloud,
        host: Host,
        lanes: Lanes,
        scratch: Scratch,
        protection: Protection,
        owner: str,
        now: Callable[[], datetime],
        start: Callable[[Callable[[], None]], None] = in_a_thread,
    ) -> None:
        self._settings = settings
        self._cloud = cloud
        self._host = host
        self._lanes = lanes
        self._scratch = scratch
        self._protection = protection
        self._owner = owner
        self._now = now
        self._start = start
        self._outbox = Outbox(cloud)
        self._lock = Lock()
        self._hands: set[Held] = set()
        self._receiving = False
        self._idle = False
        self._pace = Pace()
        self._tally = Tally(lanes.count, now())
        self._price = Price()
        self._drained = False
        self._asked: datetime | None = None

    def run(self) -> None:
        """Work until SIGTERM or a notice; then finish what fits, and leave nothing in hand."""
        while not self._host.doom(self._now()):
            rests = self._rests()
            self._keep()
            if not (rests or self._receiving):
                self._take()
            self._host.pause(TICK)
        while self._receiving or self._in_hand():
            self._keep()
            self._host.pause(TICK)
        log("leaving")
        self._outbox.close()
        self._lanes.close()
        self._protection.drop()

    # The main thread: what to take, what to keep, what to give back.

    def _rests(self) -> bool:
        """Whether the host is being drained though nobody takes it: then what was begun here is the last.

        ECS leaves a protected task alone, and this one is protected as long as it finds work. Not knowing is no reason
        to stop.
        """
        host, now = self._host.may_be_drained(), self._now()
        if host and (self._asked is None or now - self._asked >= ASK_EVERY):
            self._asked = now
            try:
                drained = self._cloud.draining(host)
            except CloudError as error:
                log("trouble", error=str(error))
            else:
                if drained != self._drained:
                    log("resting" if drained else "needed again", host=host)
                self._drained = drained
        return self._drained

    def _take(self) -> None:
        """Ask for as many messages as can begin soon, beside everything else."""
        hands, now = self._in_hand(), self._now()
        eta = self._pace.eta(0)
        frees = [free_in(now - (held.began or now), eta) for held in self._lanes.working()]
        frees += [NOW] * (self._lanes.count - len(frees))
        waiting, storing = sum(held.began is None for held in hands), sum(held.ended is not None for held in hands)
        if most := to_take(frees, eta, waiting, storing):
            self._receiving = True
            self._start(lambda: self._receive(most))

    def _keep(self) -> None:
        """Give back what must be, extend the leases of the rest; be protected while there is something to protect."""
        hands, now = [held for held in self._in_hand() if not held.gone], self._now()
        try:
            if leaving := [held for held in hands if self._must_go(held, now)]:
                self._give_back(leaving)
            if due := [held for held in hands if not held.gone and now >= held.renew_at]:
                self._renew(due, now)
        except CloudError as error:
            log("trouble", error=str(error))
            self._host.pause(AGAIN.total_seconds())
        self._lanes.clear()
        if measured := self._tally.due(now, health.busy()):
            log("minute", **embedded(self._settings.stack, self._settings.queue, measured, now))
        if hands:
            self._protection.hold(now)
        elif self._idle or self._drained:
            self._protection.drop()  # so that ECS may stop this task, as it does the others of a draining host

    def _must_go(self, held: Held, now: datetime) -> bool:
        if held.began is None and (self._drained or now - held.since > PATIENCE):
            return True
        doom, size = self._host.doom(now), held.lease.job.size if held.lease else 0
        if doom is None:
            return False
        if held.deadline_file and not held.deadline_file.exists():
            tell(held.deadline_file, doom)
        at = give_back_at(doom, held.began, self._pace.eta(size))
        if held.began and held.checkpoint and held.checkpoint.used:  # its own thread keeps that and releases the job
            held.stopped |= now >= stop_at(doom, at)
            at = doom.deadline - LAST_CALL
        return now >= at

    def _give_back(self, leaving: Sequence[Held]) -> None:
        """Release the jobs, then show their messages to others. Raises CloudError for the last that would not go."""
        back, trouble = [], None
        for held in leaving:
            with self._lock:
                lease = held.lease
                held.gone = lease is None  # its own thread will see that before it works on it
            try:
                if lease:
                    self._cloud.release(lease, self._spent(held))
                    self._released(lease)
                back.append(held.message)
                held.gone = True
            except LostLease:
                held.gone = True  # it ended this very moment, or is another's
            except CloudError as error:
                trouble = error
        self._cloud.hide(back, NOW)
        if trouble:
            raise trouble

    def _renew(self, due: Sequence[Held], now: datetime) -> None:
        """Heartbeat: the records first, then their messages. Raises CloudError for the last that would not."""
        kept, trouble = [], None
        for held in due:
            lease = held.lease
            try:
                if lease:
                    self._cloud.extend(lease, now)
                kept.append(held)
            except LostLease:
                if lease and held.lease is lease:
                    held.gone = True
                    self._lost(lease)
            except CloudError as error:
                trouble = error
        self._cloud.hide([held.message for held in kept], self._settings.lease)
        for held in kept:
            held.renew_at = renew_at(now, self._settings.lease)
        if trouble:
            raise trouble

    def _in_hand(self) -> list[Held]:
        with self._lock:
            return list(self._hands)

    # A thread for each receive, and one for each message.

    def _receive(self, most: int) -> None:
        try:
            asked = self._now()
            messages = self._cloud.receive(most)
            self._idle = not messages
            if messages and (self._drained or self._host.doom(self._now())):
                self._cloud.hide(messages, NOW)
                return
            for message in messages:
                held = Held(message, self._now(), renew_at(asked, self._settings.lease))
                with self._lock:
                    self._hands.add(held)
                self._start(partial(self._carry, held))
        except CloudError as error:
            log("trouble", error=str(error))
            self._host.pause(AGAIN.total_seconds())
        finally:
            self._receiving = False

    def _carry(self, held: Held) -> None:
        """See one message through, whatever goes wrong with it."""
        try:
            if self._do_all(held):
                self._outbox.delete(held.message)
        except (CloudError, LostLease) as error:
            log("trouble", job_id=held.lease and held.lease.job.job_id, error=repr(error))
        finally:
            with self._lock:
                self._hands.discard(held)

    def _do_all(self, held: Held) -> bool:
        """Do what the message tells of; True when all of it is over, False when the message must come again."""
        try:
            uploads = told_by_s3(held.message.body)
            jobs = [parts.read(held.message.body)] if uploads is None else uploads
        except NotAJob as error:
            log("not a job", error=str(error))
            self._cloud.bury(held.message, str(error))
            return True
        for job in jobs:
            held.lease, held.began, held.ended, held.since = None, None, None, self._now()
            held.checkpoint, held.deadline_file = None, None
            if held.gone or self._host.doom(self._now()):
                self._cloud.hide([held.message], NOW)
                return False
            if uploads is not None:
                self._cloud.create(job, held.message.sent)
            if not self._do(job, held):
                return False
        return True

    def _do(self, job: Job, held: Held) -> bool:
        """One attempt at a job, if it is to be had; True when the job is over."""
        if isinstance(job, Piece):
            verdict = sharing.wanted(self._cloud, job)
            if not isinstance(verdict, Work):
                return self._follow(verdict, job, held.message)
            self._cloud.create(job, held.message.sent)
        if lease := self._claim(job):
            return self._work(lease, held)
        match when_refused(self._cloud.record(job.job_id), self._now()):
            case Lapsed() as lapsed:
                return self._after_death(job, lapsed, held)
            case Suspect():
                return self._do_alone(job, held)
            case refused:
                return self._follow(refused, job, held.message)

    def _claim(self, job: Job, *, suspect: bool = False) -> Lease | None:
        return self._cloud.claim(job, self._owner, self._host.facts(), self._now(), suspect=suspect)

    def _after_death(self, job: Job, lapsed: Lapsed, held: Held) -> bool:
        """Give a job back in the place of its dead worker, and take it if it is not to blame."""
        try:
            crash = self._cloud.crash(lapsed.owner)
        except CloudError as error:
            log("trouble", job_id=job.job_id, error=str(error))
            crash = None  # what nobody knows is nobody's fault
        found = inquest(lapsed, crash)
        log("lapsed", job_id=job.job_id, owner=lapsed.owner, crash=crash, counts=found.counts)
        try:
            self._cloud.lapse(job.job_id, lapsed, found.counts, self._now())
        except LostLease:
            return self._follow(Hide(AGAIN), job, held.message)
        if found.outcome is None:
            return self._do(job, held)
        lease = self._claim(job, suspect=True)
        if lease is None:
            return self._follow(Hide(AGAIN), job, held.message)
        return self._settle(Attempt(found.outcome), lease, held)

    def _do_alone(self, job: Job, held: Held) -> bool:
        try:
            with self._lanes.alone(held):
                lease = self._claim(job, suspect=True)
                if lease:
                    log("alone", job_id=job.job_id)
                    return self._work(lease, held)
        except GivenBack:
            return False
        return self._follow(Hide(AGAIN), job, held.message)

    def _work(self, lease: Lease, held: Held) -> bool:
        """Carry a job that is ours through its stages; True when it is over."""
        job = lease.job
        with self._lock:
            held.lease = lease
            gone = held.gone
        if gone:
            self._release(lease, held, NOW)
            return False
        log("claimed", job_id=job.job_id, queue=self._settings.queue, attempt=lease.attempt, size=job.size)
        self._ask_price()
        with self._scratch.folder() as folder:
            try:
                return self._settle(self._attempt(lease, held, folder), lease, held)
            except GivenBack:
                pass
            except LostLease:
                if not held.gone:
                    self._lost(lease)
        return False

    def _follow(self, verdict: Drop | Hide | Bury, job: Job, message: Message) -> bool:
        """The job is not ours to work on; do with its message what it is still good for."""
        log("declined", job_id=job.job_id, verdict=type(verdict).__name__)
        match verdict:
            case Drop(succeeded):
                if succeeded:
                    self._clear(job)
            case Hide(delay):
                self._cloud.hide([message], delay)
                return False
            case Bury(reason):
                self._cloud.bury(message, reason)
        return True

    def _attempt(self, lease: Lease, held: Held, folder: Path) -> Attempt:
        """Download, process, upload. Raises GivenBack."""
        job, source, output_dir = lease.job, folder / "input", folder / "output"
        try:
            output_dir.mkdir()
            with self._scratch.room_for(min(job.size, self._settings.max_input_bytes)):
                if isinstance(job, Piece) and job.number is None:
                    self._cloud.fetch_results(job, source)
                else:
                    self._cloud.download(job, source)
            outcome = self._process(lease, held, source, output_dir)
            return self._store(lease, outcome, output_dir) if outcome.code == DONE else Attempt(outcome)
        except GivenBack:
            raise
        except Rejected as error:
            return Attempt(Outcome(REJECTED, str(error)))
        except (Trouble, NoRoom) as error:
            return Attempt(Outcome(NOT_NOW, str(error)))
        except Exception as error:  # noqa: BLE001 (whatever one job makes go wrong, the worker takes the next)
            return Attempt(Outcome(1, f"{type(error).__name__}: {error}"))

    def _process(self, lease: Lease, held: Held, source: Path, output_dir: Path) -> Outcome:
        """Have a processor work on it, from where an earlier attempt stopped. Raises GivenBack."""
        job, folder = lease.job, output_dir.parent
        checkpoint, deadline_file = Checkpoint(self._cloud, lease, folder), folder / "deadline"
        checkpoint.fetch()
        held.checkpoint, held.deadline_file = checkpoint, deadline_file
        told = job.told_to_processor(lease.attempt, self._settings.options)
        told |= {"checkpoint": str(checkpoint.folder), "deadline_file": str(deadline_file)}
        with checkpoint.kept_every(self._settings.lease / 3), self._lanes.lane(held) as processor:
            held.began = self._now()
            outcome = processor.run(source, output_dir, told, self._settings.job_limit)
            held.ended = self._now()
        if held.gone:
            raise GivenBack
        if outcome.code != DONE and (held.stopped or self._host.broken):  # then no failure is the job's own
            outcome = Outcome(NOT_NOW, outcome.error)
        if outcome.code == NOT_NOW:
            checkpoint.try_to_keep()
        return outcome

    def _store(self, lease: Lease, outcome: Outcome, output_dir: Path) -> Attempt:
        """Upload the results, or the parts if the job was split."""
        job, most_bytes = lease.job, self._settings.max_output_bytes
        if paths := results.parts(parts_dir(output_dir), most_bytes):
            sizes = [path.stat().st_size for path in paths]
            pieces = parts.parts_of(job, lease.attempt, self._settings.results_bucket, sizes)
            for piece, path in zip(pieces, paths, strict=True):
                self._cloud.store_part(piece, path)
            return Attempt(outcome, parts=tuple(pieces))
        found = results.results(output_dir, most_bytes)
        owner = job.whole if isinstance(job, Piece) and job.number is None else job
        return Attempt(outcome, tuple(self._cloud.upload(owner, name, path) for name, path in found.items()))

    def _settle(self, attempt: Attempt, lease: Lease, held: Held) -> bool:
        """Write down how the attempt ended; True when the job is over."""
        job, message, now = lease.job, held.message, self._now()
        began, spent = held.began or now, self._spent(held)
        verdict = settle(attempt.outcome, lease.failures, self._settings.max_failures)
        match verdict:
            case Finish():
                self._insist(held, lambda: self._finish(lease, attempt, spent, now))
                self._forget(held)
                if not attempt.parts:
                    self._clear(job)
                self._tally.count(Metric.SUCCEEDED)
                self._tally.err(self._pace.eta(job.size), now - began)
                with self._lock:
                    self._pace = self._pace.after(job.size, now - began)
            case Retry(delay, reason):
                self._tally.count(Metric.RETRIED)
                self._insist(held, lambda: self._cloud.fail(lease, reason, spent))
                self._insist(held, lambda: self._cloud.hide([message], delay))
            case Reject(reason):
                self._tally.count(Metric.FAILED)
                self._reject(lease, held, reason, spent, now)
                self._forget(held)
            case Release(delay):
                self._release(lease, held, delay)
        log(
            "settled",
            job_id=job.job_id,
            queue=self._settings.queue,
            verdict=type(verdict).__name__,
            code=attempt.outcome.code,
            error=attempt.outcome.error,
            seconds=(now - lease.started).total_seconds(),
        )
        if held.began and held.ended:
            self._tally.time(Metric.READYING, held.began - lease.started)
            self._tally.time(Metric.WORKING, held.ended - held.began)
            self._tally.time(Metric.STORING, self._now() - held.ended)
        return isinstance(verdict, Finish | Reject)

    def _finish(self, lease: Lease, attempt: Attempt, spent: Spent, now: datetime) -> None:
        if attempt.parts:
            sharing.share(self._cloud, lease, attempt.parts, spent)
        elif isinstance(lease.job, Piece):
            sharing.finish(self._cloud, lease, lease.job, attempt.outputs, spent, now)
        else:
            self._cloud.finish(lease, attempt.outputs, spent, now)

    def _reject(self, lease: Lease, held: Held, reason: str, spent: Spent, now: datetime) -> None:
        """A piece is buried as its whole, once: that is what can be given another chance."""
        job, message = lease.job, held.message
        if not isinstance(job, Piece):
            self._insist(held, lambda: self._cloud.reject(lease, reason, spent, now))
            self._insist(held, lambda: self._cloud.bury(message, reason))
        elif self._insist(held, lambda: sharing.reject(self._cloud, lease, job, reason, spent, now)):
            whole = replace(message, body=parts.message(job.whole))
            self._insist(held, lambda: self._cloud.bury(whole, f"{job.name}: {reason}"))

    def _insist(self, held: Held, ask: Callable[[], T]) -> T:
        """Ask again while it may help and the job is ours: the work on it is done, and not to be done again."""
        while True:
            try:
                return ask()
            except Trouble as error:
                if held.gone:
                    raise
                log("trouble", job_id=held.lease and held.lease.job.job_id, error=str(error))
            self._host.pause(AGAIN.total_seconds())

    def _clear(self, job: Job) -> None:
        """Delete the upload of a job that succeeded, where that is wished. The results count, deleted or not."""
        if isinstance(job, Piece):
            if job.number is not None:
                return
            job = job.whole
        if not self._settings.delete_uploads:
            return
        try:
            self._cloud.delete_upload(job)
        except CloudError as error:
            log("the upload stays", job_id=job.job_id, error=str(error))

    def _release(self, lease: Lease, held: Held, delay: timedelta) -> None:
        self._cloud.release(lease, self._spent(held))
        self._cloud.hide([held.message], NOW if self._host.doom(self._now()) else delay)
        self._released(lease)

    def _released(self, lease: Lease) -> None:
        self._tally.count(Metric.RELEASED)
        log("released", job_id=lease.job.job_id)

    def _forget(self, held: Held) -> None:
        """The job is over, and what it kept on the way has no more use."""
        try:
            if held.checkpoint:
                held.checkpoint.forget()
        except CloudError as error:
            log("the checkpoint stays", error=str(error))

    def _ask_price(self) -> None:
        """Ask what this instance costs when that is due. It is nice to know, and no reason to hold up a job."""
        pool, now = pool_of(self._host.facts()), self._now()
        if pool is None or not self._price.is_due(now):
            return
        try:
            self._price.told(usd_per_hour(self._cloud.pool(pool), self._host.facts().get("lifecycle")), now)
        except CloudError as error:
            log("the price is not known", pool=pool, error=str(error))

    def _spent(self, held: Held) -> Spent:
        """What the attempt has taken so far: while a job waits for its processor others have that."""
        now = self._now()
        worked = (held.ended or now) - (held.began or now)
        gpus = self._settings.gpus_by_type.get(self._host.facts().get("instance_type", ""), 1)
        share = Share(instance_gpus=gpus, lanes=self._lanes.count)
        return share.spent(worked, self._price.usd_per_hour)

    def _lost(self, lease: Lease) -> None:
        log("lost the lease", job_id=lease.job.job_id)
