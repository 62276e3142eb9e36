"""Watch this instance's metadata for notices and publish them to SNS.

Exit status: 0 stopped by SIGTERM, or the flag's work is done; 1 the metadata service or SNS could not be reached
(systemd starts a new agent); 2 the environment or the command line is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Mapping, NoReturn

from agent.journal import record
from agent.metadata import Metadata
from agent.notice import INTERRUPTION, Instance, Notice, Trouble, instance_from, interruption_from, rebalance_from
from agent.publish import HostDir, Topic, Unpublished, deliver
from agent.watch import Blind, Watcher, watch, with_registration

WARNING = timedelta(seconds=120)
"""How far ahead EC2 normally sets a Spot notice (EC2 User Guide, "Spot Instance interruption notices")."""

EXAMPLES = """\
environment:
  SPINDRIFT_NOTICES_TOPIC_ARN  the SNS topic to publish to
  SPINDRIFT_HOST_DIR           where workers look for notice.json (default /run/spindrift)
  AWS_DEFAULT_REGION           the topic's region

To watch until SIGTERM, as the systemd unit does:
  agent.pyz

To see what the agent knows about this instance:
  agent.pyz --print-metadata

To rehearse an interruption (the instance is drained as if EC2 were taking it; no notice.json is written):
  agent.pyz --announce-now
"""


class BadSettings(Exception):
    """Everything that is wrong with the environment, in one message."""


@dataclass(frozen=True)
class Settings:
    """What the agent needs to be told."""

    topic_arn: str
    host_dir: Path

    @classmethod
    def read(cls, env: Mapping[str, str]) -> Settings:
        """Read the environment and make the host directory, or name every problem at once."""
        topic = env.get("SPINDRIFT_NOTICES_TOPIC_ARN", "")
        host_dir = Path(env.get("SPINDRIFT_HOST_DIR") or "/run/spindrift")
        problems = []
        if not topic:
            problems.append("SPINDRIFT_NOTICES_TOPIC_ARN is missing")
        elif not re.fullmatch(r"arn:aws[a-z-]*:sns:[a-z0-9-]+:\d{12}:[\w-]{1,256}", topic):
            problems.append(f"SPINDRIFT_NOTICES_TOPIC_ARN is not the ARN of an SNS topic: {topic!r}")
        if not env.get("AWS_DEFAULT_REGION"):
            problems.append("AWS_DEFAULT_REGION is missing")
        try:
            host_dir.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=host_dir):
                pass
        except OSError as error:
            problems.append(f"SPINDRIFT_HOST_DIR cannot be written: {error}")
        if problems:
            raise BadSettings("; ".join(problems))
        return cls(topic, host_dir)


def main() -> int:
    """Do what the command line says."""
    options = _options()
    metadata = Metadata(
        imds=os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or "http://169.254.169.254",
        ecs=os.environ.get("ECS_AGENT_URI") or "http://localhost:51678",
        clock=time.monotonic,
    )
    try:
        if options.print_metadata:
            return print_metadata(metadata)
        settings = Settings.read(os.environ)
        if options.announce_now:
            return announce_now(metadata, Topic(settings.topic_arn))
        run(metadata, HostDir(settings.host_dir), Topic(settings.topic_arn))
    except Blind as error:
        record("blind", why=str(error))
        return 1
    except BadSettings as error:
        sys.stderr.write(f"spindrift agent: {error}\n")
        return 2
    except Trouble as error:
        sys.stderr.write(f"spindrift agent: {error}\n")
        return 1


def run(metadata: Metadata, host: HostDir, topic: Topic) -> NoReturn:
    """Watch until SIGTERM (status 0), or raise Blind."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

    def tell(notice: Notice) -> None:
        if deliver(notice, topic.publish, now=_now, pause=time.sleep):
            host.mark_published(notice)

    def send(notice: Notice) -> None:
        threading.Thread(target=tell, args=(notice,), daemon=True).start()

    try:
        topic.warm()
    except Unpublished as trouble:
        record("trouble", question="sns", why=str(trouble))
    watch(Watcher(metadata, host, send, _now), clock=time.monotonic, pause=time.sleep)


def print_metadata(metadata: Metadata) -> int:
    """Print the instance and the notices it has, as one JSON object."""
    instance = _instance(metadata)
    notices = []
    if (body := metadata.interruption()) is not None:
        notices.append(interruption_from(body, instance, _now()).to_json())
    if (body := metadata.rebalance()) is not None:
        notices.append(rebalance_from(body, instance).to_json())
    known = {**instance.to_json(), "notices": notices}
    sys.stdout.write(json.dumps(known, indent=2) + "\n")
    return 0


def announce_now(metadata: Metadata, topic: Topic) -> int:
    """Publish an interruption that EC2 did not announce."""
    now = _now()
    notice = Notice(INTERRUPTION, _instance(metadata), "terminate", now + WARNING, now)
    return 0 if deliver(notice, topic.publish, now=_now, pause=time.sleep) else 1


def _instance(metadata: Metadata) -> Instance:
    return with_registration(instance_from(metadata.identity(), metadata.life_cycle()), metadata)


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="agent.pyz",
        description="Watch this instance's metadata for notices and publish them to SNS.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flags = parser.add_mutually_exclusive_group()
    flags.add_argument("--print-metadata", action="store_true", help="print what the agent knows as JSON, and exit")
    flags.add_argument("--announce-now", action="store_true", help="publish an interruption due in 120 s, and exit")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
