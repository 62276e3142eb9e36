"""Integer arithmetic against Pillow: the same bytes, from every array library that is at hand."""

import importlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from gpu_worker.backends import LIBRARIES, BadBackend, choose
from gpu_worker.passes import columns_first

np = pytest.importorskip("numpy")
resample = importlib.import_module("gpu_worker.resample")

KERNELS = {
    Image.Resampling.BOX: resample.BOX,
    Image.Resampling.BILINEAR: resample.BILINEAR,
    Image.Resampling.BICUBIC: resample.BICUBIC,
    Image.Resampling.LANCZOS: resample.LANCZOS,
}
MODES = ["L", "RGB", "RGBA"]
PHOTOS = "localcloud/photos"


@pytest.fixture(params=["numpy", "torch on the CPU", "cupy", "torch"])
def arrays(request):
    if request.param == "torch on the CPU":
        torch = pytest.importorskip("torch")
        return resample.Arrays(torch, torch.asarray, lambda array: array.numpy())
    try:
        return LIBRARIES[request.param]()
    except BadBackend as error:
        pytest.skip(str(error))


def resized(arrays, image, size, kernel, box=None):
    pixels = arrays.put(np.array(image).reshape(image.height, image.width, -1))
    with np.errstate(divide="raise", invalid="raise"):
        made = resample.resize(arrays, pixels, size, kernel, alpha=image.mode == "RGBA", box=box)
    return arrays.get(made).tobytes()


def noise(mode, size, seed, loud):
    """Bytes at random; `loud` is black and white alone, where filters ring most and must be cut."""
    raw = np.random.default_rng(seed).integers(0, 256, size[0] * size[1] * len(mode), dtype=np.uint8)
    return Image.frombytes(mode, size, ((raw > 127) * np.uint8(255) if loud else raw).tobytes())


sides = st.integers(1, 60) | st.integers(1, 300)
sizes = st.tuples(sides, sides)


@st.composite
def boxes(draw):
    """A picture's size and a part of it, in whole pixels or not."""
    size = draw(sizes)
    edges = []
    for side in size:
        place = st.integers(0, side) | st.floats(0, side, width=32)
        low, high = sorted([draw(place), draw(place)])
        edges.append((low, high) if high - low > 0.01 else (0, side))
    return size, (edges[0][0], edges[1][0], edges[0][1], edges[1][1])


@settings(max_examples=150, deadline=None)
@given(
    mode=st.sampled_from(MODES),
    framed=boxes() | sizes.map(lambda size: (size, None)),
    size=sizes,
    seed=st.integers(0, 9),
    loud=st.booleans(),
)
@example(mode="RGB", framed=((100, 300), None), size=(50, 60), seed=0, loud=False)  # columns first
@example(mode="RGB", framed=((300, 2), None), size=(1, 1), seed=0, loud=True)
@example(mode="RGBA", framed=((40, 40), None), size=(40, 40), seed=0, loud=False)  # as it is, alpha and all
@example(mode="RGBA", framed=((40, 40), (3, 0, 40, 40)), size=(37, 40), seed=0, loud=False)  # a crop
def test_every_filter_gives_pillows_bytes(mode, framed, size, seed, loud):
    whole, box = framed
    image = noise(mode, whole, seed, loud)

    for name, kernel in KERNELS.items():
        assert resized(resample.NUMPY, image, size, kernel, box) == image.resize(size, name, box).tobytes(), name


@pytest.mark.parametrize("photo", ["china.jpg", "flower.jpg", "picos-de-europa.jpg"])
def test_photographs_come_out_as_pillow_makes_them(photo):
    image = Image.open(f"{PHOTOS}/{photo}")

    size = (256, round(image.height * 256 / image.width))

    expected = image.resize(size, Image.Resampling.LANCZOS).tobytes()
    assert resized(resample.NUMPY, image, size, resample.LANCZOS) == expected


def test_every_library_that_is_here_gives_the_same_bytes(arrays):
    clear = Image.new("RGBA", (9, 9), (200, 100, 50, 0))
    pictures = [clear, *(noise(mode, (111, 207), 5, False) for mode in MODES)]

    for image in pictures:
        for size in [(100, 100), (20, 200), (300, 31), (111, 207)]:
            for name, kernel in KERNELS.items():
                assert resized(arrays, image, size, kernel) == image.resize(size, name).tobytes(), (image, size, name)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(20, 31), (100, 20), (60, 90), (70, 10)])
def test_several_in_one_go_are_each_as_alone(arrays, mode, size):
    pictures = [noise(mode, (60, 90), seed, seed == 1) for seed in range(3)]
    stack = arrays.put(np.stack([np.array(each).reshape(90, 60, -1) for each in pictures]))

    made = arrays.get(resample.resize(arrays, stack, size, resample.LANCZOS, alpha=mode == "RGBA"))

    assert [each.tobytes() for each in made] == [
        each.resize(size, Image.Resampling.LANCZOS).tobytes() for each in pictures
    ]


@pytest.mark.parametrize(
    "case, whole, size, expected",
    [
        ("a landscape", (400, 300), (40, 30), False),
        ("just twice as tall as wide", (100, 200), (50, 100), False),
        ("taller", (100, 202), (50, 100), True),
        ("made lower alone", (100, 100), (100, 50), True),
        ("made lower by one row alone", (100, 100), (100, 99), True),
        ("made larger", (100, 300), (200, 600), False),
        ("made wider and no lower", (100, 100), (200, 100), False),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_columns_come_first_where_that_spares_work(case, whole, size, expected):
    assert columns_first(whole, size) is expected


@pytest.mark.parametrize(
    "case, env, expected",
    [
        ("nothing said, no GPU", {}, "pillow"),
        ("no GPU", {"NVIDIA_VISIBLE_DEVICES": "void"}, "pillow"),
        ("a GPU that no library sees", {"NVIDIA_VISIBLE_DEVICES": "GPU-0"}, "pillow"),
        ("asked for", {"SPINDRIFT_IMAGES_BACKEND": "numpy"}, "numpy"),
        ("Pillow, GPU or not", {"SPINDRIFT_IMAGES_BACKEND": "pillow", "NVIDIA_VISIBLE_DEVICES": "GPU-0"}, "pillow"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_who_resamples(monkeypatch, case, env, expected):
    monkeypatch.setattr("gpu_worker.backends.LIBRARIES", {**LIBRARIES, "cupy": blind, "torch": blind})

    assert choose(dict(env))[0] == expected


def blind():
    raise BadBackend("sees no GPU")


@pytest.mark.parametrize(
    "assigned, seen, expected",
    [
        ("GPU-5a", {"cupy", "torch"}, "cupy"),
        ("GPU-5a", {"torch"}, "torch"),
        ("all", {"torch"}, "torch"),
        ("void", {"torch"}, "pillow"),
    ],
)
def test_a_gpu_that_is_assigned_and_seen_is_used(monkeypatch, assigned, seen, expected):
    found = {name: (lambda: resample.NUMPY) if name in seen else blind for name in ("cupy", "torch")}
    monkeypatch.setattr("gpu_worker.backends.LIBRARIES", found)

    assert choose({"NVIDIA_VISIBLE_DEVICES": assigned})[0] == expected


@pytest.mark.parametrize(
    "env, expected",
    [
        ({"NVIDIA_VISIBLE_DEVICES": "GPU-5a,GPU-6b"}, "GPU-5a,GPU-6b"),
        ({"NVIDIA_VISIBLE_DEVICES": "GPU-5a", "CUDA_VISIBLE_DEVICES": "1"}, "1"),
        ({"NVIDIA_VISIBLE_DEVICES": "all"}, None),
    ],
)
def test_cuda_is_told_which_gpus_ecs_assigned(env, expected):
    env = {**env, "SPINDRIFT_IMAGES_BACKEND": "pillow"}
    choose(env)
    assert env.get("CUDA_VISIBLE_DEVICES") == expected


def test_a_backend_that_is_asked_for_and_absent_is_an_error():
    with pytest.raises(BadBackend, match="auto, pillow or one of numpy, cupy, torch, got 'cuda'"):
        choose({"SPINDRIFT_IMAGES_BACKEND": "cuda"})
