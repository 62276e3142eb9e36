"""A long job that an interruption costs little: it saves how far it is, and the next attempt goes on from there."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpu_worker.outcome import NotNow


def process(source: Path, output_dir: Path, job: Mapping[str, Any]) -> None:
    """Add up numbers, one a line, each of which takes its time."""
    progress = Path(job["checkpoint"]) / "progress.json"
    done, total = json.loads(progress.read_text()) if progress.exists() else (0, 0)
    numbers = [int(line) for line in source.read_text().split()]
    for number in numbers[done:]:
        print(f"step {done}", flush=True)
        time.sleep(job["options"].get("seconds_per_step", 1.0))
        done, total = done + 1, total + number
        save(progress, [done, total])
        if Path(job["deadline_file"]).exists():  # the host will be taken
            raise NotNow("saved, to be continued elsewhere")
    (output_dir / "total.txt").write_text(f"{total}\n")


def save(path: Path, state: Any) -> None:
    """All of it or nothing: what begins with a dot is not kept, and a rename is one step."""
    new = path.with_name(f".{path.name}")
    new.write_text(json.dumps(state))
    new.rename(path)
