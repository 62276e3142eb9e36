"""What becomes of a job, decided without a cloud: outcomes, leases, the last minutes, where results go."""

import json
from dataclasses import asdict, replace
from datetime import timedelta

import boto3
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from lambdas_make import EVENTS, sample
from moto import mock_aws
from worker_make import NOON, ecs

from gpu_worker.handover import LAST_CALL, READY, Doom, Pace, give_back_at
from gpu_worker.host import Host, Protection, task_arn
from gpu_worker.job import LONGEST_KEY, LONGEST_NAME, Job, NotAJob, result_key
from gpu_worker.lease import Bury, Drop, Hide, Lease, when_refused
from gpu_worker.outcome import LONGEST_BACKOFF, Finish, Outcome, Reject, Release, Retry, settle
from gpu_worker.settings import BadSettings, Settings
from gpu_worker.upload import record_of, told_by_s3
from ingest.cloud import Aws as IngestAws
from ingest.routing import uploads

seconds = st.integers(0, 200).map(lambda count: timedelta(seconds=count))


def job(**parts):
    return Job(**{"job_id": "0" * 32, "bucket": "b", "key": "k", "version": "", "etag": "e", "size": 100, **parts})


@pytest.mark.parametrize(
    "case, code, failures, expected",
    [
        ("done", 0, 2, Finish()),
        ("rejected: no second try", 3, 0, Reject("why")),
        ("not now: no penalty", 4, 2, Release(timedelta(seconds=5))),
        ("first failure", 1, 0, Retry(timedelta(seconds=2), "why")),
        ("second failure waits longer", 1, 1, Retry(timedelta(seconds=4), "why")),
        ("the last failure", 1, 2, Reject("failure 3 of 3: why")),
        ("killed by a signal", -9, 0, Retry(timedelta(seconds=2), "why")),
        ("a code nobody agreed on", 77, 0, Retry(timedelta(seconds=2), "why")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_exit_code_decides(case, code, failures, expected):
    assert settle(Outcome(code, "why"), failures, 3) == expected


@given(failures=st.integers(0, 10_000))
def test_the_back_off_grows_to_its_cap(failures):
    this, following = (settle(Outcome(1), count, 20_000).delay for count in (failures, failures + 1))

    assert timedelta(0) < this <= following <= LONGEST_BACKOFF


@given(error=st.text(max_size=3000), code=st.sampled_from([1, 3]))
def test_a_reason_is_something_that_sqs_takes_and_a_person_can_read(error, code):
    reason = settle(Outcome(code, error), 0, 3).reason

    assert reason.isprintable() and 0 < len(reason) <= 500


@pytest.mark.parametrize(
    "returncode, code, said",
    [
        (-11, -11, "signal 11 (Segmentation fault)"),
        (-40, -40, "signal 40"),
        (0, 1, "no answer"),
        (5, 5, "exited with 5"),
    ],
)
def test_a_process_without_an_answer_never_counts_as_done(returncode, code, said):
    outcome = Outcome.of_death(returncode)

    assert outcome.code == code and said in outcome.error


@pytest.mark.parametrize(
    "case, record, expected",
    [
        ("no record", None, Bury("the job has no record")),
        ("succeeded", {"state": "SUCCEEDED"}, Drop(succeeded=True)),
        ("failed", {"state": "FAILED"}, Drop(succeeded=False)),
        ("at work elsewhere", {"lease_until": NOON.timestamp() + 9.0}, Hide(timedelta(seconds=10))),
        ("its lease ended just now", {"lease_until": NOON.timestamp() - 5.0}, Hide(timedelta(seconds=1))),
        (
            "at work for long: looked at again soon",
            {"lease_until": NOON.timestamp() + 9e5},
            Hide(timedelta(seconds=15)),
        ),
        ("released just now", {"state": "QUEUED"}, Hide(timedelta(seconds=1))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_message_is_thrown_away_only_when_its_job_is_over(case, record, expected):
    assert when_refused(record and {"state": "RUNNING", **record}, NOON) == expected


def test_a_lease_is_renewed_in_time_for_two_more_tries():
    length = timedelta(seconds=90)
    lease = Lease.taken(job(), "me", 1, 0, NOON, length)

    assert (lease.renew_at, lease.until) == (NOON + length / 3, NOON + length)
    later = lease.renewed(lease.renew_at, length)
    assert later == replace(lease, until=NOON + length * 4 / 3, renew_at=NOON + length * 2 / 3)


@pytest.mark.parametrize(
    "case, started, eta, left, kept",
    [
        ("it fits", -5, 30, 120, True),
        ("it ends at T-20 s sharp", 0, 100, 120, True),
        ("it ends a second too late", 0, 101, 120, False),
        ("nothing is known, time enough", -5, None, 40, True),
        ("nothing is known, time short", -5, None, 39, False),
        ("overdue is as good as unknown", -60, 30, 120, True),
        ("overdue, time short", -60, 30, 39, False),
        ("no time at all", -5, 6, 15, False),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_fits_is_finished_and_the_rest_given_back(case, started, eta, left, kept):
    doom = Doom(NOON, NOON + timedelta(seconds=left))
    eta = None if eta is None else timedelta(seconds=eta)

    at = give_back_at(doom, NOON + timedelta(seconds=started), eta)

    assert at == (doom.deadline - LAST_CALL if kept else NOON)


@given(ran=seconds, left=seconds, eta=st.none() | seconds)
def test_nothing_is_held_past_the_last_call_and_nothing_predicted_to_miss_is_begun_upon(ran, left, eta):
    doom = Doom(NOON, NOON + left)
    at = give_back_at(doom, NOON - ran, eta)

    assert at == NOON or at == doom.deadline - LAST_CALL > NOON
    if eta is not None and NOON - ran + eta > doom.deadline - READY:
        assert at == NOON


@given(ran=seconds, left=seconds, more=seconds, eta=st.none() | seconds)
def test_more_notice_never_means_less_time(ran, left, more, eta):
    short, long = (give_back_at(Doom(NOON, NOON + each), NOON - ran, eta) for each in (left, left + more))

    assert short <= long


@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 900)), max_size=80), st.integers(0, 10**9))
def test_a_larger_job_is_never_expected_sooner(done, size):
    pace = Pace()
    for each, spent in done:
        pace = pace.after(each, timedelta(seconds=spent))
    assume(done)

    assert pace.eta(size) <= pace.eta(2 * size)


def test_the_first_job_has_no_eta_and_the_next_ones_follow_the_pace():
    assert Pace().eta(100) is None
    pace = Pace().after(100, timedelta(seconds=10)).after(300, timedelta(seconds=30)).after(200, timedelta(seconds=20))
    assert pace.eta(10) == timedelta(seconds=20)  # the median: small jobs have their overhead too
    assert pace.eta(1000) == timedelta(seconds=100)


@given(key=st.text("/.%2Eaé🌊 \n", min_size=1, max_size=1024) | st.text(min_size=1), name=st.text("/.a", min_size=1))
def test_every_key_leads_to_its_own_folder(key, name):
    assume(
        len(key.encode(errors="surrogatepass")) <= LONGEST_KEY and len(name) <= LONGEST_NAME // 6 and key.isprintable()
    )
    made = result_key(job(key=key), name)

    assert len(made.encode()) <= LONGEST_KEY
    assert not {"", ".", ".."} & set(made.split("/"))
    assert f"/{'0' * 32}/" in made
    assert made == result_key(job(key=key), name)


@pytest.mark.parametrize("key", [".." + "x" * 900, "a/" * 511 + "..", "x" * 857 + "/../" + "y" * 100])
def test_a_key_cut_short_leads_nowhere_else(key):
    made = result_key(job(key=key), "n" * LONGEST_NAME)

    assert len(made.encode()) <= LONGEST_KEY
    assert not {"", ".", ".."} & set(made.split("/"))


def test_a_plain_key_is_left_alone():
    assert result_key(job(key="a b+c/ü.jpg"), "thumb.jpg") == f"a b+c/ü.jpg/{'0' * 32}/thumb.jpg"


@given(
    st.text()
    | st.recursive(st.none() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)).map(
        json.dumps
    )
)
def test_a_message_is_a_job_or_is_said_to_be_none(body):
    with pytest.raises(NotAJob):
        Job.read(body)


UPLOAD_EVENTS = sorted(path.stem for path in EVENTS.glob("s3-*.json"))


@pytest.mark.parametrize("name", UPLOAD_EVENTS)
def test_an_s3_event_is_the_same_jobs_for_the_worker_as_for_the_ingest_lambda(name):
    mine, theirs = told_by_s3(sample(name)), uploads(sample(name))

    assert [asdict(job) for job in mine] == [asdict(upload) | {"job_id": upload.job_id} for upload in theirs]


@pytest.mark.parametrize("name", UPLOAD_EVENTS)
def test_a_job_has_the_same_record_whoever_writes_it(name):
    with mock_aws():
        keys = {"region_name": "eu-west-1", "aws_access_key_id": "x", "aws_secret_access_key": "x"}
        table = boto3.resource("dynamodb", **keys).create_table(
            TableName="jobs",
            KeySchema=[{"AttributeName": "job_id", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "job_id", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )
        ingest = IngestAws(boto3.Session(**keys), table="jobs", notices_url="")
        for upload in uploads(sample(name)):
            ingest.record(upload, "default", NOON)
        theirs = {item["job_id"]: item for item in table.scan()["Items"]}

    assert {job.job_id: record_of(job, "default", NOON) for job in told_by_s3(sample(name))} == theirs


@pytest.mark.parametrize("body", ["", "hello", "[]", "null", "{}", '{"Records": 1}', sample("wake")])
def test_what_is_no_s3_event_is_left_to_others(body):
    assert told_by_s3(body) is None


@pytest.mark.parametrize(
    "body", ['{"Records": [{}]}', '{"Records": [1]}', sample("s3-object-created").replace("lighthouse", "%FF")]
)
def test_an_s3_event_that_cannot_be_read_is_no_job(body):
    with pytest.raises(NotAJob, match="an S3 event that cannot be read"):
        told_by_s3(body)


def test_the_nearest_end_counts(tmp_path):
    host = Host(tmp_path, stop_timeout=timedelta(seconds=110))
    assert host.doom(NOON) is None

    deadline = NOON + timedelta(seconds=120)
    (tmp_path / "notice.json").write_text(json.dumps({"deadline": deadline.isoformat().replace("+00:00", "Z")}))
    assert host.doom(NOON) == Doom(NOON, deadline)
    host.stop(NOON + timedelta(seconds=5))
    host.stop(NOON + timedelta(seconds=50))
    assert host.doom(NOON) == Doom(NOON + timedelta(seconds=5), NOON + timedelta(seconds=115))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"deadline": null}', '{"deadline": "soon"}', '{"deadline": 5}'])
def test_a_notice_that_cannot_be_read_is_a_notice(tmp_path, text):
    (tmp_path / "notice.json").write_text(text)

    assert Host(tmp_path, timedelta(0)).doom(NOON) == Doom(NOON, NOON + timedelta(minutes=2))


def test_the_instance_s_facts_may_come_late(tmp_path):
    host = Host(tmp_path, timedelta(0))
    assert host.facts() == {}
    (tmp_path / "instance.json").write_text('{"instanceId": "i-1", "lifecycle": "spot", "cluster": "c"}')
    assert host.facts() == {"instance_id": "i-1", "lifecycle": "spot"}


def test_protection_is_asked_for_once_renewed_at_half_time_and_dropped_once():
    with ecs() as agent:
        protection = Protection(agent.url)
        for minutes in (0, 1, 29, 31):
            protection.hold(NOON + timedelta(minutes=minutes))
        protection.drop()
        protection.drop()

    assert [body["ProtectionEnabled"] for _, body in agent.asked] == [True, True, False]


def test_without_ecs_the_worker_does_without(capsys):
    protection = Protection("http://127.0.0.1:9")
    protection.hold(NOON)
    protection.hold(NOON + timedelta(seconds=59))
    protection.drop()
    assert capsys.readouterr().out.count("task protection failed") == 1
    assert task_arn(None) != task_arn("http://127.0.0.1:9")


def test_settings_are_refused_with_every_problem_at_once():
    with pytest.raises(BadSettings) as refused:
        Settings.read(
            {
                "SPINDRIFT_MAX_FAILURES": "many",
                "SPINDRIFT_PROCESSOR": "rm -rf",
                "SPINDRIFT_DELETE_UPLOADS": "no",
                "AWS_REGION": "eu-west-1",
            }
        )

    assert str(refused.value).split("; ") == [
        "SPINDRIFT_PROCESSOR: module:function, got 'rm -rf'",
        "SPINDRIFT_QUEUE is missing",
        "SPINDRIFT_QUEUE_URL is missing",
        "SPINDRIFT_DEAD_LETTER_QUEUE_URL is missing",
        "SPINDRIFT_JOBS_TABLE is missing",
        "SPINDRIFT_RESULTS_BUCKET is missing",
        "SPINDRIFT_MAX_FAILURES: a whole number from 1 to 100, got 'many'",
        "SPINDRIFT_DELETE_UPLOADS: 1 or not at all, got 'no'",
    ]
