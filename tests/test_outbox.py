"""Messages are deleted by tens, soon, and none is forgotten at the end."""

import time
from datetime import UTC, datetime

from worker_make import until

from gpu_worker.cloud import Message, Trouble
from gpu_worker.outbox import LONGEST_WAIT, Outbox

NOON = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)


class Queue:
    def __init__(self):
        self.batches, self.fails, self.refused = [], False, 0

    def delete(self, messages):
        if self.fails:
            self.refused += 1
            raise Trouble("delete: Throttled")
        self.batches.append([each.body for each in messages])


def messages(count):
    return [Message(str(n), f"receipt {n}", NOON) for n in range(count)]


def test_many_messages_go_by_tens_and_the_rest_when_it_closes():
    queue = Queue()
    outbox = Outbox(queue)
    for each in messages(25):
        outbox.delete(each)
    begin = time.monotonic()
    outbox.close()

    assert [len(batch) for batch in queue.batches] == [10, 10, 5]
    assert [each for batch in queue.batches for each in batch] == [str(n) for n in range(25)]
    assert time.monotonic() - begin < LONGEST_WAIT / 2


def test_a_single_message_does_not_wait_for_nine_others():
    queue = Queue()
    outbox = Outbox(queue)
    [only] = messages(1)
    outbox.delete(only)

    until(lambda: queue.batches == [["0"]], LONGEST_WAIT + 2)
    outbox.close()


def test_a_delete_that_fails_holds_up_no_other():
    queue = Queue()
    outbox = Outbox(queue)
    queue.fails = True
    for each in messages(10):
        outbox.delete(each)
    until(lambda: queue.refused)
    queue.fails = False
    outbox.delete(messages(1)[0])
    outbox.close()

    assert queue.batches == [["0"]]
