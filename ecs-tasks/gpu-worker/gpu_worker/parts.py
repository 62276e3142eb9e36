"""A job that several workers share: its parts are jobs of their own, and so is the stitch of their results (pure).

    whole  QUEUED --claim--> RUNNING --split--> SPLIT --the stitch is done--> SUCCEEDED
                                                  '-----a piece fails-------> FAILED

The messages of the parts are sent before the whole is SPLIT, so that a crash in between loses none of them; a part that
comes early waits. Everything bears the number of the attempt that split the whole, its round: when the whole is split
again, what is left of an earlier round is told by it and dropped. Each part that is done is counted in the record of
the whole, in one transaction with its own record; whoever sees all of them counted sends the stitch, and a stitch that
is sent twice is one job.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any, ClassVar

from gpu_worker import upload
from gpu_worker.job import NONSENSE, Job, NotAJob
from gpu_worker.lease import Bury, Drop, Hide

MOST_PARTS = 1000

EARLY = Hide(timedelta(seconds=2))
"""For a part whose whole is just being split, or whose splitter has died: then another round begins."""


@dataclass(frozen=True)
class Piece(Job):
    """A part of a job, which lies in the results bucket, or the stitch of its parts, whose results are the whole's."""

    not_theirs: ClassVar[tuple[str, ...]] = ()

    whole: Job
    round: int
    of: int
    """Parts of the whole."""
    number: int | None
    """From 0; the stitch has none."""

    @property
    def name(self) -> str:
        """What to call it in a reason."""
        return "stitch" if self.number is None else f"part {self.number + 1} of {self.of}"

    def told_to_processor(self, attempt: int, options: Mapping[str, Any]) -> dict[str, Any]:
        """A part is told that it is one. To the stitch it looks as if the whole job was its own."""
        if self.number is None:
            return self.whole.told_to_processor(attempt, options)
        part = {"number": self.number, "of": self.of, "whole": asdict(self.whole)}
        mine = {name: value for name, value in asdict(self).items() if name in Job.__dataclass_fields__}
        return {**mine, "attempt": attempt, "options": options, "part": part}


@dataclass(frozen=True)
class Change:
    """A write to one record, if it is as expected."""

    job_id: str
    expects: Mapping[str, object]
    sets: Mapping[str, object] = field(default_factory=dict)
    adds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """The piece is wanted."""


@dataclass(frozen=True)
class Join:
    """All parts are done: send the stitch. The message that led here has no more use."""


def part_key(whole: Job, round_: int, number: int) -> str:
    """Where a part lies, and below it what comes of it. No other job's results come here (job.py, `result_key`)."""
    return f".parts/{whole.job_id}/{round_}/{number:05d}"


def parts_of(whole: Job, round_: int, bucket: str, sizes: Sequence[int]) -> list[Piece]:
    """The parts of a job split into files of these sizes (bytes), which go to `bucket` under the parts' keys."""
    return [
        Piece(
            job_id=f"{whole.job_id}-{round_}-{number:05d}",
            bucket=bucket,
            key=part_key(whole, round_, number),
            version="",
            etag="",
            size=size,
            whole=whole,
            round=round_,
            of=len(sizes),
            number=number,
        )
        for number, size in enumerate(sizes)
    ]


def stitch_of(part: Piece) -> Piece:
    """The job that joins the results of all parts of this round."""
    whole = part.whole
    job_id = f"{whole.job_id}-{part.round}-stitch"
    return Piece(job_id, whole.bucket, whole.key, "", "", whole.size, whole, part.round, part.of, number=None)


def part_ids(stitch: Piece) -> list[str]:
    """The job ids of the parts, in their order."""
    return [f"{stitch.whole.job_id}-{stitch.round}-{number:05d}" for number in range(stitch.of)]


def message(job: Job) -> str:
    """The body that `read` reads."""
    told = {"schema": "spindrift.job/1", **asdict(job)}
    return json.dumps(told, separators=(",", ":"))


def read(body: str) -> Job:
    """A job, or a piece of one. Raises NotAJob."""
    job = Job.read(body)
    told = json.loads(body)
    if "whole" not in told:
        return job
    try:
        whole = Job.read(json.dumps(told["whole"] | {"schema": "spindrift.job/1"}))
        number = None if told["number"] is None else int(told["number"])
        return Piece(**asdict(job), whole=whole, round=int(told["round"]), of=int(told["of"]), number=number)
    except NONSENSE as error:
        raise NotAJob("the message tells of a piece that cannot be read") from error


def record_of(job: Job, queue: str, created: datetime) -> dict[str, str | int]:
    """The record of a job that waits; a piece tells of its whole."""
    record = upload.record_of(job, queue, created)
    return {**record, "parent": job.whole.job_id} if isinstance(job, Piece) else record


def look(piece: Piece, whole: Mapping[str, Any] | None) -> Work | Join | Hide | Drop | Bury:
    """What to do about a piece, seeing the record of its whole: before it is claimed, and when it is done."""
    if whole is None:
        return Bury("the job that this is a piece of has no record")
    if whole["attempts"] != piece.round:
        return Drop(succeeded=False)
    match whole["state"]:
        case "RUNNING":
            return EARLY
        case "SPLIT":
            return Join() if piece.number is not None and whole["parts_done"] >= piece.of else Work()
        case "FAILED" if whole.get("unburied") == piece.job_id:  # see lease.py, `when_refused`
            return Bury(str(whole["error"]))
        case state:
            return Drop(succeeded=state == "SUCCEEDED")


def counted(part: Piece) -> Change:
    """What a part that is done means for its whole."""
    return Change(part.whole.job_id, _in_this_round(part), adds={"parts_done": 1})


def joined(stitch: Piece, outputs: Sequence[str], now: datetime) -> Change:
    """What the stitch means for its whole."""
    sets = {"state": "SUCCEEDED", "outputs": outputs, "finished": now.isoformat()}
    return Change(stitch.whole.job_id, _in_this_round(stitch), sets)


def broken(piece: Piece, reason: str, now: datetime) -> Change:
    """What a piece that failed for good means for its whole."""
    sets = {"state": "FAILED", "error": f"{piece.name}: {reason}", "finished": now.isoformat()}
    return Change(piece.whole.job_id, _in_this_round(piece), {**sets, "unburied": piece.job_id})


def _in_this_round(piece: Piece) -> dict[str, object]:
    return {"state": "SPLIT", "attempts": piece.round}
