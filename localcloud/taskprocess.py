"""One task on one instance, from its arrival at the ECS agent to its end. What a container is, see containers.py."""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localcloud import containers, ecshealth, engine, launchtimes, sharedfiles
from localcloud.containers import Container, Mount, Order
from localcloud.ecs_shapes import Document, short
from localcloud.ecshealth import Health, HealthCheck
from localcloud.image import Image
from localcloud.signed import Refused
from localcloud.tasklogs import LogStream

if TYPE_CHECKING:
    from localcloud.ecsagent import EcsAgent

log = logging.getLogger(__name__)

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
        self._definitions: dict[str, Document] = {each["name"]: each for each in definition["containerDefinitions"]}
        self._containers: dict[str, Container] = {}
        self._logs: dict[str, LogStream] = {}
        self._shared: dict[str, Path] = {}
        """Volumes of EFS by name."""
        self._timers: list[threading.Timer] = []
        self._ended: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._halted = threading.Event()
        self._over = threading.Event()

    def start(self) -> None:
        """Begin, without waiting for anything."""
        threading.Thread(target=self._live, name=f"task {self.id}", daemon=True).start()

    def halt(self) -> None:
        """SIGTERM to what runs, SIGKILL to what still runs after its stop timeout."""
        with self._lock:
            if self._halted.is_set():
                return
            self._halted.set()
            for name, container in self._containers.items():
                if container.process.returncode is None:
                    os.kill(container.process.pid, signal.SIGTERM)
                patience = float(self._definitions[name].get("stopTimeout", STOP_TIMEOUT_SECONDS))
                timer = threading.Timer(patience, container.kill)
                timer.daemon = True
                timer.start()
                self._timers.append(timer)

    def kill(self) -> None:
        """SIGKILL to all, now."""
        with self._lock:
            self._halted.set()
            for container in self._containers.values():
                container.kill()

    def kill_containers(self) -> None:
        """SIGKILL to the containers, as the kernel does when memory is short; the agent goes on and tells."""
        with self._lock:
            for container in self._containers.values():
                container.kill()

    @property
    def pids(self) -> list[int]:
        """Process ids of the containers that run; with an engine those of its clients."""
        processes = [container.process for container in list(self._containers.values())]
        return [process.pid for process in processes if process.returncode is None]

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
        if self._containers:
            self.known_status = "RUNNING"
            self._agent.tell(self, "RUNNING")
            self._outlive()
        self.known_status = "STOPPED"
        self._agent.ended(self, reason, self._exits())

    def _start(self) -> None:
        agent, images = self._agent, {}
        for name, definition in self._definitions.items():
            images[name] = agent.pull(self, definition["image"])
        if self._halted.wait(agent.world.scaled(launchtimes.CONTAINER)):
            return
        agent.prove_role(self)
        self._mount_shared()
        for definition in self._definitions.values():
            self._open_log(definition)
        with self._lock:
            if self._halted.is_set():
                return
            for name, definition in self._definitions.items():
                self._containers[name] = self._begin(definition, images[name])
                threading.Thread(target=self._await, args=(name,), daemon=True).start()
                if check := HealthCheck.of(definition):
                    threading.Thread(target=self._watch, args=(name, check), daemon=True).start()

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
        name = self.id if len(self._definitions) == 1 else f"{self.id}-{container}"
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

    def _begin(self, definition: Document, image: Image) -> Container:
        name, world = definition["name"], self._agent.world
        overrides: list[Document] = self.task["overrides"].get("containerOverrides", [])
        override = next((each for each in overrides if each.get("name") == name), {})
        home = world.state / "tasks" / self.id
        home.mkdir(parents=True, exist_ok=True)
        order = Order(
            name=engine.name_of(self.id, list(self._definitions).index(name)),
            image=image,
            definition=definition,
            command=override.get("command", definition.get("command")),
            said={
                **image.environment,
                **{each["name"]: each["value"] for each in definition.get("environment", [])},
                **{each["name"]: each["value"] for each in override.get("environment", [])},
            },
            given=self._given(name),
            mounts=self._mounts(definition, home),
            home=home,
            log=self._log_path(name),
        )
        try:
            return containers.start(order, world.engine)
        except OSError as error:
            raise CannotStart(f"CannotStartContainerError: {error}") from error

    def _given(self, name: str) -> dict[str, str]:
        """The environment that every container gets. No region: ECS on EC2 does not tell a container where it is."""
        agent = self._agent
        gpus = next(each.get("gpuIds", []) for each in self.task["containers"] if each["name"] == name)
        given = {
            "AWS_ENDPOINT_URL": agent.world.endpoint,
            "AWS_EXECUTION_ENV": "AWS_ECS_EC2",
            "ECS_CONTAINER_METADATA_URI_V4": f"{agent.uri}/v4/{self.endpoint_id(name)}",
            "ECS_AGENT_URI": f"{agent.uri}/api/{self.endpoint_id(name)}",
            "NVIDIA_VISIBLE_DEVICES": ",".join(gpus) or "void",
        }
        if speed := agent.world.speeds.get(agent.host.instance_type):
            given["LOCALCLOUD_SPEED"] = str(speed)
        if "taskRoleArn" in self.definition:
            given["AWS_CONTAINER_CREDENTIALS_FULL_URI"] = f"{agent.uri}/v2/credentials/{agent.credentials_id(self)}"
        return given

    def _mounts(self, definition: Document, home: Path) -> dict[str, Mount]:
        """By container path; a volume without a source is the task's own."""
        volumes = {each["name"]: each for each in self.definition.get("volumes", [])}
        mounts = {}
        for mount in definition.get("mountPoints", []):
            volume, own = volumes[mount["sourceVolume"]], False
            if "efsVolumeConfiguration" in volume:
                there = self._shared[volume["name"]]
            elif source := volume.get("host", {}).get("sourcePath"):
                there = self._agent.host.root / source.lstrip("/")
            else:
                there, own = home / volume["name"], True
            mounts[mount["containerPath"].rstrip("/")] = Mount(there, mount.get("readOnly", False), own)
        return mounts

    def endpoint_id(self, container: str) -> str:
        """What names this container in the agent's URIs."""
        return f"{self.id}-{list(self._definitions).index(container)}"

    def _await(self, name: str) -> None:
        # Not reaped yet, its id still names its group: with the first process of a container all others end.
        container = self._containers[name]
        os.waitid(os.P_PID, container.process.pid, os.WEXITED | os.WNOWAIT)
        container.kill()
        container.process.wait()
        self._ended.put(name)

    def _watch(self, name: str, check: HealthCheck) -> None:
        """Run a container's health check until the container ends, and tell ECS of every change."""
        container, health, since = self._containers[name], Health(), time.monotonic()
        while not self._over.wait(check.interval):
            before, passed = health, container.passes(check.command, check.timeout)
            health = health.after(passed, check, time.monotonic() - since)
            if health.status != before.status:
                if self._over.wait(self._agent.world.scaled(ecshealth.REPORT_SECONDS)):
                    return
                self._agent.tell_health(self, name, health.status)

    def _outlive(self) -> None:
        """Wait until every container ended; the end of an essential one stops the others."""
        left = set(self._containers)
        while left:
            name = self._ended.get()
            left.discard(name)
            if self._definitions[name].get("essential", True):
                self.halt()
        self._over.set()
        for timer in self._timers:
            timer.cancel()
        self.ship_logs()

    def _exits(self) -> list[dict[str, Any]]:
        codes = {name: container.process.returncode for name, container in self._containers.items()}
        return [
            {"containerName": name, "status": "STOPPED", "exitCode": code if code >= 0 else 128 - code}
            for name, code in codes.items()
            if code is not None
        ]
