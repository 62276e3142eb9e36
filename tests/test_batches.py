"""Jobs that are worked on together: each keeps its own lease, outcome, cost and bytes, and none waits for another to come."""

import json
from datetime import UTC, datetime, timedelta
from functools import partial
from io import BytesIO
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace

import pytest
from PIL import Image
from worker_make import until

from gpu_worker import images
from gpu_worker.backends import LIBRARIES, BadBackend, _arrays, _pillow
from gpu_worker.carrier import Carrier
from gpu_worker.cloud import Message
from gpu_worker.handover import Pace
from gpu_worker.held import GivenBack, Held
from gpu_worker.job import Job
from gpu_worker.lanes import Lanes
from gpu_worker.lease import Lease
from gpu_worker.outcome import DONE, REJECTED, Outcome
from gpu_worker.processor import Processor, Request

NOON = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
LONG = timedelta(minutes=1)


# The line before the processors.


class Clock:
    def __init__(self):
        self.now = NOON

    def __call__(self):
        return self.now


class Slow:
    """A processor that works until it is told how it went; who is killed has died of it."""

    takes_many = True

    def __init__(self):
        self.asked, self._told, self._answer = [], Event(), None

    def run_together(self, requests, limit):
        self.asked.append([each.job["job_id"] for each in requests])
        assert self._told.wait(10)
        self._told.clear()
        return self._answer

    def ends(self, code=DONE):
        self._answer = Outcome(code)
        self._told.set()

    def kill(self):
        if not self._told.is_set():
            self.ends(-9)


class Line:
    """Lanes of slow processors, and jobs that come as threads, as in the worker."""

    def __init__(self, folder, lanes=1, batch=4):
        self.folder, self.clock = folder, Clock()
        self.processors = [Slow() for _ in range(lanes)]
        self.lanes = Lanes(self.processors, self.launch, self.clock, batch)
        self.went = {}

    def launch(self):
        self.processors.append(Slow())
        return self.processors[-1]

    def comes(self, name, alone=False):
        """A job joins the line; returns when it stands there or is worked on."""
        held = Held(Message("", "", NOON), NOON)
        (self.folder / name).mkdir()
        request = Request(self.folder, self.folder / name, {"job_id": name})
        before = len(self.lanes._line) + self.at_work()

        def work():
            try:
                self.went[name] = self.lanes.work(held, request, LONG, alone=alone).code
            except GivenBack:
                self.went[name] = "given back"

        Thread(target=work, daemon=True).start()
        until(lambda: len(self.lanes._line) + self.at_work() > before)
        return held

    def at_work(self):
        return sum(len(turns) for turns in self.lanes._busy.values())

    def asked(self, count, lane=0):
        """What the processor was asked to do, when that is so often."""
        return until(lambda: len(self.processors[lane].asked) >= count and self.processors[lane].asked)

    def all_went(self, count):
        return until(lambda: len(self.went) == count and self.went)


@pytest.fixture
def line(tmp_path):
    return partial(Line, tmp_path)


def test_what_waits_when_a_processor_is_free_is_done_together_and_the_first_waits_for_nobody(line):
    line = line(batch=3)
    for name in "abcde":
        line.comes(name)
        line.asked(1)
    for count in (1, 2, 3):
        line.asked(count)
        line.processors[0].ends()

    assert line.all_went(5) == dict.fromkeys("abcde", DONE)
    assert line.asked(3) == [["a"], ["b", "c", "d"], ["e"]]


def test_one_that_is_to_be_alone_is(line):
    line = line()
    for name, alone in (("a", False), ("b", True), ("c", False), ("d", True), ("e", False)):
        line.comes(name, alone)
    for count in range(1, 5):
        line.asked(count)
        line.processors[0].ends()

    line.all_went(5)
    assert line.asked(4) == [["a"], ["b"], ["c", "e"], ["d"]]


def test_idle_processors_share_what_waits(line):
    line = line(lanes=2)
    suspect = Held(Message("", "", NOON), NOON)
    with line.lanes.alone(suspect):
        for name in "abcd":
            line.comes(name)

    assert sorted([*line.asked(1, 0), *line.asked(1, 1)]) == [["a", "b"], ["c", "d"]]
    for processor in line.processors:
        processor.ends()
    line.all_went(4)


def test_if_it_goes_wrong_together_each_is_done_alone_in_its_turn_and_in_a_clean_folder(line, tmp_path):
    line = line()
    for name in "abcd":
        line.comes(name)
    line.asked(1)
    line.processors[0].ends()
    line.asked(2)
    (tmp_path / "c" / "half").touch()
    line.processors[0].ends(REJECTED)
    for count, code in ((3, DONE), (4, REJECTED), (5, DONE)):
        line.asked(count)
        line.processors[0].ends(code)

    assert line.all_went(4) == {"a": DONE, "b": DONE, "c": REJECTED, "d": DONE}
    assert line.asked(5) == [["a"], ["b", "c", "d"], ["b"], ["c"], ["d"]]
    assert list((tmp_path / "c").iterdir()) == []


def test_each_pays_its_share_of_the_time_and_of_what_came_to_nothing(line):
    line = line()
    held = {name: line.comes(name) for name in "abc"}
    line.asked(1)
    line.processors[0].ends()
    line.asked(2)
    line.clock.now += timedelta(seconds=10)
    assert held["b"].worked(line.clock()) == held["c"].worked(line.clock()) == timedelta(seconds=5)
    line.processors[0].ends(1)
    for count in (3, 4):
        line.asked(count)
        line.clock.now += timedelta(seconds=3)
        line.processors[0].ends()
        line.all_went(count - 1)

    line.clock.now += timedelta(hours=1)
    assert [held[name].worked(line.clock()).total_seconds() for name in "abc"] == [0, 8, 8]


def test_one_that_is_lost_in_the_middle_costs_the_others_their_batch_and_no_more(line):
    line = line()
    held = {name: line.comes(name) for name in "abc"}
    line.asked(1)
    line.processors[0].ends()
    line.asked(2)
    held["b"].gone = True
    line.lanes.clear()
    until(lambda: line.went.get("b"))
    line.asked(1, lane=1)
    line.processors[1].ends()

    assert line.all_went(3) == {"a": DONE, "b": "given back", "c": DONE}
    assert line.processors[1].asked == [["c"]]


def test_one_that_is_stopped_to_keep_its_checkpoint_is_not_begun_again(line):
    line = line()
    held = {name: line.comes(name) for name in "abc"}
    line.asked(1)
    line.processors[0].ends()
    line.asked(2)
    held["c"].stopped = True
    line.lanes.clear()
    until(lambda: "c" in line.went)
    line.asked(1, lane=1)
    line.processors[1].ends()

    assert line.all_went(3) == {"a": DONE, "b": DONE, "c": -9}


@pytest.mark.parametrize(("mates", "eta"), [([], 2), ([100], 4), ([100, 300], 10)])
def test_a_batch_takes_as_long_as_all_that_are_in_it(mates, eta):
    carrier = Carrier(None, None, None, SimpleNamespace(count=1), None, "task", Clock())
    held, *others = (Held(Message("", "", NOON), NOON) for _ in [0, *mates])
    for each, size in zip([held, *others], [100, *mates], strict=True):
        each.lease = Lease(Job(f"{size}", "b", "k", "", "e", size), "task", 1, 0, NOON, checkpoint=False)
    assert carrier.eta(held) is None
    carrier.pace = Pace(((100, 2.0),))

    held.mates = (held, *others) if others else ()

    assert carrier.eta(held) == timedelta(seconds=eta)


def test_a_processor_that_cannot_be_asked_is_an_outcome_for_all(line):
    line = line()

    def broken(requests, limit):
        raise OSError("no file descriptor left")

    line.processors[0].run_together = broken
    with line.lanes.alone(Held(Message("", "", NOON), NOON)):
        for name in "ab":
            line.comes(name)

    assert line.all_went(2) == {"a": 1, "b": 1}


# The processor.


BROUGHT = """
import os
def process(source, output_dir, job):
    (output_dir / "made").write_text("alone")
    if source.read_text() == "bad":
        raise ValueError("bad")
def process_many(sources, output_dirs, jobs):
    assert len({job["job_id"] for job in jobs}) == len(sources) == len(output_dirs)
    for source, output_dir in zip(sources, output_dirs):
        match source.read_text():
            case "bad":
                raise ValueError("bad")
            case "crash":
                os.abort()
        (output_dir / "made").write_text(f"with {len(jobs)}")
"""
SPLITS = """
def split(source, parts_dir, job):
    if source.read_text() == "large":
        (parts_dir / "one").touch()
def stitch(parts, output_dir, job): ...
"""


@pytest.fixture
def bring(tmp_path, monkeypatch):
    """Has a processor of this code work on these texts together: the outcome, and what was made of each."""
    monkeypatch.setenv("PYTHONPATH", f"{Path(images.__file__).parents[1]}:{tmp_path}")

    def work(code, *texts):
        (tmp_path / "mine.py").write_text(code)
        requests = []
        for number, text in enumerate(texts):
            folder = tmp_path / f"{number}"
            (folder / "output").mkdir(parents=True)
            (folder / "input").write_text(text)
            requests.append(Request(folder / "input", folder / "output", {"job_id": f"j-{number}", "options": {}}))
        processor = Processor("mine:process", {})
        try:
            outcome = processor.run_together(requests, LONG)
        finally:
            processor.kill()
        made = [path.read_text() if (path := each.output_dir / "made").exists() else None for each in requests]
        return outcome, made, processor

    return work


@pytest.mark.parametrize(
    "texts, outcome, made",
    [
        (["a", "b", "c"], Outcome(DONE), ["with 3"] * 3),
        (["a"], Outcome(DONE), ["alone"]),
        (["a", "bad"], Outcome(1, "ValueError: bad"), ["with 2", None]),
    ],
    ids=["three", "one", "a bad one"],
)
def test_a_processor_that_takes_many_gets_many(bring, texts, outcome, made):
    assert bring(BROUGHT, *texts)[:2] == (outcome, made)


def test_a_crash_over_many_is_one_outcome(bring):
    outcome, _, processor = bring(BROUGHT, "a", "crash")

    assert "signal 6" in outcome.error and processor.takes_many


def test_one_that_is_split_is_not_worked_on_with_the_others(bring, tmp_path):
    outcome, made, _ = bring(BROUGHT + SPLITS, "a", "large", "b")

    assert (outcome, made) == (Outcome(DONE), ["with 2", None, "with 2"])
    assert [path.name for path in (tmp_path / "1" / "parts").iterdir()] == ["one"]


def test_a_request_is_cleaned_of_parts_too(tmp_path):
    for name in ("output/deep", "parts"):
        (tmp_path / name).mkdir(parents=True)
    Request(tmp_path / "input", tmp_path / "output", {}).clean()

    assert [path.name for path in tmp_path.rglob("*")] == ["output"]


# Pictures.


def backends():
    """What is here, on the CPU or not: name and backend, or why it is not here."""
    yield "pillow", lambda: _pillow
    for name, load in LIBRARIES.items():
        yield name, lambda load=load: _arrays(load())
    yield "torch on the CPU", on_the_cpu


def on_the_cpu():
    torch = pytest.importorskip("torch")
    resample = pytest.importorskip("gpu_worker.resample")
    return _arrays(resample.Arrays(torch, torch.asarray, lambda array: array.numpy()))


@pytest.fixture(params=[pytest.param(load, id=name) for name, load in backends()])
def backend(request, monkeypatch):
    try:
        made = request.param()
    except BadBackend as error:
        pytest.skip(str(error))
    asked = []

    def counted(pictures):
        asked.append(len(pictures))
        return made(pictures)

    monkeypatch.setattr(images, "_backend", lambda: counted)
    return asked


def photo(size, seed, mode="RGB", form="PNG", **save):
    data = BytesIO()
    channels = Image.effect_noise(size, 40 + seed), Image.linear_gradient("L").resize(size)
    Image.merge("RGBA", (*channels, *channels)).convert(mode).save(data, form, **save)
    return data.getvalue()


def rendered(folder, bodies, together, **options):
    jobs = []
    for number, body in enumerate(bodies):
        (folder / f"{number}").mkdir(parents=True)
        (folder / f"{number}.in").write_bytes(body)
        jobs.append((folder / f"{number}.in", folder / f"{number}", {"options": options}))
    if together:
        images.process_many(*(list(each) for each in zip(*jobs, strict=True)))
    else:
        for job in jobs:
            images.process(*job)
    return [{path.name: path.read_bytes() for path in sorted(out.iterdir())} for _, out, _ in jobs]


def test_pictures_come_out_as_each_alone_whatever_they_are_with(backend, tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    bodies = [
        photo((120, 90), 1),
        photo((120, 90), 2),
        photo((90, 120), 3),
        photo((120, 90), 4, "RGBA"),
        photo((120, 90), 5, form="JPEG", exif=turned.tobytes()),
        photo((120, 90), 6, "L"),
        photo((120, 90), 7, form="JPEG"),
        photo((20, 300), 8),
    ]

    together = rendered(tmp_path / "together", bodies, True, renditions=[{"name": "s", "width": 33}], format="webp")

    assert backend == [3, 1, 1, 1, 1, 1]
    assert together == rendered(
        tmp_path / "alone", bodies, False, renditions=[{"name": "s", "width": 33}], format="webp"
    )


def test_no_more_pictures_are_decoded_at_once_than_memory_is_meant_for(backend, tmp_path, monkeypatch):
    monkeypatch.setattr(images, "TOGETHER", 3 * 40 * 30)

    rendered(tmp_path, [photo((40, 30), seed) for seed in range(7)] + [photo((200, 200), 0)] * 2, True)

    assert backend == [3, 3, 1, 1, 1]


# The worker.


def test_of_a_batch_with_a_bad_one_that_one_fails_and_the_others_are_done_once(bench):
    bench.until_state(bench.job(b"nothing", "first"), "QUEUED")
    with bench.worker(SPINDRIFT_BATCH="8") as worker:
        until(lambda: [r for r in bench.records() if r["state"] == "SUCCEEDED"])
        bodies = [*([b"sleep 0.5"] * 5), b"reject"]
        jobs = [bench.job(body, f"{n}") for n, body in enumerate(bodies)]
        records = [bench.until_state(job_id, "FAILED" if job_id == jobs[-1] else "SUCCEEDED") for job_id in jobs]
        until(lambda: bench.messages() == (0, 0))

    assert "not for us" in records[-1]["error"]
    assert all((r["attempts"], r.get("failures")) == (1, None) for r in records[:-1])
    assert "together-" in bench.diary.read_text()
    assert [line["together"] for line in worker.said() if line.get("verdict") == "Reject"] == [1]


def test_small_pictures_are_done_together_with_the_bytes_of_each_alone(bench, tmp_path):
    bodies = [photo((64, 48), seed) for seed in range(12)]
    options = {"renditions": [{"name": "s", "width": 20}], "format": "webp"}
    told = {
        "SPINDRIFT_PROCESSOR": "slow_pictures:process",
        "SPINDRIFT_IMAGES_BACKEND": "numpy",
        "SPINDRIFT_OPTIONS": json.dumps(options),
        "SPINDRIFT_BATCH": "8",
    }
    with bench.worker(**told) as worker:
        bench.until_state(bench.job(photo((64, 48), 99), "first"), "SUCCEEDED")
        jobs = [bench.job(body, f"{n}") for n, body in enumerate(bodies)]
        outputs = [bench.until_state(job_id, "SUCCEEDED")["outputs"] for job_id in jobs]

    stored = [bench.s3.get_object(Bucket=bench.results, Key=key)["Body"].read() for [key] in outputs]
    assert stored == [each["s.webp"] for each in rendered(tmp_path / "alone", bodies, False, **options)]
    assert max(line["together"] for line in worker.said() if line["event"] == "settled") > 1


def test_a_worker_whose_processor_takes_one_refuses_a_batch(bench):
    with bench.worker(SPINDRIFT_PROCESSOR="json:loads", SPINDRIFT_BATCH="2") as worker:
        assert worker.wait(20) == 2
        assert any("has no process_many" in line.get("error", "") for line in worker.said())


def test_all_of_a_batch_goes_back_when_its_worker_must_go(bench):
    bench.until_state(bench.job(b"nothing", "first"), "QUEUED")
    with bench.worker(SPINDRIFT_BATCH="8", SPINDRIFT_STOP_TIMEOUT_SECONDS="12") as worker:
        until(lambda: [r for r in bench.records() if r["state"] == "SUCCEEDED"])
        jobs = [bench.job(b"sleep 30", f"{n}") for n in range(4)]
        until(lambda: "sleep" in bench.diary.read_text())
        worker.terminate()
        assert worker.wait(15) == 0

    records = [bench.record(job_id) for job_id in jobs]
    assert [record["state"] for record in records] == ["QUEUED"] * 4
    assert not any("failures" in record for record in records)
