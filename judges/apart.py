"""The judges' own environment: programs that cannot be installed beside boto3 1.43 or a new setuptools."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from judges import NotSetUp

PYTHON = Path(__file__).resolve().parents[1] / ".venv-judges/bin/python"


def run(arguments: Sequence[str], stdin: str = "", python: Path = PYTHON) -> str:
    """What that environment's Python says on standard output. Raises NotSetUp without it, or when it does not answer.

    Exit status 1 is an answer: there are findings.
    """
    if not python.exists():
        raise NotSetUp(f"{python} is not there; `make setup` installs the judges")
    # HOME: checkov would keep an identity of ours there.
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "LOG_LEVEL": "ERROR"}
    # -I: a program of ours beside a module of ours must not find that one in place of the package it is named for.
    command = [str(python), "-I", "-W", "ignore", *arguments]
    done = subprocess.run(command, input=stdin, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1) or not done.stdout:
        told = done.stderr.strip()[-300:]
        raise NotSetUp(f"{' '.join(command[4:6])} did not answer ({told}); `make setup` installs the judges")
    return done.stdout
