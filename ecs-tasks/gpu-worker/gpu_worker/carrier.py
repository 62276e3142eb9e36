"""What one message's own thread does: its job is claimed, downloaded, worked on, stored, and written down as it ended.

A message tells of one job, or is an S3 event of any number of uploads; it has done its duty when all its jobs are over.
Meanwhile the main thread may give the job back at any moment (pipeline.py): then `held.gone` says so, and the next
write to the record, which asks for the same owner and attempt, fails.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TypeVar

from gpu_worker import parts, results, sharing
from gpu_worker.checkpoint import Checkpoint
from gpu_worker.cloud import Cloud, CloudError, LostLease, Trouble
from gpu_worker.cost import Price, Share, Spent, pool_of, usd_per_hour
from gpu_worker.handover import Pace
from gpu_worker.held import GivenBack, Held
from gpu_worker.host import Host
from gpu_worker.intake import NOW
from gpu_worker.job import Job, NotAJob
from gpu_worker.lanes import Lanes
from gpu_worker.lease import Bury, Drop, Hide, Lapsed, Lease, Suspect, inquest, when_refused
from gpu_worker.log import log
from gpu_worker.metrics import Metric, Tally
from gpu_worker.outcome import DONE, NOT_NOW, REJECTED, Finish, Outcome, Reject, Rejected, Release, Retry, settle
from gpu_worker.parts import Piece, Work
from gpu_worker.processor import BadProcessor, Request, parts_dir
from gpu_worker.scratch import NoRoom, Scratch
from gpu_worker.settings import Settings
from gpu_worker.upload import told_by_s3

T = TypeVar("T")

AGAIN = timedelta(seconds=1)


@dataclass(frozen=True)
class Attempt:
    """How the work on a job ended, and the keys of what it stored; or the parts that it was split into instead."""

    outcome: Outcome
    outputs: tuple[str, ...] = ()
    parts: tuple[Piece, ...] = ()


class Carrier:
    """Sees messages through, each in the thread that calls. `pace` and `tally` are of all that were."""

    def __init__(
        self,
        settings: Settings,
        cloud: Cloud,
        host: Host,
        lanes: Lanes,
        scratch: Scratch,
        owner: str,
        now: Callable[[], datetime],
    ) -> None:
        self._settings = settings
        self._cloud = cloud
        self._host = host
        self._lanes = lanes
        self._scratch = scratch
        self._owner = owner
        self._now = now
        self._lock = Lock()
        self._price = Price()
        self.pace = Pace()
        self.tally = Tally(lanes.count, now())

    def carry(self, held: Held) -> bool:
        """See one message through, whatever goes wrong with it; True when it has done its duty."""
        try:
            return self._do_all(held)
        except (CloudError, LostLease) as error:
            log("trouble", job_id=held.lease and held.lease.job.job_id, error=repr(error))
            return False

    def spent(self, held: Held) -> Spent:
        """What the attempt has taken so far: while a job waits for its processor others have that."""
        now = self._now()
        gpus = self._settings.gpus_by_type.get(self._host.facts().get("instance_type", ""), 1)
        share = Share(instance_gpus=gpus, lanes=self._lanes.count)
        return share.spent(held.worked(now), self._price.usd_per_hour)

    def eta(self, held: Held) -> timedelta | None:
        """How long its processor takes, on the cautious side, for it and its mates; None while there is no pace."""
        jobs = [each.lease.job if each.lease else None for each in held.mates or (held,)]
        etas = [self.pace.eta(job.size if job else 0) for job in jobs]
        return sum(filter(None, etas), timedelta(0)) or None

    def released(self, lease: Lease) -> None:
        """The job went back unharmed."""
        self.tally.count(Metric.RELEASED)
        log("released", job_id=lease.job.job_id)

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
            held.next_job()
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
                return self._follow(verdict, job, held)
            self._cloud.create(job, held.message.sent)
        if lease := self._claim(job):
            return self._work(lease, held)
        match when_refused(self._cloud.record(job.job_id), self._now()):
            case Lapsed() as lapsed:
                return self._after_death(job, lapsed, held)
            case Suspect():
                return self._do_alone(job, held)
            case refused:
                return self._follow(refused, job, held)

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
            return self._follow(Hide(AGAIN), job, held)
        if found.outcome is None:
            return self._do(job, held)
        lease = self._claim(job, suspect=True)
        if lease is None:
            return self._follow(Hide(AGAIN), job, held)
        return self._settle(Attempt(found.outcome), lease, held)

    def _do_alone(self, job: Job, held: Held) -> bool:
        held.waits = self._now()
        try:
            with self._lanes.alone(held):
                held.waits = None
                lease = self._claim(job, suspect=True)
                if lease:
                    log("alone", job_id=job.job_id)
                    return self._work(lease, held)
        except GivenBack:
            return False
        return self._follow(Hide(AGAIN), job, held)

    def _work(self, lease: Lease, held: Held) -> bool:
        """Carry a job that is ours through its stages; True when it is over."""
        job = lease.job
        if not held.claimed(lease):
            self._release(lease, held, NOW)
            return False
        log("claimed", job_id=job.job_id, queue=self._settings.queue, attempt=lease.attempt, size=job.size)
        self._ask_price()
        try:
            with self._scratch.folder() as folder:
                return self._settle(self._attempt(lease, held, folder), lease, held)
        except NoRoom as error:
            return self._settle(Attempt(Outcome(NOT_NOW, str(error))), lease, held)
        except GivenBack:
            pass
        except LostLease:
            if not held.gone:
                log("lost the lease", job_id=lease.job.job_id)
        return False

    def _follow(self, verdict: Drop | Hide | Bury, job: Job, held: Held) -> bool:
        """The job is not ours to work on; do with its message what it is still good for."""
        log("declined", job_id=job.job_id, verdict=type(verdict).__name__)
        match verdict:
            case Drop(succeeded):
                if succeeded:
                    self._clear(job)
            case Hide(delay):
                self._cloud.hide([held.message], delay)
                return False
            case Bury(reason):
                self._bury(job, held, reason)
        return True

    def _attempt(self, lease: Lease, held: Held, folder: Path) -> Attempt:
        """Download, process, upload. Raises GivenBack."""
        job, source, output_dir = lease.job, folder / "input", folder / "output"
        try:
            with self._scratch.room_for(min(job.size, self._settings.max_input_bytes)):
                output_dir.mkdir()
                if isinstance(job, Piece) and job.number is None:
                    self._cloud.fetch_results(job, source)
                else:
                    self._cloud.download(job, source)
            outcome = self._process(lease, held, source, output_dir)
            return self._store(lease, held, outcome, output_dir) if outcome.code == DONE else Attempt(outcome)
        except GivenBack:
            raise
        except Rejected as error:
            return Attempt(Outcome(REJECTED, str(error)))
        except (Trouble, NoRoom, BadProcessor) as error:
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
        held.waits = self._now()
        # One that has a story may be what is wrong with a batch; a part keeps a processor busy by itself.
        alone = isinstance(job, Piece) or lease.checkpoint or lease.failures > 0
        with checkpoint.kept_every(self._settings.lease / 3):
            request = Request(source, output_dir, told)
            outcome = self._lanes.work(held, request, self._settings.job_limit, alone=alone)
        if held.gone:
            raise GivenBack
        if outcome.code != DONE and (held.stopped or self._host.broken):  # then no failure is the job's own
            outcome = Outcome(NOT_NOW, outcome.error)
        if outcome.code == NOT_NOW:
            checkpoint.try_to_keep()
        return outcome

    def _store(self, lease: Lease, held: Held, outcome: Outcome, output_dir: Path) -> Attempt:
        """Upload the results, or the parts if the job was split."""
        job, most_bytes = lease.job, self._settings.max_output_bytes
        if paths := results.parts(parts_dir(output_dir), most_bytes):
            sizes = [path.stat().st_size for path in paths]
            pieces = parts.parts_of(job, lease.attempt, self._settings.results_bucket, sizes)
            for piece, path in zip(pieces, paths, strict=True):
                self._insist(held, partial(self._cloud.store_part, piece, path))
            return Attempt(outcome, parts=tuple(pieces))
        found = results.results(output_dir, most_bytes)
        owner = job.whole if isinstance(job, Piece) and job.number is None else job
        uploads = [partial(self._cloud.upload, owner, name, path) for name, path in found.items()]
        return Attempt(outcome, tuple(self._insist(held, upload) for upload in uploads))

    def _settle(self, attempt: Attempt, lease: Lease, held: Held) -> bool:
        """Write down how the attempt ended; True when the job is over."""
        job, message, now = lease.job, held.message, self._now()
        took, spent = held.worked(now) + (now - (held.ended or now)), self.spent(held)
        verdict = settle(attempt.outcome, lease.failures, self._settings.max_failures)
        match verdict:
            case Finish():
                self._insist(held, lambda: self._finish(lease, attempt, spent, now))
                self._forget(held)
                if not attempt.parts:
                    self._clear(job)
                self.tally.count(Metric.SUCCEEDED)
                self.tally.err(self.pace.eta(job.size), took)
                with self._lock:
                    self.pace = self.pace.after(job.size, took)
            case Retry(delay, reason):
                self.tally.count(Metric.RETRIED)
                self._insist(held, lambda: self._cloud.fail(lease, reason, spent))
                self._insist(held, lambda: self._cloud.hide([message], delay))
            case Reject(reason):
                self.tally.count(Metric.FAILED)
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
            together=len(held.mates),
            seconds=(now - lease.started).total_seconds(),
        )
        if held.began and held.ended:
            self.tally.time(Metric.READYING, held.began - lease.started)
            self.tally.time(Metric.WORKING, held.worked(now))
            self.tally.time(Metric.STORING, self._now() - held.ended)
        return isinstance(verdict, Finish | Reject)

    def _finish(self, lease: Lease, attempt: Attempt, spent: Spent, now: datetime) -> None:
        if attempt.parts:
            sharing.share(self._cloud, lease, attempt.parts, spent)
        elif isinstance(lease.job, Piece):
            sharing.finish(self._cloud, lease, lease.job, attempt.outputs, spent, now)
        else:
            self._cloud.finish(lease, attempt.outputs, spent, now)

    def _reject(self, lease: Lease, held: Held, reason: str, spent: Spent, now: datetime) -> None:
        job = lease.job
        if not isinstance(job, Piece):
            self._insist(held, lambda: self._cloud.reject(lease, reason, spent, now))
            self._bury(job, held, reason)
        elif self._insist(held, lambda: sharing.reject(self._cloud, lease, job, reason, spent, now)):
            self._bury(job, held, f"{job.name}: {reason}")

    def _bury(self, job: Job, held: Held, reason: str) -> None:
        """A piece is buried as its whole: that is what can be given another chance.

        If this worker dies before the record says that it is done, it is done again when the message comes again.
        """
        whole, message = job, held.message
        if isinstance(job, Piece):
            whole, message = job.whole, replace(message, body=parts.message(job.whole))
        self._insist(held, lambda: self._cloud.bury(message, reason))
        self._insist(held, lambda: self._cloud.buried(whole))

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
        self._cloud.release(lease, self.spent(held))
        self._cloud.hide([held.message], NOW if self._host.doom(self._now()) else delay)
        self.released(lease)

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
