"""The dull loop: ask, tell, pause. Time and pause come from outside."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Callable, NoReturn

from agent.journal import record
from agent.metadata import Metadata
from agent.notice import Instance, Notice, Trouble, instance_from, interruption_from, rebalance_from
from agent.publish import HostDir

EVERY = 1.0
"""Seconds between two looks."""
BLIND_AFTER = 60.0
"""Seconds of unbroken trouble with one question, after which a new process may see better."""
REGISTRATION_EVERY = 5.0
"""Seconds between two questions to an ECS agent that does not know its container instance yet."""


class Blind(Exception):
    """The metadata service has not answered one of our questions for too long."""


class Watcher:
    """What one run has seen. `send` must return at once: an SNS out of reach may not delay the next look."""

    def __init__(
        self, metadata: Metadata, host: HostDir, send: Callable[[Notice], None], now: Callable[[], datetime]
    ) -> None:
        self._metadata = metadata
        self._host = host
        self._send = send
        self._now = now
        self._instance: Instance | None = None
        self._register_at = float("-inf")
        self._heard: set[str] = set()
        self._trouble: dict[str, tuple[float, str]] = {}

    def resume(self) -> None:
        """Take up what an earlier run wrote: its notices are not news, its unpublished ones are sent."""
        published = self._host.published()
        for notice in self._host.notices():
            self._heard.add(notice.identity)
            if notice.identity not in published:
                record("resumed", notice=notice.identity)
                self._send(notice)

    def turn(self, at: float) -> None:
        """Ask everything once, at monotonic second `at`. Trouble with one question never silences another."""
        self._ask("identity", at, self._learn)
        self._register(at)
        if self._instance:
            self._ask("interruption", at, partial(self._interruption, self._instance))
            self._ask("rebalance", at, partial(self._rebalance, self._instance))

    def _ask(self, question: str, at: float, step: Callable[[], None]) -> None:
        try:
            step()
        except Trouble as trouble:
            since, known = self._trouble.get(question, (at, ""))
            if str(trouble) != known:
                record("trouble", question=question, why=str(trouble))
            self._trouble[question] = since, str(trouble)
            if at - since >= BLIND_AFTER:
                raise Blind(f"{question}: {trouble}") from trouble
        else:
            if question in self._trouble:
                since, _ = self._trouble.pop(question)
                record("trouble-over", question=question, seconds=round(at - since, 1))

    def _learn(self) -> None:
        if self._instance is None:
            self._instance = instance_from(self._metadata.identity(), self._metadata.life_cycle())
            self._host.write_instance(self._instance)
            record("watching", **self._instance.to_json())

    def _register(self, at: float) -> None:
        """Ask the ECS agent who we are to ECS; it may come up after us, or never, so its silence is no trouble."""
        if self._instance is None or self._instance.container_instance_arn or at < self._register_at:
            return
        self._register_at = at + REGISTRATION_EVERY
        registered = with_registration(self._instance, self._metadata)
        if registered != self._instance:
            self._instance = registered
            self._host.write_instance(registered)
            record("registered", cluster=registered.cluster, container_instance=registered.container_instance_arn)

    def _interruption(self, instance: Instance) -> None:
        body = self._metadata.interruption()
        if body is not None:
            self._hear(interruption_from(body, instance, self._now()))

    def _rebalance(self, instance: Instance) -> None:
        body = self._metadata.rebalance()
        if body is not None:
            self._hear(rebalance_from(body, instance))

    def _hear(self, notice: Notice) -> None:
        if notice.identity in self._heard:
            return
        self._heard.add(notice.identity)
        record("notice", **notice.to_json())
        self._host.write_notice(notice)  # first: the workers' seconds count, and this cannot fail to arrive
        self._send(notice)


def with_registration(instance: Instance, metadata: Metadata) -> Instance:
    """Return the instance with what the ECS agent knows now, which may be nothing."""
    try:
        cluster, arn = metadata.registration()
    except Trouble:
        return instance
    return replace(instance, cluster=cluster, container_instance_arn=arn)


def watch(watcher: Watcher, *, clock: Callable[[], float], pause: Callable[[float], None]) -> NoReturn:
    """Take a turn each second of the monotonic `clock`, however slow the answers. Ends only by raising Blind."""
    watcher.resume()
    due = clock()
    while True:
        watcher.turn(clock())
        due = max(due + EVERY, clock())
        pause(due - clock())
