"""Small jobs that are worked on together: one product of matrices for all that wait, instead of one for each."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpu_worker.outcome import Rejected


def process(source: Path, output_dir: Path, job: Mapping[str, Any]) -> None:
    """Say which of the named vectors of the options an upload, a list of numbers, is most like."""
    process_many([source], [output_dir], [job])


def process_many(sources: Sequence[Path], output_dirs: Sequence[Path], jobs: Sequence[Mapping[str, Any]]) -> None:
    """The same for several uploads. If one is no good all are refused, and each is tried again alone."""
    known = jobs[0]["options"]["vectors"]
    names, vectors = list(known), _of_length_one(list(known.values()))
    likeness = _of_length_one([_read(source, vectors.shape[1]) for source in sources]) @ vectors.T
    for output_dir, likely in zip(output_dirs, likeness, strict=True):
        best = int(likely.argmax())
        # Rounded, for a library may add in another order where there is more to add.
        found = {"name": names[best], "likeness": round(float(likely[best]), 6)}
        (output_dir / "nearest.json").write_text(json.dumps(found))


def _read(source: Path, length: int) -> list[float]:
    try:
        vector = [float(each) for each in json.loads(source.read_text())]
    except (ValueError, TypeError) as error:
        raise Rejected(f"no list of numbers: {error}") from error
    if len(vector) != length or not any(vector):
        raise Rejected(f"not {length} numbers, or all are 0")
    return vector


def _of_length_one(rows: list[list[float]]) -> Any:
    vectors = np.array(rows)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
