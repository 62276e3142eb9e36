"""The GPU's health, asked of NVIDIA's own Python bindings; the driver's library behind them is ours."""

import re
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pynvml
import pytest
from worker_make import Bench, until

from gpu_worker.handover import Doom
from gpu_worker.health import BROKEN, Watch, assigned
from gpu_worker.host import Host

ECS = {"NVIDIA_VISIBLE_DEVICES": "GPU-5a"}
"""What ECS tells a container with one GPU."""


class Driver:
    """libnvidia-ml.so.1: each function writes what it knows where it is pointed to, and returns a code."""

    def __init__(self):
        self.gpus = ["GPU-5a"]
        self.answers = {}
        self.xids = []
        self.calls = []
        self.stuck = threading.Event()
        self.stuck.set()

    def __getattr__(self, name):
        if not name.startswith("nvml"):
            raise AttributeError(name)

        def call(*args):
            self.calls.append(name)
            self.stuck.wait(30)
            code = self.answers.get(name, 0)
            if isinstance(code, int) and code:
                return code
            return getattr(self, f"do_{name}", lambda *_: 0)(*args)

        return call

    def do_nvmlDeviceGetCount_v2(self, count):
        count._obj.value = len(self.gpus)
        return 0

    def do_nvmlDeviceGetHandleByUUID(self, uuid, handle):
        return 0 if uuid.value.decode() in self.gpus else pynvml.NVML_ERROR_NOT_FOUND

    def do_nvmlDeviceGetHandleByIndex_v2(self, index, handle):
        return 0 if index.value < len(self.gpus) else pynvml.NVML_ERROR_INVALID_ARGUMENT

    def do_nvmlDeviceGetTotalEccErrors(self, handle, kind, counter, count):
        assert (kind.value, counter.value) == (pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC)
        [count._obj.value] = self.answers.get("nvmlDeviceGetTotalEccErrors", [0])
        return 0

    def do_nvmlDeviceGetRemappedRows(self, handle, *counts):
        for count, value in zip(counts, self.answers.get("nvmlDeviceGetRemappedRows", [9, 0, 0, 0]), strict=True):
            count._obj.value = value
        return 0

    def do_nvmlDeviceGetRetiredPagesPendingStatus(self, handle, pending):
        [pending._obj.value] = self.answers.get("nvmlDeviceGetRetiredPagesPendingStatus", [0])
        return 0

    def do_nvmlDeviceGetFieldValues(self, handle, count, values):
        [value] = values._obj
        assert value.fieldId == pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION
        value.nvmlReturn, value.value.uiVal = self.answers.get("nvmlDeviceGetFieldValues", [0, 0])
        return 0

    def do_nvmlDeviceGetUtilizationRates(self, handle, rates):
        [rates._obj.gpu] = self.answers.get("nvmlDeviceGetUtilizationRates", [35])
        return 0

    def do_nvmlEventSetWait_v2(self, events, data, milliseconds):
        if not self.xids:
            time.sleep(milliseconds.value / 1000)
            return pynvml.NVML_ERROR_TIMEOUT
        data._obj.eventType, data._obj.eventData = pynvml.nvmlEventTypeXidCriticalError, self.xids.pop(0)
        return 0


@pytest.fixture
def driver(monkeypatch):
    made = Driver()
    monkeypatch.setattr(pynvml, "nvmlLib", made)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    return made


def soon(ask):
    ends = time.monotonic() + 20
    while not (answer := ask()) and time.monotonic() < ends:
        time.sleep(0.01)
    return answer


@pytest.fixture
def watch():
    """`watch(env)` looks fifty times a second, until the test is over."""
    made = []

    def start(env=ECS, **more):
        made.append(Watch(env, look_every=0.02, **more))
        return made[-1]

    yield start
    for each in made:
        each._problem = "the test is over"
    assert soon(lambda: not [thread for thread in threading.enumerate() if thread.name == "gpus"])


@pytest.mark.parametrize("env", [{}, {"NVIDIA_VISIBLE_DEVICES": "void"}, {"NVIDIA_VISIBLE_DEVICES": "none"}])
def test_without_a_gpu_nothing_is_asked(driver, watch, env):
    watched = watch(env)

    assert (watched.problem(), watched.busy, driver.calls) == (None, None, [])


def test_a_healthy_gpu_is_no_problem_and_tells_how_busy_it_is(driver, watch):
    watched = watch()

    assert watched.problem() is None
    assert watched.busy == pytest.approx(0.35)


@pytest.mark.parametrize(
    "case, answers, said",
    [
        ("no driver", {"nvmlInitWithFlags": pynvml.NVML_ERROR_DRIVER_NOT_LOADED}, "NVML: Driver Not Loaded"),
        ("off the bus", {"nvmlDeviceGetTotalEccErrors": pynvml.NVML_ERROR_GPU_IS_LOST}, "NVML: GPU is lost"),
        ("stuck", {"nvmlDeviceGetUtilizationRates": pynvml.NVML_ERROR_RESET_REQUIRED}, "NVML: GPU requires restart"),
        ("bad memory", {"nvmlDeviceGetTotalEccErrors": [2]}, "uncorrectable memory errors .*: 2"),
        ("rows to replace", {"nvmlDeviceGetRemappedRows": [0, 1, 1, 0]}, "memory is bad"),
        ("no rows left", {"nvmlDeviceGetRemappedRows": [0, 1, 0, 1]}, "memory is bad"),
        ("pages to retire", {"nvmlDeviceGetRetiredPagesPendingStatus": [1]}, "memory is bad"),
        ("NVIDIA's advice", {"nvmlDeviceGetFieldValues": [0, 2]}, "recovery .*ACTION 2"),
        ("events fail", {"nvmlEventSetWait_v2": pynvml.NVML_ERROR_UNKNOWN}, "NVML: Unknown Error"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_with_a_gpu_is_told(driver, watch, case, answers, said):
    driver.answers = answers
    watched = watch()

    found = soon(watched.problem)

    assert found and re.search(said, found), found
    driver.answers = {}
    time.sleep(0.1)
    assert watched.problem() == found  # once broken, always broken


@pytest.mark.parametrize(
    "assigned_to_us, there, missing",
    [
        ("GPU-5a,GPU-6b", ["GPU-5a"], "GPU-6b"),
        ("GPU-5a", [], "GPU-5a"),
        ("0,1", ["GPU-5a"], "1"),
    ],
)
def test_a_gpu_that_is_assigned_and_not_there_is_a_problem_before_any_job(
    driver, watch, assigned_to_us, there, missing
):
    driver.gpus = there

    assert watch({"NVIDIA_VISIBLE_DEVICES": assigned_to_us}).problem().startswith(f"{missing} was assigned and is not")


def test_a_gpu_that_is_well_for_long_stays_no_problem(driver, watch):
    watched = watch(silent_after=1.5)
    time.sleep(2)

    assert watched.problem() is None


def test_an_image_that_asks_for_all_gpus_was_promised_none(driver, watch):
    driver.gpus = []
    watched = watch({"NVIDIA_VISIBLE_DEVICES": "all"})

    assert (watched.problem(), watched.busy) == (None, None)


def test_a_grave_xid_is_a_problem(driver, watch):
    watched = watch()
    assert watched.problem() is None

    driver.xids = [79]

    assert soon(watched.problem) == "Xid 79"


def test_a_program_that_reads_beyond_its_memory_is_none(driver, watch):
    driver.xids = [31, 13, 43]
    watched = watch()

    assert soon(lambda: not driver.xids)
    assert watched.problem() is None


@pytest.mark.parametrize(
    "untold", [pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, pynvml.NVML_ERROR_NO_PERMISSION]
)
def test_what_a_gpu_cannot_tell_is_no_problem(driver, watch, untold):
    asked = ["TotalEccErrors", "RemappedRows", "RetiredPagesPendingStatus", "FieldValues", "UtilizationRates"]
    driver.answers = {f"nvmlDeviceGet{name}": untold for name in asked} | {"nvmlDeviceRegisterEvents": untold}
    watched = watch()

    assert soon(lambda: driver.calls.count("nvmlDeviceGetTotalEccErrors") > 2)
    assert (watched.problem(), watched.busy) == (None, None)


def test_a_field_that_a_driver_does_not_know_is_no_problem(driver, watch):
    driver.answers = {"nvmlDeviceGetFieldValues": [pynvml.NVML_ERROR_NOT_SUPPORTED, 7]}

    assert watch().problem() is None


def test_a_driver_that_never_answers_is_a_problem(driver, watch):
    driver.stuck.clear()

    watched = watch(silent_after=0.2)
    assert watched.problem() == "NVML has not answered for 0.2 s"
    driver.stuck.set()
    time.sleep(0.1)
    assert watched.problem() == "NVML has not answered for 0.2 s"


def test_a_driver_that_stops_answering_is_a_problem_and_does_not_hold_up_who_asks(driver, watch):
    watched = watch(silent_after=0.5)
    assert watched.problem() is None
    driver.stuck.clear()

    began = time.monotonic()
    assert watched.problem() is None
    assert time.monotonic() - began < 0.2
    assert "has not answered" in soon(watched.problem)
    driver.stuck.set()
    time.sleep(0.1)
    assert "has not answered" in watched.problem()


@pytest.mark.parametrize(
    "capabilities, looks", [("compute", False), ("compute,utility", True), ("all", True), ("", True)]
)
def test_a_container_without_nvml_is_not_watched(driver, watch, capabilities, looks):
    watched = watch({**ECS, "NVIDIA_DRIVER_CAPABILITIES": capabilities})

    assert watched.problem() is None
    assert bool(driver.calls) is looks


def test_a_machine_without_nvml_is_not_watched(watch, monkeypatch, capsys):
    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "CDLL", lambda name: (_ for _ in ()).throw(OSError(f"{name}: no such file")))

    assert watch().problem() is None
    assert "cannot be watched" in capsys.readouterr().out


def test_a_mistake_of_ours_replaces_no_machine(watch, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(NVMLError=OSError, NVMLError_LibraryNotFound=OSError))

    assert watch().problem() is None
    assert "cannot be watched" in capsys.readouterr().out


@pytest.mark.parametrize(
    "told, names",
    [("GPU-5a", ["GPU-5a"]), ("GPU-5a, GPU-6b", ["GPU-5a", "GPU-6b"]), ("all", ["all"]), ("", []), ("void", [])],
)
def test_the_gpus_that_were_assigned(told, names):
    assert assigned({"NVIDIA_VISIBLE_DEVICES": told}) == names


def test_nothing_is_loaded_where_there_is_no_gpu():
    code = "import sys; from gpu_worker import health; assert health.problem() is health.busy() is None; sys.exit('pynvml' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], cwd="ecs-tasks/gpu-worker", env={}, check=False).returncode == 0


def test_a_broken_machine_ends_now_and_has_no_pulse(tmp_path):
    now, problems = datetime.now(UTC), [None, "Xid 79"]
    host = Host(tmp_path, timedelta(seconds=110), tmp_path / "pulse", lambda: problems.pop(0))
    assert host.doom(now) is None
    host.pulse()
    (tmp_path / "pulse").unlink()

    assert host.doom(now) == Doom(now, now)
    assert host.doom(now + timedelta(seconds=9)) == Doom(now, now)
    host.pulse()
    assert host.broken and not (tmp_path / "pulse").exists()


BAD_GPU = """
import os, time

class NVMLError(Exception): pass
class NVMLError_NotSupported(NVMLError): pass
class NVMLError_Timeout(NVMLError): pass
class NVMLError_Other(NVMLError): pass

def nvmlEventSetWait_v2(events, milliseconds):
    time.sleep(0.1)
    raise NVMLError_Timeout

def __getattr__(name):
    def call(*args):
        if os.path.exists("broken"):
            raise NVMLError("GPU is lost")
        if name.startswith("nvmlDeviceGet") and name != "nvmlDeviceGetHandleByUUID":
            raise NVMLError_NotSupported
    return NVMLError_Other if name.startswith("NVMLError_") else call
"""
"""Stands in for the bindings in the worker's own process; all is well until there is a file called `broken`."""


@pytest.fixture
def bench(endpoint, tmp_path):
    made = Bench(endpoint, tmp_path)
    (tmp_path / "bindings").mkdir()
    (tmp_path / "bindings/pynvml.py").write_text(BAD_GPU)
    made.gpu = {**ECS, "PYTHONPATH": f"{tmp_path / 'bindings'}:{made.env()['PYTHONPATH']}"}
    return made


def test_a_worker_whose_gpu_breaks_gives_its_job_back_and_says_so(bench):
    job_id = bench.job(b"sleep 60")
    with bench.worker(**bench.gpu) as worker:
        bench.until_state(job_id, "RUNNING")
        (bench.folder / "broken").touch()
        assert worker.wait(20) == BROKEN
        [said] = [line for line in worker.said() if line["event"] == "this machine is broken"]

    record = bench.record(job_id)
    assert "GPU is lost" in said["problem"]
    assert (record["state"], record["releases"], record.get("failures", 0)) == ("QUEUED", 1, 0)
    until(lambda: bench.messages() == (1, 0))


def test_a_worker_whose_gpu_is_broken_takes_no_job(bench):
    job_id = bench.job(b"sleep 0")
    (bench.folder / "broken").touch()
    with bench.worker(**bench.gpu) as worker:
        assert worker.wait(20) == BROKEN

    assert "attempts" not in bench.record(job_id)
    assert bench.messages() == (1, 0)
