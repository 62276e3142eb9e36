"""hadolint: the worker's Dockerfile.

Finds unpinned packages and images, caches left in layers, shell forms that swallow signals, and users that a host
cannot resolve; it also runs shellcheck on each RUN.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from judges import Finding, NotSetUp


def judge(dockerfiles: Mapping[str, str]) -> list[Finding]:
    """Every rule, over the texts of Dockerfiles by name."""
    program = Path(sys.executable).with_name("hadolint")
    if not program.exists():
        raise NotSetUp(f"{program} is not there; `make setup` installs it")
    findings = []
    for name, text in dockerfiles.items():
        done = subprocess.run(
            [program, "--no-fail", "--format", "json", "-"], input=text, capture_output=True, text=True, check=False
        )
        findings += [
            Finding("hadolint", f"{name} line {said['line']}", f"{said['code']} {said['message']}")
            for said in json.loads(done.stdout)
        ]
    return findings
