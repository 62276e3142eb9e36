"""A CloudFormation resource's properties as the input of the operation that makes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from botocore.validate import ParamValidator

from localcloud import wire
from localcloud.formation import NotPlayed

_RENAMED = {
    "ecs": {"ClusterSettings": "settings", "PlacementStrategies": "placementStrategy"},
    "imagebuilder": {"Version": "semanticVersion"},
}
"""By service: where CloudFormation's name of a property is not the API's."""


def as_input(service: str, operation: str, properties: Mapping[str, Any]) -> dict[str, Any]:
    """Names in camel case, scalars of the type the API wants. Raises NotPlayed for a name that the API lacks."""
    others = _RENAMED.get(service, {})
    renamed = {others.get(name, name): value for name, value in properties.items()}
    result: dict[str, Any] = _as_shape(wire.model(service).operation_model(operation).input_shape, renamed, operation)
    return result


def valid_input(service: str, operation: str, properties: Mapping[str, Any]) -> dict[str, Any]:
    """The same; raises NotPlayed also for what the API would refuse."""
    asked = as_input(service, operation, properties)
    report = ParamValidator().validate(asked, wire.model(service).operation_model(operation).input_shape)
    if report.has_errors():
        raise NotPlayed(f"{operation}: {report.generate_report()}")
    return asked


def _as_shape(shape: Any, value: Any, where: str) -> Any:
    if shape.type_name == "structure":
        names = {name.lower(): name for name in shape.members}
        converted = {}
        for given, inner in value.items():
            name = names.get(given.lower())
            if name is None:
                raise NotPlayed(f"{where} has no {given}")
            converted[name] = _as_shape(shape.members[name], inner, f"{where}.{name}")
        return converted
    if shape.type_name == "list":
        return [_as_shape(shape.member, inner, where) for inner in value]
    if shape.type_name == "map":
        return {key: str(inner) for key, inner in value.items()}
    if shape.type_name in ("integer", "long"):
        return int(value)
    if shape.type_name == "boolean":
        return value if isinstance(value, bool) else str(value).lower() == "true"
    return str(value)
