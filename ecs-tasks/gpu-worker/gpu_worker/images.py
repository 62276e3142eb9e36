"""The built-in processor: a JPEG, PNG or WebP in, smaller renditions out.

Options: `{"renditions": [{"name": "thumb", "width": 256}, ...], "format": "jpeg" or "webp", "quality": 1 to 95,
"max_pixels": ...}`. The same input gives the same bytes. What an upload is, its content decides, not its name.
"""

from __future__ import annotations

import re
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from gpu_worker.outcome import Rejected

DEFAULTS: Mapping[str, Any] = {
    "renditions": [
        {"name": "thumb", "width": 256},
        {"name": "medium", "width": 1024},
        {"name": "large", "width": 2048},
    ],
    "format": "webp",
    "quality": 80,
    "max_pixels": 100_000_000,
}

READ = ("JPEG", "PNG", "WEBP")
SUFFIX = {"jpeg": "jpg", "webp": "webp"}
LONGEST_SIDE = {"jpeg": 65_500, "webp": 16_383}
"""Pixels that the encoders take (libjpeg's JPEG_MAX_DIMENSION, libwebp's WEBP_MAX_DIMENSION)."""

UNREADABLE = (OSError, SyntaxError, ValueError, ArithmeticError, LookupError, EOFError, struct.error)
"""What Pillow's decoders raise on input that is truncated, damaged or made to harm."""

PAPER = (255, 255, 255)


def problems(options: Mapping[str, Any]) -> list[str]:
    """Everything that is wrong with the options, so that the worker can refuse them before it takes a job."""
    asked = {**DEFAULTS, **options}
    found = [f"unknown option {name!r}" for name in sorted(set(options) - set(DEFAULTS))]
    if asked["format"] not in SUFFIX:
        found.append(f"format: one of {', '.join(SUFFIX)}, got {asked['format']!r}")
    if not _whole(asked["quality"], 1, 95):
        found.append(f"quality: 1 to 95, got {asked['quality']!r}")
    if not _whole(asked["max_pixels"], 1, 2**31):
        found.append(f"max_pixels: 1 to 2^31, got {asked['max_pixels']!r}")
    renditions = asked["renditions"]
    if not isinstance(renditions, list) or not renditions or not all(isinstance(each, dict) for each in renditions):
        return [*found, f"renditions: a list of name and width, got {renditions!r}"]
    for each in renditions:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", str(each.get("name", ""))):
            found.append(f"renditions: a name is 1 to 64 letters, digits, - or _, got {each.get('name')!r}")
        if not _whole(each.get("width"), 1, 16_383):
            found.append(f"renditions: a width is 1 to 16383 pixels, got {each.get('width')!r}")
        if unknown := sorted(set(each) - {"name", "width"}):
            found.append(f"renditions: a name and a width, got also {', '.join(unknown)}")
    if len({each.get("name") for each in renditions}) < len(renditions):
        found.append("renditions: two have the same name")
    return found


def process(input: Path, output_dir: Path, job: Mapping[str, Any]) -> None:  # noqa: A002 (the contract's name)
    """Write one file per rendition. A rendition is never larger than its source, and stands upright."""
    options = {**DEFAULTS, **job["options"]}
    form = options["format"]
    source = _plain(_decoded(input, options["max_pixels"]))
    for rendition in options["renditions"]:
        image = _fitted(source, rendition["width"], LONGEST_SIDE[form])
        image = _flattened(image) if form == "jpeg" else image
        image.save(
            output_dir / f"{rendition['name']}.{SUFFIX[form]}",
            form,
            quality=options["quality"],
            icc_profile=source.info.get("icc_profile"),
        )


def _decoded(path: Path, max_pixels: int) -> Image.Image:
    """The picture, upright."""
    if path.stat().st_size == 0:
        raise Rejected("the file is empty")
    Image.MAX_IMAGE_PIXELS = max_pixels
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=READ) as image:
                return ImageOps.exif_transpose(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Rejected(f"decompression bomb: {error}") from error
    except UnidentifiedImageError as error:
        raise Rejected(f"neither of {', '.join(READ)}") from error
    except UNREADABLE as error:
        raise Rejected(f"cannot be decoded: {error}") from error


def _plain(image: Image.Image) -> Image.Image:
    """In RGB, RGBA or L, as JPEG and WebP want it; a colour profile stays where it still describes the numbers."""
    if image.has_transparency_data:
        plain = image.convert("RGBA")
    elif image.mode.startswith("I;16"):
        plain = image.convert("I").point([value >> 8 for value in range(65_536)], "L")  # "L" at once would clip
    elif image.mode in {"RGB", "L"}:
        return image
    else:
        plain = image.convert("RGB")
    if image.mode != plain.mode and image.mode not in {"P", "PA"}:
        plain.info.pop("icc_profile", None)
    return plain


def _fitted(image: Image.Image, width: int, longest_side: int) -> Image.Image:
    scale = min(1.0, width / image.width, longest_side / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)


def _flattened(image: Image.Image) -> Image.Image:
    if image.mode != "RGBA":
        return image
    paper = Image.new("RGB", image.size, PAPER)
    paper.paste(image, mask=image.getchannel("A"))
    return paper


def _whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
