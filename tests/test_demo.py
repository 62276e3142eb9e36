"""The demo's own judgement: it must be able to say no."""

import io
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import boto3
import pytest
from moto import mock_aws
from rich.console import Console

from localcloud import benchdemo
from localcloud.batchscene import BatchScene
from localcloud.benchdemo import judge
from localcloud.bill import bill
from localcloud.demo import BLOWS, reaction_seconds, spread
from localcloud.proof import prove, prove_batch
from localcloud.scene import picture
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


def told_of_batch(account, told, *stored):
    """The proof of one good and one hostile file, of which Batch told so and these results are stored."""
    for key, body in stored:
        account("s3").put_object(Bucket="results", Key=key, Body=body)
    return prove_batch([GOOD, BAD], OUTPUTS, account, told)


SOUND = [("a.jpg/1/r.webp", PICTURE), ("a.jpg/1/s.webp", PICTURE)]
REJECTED = {"bad.jpg": "cannot be decoded"}


def test_of_batch_a_sound_result_and_a_reason_are_right_and_what_is_between_is_left_out(account):
    proof = told_of_batch(account, REJECTED, *SOUND, (".failures/1/1", b"why"))

    assert (proof.succeeded, proof.failed, proof.lost, proof.double) == (1, 1, (), ())


@pytest.mark.parametrize(
    "case, told, stored, lost",
    [
        ("no result", REJECTED, [], "a.jpg"),
        ("half a result", REJECTED, [("a.jpg/1/r.webp", PICTURE[:2000])], "a.jpg"),
        ("a good file that failed", {**REJECTED, "a.jpg": "?"}, SOUND, "a.jpg"),
        ("a hostile file that did not fail", {}, SOUND, "bad.jpg"),
        ("a hostile file without a reason", {"bad.jpg": ""}, SOUND, "bad.jpg"),
        ("a hostile file with a result", REJECTED, [*SOUND, ("bad.jpg/1/r.webp", PICTURE)], "bad.jpg"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_of_batch_a_loss_is_seen(account, case, told, stored, lost):
    assert [one.partition(":")[0] for one in told_of_batch(account, told, *stored).lost] == [lost]


def test_of_batch_fewer_results_than_of_another_are_a_loss(account):
    for key, body in [*SOUND, ("b.jpg/2/r.webp", PICTURE)]:
        account("s3").put_object(Bucket="results", Key=key, Body=body)

    proof = prove_batch([GOOD, Upload("b.jpg", PICTURE)], OUTPUTS, account, {})

    assert proof.lost == ("b.jpg: without all its results",)


@pytest.mark.parametrize(
    "case, stored, double",
    [
        ("written twice", [SOUND[0], *SOUND], "a.jpg/1/r.webp: 2 versions"),
        ("two jobs", [SOUND[0], ("a.jpg/2/r.webp", PICTURE)], "a.jpg: 2 jobs"),
        ("nobody's", [*SOUND, ("c.jpg/1/r.webp", PICTURE)], "c.jpg/1/r.webp: nobody uploaded it"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_of_batch_what_is_double_is_seen(account, case, stored, double):
    assert told_of_batch(account, REJECTED, *stored).double == (double,)


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


AT_WORK = BatchScene(
    jobs={"RUNNABLE": 3, "STARTING": 1, "RUNNING": 2, "SUCCEEDED": 4, "FAILED": 1}, spot_running=2, on_demand_running=1
)


def test_the_picture_of_batch_tells_what_waits_works_and_is_done():
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(picture(AT_WORK, 11, 1, 9.0, [(7.0, "[red]EC2 takes back one instance[/]")]))
    drawn = " ".join(console.export_text().split())

    assert "5/11 objects done 3 waiting, 3 at work succeeded 4, failed 1" in drawn
    assert "Spot instances 2 On-Demand 1 notices 1" in drawn
    assert "7 s EC2 takes back one instance" in drawn
    assert AT_WORK.told(11, 1) == "objects 5/11  waiting 3  at work 3  spot 2  on-demand 1  notices 1"


@pytest.mark.parametrize(
    "change, at_zero",
    [({}, True), ({"jobs": {"RUNNABLE": 1}}, False), ({"spot_running": 1}, False), ({"on_demand_running": 1}, False)],
)
def test_batch_is_at_zero_when_nothing_waits_and_nothing_runs(change, at_zero):
    done = BatchScene(jobs={"SUCCEEDED": 2}, spot_running=0, on_demand_running=0)

    assert replace(done, **change).at_zero is at_zero


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


TRUE = {"fast": 400.0, "middling": 200.0, "slow": 100.0}


def measured(name, weight, *, jobs_per_hour=None, spot=0.1):
    """One type as `build.py bench --json` tells of it; measured exactly unless said otherwise."""
    found = jobs_per_hour or TRUE[name]
    told = {"type": name, "rate": {"jobs_per_hour": found}, "weight": weight, "spot": spot, "why": ""}
    return {**told, "spot_per_thousand": spot and spot / found * 1000}


UNMEASURED = {"rate": None, "weight": None, "spot_per_thousand": None, "why": "no subnet has one"}
RIGHT = {"fast": measured("fast", 4), "middling": measured("middling", 2), "slow": measured("slow", 1)}


def test_a_benchmark_that_is_right_is_told_so():
    judged, wrong = judge([*RIGHT.values()], TRUE)

    assert wrong == []
    assert [(one.type, one.rate_off, one.true_weight, one.weight_off) for one in judged] == [
        ("fast", 0, 4, 0),
        ("middling", 0, 2, 0),
        ("slow", 0, 1, 0),
    ]


def test_what_a_unit_is_worth_shares_the_error_between_the_weights():
    judged, wrong = judge([measured("fast", 82), measured("middling", 40), measured("slow", 20)], TRUE)

    assert [round(one.weight_off, 4) for one in judged] == [0.0123, -0.0123, -0.0123]
    assert wrong == []


@pytest.mark.parametrize(
    "case, change, said",
    [
        ("jobs an hour that are 4 % too many", {"slow": measured("slow", 1, jobs_per_hour=104)}, ["slow: 104 jobs"]),
        ("jobs an hour that are 4 % too few", {"fast": measured("fast", 4, jobs_per_hour=384)}, ["fast: 384 jobs"]),
        ("jobs an hour that are less than 3 % too many", {"slow": measured("slow", 1, jobs_per_hour=102.9)}, []),
        (
            "weights that are 4 % off",
            {"fast": measured("fast", 108), "middling": measured("middling", 50), "slow": measured("slow", 25)},
            ["fast: weight 108", "middling: weight 50", "slow: weight 25"],
        ),
        ("not measured", {"slow": {**RIGHT["slow"], **UNMEASURED}}, ["slow is not measured: no subnet has one"]),
        ("without a weight", {"slow": {**RIGHT["slow"], "weight": None}}, ["slow is not measured"]),
        ("without a price", {"slow": measured("slow", 1, spot=None)}, ["slow is not measured"]),
        (
            "a dear one that stands first",
            {"fast": measured("fast", 4, spot=0.45)},
            ["fast stands before middling", "fast stands before slow"],
        ),
        ("one that is dearer by less than may be wrong", {"fast": measured("fast", 4, spot=0.205)}, []),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_benchmark_that_is_wrong_is_told_so(case, change, said):
    wrong = judge([*{**RIGHT, **change}.values()], TRUE)[1]

    assert len(wrong) == len(said)
    assert all(line.startswith(start) for line, start in zip(wrong, said, strict=True))


def test_the_order_is_the_reports_own():
    assert judge([RIGHT["middling"], RIGHT["fast"], RIGHT["slow"]], TRUE)[1] == [
        "middling stands before fast, on which a job costs less"
    ]


def test_a_type_that_the_report_does_not_have_is_missed():
    said = "is not measured: it has no rate, no price or no weight"

    assert judge([RIGHT["fast"], RIGHT["middling"]], TRUE)[1] == [f"slow {said}"]
    assert judge([], TRUE) == ([], [f"{name} {said}" for name in TRUE])


@pytest.mark.parametrize(
    "case, left_out, status, ends, wrong",
    [
        ("right", (), 0, 0, []),
        ("a type is missing", ("slow",), 1, 1, ["slow is not measured: it has no rate, no price or no weight"]),
        ("the command failed all the same", (), 1, 1, ["build.py bench ended with status 1"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_demo_of_bench_says_no_and_what_is_wrong(
    tmp_path, monkeypatch, capsys, case, left_out, status, ends, wrong
):
    def measure(seed, home, console):
        home.mkdir(parents=True)
        return [one for name, one in RIGHT.items() if name not in left_out], status, 1.0

    monkeypatch.setattr(benchdemo, "TRUTH", TRUE)
    monkeypatch.setattr(benchdemo, "_measure", measure)

    assert benchdemo.main(["--out", str(tmp_path)]) == ends

    summary = json.loads((tmp_path / "demo-bench/summary.json").read_text())
    assert summary["wrong"] == wrong
    assert len(summary["types"]) == 3 - len(left_out)
    assert all(line in capsys.readouterr().out for line in wrong)
