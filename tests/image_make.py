"""The worker's image, built for a test by what engine there is, and a container of it as the task definition says."""

import json
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from localcloud import containers
from localcloud.containers import Mount, Order
from localcloud.engine import name_of
from localcloud.image import Image
from localcloud.inputs import as_input
from templates.cluster import HOST_DIR, SCRATCH_DIR
from tests.stacks_make import stack
from tests.worker_make import ROOT

OFFICIAL = "python:3.13-slim-bookworm"
BASE = "spindrift-test-base:bookworm"
"""Debian's own Python, for where no registry of images can be reached. It stays in the engine's store."""
TRUST = Path("/etc/ssl/certs/ca-certificates.crt")


def base(engine, folder):
    """An image to build on. Skips the test where there is none to be had."""
    for image in (OFFICIAL, BASE):
        if engine.has(image):
            return image
    if program := shutil.which("mmdebstrap"):
        tar = folder / "base.tar"
        # What this machine trusts, the image does: pip may have to go through the same proxy.
        hooks = [f"--customize-hook=copy-in {TRUST} {TRUST.parent}"] if TRUST.exists() else []
        packages = "python3-pip,python-is-python3,ca-certificates"
        command = [
            program,
            "--quiet",
            "--variant=minbase",
            "--dpkgopt=force-unsafe-io",
            f"--include={packages}",
            *hooks,
            "bookworm",
            tar,
        ]
        made = subprocess.run(command, capture_output=True, text=True)
        if made.returncode == 0 and engine.ask("import", str(tar), BASE).returncode == 0:
            return BASE
        pytest.skip(f"no base to build on: {made.stderr[-300:]}")
    if engine.ask("pull", OFFICIAL, seconds=120).returncode == 0:
        return OFFICIAL
    pytest.skip(f"no base to build on: {OFFICIAL} cannot be pulled and mmdebstrap is not installed")


def definition(**parts):
    """The worker's container definition as ECS gets it, without what only a stack can know."""
    (container,) = stack({})["Resources"]["DefaultTask"]["Properties"]["ContainerDefinitions"]
    known = {
        name: value for name, value in container.items() if name not in ("Environment", "Image", "LogConfiguration")
    }
    given = as_input("ecs", "RegisterTaskDefinition", {"ContainerDefinitions": [known]})
    return {**given["containerDefinitions"][0], **parts}


@contextmanager
def contained(engine, image, bench, *, layers=(), command=None, environment=None, **parts):
    """A worker in a container, on the bench's queue. `.inside(*words)` runs a command in it, `.said()` is its log."""
    log = bench.folder / f"{uuid4().hex}.log"
    ours = {"PATH", "PYTHONPATH", "TMPDIR", "PYTHONDONTWRITEBYTECODE"}
    said = {name: value for name, value in bench.env().items() if name not in ours}
    said |= {"SPINDRIFT_HOST_DIR": HOST_DIR, "SPINDRIFT_OPTIONS": json.dumps({"diary": f"{SCRATCH_DIR}/diary"})}
    order = Order(
        name=name_of(uuid4().hex, 0),
        image=Image(Path("/"), tag=image, layers=tuple(layers)),
        definition=definition(**parts),
        command=command,
        said={**said, **(environment or {})},
        given={},
        mounts={HOST_DIR: Mount(bench.host_dir, True), SCRATCH_DIR: Mount(bench.folder, False, own=True)},
        home=bench.folder,
        log=log,
    )
    container = containers.start(order, engine)
    container.said = lambda: [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    container.inside = lambda *words: engine.ask("exec", order.name, *words)
    container.name, container.log = order.name, log
    try:
        yield container
    finally:
        container.kill()
        container.process.wait()
        sys.stderr.write(log.read_text())  # pytest shows it when the test fails


PROCESSORS = ROOT / "tests" / "in_image"
"""A processor of a user's, as a folder that lies on top of the image."""
