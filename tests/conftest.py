import gc
import os
from functools import cache
from pathlib import Path

import botocore.session
import pytest
from hypothesis import settings
from PIL import Image

GOLDEN = Path(__file__).parent / "golden"

# Python's own is 700 new objects, and each of the greater searches goes through all that moto, botocore and cfn-lint
# hold: a third of the time of whole files of tests.
gc.set_threshold(50_000, 20, 20)

# The same examples each time: what fails was changed. `make laws` looks at others, and at many more.
settings.register_profile("same", derandomize=True)
settings.register_profile("others", max_examples=2000, print_blob=True)
settings.load_profile("same")

# moto makes 1,300 images of Amazon's for each account and region, again for each test: half of the time it takes.
os.environ.setdefault("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")

# Every session reads anew what AWS's services can do, and each command that a test runs has one.
botocore.session.create_loader = cache(botocore.session.create_loader)


def pytest_addoption(parser):
    parser.addoption("--update", action="store_true", help="rewrite tests/golden; then read the diff")


@pytest.fixture(autouse=True)
def _pillows_own_limit(monkeypatch):
    """The images processor sets it for its whole process, which here is the tests'."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory):
    """A cloud of its own for the workers of one file of tests."""
    from worker_make import cloud

    with cloud(tmp_path_factory.mktemp("cloud")) as url:
        yield url


@pytest.fixture
def bench(endpoint, tmp_path):
    """A worker's surroundings there."""
    from worker_make import Bench

    return Bench(endpoint, tmp_path)


@pytest.fixture
def golden(request):
    """Compare text with a file under tests/golden; `--update` rewrites it instead."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update"):
            path.write_text(text, "utf-8")
        assert path.exists(), f"no {path}; run pytest --update and read the diff"
        assert text == path.read_text("utf-8")

    return check
