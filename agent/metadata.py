"""What the instance can be asked: the metadata service (IMDSv2) and the ECS agent's introspection."""

from __future__ import annotations

import json
from typing import Any, Callable

import requests
from requests.adapters import HTTPAdapter

from agent.notice import NotUnderstood, Trouble

TOKEN = "X-aws-ec2-metadata-token"  # noqa: S105 - the name of a header
TOKEN_TTL = "X-aws-ec2-metadata-token-ttl-seconds"  # noqa: S105
LONGEST_TTL = 21600
"""Seconds; the most IMDSv2 allows (EC2 User Guide, "Use the Instance Metadata Service")."""
TIMEOUT = (0.5, 0.5)
"""Seconds to connect and to wait for bytes. Both services are on this host."""


class Unreachable(Trouble):
    """No answer, or another one than 200 and 404."""


class Metadata:
    """Asks both services. `clock` is monotonic seconds, for the token's age.

    It uses the transport of `requests` without a session, and prepares a question once per token: no proxy, cookie or
    redirect has any business between us and our own host, and a look, all this process ever does, costs a third less.
    Messages name the address and the kind of trouble only: a library's own words may quote the token.
    """

    def __init__(self, imds: str, ecs: str, clock: Callable[[], float]) -> None:
        self._imds = imds.rstrip("/")
        self._ecs = ecs.rstrip("/")
        self._clock = clock
        self._http = HTTPAdapter()
        self._token = ""
        self._questions: dict[str, requests.PreparedRequest] = {}
        self._renew_at = float("-inf")

    def interruption(self) -> dict[str, Any] | None:
        """Return spot/instance-action, or None while there is none."""
        return self._document("/latest/meta-data/spot/instance-action")

    def rebalance(self) -> dict[str, Any] | None:
        """Return events/recommendations/rebalance, or None while there is none."""
        return self._document("/latest/meta-data/events/recommendations/rebalance")

    def identity(self) -> dict[str, Any]:
        """Return the instance identity document."""
        document = self._document("/latest/dynamic/instance-identity/document")
        if document is None:
            raise Unreachable("instance-identity/document: HTTP 404")
        return document

    def life_cycle(self) -> str:
        """Return "spot", "on-demand", "scheduled" or "capacity-block"."""
        word = self._get("/latest/meta-data/instance-life-cycle")
        if word is None:
            raise Unreachable("instance-life-cycle: HTTP 404")
        return word

    def registration(self) -> tuple[str | None, str | None]:
        """Return cluster and container instance ARN from the ECS agent; None for what it does not know yet."""
        reply = self._send(_prepared("GET", f"{self._ecs}/v1/metadata", {}))
        if reply.status_code != 200:
            raise Unreachable(f"{reply.request.path_url}: HTTP {reply.status_code}")
        document = _parsed("/v1/metadata", _text(reply))
        return document.get("Cluster") or None, document.get("ContainerInstanceArn") or None

    def _document(self, path: str) -> dict[str, Any] | None:
        text = self._get(path)
        return None if text is None else _parsed(path, text)

    def _get(self, path: str) -> str | None:
        """Return the body, or None for 404, which is how the service says "nothing of the kind"."""
        reply = self._send(self._question(path))
        if reply.status_code == 401:
            self._renew_at = float("-inf")
            reply = self._send(self._question(path))
        if reply.status_code == 404:
            return None
        if reply.status_code != 200:
            raise Unreachable(f"{path}: HTTP {reply.status_code}")
        return _text(reply)

    def _question(self, path: str) -> requests.PreparedRequest:
        self._keep_token_fresh()
        if path not in self._questions:
            self._questions[path] = _prepared("GET", self._imds + path, {TOKEN: self._token})
        return self._questions[path]

    def _keep_token_fresh(self) -> None:
        asked_at = self._clock()
        if asked_at < self._renew_at:
            return
        reply = self._send(_prepared("PUT", f"{self._imds}/latest/api/token", {TOKEN_TTL: str(LONGEST_TTL)}))
        if reply.status_code != 200:
            raise Unreachable(f"/latest/api/token: HTTP {reply.status_code}")
        ttl = reply.headers.get(TOKEN_TTL, "")
        self._token = _text(reply)
        self._questions.clear()
        self._renew_at = asked_at + 0.9 * (int(ttl) if ttl.isdigit() else LONGEST_TTL)

    def _send(self, request: requests.PreparedRequest) -> requests.Response:
        try:
            reply = self._http.send(request, timeout=TIMEOUT)
            _ = reply.content  # read it to the end, here, so that the connection can be used again
        except requests.RequestException as error:
            raise Unreachable(f"{request.url}: {type(error).__name__}") from None
        return reply


def _prepared(method: str, url: str, headers: dict[str, str]) -> requests.PreparedRequest:
    try:
        return requests.Request(method, url, headers=headers).prepare()
    except requests.RequestException as error:
        raise Unreachable(f"{url}: {type(error).__name__}") from None


def _text(reply: requests.Response) -> str:
    return reply.content.decode("utf-8", "replace")  # `reply.text` may guess an encoding, at length


def _parsed(path: str, text: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except ValueError as error:
        raise NotUnderstood(f"{path}: not JSON") from error
    if not isinstance(document, dict):
        raise NotUnderstood(f"{path}: not a JSON object")
    return document
