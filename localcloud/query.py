"""The cluster query language of ECS, as far as filters and `memberOf` constraints use it.

Source: "Create expressions to define container instances for Amazon ECS tasks" in the developer guide.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

Facts = Mapping[str, str]
"""What is known of one container instance: `attribute:lifecycle`, `ec2InstanceId`, `agentConnected`, …"""
Query = Callable[[Facts], bool]

_TOKEN = re.compile(
    r"\s*(==|!=|=~|!~|>=|<=|>|<|!(?:in|exists)\b|&&|\|\||[()\[\],!]|'[^']*'|\"[^\"]*\"|[^\s()\[\],!=<>'\"]+)"
)
_COMPARISONS: dict[str, Callable[[str | None, str], bool]] = {
    "==": lambda had, wanted: had == wanted,
    "!=": lambda had, wanted: had != wanted,
    "=~": lambda had, wanted: had is not None and re.fullmatch(wanted, had) is not None,
    "!~": lambda had, wanted: had is None or re.fullmatch(wanted, had) is None,
    ">": lambda had, wanted: had is not None and float(had) > float(wanted),
    ">=": lambda had, wanted: had is not None and float(had) >= float(wanted),
    "<": lambda had, wanted: had is not None and float(had) < float(wanted),
    "<=": lambda had, wanted: had is not None and float(had) <= float(wanted),
}
_WORDS = {"equals": "==", "not_equals": "!=", "matches": "=~", "not_in": "!in", "not_exists": "!exists"}


class Unreadable(ValueError):
    """The expression is not of the cluster query language."""


def parse(expression: str) -> Query:
    """The query that `expression` says, e.g. `attribute:lifecycle == spot and ec2InstanceId in [i-1, i-2]`."""
    reader = _Reader(expression)
    query = reader.alternatives()
    if reader.next is not None:
        raise Unreadable(f"unexpected {reader.next!r} in {expression!r}")
    return query


class _Reader:
    def __init__(self, expression: str) -> None:
        self._tokens: list[str] = []
        at = 0
        while at < len(expression.rstrip()):
            token = _TOKEN.match(expression, at)
            if token is None:
                raise Unreadable(f"cannot read {expression[at:]!r}")
            self._tokens.append(_WORDS.get(token[1], token[1]))
            at = token.end()

    @property
    def next(self) -> str | None:
        return self._tokens[0] if self._tokens else None

    def take(self, *expected: str) -> str:
        if not self._tokens or (expected and self._tokens[0] not in expected):
            raise Unreadable(f"expected {' or '.join(expected) or 'more'}, not {self.next!r}")
        return self._tokens.pop(0)

    def alternatives(self) -> Query:
        query = self._all()
        while self.next in ("or", "||"):
            self.take()
            query = _either(query, self._all())
        return query

    def _all(self) -> Query:
        query = self._one()
        while self.next in ("and", "&&"):
            self.take()
            query = _both(query, self._one())
        return query

    def _one(self) -> Query:
        if self.next in ("not", "!"):
            self.take()
            denied = self._one()
            return lambda facts: not denied(facts)
        if self.next == "(":
            self.take()
            query = self.alternatives()
            self.take(")")
            return query
        return self._comparison(self.take())

    def _comparison(self, name: str) -> Query:
        operator = self.take("exists", "!exists", "in", "!in", *_COMPARISONS)
        if operator in ("exists", "!exists"):
            return lambda facts: (name in facts) == (operator == "exists")
        if operator in ("in", "!in"):
            members = self._list()
            return lambda facts: (facts.get(name) in members) == (operator == "in")
        compare, wanted = _COMPARISONS[operator], self.take().strip("'\"")
        return lambda facts: compare(facts.get(name), wanted)

    def _list(self) -> frozenset[str]:
        self.take("[")
        members = [self.take().strip("'\"")]
        while self.take(",", "]") == ",":
            members.append(self.take().strip("'\""))
        return frozenset(members)


def _either(left: Query, right: Query) -> Query:
    return lambda facts: left(facts) or right(facts)


def _both(left: Query, right: Query) -> Query:
    return lambda facts: left(facts) and right(facts)
