"""The environment, read once; every problem is reported at once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass


class BadSettings(ValueError):
    """What is wrong with the environment, all of it."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Which pools are ours, and where they are remembered."""

    region: str
    table: str
    types: Mapping[str, int]
    """Units of an instance by type, in order of preference."""
    listed: tuple[str, ...]
    """Types that are bought On-Demand alone: what they cost is remembered too."""
    subnets: tuple[str, ...]
    max_units: int
    fleet: str | None
    """The Spot Fleet that may have these types in these subnets; None where pools are only observed."""
    prioritized: bool
    """Whether the fleet minds the order of the types."""

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Settings:
        """Read the environment. Raises BadSettings, naming every variable that is missing or wrong."""
        wanted = ("AWS_REGION", "POOLS_TABLE", "TYPES", "SUBNETS", "MAX_UNITS")
        problems = [f"{name} is missing" for name in wanted if not environment.get(name)]
        types: dict[str, int] = {}
        if text := environment.get("TYPES"):
            try:
                types = {name: int(units) for name, units in json.loads(text).items()}
            except (ValueError, TypeError, AttributeError):
                problems.append(f"TYPES is not units by instance type: {text!r}")
            else:
                problems += (
                    [] if types and min(types.values()) > 0 else [f"TYPES has none, or one of nothing: {text!r}"]
                )
        # In a region with fewer zones than asked for some places between the commas are empty.
        subnets = tuple(subnet for subnet in environment.get("SUBNETS", "").split(",") if subnet)
        if environment.get("SUBNETS") and not subnets:
            problems.append("SUBNETS names none")
        most = environment.get("MAX_UNITS", "")
        if most and not (most.isdecimal() and int(most)):
            problems.append(f"MAX_UNITS is not a number from 1: {most!r}")
        if problems:
            raise BadSettings("; ".join(problems))
        return cls(
            region=environment["AWS_REGION"],
            table=environment["POOLS_TABLE"],
            types=types,
            listed=tuple(name for name in environment.get("ON_DEMAND_TYPES", "").split(",") if name),
            subnets=subnets,
            max_units=int(most),
            fleet=environment.get("SPOT_FLEET_ID") or None,
            prioritized=bool(environment.get("PRIORITIZED")),
        )
