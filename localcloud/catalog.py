"""What instance types are: moto's copy of DescribeInstanceTypes, and a small table of prices."""

from __future__ import annotations

from functools import cache
from typing import Any

from localcloud import published, wire

ON_DEMAND_USD = {
    "g4dn.xlarge": 0.526,
    "g4dn.2xlarge": 0.752,
    "g4dn.4xlarge": 1.204,
    "g4dn.8xlarge": 2.176,
    "g4dn.12xlarge": 3.912,
    "g4dn.16xlarge": 4.352,
    "g4dn.metal": 7.824,
    "g5.xlarge": 1.006,
    "g5.2xlarge": 1.212,
    "g5.4xlarge": 1.624,
    "g5.8xlarge": 2.448,
    "g5.12xlarge": 5.672,
    "g5.16xlarge": 4.096,
    "g5.24xlarge": 8.144,
    "g5.48xlarge": 16.288,
    "g5g.xlarge": 0.42,
    "g6.xlarge": 0.8048,
    "g6.2xlarge": 0.9776,
    "g6.4xlarge": 1.3232,
    "g6.8xlarge": 2.0144,
    "g6.12xlarge": 4.6016,
    "g6.16xlarge": 3.3968,
    "g6.24xlarge": 6.6752,
    "g6.48xlarge": 13.3504,
    "g6e.xlarge": 1.861,
    "g6e.2xlarge": 2.24208,
    "g6e.4xlarge": 3.00424,
    "g6e.8xlarge": 4.52856,
    "g6e.12xlarge": 10.49264,
    "g6e.16xlarge": 7.57719,
    "g6e.24xlarge": 15.06559,
    "g6e.48xlarge": 30.13118,
    "p3dn.24xlarge": 31.212,
    "p4d.24xlarge": 21.957642,
    "p4de.24xlarge": 27.44705,
    "p5.4xlarge": 6.88,
    "p5.48xlarge": 55.04,
}
"""US dollars an hour, Linux, us-east-1, On-Demand: AWS's public price list as the SkyPilot catalog (v8) had it in
August 2026; p3dn as listed in 2022."""

USD_PER_GPU = 1.2
USD_PER_VCPU = 0.05


class UnknownType(KeyError):
    """EC2 has no instance type of that name."""


@cache
def _all() -> dict[str, dict[str, Any]]:
    return published.instance_types()


def names() -> list[str]:
    """Every instance type, sorted."""
    return sorted(_all())


def describe(name: str) -> dict[str, Any]:
    """One entry of DescribeInstanceTypes, without what botocore's model does not know. Raises UnknownType."""
    if name not in _all():
        raise UnknownType(name)
    answer = wire.model("ec2").operation_model("DescribeInstanceTypes").output_shape
    entry: dict[str, Any] = _known(_all()[name], answer.members["InstanceTypes"].member)
    return entry


@cache
def gpus(name: str) -> int:
    """GPUs of one instance. Raises UnknownType."""
    return sum(int(gpu.get("Count", 0)) for gpu in describe(name).get("GpuInfo", {}).get("Gpus", ()))


@cache
def vcpus(name: str) -> int:
    """Virtual CPUs of one instance. Raises UnknownType."""
    return int(describe(name)["VCpuInfo"]["DefaultVCpus"])


@cache
def memory_mib(name: str) -> int:
    """Memory of one instance in MiB. Raises UnknownType."""
    return int(describe(name)["MemoryInfo"]["SizeInMiB"])


def on_demand_usd(name: str) -> float:
    """On-Demand price in US dollars an hour; a rough one for types outside the table. Raises UnknownType."""
    if name in ON_DEMAND_USD:
        return ON_DEMAND_USD[name]
    return round(USD_PER_GPU * gpus(name) + USD_PER_VCPU * vcpus(name), 4)


def _known(value: Any, shape: Any) -> Any:
    """`value` without the members that `shape` lacks."""
    if shape.type_name == "structure":
        return {key: _known(part, shape.members[key]) for key, part in value.items() if key in shape.members}
    if shape.type_name == "list":
        return [_known(part, shape.member) for part in value]
    return value
