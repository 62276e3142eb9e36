"""The instance metadata service of one instance: IMDSv2 only, over real HTTP on 127.0.0.1.

What an instance may ask and how (EC2 User Guide, "Use the Instance Metadata Service"): a session token by PUT, then
GET with it; no or a stale token is 401; what there is not is 404.
"""

from __future__ import annotations

import json
import secrets
import socket
import threading
import time
from collections.abc import Callable
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

from localcloud.instances import Instance
from localcloud.market import SPOT
from localcloud.world import ACCOUNT, REGION

LONGEST_TTL = 21600
"""Seconds that a token may live (six hours)."""
TOKEN, TOKEN_TTL = "X-aws-ec2-metadata-token", "X-aws-ec2-metadata-token-ttl-seconds"
Credentials = Callable[[], dict[str, str]]


class Metadata:
    """Answers for one instance until closed. The instance's fields are read without the lock: each is one value."""

    def __init__(self, instance: Instance, credentials: Credentials) -> None:
        self._instance = instance
        self._credentials = credentials
        self._tokens: dict[str, float] = {}
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.metadata = self
        thread = threading.Thread(target=self._server.serve_forever, name=f"metadata {instance.id}", daemon=True)
        thread.start()

    @property
    def uri(self) -> str:
        """What stands for http://169.254.169.254."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        """Answer nobody any more; open connections break."""
        self._server.shutdown()
        self._server.server_close()
        self._server.hang_up()

    def token(self, ttl: str) -> str | None:
        """A new session token, or None when the time to live is not 1 to 21600 seconds."""
        if not ttl.isdigit() or not 1 <= int(ttl) <= LONGEST_TTL:
            return None
        token = secrets.token_urlsafe(42)
        self._tokens[token] = time.monotonic() + int(ttl)
        return token

    def admits(self, token: str | None) -> bool:
        """Whether the token is one of ours and still alive."""
        return token is not None and self._tokens.get(token, 0.0) > time.monotonic()

    def look_up(self, path: str) -> str | None:
        """The document under /latest/, or None when there is none."""
        one = self._instance
        role = one.blueprint.role_arn.rsplit("/", 1)[-1]
        known: dict[str, Callable[[], str | None]] = {
            "meta-data/instance-id": lambda: one.id,
            "meta-data/instance-type": lambda: one.pool.type,
            "meta-data/instance-life-cycle": lambda: "spot" if one.lifecycle == SPOT else "on-demand",
            "meta-data/ami-id": lambda: one.blueprint.image_id,
            "meta-data/placement/availability-zone": lambda: one.pool.zone,
            "meta-data/placement/region": lambda: REGION,
            "meta-data/local-ipv4": lambda: one.ip,
            "meta-data/hostname": lambda: f"ip-{one.ip.replace('.', '-')}.ec2.internal",
            "meta-data/local-hostname": lambda: f"ip-{one.ip.replace('.', '-')}.ec2.internal",
            "meta-data/iam/info": lambda: json.dumps(
                {"Code": "Success", "InstanceProfileArn": one.blueprint.profile_arn}
            ),
            "meta-data/iam/security-credentials": lambda: role or None,
            f"meta-data/iam/security-credentials/{role}": self._session,
            "meta-data/spot/instance-action": lambda: (
                _json(action="terminate", time=_time(one.notice)) if one.notice else None
            ),
            "meta-data/spot/termination-time": lambda: _time(one.notice) if one.notice else None,
            "meta-data/events/recommendations/rebalance": lambda: (
                _json(noticeTime=_time(one.rebalance)) if one.rebalance else None
            ),
            "meta-data/autoscaling/target-lifecycle-state": lambda: one.target_state or None,
            "dynamic/instance-identity/document": self._identity,
        }
        answer = known.get(path.rstrip("/"))
        return answer() if answer else None

    def _session(self) -> str | None:
        if not self._instance.blueprint.role_arn:
            return None
        return _json(Code="Success", Type="AWS-HMAC", LastUpdated=_time(self._instance.launched), **self._credentials())

    def _identity(self) -> str:
        one = self._instance
        return _json(
            accountId=ACCOUNT,
            architecture="x86_64",
            availabilityZone=one.pool.zone,
            imageId=one.blueprint.image_id,
            instanceId=one.id,
            instanceType=one.pool.type,
            pendingTime=_time(one.launched),
            privateIp=one.ip,
            region=REGION,
            version="2017-09-30",
        )


def _json(**members: str) -> str:
    return json.dumps(members, indent=2)


def _time(at: datetime) -> str:
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    metadata: Metadata

    def __init__(self, *arguments: Any) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """Break the connections that clients keep alive."""
        for connection in list(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                self._open.discard(connection)  # the client was quicker

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that died in mid-request is nothing to report."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_PUT(self) -> None:
        metadata = cast("_Server", self.server).metadata
        if self.path != "/latest/api/token":
            self._answer(404, "")
        elif self.headers.get("X-Forwarded-For"):
            self._answer(403, "")
        else:
            ttl = self.headers.get(TOKEN_TTL, "")
            token = metadata.token(ttl)
            if token is None:
                self._answer(400, "")
            else:
                self._answer(200, token, {TOKEN_TTL: ttl})

    def do_GET(self) -> None:
        metadata = cast("_Server", self.server).metadata
        if not metadata.admits(self.headers.get(TOKEN)):
            self._answer(401, "")
            return
        found = metadata.look_up(self.path.removeprefix("/latest/")) if self.path.startswith("/latest/") else None
        self._answer(404, "") if found is None else self._answer(200, found)

    def _answer(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        body = text.encode()
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Type": "text/plain", "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the base class names it
        """Say nothing: forty agents ask each second."""
