"""The hand of fate: what tests and the demo may do to the cloud that no API of AWS offers."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, cast

from localcloud.world import World

Command = Callable[..., Any]


class Refused(Exception):
    """The cloud did not take the command; the message says why."""


class Control:
    """Commands by name; each takes keywords and returns JSON. Served under /_localcloud/NAME by POST."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._commands: dict[str, Command] = {"diary": self._diary}

    def offer(self, name: str, command: Command) -> None:
        """Let `command` be given under this name."""
        self._commands[name] = command

    async def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """One request. 404 for an unknown name, 400 for a command refused."""
        if path not in self._commands:
            return 404, {"error": f"no command {path}; there are {', '.join(sorted(self._commands))}"}
        try:
            return 200, {"result": await asyncio.to_thread(self._carry_out, self._commands[path], body)}
        except (KeyError, TypeError, ValueError, Refused) as error:
            return 400, {"error": f"{type(error).__name__}: {error}"}

    def _carry_out(self, command: Command, body: dict[str, Any]) -> Any:
        with self._world.lock:
            return command(**body)

    def _diary(self, what: str | None = None) -> list[dict[str, Any]]:
        return self._world.diary(what)


class Remote:
    """The same commands, given from another process: `Remote(endpoint).do("market/reclaim", instance="i-1")`."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint

    def do(self, name: str, /, **arguments: object) -> Any:
        """Give the command and return its result. Raises Refused."""
        request = urllib.request.Request(  # noqa: S310
            f"{self._endpoint}/_localcloud/{name}", json.dumps(arguments).encode(), method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310
                return json.load(reply)["result"]
        except urllib.error.HTTPError as error:
            with error:
                raise Refused(cast("str", json.load(error)["error"])) from error
