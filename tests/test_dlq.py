"""`build.py dlq`: what an operator sees of jobs that failed for good, and what becomes of them."""

import json
from datetime import UTC, datetime
from itertools import count

import boto3
import pytest
from botocore.exceptions import EndpointConnectionError
from click.testing import CliRunner
from worker_make import until

import build
from gpu_worker import parts
from gpu_worker.job import Job
from gpu_worker.upload import told_by_s3
from ops import dlq
from ops.account import Account
from ops.dlq import DeadLetters

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
NAMES = (f"stack{number}" for number in count())
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def template():
    table = {
        "AttributeDefinitions": [{"AttributeName": "job_id", "AttributeType": "S"}],
        "KeySchema": [{"AttributeName": "job_id", "KeyType": "HASH"}],
        "BillingMode": "PAY_PER_REQUEST",
    }
    queues = {title: {"Type": "AWS::SQS::Queue"} for title in ("DefaultJobs", "BigOnesJobs", "DeadLetter", "Notices")}
    return json.dumps({"Resources": {**queues, "JobsTable": {"Type": "AWS::DynamoDB::Table", "Properties": table}}})


def _status(cloudformation, name):
    return cloudformation.describe_stacks(StackName=name)["Stacks"][0]["StackStatus"]


class Stack:
    """Two job queues, a dead-letter queue and a table."""

    def __init__(self):
        self.name = next(NAMES)
        session = boto3.Session()
        self.sqs, self.dynamodb = session.client("sqs"), session.client("dynamodb")
        cloudformation = session.client("cloudformation")
        cloudformation.create_stack(StackName=self.name, TemplateBody=template())
        until(lambda: _status(cloudformation, self.name) == "CREATE_COMPLETE")
        found = cloudformation.list_stack_resources(StackName=self.name)["StackResourceSummaries"]
        self.ids = {one["LogicalResourceId"]: one["PhysicalResourceId"] for one in found}
        self.dead = self.ids["DeadLetter"]

    def record(self, job_id, **parts):
        item = {
            **{"job_id": job_id, "bucket": "b", "key": "a.jpg", "queue": "default", "state": "FAILED", "failures": 3},
            **{"attempts": 4, "releases": 1, "error": "it is broken", "finished": NOON.isoformat(), "owner": "task"},
            **parts,
        }
        typed = {name: {"N": str(v)} if isinstance(v, int) else {"S": v} for name, v in item.items()}
        self.dynamodb.put_item(TableName=self.ids["JobsTable"], Item=typed)

    def bury(self, body, reason=None):
        """As the worker does, or without a reason as SQS does."""
        told = {"reason": {"DataType": "String", "StringValue": reason}} if reason else {}
        self.sqs.send_message(QueueUrl=self.dead, MessageBody=body, MessageAttributes=told)

    def fail(self, job_id, **parts):
        """A job that failed for good; returns the body of its message."""
        self.record(job_id, **parts)
        body = message(job_id, parts.get("key", "a.jpg"))
        self.bury(body, "it is broken")
        return body

    def job(self, job_id):
        item = self.dynamodb.get_item(TableName=self.ids["JobsTable"], Key={"job_id": {"S": job_id}})["Item"]
        return {name: value.get("S") or value.get("N") for name, value in item.items()}

    def waiting(self, title):
        """The bodies of the messages that can be seen in a queue."""
        got = self.sqs.receive_message(QueueUrl=self.ids[title], MaxNumberOfMessages=10, VisibilityTimeout=0)
        return sorted(one["Body"] for one in got.get("Messages", ()))

    def run(self, verb, *arguments):
        """The command's exit status and what it printed."""
        result = CliRunner().invoke(build.cli, ["dlq", verb, "--stack", self.name, *arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.output
        return result.exit_code, result.output


def message(job_id, key="a.jpg"):
    told = {"schema": "spindrift.job/1", "job_id": job_id, "bucket": "b", "key": key}
    return json.dumps({**told, "version": "", "etag": "e", "size": 1})


def event(*keys):
    """What S3 tells of uploads, and the ids of their jobs."""
    uploads = [{"bucket": {"name": "b"}, "object": {"key": key, "size": 1, "eTag": key}} for key in keys]
    body = json.dumps({"Records": [{"eventName": "ObjectCreated:Put", "s3": one} for one in uploads]})
    return body, [job.job_id for job in told_by_s3(body)]


@pytest.fixture
def stack(endpoint, monkeypatch):
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": endpoint}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(dlq, "WAIT_SECONDS", 0)
    return Stack()


# Looking


def test_each_kind_of_message_is_listed_with_what_is_known_of_it(stack):
    body, (first, second) = event("one.jpg", "two.jpg")
    stack.fail("f" * 32, key="broken\n.jpg")
    stack.bury(message("d" * 32))
    stack.bury(body, "two.jpg is broken")
    stack.record(first, state="SUCCEEDED", key="one.jpg")
    stack.record(second, key="two.jpg", failures=1)
    stack.bury("hello")

    listed = json.loads(stack.run("list", "--json")[1])["jobs"]

    by_key = {one["key"]: one for one in listed}
    failed = by_key["broken\n.jpg"]
    assert (failed["name"], failed["failures"], failed["reason"]) == ("f" * 32, 3, "it is broken")
    assert failed["when"] == str(NOON)
    assert (by_key["a.jpg"]["name"], by_key["a.jpg"]["state"]) == ("d" * 32, "no record")
    assert (by_key["two.jpg"]["failures"], by_key["two.jpg"]["reason"]) == (1, "two.jpg is broken")
    assert by_key["two.jpg"]["name"] not in (first, second)
    assert by_key[""]["state"] == "no job"


def test_the_table_keeps_to_its_lines_whatever_an_upload_is_called(stack):
    stack.fail("f" * 32, key="a\n\x1b[31mred.jpg")

    code, said = stack.run("list")

    head, row, empty, count = said.splitlines()
    assert (code, head.split()[0], empty, count) == (0, "job", "", "1 in the dead-letter queue")
    assert row.startswith("f" * 32)
    assert "\x1b" not in row
    assert "2026-05-01 12:00:00" in row


def test_whoever_looks_gives_the_messages_back(stack):
    for number in range(25):
        stack.fail(f"{number:032}")

    looked = [len(json.loads(stack.run("list", "--json")[1])["jobs"]) for _ in range(2)]
    stack.run("show", "7".zfill(32))

    counts = stack.sqs.get_queue_attributes(QueueUrl=stack.dead, AttributeNames=["All"])["Attributes"]
    assert looked == [25, 25]
    assert counts["ApproximateNumberOfMessages"] == "25"


def test_messages_that_come_again_while_somebody_looks_are_seen_once(stack, monkeypatch):
    monkeypatch.setattr(dlq, "HIDDEN_SECONDS", 0)
    stack.fail("f" * 32)

    assert [one["name"] for one in json.loads(stack.run("list", "--json")[1])["jobs"]] == ["f" * 32]


def test_one_job_is_shown_with_its_record_and_message(stack):
    stack.fail("f" * 32)

    shown = json.loads(stack.run("show", "f" * 32)[1])

    assert shown["message"]["key"] == "a.jpg"
    assert (shown["records"][0]["error"], shown["records"][0]["attempts"]) == ("it is broken", 4)
    assert stack.run("show", "0" * 32)[0] == 1


# Another chance


def test_a_job_gets_another_chance_in_its_own_queue_without_its_failures(stack):
    stack.fail("e" * 32)
    body = stack.fail("f" * 32, queue="big-ones")

    code, said = stack.run("requeue", "f" * 32)

    assert (code, stack.waiting("BigOnesJobs"), stack.waiting("DefaultJobs")) == (0, [body], [])
    assert stack.waiting("DeadLetter") == [message("e" * 32)]
    job = stack.job("f" * 32)
    assert (job["state"], job["failures"], job["attempts"]) == ("QUEUED", "0", "4")
    assert not {"error", "finished", "owner"} & job.keys()
    assert f"requeued: {'f' * 32}" in said


def test_all_get_another_chance_but_what_is_no_job(stack):
    bodies = [stack.fail(f"{number:032}") for number in range(23)]
    stack.bury("hello")

    code, said = stack.run("requeue", "--all")

    assert code == 1
    assert "23 requeued, 1 left" in said
    assert stack.waiting("DeadLetter") == ["hello"]
    waits = stack.sqs.get_queue_attributes(QueueUrl=stack.ids["DefaultJobs"], AttributeNames=["All"])["Attributes"]
    assert waits["ApproximateNumberOfMessages"] == str(len(bodies))


def test_a_copy_too_many_makes_no_second_message(stack):
    body = stack.fail("f" * 32)
    stack.bury(body, "again")

    assert stack.run("requeue", "--all")[0] == 0
    assert (stack.waiting("DefaultJobs"), stack.waiting("DeadLetter")) == ([body], [])


def test_asking_twice_is_asking_once(stack):
    body = stack.fail("f" * 32)

    first, second = stack.run("requeue", "f" * 32), stack.run("requeue", "f" * 32)

    assert (first[0], second[0], stack.waiting("DefaultJobs")) == (0, 0, [body])
    assert "its job is QUEUED" in second[1]


def test_a_job_that_nobody_knows_is_told(stack):
    code, said = stack.run("requeue", "0" * 32)

    assert (code, "not there" in said) == (1, True)


def test_a_failed_job_whose_message_is_gone_is_told(stack):
    stack.record("f" * 32)

    code, said = stack.run("requeue", "f" * 32)

    assert (code, "its job is FAILED" in said) == (1, True)


@pytest.mark.parametrize("operation", ["SendMessage", "DeleteMessage"])
def test_cut_short_nothing_is_lost_and_the_rest_is_done_the_next_time(stack, operation):
    body = stack.fail("f" * 32)
    account = Account()

    def cut(**_):
        raise EndpointConnectionError(endpoint_url="https://sqs")

    account.client("sqs").meta.events.register(f"before-call.sqs.{operation}", cut)
    with pytest.raises(EndpointConnectionError):
        DeadLetters(account, stack.name).requeue(None)

    assert stack.waiting("DeadLetter") == [body]
    # A worker drops the message of a job that has FAILED, so the record came first.
    assert stack.job("f" * 32)["state"] == "QUEUED"
    assert stack.run("requeue", "--all")[0] == 0
    assert set(stack.waiting("DefaultJobs")) == {body}
    assert stack.waiting("DeadLetter") == []


def test_what_fails_again_meanwhile_is_left(stack):
    """Else a job that fails at once would go round for ever."""
    body = stack.fail("f" * 32)
    account, sent = Account(), []

    def fails(**_):
        sent.append(1)
        stack.record("f" * 32)
        stack.bury(body, "again")

    account.client("sqs").meta.events.register("after-call.sqs.SendMessage", fails)
    done = DeadLetters(account, stack.name).requeue(None)

    assert (len(sent), len(done.done), len(done.left)) == (1, 1, 1)
    assert stack.waiting("DeadLetter") == [body]
    assert stack.job("f" * 32)["state"] == "FAILED"


def test_of_an_s3_event_what_failed_is_tried_again_and_what_succeeded_stays(stack):
    body, (first, second, _) = event("one.jpg", "two.jpg", "three.jpg")
    stack.bury(body, "two.jpg is broken")
    stack.record(first, state="SUCCEEDED", key="one.jpg")
    stack.record(second, key="two.jpg")

    assert stack.run("requeue", second)[0] == 0

    assert stack.waiting("DefaultJobs") == [body]
    assert (stack.job(first)["state"], stack.job(second)["state"]) == ("SUCCEEDED", "QUEUED")


def test_an_s3_event_without_records_goes_back_to_where_sqs_took_it_from(stack):
    """A worker that died a thousand times over it never wrote a record."""
    source, policy = stack.ids["BigOnesJobs"], {"maxReceiveCount": "1"}
    arn = stack.sqs.get_queue_attributes(QueueUrl=stack.dead, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": "1"})
    stack.sqs.set_queue_attributes(QueueUrl=source, Attributes={"RedrivePolicy": policy, "VisibilityTimeout": "0"})
    body, _ = event("one.jpg")
    stack.sqs.send_message(QueueUrl=source, MessageBody=body)
    for _ in range(2):
        stack.sqs.receive_message(QueueUrl=source)
    assert stack.waiting("DeadLetter") == [body]

    code, said = stack.run("requeue", "--all")

    assert (code, stack.waiting("DeadLetter")) == (0, []), said
    counts = stack.sqs.get_queue_attributes(QueueUrl=source, AttributeNames=["All"])["Attributes"]
    assert counts["ApproximateNumberOfMessages"] == "1"


def test_of_a_piece_that_failed_the_whole_job_is_tried_again(stack):
    """Its parts were split by an attempt that is over; the next one splits anew."""
    whole = Job.read(message("f" * 32))
    stack.record(whole.job_id, error="part 2 of 3: it is broken")
    pieces = parts.parts_of(whole, 1, "results", [1, 1, 1])
    for piece in pieces[1:]:
        stack.bury(parts.message(piece), "it is broken")

    listed = json.loads(stack.run("list", "--json")[1])["jobs"]
    code, said = stack.run("requeue", pieces[1].job_id, pieces[2].job_id)

    assert {one["name"] for one in listed} == {whole.job_id}
    assert (code, stack.waiting("DeadLetter")) == (0, []), said
    assert [parts.read(body) for body in stack.waiting("DefaultJobs")] == [whole]
    assert stack.job(whole.job_id)["state"] == "QUEUED"


def test_where_the_queue_cannot_be_told_nothing_is_touched(stack):
    body, _ = event("one.jpg")
    stack.bury(body, "an event that cannot be read")

    code, said = stack.run("requeue", "--all")

    assert (code, stack.waiting("DeadLetter")) == (1, [body])
    assert "from which queue" in said


def test_a_message_whose_job_is_done_is_only_taken_away(stack):
    stack.fail("f" * 32, state="SUCCEEDED")

    assert stack.run("requeue", "--all")[0] == 0
    assert (stack.waiting("DefaultJobs"), stack.waiting("DeadLetter")) == ([], [])


# Throwing away


def test_nothing_is_purged_that_nobody_confirms(stack):
    body = stack.fail("f" * 32)

    code, said = stack.run("purge", "--all")

    assert (code, stack.waiting("DeadLetter")) == (2, [body])
    assert "--yes" in said


def test_what_is_named_is_purged_and_the_record_stays(stack):
    kept = stack.fail("e" * 32)
    stack.fail("f" * 32)

    first, again = (stack.run("purge", "f" * 32, "--yes") for _ in range(2))

    assert (first[0], again[0], stack.waiting("DeadLetter")) == (0, 0, [kept])
    assert stack.job("f" * 32)["state"] == "FAILED"
    assert json.loads(stack.run("purge", "--all", "--yes", "--json")[1])["purged"] == ["e" * 32]


@pytest.mark.parametrize("arguments", [(), ("f" * 32, "--all")])
@pytest.mark.parametrize("verb", ["requeue", "purge"])
def test_jobs_are_named_or_all_are_meant(stack, verb, arguments):
    code, said = stack.run(verb, *arguments)

    assert (code, said) == (2, "name jobs, or say --all\n")


def test_a_stack_that_is_not_there_is_the_operators_mistake(stack):
    stack.name = "none"

    assert stack.run("list") == (2, "there is no stack none in us-east-1\n")
