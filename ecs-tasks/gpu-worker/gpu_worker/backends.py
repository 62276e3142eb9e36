"""Who resamples for the built-in processor: Pillow itself, or an array library, which gives the same bytes on a GPU.

`SPINDRIFT_IMAGES_BACKEND` names one of `pillow`, `numpy`, `cupy`, `torch`. Without it, or with `auto`, it is the GPU
if ECS assigned one and CuPy or PyTorch is installed and sees it; else Pillow, which is the fastest without one.
The libraries come with the user's base image and are loaded only when they are asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from gpu_worker.health import assigned

if TYPE_CHECKING:
    from gpu_worker.resample import Arrays

Resize = Callable[[tuple[int, int]], list[Image.Image]]
Backend = Callable[[Sequence[Image.Image]], Resize]
"""Takes pictures of one size and mode once, to make them small together, and more than once."""


class BadBackend(Exception):
    """What was asked for is not there."""


def choose(env: MutableMapping[str, str]) -> tuple[str, Backend]:
    """The backend's name and the backend; CUDA is told in `env` which GPUs are ours, where nobody told it."""
    asked = env.get("SPINDRIFT_IMAGES_BACKEND") or "auto"
    given = assigned(env)
    if given and given[0].startswith("GPU-"):
        env.setdefault("CUDA_VISIBLE_DEVICES", ",".join(given))
    if asked == "pillow":
        return asked, _pillow
    if asked in LIBRARIES:
        return asked, _arrays(LIBRARIES[asked]())
    if asked != "auto":
        raise BadBackend(f"SPINDRIFT_IMAGES_BACKEND: auto, pillow or one of {', '.join(LIBRARIES)}, got {asked!r}")
    for name in ("cupy", "torch") if given else ():
        try:
            return name, _arrays(LIBRARIES[name]())
        except BadBackend:
            continue
    return "pillow", _pillow


def _pillow(images: Sequence[Image.Image]) -> Resize:
    return lambda size: [image.resize(size, Image.Resampling.LANCZOS) for image in images]


def _arrays(arrays: Arrays) -> Backend:
    from gpu_worker import resample  # noqa: PLC0415 (it wants NumPy, which Pillow does without)

    numpy = _library("numpy")

    def backend(images: Sequence[Image.Image]) -> Resize:
        width, height, mode = images[0].width, images[0].height, images[0].mode
        pixels = arrays.put(numpy.stack([numpy.array(image).reshape(height, width, -1) for image in images]))

        def resize(size: tuple[int, int]) -> list[Image.Image]:
            made = arrays.get(resample.resize(arrays, pixels, size, resample.LANCZOS, alpha=mode == "RGBA"))
            return [Image.frombytes(mode, size, each.tobytes()) for each in made]

        return resize

    return backend


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise BadBackend(f"SPINDRIFT_IMAGES_BACKEND: {name} cannot be loaded: {error}") from error


def _numpy() -> Arrays:
    arrays: Arrays = _library("gpu_worker.resample").NUMPY
    return arrays


def _cupy() -> Arrays:
    cupy = _library("cupy")
    if not cupy.cuda.is_available():
        raise BadBackend("SPINDRIFT_IMAGES_BACKEND: CuPy sees no GPU")
    made: Arrays = _library("gpu_worker.resample").Arrays(cupy, cupy.asarray, cupy.asnumpy)
    return made


def _torch() -> Arrays:
    torch = _library("torch")
    if not torch.cuda.is_available():
        raise BadBackend("SPINDRIFT_IMAGES_BACKEND: PyTorch sees no GPU")
    made: Arrays = _library("gpu_worker.resample").Arrays(
        torch, lambda values: torch.asarray(values, device="cuda"), lambda array: array.cpu().numpy()
    )
    return made


LIBRARIES: Mapping[str, Callable[[], Arrays]] = {"numpy": _numpy, "cupy": _cupy, "torch": _torch}
