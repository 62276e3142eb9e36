"""Requests that AWS turns away because there are too many: by seeded chance here, so that every client must bear it."""

from __future__ import annotations

import random

from localcloud.control import Control
from localcloud.wire import Call, Fault
from localcloud.world import World

USUAL_RATE = 0.01
"""Share of an actor's calls to EC2, ECS and Auto Scaling that are refused when nobody asks for more."""
CODES = {"ec2": "RequestLimitExceeded", "autoscaling": "Throttling"}
"""What the services call it (their API references, "Common errors"); ECS and most others say ThrottlingException."""


class Throttle:
    """Turns away the Lambdas' calls. The ECS agent's own and the operator's are not on trial."""

    def __init__(self, world: World, control: Control) -> None:
        self._dice = random.Random(f"{world.seed} throttle")  # noqa: S311
        self._rate = USUAL_RATE
        control.offer("chaos/throttle", self.set_rate)

    def set_rate(self, rate: float) -> float:
        """Refuse this share of calls from now on. Returns the old rate."""
        if not 0 <= rate < 1:
            raise ValueError(f"rate is a share from 0 to less than 1, not {rate}")
        old, self._rate = self._rate, rate
        return old

    def check(self, service: str, call: Call) -> None:
        """Raise Fault when this call is one too many."""
        on_trial = ":assumed-role/" in call.caller and "/i-" not in call.caller
        if on_trial and self._dice.random() < self._rate:
            raise Fault(CODES.get(service, "ThrottlingException"), "Rate exceeded")
