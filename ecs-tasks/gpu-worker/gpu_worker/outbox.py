"""Messages that have done their duty are deleted ten at a time, as SQS charges by the call."""

from __future__ import annotations

import time
from queue import Empty, SimpleQueue
from threading import Thread

from gpu_worker.cloud import Cloud, CloudError, Message
from gpu_worker.intake import BATCH
from gpu_worker.log import log

LONGEST_WAIT = 1.0
"""Seconds for which a message waits for others, much less than it stays hidden. One that is never deleted comes again,
and finds its job over."""


class Outbox:
    """A thread that deletes what it is given."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._due: SimpleQueue[Message | None] = SimpleQueue()
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def delete(self, message: Message) -> None:
        """Delete the message within `LONGEST_WAIT`."""
        self._due.put(message)

    def close(self) -> None:
        """Delete what is left, now."""
        self._due.put(None)
        self._thread.join()

    def _run(self) -> None:
        open_ = True
        while open_:
            batch, open_ = self._batch()
            try:
                if batch:
                    self._cloud.delete(batch)
            except CloudError as error:
                log("trouble", error=str(error))

    def _batch(self) -> tuple[list[Message], bool]:
        """The next messages to delete together, and whether there may be more."""
        batch: list[Message] = []
        ends = None
        while len(batch) < BATCH:
            try:
                message = self._due.get(timeout=ends and max(0, ends - time.monotonic()))
            except Empty:
                break
            if message is None:
                return batch, False
            batch.append(message)
            ends = ends or time.monotonic() + LONGEST_WAIT
        return batch, True
