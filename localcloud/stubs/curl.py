"""Stands for `curl` on an instance of the local cloud: the flags that user data needs, and no others.

The metadata service, S3 and the ECS agent are where LOCALCLOUD_METADATA, LOCALCLOUD_ENDPOINT and ECS_AGENT_URI say;
every other address is unreachable, as from an instance without a way out. `--aws-sigv4` signs for real.
"""

from __future__ import annotations

import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

TRANSIENT = {408, 429, 500, 502, 503, 504}  # curl(1), --retry
FAILED_INIT, NO_HOST, NO_CONNECTION, HTTP_ERROR = 2, 6, 7, 22
"""curl's exit codes."""
S3 = re.compile(r"https://(?:(?P<bucket>[a-z0-9.-]+)\.)?s3[.-](?P<region>[a-z0-9-]+)\.amazonaws\.com(?P<path>/.*)")


class Unplayed(Exception):
    """A flag or an address that the stub does not know."""


@dataclass
class Request:
    """A parsed command line."""

    url: str = ""
    method: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    output: str = ""
    retries: int = 0
    fail: bool = False
    silent: bool = False
    show_error: bool = False
    signing: str = ""
    user: str = ""


def parse(arguments: Sequence[str]) -> Request:
    """The request a command line asks for. Raises Unplayed."""
    request, words = Request(), list(arguments)
    while words:
        word = words.pop(0)
        if re.fullmatch(r"-[fsSL]+", word):
            request.fail |= "f" in word
            request.silent |= "s" in word
            request.show_error |= "S" in word
        elif word in ("--fail", "--silent", "--show-error", "--location"):
            request.fail |= word == "--fail"
            request.silent |= word == "--silent"
            request.show_error |= word == "--show-error"
        elif word in ("-X", "--request"):
            request.method = words.pop(0)
        elif word in ("-H", "--header"):
            name, _, value = words.pop(0).partition(":")
            request.headers[name.strip()] = value.strip()
        elif word in ("-o", "--output"):
            request.output = words.pop(0)
        elif word == "--retry":
            request.retries = int(words.pop(0))
        elif word == "--aws-sigv4":
            request.signing = words.pop(0)
        elif word in ("-u", "--user"):
            request.user = words.pop(0)
        elif word.startswith("-") or request.url:
            raise Unplayed(f"the local cloud's curl does not know {word}")
        else:
            request.url = word
    return request


def located(url: str) -> str:
    """Where the address is on this laptop. Raises Unplayed."""
    if match := S3.fullmatch(url):
        bucket = f"/{match['bucket']}" if match["bucket"] else ""
        return os.environ["LOCALCLOUD_ENDPOINT"] + bucket + match["path"]
    for address, variable in (
        ("http://169.254.169.254", "LOCALCLOUD_METADATA"),
        ("http://localhost:51678", "ECS_AGENT_URI"),
        ("http://127.0.0.1:51678", "ECS_AGENT_URI"),
    ):
        if url.startswith(address + "/"):
            return os.environ[variable].rstrip("/") + url.removeprefix(address)
    raise Unplayed(f"the local cloud has no {url}")


def signed(request: Request, url: str) -> dict[str, str]:
    """The headers, with a Signature Version 4 when one is asked for."""
    if not request.signing:
        return request.headers
    from botocore.auth import S3SigV4Auth  # noqa: PLC0415 - slow to import, and rarely needed
    from botocore.awsrequest import AWSRequest  # noqa: PLC0415
    from botocore.credentials import Credentials  # noqa: PLC0415

    _, _, region, service = request.signing.split(":")
    key, _, secret = request.user.partition(":")
    headers = dict(request.headers)
    tokens = [headers.pop(name) for name in list(headers) if name.lower() == "x-amz-security-token"]
    unsigned = AWSRequest(method=request.method or "GET", url=url, headers=headers)
    S3SigV4Auth(Credentials(key, secret, tokens[0] if tokens else None), service, region).add_auth(unsigned)
    return dict(unsigned.headers.items())


def carry_out(request: Request) -> int:
    """Do it and return curl's exit code."""
    url = located(request.url)
    for attempt in range(request.retries + 1):
        last = attempt == request.retries
        try:
            plain = urllib.request.Request(url, headers=signed(request, url), method=request.method or "GET")  # noqa: S310
            with urllib.request.urlopen(plain, timeout=60) as reply:  # noqa: S310
                return _deliver(request, reply.read())
        except urllib.error.HTTPError as error:
            with error:
                body = error.read()
            if error.code in TRANSIENT and not last:
                time.sleep(min(2.0**attempt, 600))
                continue
            if request.fail:
                return _complain(request, HTTP_ERROR, f"The requested URL returned error: {error.code}")
            return _deliver(request, body)
        except OSError as error:
            return _complain(request, NO_CONNECTION, f"Failed to connect: {error}")
    return NO_CONNECTION


def _deliver(request: Request, body: bytes) -> int:
    if request.output:
        Path(request.output).write_bytes(body)
    else:
        sys.stdout.buffer.write(body)
        sys.stdout.buffer.flush()
    return 0


def _complain(request: Request, code: int, message: str) -> int:
    if request.show_error or not request.silent:
        sys.stderr.write(f"curl: ({code}) {message}\n")
    return code


def main(arguments: Sequence[str]) -> int:
    """Run as curl."""
    try:
        request = parse(arguments)
        return carry_out(request)
    except Unplayed as error:
        sys.stderr.write(f"curl: ({NO_HOST}) {error}\n")
        return NO_HOST if "has no" in str(error) else FAILED_INIT


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
