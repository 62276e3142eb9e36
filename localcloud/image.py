"""Container images of the laptop: a name, and the local command and folder that stand for it.

Without an engine there is no container: no file system, network or user of its own. ENTRYPOINT, CMD and ENV are read
from the image's Dockerfile, WORKDIR is the folder that the Dockerfile is in, and `python` is the Python that runs this.
With one the registry is what the engine has in its store.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from localcloud.engine import Engine
from localcloud.world import ACCOUNT, REGION

REGISTRY = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com"
"""The account's own registry has everything that there is here; a name without it is one of a public registry."""
WORKER = "gpu-worker:local"
WORKER_FOLDER = Path(__file__).resolve().parent.parent / "ecs-tasks" / "gpu-worker"
_INSTRUCTION = re.compile(r"^\s*(FROM|ENTRYPOINT|CMD|ENV|WORKDIR)\s+(.*)$", re.IGNORECASE)


class NoSuchImage(Exception):
    """The registry does not have it."""


@dataclass(frozen=True)
class Image:
    """What a container of it runs when the task definition says nothing else."""

    folder: Path
    entry_point: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    workdir: str = "/app"
    """Where the folder is inside the image."""
    layers: tuple[Path, ...] = ()
    """Folders put on top of it: the code of a processor."""
    tag: str = ""
    """Its name in the engine's store."""

    def local(self, value: str) -> str:
        """A value with paths below WORKDIR turned into paths of this machine."""
        return re.sub(rf"(?<![\w/.-]){re.escape(self.workdir)}(?=[/:]|$)", str(self.folder), value)

    def argv(self, entry_point: list[str] | None, command: list[str] | None) -> list[str]:
        """The command line: as in Docker, an entry point of one's own drops the image's command."""
        entry = tuple(entry_point) if entry_point is not None else self.entry_point
        rest = tuple(command) if command is not None else (() if entry_point is not None else self.command)
        words = [self.local(word) for word in (*entry, *rest)]
        if words and words[0] in ("python", "python3"):
            words[0] = sys.executable
        return words

    @property
    def python_path(self) -> str:
        """PYTHONPATH of the process: what lies on top first."""
        return os.pathsep.join(str(folder) for folder in (*self.layers, self.folder))


class Images:
    """The registry: the worker's image, `python`, and what was added. With an engine: its store, and what was put on
    top of an image there.
    """

    def __init__(self, engine: Engine | None = None) -> None:
        self._engine = engine
        self._added: dict[str, Image] = {}

    def pull(self, name: str) -> Image:
        """The image. Raises NoSuchImage."""
        name = name.removeprefix(f"{REGISTRY}/")
        if name in self._added:
            return self._added[name]
        if self._engine:
            if self._engine.has(name):
                return Image(Path("/"), tag=name)
            raise NoSuchImage(name)
        if name == WORKER:
            return read_dockerfile(WORKER_FOLDER)
        if name == "python":
            return Image(Path.cwd(), entry_point=("python",))
        raise NoSuchImage(name)

    def add(self, name: str, folder: str, argv: list[str] | None = None, base: str | None = None) -> None:
        """Publish an image: a folder with its command, or (`base`) a folder put on top of an image that there is."""
        path = Path(folder).resolve(strict=True)
        if base is not None:
            image = self.pull(base)
            image = replace(image, layers=(path, *image.layers))
        elif self._engine:
            raise NoSuchImage(f"{name}: build it with the engine that runs the containers")
        elif argv is None and (path / "Dockerfile").exists():
            image = read_dockerfile(path)
        else:
            image = Image(path)
        self._added[name] = replace(image, entry_point=tuple(argv), command=()) if argv is not None else image


def read_dockerfile(folder: Path) -> Image:
    """What the last stage of the folder's Dockerfile says of the process. Raises NoSuchImage when there is none."""
    try:
        text = (folder / "Dockerfile").read_text()
    except FileNotFoundError as error:
        raise NoSuchImage(str(folder)) from error
    image = Image(folder)
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        if not (found := _INSTRUCTION.match(line)):
            continue
        kind, rest = found[1].upper(), found[2].strip()
        if kind == "FROM":
            image = Image(folder)
        elif kind == "WORKDIR":
            image = replace(image, workdir=rest)
        elif kind == "ENTRYPOINT":
            image = replace(image, entry_point=_words(rest))
        elif kind == "CMD":
            image = replace(image, command=_words(rest))
        else:
            image = replace(image, environment={**image.environment, **_assignments(rest)})
    return image


def _words(text: str) -> tuple[str, ...]:
    return tuple(json.loads(text)) if text.startswith("[") else ("/bin/sh", "-c", text)


def _assignments(text: str) -> dict[str, str]:
    words = shlex.split(text)
    if "=" in words[0]:
        return dict(word.split("=", 1) for word in words)
    return {words[0]: " ".join(words[1:])}
