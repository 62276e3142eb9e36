"""What the demo uploads: real photographs in many sizes and formats, and a few files that wish the worker ill."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

PHOTOS = Path(__file__).parent / "photos"
AWKWARD_KEYS = (
    "holiday pictures/the beach + the pier.jpg",
    "фото/закат над морем.jpg",
    "写真/100% 夏 & 海.jpg",
    "a=b?c#d/émile's photo (1).jpg",
)


@dataclass(frozen=True)
class Upload:
    """One object for the uploads bucket."""

    key: str
    body: bytes
    hostile: bool = False
    """Whether the only right answer is FAILED with a reason."""


def uploads(count: int, seed: int) -> Iterator[Upload]:
    """`count` uploads: five of them hostile, four with keys that break naive code, in a mixed order."""
    dice = random.Random(seed)  # noqa: S311
    bad = list(_hostile())
    keys = [*AWKWARD_KEYS, *(f"photos/{number:04}" for number in range(count - len(bad) - len(AWKWARD_KEYS)))]
    everything = [*(_photograph(key, dice) for key in keys), *bad]
    dice.shuffle(everything)
    yield from everything


def _photograph(key: str, dice: random.Random) -> Upload:
    """A crop of a real photograph, from a phone's 3 megapixels down to an icon."""
    with Image.open(dice.choice(sorted(PHOTOS.glob("*.jpg")))) as photo:
        share = dice.uniform(0.5, 1.0)
        width, height = int(photo.width * share), int(photo.height * share)
        left, top = dice.randint(0, photo.width - width), dice.randint(0, photo.height - height)
        crop = photo.crop((left, top, left + width, top + height))
        side = dice.choice((480, 960, 1600, 2000))
        crop.thumbnail((side, side))
    form = dice.choice(("JPEG", "JPEG", "JPEG", "WEBP", "PNG"))
    if key in AWKWARD_KEYS or (form == "PNG" and side > 960):
        form = "JPEG"
    body = io.BytesIO()
    crop.save(body, form, quality=85, **({"compress_level": 1} if form == "PNG" else {}))
    suffix = {"JPEG": ".jpg", "WEBP": ".webp", "PNG": ".png"}[form]
    return Upload(key if key in AWKWARD_KEYS else key + suffix, body.getvalue())


def _hostile() -> Iterator[Upload]:
    whole = (PHOTOS / "china.jpg").read_bytes()
    yield Upload("hostile/truncated.jpg", whole[: len(whole) // 2], hostile=True)
    yield Upload("hostile/empty.jpg", b"", hostile=True)
    yield Upload("hostile/text.jpg", b"I am not a picture.\n" * 50, hostile=True)
    yield Upload("hostile/noise.png", b"\x89PNG\r\n\x1a\n" + bytes(random.Random(1).randbytes(4096)), hostile=True)  # noqa: S311
    yield Upload("hostile/bomb.png", _bomb(30_000), hostile=True)


def _bomb(side: int) -> bytes:
    """A PNG of `side` x `side` black pixels: small on the wire, gigabytes when decoded without a bound."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    squeeze = zlib.compressobj(9)
    row = b"\0" * (1 + side // 8)
    pixels = b"".join([*(squeeze.compress(row) for _ in range(side)), squeeze.flush()])
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
