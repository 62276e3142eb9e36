"""NVIDIA's nvImageCodec as a faster JPEG decoder, for those who ask for it.

Its pixels may differ from Pillow's by a level or two (another inverse transform, another way to enlarge the colours),
so the same upload gives other bytes with it than without; and it may take damaged files that Pillow refuses.
"""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image


class NoDecoder(Exception):
    """The library, or the GPU it works on, is not there."""


@cache
def load() -> tuple[Any, Any]:
    """The library and a decoder, made once. Raises NoDecoder."""
    try:
        library = importlib.import_module("nvidia.nvimgcodec")
        return library, library.Decoder()
    except (ImportError, RuntimeError) as error:
        raise NoDecoder(f"decoder: fast wants nvImageCodec and a GPU: {error}") from error


def decoded(image: Image.Image, path: Path) -> Image.Image | None:
    """The pixels of an opened file, with all that Pillow knows of it; None where Pillow had better do it."""
    if image.format != "JPEG" or image.mode not in {"RGB", "L"}:
        return None
    library, decoder = load()
    colours = library.ColorSpec.SRGB if image.mode == "RGB" else library.ColorSpec.GRAY
    params = library.DecodeParams(apply_exif_orientation=False, color_spec=colours)
    pixels = decoder.decode(path.read_bytes(), params=params)
    if pixels is None:
        return None
    numpy = importlib.import_module("numpy")
    made = Image.frombytes(image.mode, image.size, numpy.asarray(pixels.cpu()).tobytes())
    made.info = image.info.copy()
    return made
