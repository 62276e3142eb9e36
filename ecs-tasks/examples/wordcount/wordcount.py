"""A large job that several workers share: split into parts, worked on part by part, and stitched together."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def split(source: Path, parts_dir: Path, job: Mapping[str, Any]) -> None:
    """Write each part as a file, in the order of their names. To write none is to say: no need, process it whole."""
    lines_per_part = job["options"].get("lines_per_part", 100_000)
    lines = source.read_text().splitlines(keepends=True)
    if len(lines) > lines_per_part:
        for number, start in enumerate(range(0, len(lines), lines_per_part)):
            (parts_dir / f"{number:05d}.txt").write_text("".join(lines[start : start + lines_per_part]))


def process(source: Path, output_dir: Path, job: Mapping[str, Any]) -> None:
    """Count the words of a text, whole or part: `"part" in job` would tell."""
    counts = Counter(source.read_text().lower().split())
    (output_dir / "words.json").write_text(json.dumps(counts, sort_keys=True))


def stitch(parts: list[Path], output_dir: Path, job: Mapping[str, Any]) -> None:
    """Add up. Each part is a folder with what `process` wrote for it, and they come in their order."""
    counts: Counter[str] = Counter()
    for part in parts:
        counts.update(json.loads((part / "words.json").read_text()))
    (output_dir / "words.json").write_text(json.dumps(counts, sort_keys=True))
