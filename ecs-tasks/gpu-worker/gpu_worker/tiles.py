"""Strips of a very large picture: how it is cut, and the file in which a strip travels.

A picture is resampled along one axis, cut to bytes, then along the other. Along the first axis a row knows nothing of
its neighbours (nor does a column, in a picture so tall that the columns come first). So strips are cut along that axis
and need no overlap: each is resampled along it on its own, they are laid side by side, and the second pass goes over
the whole. That is what happens to an unsplit picture, in the same order, so the bytes are the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile, ZipInfo

from PIL import Image

from gpu_worker.passes import Size

SOURCE = "source.raw"
"""The strip before it is resampled; afterwards there is one picture for each rendition, by its name (without a dot)."""

MOST_STRIPS = 500
"""Each is a job of its own."""


@dataclass(frozen=True)
class Strip:
    """What lies from `start` on in a picture of size `whole`: some of its columns if it is tall, else of its rows."""

    whole: Size
    tall: bool
    start: int
    profile: bytes | None
    pictures: Mapping[str, Image.Image]

    def write(self, path: Path) -> None:
        """A zip of raw pixels: no codec, any mode, and a check sum. The same strip gives the same bytes."""
        facts = {
            "whole": self.whole,
            "tall": self.tall,
            "start": self.start,
            "pictures": {name: [picture.mode, picture.size] for name, picture in self.pictures.items()},
        }
        with ZipFile(path, "w") as file:
            file.writestr(ZipInfo("strip.json"), json.dumps(facts))
            if self.profile is not None:
                file.writestr(ZipInfo("profile.icc"), self.profile)
            for name, picture in self.pictures.items():
                file.writestr(ZipInfo(name), picture.tobytes())

    @classmethod
    def read(cls, path: Path, *names: str) -> Strip:
        """The strip in this file, with no more of its pictures than these."""
        with ZipFile(path) as file:
            facts = json.loads(file.read("strip.json"))
            return cls(
                whole=(facts["whole"][0], facts["whole"][1]),
                tall=facts["tall"],
                start=facts["start"],
                profile=file.read("profile.icc") if "profile.icc" in file.namelist() else None,
                pictures={
                    name: Image.frombytes(mode, tuple(size), file.read(name))
                    for name, (mode, size) in facts["pictures"].items()
                    if name in names
                },
            )


def cut(image: Image.Image, tall: bool, most_pixels: int) -> Iterator[Strip]:
    """Strips of at most `most_pixels`, but at least one row or column and a five-hundredth of the picture."""
    width, height = image.size
    length, breadth = (width, height) if tall else (height, width)
    thickness = max(1, most_pixels // breadth, -(-length // MOST_STRIPS))
    for start in range(0, length, thickness):
        end = min(start + thickness, length)
        part = image.crop((start, 0, end, height) if tall else (0, start, width, end))
        yield Strip(image.size, tall, start, image.info.get("icc_profile"), {SOURCE: part})


def first_pass(strip: Strip, size: Size) -> Size:
    """What the first of the two passes makes of this strip, for a rendition of this size."""
    width, height = strip.pictures[SOURCE].size
    return (width, size[1]) if strip.tall else (size[0], height)


def joined(paths: list[Path], name: str, size: Size) -> Image.Image:
    """The strips of one rendition side by side, read one after the other: it waits for its second pass."""
    canvas = None
    for path in paths:
        strip = Strip.read(path, name)
        picture = strip.pictures[name]
        if canvas is None:
            whole = (strip.whole[0], size[1]) if strip.tall else (size[0], strip.whole[1])
            canvas = Image.new(picture.mode, whole)
        canvas.paste(picture, (strip.start, 0) if strip.tall else (0, strip.start))
    if canvas is None:
        raise ValueError("no strips")
    return canvas
