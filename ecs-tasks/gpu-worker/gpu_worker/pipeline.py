"""The worker's loop: receive, claim, work, settle; one job at a time.

A message tells of one job, or is an S3 event of any number of uploads; it is deleted when all its jobs are over.

The main thread decides and writes; a second one downloads, has the job processed, and uploads. So the main thread can
give the job back at any moment, whatever the other is stuck in. The record is always written first and the message
changed last: what dies in between leaves a message that finds out, and never a job without one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

from gpu_worker.cloud import Cloud, CloudError, LostLease, Message, Trouble
from gpu_worker.handover import Pace, give_back_at
from gpu_worker.host import Host, Protection
from gpu_worker.job import LONGEST_NAME, Job, NotAJob
from gpu_worker.lease import Bury, Drop, Hide, Lease, when_refused
from gpu_worker.log import log
from gpu_worker.outcome import DONE, NOT_NOW, REJECTED, Finish, Outcome, Reject, Rejected, Release, Retry, settle
from gpu_worker.processor import Processor
from gpu_worker.settings import Settings
from gpu_worker.upload import told_by_s3

TICK = 0.25
"""Seconds between two looks at the clock and the notice file while a job runs."""

AGAIN = timedelta(seconds=1)

ASK_EVERY = timedelta(seconds=30)
"""Between two questions whether the host is being drained: ECS answers some twenty a second for the whole account."""


@dataclass(frozen=True)
class Attempt:
    """How the work on a job ended, and the keys of what it stored."""

    outcome: Outcome
    outputs: tuple[str, ...] = ()


class Worker:
    """Takes jobs until it is told to go."""

    def __init__(
        self,
        settings: Settings,
        cloud: Cloud,
        host: Host,
        processor: Processor,
        protection: Protection,
        owner: str,
        now: Callable[[], datetime],
    ) -> None:
        self._settings = settings
        self._cloud = cloud
        self._host = host
        self._processor = processor
        self._protection = protection
        self._owner = owner
        self._now = now
        self._pace = Pace()
        self._drained = False
        self._asked: datetime | None = None

    def run(self) -> None:
        """Work until SIGTERM or a notice; then leave nothing in hand."""
        while not self._host.doom(self._now()):
            self._host.pulse()
            try:
                if self._rests():
                    self._protection.drop()  # so that ECS stops this task, as it does the others of a draining host
                    self._host.pause(AGAIN.total_seconds())
                else:
                    self._take_next()
            except CloudError as error:
                log("trouble", error=str(error))
                self._host.pause(AGAIN.total_seconds())
        log("leaving")
        self._processor.kill()
        self._protection.drop()

    def _rests(self) -> bool:
        """Whether the host is being drained though nobody takes it: then the job just done was the last here.

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

    def _take_next(self) -> None:
        message = self._cloud.receive()
        if message is None:
            self._protection.drop()
        elif self._take(message):
            self._cloud.delete(message)

    def _take(self, message: Message) -> bool:
        """Do what the message tells of; True when all of it is over, False when the message must come again."""
        try:
            uploads = told_by_s3(message.body)
            jobs = [Job.read(message.body)] if uploads is None else uploads
        except NotAJob as error:
            log("not a job", error=str(error))
            self._cloud.bury(message, str(error))
            return True
        for job in jobs:
            if self._host.doom(self._now()):
                self._cloud.hide(message, timedelta(0))
                return False
            if job is not jobs[0]:  # the time for which the message was hidden went to those before
                self._cloud.hide(message, self._settings.lease)
            if uploads is not None:
                self._cloud.create(job, message.sent)
            if not self._do(job, message):
                return False
        return True

    def _do(self, job: Job, message: Message) -> bool:
        """One attempt at a job, if it is to be had; True when the job is over."""
        self._protection.hold(self._now())
        lease = self._cloud.claim(job, self._owner, self._host.facts(), self._now())
        if lease is None:
            return self._decline(job, message)
        log("claimed", job_id=job.job_id, queue=self._settings.queue, attempt=lease.attempt, size=job.size)
        return self._work(lease, message)

    def _decline(self, job: Job, message: Message) -> bool:
        """The job is not ours to claim; see what its message is still good for."""
        verdict = when_refused(self._cloud.record(job.job_id), self._now())
        log("declined", job_id=job.job_id, verdict=type(verdict).__name__)
        match verdict:
            case Drop(succeeded):
                if succeeded:
                    self._clear(job)
            case Hide(delay):
                self._cloud.hide(message, delay)
                return False
            case Bury(reason):
                self._cloud.bury(message, reason)
        return True

    def _work(self, lease: Lease, message: Message) -> bool:
        over = False
        with TemporaryDirectory(prefix="spindrift-", ignore_cleanup_errors=True) as scratch:
            work = _in_a_thread(lambda: self._attempt(lease, Path(scratch)))
            try:
                if attempt := self._watch(work, lease, message):
                    over = self._settle(attempt, lease, message)
            except LostLease:
                log("lost the lease", job_id=lease.job.job_id)
            while not work.done():  # given back or lost; it may still be on its way into the processor
                self._processor.kill()
                self._host.pause(TICK)
        return over

    def _watch(self, work: Future[Attempt], lease: Lease, message: Message) -> Attempt | None:
        """Keep the lease while the work goes on; None when the job had to be given back."""
        while True:
            self._host.pulse()
            try:
                return work.result(timeout=TICK)
            except TimeoutError:
                now = self._now()
            try:
                if self._must_give_back(lease, now):
                    self._release(lease, message, timedelta(0))
                    return None
                if now >= lease.renew_at:
                    lease = self._cloud.extend(lease, message, now)
                    self._protection.hold(now)
            except CloudError as error:
                log("trouble", job_id=lease.job.job_id, error=str(error))
                lease = lease.retried(now + AGAIN)

    def _must_give_back(self, lease: Lease, now: datetime) -> bool:
        doom = self._host.doom(now)
        return doom is not None and now >= give_back_at(doom, lease.started, self._pace.eta(lease.job.size))

    def _attempt(self, lease: Lease, scratch: Path) -> Attempt:
        """Download, process, upload. Runs in the second thread."""
        job, source, output_dir = lease.job, scratch / "input", scratch / "output"
        try:
            output_dir.mkdir()
            self._cloud.download(job, source)
            told = job.told_to_processor(lease.attempt, self._settings.options)
            outcome = self._processor.run(source, output_dir, told, self._settings.job_limit)
            if outcome.code != DONE:
                return Attempt(outcome)
            outputs = [self._cloud.upload(job, name, path) for name, path in _results(output_dir)]
            return Attempt(outcome, tuple(outputs))
        except Rejected as error:
            return Attempt(Outcome(REJECTED, str(error)))
        except Trouble as error:
            return Attempt(Outcome(NOT_NOW, str(error)))
        except Exception as error:  # noqa: BLE001 (whatever one job makes go wrong, the worker takes the next)
            return Attempt(Outcome(1, f"{type(error).__name__}: {error}"))

    def _settle(self, attempt: Attempt, lease: Lease, message: Message) -> bool:
        """Write down how the attempt ended; True when the job is over."""
        job, now = lease.job, self._now()
        verdict = settle(attempt.outcome, lease.failures, self._settings.max_failures)
        match verdict:
            case Finish():
                self._cloud.finish(lease, attempt.outputs, now)
                self._clear(job)
                self._pace = self._pace.after(job.size, now - lease.started)
            case Retry(delay, reason):
                self._cloud.fail(lease, reason)
                self._cloud.hide(message, delay)
            case Reject(reason):
                self._cloud.reject(lease, reason, now)
                self._cloud.bury(message, reason)
            case Release(delay):
                self._release(lease, message, delay)
        log(
            "settled",
            job_id=job.job_id,
            queue=self._settings.queue,
            verdict=type(verdict).__name__,
            code=attempt.outcome.code,
            error=attempt.outcome.error,
            seconds=(now - lease.started).total_seconds(),
        )
        return isinstance(verdict, Finish | Reject)

    def _clear(self, job: Job) -> None:
        """Delete the upload of a job that succeeded, where that is wished. The results count, deleted or not."""
        if not self._settings.delete_uploads:
            return
        try:
            self._cloud.delete_upload(job)
        except CloudError as error:
            log("the upload stays", job_id=job.job_id, error=str(error))

    def _release(self, lease: Lease, message: Message, delay: timedelta) -> None:
        self._cloud.release(lease)
        self._cloud.hide(message, delay)
        log("released", job_id=lease.job.job_id)


def _results(output_dir: Path) -> Iterator[tuple[str, Path]]:
    """What the processor left behind, by name; links could lead anywhere, so there are none."""
    for path in sorted(output_dir.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ValueError("a result must be a plain file")
        name = path.relative_to(output_dir).as_posix()
        if len(name.encode()) > LONGEST_NAME:
            raise ValueError(f"a result's name may have {LONGEST_NAME} bytes")
        if path.is_file():
            yield name, path


def _in_a_thread(work: Callable[[], Attempt]) -> Future[Attempt]:
    """Like an executor, but nobody waits for it when the worker leaves."""
    future: Future[Attempt] = Future()
    Thread(target=lambda: future.set_result(work()), daemon=True).start()
    return future
