"""In which order Pillow resamples (pure): along the rows, then along the columns, or the other way round."""

from __future__ import annotations

Size = tuple[int, int]
"""Width and height in pixels."""


def columns_first(whole: Size, size: Size) -> bool:
    """Whether a picture is made lower before it is made narrower: where that spares much work.

    (ImagingResampleInner in Pillow 13's libImaging/Resample.c.) The order shows in the bytes.
    """
    lost_width, lost_height = whole[0] - size[0], whole[1] - size[1]
    return lost_height > max(0, 2 * lost_width)
