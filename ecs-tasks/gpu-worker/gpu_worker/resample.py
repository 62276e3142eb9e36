"""Pillow's resampling of 8-bit pictures, to the byte, in integers and for any array library (NumPy, CuPy, PyTorch).

The weights are made as Pillow makes them (src/libImaging/Resample.c): in doubles, one after the other, then rounded to
22 bits after the point. From there on everything is whole numbers, so no library and no device can round differently.
A picture is an array of rows, columns and channels; it is weighed along one axis, cut to bytes, then along the other.
So are several of one size in one go, with one axis more in front.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from gpu_worker.passes import Size, columns_first

Doubles = npt.NDArray[np.float64]
Box = tuple[float, float, float, float]

ROWS, COLUMNS = -3, -2
"""Axes of a picture, or of several."""
POINT = 22
"""Bits after the point of a weight: of 32, eight are the pixel's and two are room for weights below 0 and above 1."""


@dataclass(frozen=True)
class Arrays:
    """An array library on a device: its module, the way there and the way back."""

    xp: Any
    put: Callable[[Any], Any]
    get: Callable[[Any], Any]


NUMPY = Arrays(np, lambda values: values, lambda values: values)


@dataclass(frozen=True)
class Kernel:
    """A filter: how much a pixel at this distance counts, and from which distance on it does not count."""

    support: float
    weigh: Callable[[Doubles], Doubles]


def _box(x: Doubles) -> Doubles:
    return ((x > -0.5) & (x <= 0.5)).astype(float)


def _bilinear(x: Doubles) -> Doubles:
    x = abs(x)
    return np.where(x < 1.0, 1.0 - x, 0.0)


def _bicubic(x: Doubles) -> Doubles:
    """Keys' cubic convolution with a = -0.5, in Pillow's order of operations."""
    x = abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _lanczos(x: Doubles) -> Doubles:
    return np.where((x >= -3.0) & (x < 3.0), _sinc(x) * _sinc(x / 3), 0.0)


def _sinc(x: Doubles) -> Doubles:
    """By the C library's sine, as Pillow; NumPy's own may differ in the last bit."""
    angle = np.where(x == 0.0, 1.0, x * math.pi)
    sine = np.fromiter(map(math.sin, angle.ravel().tolist()), float, angle.size).reshape(angle.shape)
    return np.where(x == 0.0, 1.0, sine / angle)


BOX, BILINEAR, BICUBIC, LANCZOS = (
    Kernel(0.5, _box),
    Kernel(1.0, _bilinear),
    Kernel(2.0, _bicubic),
    Kernel(3.0, _lanczos),
)


def resize(arrays: Arrays, pixels: Any, size: Size, kernel: Kernel, *, alpha: bool, box: Box | None = None) -> Any:
    """Resample rows x columns x channels of bytes to `size` (width, height), as Pillow's `Image.resize` does.

    Whatever axes come before these three are pictures of their own, of which each becomes what it would become alone.
    `pixels` lies where `arrays.put` puts it, and so does the result. `alpha`: the last channel says how much of the
    others shines, so they are weighed by it. `box`: the part of the picture to show (left, upper, right, lower).
    """
    height, width = pixels.shape[-3:-1]
    box = box or (0, 0, width, height)
    if (width, height) == size and box == (0, 0, width, height):
        return pixels
    if alpha:
        pixels = _premultiplied(arrays.xp, pixels)
    passes = [(COLUMNS, width, box[0], box[2], size[0]), (ROWS, height, box[1], box[3], size[1])]
    for axis, length, start, end, target in reversed(passes) if columns_first((width, height), size) else passes:
        if (length, start, end) != (target, 0, target):
            pixels = _weighed(arrays, pixels, axis, *weights(length, start, end, target, kernel))
    return _unmultiplied(arrays.xp, pixels) if alpha else pixels


@lru_cache(maxsize=64)
def weights(
    length: int, start: float, end: float, target: int, kernel: Kernel
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """For each of `target` pixels: the first one of `length` that counts, and how much it and those after it count.

    What is 0 beyond the end pads the rows to the same number of taps.
    """
    begin, stop = np.float32(start), np.float32(end)  # Pillow keeps a box in single precision
    scale = float(stop - begin) / target
    stretch = max(scale, 1.0)
    reach = kernel.support * stretch
    centre = float(begin) + (np.arange(target) + 0.5) * scale
    first = np.maximum((centre - reach + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + reach + 0.5).astype(np.int64), length)

    place = first[:, None] + np.arange((last - first).max())
    weight = np.where(place < last[:, None], kernel.weigh((place - centre[:, None] + 0.5) * (1.0 / stretch)), 0.0)
    total = weight.cumsum(axis=1)[:, -1:]  # one after the other; `sum` would add in pairs
    weight = np.divide(weight, total, out=weight, where=total != 0.0)
    return first, (weight * (1 << POINT) + np.copysign(0.5, weight)).astype(np.int32)


def _weighed(arrays: Arrays, pixels: Any, axis: int, first: Any, weight: Any) -> Any:
    """One tap after the other, for all pixels at once: no more memory than a few pictures of the new size."""
    last = pixels.shape[axis] - 1
    shape = (-1, len(first), 1) if axis == COLUMNS else (-1, len(first), 1, 1)
    first, shares = arrays.put(first), arrays.put(np.ascontiguousarray(weight.T).reshape(shape))
    total: Any = 1 << (POINT - 1)
    for tap, share in enumerate(shares):
        place = (first + tap).clip(0, last)
        total = total + (pixels[..., place, :] if axis == COLUMNS else pixels[..., place, :, :]) * share
    return arrays.xp.asarray((total >> POINT).clip(0, 255), dtype=arrays.xp.uint8)


def _premultiplied(xp: Any, pixels: Any) -> Any:
    """Each channel times alpha over 255, rounded."""
    wide = xp.asarray(pixels, dtype=xp.int32)
    product = wide[..., :-1] * wide[..., -1:] + 128
    wide[..., :-1] = ((product >> 8) + product) >> 8
    return xp.asarray(wide, dtype=xp.uint8)


def _unmultiplied(xp: Any, pixels: Any) -> Any:
    """The way back, cut to bytes; where nothing shines there is no way back."""
    wide = xp.asarray(pixels, dtype=xp.int32)
    alpha = wide[..., -1:]
    plain = (255 * wide[..., :-1] // alpha.clip(1, 255)).clip(0, 255)
    wide[..., :-1] = xp.where(alpha == 0, wide[..., :-1], plain)
    return xp.asarray(wide, dtype=xp.uint8)
