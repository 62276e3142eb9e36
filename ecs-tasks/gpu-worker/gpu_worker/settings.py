"""What the worker is told by its environment, refused at birth with every problem at once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import gettempdir
from typing import Any

HELD = " (SQS lets nobody hold a message for more than 12 hours)"


class BadSettings(Exception):
    """Everything that is wrong with the environment, in one message."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where the work is, how long it may take, and who does it."""

    stack: str
    queue: str
    queue_url: str
    dead_letter_queue_url: str
    jobs_table: str
    pools_table: str | None
    """Where the prices of Spot pools are; without it nothing is said of costs."""
    gpus_by_type: Mapping[str, int]
    """Of instance types that have more than one."""
    results_bucket: str
    lease: timedelta
    max_failures: int
    stop_timeout: timedelta
    job_limit: timedelta
    max_input_bytes: int
    max_output_bytes: int
    processor: str
    processors: int
    batch: int
    """Jobs that a processor works on together, at most."""
    options: Mapping[str, Any]
    delete_uploads: bool
    host_dir: Path
    scratch_dir: Path
    ecs_agent_uri: str | None
    ecs_metadata_uri: str | None
    pulse_file: Path | None

    @classmethod
    def read(cls, env: Mapping[str, str]) -> Settings:
        """Read `SPINDRIFT_*` and what ECS sets for every container."""
        problems: list[str] = []

        def text(name: str) -> str:
            if not env.get(name):
                problems.append(f"{name} is missing")
            return env.get(name, "")

        def number(name: str, default: int, least: int, most: int, why: str = "") -> int:
            given = env.get(name) or str(default)
            if given.isascii() and given.isdigit() and least <= int(given) <= most:
                return int(given)
            problems.append(f"{name}: a whole number from {least} to {most}{why}, got {given!r}")
            return default

        def flag(name: str) -> bool:
            if env.get(name) not in (None, "1"):
                problems.append(f"{name}: 1 or not at all, got {env[name]!r}")
            return env.get(name) == "1"

        def options(name: str) -> dict[str, Any]:
            given = env.get(name) or "{}"
            try:
                parsed = json.loads(given)
            except ValueError:
                parsed = None
            if isinstance(parsed, dict):
                return parsed
            problems.append(f"{name}: a JSON object, got {given!r}")
            return {}

        def command(name: str) -> dict[str, Any]:
            """As an option of the processor that runs commands, which looks at it."""
            try:
                return {"command": json.loads(env[name])} if env.get(name) else {}
            except ValueError:
                problems.append(f"{name}: a JSON list, got {env[name]!r}")
                return {}

        program = command("SPINDRIFT_COMMAND")
        processor = env.get("SPINDRIFT_PROCESSOR") or "gpu_worker.images:process"
        if program:
            processor = "gpu_worker.command:process"
        if not all(part.isidentifier() for part in processor.replace(":", ".").split(".")) or processor.count(":") != 1:
            problems.append(f"SPINDRIFT_PROCESSOR: module:function, got {processor!r}")
        if not (env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION")):
            problems.append("AWS_DEFAULT_REGION is missing (older ECS agents do not set it: the task definition must)")
        pulse = env.get("SPINDRIFT_PULSE_FILE")
        settings = cls(
            stack=env.get("SPINDRIFT_STACK") or "local",
            queue=text("SPINDRIFT_QUEUE"),
            queue_url=text("SPINDRIFT_QUEUE_URL"),
            dead_letter_queue_url=text("SPINDRIFT_DEAD_LETTER_QUEUE_URL"),
            jobs_table=text("SPINDRIFT_JOBS_TABLE"),
            pools_table=env.get("SPINDRIFT_POOLS_TABLE"),
            gpus_by_type=options("SPINDRIFT_GPUS_BY_TYPE"),
            results_bucket=text("SPINDRIFT_RESULTS_BUCKET"),
            lease=timedelta(seconds=number("SPINDRIFT_LEASE_SECONDS", 120, 3, 43_200)),
            max_failures=number("SPINDRIFT_MAX_FAILURES", 3, 1, 100),
            stop_timeout=timedelta(seconds=number("SPINDRIFT_STOP_TIMEOUT_SECONDS", 110, 0, 3600)),
            job_limit=timedelta(seconds=number("SPINDRIFT_JOB_SECONDS", 900, 1, 43_200, HELD)),
            max_input_bytes=number("SPINDRIFT_MAX_INPUT_BYTES", 2**30, 1, 2**40),
            max_output_bytes=number("SPINDRIFT_MAX_OUTPUT_BYTES", 2**33, 1, 2**40),
            processor=processor,
            processors=number("SPINDRIFT_PROCESSORS", 1, 1, 32),
            batch=number("SPINDRIFT_BATCH", 1, 1, 32),
            options=options("SPINDRIFT_OPTIONS") | program,
            delete_uploads=flag("SPINDRIFT_DELETE_UPLOADS"),
            scratch_dir=Path(env.get("SPINDRIFT_SCRATCH_DIR") or gettempdir()),
            host_dir=Path(env.get("SPINDRIFT_HOST_DIR") or "/run/spindrift"),
            ecs_agent_uri=env.get("ECS_AGENT_URI"),
            ecs_metadata_uri=env.get("ECS_CONTAINER_METADATA_URI_V4"),
            pulse_file=Path(pulse) if pulse else None,
        )
        if problems:
            raise BadSettings("; ".join(problems))
        return settings
