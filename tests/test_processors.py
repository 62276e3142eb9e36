"""What a user brings: a callable or a command, in a process of its own that is bounded and leaves nothing behind."""

import errno
import json
import os
import re
import select
import signal
import subprocess
import sys
import textwrap
import time
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worker_make import ROOT, until

from gpu_worker import command
from gpu_worker.job import LONGEST_NAME, Job
from gpu_worker.outcome import DONE, NOT_NOW, REJECTED, Finish, Outcome, Reject, Release, Retry, settle
from gpu_worker.parts import MOST_PARTS
from gpu_worker.printed import FIRST, LAST, LONGEST_LINE, Printed
from gpu_worker.processor import MOST_OPEN_FILES, BadProcessor, Processor, parts_dir
from gpu_worker.results import MOST_RESULTS
from gpu_worker.settings import BadSettings, Settings

LONG = timedelta(seconds=20)


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """A job's scratch folder, and a place on the path for modules that a test brings along."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*sys.path, str(tmp_path)]))
    (tmp_path / "input").write_text("a photograph")
    (tmp_path / "output").mkdir()
    (tmp_path / "checkpoint").mkdir()
    return tmp_path


@pytest.fixture
def bring(scratch):
    """Makes a processor of some Python, and ends it."""
    begun = []

    def bring(source, options=None, **limits):
        (scratch / "mine.py").write_text(textwrap.dedent(source))
        begun.append(Processor("mine:process", options or {}, **limits))
        return begun[-1]

    yield bring
    for processor in begun:
        processor.kill()


@pytest.fixture
def program(scratch):
    """Makes a processor of a command, and ends it."""
    begun = []

    def program(*words, **limits):
        begun.append(Processor("gpu_worker.command:process", {"command": list(words)}, **limits))
        begun[-1].options = {"command": list(words)}
        return begun[-1]

    yield program
    for processor in begun:
        processor.kill()


def run(processor, scratch, limit=LONG, source="input", **job):
    told = {"job_id": "j-1", "attempt": 2, "options": getattr(processor, "options", {})}
    told |= {"checkpoint": str(scratch / "checkpoint"), "deadline_file": str(scratch / "deadline")}
    return processor.run(scratch / source, scratch / "output", told | job, limit)


def said(capfd, event="printed"):
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines() if line.startswith("{")]
    return [(line["job_id"], line["line"]) for line in lines if line["event"] == event]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# Exit codes and arguments.


@pytest.mark.parametrize(
    "script, code, error",
    [
        ("exit 0", DONE, ""),
        ("echo broken header; exit 3", REJECTED, "exit code 3: broken header"),
        ("echo no memory on the GPU >&2; exit 4", NOT_NOW, "exit code 4: no memory on the GPU"),
        ("exit 7", 7, "exit code 7: and not a word"),
        ("kill -SEGV $$", -11, "exit code -11: and not a word"),
    ],
)
def test_a_command_s_exit_code_is_the_outcome_and_its_last_line_the_reason(program, scratch, script, code, error):
    assert run(program("sh", "-c", script), scratch) == Outcome(code, error)


def test_a_command_finds_its_job_in_its_arguments_and_its_environment(program, scratch):
    script = """cp "$0" "$1/copy"; env > "$1/env"; pwd > "$1/pwd"; cat > "$1/stdin" """
    assert run(program("sh", "-c", script, "{input}", "{output}"), scratch) == Outcome(DONE)

    output = scratch / "output"
    assert (output / "copy").read_text() == "a photograph"
    told = dict(line.partition("=")[::2] for line in (output / "env").read_text().splitlines() if "SPINDRIFT" in line)
    assert told == {
        "SPINDRIFT_INPUT": str(scratch / "input"),
        "SPINDRIFT_OUTPUT": str(output),
        "SPINDRIFT_JOB_ID": "j-1",
        "SPINDRIFT_ATTEMPT": "2",
        "SPINDRIFT_CHECKPOINT_DIR": str(scratch / "checkpoint"),
        "SPINDRIFT_DEADLINE_FILE": str(scratch / "deadline"),
    }
    assert (output / "pwd").read_text().strip() == str(scratch)
    assert (output / "stdin").read_text() == ""


@given(st.lists(st.text("{}input$()`;'\" \n", max_size=12), max_size=4))
def test_no_argument_is_ever_more_or_less_than_one(words):
    filled = command.arguments(words, Path("/a b/$(reboot)"), Path("/out"))

    assert len(filled) == len(words)
    assert all(word == given for word, given in zip(filled, words, strict=True) if "{input}" not in given)


def test_both_places_are_filled_wherever_they_stand_and_other_braces_left_alone():
    words = ["a", "{input}", "--to={output}/{input}", "{other}", "{}"]

    assert command.arguments(words, Path("/in"), Path("/out")) == ["a", "/in", "--to=/out//in", "{other}", "{}"]


@pytest.mark.parametrize("words", [None, "rm -rf", [], [1], ["no-such-program"], [""]])
def test_a_command_that_cannot_run_is_refused_before_a_job_is_taken(words, scratch):
    with pytest.raises(BadProcessor, match="command: "):
        Processor("gpu_worker.command:process", {"command": words}).wait_ready()


SETTINGS = dict.fromkeys(("QUEUE", "QUEUE_URL", "DEAD_LETTER_QUEUE_URL", "JOBS_TABLE", "RESULTS_BUCKET"), "x")
SETTINGS = {f"SPINDRIFT_{name}": value for name, value in SETTINGS.items()} | {"AWS_REGION": "eu-west-1"}


def test_a_command_takes_the_place_of_a_processor():
    told = {"SPINDRIFT_COMMAND": '["a", "{input}"]', "SPINDRIFT_PROCESSOR": "b:c", "SPINDRIFT_OPTIONS": '{"d": 1}'}
    settings = Settings.read(SETTINGS | told)

    assert settings.processor == "gpu_worker.command:process"
    assert settings.options == {"command": ["a", "{input}"], "d": 1}
    with pytest.raises(BadSettings, match="SPINDRIFT_COMMAND: a JSON list"):
        Settings.read(SETTINGS | {"SPINDRIFT_COMMAND": "rm -rf /"})


# Nothing is left behind.


def test_a_child_goes_with_its_worker_even_if_an_answer_was_not_read_any_more(bring):
    processor = bring("def process(source, output_dir, job): ...")
    until(lambda: select.select([processor._wire], [], [], 0)[0])

    processor._wire.close()

    assert processor._child.wait(10) == 0


@pytest.mark.parametrize("end", ["it ends", "its time is up", "it is killed"])
def test_what_a_command_leaves_in_the_background_ends_with_it(program, scratch, end):
    rest = "exit 0" if end == "it ends" else "sleep 60"
    script = f"set -m; sleep 60 & echo $! > {scratch}/pid; (sleep 60 & echo $! > {scratch}/pid2); {rest}"
    processor = program("bash", "-c", script)
    if end == "it is killed":
        subprocess.Popen(["sh", "-c", f"sleep 1; kill -KILL {processor._child.pid}"])
    outcome = run(processor, scratch, timedelta(seconds=2))

    assert outcome.code == {"it ends": DONE, "its time is up": 1, "it is killed": -9}[end]
    assert "time-out" in outcome.error or end != "its time is up"
    pids = [int((scratch / name).read_text()) for name in ("pid", "pid2")]
    until(lambda: not any(alive(pid) for pid in pids))
    assert run(program("true"), scratch) == Outcome(DONE)


def test_a_command_does_not_outlive_its_worker(scratch):
    script = f"echo $$ > {scratch}/pid; sleep 60"
    worker = f"""
from pathlib import Path
from datetime import timedelta
from gpu_worker.processor import Processor
options = {{"command": ["sh", "-c", {script!r}]}}
job = {{"job_id": "j", "attempt": 1, "options": options, "checkpoint": "", "deadline_file": ""}}
Processor("gpu_worker.command:process", options).run(Path("input"), Path("output"), job, timedelta(seconds=60))
"""
    with subprocess.Popen([sys.executable, "-c", worker], cwd=scratch) as process:
        pid = until(lambda: (scratch / "pid").exists() and (scratch / "pid").read_text().strip())
        process.kill()
    until(lambda: not alive(pid))


def test_a_callable_s_helpers_end_with_it(bring, scratch):
    processor = bring(
        f"""
        import subprocess, time
        from pathlib import Path
        def process(input, output_dir, job):
            helper = subprocess.Popen(["sleep", "60"])
            Path("{scratch}/pid").write_text(str(helper.pid))
            time.sleep(60)
        """
    )
    assert "time-out" in run(processor, scratch, timedelta(seconds=1)).error
    until(lambda: not alive((scratch / "pid").read_text()))


def test_a_death_is_noticed_though_what_was_forked_holds_the_wire_open(bring, scratch):
    processor = bring(
        f"""
        import os, signal, time
        from pathlib import Path
        def process(input, output_dir, job):
            if pid := os.fork():
                Path("{scratch}/pid").write_text(str(pid))
                os.kill(os.getpid(), signal.SIGSEGV)
            while True:
                print("still here", flush=True)
                time.sleep(0.01)
        """
    )
    assert run(processor, scratch).code == -11
    until(lambda: not alive((scratch / "pid").read_text()))


def test_an_answer_is_heard_though_whoever_gave_it_is_dead_by_then(bring, scratch):
    processor = bring(
        """
        import os, threading
        def process(input, output_dir, job):
            threading.Timer(0.2, os._exit, [9]).start()
        """
    )
    processor.wait_ready()
    hear = processor._hear

    def only_output(left):
        processor._hear = hear
        return until(lambda: processor._child.poll() == 9) and False

    processor._hear = only_output
    assert run(processor, scratch) == Outcome(DONE)


def test_a_processor_that_cannot_be_started_again_is_no_outcome_of_a_job(bring, scratch, monkeypatch):
    processor = bring("import os\ndef process(input, output_dir, job): os._exit(9)")
    assert run(processor, scratch).code == 9

    def full(*_, **__):
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", full)
        with pytest.raises(BadProcessor, match="no process can be started: Resource temporarily unavailable"):
            run(processor, scratch)
    assert run(processor, scratch).code == 9


def test_one_that_cannot_be_killed_keeps_nobody_waiting_and_gets_a_successor(bring, scratch, monkeypatch, capfd):
    monkeypatch.setattr("gpu_worker.processor.DYING", 0.1)
    processor = bring(
        """
        import re
        def process(input, output_dir, job):
            re.match("(a+)+$", "a" * job["length"] + "b")  # no other thread gets a turn
        """
    )
    stuck = processor._child
    monkeypatch.setattr(stuck, "kill", lambda: None)
    try:
        assert "time-out" in run(processor, scratch, timedelta(seconds=1), length=60).error
        assert f'"pid": {stuck.pid}' in capfd.readouterr().out
        assert run(processor, scratch, length=1) == Outcome(DONE)
        assert stuck.poll() is None
    finally:
        os.kill(stuck.pid, signal.SIGKILL)


def test_the_child_serves_on_after_a_failure_and_is_replaced_after_its_death(bring, scratch):
    processor = bring(
        """
        import os
        def process(input, output_dir, job):
            if job["order"] == "die": os._exit(9)
            if job["order"] == "fail": raise RuntimeError("no")
            (output_dir / str(os.getpid())).touch()
        """
    )
    codes = [run(processor, scratch, order=order).code for order in ("work", "fail", "work", "die", "work")]

    assert codes == [0, 1, 0, 9, 0]
    assert len(list((scratch / "output").iterdir())) == 2


def test_a_program_that_a_callable_starts_does_not_read_the_worker_s_orders(bring, scratch):
    processor = bring(
        """
        import subprocess
        def process(input, output_dir, job):
            subprocess.run(["cat"], timeout=5, check=True)
        """
    )
    assert [run(processor, scratch), run(processor, scratch)] == [Outcome(DONE)] * 2


# Bounds.


@pytest.mark.parametrize("how", ["callable", "command"])
def test_a_file_that_grows_without_end_is_stopped(bring, program, scratch, how):
    if how == "command":
        processor = program("dd", "if=/dev/zero", "of={output}/bomb", "bs=64k", largest_output=1 << 20)
        expected = Outcome(-25, "exit code -25: and not a word")
    else:
        source = "def process(i, output_dir, job):\n    (output_dir / 'bomb').write_bytes(b'0' * 2**21)"
        processor = bring(source, largest_output=1 << 20)
        expected = Outcome(1, "OSError: [Errno 27] File too large")

    assert run(processor, scratch) == expected
    assert (scratch / "output/bomb").stat().st_size == 1 << 20


def test_the_limits_hold_for_what_a_processor_starts(program, scratch):
    # A limit on address space would keep CUDA from starting.
    run(
        program("bash", "-c", "for each in c n v; do ulimit -$each; done > output/limits", largest_output=1 << 20),
        scratch,
    )

    cores, files, addresses = (scratch / "output/limits").read_text().split()
    assert (cores, addresses) == ("0", "unlimited") and int(files) <= MOST_OPEN_FILES


def test_the_kernel_would_kill_the_processor_before_the_worker(program, scratch):
    run(program("sh", "-c", "cat /proc/self/oom_score_adj > output/score"), scratch)

    assert int((scratch / "output/score").read_text()) == 1000 > int(Path("/proc/self/oom_score_adj").read_text())


# What is told to users.

PAGE = (ROOT / "docs/processors.md").read_text()


def test_the_example_of_the_page_works(bring, scratch):
    [example] = re.findall(r"(?m)^    # crop.py\n((?:    .*\n|\n)+)", PAGE)
    processor = bring(example)
    processor.options = {"bytes": 3}

    assert run(processor, scratch) == Outcome(DONE)
    assert (scratch / "output/head").read_text() == "a p"
    (scratch / "input").write_text("")
    assert run(processor, scratch) == Outcome(REJECTED, "the file is empty")


@given(st.integers(-64, 255))
def test_the_table_of_the_page_says_what_becomes_of_a_job(code):
    rows = dict(re.findall(r"(?m)^\| (0|3|4|other) \|[^|]*\| ([^|]*) \|$", PAGE))
    begins = {Finish: "SUCCEEDED", Reject: "FAILED at once", Release: "back to the queue", Retry: "one failure more"}

    assert rows[str(code) if code in (0, 3, 4) else "other"].startswith(begins[type(settle(Outcome(code), 0, 3))])


def test_the_page_names_everything_that_a_processor_is_told(scratch):
    job = Job("j", "b", "k", "", "e", 1).told_to_processor(1, {}) | {"checkpoint": "c", "deadline_file": "d"}
    for name in [*job, *command.environment(scratch, scratch, job)]:
        assert f"`{name}`" in PAGE
    for number in (MOST_RESULTS, f"{MOST_OPEN_FILES:,}", f"{MOST_PARTS:,}", FIRST, LAST, LONGEST_NAME):
        assert re.search(rf"\b{number}\b", PAGE)


# What is printed.


def test_what_is_printed_is_logged_under_its_own_job(bring, scratch, capfd):
    processor = bring(
        """
        import os, sys
        print("loading the model")
        def process(input, output_dir, job):
            print("to stdout", job["job_id"])
            os.write(2, b"to stderr, and no end of line")
        """
    )
    processor.wait_ready()
    run(processor, scratch)
    run(processor, scratch, job_id="j-2")

    assert said(capfd) == [
        ("", "loading the model"),
        ("j-1", "to stdout j-1"),
        ("j-1", "to stderr, and no end of line"),
        ("j-2", "to stdout j-2"),
        ("j-2", "to stderr, and no end of line"),
    ]


def test_a_processor_that_never_stops_talking_fills_neither_log_nor_memory_and_its_end_is_heard(
    program, scratch, capfd
):
    assert run(program("sh", "-c", "seq 1 200000; echo the reason; exit 1"), scratch).error.endswith("the reason")

    lines = [line for _, line in said(capfd)]
    assert lines[:3] == ["1", "2", "3"]
    assert lines[-2:] == ["200000", "the reason"]
    assert len(lines) == FIRST + LAST + 1


def test_a_talker_has_no_more_time_than_others(program, scratch):
    begun = time.monotonic()
    assert "time-out" in run(program("yes"), scratch, timedelta(seconds=1)).error
    assert time.monotonic() - begun < 5


@given(st.lists(st.binary(max_size=9).filter(lambda line: b"\n" not in line)), st.integers(1, 7))
def test_a_line_is_the_same_in_whatever_pieces_it_comes(lines, piece):
    data = b"\n".join(lines)

    def heard(size):
        found = []
        printed = Printed(found.append)
        for start in range(0, len(data), size):
            printed.feed(data[start : start + size])
        printed.end()
        return found

    assert heard(piece) == heard(len(data) + 1)


@pytest.mark.parametrize(
    "case, data, lines",
    [
        ("a progress bar", b"10 %\r20 %\r30 %\r\ndone\n", ["30 %", "done"]),
        ("nothing", b"", []),
        ("blank lines", b"\n\n  \na\n", ["a"]),
        ("blanks in a line", b"  a  \r\n", ["  a  "]),
        ("not UTF-8", b"\xff\n", ["\N{REPLACEMENT CHARACTER}"]),
        ("a long line", b"X" * (LONGEST_LINE + 1), ["X" * LONGEST_LINE, "X"]),
        ("no more than all", b"a\n" * (FIRST + LAST), ["a"] * (FIRST + LAST)),
        ("one too many", b"a\n" * (FIRST + LAST + 1), [*["a"] * FIRST, "... 1 lines are left out ...", *["a"] * LAST]),
    ],
)
def test_lines_for_the_log(case, data, lines):
    found = []
    printed = Printed(found.append)
    printed.feed(data)
    printed.end()

    assert found == lines
    assert printed.last == "".join(lines[-1:])


# Split and stitch, as the child knows them.

SPLITS = """
def split(input, parts_dir, job):
    for n, word in enumerate(input.read_text().split() if job["order"] == "split" else []):
        (parts_dir / f"{n:02}").write_text(word)

def process(input, output_dir, job):
    (output_dir / "word").write_text(input.read_text().upper())

def stitch(parts, output_dir, job):
    (output_dir / "words").write_text(" ".join((part / "word").read_text() for part in parts))
"""


def test_a_job_is_split_or_processed_and_a_part_is_never_split_again(bring, scratch):
    processor = bring(SPLITS)
    assert run(processor, scratch, order="split") == Outcome(DONE)
    parts = sorted(parts_dir(scratch / "output").iterdir())
    assert [part.read_text() for part in parts] == ["a", "photograph"]
    assert not list((scratch / "output").iterdir())

    for part in parts:
        assert run(processor, scratch, source=part, order="split", part={"number": 0}) == Outcome(DONE)
    assert (scratch / "output/word").read_text() == "PHOTOGRAPH"


def test_a_job_too_small_to_split_is_processed(bring, scratch):
    assert run(bring(SPLITS), scratch, order="process") == Outcome(DONE)

    assert (scratch / "output/word").read_text() == "A PHOTOGRAPH"
    assert not list(parts_dir(scratch / "output").iterdir())


def test_a_folder_of_parts_is_stitched_in_their_order(bring, scratch):
    for name, word in {"00010": "three", "00002": "two", "00001": "one"}.items():
        (scratch / "parts" / name).mkdir(parents=True)
        (scratch / "parts" / name / "word").write_text(word)

    assert run(bring(SPLITS), scratch, source="parts", order="") == Outcome(DONE)
    assert (scratch / "output/words").read_text() == "one two three"


def test_a_processor_that_happens_to_have_a_split_is_not_split(bring, scratch):
    processor = bring("from shlex import split\ndef process(input, output_dir, job): pass")
    assert run(processor, scratch) == Outcome(DONE)

    (scratch / "parts").mkdir()
    assert "has no stitch" in run(processor, scratch, source="parts").error
