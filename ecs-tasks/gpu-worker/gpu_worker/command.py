"""A processor that is a program: `{input}` and `{output}` in its arguments stand for the file and the folder.

Its exit code is the outcome (outcome.py). There is no shell: a key with quotes, spaces or `$(...)` in it is an argument
like any other, and the file it names is not among the arguments anyway.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpu_worker.session import end_followers


def problems(options: Mapping[str, Any]) -> list[str]:
    """What is wrong with `options["command"]`, before a job is taken."""
    command = options.get("command")
    if not isinstance(command, list) or not command or not all(isinstance(word, str) and word for word in command):
        return [f"command: a list of a program and its arguments, got {command!r}"]
    return [] if shutil.which(command[0]) else [f"command: there is no program {command[0]!r} in this image"]


def process(input: Path, output_dir: Path, job: Mapping[str, Any]) -> None:  # noqa: A002 (the contract's name)
    """Run the command; what it leaves in the background does not outlive it. Raises SystemExit with its exit code."""
    order = arguments(job["options"]["command"], input, output_dir)
    env = os.environ | environment(input, output_dir, job)
    done = subprocess.run(order, env=env, cwd=output_dir.parent, check=False)
    end_followers(os.getpid())
    if done.returncode:
        raise SystemExit(done.returncode)


def arguments(command: Sequence[str], source: Path, output_dir: Path) -> list[str]:
    """The command with its two places filled in; other braces are left alone."""
    return [word.replace("{input}", str(source)).replace("{output}", str(output_dir)) for word in command]


def environment(source: Path, output_dir: Path, job: Mapping[str, Any]) -> dict[str, str]:
    """What the command is told beside its arguments. (A key may hold anything, so it is not among it.)"""
    return {
        "SPINDRIFT_INPUT": str(source),
        "SPINDRIFT_OUTPUT": str(output_dir),
        "SPINDRIFT_JOB_ID": job["job_id"],
        "SPINDRIFT_ATTEMPT": str(job["attempt"]),
        "SPINDRIFT_CHECKPOINT_DIR": job["checkpoint"],
        "SPINDRIFT_DEADLINE_FILE": job["deadline_file"],
    }
