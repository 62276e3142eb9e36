"""Attribute-based instance type selection, pure: which types satisfy InstanceRequirements (EC2 API reference)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from localcloud import catalog
from localcloud.wire import Fault

Entry = Mapping[str, Any]
PRICES = {"MaxSpotPriceAsPercentageOfOptimalOnDemandPrice", "SpotMaxPricePercentageOverLowestPrice"}
USUAL_PERCENTAGE = 100
"""What "optimal price protection" is taken for when a request names no threshold: AWS does not say what it is."""


def satisfying(wanted: Mapping[str, Any], architecture: str = "x86_64") -> list[str]:
    """The types that have all that is wanted and can be had as Spot, sorted. Raises Fault for what is not played."""
    if unplayed := sorted(set(wanted) - set(TESTS) - PRICES):
        raise Fault("NotPlayed", f"the local cloud does not play {', '.join(unplayed)} of InstanceRequirements")
    for name in ("VCpuCount", "MemoryMiB"):
        if "Min" not in wanted.get(name, {}):
            raise Fault("MissingParameter", f"InstanceRequirements needs {name}.Min")
    # What is not asked about is excluded, as bare metal, or included, as previous generations.
    asked = {"BareMetal": "excluded", **{name: value for name, value in wanted.items() if name in TESTS}}
    entries = {name: catalog.describe(name) for name in catalog.names()}
    return [
        name
        for name, entry in entries.items()
        if "spot" in entry["SupportedUsageClasses"]
        and architecture in entry["ProcessorInfo"]["SupportedArchitectures"]
        and all(TESTS[about](name, entry, value) for about, value in asked.items())
    ]


def affordable(names: Sequence[str], wanted: Mapping[str, Any], spot_usd: Callable[[str], float]) -> list[str]:
    """Those whose Spot price is within the request's price protection, by `spot_usd` (US dollars an hour)."""
    if not names:
        return []
    if "SpotMaxPricePercentageOverLowestPrice" in wanted:
        share = 1 + wanted["SpotMaxPricePercentageOverLowestPrice"] / 100
        limit = share * min(spot_usd(name) for name in names)
    else:
        share = wanted.get("MaxSpotPriceAsPercentageOfOptimalOnDemandPrice", USUAL_PERCENTAGE) / 100
        limit = share * min(catalog.on_demand_usd(name) for name in names)
    return [name for name in names if spot_usd(name) <= limit]


def _within(value: float, limits: Mapping[str, float]) -> bool:
    return bool(limits.get("Min", 0) <= value <= limits.get("Max", value))


def _gpus(entry: Entry) -> list[Mapping[str, Any]]:
    gpus: list[Mapping[str, Any]] = entry.get("GpuInfo", {}).get("Gpus", [])
    return gpus


def _count(entry: Entry) -> int:
    """Of a part of a GPU EC2 says one too."""
    return sum(int(gpu.get("LogicalGpuCount", gpu.get("Count", 0))) for gpu in _gpus(entry))


TESTS: Mapping[str, Callable[[str, Entry, Any], bool]] = {
    "VCpuCount": lambda _, entry, limits: _within(entry["VCpuInfo"]["DefaultVCpus"], limits),
    "MemoryMiB": lambda _, entry, limits: _within(entry["MemoryInfo"]["SizeInMiB"], limits),
    "AcceleratorCount": lambda _, entry, limits: _within(_count(entry), limits),
    "AcceleratorManufacturers": lambda _, entry, names: any(
        gpu["Manufacturer"].lower() in names for gpu in _gpus(entry)
    ),
    "AcceleratorTypes": lambda _, entry, kinds: "gpu" in kinds and bool(_gpus(entry)),
    "AcceleratorNames": lambda _, entry, names: any(gpu["Name"].lower() in names for gpu in _gpus(entry)),
    "CpuManufacturers": lambda _, entry, names: entry["ProcessorInfo"]["Manufacturer"].lower() in names,
    "BareMetal": lambda _, entry, choice: {"excluded": not entry["BareMetal"], "required": entry["BareMetal"]}.get(
        choice, True
    ),
    "ExcludedInstanceTypes": lambda name, _, patterns: not any(fnmatchcase(name, each) for each in patterns),
    "AllowedInstanceTypes": lambda name, _, patterns: any(fnmatchcase(name, each) for each in patterns),
}
"""By member of InstanceRequirements: whether a type (name, entry of DescribeInstanceTypes) satisfies it."""
