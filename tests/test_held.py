"""What the threads of a worker know of a job in hand: how long it was worked on, and who has to release it."""

from datetime import UTC, datetime, timedelta

import pytest

from gpu_worker.cloud import Message
from gpu_worker.held import Held

NOON = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)


def at(count):
    return NOON + timedelta(seconds=count)


@pytest.fixture
def held():
    return Held(Message("", "", NOON), NOON)


def worked(held, when):
    return held.worked(at(when)).total_seconds()


def test_a_job_without_a_processor_was_not_worked_on(held):
    assert worked(held, 9) == 0


def test_a_job_was_worked_on_for_as_long_as_it_had_a_processor(held):
    held.begins((held,), at(10))
    assert worked(held, 13) == 3

    held.ended = at(15)
    assert worked(held, 99) == 5


def test_of_a_processor_s_time_each_that_has_it_has_its_share_also_where_it_came_to_nothing(held):
    mates = (held, Held(Message("", "", NOON), NOON))
    held.begins(mates, at(0))
    assert worked(held, 6) == 3

    held.begins_again(at(8))
    assert (held.waits, held.began, held.ended, held.mates, worked(held, 20)) == (at(8), None, None, (), 4)
    held.begins((held,), at(20))
    assert worked(held, 21) == 5


def test_of_the_next_job_of_a_message_nothing_is_known(held):
    fresh = Held(held.message, held.renew_at)
    held.lease = held.checkpoint = held.deadline_file = object()
    held.begins((held, fresh), at(0))
    held.begins_again(at(8))
    held.begins((held,), at(10))
    held.ended = at(11)

    held.next_job()

    known = ("lease", "waits", "began", "ended", "mates", "in_vain", "checkpoint", "deadline_file")
    assert [getattr(held, name) for name in known] == [getattr(fresh, name) for name in known]


def test_a_job_that_is_claimed_goes_back_before_its_message_does(held):
    lease = object()

    assert held.claimed(lease)
    assert held.let_go() is lease
    assert not held.gone  # until it is released


def test_a_message_goes_at_once_and_whoever_claims_its_job_afterwards_has_to_release_it(held):
    lease = object()

    assert held.let_go() is None
    assert held.gone
    assert not held.claimed(lease)
    assert held.lease is lease
