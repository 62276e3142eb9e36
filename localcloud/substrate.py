"""ministack, the emulator under the local cloud, pinned by version and hash.

Its names are known here and in account.py, corrections.py, deliveries.py, deployments.py, functions.py, permissions.py
and telemetry.py, which this file puts in place.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import importlib
import json
import logging
import os
import re
import secrets
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config

from localcloud import wire
from localcloud.control import Control
from localcloud.host import Way
from localcloud.throttle import Throttle
from localcloud.world import ACCOUNT, REGION, World

if TYPE_CHECKING:
    from localcloud.formation import Guard, Resource

log = logging.getLogger(__name__)

Reply = tuple[int, dict[str, str], bytes]
Admin = Callable[[str, dict[str, Any]], Awaitable[tuple[int, dict[str, Any]]]]
ADMIN_PREFIX = "/_localcloud/"
OPERATOR_KEY = "test"  # ministack's root key: the operator of the laptop, never an actor of the product


UNREACHED_SECONDS = 1.0
"""Until a caller without a way is told so. On AWS it would wait for its own timeout."""
INHERITED = ("PATH", "LANG", "LC_ALL", "LOG_LEVEL")


def prepare(world: World) -> None:
    """Set what ministack reads from the environment. Must run before anything imports it.

    Whatever else the operator's shell had is dropped: ministack hands its own environment on to Lambda functions.
    """
    kept = {name: os.environ[name] for name in INHERITED if name in os.environ}
    home, temporary = world.state / "home", world.state / "tmp"
    home.mkdir(exist_ok=True)
    temporary.mkdir(exist_ok=True)
    os.environ.clear()
    os.environ.update(
        {
            "LOG_LEVEL": "WARNING",
            **kept,
            "HOME": str(home),
            "TMPDIR": str(temporary),
            "PYTHONUNBUFFERED": "1",
            "BIND_HOST": "127.0.0.1",
            "GATEWAY_PORT": str(urlsplit(world.endpoint).port),
            "MINISTACK_HOST": "127.0.0.1",
            "MINISTACK_ACCOUNT_ID": ACCOUNT,
            "MINISTACK_REGION": REGION,
            "AUTH": "true",
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ENDPOINT_URL": world.endpoint,
            "S3_DATA_DIR": str(world.state / "s3"),
            "IOT_MTLS_ENABLED": "0",
            "SFTP_ENABLED": "0",
        }
    )
    tempfile.tempdir = None


def install(
    world: World,
    control: Control,
    services: Sequence[wire.Service],
    resources: Mapping[str, Resource],
    guards: Mapping[str, Guard] | None = None,
) -> None:
    """Put our services before ministack's of the same name, our resources among its own, and make it as hard as AWS."""
    from localcloud import account, corrections, deliveries, deployments, functions, telemetry

    _install_services(services, Throttle(world, control))
    corrections.install(world)
    account.install()
    deployments.install(world, resources, guards or {})
    deliveries.Deliveries(world).install(control)
    functions.Functions(world).install(world, control)
    telemetry.listen(world, services)
    control.offer("events/emit", emit)
    control.offer("iam/session", session)


def _install_services(services: Sequence[wire.Service], throttle: Throttle) -> None:
    from ministack import app
    from ministack.core import iam_actions, router

    ours = {_NAMES.get(service.name, service.name): service for service in services}
    theirs = dict(app.SERVICE_HANDLERS)
    for name, service in ours.items():
        app.SERVICE_HANDLERS[name] = _handler(service, theirs.get(name) if name in _LEFT else None, throttle)
        if name not in router.SERVICE_PATTERNS:
            prefix = wire.model(name).metadata.get("targetPrefix")
            router.SERVICE_PATTERNS[name] = {"target_prefixes": [prefix] if prefix else []}

    extract = iam_actions.extract_iam_action

    @functools.wraps(extract)
    def action_of(service: str, method: str, path: str, headers: dict[str, str], body: bytes, query: Any) -> str | None:
        # ministack authenticates our operations; what they need is asked of our modules, which know the resources.
        operation = wire.operation_of(headers, body, path)
        if service in ours and not _is_left(ours[service], operation):
            return None
        result: str | None = extract(service, method, path, headers, body, query)
        return result

    iam_actions.extract_iam_action = action_of


_NAMES = {"cloudwatch": "monitoring"}
"""ministack's names of services where they are not botocore's."""
_LEFT = {"ec2": "", "monitoring": "Dashboard"}
"""By ministack's name: which operations of a service of ours are its own, when we do not play them."""


def _is_left(service: wire.Service, operation: str) -> bool:
    """Whether ministack answers the operation itself."""
    part = _LEFT.get(_NAMES.get(service.name, service.name))
    return part is not None and part in operation and not service.plays(operation)


def emit(source: str, detail_type: str, detail: Mapping[str, Any], resources: Sequence[str] = ()) -> None:
    """An EventBridge event of AWS itself (`aws.ec2`, `aws.ecs`): matched to the rules soon, never waited for."""
    entry = {"Source": source, "DetailType": detail_type, "Detail": json.dumps(detail), "Resources": list(resources)}
    _events().submit(_put_event, entry)


@functools.cache
def _events() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="events")


def _put_event(entry: dict[str, Any]) -> None:
    from ministack.core.responses import request_scope
    from ministack.services import eventbridge

    try:
        with request_scope(ACCOUNT, REGION):
            eventbridge._put_events({"Entries": [entry]}, allow_aws_source=True)
    except Exception:  # nobody waits for the answer; an event that got lost must at least be read in the log
        log.exception("event lost: %s", entry)


def publish(topic: str, subject: str, message: str) -> None:
    """Auto Scaling's news: published soon, never waited for, with its service-linked role."""
    _events().submit(_publish, topic, subject, message)


def _publish(topic: str, subject: str, message: str) -> None:
    from ministack.core.responses import request_scope
    from ministack.services import sns

    from localcloud import permissions

    try:
        with request_scope(ACCOUNT, REGION):
            if permissions.auto_scaling_may_publish(topic):
                sns.publish_internal(topic, message, subject)
            else:
                log.warning("Auto Scaling may not publish to %s: its policy or its key's does not let it", topic)
    except Exception:  # as with an event: nobody waits
        log.exception("news lost: %s", subject)


def alert(topic: str, alarm: str, subject: str, message: str) -> None:
    """What an alarm tells a topic: published soon, never waited for, if the topic's and its key's policies let it."""
    _events().submit(_alert, topic, alarm, subject, message)


def _alert(topic: str, alarm: str, subject: str, message: str) -> None:
    from ministack.core.responses import request_scope
    from ministack.services import sns

    from localcloud import permissions

    try:
        with request_scope(ACCOUNT, REGION):
            if permissions.topic_lets_service(topic, "cloudwatch.amazonaws.com", alarm):
                sns.publish_internal(topic, message, subject)
            else:
                log.warning("%s may not publish to %s: its policy or its key's does not let it", alarm, topic)
    except Exception:  # as with an event: nobody waits
        log.exception("alert lost: %s", subject)


def operator(service: str) -> Any:
    """A boto3 client with the operator's root key, for all threads. Never call it with the world's lock held."""
    with _MAKING:
        return _client(service)


_MAKING = threading.Lock()
"""Threads may share clients, and not the session that makes them (boto3, "Multithreading or multiprocessing")."""


@functools.cache
def _client(service: str) -> Any:
    config = Config(connect_timeout=2, read_timeout=30, retries={"total_max_attempts": 2})
    return _session().client(service, config=config)


@functools.cache
def _session() -> Any:
    return boto3.Session(aws_access_key_id=OPERATOR_KEY, aws_secret_access_key=OPERATOR_KEY)


def _handler(service: wire.Service, fallback: Any, throttle: Throttle) -> Callable[..., Awaitable[Reply]]:
    async def handle(method: str, path: str, headers: dict[str, str], body: bytes, query: dict[str, Any]) -> Reply:
        operation = wire.named(service.name, wire.operation_of(headers, body, path))
        if not service.plays(operation):
            if fallback is not None and _is_left(service, operation):
                reply: Reply = await fallback(method, path, headers, body, query)
                return reply
            unplayed = wire.Fault("NotPlayed", f"the local cloud does not play {service.name}:{operation}")
            return wire.answer_of(service.name, operation, unplayed)
        return await asyncio.to_thread(_answer, service, throttle, operation, headers, body, query)

    return handle


def _answer(
    service: wire.Service,
    throttle: Throttle,
    operation: str,
    headers: dict[str, str],
    body: bytes,
    query: dict[str, Any],
) -> Reply:
    from ministack.core.iam_evaluator import request_caller_arn

    try:
        params = wire.params_of(service.name, operation, headers, body, query)
        call = wire.Call(operation, params, request_caller_arn(headers, query))
        _authorize(service, call, headers, query)
        throttle.check(service.name, call)
        return wire.answer_of(service.name, operation, service.answer(call))
    except wire.Fault as fault:
        return wire.answer_of(service.name, operation, fault)


def _authorize(service: wire.Service, call: wire.Call, headers: dict[str, str], query: dict[str, Any]) -> None:
    """Hold the caller's policies against everything the call needs. Raises Fault."""
    from ministack.core.iam_evaluator import enforce
    from ministack.core.router import extract_access_key_id

    key = extract_access_key_id(headers, query)
    for need in service.permissions(call):
        denied = enforce(
            key, need.action, service.name, REGION, resource_arn=need.resource, service_context=dict(need.context)
        )
        if denied is not None:
            code = "UnauthorizedOperation" if service.name == "ec2" else "AccessDeniedException"
            raise wire.Fault(
                code, f"User: {call.caller} is not authorized to perform: {need.action} on resource: {need.resource}"
            )


_RECORDS = {
    "access-point": ("efs", "_access_points"),
    "file-system": ("efs", "_file_systems"),
    "internet-gateway": ("ec2", "_internet_gateways"),
    "mount-target": ("efs", "_mount_targets"),
    "route-table": ("ec2", "_route_tables"),
    "security-group": ("ec2", "_security_groups"),
    "subnet": ("ec2", "_subnets"),
    "vpc": ("ec2", "_vpcs"),
}


def records(kind: str) -> list[dict[str, Any]]:
    """ministack's records of one kind (see `_RECORDS`), to be read only."""
    from ministack.core.responses import request_scope

    service, table = _RECORDS[kind]
    kept = getattr(importlib.import_module(f"ministack.services.{service}"), table)
    with request_scope(ACCOUNT, REGION):
        return [kept[key] for key in list(kept)]


def more_to_come(kind: str, logical_id: str, stack: str) -> bool:
    """See deployments.more_to_come."""
    from localcloud import deployments

    return deployments.more_to_come(kind, logical_id, stack)


def role_may(role: str, session: str, action: str, resource: str = "*", keys: Mapping[str, str] | None = None) -> bool:
    """See permissions.role_may."""
    from localcloud import permissions

    return permissions.role_may(role, session, action, resource, keys)


def file_system_lets(system: Mapping[str, Any], caller: tuple[str, str], action: str, keys: Mapping[str, str]) -> bool:
    """See permissions.file_system_lets."""
    from localcloud import permissions

    return permissions.file_system_lets(system, caller, action, keys)


_ways: dict[str, Way] = {}
"""By access key of a session: how its holder gets to AWS. Sessions of who is everywhere are not in it."""


def way_of(access_key: str) -> Way | None:
    """How the holder of a session's key gets to AWS; None for one that is not on an instance."""
    return _ways.get(access_key)


def session(role_arn: str, name: str, seconds: float = 3600, way: Way | None = None) -> dict[str, str]:
    """Temporary credentials of a role, as AWS itself hands them to an instance or a task (`way`: from where it calls).

    Keys: AccessKeyId, SecretAccessKey, Token, Expiration (ISO-8601). Whether the role's trust policy lets
    the service have it is the caller's to check.
    """
    from ministack.services import sts

    role = role_arn.rsplit("/", 1)[-1]
    key, secret, token = "ASIA" + secrets.token_hex(8).upper(), secrets.token_hex(20), secrets.token_hex(32)
    if way is not None:
        _ways[key] = way
    sts.register_session(
        key,
        {
            "Arn": f"arn:aws:sts::{ACCOUNT}:assumed-role/{role}/{name}",
            "UserId": f"AROA{hashlib.sha256(role.encode()).hexdigest()[:16].upper()}:{name}",
            "SecretAccessKey": secret,
            "SessionToken": token,
            "Expiration": time.time() + seconds,
            "AccountId": ACCOUNT,
            "PrincipalType": "AssumedRole",
        },
    )
    expiration = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))
    return {"AccessKeyId": key, "SecretAccessKey": secret, "Token": token, "Expiration": expiration}


async def serve(world: World, admin: Admin, stop: asyncio.Event) -> None:
    """Answer on the world's endpoint until `stop` is set. `admin` answers what is under /_localcloud/."""
    from hypercorn.asyncio import serve as hypercorn_serve
    from hypercorn.config import Config as ServerConfig
    from ministack.app import app

    async def gate(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"].startswith(ADMIN_PREFIX):
            await _administer(admin, scope, receive, send)
        elif scope["type"] == "http" and not await _gets_through(scope["headers"]):
            await asyncio.sleep(UNREACHED_SECONDS)
            await send({"type": "http.response.start", "status": 504, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        else:
            # The loopback stands for TLS: a policy that denies what is not secure transport lets it pass.
            await app({**scope, "scheme": "https"}, receive, send)

    config = ServerConfig()
    config.bind = [urlsplit(world.endpoint).netloc]
    config.keep_alive_timeout = 75
    config.loglevel = "WARNING"
    await hypercorn_serve(gate, config, shutdown_trigger=stop.wait)


async def _gets_through(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Whether there is a way from where the request was signed to the service that it was signed for."""
    authorization = next((value for name, value in headers if name == b"authorization"), b"")
    signed = re.search(rb"Credential=(\w+)/\d+/[\w-]+/([\w-]+)/", authorization)
    if signed is None or (way := way_of(signed[1].decode())) is None:
        return True
    return await asyncio.to_thread(way.reaches, signed[2].decode())


async def _administer(admin: Admin, scope: Any, receive: Any, send: Any) -> None:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    status, reply = await admin(scope["path"].removeprefix(ADMIN_PREFIX), json.loads(body or b"{}"))
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(reply, default=str).encode()})
