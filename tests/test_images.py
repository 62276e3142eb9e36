"""The built-in processor: what goes in, what comes out, and what is refused."""

import struct
import subprocess
import sys
import zlib
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageDraw

from gpu_worker import images, nvdecode
from gpu_worker.images import problems, process
from gpu_worker.outcome import Rejected


def picture(size=(400, 200), mode="RGB"):
    """Red on the left, blue on the right."""
    image = Image.new("RGB", size, "red")
    ImageDraw.Draw(image).rectangle([size[0] // 2, 0, *size], fill="blue")
    return image.convert(mode)


@pytest.fixture
def rendered(tmp_path):
    """Save, process, open again: `rendered(image, "PNG", width=100, format="webp")`; JPEG without a format."""

    def render(image, form="PNG", *, save=None, raw=None, width=100, **options):
        source, output = tmp_path / "input", tmp_path / "output"
        output.mkdir(exist_ok=True)
        source.write_bytes(raw) if raw is not None else image.save(source, form, **(save or {}))
        only = {"renditions": [{"name": "only", "width": width}], "format": "jpeg"}
        process(source, output, {"options": {**only, **options}})
        [made] = output.iterdir()
        return Image.open(made)

    return render


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("out", ["jpeg", "webp"])
def test_content_decides_what_a_file_is(rendered, form, out):
    made = rendered(picture(), form, format=out)

    assert (made.format, made.size) == (out.upper(), (100, 50))
    assert made.convert("RGB").getpixel((10, 25))[0] > 200 < made.convert("RGB").getpixel((90, 25))[2]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "I;16"])
def test_every_mode_of_picture_is_taken(rendered, mode):
    image = Image.new("I;16", (400, 200), 40_000) if mode == "I;16" else picture(mode=mode)
    made = rendered(image, "JPEG" if mode == "CMYK" else "PNG")

    assert made.mode in {"RGB", "L"}
    if mode == "I;16":
        assert abs(made.getpixel((5, 5)) - 40_000 // 256) <= 1


@pytest.mark.parametrize("orientation, left", [(1, "red"), (2, "blue"), (3, "blue"), (4, "red")])
def test_a_picture_stands_as_it_was_taken(rendered, orientation, left):
    exif = Image.Exif()
    exif[0x0112] = orientation
    made = rendered(picture(), "JPEG", save={"exif": exif})

    red, _, blue = made.getpixel((10, 25))
    assert (red > blue) == (left == "red")
    assert 0x0112 not in made.getexif()


def test_a_picture_on_its_side_is_as_wide_as_asked_for_once_upright(rendered):
    exif = Image.Exif()
    exif[0x0112] = 6

    assert rendered(picture((400, 200)), "JPEG", save={"exif": exif}, width=100).size == (100, 200)


def test_what_shines_through_is_white_in_jpeg_and_kept_in_webp(rendered):
    clear = Image.new("RGBA", (400, 200), (255, 0, 0, 0))

    assert rendered(clear).getpixel((5, 5)) == (255, 255, 255)


def test_webp_keeps_what_shines_through(rendered):
    assert rendered(Image.new("RGBA", (400, 200), (255, 0, 0, 0)), format="webp").getpixel((5, 5))[3] == 0


def test_a_colour_profile_is_kept_where_the_numbers_are(rendered):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

    assert rendered(picture(), "JPEG", save={"icc_profile": profile}).info["icc_profile"] == profile


def test_a_colour_profile_is_dropped_where_they_are_not(rendered):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

    assert "icc_profile" not in rendered(picture(mode="CMYK"), "JPEG", save={"icc_profile": profile}).info


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.tuples(st.integers(1, 300), st.integers(1, 300)), width=st.integers(1, 400))
def test_a_rendition_keeps_its_shape_and_is_never_larger(rendered, size, width):
    made = rendered(picture(size), width=width)

    assert made.width == min(width, size[0])
    assert abs(made.height - size[1] * made.width / size[0]) <= 0.5 or made.height == 1


def test_a_tower_fits_into_webp(rendered):
    assert max(rendered(Image.new("L", (10, 20_000)), width=10, format="webp").size) == 16_383


def test_the_same_picture_gives_the_same_bytes(rendered, tmp_path):
    first, second = (rendered(picture()).filename and (tmp_path / "output/only.jpg").read_bytes() for _ in range(2))

    assert first == second


def png_of(width, height):
    """A few bytes that claim to be very large."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "case, raw, reason",
    [
        ("empty", b"", "empty"),
        ("text", b"Dear photograph,", "neither of JPEG, PNG, WEBP"),
        ("a format nobody asked for", b"GIF89a\x01\0\x01\0\0\0\0;", "neither"),
        ("bomb", png_of(60_000, 60_000), "decompression bomb"),
        ("bomb just over the limit", png_of(10_001, 10_000), "decompression bomb"),
        ("cut", png_of(100, 100), "cannot be decoded"),
        ("no size", png_of(0, 0), "decoded|neither"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_picture_is_rejected_with_its_reason(rendered, case, raw, reason):
    with pytest.raises(Rejected, match=reason):
        rendered(None, raw=raw)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), form=st.sampled_from(["JPEG", "PNG", "WEBP"]))
def test_damage_is_rejected_or_survived_and_nothing_else(rendered, tmp_path, data, form):
    picture((60, 40)).save(tmp_path / "whole", form)
    raw = bytearray((tmp_path / "whole").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(1, len(raw)))
    try:
        rendered(None, raw=bytes(raw[:cut]))
    except Rejected as error:
        assert str(error)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"renditions": []}, "renditions: a list"),
        ({"renditions": [{"name": "../a", "width": 1}]}, "renditions: a name"),
        ({"renditions": [{"name": "a", "width": 0}]}, "renditions: a width"),
        ({"renditions": [{"name": "a", "width": 1}] * 2}, "same name"),
        ({"format": "gif"}, "format: one of jpeg, webp, got 'gif'"),
        ({"quality": True}, "quality: 1 to 95, got True"),
        ({"max_pixels": "all"}, "max_pixels"),
        ({"split_pixels": 5}, "split_pixels: 0 (never) or 1,000,000 to 2^31, got 5"),
        ({"split_pixels": True}, "split_pixels: 0 (never)"),
        ({"decoder": "nvjpeg"}, "decoder: pillow or fast, got 'nvjpeg'"),
        ({"qualty": 80}, "unknown option 'qualty'"),
        ({"renditions": [{"name": "a", "width": 9, "format": "webp"}]}, "a name and a width, got also format"),
    ],
    ids=str,
)
def test_options_that_cannot_work_are_named(options, said):
    [problem] = problems(options)

    assert said in problem


@pytest.mark.parametrize("split_pixels", [0, 1_000_000, 2**31])
def test_the_defaults_and_what_may_be_chosen_are_in_order(split_pixels):
    assert problems({}) == problems({"split_pixels": split_pixels, "decoder": "pillow"}) == []


@pytest.fixture
def backend(monkeypatch):
    """Choose another one; it is chosen anew for this test and after it."""

    def choose(name):
        monkeypatch.setenv("SPINDRIFT_IMAGES_BACKEND", name)
        images._backend.cache_clear()

    yield choose
    images._backend.cache_clear()


def test_a_backend_that_is_not_there_is_refused_before_any_job(backend):
    backend("gpu")

    assert problems({}) == ["SPINDRIFT_IMAGES_BACKEND: auto, pillow or one of numpy, cupy, torch, got 'gpu'"]


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("form", ["jpeg", "webp"])
def test_with_another_backend_the_files_are_the_same(backend, tmp_path, mode, form):
    image = Image.effect_noise((300, 200), 90).convert("RGB")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.convert(mode).save(tmp_path / "input", "PNG")
    job = {"options": {"format": form, "renditions": [{"name": "a", "width": 90}, {"name": "b", "width": 300}]}}

    made = {}
    for name in ("pillow", "numpy"):
        backend(name)
        (tmp_path / name).mkdir()
        process(tmp_path / "input", tmp_path / name, job)
        made[name] = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}

    assert made["numpy"] == made["pillow"]


@pytest.fixture
def nvimgcodec(monkeypatch):
    """A decoder that sees green in every JPEG in colour, and nothing in one whose bytes say `odd`."""
    asked = []

    class Decoder:
        def decode(self, raw, params):
            asked.append(params)
            if b"odd" in raw:
                return None
            with Image.open(BytesIO(raw)) as image:
                seen = Image.new("RGB", image.size, "lime") if params["color_spec"] == "rgb" else image.copy()
            return SimpleNamespace(cpu=lambda: np.asarray(seen))

    colours = SimpleNamespace(SRGB="rgb", GRAY="grey")
    library = SimpleNamespace(Decoder=Decoder, DecodeParams=dict, ColorSpec=colours, asked=asked)
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", library)
    nvdecode.load.cache_clear()
    yield library
    nvdecode.load.cache_clear()


def test_the_fast_decoder_decodes_and_pillow_tells_how_the_picture_lay(rendered, nvimgcodec):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6
    made = rendered(picture(), "JPEG", save={"exif": exif, "icc_profile": profile}, decoder="fast")

    assert made.size == (100, 200)
    assert made.info["icc_profile"] == profile
    assert made.getpixel((50, 100))[1] > 240 > 20 > made.getpixel((50, 100))[0]
    assert nvimgcodec.asked == [{"apply_exif_orientation": False, "color_spec": "rgb"}]


@pytest.mark.parametrize(
    "mode, form, save", [("RGB", "PNG", {}), ("CMYK", "JPEG", {}), ("RGB", "JPEG", {"comment": b"odd"})]
)
def test_what_the_fast_decoder_does_not_take_pillow_decodes(rendered, nvimgcodec, mode, form, save):
    made = rendered(picture(mode=mode), form, save=save, decoder="fast").convert("RGB")

    assert made.getpixel((10, 25))[0] > 200 < made.getpixel((90, 25))[2]


def test_a_grey_photograph_stays_grey_in_the_fast_decoder(rendered, nvimgcodec):
    assert rendered(picture(mode="L"), "JPEG", decoder="fast").mode == "L"
    assert nvimgcodec.asked[0]["color_spec"] == "grey"


def test_a_bomb_does_not_reach_the_fast_decoder(rendered, nvimgcodec):
    with pytest.raises(Rejected, match="bomb"):
        rendered(picture((200, 200)), "JPEG", decoder="fast", max_pixels=10_000)
    assert nvimgcodec.asked == []


def test_the_fast_decoder_without_its_library_is_refused_before_any_job(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", None)
    nvdecode.load.cache_clear()

    [problem] = problems({"decoder": "fast"})
    assert problem.startswith("decoder: fast wants nvImageCodec and a GPU")


@pytest.mark.parametrize(
    "module", ["outcome", "lease", "handover", "job", "settings", "images", "processor", "host", "health", "passes"]
)
def test_only_the_cloud_loads_an_aws_library_and_only_images_a_decoder(module):
    absent = {"boto3"} if module == "images" else {"boto3", "PIL"}
    code = f"import sys, gpu_worker.{module}; sys.exit(bool({absent!r} & set(sys.modules)))"

    assert subprocess.run([sys.executable, "-c", code], cwd="ecs-tasks/gpu-worker", check=False).returncode == 0
