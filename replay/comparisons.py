"""Policies to compare with, as others run them: each says how much Spot it asks for and how much On-Demand it keeps.

They look at everything that happens at the moment it happens, and their work moves to any instance at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, inf

from replay.world import Machine, World, newest


@dataclass(frozen=True, kw_only=True)
class Look:
    """One look, in units: what is needed, Spot that is not under notice, and what of that has joined."""

    need: int
    held: int
    ready: int


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A policy as four numbers, from the units needed, the number of zones, or a look.

    `spot` is the fleet's target, `caps` the most by zone where the fleet may not choose. On-Demand is raised to `least`
    and cut to `most`, and then left as it is for `quiet` seconds.
    """

    spot: Callable[[int], int] = lambda need: need
    caps: Callable[[int, int], Sequence[int] | None] = lambda _need, _zones: None
    least: Callable[[Look], int] = lambda _: 0
    most: Callable[[Look], int] = lambda _: 0
    quiet: float = 0.0


class Follow:
    """The Controller that follows a rule."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._changed = -inf

    def begin(self, world: World) -> None:
        """Nothing is there before the first look."""

    def act(self, world: World) -> float:
        """Ask for Spot, see what there is, and make up for the rest."""
        need = world.work.need()
        target = self._rule.spot(need)
        world.ask_spot(target, self._rule.caps(need, len(world.market.zones)))
        held = [machine for machine in world.spot if not machine.noticed]
        for machine in newest(_spare(world, held), len(held) - target):
            world.terminate(machine)
        look = Look(need=need, held=sum(world.held), ready=world.ready())
        quiet_until = self._changed + self._rule.quiet
        if world.now >= quiet_until:
            self._keep(world, self._rule.least(look), self._rule.most(look))
            quiet_until = self._changed + self._rule.quiet
        return quiet_until if quiet_until > world.now else inf

    def _keep(self, world: World, least: int, most: int) -> None:
        have = len(world.on_demand)
        if have < least:
            world.buy(least - have)
            self._changed = world.now
        for machine in newest(_spare(world, list(world.on_demand)), have - most):
            world.terminate(machine)
            self._changed = world.now


def _spare(world: World, machines: Sequence[Machine]) -> Sequence[Machine]:
    """Those that may end without work being lost."""
    return machines if world.work.endless else [machine for machine in machines if machine.job is None]


def _reactive(quiet: float = 0.0) -> Rule:
    """At once On-Demand for what the fleet does not hold, until the fleet's own are ready."""
    return Rule(least=lambda look: look.need - look.held, most=lambda look: max(0, look.need - look.ready), quiet=quiet)


def _spothedge(extra: int) -> Rule:
    """Some Spot more than needed, and On-Demand while not all of it is ready (SkyServe's SpotHedge)."""

    def units(look: Look) -> int:
        return max(0, min(look.need, look.need + extra - look.ready))

    return Rule(spot=lambda need: need + extra if need else 0, least=units, most=units)


def _fixed(percent: int) -> Rule:
    """A fixed share of On-Demand, in whole instances, and the rest Spot."""

    def units(need: int) -> int:
        return ceil(need * percent / 100)

    return Rule(
        spot=lambda need: need - units(need), least=lambda look: units(look.need), most=lambda look: units(look.need)
    )


def _even(need: int, zones: int) -> Sequence[int]:
    """As even as whole instances go, the first zones with one more; what one lacks no other makes up for."""
    return [need // zones + (zone < need % zones) for zone in range(zones)]


COMPARISONS: dict[str, Rule] = {
    "on-demand": Rule(spot=lambda _: 0, least=lambda look: look.need, most=lambda look: look.need),
    "spot-one-zone": Rule(caps=lambda need, zones: [need] + [0] * (zones - 1)),
    "spot-even": Rule(caps=_even),
    "spot-fleet": Rule(),
    "reactive": _reactive(),
    "source-004": _reactive(quiet=600.0),
    "spothedge-1": _spothedge(1),
    "spothedge-2": _spothedge(2),
    "spothedge-4": _spothedge(4),
    "fixed-25": _fixed(25),
    "fixed-50": _fixed(50),
}
"""`source-004` ignores what happens in the ten minutes after it changed something, as that source says."""
