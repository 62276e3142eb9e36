"""What passes write down: notes on the fleet for each other, and what was taken for the market."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lambdas_make import NOON, instance

from capacity.notes import AMPLE_SINCE, BAD, ON_DEMAND_TOOK, SHORT_SINCE, WAVES, WORKED, moment, read, written
from capacity.nouns import Bad, Notes, Wave
from capacity.pools import MOST_TAKEN, Taken, by_pool, with_taken
from templates.fleet import FLEET_NOTES

seconds = st.integers(1_700_000_000, 2_000_000_000).map(lambda at: datetime.fromtimestamp(at, UTC))
machines = st.integers(0, 16**17 - 1).map(lambda n: f"i-{n:017x}")
bad = st.tuples(*[st.lists(st.builds(Bad, machines, st.just(spot), seconds), max_size=3) for spot in (True, False)])
all_notes = st.builds(
    Notes,
    short_since=st.none() | seconds,
    ample_since=st.none() | seconds,
    waves=st.lists(st.builds(Wave, seconds, st.integers(1, 100).map(lambda n: n / 100)), max_size=15).map(tuple),
    worked=st.integers(0, 10_000),
    on_demand_took=st.none() | st.integers(0, 3600).map(lambda s: timedelta(seconds=s)),
    bad=bad.map(lambda kinds: (*kinds[0], *kinds[1])),
)


@given(all_notes)
def test_what_is_written_is_read_again(notes):
    tags = written(notes)

    assert read(tags) == notes
    assert all(0 < len(value) <= 256 for value in tags.values())


def test_the_tags_can_be_read_by_people():
    notes = Notes(short_since=NOON, waves=(Wave(NOON, 0.5), Wave(NOON + timedelta(minutes=5), 1.0)))

    assert written(notes) == {
        "spindrift:short-since": "2024-05-01T12:00:00+00:00",
        "spindrift:waves": "1714564800=0.5 1714565100=1",
    }
    assert written(Notes(ample_since=NOON)) == {"spindrift:ample-since": "2024-05-01T12:00:00+00:00"}
    assert written(Notes(worked=12, on_demand_took=timedelta(seconds=95.6))) == {
        "spindrift:worked": "12",
        "spindrift:on-demand-took": "96",
    }
    assert written(Notes(bad=(Bad("i-1", True, NOON), Bad("i-2", False, NOON)))) == {
        "spindrift:bad": "i-1=spot=1714564800 i-2=on-demand=1714564800"
    }
    assert written(Notes()) == {}


def test_the_function_may_write_all_of_it_and_nothing_else():
    everything = Notes(
        short_since=NOON,
        ample_since=NOON,
        waves=(Wave(NOON, 1.0),),
        worked=1,
        on_demand_took=timedelta(minutes=1),
        bad=(Bad("i-1", True, NOON),),
    )

    assert sorted(written(everything)) == sorted(FLEET_NOTES)


@pytest.mark.parametrize(
    "tags",
    [{}, {SHORT_SINCE: "yesterday"}, {AMPLE_SINCE: "2024-05-01T12:00:00"}, {WAVES: "1=2=3"}, {WAVES: "now=0.5"},
     {WAVES: "99999999999999999999=0.5"}, {WAVES: "1714564800=half"}, {WORKED: "-1"}, {WORKED: "many"}, {WORKED: "1000000000"}, {ON_DEMAND_TOOK: "1.5"},
     {ON_DEMAND_TOOK: "999999999999"}, {BAD: "i-1"}, {BAD: "i-1=spare=1714564800"}, {BAD: "i-1=spot=soon"}, {BAD: "i-1=spot=99999999999999999999"}],
)  # fmt: skip
def test_what_makes_no_sense_is_no_note(tags):
    assert read(tags) == Notes()


def test_a_number_has_nine_digits_at_most():
    assert read({WORKED: "999999999"}).worked == 999_999_999
    assert read({WORKED: "1000000000"}).worked == 0


def test_a_moment_has_its_time_zone():
    assert moment("2024-05-01T14:00:00+02:00") == NOON
    assert moment("2024-05-01T14:00:00+02:00").tzinfo == timezone(timedelta(hours=2))
    assert moment("2024-05-01") is None


def test_instances_are_told_by_their_pool():
    taken = [instance("i-1", pool="a/x"), instance("i-2", pool="b/x"), instance("i-3", pool="a/x")]

    assert by_pool(taken) == {"a/x": ["i-1", "i-3"], "b/x": ["i-2"]}


def test_each_instance_is_taken_once_and_the_latest_comes_last():
    first = with_taken({}, ["i-2", "i-1"], NOON)
    assert first == Taken([1714564800, 1714564800], ["i-1", "i-2"])

    row = {"taken": first.taken, "taken_ids": first.ids, "state": "open"}
    assert with_taken(row, ["i-1", "i-2"], NOON + timedelta(minutes=1)) is None
    assert with_taken(row, ["i-1", "i-3"], NOON + timedelta(minutes=1)) == Taken(
        [1714564800, 1714564800, 1714564860], ["i-1", "i-2", "i-3"]
    )


def test_only_the_latest_are_kept():
    row = {"taken": list(range(MOST_TAKEN)), "taken_ids": [f"i-{n}" for n in range(MOST_TAKEN)]}

    kept = with_taken(row, ["i-new"], NOON)

    assert (kept.taken[0], kept.taken[-1], len(kept.taken)) == (1, 1714564800, MOST_TAKEN)
    assert (kept.ids[0], kept.ids[-1], len(kept.ids)) == ("i-1", "i-new", MOST_TAKEN)


def test_of_very_many_at_once_those_noted_first_stay():
    many = [f"i-{n:03}" for n in range(500)]
    first = with_taken({}, many, NOON)
    assert first == Taken([1714564800] * MOST_TAKEN, many[:MOST_TAKEN])

    row = {"taken": first.taken, "taken_ids": first.ids}
    assert with_taken(row, many, NOON + timedelta(minutes=1)) is None
    later = with_taken(row, many[5:], NOON + timedelta(minutes=1))
    assert later.taken == [1714564800] * 15 + [1714564860] * 5
