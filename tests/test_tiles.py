"""A picture in strips and the same picture in one piece: the same bytes."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from gpu_worker.images import process, split, stitch
from gpu_worker.outcome import Rejected
from gpu_worker.tiles import MOST_STRIPS, SOURCE, Strip, cut

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
ORIENTATION = 0x0112


@pytest.fixture
def both(tmp_path):
    """Both ways through the processor: the files of the whole, the files of the strips, and how many strips."""
    runs = iter(range(10_000))

    def run(save, **options):
        place = tmp_path / str(next(runs))
        source, whole, strips, stitched = (place / name for name in ("input", "whole", "strips", "stitched"))
        for folder in (place, whole, strips, stitched):
            folder.mkdir()
        save(source)
        job = {"options": options}
        process(source, whole, job)
        split(source, strips, job)
        parts = [place / "parts" / path.stem for path in sorted(strips.iterdir())]
        for part in parts:
            part.mkdir(parents=True)
            process(strips / f"{part.name}.zip", part, {**job, "part": {"number": int(part.name)}})
        if parts:
            stitch(parts, stitched, job)
        return files(whole), files(stitched), len(parts)

    return run


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def noise(mode, size):
    return Image.merge(mode, [Image.effect_noise(size, 60 + 40 * band) for band in range(len(mode))])


sides = st.integers(1, 40) | st.integers(1, 250)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    mode=st.sampled_from(["L", "RGB", "RGBA"]),
    size=st.tuples(sides, sides),
    shares=st.lists(st.integers(1, 110), min_size=1, max_size=3, unique=True),
    form=st.sampled_from(["jpeg", "webp"]),
    pieces=st.integers(2, 7) | st.integers(1, 7),
)
@example(mode="RGBA", size=(200, 100), shares=[100, 25], form="webp", pieces=7)  # one as large as the picture
@example(mode="RGBA", size=(200, 100), shares=[70, 25], form="jpeg", pieces=7)
@example(mode="RGBA", size=(40, 250), shares=[50, 17], form="webp", pieces=7)  # so tall that it is cut into columns
@example(mode="RGB", size=(1, 250), shares=[100], form="jpeg", pieces=250)
@example(mode="RGB", size=(100, 201), shares=[99, 50, 1], form="webp", pieces=7)  # they disagree on the order
def test_strips_come_out_as_the_whole(both, mode, size, shares, form, pieces):
    """`shares` are the renditions' widths in percent of the picture's."""
    renditions = [{"name": f"w{share}", "width": max(1, size[0] * share // 100)} for share in shares]
    most = max(1, size[0] * size[1] // pieces)
    image = noise(mode, size)

    whole, stitched, strips = both(
        lambda path: image.save(path, "PNG"), renditions=renditions, format=form, split_pixels=most
    )

    assert stitched == (whole if strips else {})
    if pieces == 1:
        assert strips == 0
    elif 1 < size[1] < 2 * size[0]:
        assert strips >= min(pieces, size[1])


@pytest.mark.parametrize("photo", ["aitzgorri.jpg", "china.jpg", "life.jpg", "sunset.jpg"])
def test_photographs_come_out_as_the_whole(both, photo):
    raw = Path("localcloud/photos", photo).read_bytes()

    whole, stitched, strips = both(lambda path: path.write_bytes(raw), split_pixels=100_000)

    assert strips > 1
    assert stitched == whole
    assert set(whole) == {"thumb.webp", "medium.webp", "large.webp"}


@pytest.mark.parametrize("orientation", range(2, 9))
def test_what_lay_on_its_side_stands_upright(both, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation

    whole, stitched, strips = both(
        lambda path: noise("RGB", (300, 100)).save(path, "JPEG", exif=exif), split_pixels=10_000
    )

    assert strips > 1
    assert stitched == whole


@pytest.mark.parametrize("form", ["jpeg", "webp"])
def test_a_colour_profile_survives_and_a_comment_does_not(both, form):
    whole, stitched, _ = both(
        lambda path: noise("RGB", (300, 100)).save(path, "JPEG", icc_profile=PROFILE, comment=b"at home"),
        split_pixels=10_000,
        format=form,
    )

    assert stitched == whole
    assert all(PROFILE[:40] in data and b"at home" not in data for data in whole.values())


def test_a_large_profile_survives_too(both):
    large = PROFILE + bytes(3_000_000)
    whole, stitched, _ = both(
        lambda path: noise("RGB", (300, 100)).save(path, "JPEG", icc_profile=large), split_pixels=10_000
    )

    assert stitched == whole


@pytest.mark.parametrize("option", [0, 30_000])
def test_a_picture_that_is_not_larger_stays_whole(both, option):
    assert both(lambda path: noise("RGB", (300, 100)).save(path, "PNG"), split_pixels=option)[2] == 0


def test_a_small_picture_is_not_decoded_only_to_see_that_it_is_small(tmp_path):
    noise("RGB", (300, 100)).save(tmp_path / "input", "PNG")
    raw = (tmp_path / "input").read_bytes()
    (tmp_path / "input").write_bytes(raw[: len(raw) // 2])

    split(tmp_path / "input", tmp_path, {"options": {"split_pixels": 30_000}})


def test_what_cannot_be_decoded_is_rejected_before_anything_is_cut(tmp_path):
    (tmp_path / "input").write_bytes(b"Dear photograph,")

    with pytest.raises(Rejected, match="neither of"):
        split(tmp_path / "input", tmp_path, {"options": {"split_pixels": 1}})


def test_an_upload_that_pretends_to_be_a_strip_is_no_picture(tmp_path):
    [strip] = cut(noise("RGB", (10, 10)), False, 1000)
    strip.write(tmp_path / "input")

    with pytest.raises(Rejected, match="neither of"):
        process(tmp_path / "input", tmp_path, {"options": {}})


def test_the_same_strip_gives_the_same_file(tmp_path):
    image = noise("RGBA", (30, 20))
    for name in ("one", "two"):
        next(cut(image, False, 300)).write(tmp_path / name)

    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_there_are_not_too_many_strips():
    assert len(list(cut(noise("L", (2, 1201)), False, 2))) == -(-1201 // 3) <= MOST_STRIPS


@pytest.mark.parametrize("tall", [False, True])
@pytest.mark.parametrize("most", [1, 30, 299, 300, 301, 600, 601])
def test_strips_cover_the_picture_without_overlap_and_are_not_too_large(tall, most):
    image = noise("RGB", (30, 20))
    again = Image.new("RGB", image.size)

    for strip in cut(image, tall, most):
        picture = strip.pictures[SOURCE]
        assert picture.width * picture.height <= max(most, 20 if tall else 30)
        again.paste(picture, (strip.start, 0) if tall else (0, strip.start))

    assert again.tobytes() == image.tobytes()


def test_a_strip_is_read_as_it_was_written(tmp_path):
    pictures = {"thumb": noise("RGBA", (5, 7)).convert("RGBa"), "large": noise("RGBA", (9, 7))}
    Strip((9, 70), False, 14, PROFILE, pictures).write(tmp_path / "strip")

    again = Strip.read(tmp_path / "strip", "thumb")

    assert (again.whole, again.tall, again.start, again.profile) == ((9, 70), False, 14, PROFILE)
    assert {name: (image.mode, image.tobytes()) for name, image in again.pictures.items()} == {
        "thumb": ("RGBa", pictures["thumb"].tobytes())
    }
