from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser):
    parser.addoption("--update", action="store_true", help="rewrite tests/golden; then read the diff")


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
