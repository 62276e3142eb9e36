"""How far a job has come: what is kept of it, when, and what the next attempt finds."""

import json
import tarfile
import time
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worker_make import NOON, until

from gpu_worker import checkpoint as rules
from gpu_worker.checkpoint import SAVING, Checkpoint, stop_at, tell
from gpu_worker.cloud import LostLease, Refused, Trouble
from gpu_worker.handover import READY, Doom, give_back_at
from gpu_worker.job import Job
from gpu_worker.lease import Lease

JOB = Job("j", "b", "k", "", "e", 1)
seconds = st.integers(0, 300).map(lambda count: timedelta(seconds=count))


class Store:
    def __init__(self):
        self.kept, self.error = [], None

    def keep_checkpoint(self, lease, packed):
        if self.error:
            raise self.error
        self.kept.append(packed.read_bytes())

    def fetch_checkpoint(self, lease, packed):
        if self.error:
            raise self.error
        packed.write_bytes(self.kept[-1])

    def forget_checkpoint(self, lease):
        self.kept = []


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def attempt(store, tmp_path):
    """Begins the next attempt at the job."""

    def attempt(number):
        scratch = tmp_path / str(number)
        scratch.mkdir()
        checkpoint = Checkpoint(store, Lease(JOB, "me", number, 0, NOON, bool(store.kept)), scratch)
        checkpoint.fetch()
        return checkpoint

    return attempt


def test_the_next_attempt_finds_what_the_last_one_left_and_no_more(attempt):
    first = attempt(1)
    assert not first.used
    (first.folder / "weights").mkdir()
    (first.folder / "weights/epoch-3").write_text("third")
    (first.folder / ".new").write_text("half")
    (first.folder / "link").symlink_to("/etc/passwd")
    assert first.used
    first.keep()

    second = attempt(2)
    assert [path.name for path in sorted(second.folder.rglob("*"))] == ["weights", "epoch-3"]
    (second.folder / "weights/epoch-3").unlink()
    (second.folder / "epoch-4").write_text("fourth")
    second.keep()
    assert [path.name for path in attempt(3).folder.rglob("*") if path.is_file()] == ["epoch-4"]


def test_it_is_stored_only_when_it_has_changed(attempt, store):
    first = attempt(1)
    first.keep()
    assert store.kept == []
    (first.folder / "a").write_text("1")
    first.keep()
    first.keep()
    assert len(store.kept) == 1
    second = attempt(2)
    second.keep()
    assert len(store.kept) == 1
    second.forget()
    assert store.kept == []


def test_it_is_kept_from_time_to_time_while_the_processor_works(attempt, store):
    first = attempt(1)
    with first.kept_every(timedelta(seconds=0.05)):
        (first.folder / "a").write_text("1")
        until(lambda: len(store.kept) == 1)
        (first.folder / "a").write_text("22")
        until(lambda: len(store.kept) == 2)
    (first.folder / "a").write_text("333")
    time.sleep(0.2)
    assert len(store.kept) == 2


@pytest.mark.parametrize("error", [Trouble("S3"), Refused("S3"), LostLease(), FileNotFoundError("it was just renamed")])
def test_what_goes_wrong_with_keeping_it_fails_no_job(attempt, store, error, capsys):
    first, store.error = attempt(1), error
    (first.folder / "a").write_text("1")
    first.try_to_keep()
    assert json.loads(capsys.readouterr().out)["event"] == "the checkpoint is not kept"
    store.error = None
    first.try_to_keep()
    assert len(store.kept) == 1


def test_one_that_is_gone_or_damaged_means_to_begin_anew(attempt, store):
    store.kept = [b"no tar"]
    assert not attempt(1).used
    store.error = Refused("S3 says 403 of what is not there")
    assert not attempt(2).used
    store.error = Trouble("this may pass, and must not cost hours of work")
    with pytest.raises(Trouble):
        attempt(3)


def test_one_that_would_leave_its_folder_is_not_unpacked(attempt, store, tmp_path):
    with tarfile.open(tmp_path / "evil", "w") as evil:
        evil.addfile(tarfile.TarInfo("../evil"))
    store.kept = [(tmp_path / "evil").read_bytes()]
    assert not attempt(1).used
    assert not (tmp_path / "1/evil").exists()


def test_one_that_is_too_large_is_not_kept(attempt, store, monkeypatch, capsys):
    monkeypatch.setattr(rules, "LARGEST", 3)
    first = attempt(1)
    (first.folder / "a").write_text("four")
    first.keep()
    assert store.kept == [] and "too large" in capsys.readouterr().out


@given(ran=seconds, left=seconds, eta=st.none() | seconds)
def test_a_processor_is_stopped_in_time_for_its_checkpoint_to_be_stored(ran, left, eta):
    doom = Doom(NOON, NOON + left)
    give_back = give_back_at(doom, NOON - ran, eta)
    stop = stop_at(doom, give_back)

    assert stop <= max(NOON, doom.deadline - READY)
    if give_back == NOON:
        assert stop <= NOON + SAVING


def test_a_processor_is_told_when_its_host_must_go(tmp_path):
    deadline = NOON + timedelta(seconds=120)
    tell(tmp_path / "deadline", Doom(NOON, deadline))

    assert datetime.fromisoformat(json.loads((tmp_path / "deadline").read_text())["deadline"]) == deadline
    tell(tmp_path / "gone/deadline", Doom(NOON, deadline))
