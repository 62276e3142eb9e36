"""Whether the GPUs that ECS gave this container are there and well, as NVIDIA's management library (NVML) tells it.

A worker on a broken GPU would fail job after job and pull more than its share. So it takes none, gives back what it
has, and exits with `BROKEN`: the instance is to be replaced. Where no GPU was assigned nothing is loaded and asked.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Mapping
from functools import cache
from threading import Event, Thread
from typing import Any

from gpu_worker.log import log

BROKEN = 64
"""The worker's exit code for "this machine's GPU is broken"."""

LOOK_EVERY = 5.0
SILENT_AFTER = 60.0
"""Seconds. A GPU that fell off its bus may leave the driver, and who asks it, stuck for good."""

OF_THE_APPLICATION = {13, 31, 43, 45, 68, 109}
"""Xids that a faulty program raises on a healthy GPU (NVIDIA's k8s-device-plugin, internal/rm/health.go)."""


def assigned(env: Mapping[str, str]) -> list[str]:
    """The GPUs that this container was given: their UUIDs from ECS, `all` from CUDA's base images."""
    given = env.get("NVIDIA_VISIBLE_DEVICES", "")
    return [] if given in {"none", "void"} else [name.strip() for name in given.split(",") if name.strip()]


def problem() -> str | None:
    """What is wrong with this worker's GPUs, if anything is; once something is, it stays so. Cheap to ask."""
    return _watch().problem()


def busy() -> float | None:
    """The share of time (0 to 1) in which the GPUs worked of late, all of them taken together; None without a GPU."""
    return _watch().busy


@cache
def _watch() -> Watch:
    return Watch(os.environ)


class Watch:
    """Looks every few seconds and hears of Xids in between, in a thread of its own: the driver may not answer."""

    def __init__(
        self, env: Mapping[str, str], look_every: float = LOOK_EVERY, silent_after: float = SILENT_AFTER
    ) -> None:
        self.busy: float | None = None
        self._names = assigned(env)
        self._look_every = look_every
        self._silent_after = silent_after
        self._problem: str | None = None
        self._heard = time.monotonic()
        self._looked = Event()
        # The container toolkit brings NVML with the capability `utility`, which is among its defaults.
        capabilities = (env.get("NVIDIA_DRIVER_CAPABILITIES") or "utility").split(",")
        self._watching = bool(self._names) and bool({"utility", "all"} & set(capabilities))
        if self._watching:
            Thread(target=self._run, name="gpus", daemon=True).start()

    def problem(self) -> str | None:
        """What is wrong, if anything is. The first look is waited for: no job is taken before it."""
        if not self._watching:
            return None
        self._looked.wait(self._silent_after)
        if self._problem is None and time.monotonic() - self._heard > self._silent_after:
            self._problem = f"NVML has not answered for {self._silent_after:g} s"
        return self._problem

    def _run(self) -> None:
        try:
            nvml = importlib.import_module("pynvml")
            try:
                self._look_on(nvml)
            except nvml.NVMLError_LibraryNotFound:
                raise
            except nvml.NVMLError as error:
                self._problem = f"NVML: {error}"
        except Exception as error:  # noqa: BLE001 (not knowing is no reason to stop)
            log("the GPUs cannot be watched", error=repr(error))
            self._watching = False
        self._looked.set()

    def _look_on(self, nvml: Any) -> None:
        nvml.nvmlInit()
        gpus, missing = _seen(nvml, self._names)
        self._problem = self._problem or missing
        xids = _xids(nvml, gpus)
        while self._problem is None:
            found = next(filter(None, (_illness(nvml, gpu) for gpu in gpus)), None)
            self.busy = _busy(nvml, gpus)
            self._heard = time.monotonic()
            self._problem = self._problem or found
            self._looked.set()
            xid = _next_xid(nvml, xids, self._look_every)
            self._problem = self._problem or xid  # whoever asks may have lost patience meanwhile


def _seen(nvml: Any, names: list[str]) -> tuple[list[Any], str | None]:
    """The GPUs, or that one is missing."""
    if names == ["all"]:
        return [nvml.nvmlDeviceGetHandleByIndex(place) for place in range(nvml.nvmlDeviceGetCount())], None
    gpus = []
    for place, name in enumerate(names):
        try:
            by_name = name.startswith(("GPU-", "MIG-"))
            gpus.append(nvml.nvmlDeviceGetHandleByUUID(name) if by_name else nvml.nvmlDeviceGetHandleByIndex(place))
        except (nvml.NVMLError_NotFound, nvml.NVMLError_InvalidArgument) as error:
            return gpus, f"{name} was assigned and is not there: {error}"
    return gpus, None


def _illness(nvml: Any, gpu: Any) -> str | None:
    """What a look at one GPU finds."""

    def ask(what: Callable[..., Any], *details: object, untold: Any) -> Any:
        try:
            return what(gpu, *details)
        except _untold(nvml):
            return untold

    uncorrected = nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
    if errors := ask(nvml.nvmlDeviceGetTotalEccErrors, *uncorrected, untold=0):
        return f"uncorrectable memory errors since the driver was loaded: {errors}"
    _, _, pending, failed = ask(nvml.nvmlDeviceGetRemappedRows, untold=(0, 0, 0, 0))
    if pending or failed or ask(nvml.nvmlDeviceGetRetiredPagesPendingStatus, untold=0):
        return "a part of its memory is bad and not yet replaced"
    for action in ask(nvml.nvmlDeviceGetFieldValues, [nvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION], untold=[]):
        if action.nvmlReturn == nvml.NVML_SUCCESS and action.value.uiVal != nvml.NVML_GPU_RECOVERY_ACTION_NONE:
            return f"the driver asks for a recovery (NVML_GPU_RECOVERY_ACTION {action.value.uiVal})"
    return None


def _untold(nvml: Any) -> tuple[type[Exception], ...]:
    """What NVML raises where a model, a driver or a container cannot tell: no news is not bad news."""
    return nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound, nvml.NVMLError_NoPermission


def _busy(nvml: Any, gpus: list[Any]) -> float | None:
    try:
        shares = [nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100 for gpu in gpus]
    except _untold(nvml):
        return None
    return sum(shares) / len(shares) if shares else None


def _xids(nvml: Any, gpus: list[Any]) -> Any:
    """The events to wait for; None where no GPU tells of any."""
    events, registered = nvml.nvmlEventSetCreate(), False
    for gpu in gpus:
        try:
            nvml.nvmlDeviceRegisterEvents(gpu, nvml.nvmlEventTypeXidCriticalError, events)
            registered = True
        except _untold(nvml):
            continue
    return events if registered else None


def _next_xid(nvml: Any, events: Any, seconds: float) -> str | None:
    """Wait for a grave Xid, or let this time pass."""
    if events is None:
        time.sleep(seconds)
        return None
    try:
        event = nvml.nvmlEventSetWait_v2(events, round(1000 * seconds))
    except nvml.NVMLError_Timeout:
        return None
    return None if event.eventData in OF_THE_APPLICATION else f"Xid {event.eventData}"
