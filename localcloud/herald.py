"""Events that AWS sends of itself: late by chance, now and then twice, never in a promised order."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

from localcloud import substrate
from localcloud.world import World

TWICE = 0.02
"""Share of events that arrive twice: EventBridge delivers at least once (EventBridge User Guide)."""
Emit = Callable[[str, str, dict[str, Any], Sequence[str]], None]


class Herald:
    """Holds events until they are due. `emit` must not block."""

    def __init__(self, world: World, emit: Emit = substrate.emit) -> None:
        self._world = world
        self._emit = emit
        self._order = itertools.count()
        self._held: list[tuple[datetime, int, tuple[str, str, dict[str, Any], Sequence[str]]]] = []
        world.every_heartbeat(self.step)

    def say(
        self, source: str, kind: str, detail: dict[str, Any], resources: Sequence[str] = (), within: float = 1.0
    ) -> None:
        """Have the event sent some time in the next `within` seconds of AWS's time."""
        for _ in range(2 if self._world.dice.random() < TWICE else 1):
            due = self._world.now() + timedelta(seconds=self._world.scaled(self._world.dice.uniform(0, within)))
            heapq.heappush(self._held, (due, next(self._order), (source, kind, detail, resources)))

    def step(self, now: datetime) -> None:
        """Send what is due."""
        while self._held and self._held[0][0] <= now:
            self._emit(*heapq.heappop(self._held)[2])
