"""Uploads become jobs, once each, and none is lost on the way."""

import json
from datetime import UTC, datetime, timedelta

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lambdas_make import batch, sample
from moto import mock_aws

from ingest.cloud import Aws, CloudFailed
from ingest.handler import run
from ingest.routing import Malformed, Route, Upload, route, uploads
from ingest.settings import BadSettings, Settings

NOW = datetime(2024, 5, 1, 12, tzinfo=UTC)


# Reading and routing, pure.


@pytest.mark.parametrize(
    "name, keys",
    [
        ("s3-test-event", []),
        ("s3-object-created", ["photos/lighthouse.jpg"]),
        ("s3-several-records", ["photos/one.jpg", "photos/two.png", "photos/three.webp"]),
        ("s3-encoded-keys", ["a space.jpg", "one+one.jpg", "straße/波.jpg", "100% sure?.jpg"]),
        ("s3-repeated", ["photos/lighthouse.jpg", "photos/lighthouse.jpg"]),
        ("s3-without-versions", ["photos/lighthouse.jpg"]),
        ("s3-folder-marker", []),
        ("s3-object-removed", []),
    ],
)
def test_uploads_are_read(name, keys):
    assert [upload.key for upload in uploads(sample(name))] == keys


@pytest.mark.parametrize(
    "body",
    [
        *("", "hello", "[]", "null", "{}", '{"Records": [{}]}', '{"Records": 1}', "[" * 100_000),
        *(sample("wake"), sample("s3-object-created").replace('"size": ', '"size": 1e999, "was": ')),
    ],
)
def test_what_is_no_s3_event_is_refused(body):
    with pytest.raises(Malformed, match="not an S3 event"):
        uploads(body)


def test_a_key_that_is_not_unicode_is_refused_rather_than_mangled():
    with pytest.raises(Malformed):
        uploads(sample("s3-object-created").replace("lighthouse", "%FF"))


def upload(**parts):
    return Upload(**{"bucket": "b", "key": "k.jpg", "version": "v1", "etag": "e1", "size": 1, **parts})


def test_a_job_is_one_version_of_one_object():
    assert upload().job_id == upload(etag="other", size=2).job_id
    assert len({upload(**parts).job_id for parts in ({}, {"bucket": "c"}, {"key": "l"}, {"version": "v2"})}) == 4
    assert upload(version="").job_id != upload(version="", etag="e2").job_id
    assert len(upload().job_id) == 32


@given(st.tuples(st.text(), st.text()), st.tuples(st.text(), st.text()))
def test_two_keys_never_share_a_job(one, other):
    same = upload(bucket=one[0], key=one[1]).job_id == upload(bucket=other[0], key=other[1]).job_id

    assert same == (one == other)


def test_the_longest_prefix_wins():
    routes = [
        Route(prefix=prefix, queue=prefix or "default", queue_url="u") for prefix in ("urgent/", "", "urgent/video/")
    ]

    assert [route(key, routes).queue for key in ("a.jpg", "urgent/a.jpg", "urgent/video/a.mp4", "urgent")] == [
        "default",
        "urgent/",
        "urgent/video/",
        "default",
    ]
    assert route("a.jpg", routes[:1]) is None


def test_bad_settings_are_reported_together():
    with pytest.raises(BadSettings) as error:
        Settings.read({"ROUTES": "[]"})

    assert str(error.value) == "JOBS_TABLE is missing; NOTICES_QUEUE_URL is missing; ROUTES is empty"


# The whole Lambda on moto.


class World:
    """The table and the queues, and the Lambda wired to them."""

    def __init__(self):
        session = boto3.Session(region_name="eu-west-1", aws_access_key_id="x", aws_secret_access_key="x")
        self.sqs = session.client("sqs")
        self.jobs_url = self.sqs.create_queue(QueueName="jobs")["QueueUrl"]
        self.notices_url = self.sqs.create_queue(QueueName="notices")["QueueUrl"]
        self.table = session.resource("dynamodb").create_table(
            TableName="jobs",
            KeySchema=[{"AttributeName": "job_id", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "job_id", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )
        self.routes = [Route(prefix="", queue="default", queue_url=self.jobs_url)]
        self.cloud = Aws(session, table="jobs", notices_url=self.notices_url)

    def ingest(self, *bodies):
        """Run one batch; return the messages that come again."""
        reply = run(self.cloud, self.routes, batch(*bodies), NOW)
        return [failure["itemIdentifier"] for failure in reply["batchItemFailures"]]

    def take(self, url):
        """Everything in a queue, which is empty after."""
        bodies = []
        while messages := self.sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages", []):
            for message in messages:
                bodies.append(json.loads(message["Body"]))
                self.sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
        return bodies

    def jobs(self):
        return self.take(self.jobs_url)

    def wakes(self):
        return self.take(self.notices_url)

    def records(self):
        return self.table.scan()["Items"]

    def set_state(self, state):
        for item in self.records():
            self.table.put_item(Item={**item, "state": state})


@pytest.fixture
def world():
    with mock_aws():
        yield World()


def test_an_upload_becomes_a_record_and_a_message(world):
    assert world.ingest(sample("s3-object-created")) == []

    [record], [message] = world.records(), world.jobs()
    [read] = uploads(sample("s3-object-created"))
    assert record == {
        "job_id": read.job_id,
        "bucket": "spindrift-uploads",
        "key": "photos/lighthouse.jpg",
        "version": read.version,
        "etag": read.etag,
        "size": 1024,
        "queue": "default",
        "state": "QUEUED",
        "attempts": 0,
        "releases": 0,
        "failures": 0,
        "created": "2024-05-01T12:00:00+00:00",
    }
    assert message == {
        "schema": "spindrift.job/1",
        "job_id": read.job_id,
        "bucket": "spindrift-uploads",
        "key": "photos/lighthouse.jpg",
        "version": read.version,
        "etag": read.etag,
        "size": 1024,
    }


def test_several_records_in_several_messages_all_become_jobs(world):
    assert world.ingest(sample("s3-several-records"), sample("s3-encoded-keys"), sample("s3-test-event")) == []

    assert len(world.records()) == len(world.jobs()) == 7


def test_more_jobs_than_one_call_can_send_are_all_sent(world):
    body = json.dumps(
        {
            "Records": [
                json.loads(sample("s3-object-created").replace("lighthouse", f"{n}"))["Records"][0] for n in range(23)
            ]
        }
    )

    assert world.ingest(body) == []
    assert len({job["job_id"] for job in world.jobs()}) == 23


def test_one_upload_told_twice_in_a_batch_is_one_message(world):
    world.ingest(sample("s3-repeated"), sample("s3-object-created"))

    assert len(world.records()) == len(world.jobs()) == 1


@pytest.mark.parametrize("state, sent", [("QUEUED", 1), ("RUNNING", 0), ("SUCCEEDED", 0), ("FAILED", 0)])
def test_an_upload_told_again_is_sent_again_only_while_nobody_has_taken_it(world, state, sent):
    world.ingest(sample("s3-object-created"))
    world.jobs()
    world.set_state(state)
    before = world.records()

    assert world.ingest(sample("s3-object-created")) == []

    assert len(world.jobs()) == sent
    assert world.records() == before


def test_a_crash_between_record_and_message_does_not_lose_the_job(world, monkeypatch):
    def crash(*_):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(world.cloud, "send", crash)
        with pytest.raises(SystemExit):
            world.ingest(sample("s3-object-created"))
    assert len(world.records()) == 1

    world.ingest(sample("s3-object-created"))

    assert len(world.jobs()) == 1


def test_a_bad_message_comes_again_alone_and_says_why(world, capsys):
    assert world.ingest("hello", sample("s3-object-created")) == ["m0"]

    assert len(world.jobs()) == 1
    [line] = [json.loads(line) for line in capsys.readouterr().out.splitlines() if "upload-failed" in line]
    assert line["message"] == "m0"
    assert "not an S3 event" in line["why"]


def test_without_its_table_nothing_is_sent_and_everything_comes_again(world):
    world.table.delete()

    assert world.ingest(sample("s3-object-created"), sample("s3-several-records")) == ["m0", "m1"]
    assert not world.jobs()


def test_a_job_that_could_not_be_sent_comes_again_with_every_message_that_told_of_it(world):
    real = world.jobs_url
    world.routes = [Route(prefix="", queue="default", queue_url=real + "-gone")]
    assert world.ingest(sample("s3-object-created"), sample("s3-repeated"), sample("s3-test-event")) == ["m0", "m1"]

    world.routes = [Route(prefix="", queue="default", queue_url=real)]
    assert world.ingest(sample("s3-object-created")) == []
    assert len(world.jobs()) == 1


def test_a_key_without_a_route_is_told_and_dropped(world, capsys):
    world.routes = [Route(prefix="urgent/", queue="urgent", queue_url=world.jobs_url)]

    assert world.ingest(sample("s3-object-created")) == []
    assert not world.records()
    assert json.loads(capsys.readouterr().out)["event"] == "not-a-job"


def test_the_first_upload_after_a_quiet_time_wakes_capacity_once(world):
    world.ingest(sample("s3-several-records"))
    world.ingest(sample("s3-object-created"))

    [wake] = world.wakes()
    assert wake == {
        "schema": "spindrift.wake/1",
        "reason": "first upload after a quiet time",
        "at": "2024-05-01T12:00:00+00:00",
    }


def test_jobs_that_run_are_not_quiet(world):
    world.ingest(sample("s3-object-created"))
    world.wakes()
    world.sqs.receive_message(QueueUrl=world.jobs_url, VisibilityTimeout=60)

    world.ingest(sample("s3-several-records"))

    assert not world.wakes()


def test_in_a_stream_of_uploads_the_queue_is_asked_about_every_ten_seconds(world, monkeypatch):
    asked = []
    world.cloud._sqs.meta.events.register("before-call.sqs.GetQueueAttributes", lambda **_: asked.append(1))
    for second in (0, 1, 5, 10, 11, 12):
        run(world.cloud, world.routes, batch(sample("s3-object-created")), NOW + timedelta(seconds=second))

    assert len(asked) == 3  # while it was quiet, then busy, then ten seconds later
    assert len(world.wakes()) == 1


def test_a_wake_that_fails_does_not_fail_the_upload(world, capsys):
    world.sqs.delete_queue(QueueUrl=world.notices_url)

    assert world.ingest(sample("s3-object-created")) == []
    assert len(world.jobs()) == 1
    assert "not-woken" in capsys.readouterr().out


def test_not_knowing_whether_it_was_quiet_wakes(world, monkeypatch):
    def unknown(*_):
        raise CloudFailed("SQS does not answer")

    monkeypatch.setattr(world.cloud, "is_quiet", unknown)

    assert world.ingest(sample("s3-object-created")) == []
    assert len(world.wakes()) == 1


def test_the_log_is_one_json_object_per_line_with_its_reason(world, capsys):
    world.ingest("hello", sample("s3-several-records"))

    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines
    assert all(line["event"] and line["why"] for line in lines)
