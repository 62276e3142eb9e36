"""A container's health check: as ECS takes it, as Docker counts it, and what a task's health follows from it.

Sources: ECS API reference, "HealthCheck"; Dockerfile reference, "HEALTHCHECK".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from localcloud.ecs_shapes import Document

REPORT_SECONDS = 20.0
"""AWS's time between two reports of health (amazon-ecs-agent, DefaultContainerMetricsPublishInterval)."""
LIMITS = {"interval": (5, 300), "timeout": (2, 60), "retries": (1, 10), "startPeriod": (0, 300)}
"""Least and most of each number."""


@dataclass(frozen=True)
class HealthCheck:
    """What is run inside a container, and when it is enough. The times are the task definition's own, in real seconds:
    as with its stop timeout, AWS adds nothing to them that --speed could divide.
    """

    command: tuple[str, ...]
    interval: float
    timeout: float
    retries: int
    start_period: float

    @classmethod
    def of(cls, container: Document) -> HealthCheck | None:
        """The check of a container definition; ECS never looks at the image's own."""
        if (told := container.get("healthCheck")) is None:
            return None
        kind, *words = told["command"]
        command = ("/bin/sh", "-c", *words) if kind == "CMD-SHELL" else tuple(words)
        interval, timeout = told.get("interval", 30), told.get("timeout", 5)
        return cls(command, interval, timeout, told.get("retries", 3), told.get("startPeriod", 0))


@dataclass(frozen=True)
class Health:
    """What the checks so far have shown."""

    status: str = "UNKNOWN"
    failures: int = 0
    """One after the other, the last ones."""

    def after(self, passed: bool, check: HealthCheck, age: float) -> Health:
        """The health after one more check, of a container that runs for `age` seconds: a failure in the start period
        counts only when a check has passed before.
        """
        if passed:
            return Health("HEALTHY")
        if self.status == "UNKNOWN" and age < check.start_period:
            return self
        failures = self.failures + 1
        return Health("UNHEALTHY" if failures >= check.retries else self.status, failures)


def of_task(definition: Document, statuses: Mapping[str, str]) -> str:
    """A task's health by that of its containers. Those that are not essential count only where no essential one has a
    check.
    """
    checked = [each for each in definition["containerDefinitions"] if "healthCheck" in each]
    counting = [each for each in checked if each.get("essential", True)] or checked
    seen = {statuses.get(each["name"], "UNKNOWN") for each in counting}
    if "UNHEALTHY" in seen:
        return "UNHEALTHY"
    return "HEALTHY" if seen == {"HEALTHY"} else "UNKNOWN"


def complaint(told: Document) -> str | None:
    """What ECS says against a health check, if anything."""
    command: Sequence[str] = told.get("command", [])
    if not command or command[0] not in ("CMD", "CMD-SHELL"):
        return "The container health check command must begin with CMD or CMD-SHELL."
    if len(command) < 2 or (command[0] == "CMD-SHELL" and len(command) > 2):
        return "The container health check command must have a command to run."
    for name, (least, most) in LIMITS.items():
        if name in told and not least <= told[name] <= most:
            return f"The container health check {name} must be between {least} and {most}."
    return None
