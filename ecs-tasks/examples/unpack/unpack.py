"""A callable: unpack the tar archive that somebody uploaded; refuse what would leave the folder or fill the disk."""

import gzip
import lzma
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpu_worker.outcome import Rejected

MOST_FILES = 200
UNREADABLE = (tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError)


def problems(options: Mapping[str, Any]) -> list[str]:
    """Looked at before the worker takes a job."""
    most = options.get("max_bytes", 2**30)
    return [] if isinstance(most, int) and most > 0 else [f"max_bytes: a number of bytes, got {most!r}"]


def process(source: Path, output_dir: Path, job: Mapping[str, Any]) -> None:
    """One result for each file of the archive."""
    left = job["options"].get("max_bytes", 2**30)
    try:
        with tarfile.open(source) as archive:
            for number, member in enumerate(archive, start=1):
                left -= member.size  # as it would be on disk: a few bytes may say that they are gigabytes
                if left < 0 or number > MOST_FILES:
                    raise Rejected(f"the archive has more bytes or files than allowed, at {member.name!r}")
                if not (member.isreg() or member.isdir()):
                    raise Rejected(f"{member.name!r} is neither a file nor a folder")
                archive.extract(member, output_dir, filter="data")  # no absolute names, none with ..
    except UNREADABLE as error:
        raise Rejected(f"cannot be unpacked: {error}") from error
