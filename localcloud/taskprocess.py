"""One task on one instance: its containers as processes of this machine.

A process stands for a container, so these are not enforced: a read-only mount or root file system, memory and CPU
limits, users and capabilities. A bind mount is played by translation: where a value of the environment is a mount's
container path or below it, the process gets the path below the host's root folder instead.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localcloud import sharedfiles
from localcloud.ecs_shapes import Document, short
from localcloud.image import Image
from localcloud.signed import Refused
from localcloud.tasklogs import LogStream

if TYPE_CHECKING:
    from localcloud.ecsagent import EcsAgent

log = logging.getLogger(__name__)

START_SECONDS = 3.0
"""AWS's time to create and start the containers."""
STOP_TIMEOUT_SECONDS = 30.0
"""Between SIGTERM and SIGKILL when the container does not say. Not scaled: it is the product's own wait."""


class CannotStart(Exception):
    """The task ends before it ran; the message is its stopped reason."""


class TaskProcess:
    """A task from its arrival at the agent to its end."""

    def __init__(self, agent: EcsAgent, task: Document, definition: Document) -> None:
        self._agent, self.task, self.definition = agent, task, definition
        self.arn: str = task["taskArn"]
        self.id = short(self.arn)
        self.known_status = "PENDING"
        self._containers: dict[str, Document] = {each["name"]: each for each in definition["containerDefinitions"]}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._logs: dict[str, LogStream] = {}
        self._shared: dict[str, Path] = {}
        """Volumes of EFS by name."""
        self._timers: list[threading.Timer] = []
        self._ended: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._halted = threading.Event()

    def start(self) -> None:
        """Begin, without waiting for anything."""
        threading.Thread(target=self._live, name=f"task {self.id}", daemon=True).start()

    def halt(self) -> None:
        """SIGTERM to what runs, SIGKILL to what still runs after its stop timeout."""
        with self._lock:
            if self._halted.is_set():
                return
            self._halted.set()
            for name, process in self._processes.items():
                if process.returncode is None:
                    os.kill(process.pid, signal.SIGTERM)
                patience = float(self._containers[name].get("stopTimeout", STOP_TIMEOUT_SECONDS))
                timer = threading.Timer(patience, _kill, [process])
                timer.daemon = True
                timer.start()
                self._timers.append(timer)

    def kill(self) -> None:
        """SIGKILL to all, now."""
        with self._lock:
            self._halted.set()
            for process in self._processes.values():
                _kill(process)

    def kill_containers(self) -> None:
        """SIGKILL to the containers, as the kernel does when memory is short; the agent goes on and tells."""
        with self._lock:
            for process in self._processes.values():
                _kill(process)

    @property
    def pids(self) -> list[int]:
        """Process ids of the containers that run."""
        return [process.pid for process in list(self._processes.values()) if process.returncode is None]

    def wait(self, seconds: float) -> None:
        """Let so many real seconds pass, or fewer when the task is told to stop."""
        self._halted.wait(seconds)

    def ship_logs(self) -> None:
        """Send what was written since to CloudWatch Logs."""
        for stream in list(self._logs.values()):
            stream.ship()

    def _live(self) -> None:
        reason = None
        try:
            self._start()
        except CannotStart as error:
            reason = str(error)
            self.halt()
        except Exception as error:  # our own fault must not leave the task PENDING for ever
            log.exception("task %s", self.id)
            reason = f"CannotStartContainerError: {error}"
            self.halt()
        if self._processes:
            self.known_status = "RUNNING"
            self._agent.tell(self, "RUNNING")
            self._outlive()
        self.known_status = "STOPPED"
        self._agent.ended(self, reason, self._exits())

    def _start(self) -> None:
        agent, images = self._agent, {}
        for name, container in self._containers.items():
            images[name] = agent.pull(self, container["image"])
        if self._halted.wait(agent.world.scaled(START_SECONDS)):
            return
        agent.prove_role(self)
        self._mount_shared()
        for container in self._containers.values():
            self._open_log(container)
        with self._lock:
            if self._halted.is_set():
                return
            for name, container in self._containers.items():
                self._processes[name] = self._spawn(container, images[name])
                threading.Thread(target=self._await, args=(name, self._processes[name]), daemon=True).start()

    def _mount_shared(self) -> None:
        role = self.definition.get("taskRoleArn", "")
        for volume in self.definition.get("volumes", []):
            if "efsVolumeConfiguration" in volume:
                try:
                    self._shared[volume["name"]] = sharedfiles.mount(
                        self._agent.world, self._agent.host, role, self.id, volume["efsVolumeConfiguration"]
                    )
                except sharedfiles.CannotMount as error:
                    message = "ResourceInitializationError: failed to invoke EFS utils commands to set up EFS volumes"
                    raise CannotStart(f"{message}: {error}") from error

    def _log_path(self, container: str) -> Path:
        name = self.id if len(self._containers) == 1 else f"{self.id}-{container}"
        return self._agent.world.state / "tasks" / f"{name}.log"

    def _open_log(self, container: Document) -> None:
        name, path = container["name"], self._log_path(container["name"])
        path.parent.mkdir(exist_ok=True)
        path.touch()
        driver = container.get("logConfiguration", {})
        if driver.get("logDriver") == "awslogs":
            stream = LogStream(driver["options"], name, self.id, path, self._agent.logs_writer(self))
            try:
                stream.open()
            except Refused as refused:
                message = f"CannotStartContainerError: failed to initialize logging driver: {refused}"
                raise CannotStart(message) from refused
            self._logs[name] = stream

    def _spawn(self, container: Document, image: Image) -> subprocess.Popen[bytes]:
        name = container["name"]
        overrides: list[Document] = self.task["overrides"].get("containerOverrides", [])
        override = next((each for each in overrides if each.get("name") == name), {})
        command = override.get("command", container.get("command"))
        argv = image.argv(container.get("entryPoint"), command)
        try:
            with self._log_path(name).open("ab") as log:
                return subprocess.Popen(
                    argv,
                    cwd=image.folder,
                    env=self._environment(container, image, override),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            raise CannotStart(f"CannotStartContainerError: {error}") from error

    def _environment(self, container: Document, image: Image, override: Document) -> dict[str, str]:
        agent, name = self._agent, container["name"]
        home = agent.world.state / "tasks" / self.id
        home.mkdir(parents=True, exist_ok=True)
        said = {
            **image.environment,
            **{each["name"]: each["value"] for each in container.get("environment", [])},
            **{each["name"]: each["value"] for each in override.get("environment", [])},
        }
        mounts = self._mounts(container, home)
        if "/tmp" in mounts:  # noqa: S108 - a mount there is where the container's temporary files go
            said.setdefault("TMPDIR", "/tmp")  # noqa: S108
        own = {key: _translated(image.local(value), mounts) for key, value in said.items()}
        gpus = next(each.get("gpuIds", []) for each in self.task["containers"] if each["name"] == name)
        path = [str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"]
        # No region: ECS on EC2 does not tell a container where it is.
        ours = {
            "AWS_ENDPOINT_URL": agent.world.endpoint,
            "AWS_EXECUTION_ENV": "AWS_ECS_EC2",
            "ECS_CONTAINER_METADATA_URI_V4": f"{agent.uri}/v4/{self.endpoint_id(name)}",
            "ECS_AGENT_URI": f"{agent.uri}/api/{self.endpoint_id(name)}",
            "NVIDIA_VISIBLE_DEVICES": ",".join(gpus) or "void",
        }
        if "taskRoleArn" in self.definition:
            ours["AWS_CONTAINER_CREDENTIALS_FULL_URI"] = f"{agent.uri}/v2/credentials/{agent.credentials_id(self)}"
        python = os.pathsep.join(part for part in (image.python_path, own.get("PYTHONPATH", "")) if part)
        plain = {"PATH": os.pathsep.join(path), "HOME": str(home), "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1"}
        return {**plain, **own, "PYTHONPATH": python, **ours}

    def _mounts(self, container: Document, home: Path) -> dict[str, Path]:
        """Container path -> the folder that stands for it; a volume without a source is the task's own."""
        volumes = {each["name"]: each for each in self.definition.get("volumes", [])}
        mounts = {}
        for mount in container.get("mountPoints", []):
            volume = volumes[mount["sourceVolume"]]
            if "efsVolumeConfiguration" in volume:
                there = self._shared[volume["name"]]
            else:
                source = volume.get("host", {}).get("sourcePath")
                there = self._agent.host.root / source.lstrip("/") if source else home / volume["name"]
                there.mkdir(parents=True, exist_ok=True)
            mounts[mount["containerPath"].rstrip("/")] = there
        return mounts

    def endpoint_id(self, container: str) -> str:
        """What names this container in the agent's URIs."""
        return f"{self.id}-{list(self._containers).index(container)}"

    def _await(self, name: str, process: subprocess.Popen[bytes]) -> None:
        # Not reaped yet, its id still names its group: with the first process of a container all others end.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        _kill(process)
        process.wait()
        self._ended.put(name)

    def _outlive(self) -> None:
        """Wait until every container ended; the end of an essential one stops the others."""
        left = set(self._processes)
        while left:
            name = self._ended.get()
            left.discard(name)
            if self._containers[name].get("essential", True):
                self.halt()
        for timer in self._timers:
            timer.cancel()
        self.ship_logs()

    def _exits(self) -> list[dict[str, Any]]:
        return [
            {
                "containerName": name,
                "status": "STOPPED",
                "exitCode": process.returncode if process.returncode >= 0 else 128 - process.returncode,
            }
            for name, process in self._processes.items()
            if process.returncode is not None
        ]


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the container and all that it started: its session is a process group of its own."""
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)


def _translated(value: str, mounts: dict[str, Path]) -> str:
    for container_path, there in mounts.items():
        if value == container_path or value.startswith(f"{container_path}/"):
            return str(there) + value[len(container_path) :]
    return value
