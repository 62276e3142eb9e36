"""The ECS agent of one instance: it registers the instance, runs its tasks and answers them and the host.

One HTTP server stands for the agent's several: introspection (localhost:51678 on AWS), task metadata version 4, task
credentials and the task protection endpoint (169.254.170.2). What the agent asks of AWS it asks by real calls, with
the instance role's credentials, or with the task role's for task protection (amazon-ecs-agent,
agent/handlers/agentapi/taskprotection/v1/handlers/handlers.go). The control plane reaches it by a method call, where
AWS has a websocket.

Left out on purpose: ECS_ENABLE_SPOT_INSTANCE_DRAINING. On AWS the agent itself sets its instance DRAINING at a Spot
notice, a third net under ours; here what is measured must be the product's own draining.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from localcloud import launchtimes, signed, substrate
from localcloud.ecs_shapes import Document, short
from localcloud.host import Host
from localcloud.image import REGISTRY, Image, Images, NoSuchImage
from localcloud.launch import ApiSurveyor
from localcloud.network import INTERNET
from localcloud.signed import Refused
from localcloud.taskprocess import CannotStart, TaskProcess
from localcloud.world import ACCOUNT, REGION, World

if TYPE_CHECKING:
    from localcloud.ecs import Ecs

AGENT_VERSION = "1.99.0"
RETRY_SECONDS = 5.0
"""Before the agent asks again after a refusal; not scaled."""
LOGS_SECONDS = 5.0
WARM_POOL_SECONDS = 60.0
"""Between two looks of the agent at the state that its group wants (amazon-ecs-agent, asgLifecyclePollWait)."""
SIZE = launchtimes.BUILT_IN
"""Of every image here: the worker's own, which is what the laptop runs. One with CUDA takes minutes more to pull."""
PULL_ACTIONS = (
    "ecr:GetAuthorizationToken",
    "ecr:BatchCheckLayerAvailability",
    "ecr:GetDownloadUrlForLayer",
    "ecr:BatchGetImage",
)
"""Of the execution role, or of the instance's when a task has none (developer guide, "task execution IAM role")."""
_SESSION_SECONDS = 6 * 3600.0
_RENEW_SECONDS = 900.0
_SEEN_BY_OS = 0.96
"""Share of an instance type's memory that its kernel reports, and so the agent registers."""


class EcsAgent:
    """The agent of one instance, from boot to the instance's death."""

    def __init__(self, world: World, ecs: Ecs, host: Host) -> None:
        self.world, self._ecs, self.host = world, ecs, host
        self.images: Images = ecs.images
        self.cluster = host.config.get("ECS_CLUSTER", "default")
        self.container_instance = ""
        self.tasks: dict[str, TaskProcess] = {}
        self._sessions: dict[str, tuple[str, dict[str, str]]] = {}
        self._complained: set[str] = set()
        self._read: set[str] = set()
        """Images of which something has run since power on: what a worker reads of them is in memory."""
        self._pulls: dict[str, dict[str, float]] = {}
        """By task: when its pulls began and ended, as ECS is told with the task's state."""
        self._stopped = threading.Event()
        # Bound but not listening: the address is known and refuses until the instance is registered.
        self._server = _Server(self)
        self.uri = f"http://127.0.0.1:{self._server.server_address[1]}"

    def start(self) -> None:
        """Boot: register, then serve. Does not wait."""
        self.cluster = self.host.config.get("ECS_CLUSTER", "default")  # the user data that says it has run by now
        threading.Thread(target=self._live, name=f"ecs agent {self.host.instance_id}", daemon=True).start()
        self.world.on_stop(self.stop)

    def stop(self) -> None:
        """The instance dies now: nothing is told to anyone. Does not wait."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        for task in list(self.tasks.values()):
            task.kill()
        self._server.close()

    # The control plane's orders (Agent of ecs_state)

    def run(self, task: Document, definition: Document) -> None:
        """Start a task. Does not wait."""
        process = TaskProcess(self, task, definition)
        self.tasks[process.arn] = process
        if "taskRoleArn" in definition:
            self._sessions[process.arn] = (str(uuid.uuid4()), {})
        process.start()

    def halt(self, task_arn: str) -> None:
        """Stop a task. Does not wait."""
        if process := self.tasks.get(task_arn):
            process.halt()

    def kill(self, task_arn: str) -> None:
        """SIGKILL to a task's containers; it ends as of itself."""
        self.tasks[task_arn].kill_containers()

    def pids(self) -> dict[str, list[int]]:
        """The processes of each task."""
        return {task_arn: process.pids for task_arn, process in list(self.tasks.items())}

    # Life

    def _live(self) -> None:
        if self._stopped.wait(self.world.scaled(launchtimes.REGISTER)) or not self._goes_into_service():
            return
        answer = self._insist("RegisterContainerInstance", self._registration())
        if answer is None:
            return
        self.container_instance = answer["containerInstance"]["containerInstanceArn"]
        where = {"cluster": self.cluster, "containerInstance": self.container_instance}
        if self._insist("DiscoverPollEndpoint", where) is None or not self._reaches_its_endpoints():
            return
        self._server.open()
        self._ecs.connect(self.container_instance, self)
        while not self._stopped.wait(LOGS_SECONDS):
            for task in list(self.tasks.values()):
                task.ship_logs()

    def _goes_into_service(self) -> bool:
        """With ECS_WARM_POOLS_CHECK, wait until the group wants the instance in service. False: it died first."""
        if self.host.config.get("ECS_WARM_POOLS_CHECK", "").lower() == "true":
            while self.host.target_state() != "InService":
                if self._stopped.wait(self.world.scaled(WARM_POOL_SECONDS)):
                    return False
        return not self._stopped.is_set()

    def _reaches_its_endpoints(self) -> bool:
        """Wait until the two endpoints that the agent keeps a websocket to can be reached. False: it died first."""
        while not all(self.host.way.reaches(service) for service in ("ecs-agent", "ecs-telemetry")):
            if "Poll" not in self._complained:
                self._complained.add("Poll")
                self.world.note("ecs agent refused", self.host.instance_id, operation="Poll", why="no way to ecs-agent")
            if self._stopped.wait(RETRY_SECONDS):
                return False
        return True

    def _registration(self) -> dict[str, Any]:
        host, config = self.host, self.host.config
        identity = {
            "instanceId": host.instance_id,
            "instanceType": host.instance_type,
            "availabilityZone": host.zone,
            "region": REGION,
            "accountId": ACCOUNT,
        }
        memory = int(host.memory_mib * _SEEN_BY_OS) - int(config.get("ECS_RESERVED_MEMORY", "0"))
        amounts = [("CPU", 1024 * host.vcpus), ("MEMORY", memory)]
        attributes: Mapping[str, str] = json.loads(config.get("ECS_INSTANCE_ATTRIBUTES", "{}"))
        return {
            "cluster": self.cluster,
            "instanceIdentityDocument": json.dumps(identity),
            "totalResources": [{"name": name, "type": "INTEGER", "integerValue": amount} for name, amount in amounts],
            "platformDevices": [
                {"id": f"GPU-{uuid.uuid5(uuid.NAMESPACE_OID, f'{host.instance_id}/{index}')}", "type": "GPU"}
                for index in range(host.gpus)
            ],
            "attributes": [{"name": name, "value": value} for name, value in attributes.items()],
            "versionInfo": {
                "agentVersion": AGENT_VERSION,
                "agentHash": "local",
                "dockerVersion": "DockerVersion: none",
            },
        }

    def call(self, operation: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """A call of ECS with the instance role's credentials. Raises Refused."""
        return signed.call(self.world.endpoint, "ecs", operation, self.host.credentials(), params)

    def _insist(self, operation: str, params: Mapping[str, Any]) -> dict[str, Any] | None:
        """Call until it is granted; None when the instance died, or what it names is gone. The diary has a refusal."""
        while not self._stopped.is_set():
            try:
                return self.call(operation, params)
            except Refused as refused:
                if refused.code == "InvalidParameterException":  # it is not known there any more
                    return None
                if operation not in self._complained:
                    self._complained.add(operation)
                    self.world.note("ecs agent refused", self.host.instance_id, operation=operation, why=str(refused))
                self._stopped.wait(RETRY_SECONDS)
        return None

    # What its tasks need (TaskProcess)

    def tell(self, process: TaskProcess, status: str, **detail: object) -> None:
        """Tell ECS what became of a task."""
        pull = self._pulls.pop(process.arn, {})
        change = {"cluster": self.cluster, "task": process.arn, "status": status, **pull, **detail}
        self._insist("SubmitTaskStateChange", change)

    def tell_health(self, process: TaskProcess, container: str, status: str) -> None:
        """Tell ECS what a container's health check shows now: the telemetry of AWS's agent, which says no more here."""
        if not self._stopped.is_set():
            self._ecs.hear_health(process.arn, container, status)

    def ended(self, process: TaskProcess, reason: str | None, exits: list[dict[str, Any]]) -> None:
        """A task is over; an agent that died with its instance says nothing."""
        told = {"reason": reason} if reason else {}
        self.tell(process, "STOPPED", containers=exits, executionStoppedAt=time.time(), **told)
        self.tasks.pop(process.arn, None)
        self._sessions.pop(process.arn, None)

    def pull(self, process: TaskProcess, name: str) -> Image:
        """The image, pulled unless this instance has it already. Raises CannotStart.

        One that came with the AMI is asked for as well, and its first worker reads it from the snapshot.
        """
        began = time.time()
        try:
            image = self.images.pull(name)
        except NoSuchImage as error:
            raise CannotStart(f"CannotPullContainerError: {name}: not found") from error
        if name not in self.host.images:
            process.wait(self.world.scaled(launchtimes.pulling(SIZE)))
            self._fetch(process, name)
            self.host.images.add(name)
            self._read.add(name)
        else:
            process.wait(self.world.scaled(launchtimes.ASK))
        pulls = self._pulls.setdefault(process.arn, {"pullStartedAt": began})
        pulls["pullStoppedAt"] = time.time()
        if name not in self._read:
            process.wait(self.world.scaled(launchtimes.reading(SIZE)))
            self._read.add(name)
        return image

    def _fetch(self, process: TaskProcess, name: str) -> None:
        """What stands between an instance and a registry: the network, and for ECR a role. Raises CannotStart."""
        private = name.startswith(f"{REGISTRY}/")
        for service in ("ecr.api", "ecr.dkr", "s3") if private else (INTERNET,):
            if not self.host.way.reaches(service):
                message = "net/http: request canceled while waiting for connection"
                raise CannotStart(f"CannotPullContainerError: {name}: {message} (no way to {service})")
        role = process.definition.get("executionRoleArn", self.host.role)
        repository = f"arn:aws:ecr:{REGION}:{ACCOUNT}:repository/{name.removeprefix(f'{REGISTRY}/').split(':')[0]}"
        for action in PULL_ACTIONS if private else ():
            where = "*" if action == "ecr:GetAuthorizationToken" else repository
            if not substrate.role_may(role, process.id, action, where):
                message = f"AccessDeniedException: {role} is not authorized to perform {action} on {where}"
                raise CannotStart(f"CannotPullECRContainerError: {message}")

    def credentials_id(self, process: TaskProcess) -> str:
        """The secret part of the task's credentials URI."""
        return self._sessions[process.arn][0]

    def prove_role(self, process: TaskProcess) -> None:
        """Refuse a task role that ECS may not hand out. Raises CannotStart."""
        role = process.definition.get("taskRoleArn")
        if role and not ApiSurveyor().trusts(role, "ecs-tasks.amazonaws.com"):
            raise CannotStart(f"ECS was unable to assume the role '{role}' that was provided for this task.")

    def task_credentials(self, process: TaskProcess) -> dict[str, str]:
        """The task role's credentials, renewed in time."""
        identifier, session = self._sessions[process.arn]
        soon = datetime.fromtimestamp(time.time() + _RENEW_SECONDS, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        if session.get("Expiration", "") < soon:
            role = process.definition["taskRoleArn"]
            session = substrate.session(role, process.id, _SESSION_SECONDS, self.host.way)
            self._sessions[process.arn] = (identifier, session)
        return session

    def logs_writer(self, process: TaskProcess) -> Callable[[str, Mapping[str, Any]], Any]:
        """How the log driver of a task calls CloudWatch Logs: as the instance, or as the execution role if told to."""
        role = process.definition.get("executionRoleArn")
        override = self.host.config.get("ECS_ENABLE_AWSLOGS_EXECUTIONROLE_OVERRIDE", "").lower() == "true"

        def write(operation: str, params: Mapping[str, Any]) -> Any:
            keys = self.host.credentials()
            if role and override:
                keys = substrate.session(role, process.id, way=self.host.way)
            return signed.call(self.world.endpoint, "logs", operation, keys, params)

        return write

    # What it answers

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Document]:
        """One request of the host or of a task: (status, JSON)."""
        kind, _, rest = path.strip("/").partition("/")
        if (kind, rest) == ("v1", "metadata"):
            return 200, {
                "Cluster": self.cluster,
                "ContainerInstanceArn": self.container_instance,
                "Version": f"Amazon ECS Agent - v{AGENT_VERSION} (local)",
            }
        if kind == "v2":
            return self._credentials(rest.removeprefix("credentials/"))
        endpoint, _, rest = rest.partition("/")
        process = next((each for each in list(self.tasks.values()) if endpoint.startswith(each.id)), None)
        if process is None:
            return 404, {"error": "no task was found"}
        if kind == "v4" and rest in ("", "task"):
            shown = self._metadata(process)
            return 200, shown if rest else shown["Containers"][int(endpoint.rsplit("-", 1)[1])]
        if kind == "api" and rest == "task-protection/v1/state":
            return self._protection(process, method, body)
        return 404, {"error": f"no {path}"}

    def _credentials(self, identifier: str) -> tuple[int, Document]:
        for task_arn, (known, _) in list(self._sessions.items()):
            if known == identifier:
                process = self.tasks[task_arn]
                return 200, {"RoleArn": process.definition["taskRoleArn"], **self.task_credentials(process)}
        return 400, {"code": "InvalidIdInRequest", "message": "CredentialsV2Request: ID not found"}

    def _metadata(self, process: TaskProcess) -> Document:
        task, definition = process.task, process.definition
        group = task["group"]
        return {
            "Cluster": self.cluster,
            **({"ServiceName": group.partition(":")[2]} if group.startswith("service:") else {}),
            "TaskARN": process.arn,
            "Family": definition["family"],
            "Revision": str(definition["revision"]),
            "DesiredStatus": "RUNNING",
            "KnownStatus": process.known_status,
            "AvailabilityZone": self.host.zone,
            "LaunchType": "EC2",
            "Containers": [
                {
                    "DockerId": short(each["containerArn"]),
                    "Name": each["name"],
                    "DockerName": f"ecs-{definition['family']}-{definition['revision']}-{each['name']}",
                    "Image": each["image"],
                    "ContainerARN": each["containerArn"],
                    "DesiredStatus": "RUNNING",
                    "KnownStatus": process.known_status,
                    "Type": "NORMAL",
                    "Labels": {
                        "com.amazonaws.ecs.cluster": self.cluster,
                        "com.amazonaws.ecs.task-arn": process.arn,
                        "com.amazonaws.ecs.container-name": each["name"],
                    },
                }
                for each in task["containers"]
            ],
        }

    def _protection(self, process: TaskProcess, method: str, body: bytes) -> tuple[int, Document]:
        if process.arn not in self._sessions:
            message = "Invalid Request: no task IAM role credentials available for task"
            return 403, _error(process, "AccessDeniedException", message)
        params: dict[str, Any] = {"cluster": self.cluster, "tasks": [process.arn]}
        operation = "GetTaskProtection"
        if method == "PUT":
            operation = "UpdateTaskProtection"
            try:
                asked = json.loads(body)
                unknown = set(asked) - {"ProtectionEnabled", "ExpiresInMinutes"}
            except (ValueError, TypeError):
                asked, unknown = {}, {"?"}
            if unknown:
                return 400, _error(process, "InvalidParameterException", f"{operation}: failed to decode request")
            if not isinstance(asked.get("ProtectionEnabled"), bool):
                message = "Invalid request: does not contain 'ProtectionEnabled' field"
                return 400, _error(process, "InvalidParameterException", message)
            params["protectionEnabled"] = asked["ProtectionEnabled"]
            if asked.get("ExpiresInMinutes") is not None:
                params["expiresInMinutes"] = asked["ExpiresInMinutes"]
        try:
            answer = signed.call(self.world.endpoint, "ecs", operation, self.task_credentials(process), params)
        except Refused as refused:
            return refused.status, {
                "requestID": refused.request_id,
                **_error(process, refused.code, refused.message),
            }
        if answer["failures"]:
            failure = answer["failures"][0]
            shown = {"Arn": failure["arn"], "Detail": failure.get("detail"), "Reason": failure["reason"]}
            return 404 if failure["reason"] == "MISSING" else 409, {"failure": shown}
        told = answer["protectedTasks"][0]
        until = told.get("expirationDate")
        expires = datetime.fromtimestamp(until, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if until else None
        return 200, {
            "protection": {
                "ExpirationDate": expires,
                "ProtectionEnabled": told["protectionEnabled"],
                "TaskArn": told["taskArn"],
            }
        }


def _error(process: TaskProcess, code: str, message: str) -> Document:
    return {"error": {"Arn": process.arn, "Code": code, "Message": message}}


class _Server(ThreadingHTTPServer):
    """The agent's HTTP server: waits in accept(), so an idle one costs nothing."""

    def __init__(self, agent: EcsAgent) -> None:
        super().__init__(("127.0.0.1", 0), _Handler, bind_and_activate=False)
        self.agent = agent
        self.server_bind()

    def open(self) -> None:
        """Listen and answer, in a thread of its own."""
        self.server_activate()
        threading.Thread(target=self._serve, name="ecs agent http", daemon=True).start()

    def close(self) -> None:
        """Refuse from now on. Does not wait."""
        with contextlib.suppress(OSError):  # it was never listening
            self.socket.shutdown(socket.SHUT_RDWR)
        self.server_close()

    def _serve(self) -> None:
        while True:
            try:
                request, address = self.get_request()
            except OSError:  # closed: the instance died
                return
            self.process_request(request, address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_GET(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, answer = self.server.agent.answer(self.command, self.path.partition("?")[0], body)
        reply = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet."""
