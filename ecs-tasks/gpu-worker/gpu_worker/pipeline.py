"""The worker: takes messages, has each carried through by a thread of its own, and leaves nothing in hand.

One job is downloaded while another is processed and a third stored (carrier.py). How many are in hand is bounded by
what can begin soon. The main thread keeps their leases, decides when a job must be given back, and gives it back at any
moment, whatever its own thread is stuck in.

The two may contradict each other, and the job's record decides: each write asks for the same owner and attempt, so of a
release and a finish one wins and the other hears of it. The record is always written first and the message changed
last: what dies in between leaves a message that finds out, and never a job without one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from threading import Lock, Thread

from gpu_worker import health
from gpu_worker.carrier import AGAIN, Carrier
from gpu_worker.checkpoint import stop_at, tell
from gpu_worker.cloud import Cloud, CloudError, LostLease
from gpu_worker.handover import LAST_CALL, Doom, give_back_at
from gpu_worker.held import Held
from gpu_worker.host import Host, Protection
from gpu_worker.intake import NOW, free_in, to_take
from gpu_worker.lanes import Lanes
from gpu_worker.lease import renew_at
from gpu_worker.log import log
from gpu_worker.metrics import embedded
from gpu_worker.outbox import Outbox
from gpu_worker.settings import Settings

TICK = 0.05
"""Seconds between two looks at the clock and the notice file."""

ASK_EVERY = timedelta(seconds=30)
"""Between two questions whether the host is being drained: ECS answers some twenty a second for the whole account."""

PATIENCE = timedelta(seconds=30)
"""A job that waits so long behind another is given back: some other worker may have a processor for it."""


def in_a_thread(work: Callable[[], None]) -> None:
    """Start the work; nobody waits for it when the worker leaves."""
    Thread(target=work, daemon=True).start()


class Worker:
    """Takes jobs until it is told to go."""

    def __init__(
        self,
        settings: Settings,
        cloud: Cloud,
        host: Host,
        lanes: Lanes,
        carrier: Carrier,
        protection: Protection,
        now: Callable[[], datetime],
        start: Callable[[Callable[[], None]], None] = in_a_thread,
    ) -> None:
        self._settings = settings
        self._cloud = cloud
        self._host = host
        self._lanes = lanes
        self._protection = protection
        self._now = now
        self._start = start
        self._carrier = carrier
        self._outbox = Outbox(cloud)
        self._lock = Lock()
        self._hands: set[Held] = set()
        self._receiving = False
        self._idle = False
        self._drained = False
        self._asked: datetime | None = None

    def run(self) -> None:
        """Work until SIGTERM or a notice; then finish what fits, and leave nothing in hand."""
        self._host.pulse()
        while not self._host.doom(self._now()):
            rests = self._rests()
            self._keep()
            if not (rests or self._receiving):
                self._take()
            self._host.pause(TICK)
        while self._receiving or self._in_hand():
            self._keep()
            self._host.pause(TICK)
        log("leaving")
        self._outbox.close()
        self._lanes.close()
        self._protection.drop()

    def _rests(self) -> bool:
        """Whether the host is being drained though nobody takes it: then what was begun here is the last.

        ECS leaves a protected task alone, and this one is protected as long as it finds work. Not knowing is no reason
        to stop.
        """
        host, now = self._host.may_be_drained(), self._now()
        if host and (self._asked is None or now - self._asked >= ASK_EVERY):
            self._asked = now
            try:
                drained = self._cloud.draining(host)
            except CloudError as error:
                log("trouble", error=str(error))
            else:
                if drained != self._drained:
                    log("resting" if drained else "needed again", host=host)
                self._drained = drained
        return self._drained

    def _take(self) -> None:
        """Ask for as many messages as can begin soon, beside everything else."""
        hands, now = self._in_hand(), self._now()
        eta = self._carrier.pace.eta(0)
        frees = [free_in(now - (held.began or now), self._carrier.eta(held)) for held in self._lanes.working()]
        frees += [NOW] * (self._lanes.count - len(frees))
        waiting, storing = sum(held.began is None for held in hands), sum(held.ended is not None for held in hands)
        if most := to_take(frees, eta, waiting, storing, self._settings.batch):
            self._receiving = True
            self._start(lambda: self._receive(most))

    def _keep(self) -> None:
        """Give back what must be, extend the leases of the rest; be protected while there is something to protect."""
        self._host.pulse()
        hands, now = [held for held in self._in_hand() if not held.gone], self._now()
        if self._lanes.unfit:
            self._host.stop(now)
        doom = self._host.doom(now)
        try:
            if leaving := [held for held in hands if self._must_go(held, doom, now)]:
                self._give_back(leaving)
            if due := [held for held in hands if not held.gone and now >= held.renew_at]:
                self._renew(due, now)
        except CloudError as error:
            log("trouble", error=str(error))
            self._host.pause(AGAIN.total_seconds())
        self._lanes.clear()
        if measured := self._carrier.tally.due(now, health.busy()):
            log("minute", **embedded(self._settings.stack, self._settings.queue, measured, now))
        if hands:
            self._protection.hold(now)
        elif self._idle or self._drained:
            self._protection.drop()  # so that ECS may stop this task, as it does the others of a draining host

    def _must_go(self, held: Held, doom: Doom | None, now: datetime) -> bool:
        if held.began is None and (self._drained or (held.waits and now - held.waits > PATIENCE)):
            return True
        if doom is None:
            return False
        if held.deadline_file and not held.deadline_file.exists():
            tell(held.deadline_file, doom)
        at = give_back_at(doom, held.began, self._carrier.eta(held))
        if held.began and held.checkpoint and held.checkpoint.used:  # its own thread keeps that and releases the job
            held.stopped |= now >= stop_at(doom, at)
            at = doom.deadline - LAST_CALL
        return now >= at

    def _give_back(self, leaving: Sequence[Held]) -> None:
        """Release the jobs, then show their messages to others. Raises CloudError for the last that would not go."""
        back, trouble = [], None
        for held in leaving:
            self._host.pulse()
            lease = held.let_go()
            try:
                if lease:
                    self._cloud.release(lease, self._carrier.spent(held))
                    self._carrier.released(lease)
                back.append(held.message)
                held.gone = True
            except LostLease:
                held.gone = True  # it ended this very moment, or is another's
            except CloudError as error:
                trouble = error
        self._cloud.hide(back, NOW)
        if trouble:
            raise trouble

    def _renew(self, due: Sequence[Held], now: datetime) -> None:
        """Heartbeat: the records first, then their messages. Raises CloudError for the last that would not."""
        kept, trouble = [], None
        for held in due:
            self._host.pulse()
            lease = held.lease
            try:
                if lease:
                    self._cloud.extend(lease, now)
                kept.append(held)
            except LostLease:
                if lease and held.lease is lease:
                    held.gone = True
                    log("lost the lease", job_id=lease.job.job_id)
            except CloudError as error:
                trouble = error
        self._cloud.hide([held.message for held in kept], self._settings.lease)
        for held in kept:
            held.renew_at = renew_at(now, self._settings.lease)
        if trouble:
            raise trouble

    def _in_hand(self) -> list[Held]:
        with self._lock:
            return list(self._hands)

    # A thread for each receive, and one for each message.

    def _receive(self, most: int) -> None:
        try:
            asked = self._now()
            messages = self._cloud.receive(most)
            self._idle = not messages
            if messages and (self._drained or self._host.doom(self._now())):
                self._cloud.hide(messages, NOW)
                return
            for message in messages:
                held = Held(message, renew_at(asked, self._settings.lease))
                with self._lock:
                    self._hands.add(held)
                self._start(partial(self._carry, held))
        except CloudError as error:
            log("trouble", error=str(error))
            self._host.pause(AGAIN.total_seconds())
        finally:
            self._receiving = False

    def _carry(self, held: Held) -> None:
        try:
            if self._carrier.carry(held):
                self._outbox.delete(held.message)
        finally:
            with self._lock:
                self._hands.discard(held)
