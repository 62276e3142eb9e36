"""ministack, the emulator under the local cloud, pinned by version and hash.

Its names are known here and in corrections.py, deliveries.py and functions.py, which this file puts in place.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import logging
import os
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

from localcloud import ledger, wire
from localcloud.control import Control
from localcloud.throttle import Throttle
from localcloud.world import ACCOUNT, REGION, World

if TYPE_CHECKING:
    from localcloud.formation import Resource

log = logging.getLogger(__name__)

Reply = tuple[int, dict[str, str], bytes]
Admin = Callable[[str, dict[str, Any]], Awaitable[tuple[int, dict[str, Any]]]]
ADMIN_PREFIX = "/_localcloud/"
OPERATOR_KEY = "test"  # ministack's root key: the operator of the laptop, never an actor of the product


HELD_SECONDS = 20.0
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
    world: World, control: Control, services: Sequence[wire.Service], resources: Mapping[str, Resource]
) -> None:
    """Put our services before ministack's of the same name, our resources among its own, and make it as hard as AWS."""
    from localcloud import corrections, deliveries, functions

    _install_services(services, Throttle(world, control))
    _install_resources(resources)
    corrections.install(world)
    _install_ledger(ours=resources)
    _hold_deployments()
    deliveries.Deliveries(world).install(control)
    functions.Functions(world).install(world, control)
    control.offer("events/emit", emit)
    control.offer("iam/session", session)


def _install_services(services: Sequence[wire.Service], throttle: Throttle) -> None:
    from ministack import app
    from ministack.core import iam_actions

    ours = {service.name: service for service in services}
    theirs = dict(app.SERVICE_HANDLERS)
    for name, service in ours.items():
        app.SERVICE_HANDLERS[name] = _handler(service, theirs.get(name) if name == "ec2" else None, throttle)

    extract = iam_actions.extract_iam_action

    @functools.wraps(extract)
    def action_of(service: str, method: str, path: str, headers: dict[str, str], body: bytes, query: Any) -> str | None:
        # ministack authenticates our operations; what they need is asked of our modules, which know the resources.
        if service in ours and (service != "ec2" or ours[service].plays(wire.operation_of(headers, body))):
            return None
        result: str | None = extract(service, method, path, headers, body, query)
        return result

    iam_actions.extract_iam_action = action_of


def _install_resources(resources: Mapping[str, Resource]) -> None:
    from ministack.services.cloudformation import provisioners, stacks

    for kind, resource in resources.items():
        provisioners._RESOURCE_HANDLERS[kind] = {
            "create": resource.create,
            "update": resource.update,
            "delete": resource.delete,
        }
    threaded = stacks._runs_on_worker_thread
    # ministack makes most resources on its event loop; what calls the API or waits would stop the whole cloud there.
    stacks._runs_on_worker_thread = lambda kind: kind in resources or kind in ledger.SUPPLIED or threaded(kind)


def _install_ledger(ours: Mapping[str, Resource]) -> None:
    from ministack.services.cloudformation import provisioners

    provision, change = provisioners._provision_resource, provisioners._update_resource
    from ministack.services.cloudformation import stacks

    def created(kind: str, logical_id: str, properties: dict[str, Any], stack: str) -> tuple[str, dict[str, Any]]:
        if kind not in ours:
            ledger.hold(kind, properties)
        physical_id, attributes = provision(kind, logical_id, properties, stack)
        ledger.supply(operator, kind, physical_id, {}, properties)
        return physical_id, attributes

    def updated(
        kind: str, physical_id: str, old: dict[str, Any], new: dict[str, Any], stack: str, *rest: Any
    ) -> tuple[str, dict[str, Any]]:
        if kind not in ours:
            ledger.hold(kind, new)
        new_id, attributes = change(kind, physical_id, old, new, stack, *rest)
        ledger.supply(operator, kind, new_id, old if new_id == physical_id else {}, new)
        return new_id, attributes

    stacks._provision_resource, stacks._update_resource = created, updated


def _hold_deployments() -> None:
    """Answer ExecuteChangeSet when the stack has settled: the stock command line would look only every 30 s."""
    from ministack import app
    from ministack.services import cloudformation

    handle = app.SERVICE_HANDLERS["cloudformation"]

    def settling() -> bool:
        statuses = [stack["StackStatus"] for stack in cloudformation._stacks.values()]
        return any(status.endswith("IN_PROGRESS") and status != "REVIEW_IN_PROGRESS" for status in statuses)

    async def held(method: str, path: str, headers: dict[str, str], body: bytes, query: dict[str, Any]) -> Reply:
        reply: Reply = await handle(method, path, headers, body, query)
        deadline = time.monotonic() + HELD_SECONDS
        while wire.operation_of(headers, body) == "ExecuteChangeSet" and settling() and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        return reply

    app.SERVICE_HANDLERS["cloudformation"] = held


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


def operator(service: str) -> Any:
    """A boto3 client with the operator's root key, one per thread. Never call it with the world's lock held."""
    if not hasattr(_clients, service):
        session: Any = boto3.Session(aws_access_key_id=OPERATOR_KEY, aws_secret_access_key=OPERATOR_KEY)
        config = Config(connect_timeout=2, read_timeout=30, retries={"total_max_attempts": 2})
        setattr(_clients, service, session.client(service, config=config))
    return getattr(_clients, service)


_clients = threading.local()


def _handler(service: wire.Service, fallback: Any, throttle: Throttle) -> Callable[..., Awaitable[Reply]]:
    async def handle(method: str, path: str, headers: dict[str, str], body: bytes, query: dict[str, Any]) -> Reply:
        operation = wire.operation_of(headers, body)
        if not service.plays(operation):
            if fallback is not None:
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
        params = wire.params_of(service.name, operation, headers, body)
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


def session(role_arn: str, name: str, seconds: float = 3600) -> dict[str, str]:
    """Temporary credentials of a role, as AWS itself hands them to an instance or a task.

    Keys: AccessKeyId, SecretAccessKey, Token, Expiration (ISO-8601). Whether the role's trust policy lets
    the service have it is the caller's to check.
    """
    from ministack.services import sts

    role = role_arn.rsplit("/", 1)[-1]
    key, secret, token = "ASIA" + secrets.token_hex(8).upper(), secrets.token_hex(20), secrets.token_hex(32)
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
        else:
            # The loopback stands for TLS: a policy that denies what is not secure transport lets it pass.
            await app({**scope, "scheme": "https"}, receive, send)

    config = ServerConfig()
    config.bind = [urlsplit(world.endpoint).netloc]
    config.keep_alive_timeout = 75
    config.loglevel = "WARNING"
    await hypercorn_serve(gate, config, shutdown_trigger=stop.wait)


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
