"""Podman or Docker of this machine: what stands for the container runtime of every instance, when asked for.

`python -m localcloud.engine` builds the worker's image, under the name by which the local cloud knows it.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_PREFIX = "spindrift-cloud"
_ASK_SECONDS = 60
_ULIMIT = 16384


class NoEngine(Exception):
    """Neither podman nor docker works here; the message says why."""


@dataclass(frozen=True)
class Engine:
    """One of the two, whose command lines agree in all that is used here except where `podman` is asked."""

    command: tuple[str, ...]
    """The program and the options that every call of it takes."""
    environment: Mapping[str, str]
    """The operator's: where the engine finds its images and its daemon."""
    rations: bool
    """Whether it can hold a container to an amount of memory and a share of the processor."""

    @property
    def podman(self) -> bool:
        """Whether it is podman."""
        return Path(self.command[0]).name == "podman"

    def ask(self, *words: str, seconds: float = _ASK_SECONDS) -> subprocess.CompletedProcess[str]:
        """Run one of its commands to its end. Raises subprocess.TimeoutExpired."""
        return subprocess.run(
            [*self.command, *words], env=self.environment, capture_output=True, text=True, timeout=seconds, check=False
        )

    def has(self, image: str) -> bool:
        """Whether the image is in its store. Nothing is ever pulled."""
        return self.ask("image", "inspect", image).returncode == 0

    def build(self, folder: Path, image: str, **arguments: str) -> None:
        """Build a folder's Dockerfile. Raises NoEngine with what the engine said."""
        # Podman's own format has no health check. Host network: a sandbox may have no other.
        words = ["build", "--network", "host", "--tag", image, *(("--format", "docker") if self.podman else ())]
        words += [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
        done = self.ask(*words, *(self._ulimits() if self.podman else ()), str(folder), seconds=1800)
        if done.returncode != 0:
            raise NoEngine(f"{image} cannot be built: {done.stdout[-2000:]}{done.stderr[-2000:]}")

    def run(self, name: str, image: str, options: Sequence[str], command: Sequence[str]) -> list[str]:
        """The command line of a container in the foreground: its signals, its output and its exit code are the
        client's. On the host's network, where the local cloud is; nothing of it outlives it.
        """
        own = ["--rm", "--name", name, "--network", "host", "--pull", "never", "--no-healthcheck"]
        own += self._ulimits()
        return [*self.command, "run", *own, *options, image, *command]

    def remove(self, name: str) -> None:
        """SIGKILL to a container, and away with it. Does not wait; one that is not there is fine."""
        words = ["rm", "--force", "--volumes", *(("--time", "0", "--ignore") if self.podman else ()), name]
        subprocess.Popen(
            [*self.command, *words],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def sweep(self) -> None:
        """Remove what clouds left that were killed."""
        listed = self.ask("ps", "--all", "--filter", f"name={_PREFIX}", "--format", "{{.Names}}")
        for name in listed.stdout.split():
            if not Path(f"/proc/{name.split('-')[2]}").exists():
                self.remove(name)

    def _ulimits(self) -> list[str]:
        """What every machine can give: an engine's own default may be more than a sandbox lets it."""
        words = []
        for name, kind in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC)):
            _, hard = resource.getrlimit(kind)
            limit = _ULIMIT if hard == resource.RLIM_INFINITY else min(hard, _ULIMIT)
            words += ["--ulimit", f"{name}={limit}:{limit}"]
        return words


def name_of(task: str, container: int) -> str:
    """What a container of this cloud is called: whoever finds it can tell whether the cloud still lives."""
    return f"{_PREFIX}-{os.getpid()}-{task}-{container}"


def find() -> Engine:
    """The engine of this machine that works, podman before docker. Raises NoEngine."""
    reasons = []
    for name in ("podman", "docker"):
        if (program := shutil.which(name)) is None:
            reasons.append(f"{name} is not installed")
            continue
        engine = Engine((program,), dict(os.environ), rations=True)
        said = engine.ask("info", "--format", "{{json .}}")
        if said.returncode != 0:
            reasons.append(f"{name}: {(said.stderr or said.stdout).strip().splitlines()[-1]}")
        elif name == "docker":
            return engine
        else:
            return _podman(program, json.loads(said.stdout)["host"])
    raise NoEngine("; ".join(reasons))


def _podman(program: str, host: Mapping[str, object]) -> Engine:
    """crun, Debian's default, refuses the older control groups where both kinds are mounted; runc does not."""
    older = host["cgroupVersion"] == "v1" and shutil.which("runc")
    command = (program, "--runtime", "runc") if older else (program,)
    controllers = host["cgroupControllers"] or []
    return Engine(command, dict(os.environ), rations={"memory", "cpu"} <= set(controllers))  # type: ignore[call-overload]


def main() -> int:
    """Build `gpu-worker:local`. BASE_IMAGE, VERSION and REVISION of the environment are its build arguments."""
    from localcloud.image import WORKER, WORKER_FOLDER  # noqa: PLC0415 (they need this module)

    given = {name: os.environ[name] for name in ("BASE_IMAGE", "VERSION", "REVISION") if os.environ.get(name)}
    try:
        find().build(WORKER_FOLDER, WORKER, **given)
    except NoEngine as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{WORKER}: built; python build.py local --containers runs workers in it\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
