"""The agent as a real process, between a real metadata service and a real SNS endpoint, both ours and scripted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.metadata import Metadata
from agent.notice import Instance, Notice, interruption_from, notice_from
from agent.publish import HostDir, Unpublished, deliver
from agent.watch import Blind, Watcher, watch
from tests.metadata_server import ACCESS_KEY, ARN, INSTANCE, LocalServer, MetadataServer

ROOT = Path(__file__).parent.parent
TOPIC = "arn:aws:sns:eu-west-1:123456789012:cell-Notices"
NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
G5 = Instance(INSTANCE, "g5.xlarge", "eu-west-1a", "spot", "cell", ARN)


def python39() -> str | None:
    pyenv = sorted(Path.home().glob(".pyenv/versions/3.9*/bin/python3.9"))
    return str(pyenv[-1]) if pyenv else shutil.which("python3.9")


needs_39 = pytest.mark.skipif(
    not (python39() and (ROOT / ".agent-site").is_dir()), reason="no python3.9 here, or no .agent-site for it"
)


class NoticesTopic(LocalServer):
    """SNS, as far as Publish goes: `down` refuses, `silent` lets wait; `saw` is what `look` returned on arrival."""

    def __init__(self) -> None:
        super().__init__()
        self.down = False
        self.silent = False
        self.refused = 0
        self.published: list[dict[str, Any]] = []
        self.signed_by: list[str] = []
        self.look: Callable[[], Any] = lambda: None
        self.saw: list[Any] = []

    def answer(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, dict[str, str], str]:
        call = {name: values[0] for name, values in parse_qs(body.decode()).items()}
        if self.down or call.get("Action") != "Publish" or call.get("TopicArn") != TOPIC:
            self.refused += 1
            return 503, {}, "<ErrorResponse><Error><Code>ServiceUnavailable</Code></Error></ErrorResponse>"
        if self.silent:
            time.sleep(5)
        self.saw.append(self.look())
        self.signed_by.append(headers["Authorization"])
        self.published.append(json.loads(call["Message"]))
        return 200, {}, "<PublishResponse><PublishResult><MessageId>m-1</MessageId></PublishResult></PublishResponse>"

    @property
    def kinds(self) -> list[str]:
        return [notice["kind"] for notice in self.published]


class Agent:
    """One run of the agent, in a process of its own."""

    def __init__(self, env: Mapping[str, str], log: Path, *arguments: str, python: str = sys.executable) -> None:
        self._log = log
        with log.open("a") as out:
            self.process = subprocess.Popen([python, "-m", "agent", *arguments], cwd=ROOT, env=env, stdout=out)

    def events(self, name: str) -> list[dict[str, Any]]:
        events = [json.loads(line) for line in self._log.read_text().splitlines()]
        return [event for event in events if event["event"] == name]

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        return self.process.wait(timeout=10)


@pytest.fixture
def metadata() -> Iterator[MetadataServer]:
    with MetadataServer() as server:
        yield server


@pytest.fixture
def topic() -> Iterator[NoticesTopic]:
    with NoticesTopic() as server:
        yield server


@pytest.fixture
def host(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def env(metadata: MetadataServer, topic: NoticesTopic, host: Path, tmp_path: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "SPINDRIFT_NOTICES_TOPIC_ARN": TOPIC,
        "SPINDRIFT_HOST_DIR": str(host),
        "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_ENDPOINT_URL": topic.url,
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata.url,
        "ECS_AGENT_URI": metadata.url,
    }


@pytest.fixture
def start(env: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Agent]]:
    """Start agents; return once the new one asks about interruptions, or as soon as asked for."""
    started: list[Agent] = []

    def begin(*, python: str = sys.executable, until: str | None = "watching", **changed: str) -> Agent:
        agent = Agent({**env, **changed}, tmp_path / "agent.log", python=python)
        started.append(agent)
        before = len(agent.events(until)) if until else 0
        if until:
            eventually(lambda: len(agent.events(until)) > before, within=20)
        return agent

    yield begin
    for agent in started:
        if agent.process.poll() is None:
            agent.process.kill()
        agent.process.wait()


def eventually(true: Callable[[], Any], within: float = 20) -> None:
    end = time.monotonic() + within
    while not true():
        assert time.monotonic() < end, f"not within {within} s"
        time.sleep(0.02)


def soon() -> datetime:
    return datetime.now(UTC) + timedelta(seconds=120)


def two_more_turns(metadata: MetadataServer) -> None:
    """Wait until the agent has looked twice more: what it was going to do at once, it has done."""
    seen = len(metadata.times("rebalance"))
    eventually(lambda: len(metadata.times("rebalance")) >= seen + 2, within=20)


def test_a_notice_is_published_once_within_a_second_and_a_half(start, metadata, topic):
    start()
    deadline = soon()

    metadata.interrupt(deadline)
    began = time.monotonic()
    eventually(lambda: topic.published)
    took = time.monotonic() - began
    two_more_turns(metadata)

    assert took < 1.5
    [notice] = topic.published
    observed = datetime.fromisoformat(notice.pop("observedAt"))
    assert timedelta(0) < deadline - observed < timedelta(seconds=120)
    assert notice == {
        "schema": "spindrift.notice/1",
        "kind": "interruption",
        "instanceId": INSTANCE,
        "instanceType": "g5.xlarge",
        "availabilityZone": "eu-west-1a",
        "lifecycle": "spot",
        "cluster": "cell",
        "containerInstanceArn": ARN,
        "action": "terminate",
        "deadline": deadline.isoformat().replace("+00:00", "Z"),
    }


def test_workers_read_the_notice_before_sns_does(start, metadata, topic, host):
    topic.look = lambda: json.loads((host / "notice.json").read_text())
    start()

    metadata.interrupt(soon())
    eventually(lambda: topic.published)

    assert topic.saw == topic.published


def test_workers_can_read_who_they_run_on(start, metadata, host):
    start()
    eventually(lambda: json.loads((host / "instance.json").read_text())["cluster"])

    assert json.loads((host / "instance.json").read_text()) == {
        "instanceId": INSTANCE,
        "instanceType": "g5.xlarge",
        "availabilityZone": "eu-west-1a",
        "lifecycle": "spot",
        "cluster": "cell",
        "containerInstanceArn": ARN,
    }
    assert (host / "instance.json").stat().st_mode & 0o004, "a worker that is not root reads it too"


def test_a_rebalance_and_then_an_interruption_are_both_told(start, metadata, topic, host):
    start()

    metadata.recommend_rebalance(NOON)
    eventually(lambda: topic.kinds == ["rebalance"])
    metadata.interrupt(soon())
    eventually(lambda: topic.kinds == ["rebalance", "interruption"])

    rebalance = json.loads((host / "rebalance.json").read_text())
    assert rebalance == topic.published[0]
    assert (rebalance["deadline"], rebalance["action"]) == (None, None)
    assert rebalance["observedAt"] == "2024-05-01T12:00:00Z"


def test_a_changed_deadline_is_a_new_notice(start, metadata, topic):
    start()
    metadata.interrupt(soon())
    eventually(lambda: topic.published)

    sooner = datetime.now(UTC) + timedelta(seconds=30)
    metadata.interrupt(sooner)
    eventually(lambda: len(topic.published) == 2)

    assert datetime.fromisoformat(topic.published[1]["deadline"]) == sooner


def test_a_refused_token_is_renewed_at_once(start, metadata, topic):
    agent = start()
    metadata.forget_tokens()

    metadata.interrupt(soon())
    eventually(lambda: topic.published)

    assert agent.events("trouble") == []


def test_a_token_is_renewed_before_it_expires_and_not_with_every_question(start, metadata):
    metadata.token_ttl = 3
    agent = start()
    first = time.monotonic()
    eventually(lambda: len([at for at in metadata.times("token", "PUT") if at > first]) >= 2, within=20)

    assert 401 not in [status for *_, status in metadata.asked]
    assert agent.events("trouble") == []
    assert len(metadata.times("token", "PUT")) < len(metadata.times("instance-action"))


@pytest.mark.parametrize(
    "broken, delay",
    [
        ({"spot": 500}, {}),
        ({"spot": 403}, {}),
        ({"spot": '{"action": "terminate"}'}, {}),
        ({"spot": "<html>"}, {}),
        ({"spot": 401}, {}),
        ({}, {"spot": 0.9}),
    ],
    ids=["500", "403", "no time", "not JSON", "401 for good", "silence"],
)
def test_trouble_is_neither_good_news_nor_a_notice_and_passes(start, metadata, topic, broken, delay):
    agent = start()
    metadata.broken.update(broken)
    metadata.delay.update(delay)
    metadata.interrupt(soon())
    two_more_turns(metadata)

    assert topic.published == []
    assert "interruption" in [event["question"] for event in agent.events("trouble")]

    metadata.broken.clear()
    metadata.delay.clear()
    eventually(lambda: topic.kinds == ["interruption"])
    eventually(lambda: agent.events("trouble-over"))


def test_trouble_with_rebalance_does_not_silence_interruptions(start, metadata, topic):
    metadata.broken["rebalance"] = 500
    start()

    metadata.interrupt(soon())

    eventually(lambda: topic.kinds == ["interruption"])


def test_slow_answers_do_not_stretch_the_second(start, metadata):
    metadata.delay["spot"] = 0.35
    start()
    eventually(lambda: len(metadata.times("instance-action")) >= 6, within=20)

    for question in ("instance-action", "recommendations/rebalance"):
        times = metadata.times(question)[:6]
        assert (times[-1] - times[0]) / (len(times) - 1) < 1.2


def test_sns_down_delays_the_notice_and_loses_nothing(start, metadata, topic):
    agent = start()
    topic.down = True
    metadata.interrupt(soon())
    eventually(lambda: topic.refused >= 3)

    topic.down = False
    eventually(lambda: topic.published)
    two_more_turns(metadata)

    assert topic.kinds == ["interruption"]
    assert {event["why"] for event in agent.events("publish-failed")} == {"ServiceUnavailable"}


def test_a_silent_sns_does_not_delay_the_next_notice_for_workers(start, metadata, topic, host):
    topic.silent = True
    start()
    metadata.recommend_rebalance(NOON)
    eventually((host / "rebalance.json").exists)

    metadata.interrupt(soon())

    eventually((host / "notice.json").exists, within=1.5)


def test_a_restart_does_not_publish_twice(start, metadata, topic, host):
    first = start()
    metadata.interrupt(soon())
    eventually(lambda: (host / "published").exists() and (host / "published").read_text())
    first.stop(signal.SIGKILL)

    start()
    two_more_turns(metadata)

    assert len(topic.published) == 1


def test_a_restart_publishes_what_the_last_run_could_not_even_without_metadata(start, metadata, topic):
    topic.down = True
    first = start()
    metadata.interrupt(soon())
    eventually(lambda: topic.refused)
    first.stop(signal.SIGKILL)
    metadata.broken["meta-data/spot"] = metadata.broken["instance-identity"] = 500
    topic.down = False

    start(until="resumed")
    eventually(lambda: topic.published)

    assert topic.published[0]["cluster"] == "cell"


def test_a_notice_is_told_even_when_the_ecs_agent_never_answers(start, metadata, topic):
    start(ECS_AGENT_URI="http://127.0.0.1:9")

    metadata.interrupt(soon())
    eventually(lambda: topic.published)

    assert (topic.published[0]["cluster"], topic.published[0]["containerInstanceArn"]) == (None, None)


def test_an_ecs_agent_that_registers_later_is_noticed_quietly(start, metadata, host):
    metadata.ecs = {"Cluster": "cell", "ContainerInstanceArn": None}
    agent = start()
    eventually(lambda: json.loads((host / "instance.json").read_text())["cluster"] == "cell")

    metadata.ecs = {"Cluster": "cell", "ContainerInstanceArn": ARN}
    eventually(lambda: json.loads((host / "instance.json").read_text())["containerInstanceArn"] == ARN, within=20)

    assert agent.events("trouble") == []


def test_it_signs_with_the_instance_role_and_never_writes_a_secret(start, metadata, topic, host, tmp_path):
    agent = start()
    topic.down = True
    metadata.interrupt(soon())
    eventually(lambda: topic.refused)
    topic.down = False
    metadata.broken["spot"] = 500
    eventually(lambda: topic.published and agent.events("trouble"))

    assert ACCESS_KEY in topic.signed_by[0]
    written = (tmp_path / "agent.log").read_text() + "".join(file.read_text() for file in host.iterdir())
    assert ACCESS_KEY not in written
    assert "must-not-be-logged" not in written


def test_credentials_that_come_late_are_used(start, metadata, topic):
    metadata.broken["security-credentials"] = 404
    agent = start()
    assert [event["question"] for event in agent.events("trouble")] == ["sns"]
    metadata.interrupt(soon())
    eventually(lambda: agent.events("publish-failed"))

    del metadata.broken["security-credentials"]

    eventually(lambda: topic.published, within=20)


def test_sigterm_ends_it_promptly_and_well(start, metadata):
    agent = start()
    began = time.monotonic()

    assert agent.stop() == 0
    assert time.monotonic() - began < 2


def test_without_news_it_is_quiet(start, metadata):
    agent = start()
    two_more_turns(metadata)
    two_more_turns(metadata)

    log = (agent._log).read_text().splitlines()
    assert [json.loads(line)["event"] for line in log] == ["watching", "registered"]


def run_flag(env: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "agent", *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=20)


def test_print_metadata_shows_what_it_knows_and_needs_no_topic(env, metadata):
    del env["SPINDRIFT_NOTICES_TOPIC_ARN"]
    metadata.interrupt(NOON, action="stop")

    done = run_flag(env, "--print-metadata")

    known = json.loads(done.stdout)
    assert (known["instanceId"], known["containerInstanceArn"]) == (INSTANCE, ARN)
    assert [(notice["action"], notice["deadline"]) for notice in known["notices"]] == [("stop", "2024-05-01T12:00:00Z")]


def test_print_metadata_says_when_it_could_not_look(env, metadata):
    metadata.broken["token"] = 403

    done = run_flag(env, "--print-metadata")

    assert (done.returncode, done.stderr) == (1, "spindrift agent: /latest/api/token: HTTP 403\n")


def test_announce_now_publishes_a_notice_due_in_two_minutes(env, topic):
    done = run_flag(env, "--announce-now")

    assert done.returncode == 0
    [notice] = topic.published
    left = datetime.fromisoformat(notice["deadline"]) - datetime.now(UTC)
    assert (notice["kind"], notice["action"], notice["cluster"]) == ("interruption", "terminate", "cell")
    assert timedelta(seconds=100) < left < timedelta(seconds=120)


def test_help_shows_a_command_for_each_situation(env):
    shown = run_flag(env, "--help").stdout

    assert "agent.pyz --print-metadata\n" in shown
    assert "agent.pyz --announce-now\n" in shown


@pytest.mark.parametrize("arguments", [(), ("--announce-now",)], ids=["watching", "announcing"])
def test_a_bad_environment_is_named_whole(env, tmp_path, topic, arguments):
    (tmp_path / "file").write_text("")
    env.update(SPINDRIFT_NOTICES_TOPIC_ARN="arn:aws:sqs:eu-west-1:1:x", SPINDRIFT_HOST_DIR=f"{tmp_path}/file/run")
    del env["AWS_DEFAULT_REGION"]

    done = run_flag(env, *arguments)

    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    for problem in ("not the ARN of an SNS topic", "AWS_DEFAULT_REGION is missing", "SPINDRIFT_HOST_DIR cannot be"):
        assert problem in done.stderr


def test_an_empty_environment_is_told_what_is_missing(env):
    env["SPINDRIFT_NOTICES_TOPIC_ARN"] = ""

    done = run_flag(env)

    assert (done.returncode, done.stderr) == (2, "spindrift agent: SPINDRIFT_NOTICES_TOPIC_ARN is missing\n")


@needs_39
def test_on_python_3_9_it_does_the_same_within_its_memory(start, metadata, topic):
    agent = start(python=python39(), PYTHONPATH=str(ROOT / ".agent-site"))
    metadata.interrupt(soon())
    eventually(lambda: topic.kinds == ["interruption"])

    assert resident_mib(agent.process.pid) <= 50
    assert agent.stop() == 0


def test_nothing_in_it_needs_a_newer_python():
    vermin = Path(sys.executable).with_name("vermin")
    done = subprocess.run([vermin, "-t=3.9-", "--no-tips", "agent/"], cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout


def resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


class Clock:
    """Time that passes only when someone pauses."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return NOON + timedelta(seconds=self.seconds)

    def pause(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.mark.parametrize("question", ["instance-identity", "spot", "rebalance"])
def test_a_minute_of_trouble_is_blindness(metadata, tmp_path, question):
    metadata.broken[question] = 500
    clock = Clock()
    watcher = Watcher(Metadata(metadata.url, metadata.url, clock), HostDir(tmp_path), pytest.fail, clock.now)

    with pytest.raises(Blind, match="HTTP 500"):
        watch(watcher, clock=clock, pause=clock.pause)

    assert clock.seconds == 60


def test_trouble_that_passes_in_time_is_forgiven(metadata, tmp_path):
    clock = Clock()
    watcher = Watcher(Metadata(metadata.url, metadata.url, clock), HostDir(tmp_path), pytest.fail, clock.now)

    def pause(seconds: float) -> None:
        clock.pause(seconds)
        metadata.broken = {"spot": 500} if clock.seconds % 60 else {}
        if clock.seconds > 150:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watch(watcher, clock=clock, pause=pause)


def test_a_file_that_cannot_be_written_does_not_stop_the_message(metadata, tmp_path):
    metadata.interrupt(NOON)
    told: list[Notice] = []
    watcher = Watcher(
        Metadata(metadata.url, metadata.url, Clock()), HostDir(tmp_path / "gone"), told.append, lambda: NOON
    )

    watcher.turn(0)

    assert [notice.kind for notice in told] == ["interruption"]


def refuse(_: Notice) -> str:
    raise Unpublished("down")


def test_publishing_is_tried_from_a_fifth_of_a_second_until_the_deadline():
    clock = Clock()
    waits: list[float] = []
    notice = Notice("interruption", G5, "terminate", NOON + timedelta(seconds=20), NOON)

    done = deliver(notice, refuse, now=clock.now, pause=lambda seconds: (waits.append(seconds), clock.pause(seconds)))

    assert done is False
    assert waits[:6] == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0]
    assert sum(waits) == pytest.approx(20)


def test_a_notice_that_is_already_late_still_gets_one_try():
    told: list[Notice] = []
    late = Notice("interruption", G5, "terminate", NOON, NOON)

    done = deliver(late, lambda notice: str(told.append(notice)), now=lambda: soon(), pause=pytest.fail)

    assert done and told == [late]


instants = st.integers(0, 10**15).map(lambda microseconds: NOON + timedelta(microseconds=microseconds))
notices = st.builds(
    Notice,
    st.sampled_from(["interruption", "rebalance"]),
    st.builds(Instance, *[st.text()] * 4, st.none() | st.text(), st.none() | st.text()),
    st.none() | st.sampled_from(["terminate", "stop", "hibernate"]),
    st.none() | instants,
    instants,
)


@given(notices)
def test_what_is_written_is_read_back_the_same(notice):
    assert notice_from(json.loads(json.dumps(notice.to_json()))) == notice


@given(instants, instants)
def test_hearing_it_again_is_the_same_notice_however_late_and_whoever_we_are_by_then(first, second):
    body = {"action": "terminate", "time": "2024-05-01T12:02:00Z"}
    stranger = Instance(INSTANCE, "g5.xlarge", "eu-west-1a", "spot")

    assert interruption_from(body, stranger, first).identity == interruption_from(body, G5, second).identity
