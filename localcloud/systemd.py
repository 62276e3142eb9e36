"""As much of systemd as an instance's agents need: unit files, services that run as real processes and come back.

Resource control and sandboxing are not played: what is only protection is inert, what would change what runs is
refused.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

INERT = re.compile(
    r"(Protect|Private|Restrict|Memory|CPU|Tasks|IO|Limit|Lock|SystemCall|Syslog|Standard|Capability|Ambient|LogRate)"
    r"\w*|NoNewPrivileges|OOMScoreAdjust|Nice|RuntimeDirectoryPreserve|RuntimeDirectoryMode|UMask|RemoveIPC"
    r"|ReadWritePaths|KillSignal|KillMode|TimeoutStartSec|TimeoutStopSec|SuccessExitStatus"
)
PLAYED = {"Type", "ExecStart", "Environment", "EnvironmentFile", "Restart", "RestartSec", "RuntimeDirectory"}
PLAYED |= {"StateDirectory", "WorkingDirectory"}
DEFAULT_RESTART_SECONDS = 0.1
START_LIMIT, START_LIMIT_SECONDS = 5, 10.0
"""systemd's default: after so many starts in so many seconds a service stays failed (systemd.unit(5))."""
SPANS = {"ms": 0.001, "s": 1.0, "sec": 1.0, "min": 60.0, "": 1.0}


class BadUnit(Exception):
    """The unit file says what is not played, or nothing that could run."""


@dataclass(frozen=True)
class UnitFile:
    """The service that a unit file describes."""

    command: Sequence[str]
    environment: Mapping[str, str]
    restart: str
    restart_seconds: float
    directory: Path
    limited: bool
    """Whether systemd's start limit holds; StartLimitIntervalSec=0 lifts it."""


def read(path: Path, root: Path) -> UnitFile:
    """Read a .service file of the instance whose `/` is `root`, and make the directories it asks for.

    Raises BadUnit.
    """
    said: dict[str, list[str]] = {}
    limited, section = True, ""
    for line in path.read_text().replace("\\\n", " ").splitlines():
        words = line.strip()
        if words.startswith("["):
            section = words
        elif section == "[Service]" and words and words[0] not in "#;":
            key, _, value = words.partition("=")
            said.setdefault(key.strip(), []).append(value.strip())
        elif words == "StartLimitIntervalSec=0":
            limited = False
    if unplayed := sorted(key for key in said if key not in PLAYED and not INERT.fullmatch(key)):
        raise BadUnit(f"the local cloud does not play {', '.join(unplayed)} of {path.name}")
    if said.get("Type", ["simple"])[-1] not in ("simple", "exec"):
        raise BadUnit(f"{path.name}: the local cloud plays Type=simple and exec only")
    if len(said.get("ExecStart", [])) != 1:
        raise BadUnit(f"{path.name}: one ExecStart, please")
    environment = _environment(said, root)
    for kind, parent in (("RuntimeDirectory", "run"), ("StateDirectory", "var/lib")):
        for name in " ".join(said.get(kind, [])).split():
            (root / parent / name).mkdir(parents=True, exist_ok=True)
    command = shlex.split(re.sub(r"\$\{(\w+)\}", lambda found: environment.get(found[1], ""), said["ExecStart"][0]))
    if re.fullmatch(r"(/usr/bin/)?python3", command[0]):
        command[0] = sys.executable
    return UnitFile(
        command=command,
        environment=environment,
        restart=said.get("Restart", ["no"])[-1],
        restart_seconds=_seconds(said["RestartSec"][-1]) if "RestartSec" in said else DEFAULT_RESTART_SECONDS,
        directory=Path(said.get("WorkingDirectory", [str(root)])[-1]),
        limited=limited,
    )


def _environment(said: Mapping[str, Sequence[str]], root: Path) -> dict[str, str]:
    environment: dict[str, str] = {}
    for assignment in shlex.split(" ".join(said.get("Environment", ()))):
        key, _, value = assignment.partition("=")
        environment[key] = value
    for name in said.get("EnvironmentFile", ()):
        file = Path(name.removeprefix("-"))
        if not file.exists() and name.startswith("-"):
            continue
        for line in file.read_text().splitlines():
            if line.strip() and line.strip()[0] not in "#;":
                key, _, value = line.strip().partition("=")
                environment[key] = " ".join(shlex.split(value)) if value[:1] in "\"'" else value
    return {key: inside(value, root) for key, value in environment.items()}


def _seconds(span: str) -> float:
    match = re.fullmatch(r"([\d.]+)\s*(\w*)", span)
    if match is None or match[2] not in SPANS:
        raise BadUnit(f"{span!r} is no time span that the local cloud reads")
    return float(match[1]) * SPANS[match[2]]


def inside(text: str, root: Path) -> str:
    """`text` with absolute paths of the instance moved under the folder that stands for its `/`.

    A textual chroot: it rewrites what looks like a path under /etc, /opt, /run, /var or /usr/local, once.
    """
    return re.sub(
        rf"(?<![\w.$}}~/-])(?!{re.escape(str(root))})(/(?:etc|opt|run|var|usr/local)(?=[/\s\"';:)]|$))",
        lambda found: str(root) + found[1],
        text,
    )


@dataclass
class Supervised:
    """A service of an instance and the process it runs as."""

    unit: UnitFile
    log: Path
    base_environment: Mapping[str, str]
    wanted: bool = False
    """Whether it shall run."""
    process: subprocess.Popen[bytes] | None = None
    again_at: datetime | None = None
    starts: list[datetime] = field(default_factory=list)

    def start(self, now: datetime) -> None:
        """Run it, if it does not run."""
        self.wanted, self.again_at = True, None
        if self.process is not None and self.process.poll() is None:
            return
        self.starts = [*self.starts[1 - START_LIMIT :], now]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.unit.command,
                cwd=self.unit.directory,
                env={**self.base_environment, **self.unit.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End its processes; it does not come back."""
        self.wanted, self.again_at = False, None
        if self.process is not None and self.process.poll() is None:
            signal_group(self.process, how)

    def step(self, now: datetime) -> None:
        """Notice its end, and bring it back when the unit says so."""
        if self.process is not None and (status := self.process.poll()) is not None:
            signal_group(self.process, signal.SIGKILL)  # what it left behind, as systemd's control groups do
            self.process = None
            comes_back = self.unit.restart == "always" or (self.unit.restart == "on-failure" and status != 0)
            recent = sum((now - start).total_seconds() < START_LIMIT_SECONDS for start in self.starts)
            if self.wanted and comes_back and not (self.unit.limited and recent >= START_LIMIT):
                self.again_at = now + timedelta(seconds=self.unit.restart_seconds)
        if self.again_at is not None and self.again_at <= now:
            self.start(now)


def signal_group(process: subprocess.Popen[Any], how: signal.Signals) -> None:
    """Signal the session that we started the process in."""
    try:
        os.killpg(process.pid, how)
    except (ProcessLookupError, PermissionError):  # gone already (macOS says it with EPERM for a zombie)
        return
