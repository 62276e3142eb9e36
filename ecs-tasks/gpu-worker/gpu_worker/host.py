"""What the worker knows of the place it runs in: when it must go, what machine it is, and ECS's say in both.

The agent writes `notice.json` and `instance.json` in the host's directory, which the container sees read-only.
"""

from __future__ import annotations

import faulthandler
import json
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener
from uuid import uuid4

from gpu_worker.handover import Doom
from gpu_worker.log import log

USUAL_NOTICE = timedelta(minutes=2)
"""How far ahead EC2 announces an interruption (EC2 user guide, "Spot Instance interruption notices")."""

PROTECTED_FOR = timedelta(hours=1)
"""ECS takes 1 to 2,880 minutes (ECS developer guide, "Task scale-in protection endpoint"); renewed at half time."""

HUNG_SECONDS = 120.0
"""A loop that stands still for so long is stuck: no call of AWS takes that with all its tries (`PATIENT`, cloud.py)."""

_open = build_opener(ProxyHandler({})).open  # link-local addresses are never behind a proxy


class Host:
    """The ways to hear that this worker must go, and the facts about its instance."""

    def __init__(
        self,
        directory: Path,
        stop_timeout: timedelta,
        pulse_file: Path | None = None,
        problem: Callable[[], str | None] = lambda: None,
        watchdog: Callable[[], None] = lambda: None,
    ) -> None:
        self._directory = directory
        self._stop_timeout = stop_timeout
        self._pulse_file = pulse_file
        self._notice: Doom | None = None
        self._stop: Doom | None = None
        self._problem = problem
        self._watchdog = watchdog
        self._broken: Doom | None = None
        self._facts: dict[str, str] = {}
        self._container_instance: str | None = None

    def stop(self, now: datetime) -> None:
        """SIGTERM came: SIGKILL follows after the container's stop timeout. Safe in a signal handler.

        A worker that is of no more use goes in the same way.
        """
        self._stop = self._stop or Doom(now, now + self._stop_timeout)

    @property
    def stopped(self) -> bool:
        """Whether it has been told to go."""
        return self._stop is not None

    @property
    def broken(self) -> bool:
        """Whether this machine has a problem that ends with it."""
        return self._broken is not None

    def doom(self, now: datetime) -> Doom | None:
        """The nearest end: announced by SIGTERM or by a notice, or come because this machine is broken."""
        self._notice = self._notice or self._read_notice(now)
        if not self._broken and (problem := self._problem()):
            log("this machine is broken", problem=problem)
            self._broken = Doom(now, now)
        known = [doom for doom in (self._notice, self._stop, self._broken) if doom]
        return min(known, key=lambda doom: doom.deadline, default=None)

    def facts(self) -> Mapping[str, str]:
        """The instance's part of a job record; empty until the agent has written it."""
        if not self._facts:
            self._read_instance()
        return self._facts

    def may_be_drained(self) -> str | None:
        """The ARN of the container instance, where somebody may drain it while its worker is busy.

        That is On-Demand, which leaves when Spot is back, and Spot that EC2 recommends to replace: few enough to ask
        ECS about them.
        """
        if self._container_instance is None:
            self._read_instance()  # the agent learns it only when the ECS agent has
        if self._facts.get("lifecycle") == "on-demand" or (self._directory / "rebalance.json").exists():
            return self._container_instance
        return None

    def pulse(self) -> None:
        """Show the watchdog that the main loop turns; the health check too, on a machine that is good for something."""
        self._watchdog()
        if self._pulse_file and not self._broken:
            self._pulse_file.touch()

    def pause(self, seconds: float) -> None:
        """Let a moment pass."""
        time.sleep(seconds)

    def _read_instance(self) -> None:
        try:
            told = json.loads((self._directory / "instance.json").read_text())
            names = {"instanceId": "instance_id", "instanceType": "instance_type", "availabilityZone": "zone"}
            names["lifecycle"] = "lifecycle"
            self._facts = {ours: told[theirs] for theirs, ours in names.items() if told.get(theirs)}
            self._container_instance = told.get("containerInstanceArn")
        except FileNotFoundError:
            pass
        except (OSError, ValueError, AttributeError) as error:
            log("instance.json cannot be read", error=repr(error))

    def _read_notice(self, now: datetime) -> Doom | None:
        """{"schema": "spindrift.notice/1", "deadline": "2024-05-01T12:02:00Z" or null, ...}

        A file that is there is a notice, readable or not.
        """
        try:
            deadline = datetime.fromisoformat(json.loads((self._directory / "notice.json").read_text())["deadline"])
            return Doom(now, deadline if deadline.tzinfo else now + USUAL_NOTICE)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            log("a notice without a deadline", error=repr(error))
            return Doom(now, now + USUAL_NOTICE)


def watchdog() -> None:
    """To be called again within `HUNG_SECONDS`, or this process prints all its stacks and exits with 1.

    Nobody extends its jobs then, so they come back when their leases end; to ECS, and so to lease.py, it crashed.
    """
    faulthandler.dump_traceback_later(HUNG_SECONDS, exit=True)


class Protection:
    """ECS task scale-in protection: a busy worker is not the one a shrinking service stops.

    A courtesy, not a safety: where it fails the job is released like any other, so failures are only logged.
    """

    def __init__(self, agent_uri: str | None) -> None:
        self._agent_uri = agent_uri
        self._held = False
        self._renew_at: datetime | None = None

    def hold(self, now: datetime) -> None:
        """Be protected from now on; costs a call only when protection is new or half used up."""
        if self._renew_at is None or now >= self._renew_at:
            self._held = self._put({"ProtectionEnabled": True, "ExpiresInMinutes": PROTECTED_FOR.seconds // 60})
            self._renew_at = now + (PROTECTED_FOR / 2 if self._held else timedelta(minutes=1))

    def drop(self) -> None:
        """Be a task like any other again."""
        if self._held:
            self._held = not self._put({"ProtectionEnabled": False})
            self._renew_at = None

    def _put(self, state: Mapping[str, Any]) -> bool:
        if self._agent_uri is None:
            return False
        url = f"{self._agent_uri}/task-protection/v1/state"
        headers = {"Content-Type": "application/json"}
        try:
            answer = _json(Request(url, json.dumps(state).encode(), headers, method="PUT"))  # noqa: S310 (ECS's own)
        except (OSError, ValueError) as error:
            log("task protection failed", error=repr(error), **state)
            return False
        if "protection" not in answer:
            log("task protection refused", answer=answer, **state)
            return False
        return True


def task_arn(metadata_uri: str | None) -> str:
    """The ECS task this process is, from the task metadata endpoint; a name of its own where there is none."""
    if metadata_uri:
        try:
            return str(_json(Request(f"{metadata_uri}/task"))["TaskARN"])  # noqa: S310 (ECS's own)
        except (OSError, ValueError, KeyError) as error:
            log("task metadata cannot be read", error=repr(error))
    return f"local-{uuid4()}"


def _json(request: Request) -> dict[str, Any]:
    with _open(request, timeout=3) as reply:
        answer: dict[str, Any] = json.load(reply)
    return answer
