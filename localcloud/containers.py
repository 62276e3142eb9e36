"""One container of a task: a plain process of this machine, or a container of podman or docker.

As a plain process these are not enforced: a read-only mount or root file system, memory and CPU limits, users and
capabilities. A bind mount is played by translation: where a value of the environment is a mount's container path or
below it, the process gets the path of the folder that stands for it. As a container all that is the engine's. Either
way there is one process of ours to wait for, whose signals, output and exit code are the container's.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from localcloud.ecs_shapes import Document
from localcloud.engine import Engine
from localcloud.image import Image

_LAYERS = "/spindrift"
"""Where folders that lie on top of an image are mounted."""
_PLAIN_PATH = ("/usr/local/bin", "/usr/bin", "/bin")


@dataclass(frozen=True)
class Mount:
    """A folder of this machine inside a container."""

    there: Path
    read_only: bool
    own: bool = False
    """A volume of the container's own: an engine makes it and removes it, and does not use the folder."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a container is to be."""

    name: str
    """Unique on this machine."""
    image: Image
    definition: Document
    """Its container definition."""
    command: list[str] | None
    """In place of the image's."""
    said: Mapping[str, str]
    """The environment as the image, the definition and the task say it, in the container's own paths."""
    given: Mapping[str, str]
    """The environment as ECS and the local cloud give it."""
    mounts: Mapping[str, Mount]
    """By the path inside the container."""
    home: Path
    log: Path


class Container(Protocol):
    """One that was started."""

    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        """SIGKILL to all that runs in it. Does not wait."""
        ...

    def passes(self, command: Sequence[str], seconds: float) -> bool:
        """Run a command inside; whether it exits 0 within so many seconds."""
        ...


class PlainContainer:
    """A process in a session of its own."""

    def __init__(self, order: Order) -> None:
        """Start it. Raises OSError."""
        self._order, self._image = order, order.image
        self._environment = self._translated()
        with order.log.open("ab") as log:
            self.process = self._popen(self._image.argv(order.definition.get("entryPoint"), order.command), log)

    def kill(self) -> None:
        """End the container and all that it started: its session is a process group of its own."""
        _kill_group(self.process)

    def passes(self, command: Sequence[str], seconds: float) -> bool:
        """Run a command beside it, in the same folder and environment."""
        try:
            check = self._popen(self._image.argv(list(command), None), subprocess.DEVNULL)
        except OSError:
            return False
        try:
            return check.wait(seconds) == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            _kill_group(check)
            check.wait()

    def _popen(self, argv: list[str], output: BinaryIO | int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            argv,
            cwd=self._image.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _translated(self) -> dict[str, str]:
        image, order = self._image, self._order
        said = dict(order.said)
        for mount in order.mounts.values():
            mount.there.mkdir(parents=True, exist_ok=True)
        if "/tmp" in order.mounts:  # noqa: S108 - a mount there is where the container's temporary files go
            said.setdefault("TMPDIR", "/tmp")  # noqa: S108
        own = {key: self._in_mounts(image.local(value)) for key, value in said.items()}
        python = os.pathsep.join(part for part in (image.python_path, own.get("PYTHONPATH", "")) if part)
        path = os.pathsep.join([str(Path(sys.executable).parent), *_PLAIN_PATH])
        plain = {"PATH": path, "HOME": str(order.home), "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1"}
        return {**plain, **own, "PYTHONPATH": python, **order.given}

    def _in_mounts(self, value: str) -> str:
        for container_path, mount in self._order.mounts.items():
            if value == container_path or value.startswith(f"{container_path}/"):
                return str(mount.there) + value[len(container_path) :]
        return value


class EngineContainer:
    """A container of podman or docker, with the engine's client for its process."""

    def __init__(self, order: Order, engine: Engine) -> None:
        """Start it. Raises OSError."""
        self._engine, self._name = engine, order.name
        argv = engine.run(order.name, order.image.tag, _options(order, engine), _words(order))
        with order.log.open("ab") as log:
            self.process = subprocess.Popen(
                argv,
                env=engine.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill(self) -> None:
        """The client first, or it could still start what is being removed."""
        _kill_group(self.process)
        self._engine.remove(self._name)

    def passes(self, command: Sequence[str], seconds: float) -> bool:
        """Run a command inside it."""
        try:
            return self._engine.ask("exec", self._name, *command, seconds=seconds).returncode == 0
        except subprocess.TimeoutExpired:
            return False


def start(order: Order, engine: Engine | None) -> Container:
    """Start a container, plain where there is no engine. Raises OSError."""
    return EngineContainer(order, engine) if engine else PlainContainer(order)


def _options(order: Order, engine: Engine) -> list[str]:
    """What `docker run` is told, as the ECS agent would of the same definition."""
    definition = order.definition
    layers = {f"{_LAYERS}/{number}": folder for number, folder in enumerate(order.image.layers)}
    environment = {**order.said, **order.given}
    if layers:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [*layers, order.said.get("PYTHONPATH")]))
    options = [word for key, value in environment.items() for word in ("--env", f"{key}={value}")]
    options += [word for where, folder in layers.items() for word in ("--volume", f"{folder}:{where}:ro")]
    for where, mount in order.mounts.items():
        mount.there.mkdir(parents=True, exist_ok=True)
        if not (mount.own or mount.read_only):
            mount.there.chmod(0o777)  # the container's user is nobody here; the access point of EFS has one for it
        source = "" if mount.own else f"{mount.there}:"
        options += ["--volume", f"{source}{where}{':ro' if mount.read_only else ''}"]
    for key, name in (("user", "--user"), ("workingDirectory", "--workdir"), ("hostname", "--hostname")):
        options += [name, definition[key]] if key in definition else []
    if "entryPoint" in definition:
        options += ["--entrypoint", definition["entryPoint"][0]]
    return [*options, *_limits(definition, engine)]


def _limits(definition: Document, engine: Engine) -> list[str]:
    """What keeps the container in its place."""
    linux = definition.get("linuxParameters", {})
    capabilities = linux.get("capabilities", {})
    options = ["--init"] if linux.get("initProcessEnabled") else []
    if definition.get("readonlyRootFilesystem"):
        # Podman would lay a writable tmpfs over /tmp, /run and /var/tmp: Docker, and so ECS, does not.
        options += ["--read-only", *(["--read-only-tmpfs=false"] if engine.podman else [])]
    options += [word for name in capabilities.get("drop", []) for word in ("--cap-drop", name)]
    options += [word for name in capabilities.get("add", []) for word in ("--cap-add", name)]
    options += [word for said in definition.get("dockerSecurityOptions", []) for word in ("--security-opt", said)]
    if engine.rations:
        options += ["--cpu-shares", str(max(2, definition["cpu"]))]
        options += ["--memory", f"{definition['memory']}m"] if "memory" in definition else []
    return options


def _words(order: Order) -> list[str]:
    return [*order.definition.get("entryPoint", [])[1:], *(order.command or [])]


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)
