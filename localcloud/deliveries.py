"""Messages as AWS delivers them: at least once and in no order, seeded. Knows ministack's names."""

from __future__ import annotations

import asyncio
import functools
import random
import threading
import time
from collections.abc import Callable
from typing import Any

from ministack.services import eventbridge, s3, sns, sqs

from localcloud.control import Control
from localcloud.world import World

USUAL_RATE = 0.02
"""Share of messages that come twice when nobody asks for more: AWS says "on rare occasions"; here it must be seen."""
LATE_SECONDS = 1.0
"""A second copy comes up to so much after the first: while the first is worked on, or after it was deleted."""
CHANGES_QUEUES = (
    (sqs, ("_act_send_message", "_collect_msgs", "_dlq_sweep", "_expire_retained")),
    (sns, ("_deliver_to_sqs",)),
    (s3, ("_deliver_event_to_sqs",)),
    (eventbridge, ("_dispatch_to_sqs",)),
)


class Deliveries:
    """Every SQS queue and every SNS publication to one of them."""

    def __init__(self, world: World) -> None:
        self._dice = random.Random(f"{world.seed} deliveries")  # noqa: S311
        self._rate = USUAL_RATE

    def install(self, control: Control) -> None:
        """Put the queues behind one lock, and chance in their way."""
        corrections = {"DeleteMessage": _forgiving_delete, "ChangeMessageVisibility": _hide_in_flight_only}
        for action, corrected in corrections.items():
            single = sqs._HANDLERS[action] = corrected(sqs._HANDLERS[action])
            sqs._HANDLERS[f"{action}Batch"] = _one_by_one(action, single)
        self._lock_queues()
        sqs._collect_msgs = self._out_of_order_and_twice(sqs._collect_msgs)
        sns._deliver_to_sqs = self._published_twice(sns._deliver_to_sqs)
        control.offer("chaos/duplicates", self.duplicate)

    def duplicate(self, rate: float) -> float:
        """Deliver this share of messages and publications twice from now on (1.0: every one). Returns the old rate."""
        if not 0 <= rate <= 1:
            raise ValueError(f"rate is a share from 0 to 1, not {rate}")
        old, self._rate = self._rate, rate
        return old

    def _lock_queues(self) -> None:
        # A queue is a list that deletes rebuild and sends append to, on several threads: what is appended to the old
        # list while the new one is made would be lost, and the loss taken for the product's.
        lock = sqs._queues_lock = threading.RLock()

        def locked(function: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(function)
            def alone(*arguments: Any, **keywords: Any) -> Any:
                with lock:
                    return function(*arguments, **keywords)

            return alone

        for action, handler in sqs._HANDLERS.items():
            if not asyncio.iscoroutinefunction(handler):
                sqs._HANDLERS[action] = locked(handler)
        for module, names in CHANGES_QUEUES:
            for name in names:
                setattr(module, name, locked(getattr(module, name)))

    def _out_of_order_and_twice(self, collect: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(collect)
        def collected(queue: dict[str, Any], most: int, hidden_seconds: int) -> list[dict[str, Any]]:
            if queue["is_fifo"]:
                return list(collect(queue, most, hidden_seconds))
            with sqs._queues_lock:
                messages = queue["messages"]
                # Neighbours change places: a standard queue is ordered roughly, not shuffled.
                for place in range(len(messages) - 1):
                    if self._dice.random() < 1 / 2:
                        messages[place], messages[place + 1] = messages[place + 1], messages[place]
                taken: list[dict[str, Any]] = collect(queue, most, hidden_seconds)
                for message in taken:
                    if not message.get("spindrift_seen") and self._dice.random() < self._rate:
                        messages.append(self._copy(message))
                    message["spindrift_seen"] = True
                return taken

        return collected

    def _copy(self, message: dict[str, Any]) -> dict[str, Any]:
        later = {"visible_at": time.time() + self._dice.uniform(0, LATE_SECONDS), "receipt_handle": None}
        return {**message, **later, "receive_count": 0, "spindrift_seen": True}

    def _published_twice(self, deliver: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(deliver)
        def delivered(*arguments: Any, **keywords: Any) -> None:
            for _ in range(1 + (self._dice.random() < self._rate)):
                deliver(*arguments, **keywords)

        return delivered


def _one_by_one(action: str, single: Callable[..., Any]) -> Callable[..., Any]:
    """The batch form of an action: the same for each entry, each with a result of its own (API reference)."""

    def batch(data: dict[str, Any], url: str) -> dict[str, Any]:
        url, entries = data.get("QueueUrl", url), data.get("Entries", [])
        sqs._get_q(url, f"sqs:{action}")
        sqs._validate_batch_entries(entries, f"{action}BatchRequestEntry")
        done, failed = [], []
        for entry in entries:
            try:
                single({**entry, "QueueUrl": url}, url)
                done.append({"Id": entry["Id"]})
            except sqs._Err as error:
                told = {"Code": error.code, "Message": error.message, "SenderFault": True}
                failed.append({"Id": entry["Id"], **told})
        return {"Successful": done, "Failed": failed}

    return batch


def _forgiving_delete(delete: Callable[..., Any]) -> Callable[..., Any]:
    """With the receipt of an earlier receive the request succeeds and deletes nothing (API reference)."""

    @functools.wraps(delete)
    def deleted(data: dict[str, Any], url: str) -> dict[str, Any]:
        try:
            return dict(delete(data, url))
        except sqs._Err as error:
            if error.code != "ReceiptHandleIsInvalid":
                raise
            return {}

    return deleted


def _hide_in_flight_only(change: Callable[..., Any]) -> Callable[..., Any]:
    """A message that can be seen again is left alone; one that is gone, or another's by now, is an invalid parameter.

    The first as LocalStack measured on AWS (pull request 9632), the second as AWS's users report it.
    """

    @functools.wraps(change)
    def changed(data: dict[str, Any], url: str) -> dict[str, Any]:
        receipt, now = data["ReceiptHandle"], time.time()
        for message in sqs._get_q(data.get("QueueUrl", url))["messages"]:
            if message["receipt_handle"] == receipt:
                return {} if message["visible_at"] <= now else dict(change(data, url))
        raise sqs._Err(
            "InvalidParameterValue",
            f"Value {receipt} for parameter ReceiptHandle is invalid. Reason: Message does not exist or is not "
            "available for visibility timeout change.",
        )

    return changed
