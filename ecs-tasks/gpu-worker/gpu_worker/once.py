"""`python -m gpu_worker once`: one job and no more, as AWS Batch runs it: its queue, its records and its retries are
Batch's. The job is a line of a manifest, the one with the number of this child of an array. How it went is told by the
exit code, which the retry strategy of the job definition knows (templates/batch.py):

| code  | what it means                                          | Batch             |
|-------|--------------------------------------------------------|-------------------|
| 0     | the results are stored                                 | SUCCEEDED         |
| 2     | settings, manifest or processor are no good            | FAILED at once    |
| 3     | the input is rejected, or the job's failures used up   | FAILED at once    |
| 4     | not now, or told to stop: no failure of the job's      | another attempt   |
| 64    | the GPU is broken: no failure of the job's             | another attempt   |
| other | one failure more                                       | another attempt   |

Batch counts attempts and no failures: a machine that was taken is one like any other. So each failure of the job's own
leaves its reason in the results bucket, and as many as there are, it has failed.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from threading import Event, Thread
from types import FrameType

from gpu_worker import health, results
from gpu_worker.checkpoint import SAVING, Checkpoint, tell
from gpu_worker.cloud import Cloud, CloudError, Trouble, asking, checkpoint_key
from gpu_worker.handover import Doom
from gpu_worker.job import Job, NotAJob
from gpu_worker.lease import Lease
from gpu_worker.log import log
from gpu_worker.outcome import DONE, NOT_NOW, REJECTED, Finish, Outcome, Reject, Rejected, Release, Retry, settle
from gpu_worker.processor import BadProcessor, Processor, parts_dir
from gpu_worker.scratch import NoRoom, Scratch
from gpu_worker.settings import BadSettings, Settings

FAILED, UNUSABLE = 1, 2
FAILURES = ".failures/"
"""Folder of the results bucket: below it `<Batch's job id>/<attempt>`, with the reason."""
STOP_TIMEOUT = timedelta(seconds=30)
"""Between SIGTERM and SIGKILL (Batch API reference, TerminateJob)."""
KEEP_EVERY = timedelta(minutes=1)
"""An instance may be taken without a word to its containers: what is not kept by then is lost."""
AGAIN = timedelta(seconds=1)
IN_PLACE_OF_A_QUEUE = dict.fromkeys(
    ("SPINDRIFT_QUEUE", "SPINDRIFT_QUEUE_URL", "SPINDRIFT_DEAD_LETTER_QUEUE_URL", "SPINDRIFT_JOBS_TABLE"), "none"
)
"""What the settings want to know and Batch does itself."""


@dataclass(frozen=True)
class Order:
    """What Batch tells its container."""

    manifest: str
    """A key of the results bucket."""
    line: int
    batch_job: str
    attempt: int
    """From 1; Batch counts them."""

    @classmethod
    def read(cls, env: Mapping[str, str]) -> Order:
        """Raises BadSettings."""
        if missing := [name for name in ("SPINDRIFT_MANIFEST", "AWS_BATCH_JOB_ID") if not env.get(name)]:
            raise BadSettings("; ".join(f"{name} is missing" for name in missing))
        return cls(
            env["SPINDRIFT_MANIFEST"],
            int(env.get("AWS_BATCH_JOB_ARRAY_INDEX", "0")),
            env["AWS_BATCH_JOB_ID"],
            int(env.get("AWS_BATCH_JOB_ATTEMPT", "1")),
        )


class Bucket(Cloud):
    """The objects alone: what an attempt finds, and what it leaves for the next. There are no records to hold."""

    def job(self, order: Order) -> Job:
        """The job of this child. Raises CloudError or NotAJob."""
        with asking("read the manifest"):
            body = self._s3.get_object(Bucket=self._settings.results_bucket, Key=order.manifest)["Body"].read()
        lines = body.decode().splitlines()
        if order.line >= len(lines):
            raise NotAJob(f"{order.manifest} has {len(lines)} lines, and no line {order.line}")
        return Job.read(lines[order.line])

    def failures(self, order: Order) -> int:
        """How often the job has failed by its own fault. Raises CloudError."""
        with asking("count the failures"):
            return self._s3.list_objects_v2(
                Bucket=self._settings.results_bucket, Prefix=f"{FAILURES}{order.batch_job}/"
            )["KeyCount"]

    def note_failure(self, order: Order, reason: str) -> None:
        """Leave the reason. Raises CloudError."""
        key = f"{FAILURES}{order.batch_job}/{order.attempt}"
        with asking("note the failure"):
            self._s3.put_object(Bucket=self._settings.results_bucket, Key=key, Body=reason.encode())

    def keep_checkpoint(self, lease: Lease, packed: Path) -> None:
        """Store how far the job has come."""
        with asking("keep the checkpoint"):
            self._s3.upload_file(str(packed), self._settings.results_bucket, checkpoint_key(lease.job.job_id))


class Once:
    """One attempt at one job."""

    def __init__(self, settings: Settings, bucket: Bucket, processor: Processor, order: Order) -> None:
        self._settings, self._bucket, self._processor, self._order = settings, bucket, processor, order
        self._stopped = Event()
        self._deadline_file: Path | None = None

    def stop(self, _signal: int, _frame: FrameType | None) -> None:
        """SIGTERM: Batch was told to terminate the job, or the machine shuts down. Safe in a signal handler."""
        if not self._stopped.is_set():
            self._stopped.set()
            Thread(target=self._leave, daemon=True).start()

    def run(self, job: Job) -> int:
        """The exit code. Raises BadProcessor, and CloudError when failures cannot be counted or noted."""
        if problem := health.problem():
            log("this machine is broken", problem=problem)
            return health.BROKEN
        try:
            self._processor.wait_ready()
        except BadProcessor:
            if self._stopped.is_set():  # it was ended while it loaded
                return NOT_NOW
            raise
        order = self._order
        began = datetime.now(UTC)
        # Whether an earlier attempt left a checkpoint only S3 knows.
        lease = Lease(job, order.batch_job, order.attempt, 0, began, checkpoint=order.attempt > 1)
        with Scratch(self._settings.scratch_dir) as scratch, scratch.folder() as folder:
            outcome = self._attempt(lease, scratch, folder)
        if outcome.code != DONE and health.problem():
            return health.BROKEN
        code = self._settle(outcome)
        seconds = (datetime.now(UTC) - began).total_seconds()
        log("settled", job_id=job.job_id, batch_job=order.batch_job, attempt=order.attempt, exit=code, seconds=seconds)
        return code

    def _settle(self, outcome: Outcome) -> int:
        """The exit code that says how it went; a failure leaves its reason."""
        order = self._order
        if outcome.code != DONE:
            log("did not work", batch_job=order.batch_job, code=outcome.code, error=outcome.error)
        failed = outcome.code not in (DONE, REJECTED, NOT_NOW)
        failures = self._bucket.failures(order) if failed else 0
        match settle(outcome, failures, self._settings.max_failures):
            case Finish():
                return DONE
            case Reject(reason):
                self._bucket.note_failure(order, reason)
                return REJECTED
            case Retry(_, reason):
                self._bucket.note_failure(order, reason)
                return FAILED
            case Release():
                return NOT_NOW

    def _attempt(self, lease: Lease, scratch: Scratch, folder: Path) -> Outcome:
        """Download, process, upload."""
        job, source, output_dir = lease.job, folder / "input", folder / "output"
        output_dir.mkdir()
        try:
            with scratch.room_for(min(job.size, self._settings.max_input_bytes)):
                self._bucket.download(job, source)
            checkpoint = Checkpoint(self._bucket, lease, folder)
            checkpoint.fetch()
            outcome = self._process(lease, checkpoint, source, output_dir)
            if outcome.code == DONE:
                for name, path in results.results(output_dir, self._settings.max_output_bytes).items():
                    self._insist(partial(self._bucket.upload, job, name, path))
                self._clear(job, checkpoint)
            return outcome
        except Rejected as error:
            return Outcome(REJECTED, str(error))
        except (Trouble, NoRoom, BadProcessor) as error:
            return Outcome(NOT_NOW, str(error))
        except Exception as error:  # noqa: BLE001 (whatever went wrong with the job, its code has to say so)
            return Outcome(FAILED, f"{type(error).__name__}: {error}")

    def _insist(self, ask: Callable[[], object]) -> None:
        """Ask again while it may help, until told to stop: the work is done, and not to be done again."""
        while True:
            try:
                ask()
                return
            except Trouble as error:
                if self._stopped.wait(AGAIN.total_seconds()):
                    raise
                log("trouble", batch_job=self._order.batch_job, error=str(error))

    def _clear(self, job: Job, checkpoint: Checkpoint) -> None:
        """The results count, whatever else has no more use: the checkpoint, and the upload if that is wished."""
        try:
            checkpoint.forget()
            if self._settings.delete_uploads:
                self._bucket.delete_upload(job)
        except CloudError as error:
            log("something stays", job_id=job.job_id, error=str(error))

    def _process(self, lease: Lease, checkpoint: Checkpoint, source: Path, output_dir: Path) -> Outcome:
        self._deadline_file = output_dir.with_name("deadline")
        told = lease.job.told_to_processor(lease.attempt, self._settings.options)
        told |= {"checkpoint": str(checkpoint.folder), "deadline_file": str(self._deadline_file)}
        with checkpoint.kept_every(KEEP_EVERY):
            outcome = self._run(source, output_dir, told)
            if outcome.code == DONE:
                outcome = self._run_parts(lease.job, output_dir, told)
        if outcome.code != DONE and self._stopped.is_set():  # then it is no failure of the job's own
            outcome = Outcome(NOT_NOW, outcome.error)
        if outcome.code == NOT_NOW:
            checkpoint.try_to_keep()
        return outcome

    def _run_parts(self, job: Job, output_dir: Path, told: Mapping[str, object]) -> Outcome:
        """Nobody shares a job of Batch's: what the processor split, it does part by part, and stitches itself."""
        parts = results.parts(parts_dir(output_dir), self._settings.max_output_bytes)
        stored = output_dir.with_name("of-parts")
        for number, part in enumerate(parts):
            (stored / f"{number:05d}").mkdir(parents=True)
            piece = {"number": number, "of": len(parts), "whole": asdict(job)}
            outcome = self._run(part, stored / f"{number:05d}", {**told, "part": piece})
            if outcome.code != DONE:
                return outcome
        return self._run(stored, output_dir, told) if parts else Outcome(DONE)

    def _run(self, source: Path, output_dir: Path, told: Mapping[str, object]) -> Outcome:
        if self._stopped.is_set():
            return Outcome(NOT_NOW, "told to stop")
        return self._processor.run(source, output_dir, told, self._settings.job_limit)

    def _leave(self) -> None:
        """Let the processor save what it has, then end it in time to keep that."""
        now = datetime.now(UTC)
        if self._deadline_file:
            tell(self._deadline_file, Doom(now, now + STOP_TIMEOUT))
            Event().wait(SAVING.total_seconds())
        self._processor.kill()


def main() -> int:
    """Do the job that the environment names."""
    try:
        order = Order.read(os.environ)
        settings = Settings.read({**IN_PLACE_OF_A_QUEUE, **os.environ})
        processor = Processor(settings.processor, settings.options, settings.max_output_bytes)
        bucket = Bucket(settings)
        once = Once(settings, bucket, processor, order)
        for asked in (signal.SIGTERM, signal.SIGINT):
            signal.signal(asked, once.stop)
        job = bucket.job(order)
        log("claimed", job_id=job.job_id, batch_job=order.batch_job, attempt=order.attempt, size=job.size)
        return once.run(job)
    except (BadSettings, BadProcessor, NotAJob) as error:
        log("refused", error=str(error))
        return UNUSABLE
    except (CloudError, NoRoom) as error:
        log("trouble", error=str(error))
        return NOT_NOW if isinstance(error, Trouble | NoRoom) else FAILED
