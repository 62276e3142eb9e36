"""The environment, read once; every problem is reported at once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from ingest.routing import Route


class BadSettings(ValueError):
    """What is wrong with the environment, all of it."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where jobs are recorded, where they are sent, and whom to wake."""

    table: str
    routes: tuple[Route, ...]
    notices_url: str

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Settings:
        """Read the environment. Raises BadSettings, naming every variable that is missing or wrong."""
        problems = [
            f"{name} is missing" for name in ("JOBS_TABLE", "ROUTES", "NOTICES_QUEUE_URL") if not environment.get(name)
        ]
        routes: tuple[Route, ...] = ()
        if environment.get("ROUTES"):
            try:
                routes = tuple(Route(**entry) for entry in json.loads(environment["ROUTES"]))
            except (ValueError, TypeError) as error:
                problems.append(f"ROUTES is not a list of prefix, queue and queue_url: {error}")
            else:
                problems += [] if routes else ["ROUTES is empty"]
        if problems:
            raise BadSettings("; ".join(problems))
        return cls(table=environment["JOBS_TABLE"], routes=routes, notices_url=environment["NOTICES_QUEUE_URL"])
