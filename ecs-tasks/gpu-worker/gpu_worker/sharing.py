"""What a worker does about a job that several share, in the order in which a crash loses nothing (see `parts.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from gpu_worker.cloud import LostLease
from gpu_worker.cost import Spent
from gpu_worker.lease import Bury, Drop, Hide, Lease
from gpu_worker.parts import Change, Join, Piece, Work, broken, counted, joined, look, message, stitch_of


class Port(Protocol):
    """The records, the job queue and the results bucket, as far as sharing goes. Any call may raise CloudError."""

    def record(self, job_id: str) -> Mapping[str, Any] | None:
        """The job as it is now."""

    def send(self, bodies: Sequence[str]) -> None:
        """Put messages into the job queue."""

    def split(self, lease: Lease, parts: int, spent: Spent) -> None:
        """SPLIT: the work goes on in the parts. Raises LostLease."""

    def finish(
        self, lease: Lease, outputs: Sequence[str], spent: Spent, now: datetime, also: Change | None = None
    ) -> None:
        """SUCCEEDED, and the other change with it, both or none. Raises LostLease."""

    def reject(self, lease: Lease, reason: str, spent: Spent, now: datetime, also: Change | None = None) -> None:
        """FAILED, and the other change with it, both or none. Raises LostLease."""

    def remove_parts(self, stitch: Piece) -> None:
        """Delete the parts and what came of them."""


def share(cloud: Port, lease: Lease, parts: Sequence[Piece], spent: Spent) -> None:
    """The parts are stored: hand them out. From here on the whole's message has no more use."""
    cloud.send([message(part) for part in parts])
    cloud.split(lease, len(parts), spent)


def wanted(cloud: Port, piece: Piece) -> Work | Hide | Drop | Bury:
    """Whether a piece is to be worked on; and if it is an echo of what a crash may have cut short, see to the rest."""
    verdict = look(piece, cloud.record(piece.whole.job_id))
    match verdict:
        case Join():
            cloud.send([message(stitch_of(piece))])
            return Drop(succeeded=False)
        case Drop(succeeded=True) if piece.number is None:
            cloud.remove_parts(piece)
    return verdict


def finish(cloud: Port, lease: Lease, piece: Piece, outputs: Sequence[str], spent: Spent, now: datetime) -> None:
    """A piece is done. The last part sends the stitch; the stitch is the end of the whole.

    Where another piece has failed meanwhile, this one is done for nothing, and over too.
    """
    also = counted(piece) if piece.number is not None else joined(piece, outputs, now)
    try:
        cloud.finish(lease, outputs, spent, now, also)
    except LostLease:
        if not isinstance(wanted(cloud, piece), Drop):
            raise
    else:
        wanted(cloud, piece)


def reject(cloud: Port, lease: Lease, piece: Piece, reason: str, spent: Spent, now: datetime) -> bool:
    """A piece failed for good, and its whole with it; False if the whole was over already."""
    try:
        cloud.reject(lease, reason, spent, now, broken(piece, reason, now))
    except LostLease:
        cloud.reject(lease, reason, spent, now)
        return False
    return True
