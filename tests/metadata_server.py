"""What an instance can ask, as a real HTTP server that a test scripts: IMDSv2, role credentials, ECS introspection.

    with MetadataServer() as server:
        server.interrupt(deadline)           # from now on spot/instance-action answers 200
        server.broken["spot"] = 500          # any path containing "spot" answers so instead
        server.forget_tokens()               # every token given so far is refused with 401

Point AWS_EC2_METADATA_SERVICE_ENDPOINT and ECS_AGENT_URI at `server.url`.
"""

from __future__ import annotations

import json
import threading
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

INSTANCE = "i-0123456789abcdef0"
ARN = f"arn:aws:ecs:eu-west-1:123456789012:container-instance/cell/{INSTANCE[2:]}"
ACCESS_KEY = "ASIATESTROLEACCESSKE"
SECRET_KEY = "role-secret-that-must-not-be-logged"


class LocalServer:
    """An HTTP/1.1 server on 127.0.0.1 in a thread of its own; subclasses answer (status, headers, body)."""

    def __init__(self, port: int = 0, host: str = "127.0.0.1") -> None:
        self._server = ThreadingHTTPServer((host, port), _handler(self))
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"

    def answer(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, dict[str, str], str]:
        raise NotImplementedError

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(server: LocalServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # or each keep-alive answer waits 40 ms

        def reply(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, headers, text = server.answer(self.command, self.path, self.headers, body)
            data = text.encode()
            try:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)
            except ConnectionError:
                self.close_connection = True  # the client had enough of waiting

        do_GET = do_PUT = do_POST = reply  # noqa: N815 - the names http.server calls

        def log_message(self, *_: object) -> None:
            pass

    return Handler


class MetadataServer(LocalServer):
    """One Spot instance's metadata. Everything public may be changed while it serves."""

    def __init__(self, instance_id: str = INSTANCE, port: int = 0, host: str = "127.0.0.1") -> None:
        super().__init__(port, host)
        self.identity: dict[str, Any] = {
            "instanceId": instance_id,
            "instanceType": "g5.xlarge",
            "availabilityZone": "eu-west-1a",
            "region": "eu-west-1",
            "accountId": "123456789012",
        }
        self.life_cycle = "spot"
        self.ecs: dict[str, Any] | None = {"Cluster": "cell", "ContainerInstanceArn": ARN, "Version": "1.99.0"}
        self.instance_action: dict[str, str] | None = None
        self.rebalance: dict[str, str] | None = None
        self.token_ttl = 21600
        self.broken: dict[str, int | str] = {}
        """Part of a path -> the status, or the body, to answer with instead."""
        self.delay: dict[str, float] = {}
        """Part of a path -> seconds to wait before answering."""
        self.asked: list[tuple[float, str, str, int]] = []
        """(monotonic seconds, method, path, status) of each request, in order."""
        self.tokens: dict[str, float] = {}

    def interrupt(self, deadline: datetime, action: str = "terminate") -> None:
        """Set the two-minute notice."""
        self.instance_action = {"action": action, "time": _text(deadline)}

    def recommend_rebalance(self, at: datetime) -> None:
        """Set the rebalance recommendation."""
        self.rebalance = {"noticeTime": _text(at)}

    def forget_tokens(self) -> None:
        """Refuse every token given so far."""
        self.tokens.clear()

    def times(self, part: str, method: str = "GET") -> list[float]:
        """When each request to a path containing `part` came."""
        return [at for at, how, path, _ in list(self.asked) if how == method and part in path]

    def answer(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, dict[str, str], str]:
        at = time.monotonic()
        for part, seconds in self.delay.items():
            if part in path:
                time.sleep(seconds)
        status, extra, text = self._answer(method, path, headers)
        self.asked.append((at, method, path, status))
        return status, extra, text

    def _answer(self, method: str, path: str, headers: Any) -> tuple[int, dict[str, str], str]:
        for part, instead in self.broken.items():
            if part in path:
                return (instead, {}, "broken") if isinstance(instead, int) else (200, {}, instead)
        if path == "/v1/metadata":
            return _found(self.ecs)
        if path == "/latest/api/token":
            if method != "PUT":
                return 405, {}, ""
            token = f"token-{len(self.asked)}-that-must-not-be-logged"
            ttl = min(self.token_ttl, int(headers["X-aws-ec2-metadata-token-ttl-seconds"]))
            self.tokens[token] = time.monotonic() + ttl
            return 200, {"X-aws-ec2-metadata-token-ttl-seconds": str(ttl)}, token
        if self.tokens.get(headers.get("X-aws-ec2-metadata-token", ""), 0) < time.monotonic():
            return 401, {}, ""
        pages: dict[str, Any] = {
            "/latest/dynamic/instance-identity/document": self.identity,
            "/latest/meta-data/instance-life-cycle": self.life_cycle,
            "/latest/meta-data/spot/instance-action": self.instance_action,
            "/latest/meta-data/events/recommendations/rebalance": self.rebalance,
            "/latest/meta-data/iam/security-credentials/": "instance-role",
            "/latest/meta-data/iam/security-credentials/instance-role": {
                "Code": "Success",
                "AccessKeyId": ACCESS_KEY,
                "SecretAccessKey": SECRET_KEY,
                "Token": "session-token-that-must-not-be-logged",
                "Expiration": _text(datetime.now(UTC) + timedelta(hours=6)),
            },
        }
        return _found(pages.get(path))


def _found(page: Any) -> tuple[int, dict[str, str], str]:
    if page is None:
        return 404, {"Content-Type": "text/html"}, "<h1>404 - Not Found</h1>"
    return 200, {"Content-Type": "text/plain"}, page if isinstance(page, str) else json.dumps(page)


def _text(at: datetime) -> str:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")
