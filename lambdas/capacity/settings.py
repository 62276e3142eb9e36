"""The environment, read once; every problem is reported at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from fractions import Fraction
from typing import Any, TypeVar

from capacity.groups import GroupPolicy, Kind
from capacity.nouns import Load, Placement, Policy, Urgency

T = TypeVar("T")


OTHERWISE = "*"
"""In the units by instance type: every type that is not named (a fleet that chooses types by their attributes)."""


class BadSettings(ValueError):
    """What is wrong with the environment, all of it."""


@dataclass(frozen=True, kw_only=True)
class Common:
    """Which resources are ours in every profile, and the operator's policy. `queues` is by name of service, in URLs."""

    stack: str
    cluster: str
    queues: Mapping[str, str]
    group: str
    """Of On-Demand instances."""
    pools_table: str
    units_by_type: Mapping[str, int]
    gpus_by_type: Mapping[str, int]
    """The same as the units, where nobody weighs the types."""
    policy: Policy

    def units(self, instance_type: str) -> int:
        """What an instance of this type should have.

        One, if nobody told (an update took the type off the list): it was bought for its GPUs, so it has at least that.
        Counted as nothing, it would be taken for lost, and On-Demand bought in its place.
        """
        return self.units_by_type.get(instance_type, self.units_by_type.get(OTHERWISE, 1))

    def gpus(self, instance_type: str) -> int:
        """How many GPUs an instance of this type should have, each with an equal share of its units."""
        return self.gpus_by_type.get(instance_type, self.gpus_by_type.get(OTHERWISE, 1))

    def worth(self, instance_type: str) -> Fraction:
        """Units of one GPU of this type."""
        return Fraction(self.units(instance_type), self.gpus(instance_type))


@dataclass(frozen=True, kw_only=True)
class Settings(Common):
    """What profile `fleet` is told."""

    fleet: str

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Settings:
        """Read the environment. Raises BadSettings, naming every variable that is missing or wrong."""
        reader = _Reader(environment)
        queues, loads = reader.services()
        fleet, common = reader.take("SPOT_FLEET_ID", _text, "a name", ""), reader.common()
        units, gpus = common["units_by_type"], common["gpus_by_type"]
        settings = cls(
            queues=queues,
            fleet=fleet,
            **common,
            policy=Policy(
                **reader.policy(loads),
                least=min((Fraction(units[name], gpus[name]) for name in units if name in gpus), default=Fraction(1)),
            ),
        )
        reader.check()
        return settings


@dataclass(frozen=True, kw_only=True)
class GroupSettings(Common):
    """What profile `groups` is told. `grow` and `shrink` are the groups' scaling policies."""

    spot_group: str
    grow: Mapping[Kind, str]
    shrink: Mapping[Kind, str]
    policy: GroupPolicy

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> GroupSettings:
        """Read the environment. Raises BadSettings, naming every variable that is missing or wrong."""
        reader = _Reader(environment)
        queues, loads = reader.services()
        named = {kind: kind.name for kind in Kind}
        settings = cls(
            queues=queues,
            spot_group=reader.take("SPOT_GROUP", _text, "a name", ""),
            grow={kind: reader.take(f"{name}_GROW_POLICY", _text, "a name", "") for kind, name in named.items()},
            shrink={kind: reader.take(f"{name}_SHRINK_POLICY", _text, "a name", "") for kind, name in named.items()},
            **reader.common(),
            policy=GroupPolicy(
                **reader.policy(loads),
                grace=timedelta(seconds=reader.take("GRACE_SECONDS", _number, "a number from 0", 0)),
            ),
        )
        reader.check()
        return settings


class _Reader:
    """Parses variables and collects what is wrong with them."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._problems: list[str] = []

    def take(self, name: str, parse: Callable[[str], T], expected: str, missing: T) -> T:
        """Parse one variable; `missing` only fills the gap until the problems are raised."""
        if name not in self._environment:
            self._problems.append(f"{name} is missing")
            return missing
        try:
            return parse(self._environment[name])
        except (ValueError, KeyError, TypeError, AttributeError):
            self._problems.append(f"{name} is not {expected}: {self._environment[name]!r}")
            return missing

    def check(self) -> None:
        """Raise BadSettings if there are problems."""
        if self._problems:
            raise BadSettings("; ".join(self._problems))

    def services(self) -> tuple[dict[str, str], dict[str, Load]]:
        """Queues and loads by name of service."""
        none: tuple[dict[str, str], dict[str, Load]] = ({}, {})
        return self.take("SERVICES", _services, "a list of services", none)

    def common(self) -> dict[str, Any]:
        """Of Common, what is not in the services or the policy."""
        units, gpus = self.units()
        return {
            "stack": self.take("STACK", _text, "a name", ""),
            "cluster": self.take("CLUSTER", _text, "a name", ""),
            "group": self.take("ON_DEMAND_GROUP", _text, "a name", ""),
            "pools_table": self.take("POOLS_TABLE", _text, "a name", ""),
            "units_by_type": units,
            "gpus_by_type": gpus,
        }

    def units(self) -> tuple[dict[str, int], dict[str, int]]:
        """Units and GPUs by instance type; GPUs are told only where they differ."""
        none: dict[str, int] = {}
        units = self.take("UNITS_BY_TYPE", _units, "units by instance type", none)
        if "GPUS_BY_TYPE" not in self._environment:
            return units, units
        gpus = self.take("GPUS_BY_TYPE", _units, "GPUs by instance type", none)
        if units and gpus and units.keys() != gpus.keys():
            self._problems.append(
                f"GPUS_BY_TYPE has other types than UNITS_BY_TYPE: {self._environment['GPUS_BY_TYPE']!r}"
            )
        return units, gpus

    def policy(self, loads: Mapping[str, Load]) -> dict[str, Any]:
        """The parts of a Policy that are told."""
        return {
            "loads": loads,
            "on_demand_units": self.take("ON_DEMAND_UNITS", _positive, "a number from 1", 1),
            "max_units": self.take("MAX_UNITS", _number, "a number from 0", 0),
            "max_on_demand_units": self.take("MAX_ON_DEMAND_UNITS", _number, "a number from 0", 0),
            "urgency": self.take("URGENCY", Urgency, f"one of {', '.join(Urgency)}", Urgency.NOW),
            "patience": timedelta(seconds=self.take("PATIENCE_SECONDS", _positive, "a number from 1", 1)),
            "calm": timedelta(seconds=self.take("CALM_SECONDS", _number, "a number from 0", 0)),
        }


def _text(value: str) -> str:
    if not value:
        raise ValueError("empty")
    return value


def _number(value: str | int) -> int:
    if isinstance(value, float | bool) or (number := int(value)) < 0:
        raise ValueError("not a number from 0")
    return number


def _positive(value: str | int) -> int:
    if (number := _number(value)) < 1:
        raise ValueError("not a number from 1")
    return number


def _wait(value: int | None) -> timedelta | None:
    return None if value is None else timedelta(seconds=_positive(value))


def _units(value: str) -> dict[str, int]:
    return {instance_type: _positive(units) for instance_type, units in json.loads(value).items()}


def _services(value: str) -> tuple[dict[str, str], dict[str, Load]]:
    services: list[dict[str, Any]] = json.loads(value)
    if not services:
        raise ValueError("none")
    return (
        {service["name"]: _text(service["queue_url"]) for service in services},
        {
            service["name"]: Load(
                jobs_per_task=_positive(service["jobs_per_task"]),
                max_tasks=_number(service["max_tasks"]),
                units_per_task=_positive(service["units_per_task"]),
                placement=Placement(service["placement"]),
                max_wait=_wait(service["max_wait_seconds"]),
            )
            for service in services
        },
    )
