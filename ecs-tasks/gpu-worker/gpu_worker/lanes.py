"""The processors of a worker: so many jobs are worked on at once, first come, first served."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Condition

from gpu_worker.held import GivenBack, Held
from gpu_worker.processor import Processor


class Lanes:
    """One lane for each processor, and a line of jobs before them."""

    def __init__(self, processors: Sequence[Processor], launch: Callable[[], Processor]) -> None:
        self.count = len(processors)
        self._launch = launch
        self._idle: list[Processor | None] = list(processors)
        self._busy: dict[Held, Processor] = {}
        self._line: deque[Held] = deque()
        self._only: Held | None = None
        self._changed = Condition()

    @contextmanager
    def lane(self, held: Held) -> Iterator[Processor]:
        """Wait for a processor and have it. Raises GivenBack if the job goes while it waits."""
        with self._changed:
            self._line.append(held)
            self._changed.wait_for(lambda: held.gone or (self._idle and self._turn_of(held)))
            self._line.remove(held)
            self._changed.notify_all()
            if held.gone:
                raise GivenBack
            processor = self._idle.pop() or self._launch()
            self._busy[held] = processor
        try:
            yield processor
        finally:
            self._leave(held, processor)

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
        """The jobs that have a processor."""
        with self._changed:
            return list(self._busy)

    def clear(self) -> None:
        """Stop the work on jobs that are gone or to go. To be repeated: one may be on its way into its processor."""
        with self._changed:
            for held, processor in self._busy.items():
                if held.gone or held.stopped:
                    processor.kill()
            self._changed.notify_all()

    def close(self) -> None:
        """End every processor."""
        with self._changed:
            for processor in (*self._idle, *self._busy.values()):
                if processor:
                    processor.kill()

    def _turn_of(self, held: Held) -> bool:
        return self._only is held or (self._only is None and self._line[0] is held)

    def _leave(self, held: Held, processor: Processor) -> None:
        with self._changed:
            del self._busy[held]
            ended = held.gone or held.stopped
            if ended:  # its child is killed or about to be, and must not be mistaken for the next job's
                processor.kill()
            self._idle.append(None if ended else processor)
            self._changed.notify_all()
