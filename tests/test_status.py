"""`build.py status`: what an operator is told, and above all why nothing starts."""

import json
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from bench_make import Stage
from click.testing import CliRunner
from moto import mock_aws

import build
from capacity.nouns import Bad
from capacity.trial import doubts
from localcloud.image import REGISTRY
from localcloud.laptop import PROJECT
from ops.account import not_of_a_cluster
from ops.obstacles import CHAIN, Function, Look, Machine, Market, Pass, Queue, Retry, Stopped, obstacle
from ops.report import Capacity, Report, Spend, spend
from ops.text import lasting, short
from ops.work import Work, work
from tests.cloud import eventually, running_cloud

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
FITS_NOT = (
    "(service s) was unable to place a task because no container instance met all of its requirements. Reason: {} For "
    "more information, see the Troubleshooting section of the Amazon ECS Developer Guide."
)


def queue(**parts):
    """A queue with ten jobs to do, four tasks wanted, none running."""
    usual = {"name": "default", "visible": 10, "in_flight": 0, "delayed": 0, "placement": "any"}
    return Queue(**{**usual, "max_tasks": 8, "desired": 4, "running": 0, **parts})


def machine(name="i-1", **parts):
    """A Spot instance that joined with its GPU."""
    usual = {"id": name, "pool": "g5.xlarge/a", "spot": True, "launched": NOON - timedelta(minutes=1), "joined": True}
    return Machine(**{**usual, "units": 1, **parts})


def last(why="4 units needed, Spot has 4 more to bring", **parts):
    return Pass(**{"at": NOON - timedelta(seconds=30), "why": why, "needed": 4, **parts})


def look(*machines, **parts):
    """Four units of work, asked of Spot; the instances are given."""
    return Look(
        **{
            **{"at": NOON, "queues": [queue()], "uploads": 0, "ingest": Function(name="ingest"), "minute": True},
            **{"capacity": Function(name="capacity"), "last": last(), "urgency": "now", "machines": machines},
            **{"spot": Market(requested=4), "on_demand": Market(requested=0), **parts},
        }
    )


FOUR = [machine(f"i-{n}") for n in range(4)]
YOUNG = [replace(one, joined=False) for one in FOUR]
OLD = [replace(one, launched=NOON - timedelta(minutes=11)) for one in YOUNG]
BLIND = [replace(one, units=0) for one in FOUR]
[NO_USE] = doubts([Bad(f"i-{n}", True, NOON) for n in (7, 8, 9)])
RETRIES = [Retry(job_id=f"{n}", key=f"{n}.jpg", failures=n, error=f"broken {n}") for n in (1, 2)]
SPOT_QUOTA = "spotInstanceCountLimitExceeded: Max spot instance count exceeded"
EMPTY = "launchSpecTemporarilyBlacklisted: g5.xlarge: There is no Spot capacity available that matches your request"
DRY = "allLaunchSpecsTemporarilyBlacklisted: Several attempts to launch instances have failed"


@pytest.mark.parametrize(
    "case, seen, name, said",
    [
        ("nothing to do", look(queues=[queue(visible=0)], last=None), None, ""),
        ("all is well", look(*FOUR, queues=[queue(in_flight=8, running=4)], running=4), None, ""),
        (
            "the ingest Lambda may not run",
            look(queues=[queue(visible=0)], uploads=3, ingest=Function(name="f", halted=True)),
            "ingest",
            "3 uploads are no jobs yet",
        ),
        ("uploads wait and nothing is wrong", look(queues=[queue(visible=0)], uploads=3), None, ""),
        ("what fails for others", look(queues=[queue(visible=0)], uploads=3, last=last("", failed=True)), None, ""),
        (
            "the ingest Lambda does not listen",
            look(uploads=1, ingest=Function(name="f", source="Disabled")),
            "ingest",
            "Disabled",
        ),
        ("the capacity Lambda may not run", look(capacity=Function(name="f", halted=True)), "paused", "concurrency"),
        (
            "the capacity Lambda does not listen",
            look(capacity=Function(name="f", source="Disabling")),
            "paused",
            "Disabling",
        ),
        ("the minute is off", look(minute=False), "paused", "EveryMinute"),
        ("a pass failed", look(last=last("no such fleet", failed=True)), "pass", "no such fleet"),
        (
            "a pass failed, but what it would ask for is there",
            look(*FOUR, last=last("no", failed=True), stopped=[Stopped(reason="CannotPullContainerError: none")]),
            "image",
            "none",
        ),
        ("a pass failed while all work", look(*FOUR, running=4, last=last("no", failed=True)), "pass", "no"),
        (
            "a pass failed before anything was asked for",
            look(
                last=last("no", failed=True, needed=None),
                queues=[queue(desired=0)],
                stopped=[Stopped(reason="CannotPull")],
            ),
            "pass",
            "no",
        ),
        ("no pass was ever seen", look(last=None), "silent", "no pass lately"),
        ("no pass for long", look(last=last(at=NOON - timedelta(minutes=6))), "silent", "for 6 min"),
        ("a Spot quota", look(spot=Market(requested=4, refusals=[SPOT_QUOTA])), "quota", "no Spot"),
        (
            "a Spot quota, as a group has it",
            look(spot=Market(requested=4, refusals=["Could not launch Spot Instances. MaxSpotInstanceCountExceeded"])),
            "quota",
            "MaxSpot",
        ),
        (
            "an On-Demand quota",
            look(
                on_demand=Market(
                    requested=1,
                    refusals=["You have requested more vCPU capacity than your current vCPU limit of 0 allows"],
                )
            ),
            "quota",
            "no On-Demand",
        ),
        (
            "an On-Demand quota by its code",
            look(on_demand=Market(requested=1, refusals=["VcpuLimitExceeded"])),
            "quota",
            "Vcpu",
        ),
        ("the quota counts before the pools", look(spot=Market(requested=4, refusals=[SPOT_QUOTA, DRY])), "quota", ""),
        (
            "a quota that was raised",
            look(spot=Market(requested=4, refusals=[SPOT_QUOTA, EMPTY, DRY])),
            "capacity",
            "g5",
        ),
        ("no pool has capacity", look(spot=Market(requested=4, refusals=[DRY])), "capacity", "no Spot"),
        (
            "a group finds none",
            look(on_demand=Market(requested=1, refusals=["InsufficientInstanceCapacity: We have none"])),
            "capacity",
            "We have none",
        ),
        (
            "what EC2 refuses otherwise",
            look(spot=Market(requested=4, refusals=["iamFleetRoleInvalid: may not"])),
            "refused",
            "iamFleetRoleInvalid",
        ),
        ("what was refused matters no more", look(*FOUR, spot=Market(requested=4, refusals=[DRY])), "starting", ""),
        (
            "machines of no use",
            look(*YOUNG, last=last(f"4 units needed; {NO_USE}")),
            "no-use",
            "the last 3 Spot machines",
        ),
        (
            "one on trial that has joined",
            look(*FOUR, last=last(f"4 units needed; {NO_USE}")),
            "no-use",
            "i-7, i-8, i-9",
        ),
        ("others work, and are enough", look(*FOUR, running=4, last=last(NO_USE)), None, ""),
        ("instances without a GPU", look(*BLIND), "no-gpu", "i-0, i-1, i-2, i-3"),
        ("instances that do not join", look(*OLD), "not-joining", "for 11 min"),
        ("instances that boot", look(*YOUNG), "booting", "4 instances launched 1 min ago"),
        ("the fleet has just been asked", look(), "launching", "4 units"),
        ("Spot alone, by the urgency", look(urgency="spot-only"), "spot-only", "has 0"),
        ("Spot alone, by the placement", look(queues=[queue(placement="spot")]), "spot-only", "has 0"),
        (
            "Spot alone for some of the work",
            look(queues=[queue(placement="spot"), queue(name="other")]),
            "launching",
            "",
        ),
        (
            "an image that is not there",
            look(*FOUR, stopped=[Stopped(reason="CannotPullContainerError: manifest unknown")]),
            "image",
            "manifest unknown",
        ),
        (
            "a task that fits nowhere",
            look(*FOUR, queues=[queue(event=FITS_NOT.format("has insufficient memory available."))]),
            "does-not-fit",
            "of default: has insufficient memory",
        ),
        (
            "ECS had no instance when it last tried",
            look(queues=[queue(event=FITS_NOT.format("No Container Instances were found in your cluster."))]),
            "launching",
            "",
        ),
        (
            "ECS has no instance, and none is asked for yet",
            look(spot=Market(requested=0), queues=[queue(event=FITS_NOT.format("No Container Instances were found."))]),
            None,
            "",
        ),
        ("all instances leave", look(*[replace(one, draining=True) for one in FOUR]), None, ""),
        (
            "a worker that was told to go is no sign",
            look(*FOUR, stopped=[Stopped(reason="Essential container in task exited", code=0)]),
            "starting",
            "",
        ),
        (
            "a worker that refuses its settings",
            look(*FOUR, stopped=[Stopped(reason="Essential container in task exited", code=2)]),
            "worker",
            "code 2",
        ),
        ("a broken GPU", look(*FOUR, stopped=[Stopped(reason="Essential", code=64)]), "worker", "GPU"),
        (
            "a task that does not start",
            look(*FOUR, stopped=[Stopped(reason="ResourceInitializationError: no")]),
            "worker",
            "no",
        ),
        (
            "a task that was scaled in is no sign",
            look(*FOUR, stopped=[Stopped(reason="Scaling activity initiated by (deployment 1)")]),
            "starting",
            "",
        ),
        (
            "only what failed before is left",
            look(*FOUR, queues=[queue(visible=1, in_flight=1)], retries=RETRIES),
            "poison",
            "2.jpg (job 2) 2 times, last with: broken 2",
        ),
        ("others wait as well", look(*FOUR, queues=[queue(visible=2, in_flight=1)], retries=RETRIES), "starting", ""),
        (
            "the limit of units",
            look(*FOUR, running=4, last=last("4 units needed; 9 units of work meet the limit of 4")),
            "limit",
            "9 units",
        ),
        (
            "the limit of tasks",
            look(*FOUR, running=4, queues=[queue(max_tasks=4, running=4)]),
            "limit",
            "all the 4 tasks",
        ),
        ("not all tasks run yet", look(*FOUR, running=1, queues=[queue(max_tasks=4, running=1)]), None, ""),
        ("tasks are about to begin", look(*FOUR), "starting", "4 tasks wanted, 0 running"),
        ("work goes on, and the rest waits its turn", look(*FOUR, running=4, queues=[queue(running=4)]), None, ""),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_first_obstacle_is_told(case, seen, name, said):
    found = obstacle(seen)

    assert (found and found.name) == name
    assert name is None or (said in found.seen and found.do)


def test_the_chain_is_told_from_its_beginning():
    """With everything wrong at once, each thing that is mended shows the next."""
    stopped = [Stopped(reason="CannotPull: x"), Stopped(reason="Essential", code=2)]
    wrong = look(
        *OLD,
        *BLIND,
        uploads=1,
        ingest=Function(name="f", halted=True),
        minute=False,
        last=last(failed=True),
        spot=Market(requested=20, refusals=["iamFleetRoleInvalid", EMPTY, SPOT_QUOTA, DRY]),
        urgency="spot-only",
        stopped=stopped,
        queues=[queue(visible=2, event=FITS_NOT.format("too small."))],
        retries=RETRIES,
    )
    mended = [
        {"ingest": None},
        {"minute": True},
        {"last": last(f"4 units needed; 9 units of work meet the limit of 4; {NO_USE}")},
        {"spot": Market(requested=20, refusals=["iamFleetRoleInvalid", EMPTY, DRY])},
        {"spot": Market(requested=20, refusals=["iamFleetRoleInvalid"])},
        {"spot": Market(requested=20)},
        {"last": last("4 units needed; 9 units of work meet the limit of 4")},
        {"machines": OLD},
        {"machines": YOUNG},
        {"machines": []},
        {"urgency": "now"},
        {"machines": FOUR},
        {"stopped": stopped[1:]},
        {"queues": [queue(visible=2)]},
        {"stopped": []},
        {"retries": []},
        {"last": last()},
        {"running": 1},
    ]

    names = []
    for step in mended:
        names.append(obstacle(wrong).name)
        wrong = replace(wrong, **step)

    assert obstacle(wrong) is None
    assert names == [
        *("ingest", "paused", "pass", "quota", "capacity", "refused", "no-use", "no-gpu", "not-joining", "booting"),
        *("spot-only", "launching", "image", "does-not-fit", "worker", "poison", "limit", "starting"),
    ]
    assert len(names) == len(CHAIN) - 1, "a pass that fails is looked for twice"


# The job records


def record(state="SUCCEEDED", **parts):
    usual = {"job_id": "1", "key": "a.jpg", "queue": "default", "state": state, "created": at(60), "failures": 0}
    return {**usual, **parts}


def at(minutes):
    """So many minutes before noon, as records have it."""
    return (NOON - timedelta(minutes=minutes)).isoformat()


def test_the_pace_is_that_of_the_last_ten_minutes_or_since_work_began():
    old = [record(started=at(60), finished=at(50))] * 30
    steady = [record(started=at(12), finished=at(n)) for n in range(10)]
    fresh = [record(started=at(2), finished=at(1))] * 10

    assert work(old, NOON).per_minute is None
    assert work([*old, *steady], NOON).per_minute == 1
    assert work([*old, *fresh], NOON).per_minute == 5


def test_who_works_is_known_by_the_lease_and_a_dead_worker_does_not_work():
    until = int(NOON.timestamp())
    place = {"instance_type": "g5.xlarge", "zone": "a", "instance_id": "i-1", "lifecycle": "spot", "started": at(3)}
    found = work([record("RUNNING", lease_until=until + 1, **place), record("RUNNING", lease_until=until - 1)], NOON)

    [running] = found.running
    assert (running.instance_id, running.pool, running.lifecycle) == ("i-1", "g5.xlarge/a", "spot")
    assert running.since == NOON - timedelta(minutes=3)
    assert found.states == {"RUNNING": 2}


def test_what_waits_is_told_by_its_oldest_and_by_what_failed_before():
    records = [record("QUEUED", created=at(5)), record("QUEUED", created=at(7), failures=2, error="broken", key="b")]
    found = work([*records, record("QUEUED", queue="other", created=at(9)), record("FAILED", failures=3)], NOON)

    assert found.oldest == {"default": NOON - timedelta(minutes=7), "other": NOON - timedelta(minutes=9)}
    assert [(one.key, one.failures, one.error) for one in found.retries] == [("b", 2, "broken")]


def test_what_today_cost_counts_from_midnight_and_not_what_is_not_known():
    yesterday = record(finished=at(721), cost_usd=5, gpu_seconds=100)
    today = [
        *(record(finished=at(719), cost_usd=0.5, gpu_seconds=10), record("FAILED", finished=at(1), gpu_seconds=2)),
        record("FAILED", finished=at(1), cost_usd=0.25),
    ]

    assert (work([yesterday], NOON).today, work([yesterday], NOON).cost_usd) == (0, None)
    found = work([yesterday, *today], NOON)
    assert (found.today, found.cost_usd, found.gpu_seconds) == (3, 0.75, 12)


def test_what_a_benchmark_withdrew_has_not_failed_and_was_not_done(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"a photo")
    with mock_aws():
        stage = Stage()
        stage.bench([tmp_path / "photo.jpg"]).run()
        jobs = [*stage.jobs().values()]

    found = work(jobs, stage.now)

    done = sum(job["state"] == "SUCCEEDED" for job in jobs)
    assert found.withdrawn == len(jobs) - done > 0
    assert found.states == {"SUCCEEDED": done}
    assert (found.today, found.per_minute) == (0, None), "those that were done do not say when, here"
    failed = work([*jobs, record("FAILED", error="cannot be decoded")], stage.now)
    assert failed.states == {"SUCCEEDED": done, "FAILED": 1}
    said = "\n".join(report(work=found).text())
    assert f"jobs      {done} SUCCEEDED, {found.withdrawn} withdrawn by bench" in said


def test_spending_is_held_against_what_the_same_instances_cost_on_demand():
    pools = {"g5.xlarge/a": {"spot_usd": 0.25, "on_demand_usd": 1.0}}
    rented = machine(spot=False)

    assert spend([], pools, "us-east-1").saving is None
    half = spend([machine(), machine()], pools, "us-east-1")
    assert (half.usd, half.on_demand_usd, half.saving) == (0.5, 2.0, 0.75)
    assert spend([machine(), rented], pools, "us-east-1").usd == 1.25
    # On-Demand of a type that no pool has: our own list knows it.
    assert spend([replace(rented, pool="g4dn.xlarge/a")], {}, "us-east-1").usd == 0.526
    unknown = spend([machine(pool="g5.xlarge/b"), replace(rented, pool="x1.large/a")], pools, "us-east-1")
    assert (unknown.usd, unknown.unknown) == (0, ("g5.xlarge/b", "x1.large/a"))


# What is printed


def report(**parts):
    usual = {
        **{"stack": "one", "region": "us-east-1", "at": NOON, "queues": [queue(oldest=timedelta(seconds=200))]},
        **{"needed": 4, "spot": Capacity(requested=4, present=3, joined=2), "why": "4 units needed"},
        **{"on_demand": Capacity(requested=0, present=0, joined=0), "work": Work(), "to_empty": None},
        **{"spend": Spend(usd=0.5, on_demand_usd=2.0), "dead_letters": 0, "obstacle": obstacle(look())},
    }
    return Report(**{**usual, **parts})


def test_a_report_reads_like_this():
    records = [record(started=at(2), finished=at(1), cost_usd=0.002, gpu_seconds=40)]
    lines = [*report(work=work(records, NOON), to_empty=timedelta(minutes=20), dead_letters=2).text()]

    assert lines == [
        "one in us-east-1, 2026-05-01 12:00:00 UTC",
        "",
        "queue    waiting  in flight  delayed      oldest  tasks  wanted",
        "default       10          0        0  3 min 20 s      0       4",
        "",
        "units      requested  present  joined",
        "Spot               4        3       2",
        "On-Demand          0        0       0",
        "",
        "needed    4 units: 4 units needed",
        "jobs      1 SUCCEEDED",
        "pace      0.5 jobs a minute, empty in about 20 min",
        "spend     0.50 USD an hour now, 75% less than On-Demand",
        "today     1 job for 0.0020 USD, 0.002000 USD each, 40 GPU seconds",
        "dead      2 in the dead-letter queue: python build.py dlq list --stack one",
        "",
        "in the way: EC2 was asked for 4 units and has not launched them all yet",
        "  -> wait a minute",
    ]


def test_a_program_gets_the_same_with_spans_in_seconds():
    told = json.loads(report(work=work([record("QUEUED")], NOON)).json())

    assert (told["at"], told["queues"][0]["oldest"]) == ("2026-05-01 12:00:00+00:00", 200)
    assert told["work"]["states"] == {"QUEUED": 1}
    assert (told["spend"]["saving"], told["obstacle"]["name"]) == (0.75, "launching")


@pytest.mark.parametrize(
    "seconds, words",
    [(0, "0 s"), (59.6, "1 min"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (273_600, "3 d 4 h"), (-5, "0 s")],
)
def test_a_time_is_told_in_its_two_largest_units(seconds, words):
    assert lasting(timedelta(seconds=seconds)) == words


def test_what_others_wrote_stays_on_its_line():
    assert short("a\n\tb\x1b[0m", 10) == "a b [0m"
    assert short("x" * 20, 10) == "x" * 9 + "…"


# On the local cloud


@pytest.fixture(scope="module")
def cloud():
    with running_cloud(speed=20, seed=3) as laptop:
        folder = laptop.state.parent / "build"
        order = [sys.executable, "build.py", "--settings", str(PROJECT / "tests/slow.toml"), "--out", str(folder)]
        subprocess.run(order, cwd=PROJECT, check=True, capture_output=True)
        yield laptop, laptop.deploy(folder, "one", WorkerImage=f"{REGISTRY}/nothing:1")


def run(cloud, *arguments):
    """The command's exit status and what it printed."""
    result = CliRunner(env={**cloud.environment, "AWS_CONFIG_FILE": "/dev/null"}).invoke(
        build.cli, ["status", *arguments]
    )
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result.exit_code, result.output


def until_told(cloud, name):
    """The report, once its obstacle is the one of that name."""

    instead = []

    def seen():
        code, said = run(cloud, "--stack", "one", "--json")
        assert code == 0, said
        found = json.loads(said)
        instead[:] = [found["obstacle"]]
        return found if (found["obstacle"] or {"name": None})["name"] == name else None

    try:
        return eventually(seen, within=60, what=name)
    except AssertionError as error:
        raise AssertionError(f"{error}, but {instead}") from error


@pytest.mark.story
@pytest.mark.timeout(240)
def test_each_obstacle_is_told_while_it_stands_and_the_next_one_after_it(cloud):
    laptop, outputs = cloud
    assert until_told(laptop, None)["queues"][0]["visible"] == 0
    laptop.remote.do("market/quota", vcpus=0)
    for number in range(3):
        laptop.client("s3").put_object(Bucket=outputs["UploadsBucket"], Key=f"{number}.jpg", Body=b"0")

    quota = until_told(laptop, "quota")
    for pool in (pools := laptop.remote.do("market/show")["pools"]):
        laptop.remote.do("market/capacity", pool=pool, instances=0)
    laptop.remote.do("market/quota", vcpus=None)
    until_told(laptop, "capacity")
    function = name_of(laptop, "CapacityFunction")
    laptop.client("lambda").put_function_concurrency(FunctionName=function, ReservedConcurrentExecutions=0)
    until_told(laptop, "paused")
    laptop.client("lambda").delete_function_concurrency(FunctionName=function)
    for pool, held in pools.items():
        laptop.remote.do("market/capacity", pool=pool, instances=held["capacity"])
    image = until_told(laptop, "image")

    assert quota["needed"] in (1, 2)
    assert (quota["spot"]["present"], quota["spot"]["joined"]) == (0, 0)
    assert quota["work"]["states"].keys() == {"QUEUED"}
    assert "nothing:1" in image["obstacle"]["seen"]
    assert image["spot"]["joined"] + image["on_demand"]["joined"] > 0
    # Prices are known once the market Lambda has looked.
    assert image["spend"]["usd"] > 0 or image["spend"]["unknown"]
    code, said = run(laptop, "--stack", "one")
    assert (code, "in the way: the worker's image cannot be pulled" in said) == (0, True)


def name_of(laptop, title):
    told = laptop.client("cloudformation").describe_stack_resource(StackName="one", LogicalResourceId=title)
    return told["StackResourceDetail"]["PhysicalResourceId"]


@pytest.mark.parametrize(
    "arn, said",
    [
        ("arn:aws:imagebuilder:r:1:image-pipeline/mine", "which bakes images: python build.py ami --stack mine"),
        ("arn:aws:batch:r:1:job-queue/mine-default", "build/batch.json: python build.py batch status --stack mine"),
        ("a-bucket", "none of our stacks"),
    ],
)
def test_of_another_stack_it_says_what_to_ask_instead(arn, said):
    assert not_of_a_cluster("mine", {"Logs": "/aws/logs", "It": arn}).endswith(said)


@pytest.mark.story
def test_a_stack_that_is_none_of_ours_is_the_operators_mistake(cloud):
    laptop, _ = cloud
    queue_only = json.dumps({"Resources": {"Q": {"Type": "AWS::SQS::Queue"}}})
    laptop.client("cloudformation").create_stack(StackName="other", TemplateBody=queue_only)

    assert run(laptop, "--stack", "none") == (2, "there is no stack none in us-east-1\n")
    eventually(lambda: "none of our stacks" in run(laptop, "--stack", "other")[1], within=20, what="a refusal")
