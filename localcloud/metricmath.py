"""Metric math as far as it is played: arithmetic, comparison, AND, OR, IF, FILL, PERIOD, ABS, CEIL, FLOOR. Pure.

Source: "Using math expressions with CloudWatch metrics" in the CloudWatch user guide. Any other function is refused,
and so are arrays of time series: what is not known is never guessed.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Series = Mapping[float, float]
"""By start of a period: a value. A period without one is missing."""
Value = float | Series

_TOKEN = re.compile(r"\s*(\d+\.?\d*|\.\d+|[A-Za-z_][A-Za-z0-9_]*|==|!=|<=|>=|&&|\|\||[-+*/<>(),])")
_WORDS = {"&&": "AND", "||": "OR"}
_SUMS: Mapping[str, Callable[[float, float], float]] = {"+": operator.add, "-": operator.sub}
_PRODUCTS: Mapping[str, Callable[[float, float], float]] = {"*": operator.mul, "/": operator.truediv}
_COMPARISONS: Mapping[str, Callable[[float, float], float]] = {
    "==": lambda left, right: float(left == right),
    "!=": lambda left, right: float(left != right),
    "<=": lambda left, right: float(left <= right),
    ">=": lambda left, right: float(left >= right),
    "<": lambda left, right: float(left < right),
    ">": lambda left, right: float(left > right),
}
_EACH: Mapping[str, Callable[[float], float]] = {"ABS": abs, "CEIL": math.ceil, "FLOOR": math.floor}


class Unreadable(ValueError):
    """The expression is not of the metric math that is played."""


@dataclass(frozen=True)
class Scene:
    """What an expression is evaluated with."""

    series: Mapping[str, Series]
    """By id of a metric or another expression."""
    periods: Mapping[str, int]
    """By id of a metric: its period, in AWS's seconds."""
    times: Sequence[float]
    """The periods looked at, oldest first."""


Term = Callable[[Scene], Value]


@dataclass(frozen=True)
class Expression:
    """One that was read."""

    text: str
    names: frozenset[str]
    """Ids that it refers to."""
    term: Term

    def over(self, scene: Scene) -> Series:
        """The time series that it comes to. Raises Unreadable for one that comes to a single number."""
        result = self.term(scene)
        if not isinstance(result, Mapping):
            raise Unreadable(f"{self.text!r} comes to a number, not to a time series")
        return result


def parse(text: str) -> Expression:
    """Read an expression. Raises Unreadable."""
    reader = _Reader(text)
    term = reader.alternatives()
    if reader.next:
        raise Unreadable(f"unexpected {reader.next!r} in {text!r}")
    return Expression(text, frozenset(reader.names), term)


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens: list[str] = []
        self.names: set[str] = set()
        at = 0
        while at < len(text.rstrip()):
            token = _TOKEN.match(text, at)
            if token is None:
                raise Unreadable(f"the local cloud cannot read {text[at:]!r} of metric math")
            self._tokens.append(_WORDS.get(token[1], token[1]))
            at = token.end()

    @property
    def next(self) -> str:
        return self._tokens[0] if self._tokens else ""

    def take(self, expected: str = "") -> str:
        if not self._tokens or (expected and self._tokens[0] != expected):
            raise Unreadable(f"expected {expected or 'more'} in {self._text!r}")
        return self._tokens.pop(0)

    def alternatives(self) -> Term:
        return self._chain(self._all, {"OR": lambda left, right: float(left != 0 or right != 0)})

    def _all(self) -> Term:
        return self._chain(self._comparison, {"AND": lambda left, right: float(left != 0 and right != 0)})

    def _comparison(self) -> Term:
        return self._chain(self._sum, _COMPARISONS)

    def _sum(self) -> Term:
        return self._chain(self._product, _SUMS)

    def _product(self) -> Term:
        return self._chain(self._signed, _PRODUCTS)

    def _chain(self, part: Callable[[], Term], operators: Mapping[str, Callable[[float, float], float]]) -> Term:
        term = part()
        while self.next in operators:
            term = _both(operators[self.take()], term, part())
        return term

    def _signed(self) -> Term:
        if self.next == "-":
            self.take()
            return _each(operator.neg, self._signed())
        return self._one()

    def _one(self) -> Term:
        word = self.take()
        if word == "(":
            term = self.alternatives()
            self.take(")")
            return term
        if word[0].isdigit() or word[0] == ".":
            number = float(word)
            return lambda _: number
        if word[0].islower():
            self.names.add(word)
            return lambda scene: scene.series[word]
        return self._call(word)

    def _call(self, name: str) -> Term:
        if self.next != "(" or name not in {*_EACH, "FILL", "IF", "PERIOD"}:
            raise Unreadable(f"the local cloud does not play {name} of metric math")
        self.take("(")
        if name == "PERIOD":
            metric = self.take()
            self.take(")")
            if not metric[0].islower():
                raise Unreadable(f"PERIOD is of a metric, not of {metric}")
            self.names.add(metric)
            return lambda scene: float(_period(scene, metric))
        if name == "FILL":
            series = self.alternatives()
            self.take(",")
            filler = self._filler()
            self.take(")")
            return _fill(series, filler)
        arguments = [self.alternatives()]
        while self.next == ",":
            self.take()
            arguments.append(self.alternatives())
        self.take(")")
        if name == "IF" and len(arguments) in (2, 3):
            return _if(*arguments)
        if name in _EACH and len(arguments) == 1:
            return _each(_EACH[name], arguments[0])
        raise Unreadable(f"{name} with {len(arguments)} arguments in {self._text!r}")

    def _filler(self) -> Term | None:
        """A number, or None for REPEAT."""
        if self.next == "REPEAT":
            self.take()
            return None
        return self.alternatives()


def _both(combine: Callable[[float, float], float], left: Term, right: Term) -> Term:
    """Missing values of one of two series are 0; a division by 0 drops the point."""

    def combined(scene: Scene) -> Value:
        one, other = left(scene), right(scene)
        if not isinstance(one, Mapping) and not isinstance(other, Mapping):
            try:
                return combine(one, other)
            except ZeroDivisionError:
                raise Unreadable("a number is divided by 0") from None
        times = {*(one if isinstance(one, Mapping) else ()), *(other if isinstance(other, Mapping) else ())}
        result = {}
        for time in times:
            try:
                result[time] = combine(_at(one, time), _at(other, time))
            except ZeroDivisionError:
                continue
        return result

    return combined


def _at(value: Value, time: float) -> float:
    return value.get(time, 0.0) if isinstance(value, Mapping) else value


def _each(change: Callable[[float], float], term: Term) -> Term:
    def changed(scene: Scene) -> Value:
        value = term(scene)
        if isinstance(value, Mapping):
            return {time: float(change(one)) for time, one in value.items()}
        return float(change(value))

    return changed


def _if(condition: Term, then: Term, otherwise: Term | None = None) -> Term:
    """Of the guide's "Using IF expressions": where the condition is missing the result is; a missing value counts 0
    where the condition is true, and is dropped where it is false.
    """

    def chosen(scene: Scene) -> Value:
        said, yes = condition(scene), then(scene)
        no = otherwise(scene) if otherwise else {}
        if not isinstance(said, Mapping):
            return yes if said else no
        result = {}
        for time, value in said.items():
            if value:
                result[time] = _at(yes, time)
            elif not isinstance(no, Mapping):
                result[time] = no
            elif time in no:
                result[time] = no[time]
        return result

    return chosen


def _fill(term: Term, filler: Term | None) -> Term:
    """Every period looked at gets a value, the newest too, of which a late metric says nothing yet (the guide warns of
    that), and also of a metric that says nothing at all. REPEAT has nothing to repeat before the first value.
    """

    def filled(scene: Scene) -> Value:
        value = term(scene)
        if not isinstance(value, Mapping):
            raise Unreadable("FILL is of a time series")
        number = filler(scene) if filler else None
        if isinstance(number, Mapping):
            raise Unreadable("the local cloud plays FILL with a number or REPEAT")
        result: dict[float, float] = {}
        last: float | None = None
        for time in scene.times:
            last = value.get(time, last if filler is None else number)
            if last is not None:
                result[time] = last
        return result

    return filled


def _period(scene: Scene, metric: str) -> int:
    if metric not in scene.periods:
        raise Unreadable(f"PERIOD is of a metric, and {metric} is none")
    return scene.periods[metric]
