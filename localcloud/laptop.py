"""A local cloud in a process of its own, and the stock `aws` command line to install the product in it."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from localcloud.command import free_port
from localcloud.control import Remote
from localcloud.image import REGISTRY, WORKER
from localcloud.substrate import OPERATOR_KEY
from localcloud.world import REGION

PROJECT = Path(__file__).parent.parent
START_SECONDS = 30
ASSETS_BUCKET = "spindrift-assets"
WORKER_IMAGE = f"{REGISTRY}/{WORKER}"


class DidNotWork(Exception):
    """A step of the installation failed; the message carries what the tool said."""


@dataclass(frozen=True)
class Laptop:
    """A running local cloud, and the operator's hands on it."""

    endpoint: str
    state: Path
    process: subprocess.Popen[bytes]

    @property
    def environment(self) -> dict[str, str]:
        """The environment lines that `build.py local` prints, for a child process of the operator."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
        return inherited | {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": OPERATOR_KEY,
            "AWS_SECRET_ACCESS_KEY": OPERATOR_KEY,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_PAGER": "",
        }

    @property
    def remote(self) -> Remote:
        """The hand of fate."""
        return Remote(self.endpoint)

    def client(self, service: str) -> Any:
        """A boto3 client with the operator's key, the same one each time: who waits for something asks often."""
        with _MAKING:
            return _client(self.endpoint, service)

    def run(self, *command: str | Path) -> str:
        """Run an operator's command and return what it printed. Raises DidNotWork with its words."""
        done = subprocess.run(  # noqa: PLW1510
            [str(part) for part in command], env=self.environment, cwd=PROJECT, capture_output=True, text=True
        )
        if done.returncode != 0:
            raise DidNotWork(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
        return done.stdout

    def aws(self, *arguments: str) -> str:
        """The stock aws command line."""
        return self.run(PROJECT / ".venv-aws" / "bin" / "aws", *arguments)

    def deploy(self, build: Path, stack: str, template: str = "cluster", **parameters: str) -> dict[str, str]:
        """Publish the assets, deploy a template of `build`, return the stack's outputs. Raises DidNotWork."""
        if not self._has_bucket():
            self.aws("s3", "mb", f"s3://{ASSETS_BUCKET}")
        self.run(sys.executable, "build.py", "publish", "--bucket", ASSETS_BUCKET, "--out", build)
        chosen: Mapping[str, str] = {"AssetsBucket": ASSETS_BUCKET, "WorkerImage": WORKER_IMAGE, **parameters}
        cloudformation = self.client("cloudformation")
        try:
            self.aws(
                *(
                    "cloudformation",
                    "deploy",
                    "--template-file",
                    str(build / f"{template}.json"),
                    "--stack-name",
                    stack,
                ),
                *("--capabilities", "CAPABILITY_IAM", "--s3-bucket", ASSETS_BUCKET, "--no-fail-on-empty-changeset"),
                *("--parameter-overrides", *(f"{key}={value}" for key, value in chosen.items())),
            )
        except DidNotWork as error:
            events = cloudformation.describe_stack_events(StackName=stack)["StackEvents"]
            reasons = [
                f"{event['LogicalResourceId']}: {event['ResourceStatusReason']}"
                for event in reversed(events)
                if "FAILED" in event["ResourceStatus"] and event.get("ResourceStatusReason")
            ]
            raise DidNotWork("\n".join([str(error), *reasons])) from error
        outputs = cloudformation.describe_stacks(StackName=stack)["Stacks"][0]["Outputs"]
        return {output["OutputKey"]: output["OutputValue"] for output in outputs}

    def _has_bucket(self) -> bool:
        return any(bucket["Name"] == ASSETS_BUCKET for bucket in self.client("s3").list_buckets()["Buckets"])


_MAKING = threading.Lock()


@functools.cache
def _session() -> Any:
    return boto3.Session()


@functools.cache
def _client(endpoint: str, service: str) -> Any:
    return _session().client(
        service,
        endpoint_url=endpoint,
        region_name=REGION,
        aws_access_key_id=OPERATOR_KEY,
        aws_secret_access_key=OPERATOR_KEY,
        # S3 paths are not rewritten to host names: there is no DNS here.
        config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 3}, read_timeout=60),
    )


@contextlib.contextmanager
def laptop(
    state: Path,
    *,
    speed: float = 1.0,
    seed: int = 0,
    containers: bool = False,
    speeds: Mapping[str, float] | None = None,
) -> Iterator[Laptop]:
    """Start a local cloud with its state under `state`, and end it with everything it started."""
    state.mkdir(parents=True, exist_ok=True)
    endpoint = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "localcloud.command", "--leash", "--port", endpoint.rsplit(":", 1)[1]]
    command += ["--speed", str(speed), "--seed", str(seed), "--state", str(state)]
    command += ["--containers"] if containers else []
    command += ["--speeds", json.dumps(dict(speeds))] if speeds else []
    with (state / "cloud.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
        )
        try:
            _wait_until_it_answers(endpoint, process, state)
            yield Laptop(endpoint, state, process)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdin is not None:
                process.stdin.close()


def _wait_until_it_answers(endpoint: str, process: subprocess.Popen[bytes], state: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{endpoint}/_ministack/health", timeout=2):  # noqa: S310
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    raise DidNotWork(f"the local cloud did not start:\n{(state / 'cloud.log').read_text()[-4000:]}")
