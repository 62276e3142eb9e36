"""Requests in, answers out, as botocore's service models describe them. What the model does not know is an error."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from botocore import xform_name
from botocore.loaders import Loader
from botocore.validate import ParamValidator
from moto.core.exceptions import ServiceException
from moto.core.model import OperationModel, ServiceModel
from moto.core.parse import PROTOCOL_PARSERS
from moto.core.serialize import get_serializer_class
from werkzeug.datastructures import Headers, MultiDict


class Fault(ServiceException):
    """An error that the API answers with: `Fault("ClusterNotFoundException", "Cluster not found.")`."""


class Unfaithful(Exception):
    """The local cloud was about to give an answer that AWS could not give."""


@dataclass(frozen=True)
class Call:
    """One API call as a service module sees it."""

    operation: str
    """As AWS spells it, e.g. DescribeSpotFleetRequests."""
    params: Mapping[str, Any]
    """The input in botocore's shape."""
    caller: str
    """ARN of the principal that signed the request."""


@dataclass(frozen=True)
class Permission:
    """What the caller of an operation must be allowed to do (Service Authorization Reference)."""

    action: str
    resource: str = "*"
    context: Mapping[str, Any] = field(default_factory=dict)
    """Condition keys of the request and the resource, e.g. `{"ecs:cluster": arn}`."""


class Service:
    """Base of our service modules: an operation is a method of its name in snake case, `(Call) -> output`."""

    name: str
    """botocore's name of the service."""

    def permissions(self, call: Call) -> Iterable[Permission]:
        """What `call` needs. Services whose actions take resources or condition keys say so here."""
        yield Permission(f"{self.name}:{call.operation}")

    def plays(self, operation: str) -> bool:
        """Whether this module has that operation."""
        return hasattr(getattr(self, xform_name(operation), None), "honoured")

    def answer(self, call: Call) -> Mapping[str, Any]:
        """Carry the operation out. Raises Fault for what AWS would refuse and for any parameter that is not played."""
        method = getattr(self, xform_name(call.operation))
        if ignored := sorted(set(call.params) - method.honoured):
            raise Fault("NotPlayed", f"the local cloud does not play {', '.join(ignored)} of {call.operation}")
        result: Mapping[str, Any] = method(call)
        return result


Method = TypeVar("Method", bound=Callable[..., Mapping[str, Any]])


def plays(*parameters: str) -> Callable[[Method], Method]:
    """Mark a method as an API operation and name the input parameters that it honours; any other is refused."""

    def mark(method: Method) -> Method:
        method.honoured = frozenset(parameters)  # type: ignore[attr-defined]
        return method

    return mark


@cache
def model(service: str) -> ServiceModel:
    """botocore's model of a service."""
    return ServiceModel(Loader().load_service_model(service, "service-2"), service)


def operation_of(headers: Mapping[str, str], body: bytes, path: str = "/") -> str:
    """The operation a request names: by X-Amz-Target (JSON), the form field Action (query), or a path of its own name
    (as Image Builder has it); "" when neither.
    """
    if target := headers.get("x-amz-target", ""):
        return target.rsplit(".", 1)[-1]
    # Not every body, and not by parse_qsl: with all that is uploaded that took a fifth of the cloud's time.
    form = "x-www-form-urlencoded" in headers.get("content-type", "")
    said = re.search(rb"(?:^|&)Action=(\w+)", body) if form else None
    return said[1].decode() if said else path.strip("/")


def named(service: str, operation: str) -> str:
    """The operation of a service whose paths are not its operations' names: `v1/submitjob` of Batch is SubmitJob."""
    return _by_path(service).get(f"/{operation}", operation)


@cache
def _by_path(service: str) -> Mapping[str, str]:
    known = model(service)
    return {known.operation_model(name).http.get("requestUri", ""): name for name in known.operation_names}


def params_of(
    service: str,
    operation: str,
    headers: Mapping[str, str],
    body: bytes,
    query: Mapping[str, list[str]] | None = None,
) -> dict[str, Any]:
    """The request's input. Raises Fault when it does not satisfy the model."""
    shape = model(service).operation_model(operation)
    parser = PROTOCOL_PARSERS[_protocol(service)](shape)
    form = [] if "json" in _protocol(service) else parse_qsl(body.decode(), keep_blank_values=True)
    parsed: dict[str, Any] = parser.parse(
        {
            "body": body.decode(),
            "headers": Headers(list(headers.items())),
            "method": "POST",
            "url_params": {},
            "url_path": "/",
            "values": MultiDict(form or dict(query or {})),
        }
    )
    if shape.input_shape is not None:
        report = ParamValidator().validate(parsed, shape.input_shape)
        if report.has_errors():
            raise Fault("ValidationException", report.generate_report())
    return parsed


def answer_of(
    service: str, operation: str, result: Mapping[str, Any] | ServiceException
) -> tuple[int, dict[str, str], bytes]:
    """The response: (status, headers, body). Raises Unfaithful when the result does not satisfy the output shape."""
    shape = model(service).operation_model(operation)
    if not isinstance(result, Exception):
        hold_to_model(shape, result)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # moto warns of error codes that a service's model does not list; AWS has many
        serialized = get_serializer_class(service, _protocol(service))(operation_model=shape).serialize(result)
    body = serialized["body"]
    return (
        serialized["status_code"],
        {key: str(value) for key, value in serialized["headers"].items()},
        body if isinstance(body, bytes) else body.encode(),
    )


def hold_to_model(shape: OperationModel, result: Mapping[str, Any]) -> None:
    """Refuse an answer with a missing, unknown or mistyped field."""
    if shape.output_shape is None:
        return
    report = ParamValidator().validate(result, shape.output_shape)
    if report.has_errors():
        raise Unfaithful(f"{shape.name}: {report.generate_report()}")


def _protocol(service: str) -> str:
    """The one that botocore speaks, of those that the service has."""
    protocol: str = model(service).resolved_protocol
    return protocol
