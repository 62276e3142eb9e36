"""The processor, in a process of its own: hostile input may crash it, hang it or fill it, and the worker goes on.

One child serves many jobs, a JSON line in and a JSON line out for each, and is started anew after it died. The child
never calls AWS, and the worker never opens the input.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from gpu_worker.outcome import DONE, NOT_NOW, REJECTED, NotNow, Outcome, Rejected

LONGEST_ANSWER = 64 * 1024
LONGEST_ERROR = 2000
LOADING = timedelta(minutes=2)
"""A user's processor may load a model before it is ready."""

Process = Callable[[Path, Path, Mapping[str, Any]], None]


class BadProcessor(Exception):
    """It cannot be loaded, or it refuses its options; no job would fare better with it."""


class Processor:
    """The worker's end: one job at a time in the child."""

    def __init__(self, name: str, options: Mapping[str, Any]) -> None:
        self._order = [sys.executable, "-m", "gpu_worker.processor", name, json.dumps(options)]
        self.launch()

    def launch(self) -> None:
        """Start a child; it loads the user's code while the worker does something else."""
        self._wire, theirs = socket.socketpair()
        with theirs:
            self._child = subprocess.Popen(self._order, stdin=theirs.fileno(), stdout=sys.stderr.fileno())
        self._ready = False

    def wait_ready(self) -> None:
        """Return when there is a child that has loaded the user's code."""
        if self._child.poll() is not None:
            self._end()
            self.launch()
        if self._ready:
            return
        answer = self._answer(LOADING)
        if isinstance(answer, Outcome):
            raise BadProcessor(answer.error)
        if answer["problems"]:
            raise BadProcessor("; ".join(answer["problems"]))
        self._ready = True

    def run(self, source: Path, output_dir: Path, job: Mapping[str, Any], limit: timedelta) -> Outcome:
        """Work on one job for at most `limit`; whatever happens to the child becomes an outcome."""
        try:
            self.wait_ready()
            self._wire.settimeout(limit.total_seconds())
            request = {"input": str(source), "output_dir": str(output_dir), "job": job}
            self._wire.sendall(json.dumps(request).encode() + b"\n")
        except BadProcessor as error:
            return Outcome(1, f"the processor would not start: {error}")
        except OSError:
            return self._end()
        answer = self._answer(limit)
        return answer if isinstance(answer, Outcome) else Outcome(int(answer["code"]), str(answer["error"]))

    def kill(self) -> None:
        """End the child in the middle of whatever it does; safe from any thread."""
        self._child.kill()

    def _answer(self, limit: timedelta) -> dict[str, Any] | Outcome:
        """The child's next line, or what it means that none came."""
        ends = time.monotonic() + limit.total_seconds()
        line = b""
        try:
            while not line.endswith(b"\n") and len(line) < LONGEST_ANSWER:
                self._wire.settimeout(max(0.001, ends - time.monotonic()))
                part = self._wire.recv(LONGEST_ANSWER)
                if not part:
                    return self._end()
                line += part
            answer: dict[str, Any] = json.loads(line)
        except TimeoutError:
            self._end()
            return Outcome(1, f"time-out: the processor took more than {limit.total_seconds():g} s")
        except (OSError, ValueError):
            return self._end()
        return answer

    def _end(self) -> Outcome:
        """Make sure that the child is dead, and say how it died."""
        self._wire.close()
        try:
            return Outcome.of_death(self._child.wait(timeout=1))
        except subprocess.TimeoutExpired:
            self._child.kill()
            return Outcome.of_death(self._child.wait())


def serve(name: str, options: Mapping[str, Any]) -> None:
    """The child's end: load `module:function`, then work on what comes until the worker is gone."""
    for asked in (signal.SIGTERM, signal.SIGINT):
        signal.signal(asked, signal.SIG_IGN)  # whether to stop in mid-job is the worker's decision
    wire = socket.socket(fileno=0)
    orders: SimpleQueue[dict[str, Any]] = SimpleQueue()
    Thread(target=_listen, args=(wire, orders), daemon=True).start()

    process, problems = _load(name, options)
    _say(wire, {"problems": problems})
    while process:
        outcome = _attempt(process, orders.get())
        _say(wire, {"code": outcome.code, "error": outcome.error[:LONGEST_ERROR]})


def _load(name: str, options: Mapping[str, Any]) -> tuple[Process | None, list[str]]:
    """The user's function, or what is wrong with it, or what its module's `problems(options)` says of the options."""
    module_name, _, function = name.partition(":")
    try:
        module = importlib.import_module(module_name)
        process: Process = getattr(module, function)
        problems = list(module.problems(options)) if hasattr(module, "problems") else []
    except Exception as error:  # noqa: BLE001 (user code: any way it fails to load is the answer)
        return None, [f"{name}: {type(error).__name__}: {error}"]
    return None if problems else process, problems


def _attempt(process: Process, order: Mapping[str, Any]) -> Outcome:
    try:
        process(Path(order["input"]), Path(order["output_dir"]), order["job"])
    except Rejected as error:
        return Outcome(REJECTED, str(error))
    except NotNow as error:
        return Outcome(NOT_NOW, str(error))
    except SystemExit as error:
        return Outcome(error.code if isinstance(error.code, int) else int(bool(error.code)), f"exit {error.code}")
    except Exception as error:  # noqa: BLE001 (user code: the table of outcomes says what any failure means)
        traceback.print_exc()
        return Outcome(1, f"{type(error).__name__}: {error}")
    return Outcome(DONE)


def _listen(wire: socket.socket, orders: SimpleQueue[dict[str, Any]]) -> None:
    with wire.makefile("rb") as lines:
        for line in lines:
            orders.put(json.loads(line))
    os._exit(0)  # the worker is gone, and with it whoever would want this job's result


def _say(wire: socket.socket, answer: Mapping[str, Any]) -> None:
    wire.sendall(json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    serve(sys.argv[1], json.loads(sys.argv[2]))
