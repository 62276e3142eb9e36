"""Names and shapes of ECS's API: ARNs, documents as they are shown, pages, resources."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from localcloud.wire import Call, Fault
from localcloud.world import ACCOUNT, REGION

Document = dict[str, Any]


def words(text: str) -> frozenset[str]:
    """The words of a text: a set of names that reads as prose."""
    return frozenset(text.split())


_TIMES = words(
    "createdAt startedAt stoppedAt stoppingAt pullStartedAt pullStoppedAt executionStoppedAt "
    "connectivityAt registeredAt updatedAt expirationDate"
)


def arn(kind: str, *names: str) -> str:
    """The ARN of something of ECS."""
    return f"arn:aws:ecs:{REGION}:{ACCOUNT}:{kind}/{'/'.join(names)}"


def short(name_or_arn: str) -> str:
    """The last part of an ARN, or the name itself."""
    return name_or_arn.rsplit("/", 1)[-1]


def public(document: Mapping[str, Any], as_json: bool = False) -> Document:
    """The document as the API shows it; `as_json` as an event does, with ISO times."""
    shown: Document = {}
    for key, value in document.items():
        if key.startswith("_"):
            continue
        if key in _TIMES and isinstance(value, int | float):
            at = datetime.fromtimestamp(value, UTC)
            shown[key] = at.isoformat().replace("+00:00", "Z") if as_json else at
        elif isinstance(value, dict):
            shown[key] = public(value, as_json)
        elif isinstance(value, list):
            shown[key] = [public(item, as_json) if isinstance(item, dict) else item for item in value]
        else:
            shown[key] = value
    return shown


def page(key: str, items: list[str], call: Call, default: int = 100) -> Document:
    """One page of a listing: `maxResults` of 1 to 100, `nextToken` the place to go on from."""
    size = int(call.params.get("maxResults", default))
    if not 1 <= size <= 100:
        raise Fault("InvalidParameterException", "maxResults must be between 1 and 100.")
    start = int(call.params.get("nextToken") or 0)
    rest = {"nextToken": str(start + size)} if start + size < len(items) else {}
    return {key: items[start : start + size], **rest}


def without_tags(document: Document, call: Call) -> Document:
    """A description shows tags only to who asked for them with `include`."""
    if "TAGS" not in call.params.get("include", []):
        document.pop("tags", None)
    return document


def at_most(items: list[str], limit: int, what: str) -> list[str]:
    """The items, when they are not too many. Raises InvalidParameterException."""
    if len(items) > limit:
        raise Fault("InvalidParameterException", f"{what} can have at most {limit} items.")
    return items


def resources(cpu: int, memory: int, gpus: list[str]) -> list[Document]:
    """The resources of a container instance, all of them or what is left."""

    def whole(name: str, amount: int) -> Document:
        return {"name": name, "type": "INTEGER", "doubleValue": 0.0, "longValue": 0, "integerValue": amount}

    def names(name: str, values: list[str]) -> Document:
        return {
            "name": name,
            "type": "STRINGSET",
            "doubleValue": 0.0,
            "longValue": 0,
            "integerValue": 0,
            "stringSetValue": values,
        }

    amounts = [
        whole("CPU", cpu),
        whole("MEMORY", memory),
        names("PORTS", ["22", "2375", "2376", "51678", "51679"]),
        names("PORTS_UDP", []),
    ]
    return [*amounts, names("GPU", gpus)] if gpus else amounts
