"""What becomes of a job, decided without a cloud: outcomes, leases, the last minutes, where results go."""

import json
import re
from dataclasses import asdict
from datetime import timedelta

import boto3
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from hypothesis import assume, given
from hypothesis import strategies as st
from lambdas_make import EVENTS, sample
from moto import mock_aws
from worker_make import NOON, ecs

from gpu_worker.cloud import GONE, LostLease, Refused, Trouble, asking
from gpu_worker.handover import LAST_CALL, READY, Doom, Pace, give_back_at
from gpu_worker.host import Host, Protection, task_arn
from gpu_worker.intake import AHEAD, free_in, to_take
from gpu_worker.job import LONGEST_KEY, LONGEST_NAME, Job, NotAJob, result_key
from gpu_worker.lease import (
    Bury,
    Drop,
    Hide,
    Inquest,
    Lapsed,
    Suspect,
    crash_of,
    inquest,
    renew_at,
    when_refused,
)
from gpu_worker.outcome import (
    DONE,
    LONGEST_BACKOFF,
    NOT_NOW,
    REJECTED,
    Finish,
    Outcome,
    Reject,
    Rejected,
    Release,
    Retry,
    settle,
)
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


def test_the_codes_that_have_a_name_mean_what_it_says():
    settled = [settle(Outcome(code), 0, 3) for code in (DONE, REJECTED, NOT_NOW)]

    assert settled == [Finish(), Reject("no reason given"), Release(timedelta(seconds=5))]
    assert Release() == Release(timedelta(0))


def test_the_back_off_doubles_up_to_a_quarter_of_an_hour():
    waits = [settle(Outcome(1), failures, 20).delay.total_seconds() for failures in range(11)]

    assert waits == [2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900]


@pytest.mark.parametrize(
    "error, reason",
    [("", "no reason given"), ("a\nb\0", "a b "), ("é" * 501, "é" * 500)],
)
def test_a_reason_is_cut_and_cleaned_and_never_empty(error, reason):
    assert settle(Outcome(3, error), 0, 3) == Reject(reason)


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
        ("it goes on in its parts", {"state": "SPLIT"}, Drop(succeeded=False)),
        (
            "failed, and its worker died before it was buried",
            {"state": "FAILED", "job_id": "a", "unburied": "a", "error": "why"},
            Bury("why"),
        ),
        (
            "failed with one of its pieces, which is still to be buried",
            {"state": "FAILED", "job_id": "a", "unburied": "a-1-00000", "error": "why"},
            Drop(succeeded=False),
        ),
        ("at work elsewhere", {"lease_until": NOON.timestamp() + 9.0}, Hide(timedelta(seconds=10))),
        ("its lease ends now", {"lease_until": NOON.timestamp()}, Hide(timedelta(seconds=1))),
        (
            "its worker is dead",
            {"lease_until": NOON.timestamp() - 1, "owner": "a", "attempts": 4.0, "crashes": 1.0},
            Lapsed("a", attempt=4, crashes=1, lapses=0),
        ),
        (
            "its worker is dead, as three before it",
            {"lease_until": NOON.timestamp() - 1, "owner": "a", "attempts": 4.0, "lapses": 3.0},
            Lapsed("a", attempt=4, crashes=0, lapses=3),
        ),
        ("it waits, and crashed a worker", {"state": "QUEUED", "crashes": 1.0}, Suspect()),
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

    assert renew_at(NOON, length) == NOON + length / 3


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
        ("due at this very second", -30, 30, 39, True),
        ("no time at all", -5, 6, 15, False),
        ("not begun: none is begun any more", None, 1, 3600, False),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_fits_is_finished_and_the_rest_given_back(case, started, eta, left, kept):
    doom = Doom(NOON, NOON + timedelta(seconds=left))
    eta = None if eta is None else timedelta(seconds=eta)

    at = give_back_at(doom, None if started is None else NOON + timedelta(seconds=started), eta)

    assert at == (doom.deadline - timedelta(seconds=10) if kept else NOON)


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


def test_the_pace_is_that_of_the_latest_fifty_jobs():
    pace = Pace()
    for number in range(60):
        pace = pace.after(number, timedelta(seconds=1))

    assert [size for size, _ in pace.done] == list(range(10, 60))


def test_empty_files_tell_nothing_of_larger_ones_but_their_time():
    assert Pace().after(0, timedelta(seconds=0.5)).eta(10**9) == timedelta(seconds=0.5)


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


@pytest.mark.parametrize("key", [".." + "x" * 900, "a/" * 511 + "..", "x" * 857 + "/../" + "y" * 100, "x" + "é" * 511])
def test_a_key_cut_short_leads_nowhere_else(key):
    made = result_key(job(key=key), "n" * LONGEST_NAME)

    assert len(made.encode()) <= LONGEST_KEY
    assert not {"", ".", ".."} & set(made.split("/"))


def test_a_plain_key_is_left_alone():
    assert result_key(job(key="a b+c/ü.jpg"), "thumb.jpg") == f"a b+c/ü.jpg/{'0' * 32}/thumb.jpg"


@pytest.mark.parametrize(
    "key, place",
    [
        ("../a//b", "%2E%2E/a/%2F/b"),
        ("./a/", "%2E/a/%2F"),
        (".../.a", ".../.a"),
        (".parts/x", "%2Eparts/x"),
        (".checkpoints/x", "%2Echeckpoints/x"),
        (".failures/x", "%2Efailures/x"),
        (".manifests/x", "%2Emanifests/x"),
        (".partsy", ".partsy"),
        ("a/.parts/x", "a/.parts/x"),
    ],
)
def test_a_key_that_would_lead_elsewhere_is_written_otherwise(key, place):
    assert result_key(job(key=key), "n") == f"{place}/{'0' * 32}/n"


@given(
    st.text()
    | st.recursive(st.none() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)).map(
        json.dumps
    )
)
def test_a_message_is_a_job_or_is_said_to_be_none(body):
    with pytest.raises(NotAJob):
        Job.read(body)


TOLD = {"job_id": "j", "bucket": "b", "key": "k", "version": "", "etag": "e", "size": 1}


@pytest.mark.parametrize(
    "told, reason",
    [
        (TOLD, "is no spindrift.job/1"),
        ({"schema": "spindrift.job/1", **TOLD, "size": "large"}, "is no spindrift.job/1"),
        ({"schema": "spindrift.job/1", **TOLD, "size": float("inf")}, "is no spindrift.job/1"),
        ({"schema": "spindrift.job/2", **TOLD}, "is of another schema than spindrift.job/1"),
    ],
)
def test_a_message_that_is_no_job_is_refused_with_the_reason(told, reason):
    with pytest.raises(NotAJob, match=f"^the message {reason}$"):
        Job.read(json.dumps(told))


# What AWS answers.


@pytest.mark.parametrize(
    "code, status, meant",
    [
        ("SlowDown", 503, Trouble),
        ("InternalError", 500, Trouble),
        ("ConditionalRequestConflict", 409, Trouble),
        ("ProvisionedThroughputExceededException", 400, Trouble),
        ("ExpiredToken", 400, Trouble),
        ("RequestTimeTooSkewed", 403, Trouble),
        ("InvalidSignatureException", 400, Trouble),
        ("SignatureDoesNotMatch", 403, Trouble),
        ("TransactionCanceledException", 400, Trouble),
        ("AccessDenied", 403, Refused),
        ("NoSuchBucket", 404, Refused),
        ("NoSuchKey", 404, Rejected),
        ("PreconditionFailed", 412, Rejected),
        ("ConditionalCheckFailedException", 400, LostLease),
    ],
)
def test_only_what_may_pass_is_trouble_and_only_the_upload_s_own_fault_rejects_it(code, status, meant):
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}

    with pytest.raises(meant), asking("download", GONE):
        raise ClientError(answer, "GetObject")


def test_a_cloud_that_cannot_be_reached_is_trouble():
    with pytest.raises(Trouble), asking("download", GONE):
        raise EndpointConnectionError(endpoint_url="https://s3")


# What workers die of.


def task(**parts):
    return {"stopCode": "EssentialContainerExited", "containers": [{"exitCode": 139}], **parts}


@pytest.mark.parametrize(
    "case, told, expected",
    [
        ("a segmentation fault", task(), "exit code 139"),
        ("an error of its own", task(containers=[{"exitCode": 1}]), "exit code 1"),
        (
            "no memory",
            task(containers=[{"exitCode": 137, "reason": "OutOfMemoryError: Container killed due to memory usage"}]),
            "OutOfMemoryError: Container killed due to memory usage",
        ),
        ("killed, nobody knows by whom", task(containers=[{"exitCode": 137}]), None),
        ("it was told to go", task(containers=[{"exitCode": 0}]), None),
        ("it was told to go, and died of it", task(containers=[{"exitCode": 143}]), None),
        ("its GPU is broken", task(containers=[{"exitCode": 64}]), None),
        ("its settings are no good", task(containers=[{"exitCode": 2}]), None),
        ("the host is gone, and the container with it", task(containers=[{"name": "worker"}]), None),
        ("nothing is said of its containers", {"stopCode": "EssentialContainerExited"}, None),
        ("Spot", task(stopCode="SpotInterruption"), None),
        ("the instance was terminated", task(stopCode="TerminationNotice"), None),
        ("its service shrinks", task(stopCode="ServiceSchedulerInitiated"), None),
        ("somebody stopped it", task(stopCode="UserInitiated"), None),
        ("it runs", {"lastStatus": "RUNNING"}, None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_only_its_own_death_is_a_crash(case, told, expected):
    assert crash_of(told) == expected


@pytest.mark.parametrize(
    "case, crashes, lapses, crash, expected",
    [
        ("an instance was lost", 0, 0, None, Inquest(("lapses",))),
        ("an instance was lost with a suspect", 2, 5, None, Inquest(("lapses",))),
        ("a crash makes suspects", 0, 3, "exit code 139", Inquest(("lapses", "crashes"))),
        (
            "a crash with nothing else at work is a failure",
            1,
            3,
            "exit code 139",
            Inquest(("lapses", "crashes"), Outcome(1, "its worker crashed: exit code 139")),
        ),
        (
            "too many workers are lost with it",
            0,
            19,
            None,
            Inquest(("lapses",), Outcome(3, "20 workers were lost with it")),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_job_is_blamed_for_what_it_did_and_for_nothing_else(case, crashes, lapses, crash, expected):
    assert inquest(Lapsed("a", 1, crashes, lapses), crash) == expected


# How many jobs are taken.

lane = st.none() | seconds
pace = st.none() | st.integers(1, 200_000).map(lambda count: timedelta(milliseconds=count))
few = st.integers(0, 40)


@pytest.mark.parametrize(
    "case, lanes, eta, waiting, storing, expected",
    [
        ("nothing is known: one", [0], None, 0, 0, 1),
        ("nothing is known, one waits", [0], None, 1, 0, 0),
        ("nothing is known, the lane is busy", [None], None, 0, 0, 0),
        ("two lanes, one each", [0, 0], None, 0, 0, 2),
        ("long jobs: the one that begins now", [0], 60, 0, 0, 1),
        ("long jobs: the next one is far", [55], 60, 0, 0, 0),
        ("long jobs: the next one is near", [4], 60, 0, 0, 1),
        ("long jobs: the next one is just near enough", [5], 60, 0, 0, 1),
        ("jobs of two seconds", [0], 2, 0, 0, 3),
        ("jobs of two seconds, the lane is busy for four", [4], 2, 0, 0, 1),
        ("short jobs: a batch", [0], 0.1, 0, 0, 10),
        ("short jobs: a batch is here, another may come", [0], 0.1, 10, 0, 10),
        ("short jobs: not one by one", [0], 0.1, 11, 0, 0),
        ("nobody can tell when the lane is free", [None], 0.1, 0, 0, 0),
        ("storing is slower than working", [0], 0.1, 0, 20, 0),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_as_many_jobs_are_taken_as_begin_soon(case, lanes, eta, waiting, storing, expected):
    frees = [None if each is None else timedelta(seconds=each) for each in lanes]
    eta = None if eta is None else timedelta(seconds=eta)

    assert to_take(frees, eta, waiting, storing) == expected


@pytest.mark.parametrize(
    ("batch", "waiting", "storing", "expected"),
    [(1, 20, 0, 0), (10, 20, 0, 0), (32, 20, 0, 10), (32, 60, 0, 0), (32, 10, 32, 10), (32, 31, 32, 0)],
)
def test_there_is_enough_for_two_batches_and_less_while_one_is_stored(batch, waiting, storing, expected):
    eta = timedelta(milliseconds=10)

    assert to_take([timedelta(0)], eta, waiting, storing, batch) == expected


@given(lanes=st.lists(lane, min_size=1, max_size=4), eta=pace, waiting=few, storing=few)
def test_never_more_is_taken_than_sqs_gives_or_lanes_begin(lanes, eta, waiting, storing):
    taken = to_take(lanes, eta, waiting, storing)

    assert 0 <= taken <= 10
    if taken:
        soon = [each for each in lanes if each is not None and each <= AHEAD]
        most = len(soon) if eta is None else sum(1 + (AHEAD - each) / eta for each in soon)
        assert waiting + taken <= most


@given(eta=pace, storing=st.integers(0, 9))
def test_an_idle_worker_always_asks(eta, storing):
    assert to_take([timedelta(0)], eta, 0, storing) > 0


@pytest.mark.parametrize(
    "case, ran, eta, expected",
    [
        ("half done", 30, 60, 30),
        ("a little late", 62, 60, 0),
        ("as late as one may be", 65, 60, 0),
        ("far overdue: who knows", 66, 60, None),
        ("no pace: who knows", 1, None, None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_when_a_lane_is_free(case, ran, eta, expected):
    ran, eta, expected = (None if each is None else timedelta(seconds=each) for each in (ran, eta, expected))

    assert free_in(ran, eta) == expected


UPLOAD_EVENTS = sorted(path.stem for path in EVENTS.glob("s3-*.json"))


@pytest.mark.parametrize("name", UPLOAD_EVENTS)
def test_an_s3_event_is_the_same_jobs_for_the_worker_as_for_the_ingest_lambda(name):
    mine, theirs = told_by_s3(sample(name)), uploads(sample(name))

    assert [asdict(job) for job in mine] == [asdict(upload) | {"job_id": upload.job_id} for upload in theirs]


@pytest.mark.parametrize(
    "stored, told",
    [
        ({"key": "a+b"}, ("a b", "", 0)),
        ({"key": "empty.txt", "size": 0, "eTag": "e"}, ("empty.txt", "e", 0)),
        ({"key": "odd/", "size": 9, "eTag": "e"}, ("odd/", "e", 9)),
        ({"key": "folder/", "size": 0, "eTag": "e"}, None),
    ],
    ids=["no more than its key", "an empty file", "a file named like a folder", "a folder"],
)
def test_an_upload_is_a_job_however_little_it_holds_and_a_folder_is_none(stored, told):
    event = {"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": "b"}, "object": stored}}

    for read in (told_by_s3, uploads):
        jobs = read(json.dumps({"Records": [event]}))
        assert [(each.key, each.etag, each.size) for each in jobs] == ([told] if told else [])


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


DEEP = pytest.param("[" * 100_000, id="a hundred thousand brackets")


@pytest.mark.parametrize("body", ["", "hello", "[]", "null", "{}", DEEP, '{"Records": 1}', sample("wake")])
def test_what_is_no_s3_event_is_left_to_others(body):
    assert told_by_s3(body) is None


@pytest.mark.parametrize(
    "body",
    [
        '{"Records": [{}]}',
        '{"Records": [1]}',
        sample("s3-object-created").replace("lighthouse", "%FF"),
        re.sub(r'"size": *[0-9]+', '"size": 1e999', sample("s3-object-created")),
    ],
)
def test_an_s3_event_that_cannot_be_read_is_no_job(body):
    with pytest.raises(NotAJob, match=r"^the message is an S3 event that cannot be read$"):
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


def test_jobs_that_sqs_could_not_keep_are_refused_at_birth():
    with pytest.raises(
        BadSettings, match=r"JOB_SECONDS: .*SQS lets nobody hold a message for more than 12 hours.*43201"
    ):
        Settings.read({"SPINDRIFT_JOB_SECONDS": "43201"})


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
