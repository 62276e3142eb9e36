"""Making a notice known: to workers by a file, then to the capacity Lambda by SNS. The only AWS here."""

from __future__ import annotations

import json
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Iterator, Mapping

from agent.journal import record
from agent.notice import INTERRUPTION, REBALANCE, Instance, Notice, Trouble, notice_from

if TYPE_CHECKING:
    from mypy_boto3_sns import SNSClient

FILES = {INTERRUPTION: "notice.json", REBALANCE: "rebalance.json"}


class Unpublished(Trouble):
    """SNS did not take the notice this time."""


class HostDir:
    """The directory that workers see read-only, and that outlives a restart of the agent.

    What cannot be written is recorded and not raised: SNS must hear the notice all the same.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def write_instance(self, instance: Instance) -> None:
        """Write `instance.json`."""
        self._write("instance.json", instance.to_json())

    def write_notice(self, notice: Notice) -> None:
        """Write `notice.json` or `rebalance.json`."""
        self._write(FILES[notice.kind], notice.to_json())

    def notices(self) -> list[Notice]:
        """Return the notices an earlier run wrote. An unreadable one is left to the metadata service to tell again."""
        notices = []
        for name in FILES.values():
            try:
                notices.append(notice_from(json.loads((self._path / name).read_text())))
            except FileNotFoundError:
                continue
            except (ValueError, Trouble) as error:
                record("notice-file-unreadable", file=name, why=repr(error))
        return notices

    def mark_published(self, notice: Notice) -> None:
        """Remember, across restarts, that SNS has it. Short appends of two threads do not mix."""
        with _recorded("published"), (self._path / "published").open("a") as marks:
            marks.write(notice.identity + "\n")

    def published(self) -> frozenset[str]:
        """Return the identities of all notices that SNS has."""
        try:
            return frozenset((self._path / "published").read_text().splitlines())
        except FileNotFoundError:
            return frozenset()

    def _write(self, name: str, document: Mapping[str, Any]) -> None:
        draft = self._path / f".{name}.draft"
        with _recorded(name):
            draft.write_text(json.dumps(document) + "\n")
            draft.replace(self._path / name)


class Topic:
    """The notices topic. Its client costs 0.3 s of CPU, so it is made by `warm`, before there is any hurry."""

    def __init__(self, arn: str) -> None:
        self._arn = arn
        self._client: SNSClient | None = None

    def warm(self) -> None:
        """Make the client and fetch the role's credentials, or raise Unpublished."""
        try:
            self._client = self._client or _client()
        except Exception as error:
            raise Unpublished(_described(error)) from error

    def publish(self, notice: Notice) -> str:
        """Publish once and return the message id, or raise Unpublished."""
        self.warm()
        assert self._client is not None  # noqa: S101 - `warm` says so
        try:
            return self._client.publish(TopicArn=self._arn, Message=json.dumps(notice.to_json()))["MessageId"]
        except Exception as error:
            raise Unpublished(_described(error)) from error


def deliver(
    notice: Notice, publish: Callable[[Notice], str], *, now: Callable[[], datetime], pause: Callable[[float], None]
) -> bool:
    """Publish, trying again until the deadline; True when SNS has it. A notice that is already late gets one try."""
    failures = 0
    while True:
        try:
            message_id = publish(notice)
        except Unpublished as trouble:
            failures += 1
            wait = notice.wait_after(failures, now())
            record("publish-failed", notice=notice.identity, why=str(trouble), failures=failures, final=wait is None)
            if wait is None:
                return False
            pause(wait.total_seconds())
        else:
            record("published", notice=notice.identity, message=message_id, failures=failures)
            return True


@contextmanager
def _recorded(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        record("not-written", file=name, why=str(error))


def _client() -> SNSClient:
    import boto3  # noqa: PLC0415 - importing the agent stays free
    from botocore.config import Config  # noqa: PLC0415

    session = boto3.session.Session()
    if session.get_credentials() is None:
        # A client made now would stay without credentials for good.
        raise Unpublished("no credentials from the instance role yet")
    # One try each: `deliver` decides about the next.
    config = Config(connect_timeout=2, read_timeout=2, retries={"total_max_attempts": 1})
    return session.client("sns", config=config)


def _described(error: Exception) -> str:
    """Name the trouble without the library's own words: they may quote the request, and with it a key."""
    code = getattr(error, "response", {}).get("Error", {}).get("Code")
    return str(error) if isinstance(error, Unpublished) else code or type(error).__name__
