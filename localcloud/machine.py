"""The inside of an instance: it boots, runs its user data for real, joins ECS, and dies.

An instance is a folder that stands for its `/`, a metadata service, an ECS agent of our making and the processes that
systemd would have started. User data is run by bash with its absolute paths moved under that folder (a textual chroot,
see systemd.inside) and a PATH on which curl and systemctl are our stubs; everything else is the laptop's own.
"""

from __future__ import annotations

import atexit
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from localcloud import catalog, launchtimes, substrate
from localcloud.control import Control, Refused
from localcloud.host import OPEN, Host, Way
from localcloud.instances import Instance
from localcloud.metadata import Metadata
from localcloud.network import InstanceWay, Network
from localcloud.systemd import BadUnit, Supervised, inside, read, signal_group
from localcloud.world import World

if TYPE_CHECKING:
    from localcloud.ecs import Ecs

ECS_SECONDS = 2.0
"""The ECS agent is a container, loaded and started after the other services. Not scaled: these are real processes, and
what they do in their first second must not come after the first task."""
SESSION_SECONDS = 6 * 3600
RENEW_SECONDS = 15 * 60
AT_ONCE = threading.Semaphore(4)
"""How many user data scripts may run at a time: forty at once would stop a laptop."""
BUILT_IN = {"ecs", "docker", "amazon-ssm-agent"}
"""Units of the ECS image; they start by themselves."""
STUBS = Path(__file__).parent / "stubs"
ASKING = ("systemctl", "shutdown", "poweroff", "halt", "reboot")
PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
UNPACKED = "var/lib/spindrift"
"""Where the agent unpacks itself. All machines have the same folder there: to unpack and compile it takes a laptop
longer than to start it, and forty may start."""


class Agent(Protocol):
    """The ECS agent of one instance, see ecsagent.EcsAgent."""

    uri: str

    def start(self) -> None:
        """Register, and run tasks."""
        ...

    def stop(self) -> None:
        """Die."""
        ...


Hire = Callable[[Host], Agent]


class Machines:
    """What is inside the instances. Offers `machine/no-gpu`, `machine/never-joins` and `agent/kill`."""

    def __init__(self, world: World, control: Control, ecs: Ecs, hire: Hire | None = None) -> None:
        self.world = world
        self.ecs = ecs
        self.hire = hire or self._hire
        self.without_gpu = 0
        """How many of the next instances come up with no GPU found."""
        self.not_joining = 0
        """How many of the next instances never register."""
        self._machines: dict[str, Machine] = {}
        self._disks: dict[str, Disk] = {}
        self._due: dict[str, datetime] = {}
        self._poweroff: Callable[[Instance], None] = lambda _: None
        self._network: Network | None = None
        self._pulled: Callable[[str], set[str]] = lambda _: set()
        self.path = _stubs(world.state / "bin") + ":" + PATH
        world.every_heartbeat(self.step)
        world.on_stop(self.stop)
        atexit.register(self.stop)
        control.offer("machine/no-gpu", self._next_without_gpu)
        control.offer("machine/never-joins", self._next_not_joining)
        control.offer("agent/kill", self._kill_agent)

    def on_poweroff(self, terminate: Callable[[Instance], None]) -> None:
        """What to do when an instance switches itself off."""
        self._poweroff = terminate

    def in_network(self, network: Network) -> None:
        """Have instances get only where their subnets let them."""
        self._network = network

    def with_images(self, pulled: Callable[[str], set[str]]) -> None:
        """Which container images are on the disk of an instance, by the AMI that it is launched from."""
        self._pulled = pulled

    def way(self, instance: Instance) -> Way:
        """How an instance gets to AWS."""
        return InstanceWay(self._network, instance) if self._network else OPEN

    def boot(self, instance: Instance) -> None:
        """Power on. The user data runs when the system is up, once in an instance's life."""
        disk = self._disks.setdefault(instance.id, Disk(images=self._pulled(instance.blueprint.image_id)))
        self._machines[instance.id] = Machine(self, instance, disk)
        seconds = launchtimes.RESTART if disk.initialized else launchtimes.BOOT
        self._due[instance.id] = self.world.now() + timedelta(seconds=self.world.scaled(seconds))

    def halt(self, instance: Instance) -> None:
        """Power off: every process gets SIGKILL, nothing says goodbye. The disk stays."""
        self._switch_off(instance, self.ecs.agent_gone)

    def kill(self, instance: Instance) -> None:
        """Power off for good."""
        self._disks.pop(instance.id, None)
        self._switch_off(instance, self.ecs.instance_gone)

    def _switch_off(self, instance: Instance, tell: Callable[[str], None]) -> None:
        self._due.pop(instance.id, None)
        machine = self._machines.pop(instance.id, None)
        if machine is None:
            tell(instance.id)
            return
        machine.dead.set()
        threading.Thread(target=self._bury, args=(machine, tell), name=f"end of {instance.id}", daemon=True).start()

    def _bury(self, machine: Machine, tell: Callable[[str], None]) -> None:
        machine.die()
        with self.world.lock:
            tell(machine.instance.id)

    def power_off(self, instance: Instance) -> None:
        """The instance itself asked to be switched off; a one-time Spot or group instance is terminated then."""
        with self.world.lock:
            self._poweroff(instance)

    def step(self, now: datetime) -> None:
        """Start the boots that are due and look after every service."""
        for instance_id, due in list(self._due.items()):
            if due <= now:
                del self._due[instance_id]
                boot = self._machines[instance_id].come_up
                threading.Thread(target=boot, name=f"boot of {instance_id}", daemon=True).start()
        for machine in self._machines.values():
            for service in list(machine.services.values()):
                service.step(now)

    def stop(self) -> None:
        """End everything at once: the cloud stops."""
        with self.world.lock:
            machines, self._machines = list(self._machines.values()), {}
            self._due.clear()
        ends = [threading.Thread(target=machine.die, name=f"end of {machine.instance.id}") for machine in machines]
        for machine, end in zip(machines, ends, strict=True):
            machine.dead.set()
            end.start()
        for end in ends:
            end.join()

    def _hire(self, host: Host) -> Agent:
        from localcloud.ecsagent import EcsAgent  # noqa: PLC0415 - tests hire others

        agent: Agent = EcsAgent(self.world, self.ecs, host)
        return agent

    # The hand of fate

    def _next_without_gpu(self, next: int = 1) -> int:  # noqa: A002 - the command's own word
        self.without_gpu = next
        return next

    def _next_not_joining(self, next: int = 1) -> int:  # noqa: A002
        self.not_joining = next
        return next

    def _kill_agent(self, instance: str) -> str:
        """Kill the services that the user data started, for good."""
        machine = self._machines[instance]
        if not machine.services:
            raise Refused(f"{instance} runs no agent")
        for service in machine.services.values():
            service.stop(signal.SIGKILL)
        self.world.note("agent killed", instance)
        return instance


@dataclass
class Disk:
    """What outlives a stop, beside the files."""

    initialized: bool = False
    """Whether cloud-init has begun with the user data: it does so once, and never again if it was cut off then."""
    enabled: list[str] = field(default_factory=list)
    """Services that start by themselves."""
    images: set[str] = field(default_factory=set)
    """Names of the container images that were pulled."""


class Machine:
    """One instance's inside, from power on to power off."""

    def __init__(self, machines: Machines, instance: Instance, disk: Disk) -> None:
        self.instance = instance
        self._disk = disk
        self.dead = threading.Event()
        self.services: dict[str, Supervised] = {}
        self._machines = machines
        self._way = machines.way(instance)
        self._world = machines.world
        self._folder = machines.world.state / "instances" / instance.id
        self.root = self._folder / "root"
        for name in ("run", "tmp"):  # in memory, on Amazon Linux 2023
            shutil.rmtree(self.root / name, ignore_errors=True)
        for name in ("etc/systemd/system", "etc/ecs", "var/lib/ecs", "var/log", "opt", "run", "root", "tmp"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        _link(self.root / UNPACKED, machines.world.state / "unpacked")
        (self._folder / "init").mkdir(exist_ok=True)
        self._session: dict[str, str] = {}
        self._session_ends = datetime.min.replace(tzinfo=UTC)
        self._config: dict[str, str] = {}
        self._metadata = Metadata(instance, self.credentials)
        self._agent = machines.hire(self._host())
        self._script: subprocess.Popen[bytes] | None = None
        self._joins = machines.not_joining == 0
        machines.not_joining = max(0, machines.not_joining - 1)

    def _host(self) -> Host:
        kind = self.instance.pool.type
        hidden = self._machines.without_gpu > 0
        self._machines.without_gpu = max(0, self._machines.without_gpu - 1)
        return Host(
            instance_id=self.instance.id,
            instance_type=kind,
            zone=self.instance.pool.zone,
            lifecycle=self.instance.lifecycle,
            gpus=0 if hidden else catalog.gpus(kind),
            vcpus=catalog.vcpus(kind),
            memory_mib=catalog.memory_mib(kind),
            root=self.root,
            config=self._config,
            credentials=self.credentials,
            role=self.instance.blueprint.role_arn,
            images=self._disk.images,
            target_state=lambda: self.instance.target_state,
            way=self._way,
        )

    def credentials(self) -> dict[str, str]:
        """Credentials of the instance role, renewed in time."""
        if self._world.now() + timedelta(seconds=RENEW_SECONDS) > self._session_ends:
            role = self.instance.blueprint.role_arn
            self._session = substrate.session(role, self.instance.id, SESSION_SECONDS, self._way)
            self._session_ends = self._world.now() + timedelta(seconds=SESSION_SECONDS)
        return self._session

    def come_up(self) -> None:
        """Run the user data to its end, or at a later start the enabled services; then start the ECS agent.

        ECS starts whatever became of the script (its unit is only ordered after cloud-final), with the configuration
        that the script had written by then. What cloud-init would report is in the diary.
        """
        if self._disk.initialized:
            for name in self._disk.enabled:
                self._systemctl("start", name)
        else:
            self._run_user_data()
        if self.dead.is_set():
            return
        config = self.root / "etc/ecs/ecs.config"
        lines = config.read_text().splitlines() if config.exists() else []
        for line in lines:
            key, assigned, value = line.partition("=")
            if assigned and not key.startswith("#"):
                self._config[key] = value
        if self._joins and not self.dead.wait(ECS_SECONDS):
            self._agent.start()

    def _run_user_data(self) -> None:
        with AT_ONCE:
            if self.dead.is_set():
                return
            self._disk.initialized = True
            status = self._run_script() if self.instance.blueprint.user_data else 0
        if status != 0 and not self.dead.is_set():
            tail = (self._folder / "user-data.log").read_text(errors="replace")[-2000:]
            self._world.note("user data failed", self.instance.id, status=status, log=tail)

    def _run_script(self) -> int:
        text = self.instance.blueprint.user_data
        log = self._folder / "user-data.log"
        if not text.startswith("#!"):
            log.write_text("the local cloud plays user data that is a script\n")
            return 1
        script = self._folder / "user-data.sh"
        script.write_text(inside(text, self.root))
        with log.open("wb") as out:
            self._script = subprocess.Popen(
                ["bash", script],
                cwd=self.root,
                env=self._script_environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        while (status := self._script.poll()) is None:
            if self.dead.is_set():
                signal_group(self._script, signal.SIGKILL)
            self._answer_requests()
            time.sleep(0.05)
        return status

    def _answer_requests(self) -> None:
        for ask in sorted((self._folder / "init").glob("*.ask")):
            program, *words = ask.read_text().splitlines()
            ask.unlink()
            status, message = self._asked(program, words)
            new = ask.with_suffix(".tmp")
            new.write_text(f"{status}\n{message}")
            new.replace(ask.with_suffix(".reply"))

    def _asked(self, program: str, words: Sequence[str]) -> tuple[int, str]:
        """What systemctl and its like do: (exit status, message)."""
        if program == "shutdown" and words[-1:] != ["now"]:
            return self._shut_down_later(words)
        if program != "systemctl":
            self._machines.power_off(self.instance)
            return 0, ""
        flags = {word for word in words if word.startswith("-")}
        verb, *names = [word for word in words if word not in flags]
        if unknown := flags - {"--now", "--no-block", "-q", "--quiet"}:
            return 1, f"the local cloud's systemctl does not know {', '.join(sorted(unknown))}\n"
        if verb in ("poweroff", "halt"):
            self._machines.power_off(self.instance)
        elif verb not in ("daemon-reload", "enable", "start", "restart", "stop"):
            return 1, f"the local cloud's systemctl does not play {verb}\n"
        for name in [each.removesuffix(".service") for each in names]:
            if verb == "enable":
                self._disk.enabled += [] if name in {*self._disk.enabled, *BUILT_IN} else [name]
            try:
                if verb != "enable" or "--now" in flags:
                    self._systemctl(verb, name)
            except (BadUnit, OSError) as error:
                return 5, f"{name}: {error}\n"
        return 0, ""

    def _shut_down_later(self, words: Sequence[str]) -> tuple[int, str]:
        """`shutdown -h +MINUTES`, and no other way."""
        match words:
            case ["-h", later] if later.startswith("+") and later[1:].isdigit():
                timer = threading.Timer(self._world.scaled(60.0 * int(later)), self._power_off_if_on)
                timer.daemon = True
                timer.start()
                return 0, ""
        return 1, f"the local cloud's shutdown does not play {' '.join(words)}\n"

    def _power_off_if_on(self) -> None:
        if not self.dead.is_set():
            self._machines.power_off(self.instance)

    def _systemctl(self, verb: str, name: str) -> None:
        if name in BUILT_IN:
            self._joins = self._joins and not (name == "ecs" and verb == "stop")
            return
        with self._world.lock:  # the heartbeat looks after services
            if self.dead.is_set():
                return
            if verb in ("stop", "restart") and name in self.services:
                self.services.pop(name).stop()
            if verb == "stop":
                return
            if name not in self.services:
                unit = read(self.root / "etc/systemd/system" / f"{name}.service", self.root)
                self.services[name] = Supervised(unit, self._folder / f"{name}.log", self._service_environment())
            self.services[name].start(self._world.now())

    def _script_environment(self) -> Mapping[str, str]:
        return {
            **self._service_environment(),
            "PATH": self._machines.path,
            "LOCALCLOUD_INIT": str(self._folder / "init"),
            "LOCALCLOUD_METADATA": self._metadata.uri,
            "LOCALCLOUD_ENDPOINT": self._world.endpoint,
            "TMPDIR": str(self.root / "tmp"),
        }

    def _service_environment(self) -> Mapping[str, str]:
        return {
            "PATH": PATH,
            "HOME": str(self.root / "root"),
            "LANG": "C.UTF-8",
            "PYTHONUNBUFFERED": "1",
            "AWS_ENDPOINT_URL": self._world.endpoint,
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": self._metadata.uri,
            "ECS_AGENT_URI": self._agent.uri,
        }

    def die(self) -> None:
        """Lose power. May take half a second; not to be called with the lock held."""
        for service in list(self.services.values()):
            service.stop(signal.SIGKILL)
        if self._script is not None and self._script.poll() is None:
            signal_group(self._script, signal.SIGKILL)
        self._agent.stop()
        self._metadata.close()
        for service in list(self.services.values()):
            if service.process is not None:
                service.process.wait()


def _link(path: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    if not path.is_symlink():
        path.symlink_to(folder)


def _stubs(folder: Path) -> str:
    """Put the stubs on a PATH of their own and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    python = f'#!/bin/sh\nexec "{sys.executable}"'
    _program(folder / "curl", f'{python} "{STUBS / "curl.py"}" "$@"\n')
    _program(folder / "python3", f'{python} "$@"\n')
    _program(folder / "lsblk", "#!/bin/sh\n")  # the laptop's own disks are none of an instance's
    for name in ASKING:
        _program(folder / name, (STUBS / "ask.sh").read_text())
    if shutil.which("sha256sum", path=PATH) is None:
        _program(folder / "sha256sum", '#!/bin/sh\nexec shasum -a 256 "$@"\n')
    return str(folder)


def _program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)
