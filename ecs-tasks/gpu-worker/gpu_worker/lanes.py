"""The processors of a worker: so many jobs are worked on at once, first come, first served.

Where a processor works on several jobs together, it gets those that wait when it is free, and nobody waits for more to
come. If they cannot be done together, each is done alone: so only the one that is to blame fails.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil
from threading import Condition

from gpu_worker.held import GivenBack, Held
from gpu_worker.outcome import DONE, NOT_NOW, Outcome
from gpu_worker.processor import BadProcessor, Processor, Request


@dataclass(eq=False)
class Turn:
    """A job in the line, and how it went."""

    held: Held
    request: Request
    alone: bool
    outcome: Outcome | None = None
    again: bool = False
    """It was tried with others."""


class Lanes:
    """One lane for each processor, and a line of jobs before them. `batch` jobs at most are worked on together."""

    def __init__(
        self,
        processors: Sequence[Processor],
        launch: Callable[[], Processor],
        now: Callable[[], datetime],
        batch: int = 1,
    ) -> None:
        self.count = len(processors)
        self.unfit = False
        """A processor that started when this worker did would not start again: no job is to blame, and none will go."""
        self._launch = launch
        self._now = now
        self._batch = batch
        self._idle: list[Processor | None] = list(processors)
        self._busy: dict[Processor, list[Turn]] = {}
        self._line: deque[Turn] = deque()
        self._only: Held | None = None
        self._changed = Condition()

    def work(self, held: Held, request: Request, limit: timedelta, *, alone: bool) -> Outcome:
        """Have a processor work on it for at most `limit`. Raises GivenBack if the job goes while it waits for one.

        What it waits for may be done by the thread of another job that is worked on with it.
        """
        turn = Turn(held, request, alone)
        with self._changed:
            self._line.append(turn)
        while turn.outcome is None:
            if begun := self._begin(turn):
                self._lead(*begun, limit)
        return turn.outcome

    @contextmanager
    def alone(self, held: Held) -> Iterator[None]:
        """Let no other job be worked on meanwhile. Raises GivenBack if the job goes while it waits for that."""
        with self._changed:
            self._changed.wait_for(lambda: held.gone or self._only is None)
            if held.gone:
                raise GivenBack
            self._only = held
        try:
            with self._changed:
                self._changed.wait_for(lambda: held.gone or not self._busy)
            if held.gone:
                raise GivenBack
            yield
        finally:
            with self._changed:
                self._only = None
                self._changed.notify_all()

    def working(self) -> list[Held]:
        """A job of each processor that is at work; it has its mates."""
        with self._changed:
            return [turns[0].held for turns in self._busy.values()]

    def clear(self) -> None:
        """Stop the work on jobs that are gone or to go. To be repeated: one may be on its way into its processor."""
        with self._changed:
            for processor, turns in self._busy.items():
                if _is_to_end(turns):
                    processor.kill()
            self._changed.notify_all()

    def close(self) -> None:
        """End every processor."""
        with self._changed:
            for processor in (*self._idle, *self._busy):
                if processor:
                    processor.kill()

    def _begin(self, turn: Turn) -> tuple[Processor, list[Turn]] | None:
        """Wait for a processor, for this job and those that are worked on with it; None if another thread has had it
        done, or tried to. Raises GivenBack.
        """
        with self._changed:
            self._changed.wait_for(lambda: turn.outcome or (turn in self._line and self._is_up(turn)))
            if turn.outcome:
                return None
            self._line.remove(turn)
            if turn.held.gone:
                self._changed.notify_all()
                raise GivenBack
            turns = [turn, *self._mates(turn)]
            processor = self._idle[-1] or self._launch()
            self._idle.pop()
            for mate in turns[1:]:
                self._line.remove(mate)
            for each in turns:
                each.held.begins(tuple(one.held for one in turns), self._now())
            self._busy[processor] = turns
            self._changed.notify_all()
            return processor, turns

    def _is_up(self, turn: Turn) -> bool:
        if turn.held.gone:
            return True
        return bool(self._idle) and (self._only is turn.held or (self._only is None and self._line[0] is turn))

    def _mates(self, turn: Turn) -> list[Turn]:
        """Those that wait behind it and are worked on with it, a fair share for each idle processor."""
        if turn.alone or self._only is turn.held:
            return []
        others = [each for each in self._line if not (each.alone or each.held.gone)]
        share = ceil((1 + len(others)) / len(self._idle))
        return others[: min(self._batch, share) - 1]

    def _lead(self, processor: Processor, turns: list[Turn], limit: timedelta) -> None:
        """Have it work on these jobs. What goes wrong with several is to be tried with each alone."""
        try:
            if turns[0].again:
                turns[0].request.clean()
            outcome = processor.run_together([each.request for each in turns], limit)
        except BadProcessor as error:
            outcome = Outcome(NOT_NOW, f"the processor would not start: {error}")
            self.unfit = self.unfit or not _is_to_end(turns)  # or it was killed while it loaded
        except Exception as error:  # noqa: BLE001 (the others' threads wait for an outcome)
            outcome = Outcome(1, f"{type(error).__name__}: {error}")
        with self._changed:
            del self._busy[processor]
            ended = _is_to_end(turns)
            if ended:  # its child is killed or about to be, and must not be mistaken for the next job's
                processor.kill()
            self._idle.append(None if ended else processor)
            for each in reversed(turns):
                each.held.ended = self._now()
                if outcome.code == DONE or len(turns) == 1 or each.held.stopped:
                    each.outcome = outcome
                else:
                    each.alone = each.again = True
                    each.held.begins_again(self._now())
                    self._line.appendleft(each)
            self._changed.notify_all()


def _is_to_end(turns: Sequence[Turn]) -> bool:
    return any(each.held.gone or each.held.stopped for each in turns)
