"""The processor, in a process of its own: hostile input may crash it, hang it or fill it, and the worker goes on.

One child serves many jobs, a JSON line in and a JSON line out for each, or for several at once; it is started anew
after it died. The child never calls AWS, and the worker never opens the input. What the child starts is in its session,
and ends with it.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import IO, Any, cast

from gpu_worker.log import log
from gpu_worker.outcome import DONE, NOT_NOW, REJECTED, NotNow, Outcome, Rejected
from gpu_worker.printed import Printed
from gpu_worker.session import end_followers

LONGEST_ANSWER = 64 * 1024
LONGEST_ERROR = 2000
LOADING = timedelta(minutes=2)
"""A user's processor may load a model before it is ready."""
LOOK_EVERY = 1.0
"""Seconds between two looks whether the child lives: what it forked may hold its end of the wire open."""
DYING = 10.0
"""Seconds after which a child that was killed is left alone: a driver that is stuck holds it for good."""
WHOLE_PIPE = 1 << 20
"""Bytes: as much as a pipe can hold (man 7 pipe, /proc/sys/fs/pipe-max-size)."""
LARGEST_OUTPUT = 8 << 30
"""Bytes, of one file here and of all files of a job when they are stored (`cloud.py`)."""
MOST_OPEN_FILES = 65_536

Process = Callable[[Path, Path, Mapping[str, Any]], None]
ProcessMany = Callable[[list[Path], list[Path], list[Mapping[str, Any]]], None]
Stitch = Callable[[list[Path], Path, Mapping[str, Any]], None]


class BadProcessor(Exception):
    """It cannot be loaded, or it refuses its options; no job would fare better with it."""


@dataclass(frozen=True)
class Request:
    """What a processor is to work on, where its results go, and what it is told of the job.

    A `source` that is a folder holds a folder for each part of the job, with the part's results: they are stitched. A
    job that is split instead of processed has its parts in `parts_dir(output_dir)` afterwards.
    """

    source: Path
    output_dir: Path
    job: Mapping[str, Any]

    def clean(self) -> None:
        """Remove what an attempt has left behind."""
        for folder in (self.output_dir, parts_dir(self.output_dir)):
            shutil.rmtree(folder, ignore_errors=True)
        self.output_dir.mkdir(exist_ok=True)


class Processor:
    """The worker's end: one job at a time in the child, or several that it works on together."""

    takes_many = False
    """Whether the user's code does, as is known when it is ready."""

    def __init__(self, name: str, options: Mapping[str, Any], largest_output: int = LARGEST_OUTPUT) -> None:
        me = [sys.executable, "-m", "gpu_worker.processor"]
        self._order = [*me, name, json.dumps(options), str(largest_output)]
        self.launch()

    def launch(self) -> None:
        """Start a child; it loads the user's code while the worker does something else. Raises BadProcessor."""
        self._wire, theirs = socket.socketpair()
        with theirs:
            try:
                self._child = subprocess.Popen(
                    self._order,
                    stdin=theirs.fileno(),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # no signal meant for the worker's group reaches it
                )
            except OSError as error:
                raise BadProcessor(f"no process can be started: {error.strerror}") from error
        self._output = cast(IO[bytes], self._child.stdout)
        os.set_blocking(self._output.fileno(), False)
        self._ready = False
        self._listen_for("")

    def wait_ready(self) -> None:
        """Return when there is a child that has loaded the user's code. Raises BadProcessor."""
        if self._child.poll() is not None:
            self._end()
        if self._wire.fileno() < 0:  # it was ended
            self.launch()
        if self._ready:
            return
        answer = self._answer(LOADING)
        if isinstance(answer, Outcome):
            raise BadProcessor(answer.error)
        if answer["problems"]:
            raise BadProcessor("; ".join(answer["problems"]))
        self.takes_many = bool(answer["takes_many"])
        self._ready = True

    def run(self, source: Path, output_dir: Path, job: Mapping[str, Any], limit: timedelta) -> Outcome:
        """Work on one job for at most `limit`; whatever happens to the child becomes an outcome.

        Raises BadProcessor if there is none any more that would start.
        """
        return self.run_together([Request(source, output_dir, job)], limit)

    def run_together(self, requests: Sequence[Request], limit: timedelta) -> Outcome:
        """Work on these jobs for at most `limit`: either all are done, or it went wrong with nobody knows which.

        Raises BadProcessor if there is none any more that would start.
        """
        self.wait_ready()
        try:
            self._listen_for(" ".join(each.job["job_id"] for each in requests))
            self._wire.settimeout(limit.total_seconds())
            work = [
                {"input": str(each.source), "output_dir": str(each.output_dir), "job": each.job} for each in requests
            ]
            self._wire.sendall(json.dumps(work).encode() + b"\n")
        except OSError:
            return self._end()
        answer = self._answer(limit)
        self._printed.end()
        if isinstance(answer, Outcome):
            return answer
        code, said = int(answer["code"]), str(answer["error"])
        if code != DONE and not said:
            said = f"exit code {code}: {self._printed.last or 'and not a word'}"
        return Outcome(code, said)

    def kill(self) -> None:
        """End the child in the middle of whatever it does; safe from any thread."""
        self._child.kill()
        end_followers(self._child.pid)

    def _listen_for(self, job_id: str) -> None:
        """What is printed from here on belongs to this job, or to one of these."""
        self._printed = Printed(lambda line: log("printed", job_id=job_id, line=line))

    def _answer(self, limit: timedelta) -> dict[str, Any] | Outcome:
        """The child's next line, or what it means that none came."""
        ends = time.monotonic() + limit.total_seconds()
        line = b""
        try:
            while not line.endswith(b"\n") and len(line) < LONGEST_ANSWER:
                dead = self._child.poll() is not None  # then whatever it said can be heard
                if self._hear(ends - time.monotonic()):
                    part = self._wire.recv(LONGEST_ANSWER)
                    if not part:
                        return self._end()
                    line += part
                elif dead:
                    return self._end()
            answer: dict[str, Any] = json.loads(line)
        except TimeoutError:
            self._end()
            return Outcome(1, f"time-out: the processor took more than {limit.total_seconds():g} s")
        except (OSError, ValueError):
            return self._end()
        self._drain()
        return answer

    def _hear(self, left: float) -> bool:
        """Wait a moment for the child to say something; True when it is an answer, and not only output."""
        if left <= 0:
            raise TimeoutError
        with selectors.DefaultSelector() as either:
            either.register(self._wire, selectors.EVENT_READ)
            if not self._output.closed:
                either.register(self._output, selectors.EVENT_READ)
            ready = {key.fileobj for key, _ in either.select(min(left, LOOK_EVERY))}
        if self._output in ready:
            self._drain()
        return self._wire in ready

    def _drain(self) -> None:
        """Take what has been printed so far. What came before an answer is still in the pipe: one read takes all."""
        if self._output.closed:
            return
        with suppress(BlockingIOError):
            printed = os.read(self._output.fileno(), WHOLE_PIPE)
            self._printed.feed(printed)
            if not printed:
                self._output.close()

    def _end(self) -> Outcome:
        """Make sure that the child is dead and has left nothing behind, and say how it died."""
        self._wire.close()
        try:
            code = self._child.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self._child.kill()
            code = -signal.SIGKILL
            try:
                self._child.wait(timeout=DYING)
            except subprocess.TimeoutExpired:
                log("a processor cannot be killed", pid=self._child.pid)
        end_followers(self._child.pid)
        self._drain()
        self._output.close()
        return Outcome.of_death(code)


def parts_dir(output_dir: Path) -> Path:
    """Where a processor that splits a job writes the parts, one file each; the order of their names is theirs."""
    return output_dir.with_name("parts")


@dataclass(frozen=True)
class UserCode:
    """What a user brings: one function; one more if it can work on several jobs together, and two if large ones are to
    be shared among workers.
    """

    process: Process
    process_many: ProcessMany | None = None
    split: Process | None = None
    stitch: Stitch | None = None


def serve(name: str, options: Mapping[str, Any], largest_output: int) -> None:
    """The child's end: load `module:function`, then work on what comes until the worker is gone."""
    wire = _own_wire()
    _bound(largest_output)
    orders: SimpleQueue[list[dict[str, Any]]] = SimpleQueue()
    Thread(target=_listen, args=(wire, orders), daemon=True).start()

    code, problems = _load(name, options)
    _say(wire, {"problems": problems, "takes_many": bool(code and code.process_many)})
    while code:
        outcome = _attempt(code, orders.get())
        sys.stdout.flush()
        _say(wire, {"code": outcome.code, "error": outcome.error[:LONGEST_ERROR]})


def _own_wire() -> socket.socket:
    """The worker's end of the wire is our standard input: no program that we start may read from it."""
    wire = socket.socket(fileno=os.dup(0))
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    return wire


def _bound(largest_output: int) -> None:
    """What one process may use up, for it and all that it starts.

    Memory is bounded by the task's own limit: RLIMIT_AS would count addresses, of which CUDA reserves far more than
    there is memory. When that limit is met, the kernel is to kill the processor and not the worker.
    """
    for what, most in (
        (resource.RLIMIT_CORE, 0),  # a dump of a GPU process fills the scratch space
        (resource.RLIMIT_FSIZE, largest_output),
        (resource.RLIMIT_NOFILE, MOST_OPEN_FILES),
    ):
        _, hard = resource.getrlimit(what)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)  # noqa: PLW2901
        resource.setrlimit(what, (most, most))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _load(name: str, options: Mapping[str, Any]) -> tuple[UserCode | None, list[str]]:
    """The user's functions, or what is wrong with them, or what the module's `problems(options)` says of the options.

    Only both together are a split and a stitch: a module may have imported some other `split`.
    """
    module_name, _, function = name.partition(":")
    try:
        module = importlib.import_module(module_name)
        code = UserCode(getattr(module, function), getattr(module, "process_many", None))
        if hasattr(module, "split") and hasattr(module, "stitch"):
            code = replace(code, split=module.split, stitch=module.stitch)
        problems = list(module.problems(options)) if hasattr(module, "problems") else []
    except Exception as error:  # noqa: BLE001 (user code: any way it fails to load is the answer)
        return None, [f"{name}: {type(error).__name__}: {error}"]
    return None if problems else code, problems


def _attempt(code: UserCode, order: Sequence[Mapping[str, Any]]) -> Outcome:
    try:
        _do(code, [Request(Path(each["input"]), Path(each["output_dir"]), each["job"]) for each in order])
    except Rejected as error:
        return Outcome(REJECTED, str(error) or "rejected")
    except NotNow as error:
        return Outcome(NOT_NOW, str(error) or "not now")
    except SystemExit as error:
        return Outcome(error.code if isinstance(error.code, int) else int(bool(error.code)))
    except Exception as error:  # noqa: BLE001 (user code: the table of outcomes says what any failure means)
        traceback.print_exc()
        return Outcome(1, f"{type(error).__name__}: {error}")
    return Outcome(DONE)


def _do(code: UserCode, work: list[Request]) -> None:
    """Stitch what is in parts; split what can be split, once; process the rest, together where that can be done."""
    whole = [each for each in work if not (_stitched(code, each) or _split(code, each))]
    if len(whole) > 1 and code.process_many:
        code.process_many(
            [each.source for each in whole], [each.output_dir for each in whole], [each.job for each in whole]
        )
        return
    for each in whole:
        code.process(each.source, each.output_dir, each.job)


def _stitched(code: UserCode, work: Request) -> bool:
    if not work.source.is_dir():
        return False
    if code.stitch is None:
        raise RuntimeError("the job was split, and this processor has no stitch")
    code.stitch(sorted(work.source.iterdir()), work.output_dir, work.job)
    return True


def _split(code: UserCode, work: Request) -> bool:
    if code.split is None or "part" in work.job:
        return False
    parts = parts_dir(work.output_dir)
    parts.mkdir()
    code.split(work.source, parts, work.job)
    return any(parts.iterdir())


def _listen(wire: socket.socket, orders: SimpleQueue[list[dict[str, Any]]]) -> None:
    # A worker that is killed with an answer unread leaves a reset, and no end of file.
    with suppress(ConnectionResetError), wire.makefile("rb") as lines:
        for line in lines:
            orders.put(json.loads(line))
    end_followers(os.getpid())
    os._exit(0)  # the worker is gone, and with it whoever would want this job's result


def _say(wire: socket.socket, answer: Mapping[str, Any]) -> None:
    wire.sendall(json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    serve(sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]))
