"""The demo's own judgement: it must be able to say no."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import boto3
import pytest
from moto import mock_aws

from localcloud.bill import bill
from localcloud.demo import BLOWS, reaction_seconds, spread
from localcloud.proof import prove
from localcloud.uploads import AWKWARD_KEYS, PHOTOS, Upload, uploads

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
PICTURE = (PHOTOS / "flower.jpg").read_bytes()
OUTPUTS = {"JobsTable": "jobs", "ResultsBucket": "results"}


@pytest.fixture
def account(monkeypatch):
    """`client(service)`, with an empty jobs table and results bucket."""
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    with mock_aws():
        s3 = boto3.client("s3")
        s3.create_bucket(Bucket="results")
        s3.put_bucket_versioning(Bucket="results", VersioningConfiguration={"Status": "Enabled"})
        boto3.client("dynamodb").create_table(
            TableName="jobs",
            AttributeDefinitions=[{"AttributeName": "job_id", "AttributeType": "S"}],
            KeySchema=[{"AttributeName": "job_id", "KeyType": "HASH"}],
            BillingMode="PAY_PER_REQUEST",
        )
        yield boto3.client


def write(account, key, *, job="1", body=PICTURE, result="r.webp", **record):
    """A job's record and its result, as a worker leaves them."""
    named = [f"{key}/{job}/{result}"]
    if body is not None:
        account("s3").put_object(Bucket="results", Key=named[0], Body=body)
    whole = {"job_id": job, "key": key, "state": "SUCCEEDED", "outputs": named, **record}
    boto3.resource("dynamodb").Table("jobs").put_item(Item=whole)


GOOD = Upload("a.jpg", PICTURE)
BAD = Upload("bad.jpg", b"x", hostile=True)


def test_a_photograph_with_its_results_is_neither_lost_nor_double(account):
    write(account, "a.jpg", releases=2)

    proof = prove([GOOD], OUTPUTS, account)

    assert (proof.succeeded, proof.failed, proof.lost, proof.double, proof.released) == (1, 0, (), (), 2)


@pytest.mark.parametrize(
    "case, left",
    [
        ("no job", None),
        ("not finished", {"state": "RUNNING"}),
        ("failed, though it is a good picture", {"state": "FAILED", "error": "?"}),
        ("a result that is not there", {"body": None}),
        ("a result that does not decode", {"body": b"not a picture"}),
        ("half a result", {"body": PICTURE[:2000]}),
        ("no result at all", {"outputs": [], "body": None}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_photograph_without_a_sound_result_is_lost(account, case, left):
    if left is not None:
        write(account, "a.jpg", **left)

    assert len(prove([GOOD], OUTPUTS, account).lost) == 1


@pytest.mark.parametrize(
    "record, lost",
    [
        ({"state": "FAILED", "error": "cannot be decoded"}, 0),
        ({"state": "FAILED"}, 1),
        ({"state": "SUCCEEDED"}, 1),
        ({"state": "QUEUED"}, 1),
    ],
    ids=str,
)
def test_a_hostile_file_must_fail_with_a_reason(account, record, lost):
    write(account, "bad.jpg", body=None, **record)

    assert len(prove([BAD], OUTPUTS, account).lost) == lost


def test_a_result_written_twice_is_double(account):
    write(account, "a.jpg")
    write(account, "a.jpg")

    assert prove([GOOD], OUTPUTS, account).double == ("a.jpg/1/r.webp: 2 versions",)


def test_an_upload_with_two_jobs_is_double(account):
    write(account, "a.jpg", job="1")
    write(account, "a.jpg", job="2")

    assert prove([GOOD], OUTPUTS, account).double == ("a.jpg: 2 jobs",)


def test_a_result_that_no_job_owns_is_double(account):
    write(account, "a.jpg")
    account("s3").put_object(Bucket="results", Key="a.jpg/0/r.webp", Body=PICTURE)

    assert prove([GOOD], OUTPUTS, account).double == ("a.jpg/0/r.webp: no job names it",)


def said(what, subject, seconds, **detail):
    return {"what": what, "subject": subject, "at": (NOON + timedelta(seconds=seconds)).isoformat(), **detail}


def test_the_bill_is_by_the_second_at_least_a_minute_and_in_the_clouds_own_time():
    price = {"price": 0.36, "on_demand_price": 3.6}
    diary = [
        said("instance launched", "long", 0, **price),
        said("instance launched", "short", 0, **price),
        said("instance launched", "still there", 50, **price),
        said("instance terminated", "short", 5),
        said("instance terminated", "long", 100),
    ]

    whole = bill(diary, NOON + timedelta(seconds=100), speed=2)

    assert whole.spent == pytest.approx((200 + 60 + 100) * 0.0001)
    assert whole.on_demand_only == pytest.approx((200 + 60 + 100) * 0.001)


def test_a_reaction_is_counted_from_the_notice_for_instances_that_could_drain():
    diary = [
        said("instance joined", "i-1", 0),
        said("notice", "i-1", 10),
        said("notice", "i-booting", 10),
        said("draining", "i-1", 10.5),
        said("draining", "i-1", 20),
        said("instance joined", "i-booting", 30),
        said("draining", "i-booting", 31),
    ]

    assert reaction_seconds(diary) == [0.5]


def test_a_spread_of_one_and_of_none():
    assert spread([2.0]) == {"p50": 2.0, "p99": 2.0, "max": 2.0}
    assert spread([]) == {"p50": None, "p99": None, "max": None}
    assert spread([float(n) for n in range(1, 101)]) == {"p50": 50.0, "p99": 99.0, "max": 100.0}


def test_the_demo_uploads_what_it_says():
    made = list(uploads(20, seed=1))

    assert len({upload.key for upload in made}) == 20
    assert {upload.key for upload in made} >= set(AWKWARD_KEYS)
    assert {Path(upload.key).stem for upload in made if upload.hostile} == {
        "truncated",
        "empty",
        "text",
        "noise",
        "bomb",
    }
    assert made == list(uploads(20, seed=1)) != list(uploads(20, seed=2))
    assert len(BLOWS) == 3
