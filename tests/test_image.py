"""The worker's image, built and run: what the task definition says of its container holds in a real one."""

import re
import signal
import subprocess
import sys

import pytest

from localcloud.engine import NoEngine, find
from localcloud.image import REGISTRY, WORKER_FOLDER
from localcloud.laptop import laptop
from templates.cluster import PULSE
from tests.image_make import PROCESSORS, base, contained, definition
from tests.worker_make import ROOT, until

DOCKERFILE = (WORKER_FOLDER / "Dockerfile").read_text("utf-8")
IMAGE = "spindrift-test-worker:1"
PICTURES = {"SPINDRIFT_PROCESSOR": "gpu_worker.images:process", "SPINDRIFT_OPTIONS": "{}"}
SLOW = {"SPINDRIFT_PROCESSOR": "slow:process", "SPINDRIFT_STOP_TIMEOUT_SECONDS": "24"}
"""Twenty seconds before the end a worker gives back what it holds."""
PHOTO = ROOT / "localcloud" / "photos" / "life.jpg"


def test_what_the_image_and_the_laptop_install_is_the_same():
    def pins(file):
        found = re.split(r"\n(?=\S)", re.sub(r"^#.*\n", "", file.read_text("utf-8")))
        return {each.partition("==")[0]: each.split() for each in found if "==" in each}

    image, laptop = pins(WORKER_FOLDER / "requirements.txt"), pins(ROOT / "requirements" / "main.txt")
    assert {"boto3", "pillow"} <= set(image) & set(laptop)
    assert {name: image[name] for name in set(image) & set(laptop)} == {
        name: laptop[name] for name in set(image) & set(laptop)
    }


def test_ecs_checks_what_the_image_checks():
    assert definition()["healthCheck"]["command"] == PULSE
    told = re.search(r"HEALTHCHECK (.*?)\\\n\s+CMD (.*)", DOCKERFILE)
    assert told[2].replace('"', "").strip("[]").split(", ") == PULSE[1:]
    numbers = {name: int(value) for name, value in re.findall(r"--([a-z-]+)=(\d+)", told[1])}
    check = definition()["healthCheck"]
    assert numbers == {
        "interval": check["interval"],
        "timeout": check["timeout"],
        "start-period": check["startPeriod"],
        "retries": check["retries"],
    }


@pytest.fixture(scope="module")
def engine():
    try:
        return find()
    except NoEngine as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def image(engine, tmp_path_factory):
    foundation = base(engine, tmp_path_factory.mktemp("base"))
    engine.build(WORKER_FOLDER, IMAGE, BASE_IMAGE=foundation, VERSION="1.2", REVISION="abc")
    return IMAGE


@pytest.mark.image
def test_a_job_is_done_and_the_worker_is_healthy_and_can_do_nothing_else(engine, image, bench):
    job_id = bench.job(PHOTO.read_bytes(), "life.jpg")
    with contained(engine, image, bench, environment=PICTURES) as worker:
        bench.until_state(job_id, "SUCCEEDED", 60)
        assert worker.passes(PULSE[1:], 10)
        refused = worker.inside(
            "sh", "-c", f"touch /app/x /x /run/x /var/tmp/x {'/run/spindrift/x'}; id -u; cat /proc/1/status"
        )
        main = worker.inside("sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")

    assert refused.stderr.count("Read-only file system") == 5
    status = dict(re.findall(r"^(\w+):\s+(\S+)", refused.stdout, re.MULTILINE))
    assert refused.stdout.splitlines()[0] == "10001"
    assert (status["NoNewPrivs"], status["CapBnd"], status["CapEff"]) == ("1", "0" * 16, "0" * 16)
    assert "-- python -m gpu_worker" in main.stdout, "an init reaps what a processor leaves behind"
    assert len(bench.stored()) == len({key.rsplit("/", 1)[-1] for key in bench.stored()}) > 0


@pytest.mark.image
def test_sigterm_gives_the_job_back_and_ends_well(engine, image, bench):
    job_id = bench.job(b"100", "slow.txt")
    with contained(engine, image, bench, layers=[PROCESSORS], environment=SLOW) as worker:
        bench.until_state(job_id, "RUNNING", 60)
        worker.process.send_signal(signal.SIGTERM)
        assert worker.process.wait(20) == 0

    record = bench.record(job_id)
    assert (record["state"], record["releases"], record.get("failures", 0)) == ("QUEUED", 1, 0)
    assert until(lambda: bench.messages() == (1, 0))


@pytest.mark.image
def test_a_notice_of_the_host_is_heard_inside(engine, image, bench):
    job_id = bench.job(b"100", "slow.txt")
    with contained(engine, image, bench, layers=[PROCESSORS], environment=SLOW) as worker:
        bench.until_state(job_id, "RUNNING", 60)
        bench.notice(24)
        record = bench.until_state(job_id, "QUEUED", 20)
        assert worker.process.poll() is None, "a doomed worker waits to be stopped"

    assert (record["releases"], record.get("failures", 0)) == (1, 0)


@pytest.mark.image
def test_a_worker_that_stands_still_is_unhealthy(engine, image, bench):
    with contained(engine, image, bench, environment=PICTURES) as worker:
        until(lambda: worker.passes(PULSE[1:], 10), 60)
        worker.inside("sh", "-c", "kill -STOP $(cat /proc/1/task/1/children)")
        assert worker.passes(PULSE[1:], 10), "for a minute nobody can tell"
        worker.inside("touch", "-d", "61 seconds ago", "/tmp/spindrift-pulse")
        assert re.match(r"the last pulse was 6\d s ago", worker.inside(*PULSE[1:]).stderr)
        assert not worker.passes(PULSE[1:], 10)


@pytest.mark.image
def test_the_image_says_what_it_is_and_holds_nothing_else(engine, image):
    labels = engine.ask("image", "inspect", "--format", "{{json .Config.Labels}}", image).stdout
    for name, value in (("version", "1.2"), ("revision", "abc"), ("title", "spindrift gpu-worker")):
        assert f'"org.opencontainers.image.{name}":"{value}"' in labels
    listed = subprocess.run(
        engine.run("spindrift-cloud-0-listing-0", image, ["--entrypoint", "find"], ["/app", "-type", "f"]),
        env=engine.environment, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert "/app/gpu_worker/pipeline.py" in listed
    assert not [name for name in listed if not re.fullmatch(r"/app/(requirements\.txt|gpu_worker/\w+\.py)", name)]


@pytest.mark.image
def test_the_local_cloud_runs_its_tasks_in_containers(engine, image, tmp_path):
    build = [sys.executable, "build.py", "--settings", "tests/slow.toml", "--out", str(tmp_path / "build")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)

    def containers(cloud):
        return engine.ask("ps", "--quiet", "--filter", f"name=spindrift-cloud-{cloud.process.pid}-").stdout.split()

    with laptop(tmp_path / "cloud", speed=20, seed=3, containers=True) as cloud:
        cloud.remote.do("image/add", name="slow-pictures:1", folder=str(ROOT / "tests/story_image"), base=image)
        outputs = cloud.deploy(tmp_path / "build", "contained", WorkerImage=f"{REGISTRY}/slow-pictures:1")
        for number in range(6):
            cloud.client("s3").put_object(
                Bucket=outputs["UploadsBucket"], Key=f"slow/{number}.jpg", Body=PHOTO.read_bytes()
            )

        def jobs(state):
            items = cloud.client("dynamodb").scan(TableName=outputs["JobsTable"])["Items"]
            return [item for item in items if item["state"]["S"] == state]

        until(lambda: jobs("RUNNING") and containers(cloud), 60)
        at_work = jobs("RUNNING")[0]
        cloud.remote.do("market/reclaim", instance=at_work["instance_id"]["S"])
        until(lambda: len(jobs("SUCCEEDED")) == 6, 90)
        assert not [item for item in jobs("SUCCEEDED") if int(item.get("failures", {"N": "0"})["N"])]

        def exits():
            """None of the one whose instance was taken from under it."""
            return {entry["exit"] for entry in cloud.remote.do("diary", what="task stopped")}

        ecs, where = cloud.client("ecs"), {"cluster": outputs["ClusterName"]}
        for task in ecs.list_tasks(**where)["taskArns"]:  # none, if its service was quicker
            ecs.stop_task(task=task, **where)
        until(lambda: 0 in exits(), 30)
        assert exits() <= {0, None}
        [group] = [
            one["logGroupName"]
            for one in cloud.client("logs").describe_log_groups()["logGroups"]
            if "Worker" in one["logGroupName"]
        ]
        lines = cloud.client("logs").filter_log_events(logGroupName=group, filterPattern="leaving")["events"]
        assert any('"leaving"' in line["message"] for line in lines)
    until(lambda: not containers(cloud))
