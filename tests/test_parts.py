"""A job that several workers share ends exactly once, whatever comes late, twice, out of order or not at all."""

import json
from dataclasses import asdict
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from worker_make import NOON

from gpu_worker import parts, sharing, upload
from gpu_worker.cloud import LostLease
from gpu_worker.cost import NOTHING, Spent
from gpu_worker.job import Job, NotAJob
from gpu_worker.lease import Bury, Drop, Hide, Lease, when_refused
from gpu_worker.parts import Change, Join, Piece, Work, look, message, parts_of, read, record_of, stitch_of

WHOLE = Job("0" * 32, "uploads", "photos/large.png", "v1", "e1", 10_000)
PART = parts_of(WHOLE, 2, "results", [40, 50, 60])[1]
STITCH = stitch_of(PART)


def test_parts_are_jobs_of_their_own_that_know_their_whole():
    assert [part.job_id for part in parts_of(WHOLE, 2, "results", [1, 1])] == [f"{'0' * 32}-2-0000{n}" for n in (0, 1)]
    _, second, _ = parts_of(WHOLE, 2, "results", [40, 50, 60])
    assert second == Piece(f"{'0' * 32}-2-00001", "results", f".parts/{'0' * 32}/2/00001", "", "", 50, WHOLE, 2, 3, 1)
    assert stitch_of(second) == Piece(
        f"{'0' * 32}-2-stitch", "uploads", "photos/large.png", "", "", 10_000, WHOLE, 2, 3, None
    )
    assert parts.part_ids(STITCH) == [part.job_id for part in parts_of(WHOLE, 2, "results", [40, 50, 60])]


@pytest.mark.parametrize(
    "job, more", [(WHOLE, {}), (PART, {"parent": WHOLE.job_id}), (STITCH, {"parent": WHOLE.job_id})]
)
def test_the_record_of_a_piece_is_a_job_s_and_tells_of_its_whole(job, more):
    assert record_of(job, "default", NOON) == {**upload.record_of(job, "default", NOON), **more}


def test_what_becomes_of_a_piece_is_written_to_its_whole_of_the_same_round():
    waits = {"state": "SPLIT", "attempts": 2}
    over = {"finished": NOON.isoformat()}
    failed = {"state": "FAILED", **over}

    assert parts.counted(PART) == Change(WHOLE.job_id, waits, adds={"parts_done": 1})
    assert parts.joined(STITCH, ["a"], NOON) == Change(
        WHOLE.job_id, waits, {"state": "SUCCEEDED", "outputs": ["a"], **over}
    )
    for piece, reason in [(PART, "part 2 of 3: why"), (STITCH, "stitch: why")]:
        broken = parts.broken(piece, "why", NOON)
        assert broken == Change(WHOLE.job_id, waits, {**failed, "error": reason, "unburied": piece.job_id})


@pytest.mark.parametrize("job", [WHOLE, PART, STITCH], ids=["whole", "part", "stitch"])
def test_a_message_says_which_job_it_is_about(job):
    assert read(message(job)) == job


INF = float("inf")


@pytest.mark.parametrize(
    "change", [{"whole": 5}, {"whole": {}}, {"number": "x"}, {"round": None}, {"of": []}, {"of": INF}]
)
def test_a_piece_that_cannot_be_read_is_no_job(change):
    with pytest.raises(NotAJob, match=r"^the message (tells of a piece that cannot be read|is no spindrift\.job/1)$"):
        read(json.dumps(json.loads(message(PART)) | change))


def test_a_part_is_told_that_it_is_one_and_the_stitch_works_for_the_whole():
    told = PART.told_to_processor(3, {"o": 1})
    assert told == {
        "job_id": PART.job_id, "bucket": "results", "key": PART.key, "version": "", "etag": "", "size": 50,
        "attempt": 3, "options": {"o": 1}, "part": {"number": 1, "of": 3, "whole": asdict(WHOLE)},
    }  # fmt: skip
    assert STITCH.told_to_processor(3, {"o": 1}) == WHOLE.told_to_processor(3, {"o": 1})


@pytest.mark.parametrize(
    "case, piece, whole, expected",
    [
        ("at work", PART, {"state": "SPLIT", "parts_done": 1}, Work()),
        ("sent before the whole is split", PART, {"state": "RUNNING"}, Hide(timedelta(seconds=2))),
        ("all parts are counted: an echo", PART, {"state": "SPLIT", "parts_done": 3}, Join()),
        ("the stitch is awaited", STITCH, {"state": "SPLIT", "parts_done": 3}, Work()),
        ("another part failed", PART, {"state": "FAILED", "unburied": STITCH.job_id}, Drop(succeeded=False)),
        ("it was buried", PART, {"state": "FAILED"}, Drop(succeeded=False)),
        (
            "it failed, and its worker died before the whole was buried",
            PART,
            {"state": "FAILED", "unburied": PART.job_id, "error": "part 2 of 3: why"},
            Bury("part 2 of 3: why"),
        ),
        ("over", STITCH, {"state": "SUCCEEDED"}, Drop(succeeded=True)),
        ("the splitter failed before the split", PART, {"state": "QUEUED"}, Drop(succeeded=False)),
        ("split anew", PART, {"state": "SPLIT", "attempts": 3, "parts_done": 0}, Drop(succeeded=False)),
        ("being split anew", PART, {"state": "RUNNING", "attempts": 3}, Drop(succeeded=False)),
        ("no record", PART, None, Bury("the job that this is a piece of has no record")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_piece_is_worked_on_only_while_its_whole_waits_for_it(case, piece, whole, expected):
    assert look(piece, whole and {"attempts": 2, **whole}) == expected


class Crash(Exception):
    pass


class Cloud:
    """Records, one queue, one folder; a crash at any call, and other workers between any two."""

    def __init__(self):
        self.records, self.queue, self.folder, self.ends, self.dead = {}, {}, set(), [], set()
        self.between = lambda: None
        self.sent = 0

    def record(self, job_id):
        self.between()
        return self.records.get(job_id)

    def send(self, bodies):
        self.between()
        for body in bodies:
            self.sent += 1
            self.queue[self.sent] = body
            self.between()  # SQS takes ten at a time

    def create(self, job):
        self.between()
        self.records.setdefault(job.job_id, {"state": "QUEUED", "attempts": 0, "failures": 0})

    def claim(self, job, lapsed):
        self.between()
        record = self.records[job.job_id]
        if record["state"] == "QUEUED" or (record["state"] == "RUNNING" and lapsed):
            record = self.records[job.job_id] = record | {"state": "RUNNING", "attempts": record["attempts"] + 1}
            return Lease(job, f"owner {record['attempts']}", record["attempts"], 0, NOON, checkpoint=False)
        return None

    def split(self, lease, count, spent):
        self._write(lease, {"state": "SPLIT", "parts_total": count, "parts_done": 0, "spent": spent})

    def release(self, lease):
        self._write(lease, {"state": "QUEUED"})

    def finish(self, lease, outputs, spent, now, also=None):
        sets = {"state": "SUCCEEDED", "outputs": outputs, "finished": now.isoformat(), "spent": spent}
        self._write(lease, sets, also)

    def reject(self, lease, reason, spent, now, also=None):
        unburied = {} if isinstance(lease.job, Piece) else {"unburied": lease.job.job_id}
        sets = {"state": "FAILED", "error": reason, "finished": now.isoformat(), "spent": spent}
        self._write(lease, sets | unburied, also)

    def remove_parts(self, stitch):
        self.between()
        self.folder -= {part.key for part in parts_of(WHOLE, stitch.round, "results", [1] * stitch.of)}

    def _write(self, lease, sets, also=None):
        self.between()
        mine = {"state": "RUNNING", "attempts": lease.attempt}
        changes = [Change(lease.job.job_id, mine, sets), *([also] if also else [])]
        for change in changes:
            record = self.records[change.job_id]
            if any(record.get(name) != value for name, value in change.expects.items()):
                raise LostLease
        for change in changes:
            old = self.records[change.job_id]
            new = old | change.sets | {name: old[name] + more for name, more in change.adds.items()}
            self.records[change.job_id] = new
            if change.job_id == WHOLE.job_id and new["state"] in {"SUCCEEDED", "FAILED"}:
                self.ends.append(new["state"])
        self.between()


class Worker:
    """What the pipeline does with a message, one call after the other."""

    def __init__(self, cloud, count, outcome, lapsed):
        self.cloud, self.count, self.outcome, self.lapsed = cloud, count, outcome, lapsed

    def take(self, receipt):
        try:
            if self._over(read(self.cloud.queue[receipt])):
                self.cloud.between()
                self.cloud.queue.pop(receipt, None)
        except LostLease:
            pass

    def _over(self, job):
        if isinstance(job, Piece):
            match sharing.wanted(self.cloud, job):
                case Hide():
                    return False
                case Drop():
                    return True
                case Bury():
                    self._bury(job.whole)
                    return True
            self.cloud.create(job)
        lease = self.cloud.claim(job, self.lapsed)
        if lease is None:
            verdict = when_refused({**self.cloud.records[job.job_id], "job_id": job.job_id, "lease_until": 9e9}, NOON)
            if isinstance(verdict, Bury):
                self._bury(job)
            return isinstance(verdict, Drop | Bury)
        match self.outcome:
            case "release":
                self.cloud.release(lease)
                return False
            case "fail" if isinstance(job, Piece):
                if sharing.reject(self.cloud, lease, job, "why", NOTHING, NOON):
                    self._bury(job.whole)
            case "fail":
                self.cloud.reject(lease, "why", NOTHING, NOON)
                self._bury(job)
            case _ if isinstance(job, Piece):
                if job.number is None:
                    self._see_all_parts(job)
                sharing.finish(self.cloud, lease, job, [job.job_id], NOTHING, NOON)
            case _:
                mine = parts_of(job, lease.attempt, "results", [1] * self.count)
                self.cloud.folder |= {part.key for part in mine}
                sharing.share(self.cloud, lease, mine, NOTHING)
        return True

    def _bury(self, whole):
        self.cloud.between()
        self.cloud.dead.add(whole.job_id)
        self.cloud.between()
        if self.cloud.records[whole.job_id]["state"] == "FAILED":
            self.cloud.records[whole.job_id].pop("unburied", None)

    def _see_all_parts(self, stitch):
        done = [self.cloud.records[each] for each in parts.part_ids(stitch)]
        assert [each["outputs"] for each in done] == [[each] for each in parts.part_ids(stitch)]


class Sharing(RuleBasedStateMachine):
    """Messages are delivered in any order and any number of times; workers crash or are overtaken at every call."""

    @initialize(count=st.integers(1, 3))
    def upload(self, count):
        self.cloud, self.count, self.failed = Cloud(), count, False
        self.cloud.records[WHOLE.job_id] = {"state": "QUEUED", "attempts": 0}
        self.cloud.queue[0] = message(WHOLE)

    @rule(data=st.data(), outcome=st.sampled_from(["done"] * 8 + ["release", "fail"]), crashes=st.booleans())
    def deliver(self, data, outcome, crashes):
        """One message to a worker that crashes at one of its calls, or lets others come before one of them."""
        if not self.cloud.queue:
            return
        left = data.draw(st.integers(0, 9), "calls until then")
        other = data.draw(st.none() | st.integers(0, 9), "message to another worker then")
        others = data.draw(st.sampled_from(["done", "fail"]), "what becomes of it")

        def between():
            nonlocal left
            left -= 1
            if left == -1:
                self.cloud.between = lambda: None
                if other is not None:
                    self._worker(others, lapsed=True).take(self._nth(other))
                    self.failed |= others == "fail"
                if crashes:
                    raise Crash

        self.cloud.between = between
        self.failed |= outcome == "fail"
        try:
            self._worker(outcome, data.draw(st.booleans(), "the lease has ended")).take(
                self._nth(data.draw(st.integers(0, 9), "message"))
            )
        except Crash:
            pass
        self.cloud.between = lambda: None

    @rule(data=st.data())
    def repeat(self, data):
        """The same message twice: S3 tells twice, SQS delivers twice."""
        if self.cloud.queue:
            self.cloud.send([self.cloud.queue[self._nth(data.draw(st.integers(0, 9)))]])

    @rule()
    def requeue(self):
        """An operator gives a job that failed another chance, while pieces of it may still be about."""
        whole = self.cloud.records[WHOLE.job_id]
        if self.cloud.dead:
            self.cloud.records[WHOLE.job_id] = whole | {"state": "QUEUED"}
            self.cloud.ends, self.cloud.dead = [], set()
            self.cloud.send([message(WHOLE)])

    @invariant()
    def parts_are_counted_exactly(self):
        whole = self.cloud.records[WHOLE.job_id]
        if whole["state"] == "SPLIT":
            ids = [part.job_id for part in parts_of(WHOLE, whole["attempts"], "results", [1] * whole["parts_total"])]
            states = [self.cloud.records.get(each, {"state": "none"})["state"] for each in ids]
            assert whole["parts_done"] == states.count("SUCCEEDED")

    @invariant()
    def the_whole_ends_at_most_once(self):
        assert len(self.cloud.ends) <= 1
        assert self.cloud.dead <= {WHOLE.job_id}

    def teardown(self):
        """Left alone, every message does its duty, and the whole has ended."""
        for _ in range(50):
            for receipt in list(self.cloud.queue):
                if receipt in self.cloud.queue:
                    self._worker("done", lapsed=True).take(receipt)
        assert not self.cloud.queue
        [state] = self.cloud.ends
        assert self.failed or state == "SUCCEEDED"
        assert (state == "FAILED") is bool(self.cloud.dead)
        last = self.cloud.records[WHOLE.job_id]["attempts"]
        left = self.cloud.folder & {part.key for part in parts_of(WHOLE, last, "results", [1] * self.count)}
        assert state == "FAILED" or not left

    def _worker(self, outcome, lapsed):
        return Worker(self.cloud, self.count, outcome, lapsed)

    def _nth(self, number):
        receipts = sorted(self.cloud.queue)
        return receipts[number % len(receipts)]


def in_hand(count):
    """A whole in parts, and all of them claimed."""
    cloud = Cloud()
    cloud.records[WHOLE.job_id] = {"state": "SPLIT", "attempts": 1, "parts_total": count, "parts_done": 0}
    leases = []
    for part in parts_of(WHOLE, 1, "results", [1] * count):
        cloud.create(part)
        leases.append(cloud.claim(part, lapsed=False))
    return cloud, leases


def test_two_parts_that_fail_are_one_failure_of_the_whole():
    cloud, leases = in_hand(2)

    assert [sharing.reject(cloud, lease, lease.job, "why", NOTHING, NOON) for lease in leases] == [True, False]
    assert [record["state"] for record in cloud.records.values()] == ["FAILED"] * 3


TOOK = Spent(3.0, 0.5)
THEN = NOON.isoformat()


def test_what_a_piece_took_and_came_to_is_in_its_record_and_in_that_of_the_whole():
    cloud, leases = in_hand(2)

    for lease in leases:
        sharing.finish(cloud, lease, lease.job, [f"{lease.job.number}"], TOOK, NOON)
    assert [cloud.records[each.job.job_id]["outputs"] for each in leases] == [["0"], ["1"]]
    [sent] = {read(body) for body in cloud.queue.values()}
    cloud.create(sent)
    sharing.finish(cloud, cloud.claim(sent, lapsed=False), sent, ["all"], TOOK, NOON)

    pieces = [cloud.records[each.job_id] for each in (*(lease.job for lease in leases), sent)]
    assert [(each["spent"], each["finished"]) for each in pieces] == [(TOOK, THEN)] * 3
    whole = cloud.records[WHOLE.job_id]
    assert (whole["state"], whole["outputs"], whole["finished"]) == ("SUCCEEDED", ["all"], THEN)


def test_what_a_piece_that_failed_took_and_why_is_in_its_record_whether_it_was_the_first_or_not():
    cloud, leases = in_hand(2)

    for lease in leases:
        sharing.reject(cloud, lease, lease.job, "why", TOOK, NOON)

    pieces = [cloud.records[each.job.job_id] for each in leases]
    assert [(each["error"], each["spent"], each["finished"]) for each in pieces] == [("why", TOOK, THEN)] * 2
    whole = cloud.records[WHOLE.job_id]
    assert (whole["error"], whole["finished"]) == ("part 1 of 2: why", THEN)


def test_splitting_a_job_took_something_too():
    cloud = Cloud()
    cloud.create(WHOLE)
    lease = cloud.claim(WHOLE, lapsed=False)

    sharing.share(cloud, lease, parts_of(WHOLE, 1, "results", [1] * 2), TOOK)

    assert cloud.records[WHOLE.job_id]["spent"] == TOOK


def test_an_echo_of_the_last_part_sends_the_stitch_and_has_no_more_use():
    cloud, [lease] = in_hand(1)
    cloud.records[WHOLE.job_id] |= {"parts_done": 1}  # whoever counted it died before it sent the stitch

    assert sharing.wanted(cloud, lease.job) == Drop(succeeded=False)
    assert [read(body) for body in cloud.queue.values()] == [stitch_of(lease.job)]


def test_a_part_of_an_earlier_round_is_not_counted_in_the_next():
    cloud, [lease] = in_hand(1)
    cloud.records[WHOLE.job_id] |= {"attempts": 2}  # an operator gave the whole another chance, and it was split again

    sharing.finish(cloud, lease, lease.job, [], NOTHING, NOON)
    assert cloud.records[WHOLE.job_id]["parts_done"] == 0


Sharing.TestCase.settings = settings(
    max_examples=150, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
test_a_shared_job_ends_exactly_once = Sharing.TestCase
