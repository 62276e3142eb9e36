"""Filters and pages, as EC2's Describe calls have them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from localcloud.wire import Fault

Item = TypeVar("Item")
Values = Callable[[Item], Iterable[str]]


def filtered(
    items: Iterable[Item],
    filters: Sequence[Mapping[str, Any]],
    known: Mapping[str, Values[Item]],
    tags: Callable[[Item], Mapping[str, str]],
) -> list[Item]:
    """The items that satisfy every filter (values of one filter are alternatives; * and ? are wildcards).

    `known`: by filter name, an item's values. `tags` serves tag:KEY and tag-key. Raises Fault for another name.
    """
    tests = [(_values_of(one["Name"], known, tags), one.get("Values", [])) for one in filters]
    return [
        item
        for item in items
        if all(any(fnmatchcase(value, wanted) for value in values(item) for wanted in wants) for values, wants in tests)
    ]


def _values_of(name: str, known: Mapping[str, Values[Item]], tags: Callable[[Item], Mapping[str, str]]) -> Values[Item]:
    if name.startswith("tag:"):
        key = name.removeprefix("tag:")
        return lambda item: [tags(item)[key]] if key in tags(item) else []
    if name == "tag-key":
        return lambda item: list(tags(item))
    if name not in known:
        raise Fault("InvalidParameterValue", f"The filter '{name}' is invalid")
    return known[name]


def page(
    items: Sequence[Item], params: Mapping[str, Any], default: int, size: str = "MaxResults"
) -> tuple[Sequence[Item], dict[str, str]]:
    """One page of the items, and what the answer says of the next one: `{"NextToken": …}` or nothing."""
    start = 0
    if token := params.get("NextToken"):
        try:
            start = int(base64.urlsafe_b64decode(token.encode()))
        except (ValueError, binascii.Error) as error:
            raise Fault("InvalidNextToken", "The token is not valid.") from error
    end = start + int(params.get(size, default))
    more = {"NextToken": base64.urlsafe_b64encode(str(end).encode()).decode()} if end < len(items) else {}
    return items[start:end], more
