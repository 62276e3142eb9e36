"""Make the files that the stacks refer to: the Lambdas' zips and the agent, byte-identical from the same sources."""

from __future__ import annotations

import hashlib
import io
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from shiv import __version__ as shiv_version
from shiv import cli as shiv

from templates.assets import Asset, Assets

LONG_AGO = (1980, 1, 1, 0, 0, 0)
"""The first moment that a zip can tell."""
PYTHON = "/usr/bin/python3"
"""The system Python of Amazon Linux 2023 (3.9), where the agent runs."""
SITE = ".agent-site"
"""Where set-up installed what the agent imports, for that Python."""
APIS = {"sns", "sts"}
"""The services whose descriptions the agent needs; all of them are 25 of botocore's 29 MB."""
NEEDLESS = shutil.ignore_patterns("*.dist-info", "__pycache__", "tests", "bin", "*.tar.gz", "*.so", ".done")


class CannotPackage(Exception):
    """Something that the files are made of is missing."""


def package(root: Path, folder: Path) -> Assets:
    """Write all assets into `folder`, which afterwards holds nothing else. Raises CannotPackage."""
    folder.mkdir(parents=True, exist_ok=True)
    assets = Assets(
        ingest=_lambda(root / "lambdas" / "ingest", folder),
        capacity=_lambda(root / "lambdas" / "capacity", folder),
        market=_lambda(root / "lambdas" / "market", folder),
        agent=_agent(root, folder),
    )
    for file in set(folder.iterdir()) - {folder / asset.key for asset in assets.all} - {_memo(folder)}:
        file.unlink()
    return assets


def _lambda(code: Path, folder: Path) -> Asset:
    """A zip with one package: boto3 is in the runtime."""
    if not (code / "handler.py").is_file():
        raise CannotPackage(f"{code / 'handler.py'} is missing")
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in _sources(code):
            entry = zipfile.ZipInfo(str(file.relative_to(code.parent)), LONG_AGO)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, file.read_bytes())
    return _stored(content.getvalue(), code.name, "zip", folder)


def _agent(root: Path, folder: Path) -> Asset:
    """The agent as one file that unpacks itself (botocore cannot read its data inside a zip).

    It takes a second to make, so a memo keeps what the last one was made of.
    """
    if not (root / SITE / "botocore").is_dir():
        raise CannotPackage(f"{SITE} is missing: `make setup` installs what the agent is built from")
    digest = hashlib.sha256(shiv_version.encode())
    for file in [*_sources(root / "agent"), *sorted((root / SITE).glob("*.dist-info/RECORD")), Path(__file__)]:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    memo = _memo(folder)
    if memo.is_file():
        made_of, key, sha256 = memo.read_text().split()
        if made_of == digest.hexdigest() and (folder / key).is_file():
            return Asset(key, sha256)
    with tempfile.TemporaryDirectory() as scratch:
        site, target = Path(scratch, "site"), Path(scratch, "agent.pyz")
        _stage(root, site)
        options = {"--site-packages": site, "--entry-point": "agent.__main__:main", "--python": PYTHON}
        words = [str(word) for option in options.items() for word in option]
        shiv.main([*words, "--reproducible", "--compressed", "--output-file", str(target)], standalone_mode=False)
        asset = _stored(target.read_bytes(), "agent", "pyz", folder)
    memo.write_text(f"{digest.hexdigest()} {asset.key} {asset.sha256}\n")
    return asset


def _memo(folder: Path) -> Path:
    return folder / ".agent"


def _stage(root: Path, site: Path) -> None:
    """What goes into the agent's file, with the same permissions whatever the umask was."""

    def unneeded(folder: str, names: list[str]) -> set[str]:
        dropped = set(NEEDLESS(folder, names))
        place = Path(folder).relative_to(root / SITE)
        if place == Path("botocore/data"):
            dropped |= {name for name in names if name not in APIS and not name.endswith(".json")}
        if place == Path("boto3"):
            dropped |= {"data", "examples"}
        return dropped

    shutil.copytree(root / SITE, site, ignore=unneeded)
    for file in _sources(root / "agent"):
        copy = site / file.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    for path in site.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _sources(code: Path) -> Iterator[Path]:
    return (file for file in sorted(code.rglob("*")) if file.is_file() and "__pycache__" not in file.parts)


def _stored(content: bytes, name: str, suffix: str, folder: Path) -> Asset:
    sha256 = hashlib.sha256(content).hexdigest()
    asset = Asset(f"{name}-{sha256[:16]}.{suffix}", sha256)
    (folder / asset.key).write_bytes(content)
    return asset
