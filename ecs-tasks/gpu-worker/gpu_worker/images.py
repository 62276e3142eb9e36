"""The built-in processor: a JPEG, PNG or WebP in, smaller renditions out.

Options: `{"renditions": [{"name": "thumb", "width": 256}, ...], "format": "jpeg" or "webp", "quality": 1 to 95,
"max_pixels": ..., "split_pixels": 0 or ..., "decoder": "pillow" or "fast"}`. The same input gives the same bytes, on a
CPU as on a GPU (`backends`), in one piece as in strips (`tiles`); only the fast decoder may differ, by a level or two.
What an upload is, its content decides, not its name.
"""

from __future__ import annotations

import os
import re
import struct
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from gpu_worker import nvdecode, tiles
from gpu_worker.backends import Backend, BadBackend, choose
from gpu_worker.log import log
from gpu_worker.outcome import Rejected
from gpu_worker.passes import columns_first

DEFAULTS: Mapping[str, Any] = {
    "renditions": [
        {"name": "thumb", "width": 256},
        {"name": "medium", "width": 1024},
        {"name": "large", "width": 2048},
    ],
    "format": "webp",
    "quality": 80,
    "max_pixels": 100_000_000,
    "split_pixels": 0,
    "decoder": "pillow",
}

READ = ("JPEG", "PNG", "WEBP")
SUFFIX = {"jpeg": "jpg", "webp": "webp"}
STRIP = "strip.zip"
"""What becomes of a part."""
TOGETHER = 16_000_000
"""Pixels of several pictures that are in memory at once: a larger picture keeps a GPU busy alone."""
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
    if asked["split_pixels"] != 0 and not _whole(asked["split_pixels"], 1_000_000, 2**31):
        found.append(f"split_pixels: 0 (never) or 1,000,000 to 2^31, got {asked['split_pixels']!r}")
    if asked["decoder"] not in {"pillow", "fast"}:
        found.append(f"decoder: pillow or fast, got {asked['decoder']!r}")
    try:
        _backend()
        if asked["decoder"] == "fast":
            nvdecode.load()
    except (BadBackend, nvdecode.NoDecoder) as error:
        found.append(str(error))
    return found + _problems_of_renditions(asked["renditions"])


def _problems_of_renditions(renditions: Any) -> list[str]:
    if not isinstance(renditions, list) or not renditions or not all(isinstance(each, dict) for each in renditions):
        return [f"renditions: a list of name and width, got {renditions!r}"]
    found = []
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
    if "part" in job:
        return _narrow(input, output_dir / STRIP, options)
    return _render([_source(input, options)], [output_dir], options)


def process_many(inputs: Sequence[Path], output_dirs: Sequence[Path], jobs: Sequence[Mapping[str, Any]]) -> None:
    """The same bytes as by `process`, one after the other; pictures of one size and mode are made smaller in one go."""
    options = {**DEFAULTS, **jobs[0]["options"]}  # they are the worker's
    by_size = defaultdict(list)
    for path, output_dir in zip(inputs, output_dirs, strict=True):
        with _opened(path, options) as image:
            by_size[image.size].append((path, output_dir))
    for (width, height), some in by_size.items():
        most = max(1, TOGETHER // max(1, width * height))
        for start in range(0, len(some), most):
            alike = defaultdict(list)  # only pixels tell the mode, and which way up it stands
            for path, output_dir in some[start : start + most]:
                source = _source(path, options)
                alike[source.size, source.mode].append((source, output_dir))
            for pictures in alike.values():
                _render([source for source, _ in pictures], [output_dir for _, output_dir in pictures], options)


def split(input: Path, parts_dir: Path, job: Mapping[str, Any]) -> None:  # noqa: A002 (the contract's name)
    """Cut a picture of more than `split_pixels` into strips; write nothing for any other.

    Nor for one about twice as tall as wide, of whose renditions some are made lower first and some narrower.
    """
    options = {**DEFAULTS, **job["options"]}
    if not options["split_pixels"]:
        return
    with _opened(input, options) as image:
        if image.width * image.height <= options["split_pixels"]:
            return
    source = _source(input, options)
    orders = {columns_first(source.size, size) for size in _sizes(source.size, options).values()}
    if len(orders) == 1:
        for number, strip in enumerate(tiles.cut(source, orders.pop(), options["split_pixels"])):
            strip.write(parts_dir / f"{number:05d}.zip")


def stitch(parts: Sequence[Path], output_dir: Path, job: Mapping[str, Any]) -> None:
    """Write the bytes that `process` writes for the whole picture; a part is a folder with what became of a strip."""
    options = {**DEFAULTS, **job["options"]}
    paths = [part / STRIP for part in parts]
    first = tiles.Strip.read(paths[0])
    for name, size in _sizes(first.whole, options).items():
        image = tiles.joined(paths, name, size)
        if image.size != size:
            [image] = _backend()([image])(size)
        image = image.convert("RGBA") if image.mode == "RGBa" else image
        _save(image, output_dir, name, first.profile, options)


def _narrow(path: Path, made: Path, options: Mapping[str, Any]) -> None:
    """One strip through the first of the two passes, for each rendition; the second is the stitch's.

    Pillow weighs colours by their alpha before the first pass and undoes it after the second (RGBa).
    """
    strip = tiles.Strip.read(path, tiles.SOURCE)
    source = strip.pictures[tiles.SOURCE]
    resize = _backend()([source.convert("RGBa") if source.mode == "RGBA" else source])
    pictures = {
        name: source if size == strip.whole else resize(tiles.first_pass(strip, size))[0]
        for name, size in _sizes(strip.whole, options).items()
    }
    replace(strip, pictures=pictures).write(made)


@cache
def _backend() -> Backend:
    """Chosen once: the GPU does not come and go."""
    name, backend = choose(os.environ)
    log("images", backend=name)
    return backend


def _source(path: Path, options: Mapping[str, Any]) -> Image.Image:
    """The picture, upright and plain; of all else that its file tells, the colour profile alone."""
    with _opened(path, options) as file:
        image = (nvdecode.decoded(file, path) if options["decoder"] == "fast" else None) or file
        image.load()
        ImageOps.exif_transpose(image, in_place=True)  # a copy of a very large picture would double the memory
    source = _plain(image)
    source.info = {name: value for name, value in source.info.items() if name == "icc_profile"}
    return source


@contextmanager
def _opened(path: Path, options: Mapping[str, Any]) -> Iterator[Image.Image]:
    """The file's header is read, its pixels are not; what is wrong with either is a reason to reject it."""
    if path.stat().st_size == 0:
        raise Rejected("the file is empty")
    Image.MAX_IMAGE_PIXELS = options["max_pixels"]
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=READ) as image:
                yield image
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


def _sizes(whole: tuple[int, int], options: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """How wide and how high each rendition of a picture of this size is."""
    width, height = whole
    sizes = {}
    for rendition in options["renditions"]:
        scale = min(1.0, rendition["width"] / width, LONGEST_SIDE[options["format"]] / height)
        sizes[rendition["name"]] = (max(1, round(width * scale)), max(1, round(height * scale)))
    return sizes


def _render(sources: Sequence[Image.Image], output_dirs: Sequence[Path], options: Mapping[str, Any]) -> None:
    """Write the renditions of pictures of one size and mode."""
    resize = _backend()(sources)
    for name, size in _sizes(sources[0].size, options).items():
        for made, source, output_dir in zip(resize(size), sources, output_dirs, strict=True):
            _save(made, output_dir, name, source.info.get("icc_profile"), options)


def _save(image: Image.Image, output_dir: Path, name: str, profile: bytes | None, options: Mapping[str, Any]) -> None:
    form = options["format"]
    image = _flattened(image) if form == "jpeg" else image
    image.save(output_dir / f"{name}.{SUFFIX[form]}", form, quality=options["quality"], icc_profile=profile)


def _flattened(image: Image.Image) -> Image.Image:
    if image.mode != "RGBA":
        return image
    paper = Image.new("RGB", image.size, PAPER)
    paper.paste(image, mask=image.getchannel("A"))
    return paper


def _whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
