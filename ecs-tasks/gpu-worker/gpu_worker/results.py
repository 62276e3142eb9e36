"""What a processor left behind, before any of it is stored: names, sizes and kinds that the record and S3 can take."""

from __future__ import annotations

from pathlib import Path

from gpu_worker.job import LONGEST_NAME
from gpu_worker.parts import MOST_PARTS

MOST_RESULTS = 300
"""All their keys, of 1 KiB each, stand in the job's record, and a DynamoDB item may have 400 KB."""


def results(output_dir: Path, most_bytes: int) -> dict[str, Path]:
    """The files by name; links could lead anywhere, so there are none. Raises ValueError."""
    found = {}
    for path in sorted(output_dir.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ValueError("a result must be a plain file")
        name = path.relative_to(output_dir).as_posix()
        if len(name.encode(errors="surrogateescape")) > LONGEST_NAME:
            raise ValueError(f"a result's name may have {LONGEST_NAME} bytes")
        if not name.isprintable():
            raise ValueError("a result's name may have no control characters")
        if path.is_file():
            found[name] = path
        if len(found) > MOST_RESULTS:
            raise ValueError(f"a job may have {MOST_RESULTS} results")
    _weigh(list(found.values()), most_bytes)
    return found


def parts(parts_dir: Path, most_bytes: int) -> list[Path]:
    """The parts that a job was split into, in the order of their names; none if it was not. Raises ValueError."""
    found = sorted(parts_dir.iterdir()) if parts_dir.is_dir() else []
    if any(path.is_symlink() or not path.is_file() for path in found):
        raise ValueError("a part must be a plain file")
    if len(found) > MOST_PARTS:
        raise ValueError(f"a job may have {MOST_PARTS} parts")
    _weigh(found, most_bytes)
    return found


def _weigh(paths: list[Path], most_bytes: int) -> None:
    """A sparse file weighs what it says it has: S3 would be sent all of it."""
    if sum(path.stat().st_size for path in paths) > most_bytes:
        raise ValueError(f"the results of a job may have {most_bytes} bytes together")
