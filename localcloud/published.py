"""What AWS publishes for everybody, from moto's copies, read as files: importing moto.ec2 takes a second."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from moto.utilities.utils import load_resource

from localcloud.world import REGION


def instance_types() -> dict[str, dict[str, Any]]:
    """DescribeInstanceTypes, by type."""
    types: dict[str, dict[str, Any]] = load_resource("ec2/resources/instance_types.json")
    return types


def offerings() -> list[dict[str, str]]:
    """DescribeInstanceTypeOfferings of our region, by zone."""
    rows: list[dict[str, str]] = load_resource(f"ec2/resources/instance_type_offerings/availability-zone/{REGION}.json")
    return rows


def ecs_parameters() -> dict[str, str]:
    """The public parameters of the ECS images in our region: name -> value."""
    return dict(_leaves("", load_resource(f"ssm/resources/ecs/optimized_amis/{REGION}.json")))


def _leaves(name: str, node: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for step, inner in node.items():
        if step == "Value":
            yield name, inner
        else:
            yield from _leaves(f"{name}/{step}", inner)
