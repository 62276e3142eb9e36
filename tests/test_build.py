import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import boto3
import pytest
from click.testing import CliRunner
from moto import mock_aws

import build
from ops.package import package
from ops.publish import CannotPublish, publish

ROOT = Path(__file__).parents[1]


def run(*arguments, python=(sys.executable,), **environment):
    return subprocess.run(
        [*python, "build.py", *arguments],
        cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("build")
    done = run("--out", out, PYTHONHASHSEED="1")
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_it_says_what_it_wrote_and_what_to_type_next(built):
    out, said = built

    for path in (p for p in out.rglob("*") if p.is_file() and p.name != ".agent"):
        assert str(path) in said
    assert said.endswith(f"python build.py --out {out} publish --bucket BUCKET\n")


def test_the_manifest_says_what_there_is(built):
    out, _ = built
    manifest = json.loads((out / "manifest.json").read_text())

    assert [stack["name"] for stack in manifest["stacks"]] == ["cluster", "image", "batch"]
    for asset in manifest["assets"]:
        name, digest = (out / "assets" / asset["key"]).stem.rsplit("-", 1)
        assert asset["sha256"].startswith(digest), name
    assert manifest["settings"]["compute"]["max_units"] == 8


def test_another_process_with_another_umask_builds_the_same_bytes(built, tmp_path):
    out, _ = built
    again = run(
        "--out",
        tmp_path / "again",
        python=("bash", "-c", 'umask 077; exec "$0" "$@"', sys.executable),
        PYTHONHASHSEED="2",
    )

    assert again.returncode == 0, again.stderr
    assert contents(out) == contents(tmp_path / "again")


def test_a_lambda_is_one_package_whatever_lies_beside_it(built):
    out, _ = built
    (capacity,) = (out / "assets").glob("capacity-*.zip")

    with zipfile.ZipFile(capacity) as archive:
        names = archive.namelist()
        assert "capacity/handler.py" in names
        assert all(name.startswith("capacity/") and "__pycache__" not in name for name in names)
        assert {entry.date_time[0] for entry in archive.infolist()} == {1980}


def test_the_agent_is_one_small_file_that_starts_by_itself(built, tmp_path):
    out, _ = built
    (agent,) = (out / "assets").glob("agent-*.pyz")
    done = subprocess.run(
        [sys.executable, "-S", "-E", agent, "--help"],  # -S: without the packages that are installed here
        env={"SHIV_ROOT": str(tmp_path)},
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    assert "--announce-now" in done.stdout
    assert agent.stat().st_size < 3_000_000
    assert agent.read_bytes().startswith(b"#!/usr/bin/python3\n")


def test_a_changed_lambda_has_a_new_name_and_the_old_file_goes(tmp_path):
    project, folder = tmp_path / "project", tmp_path / "assets"
    shutil.copytree(ROOT / "lambdas", project / "lambdas")
    shutil.copytree(ROOT / "agent", project / "agent")
    (project / ".agent-site").symlink_to(ROOT / ".agent-site")
    before = package(project, folder)

    with (project / "lambdas/ingest/handler.py").open("a") as code:
        code.write("# changed\n")
    after = package(project, folder)

    assert after.ingest.key != before.ingest.key
    assert (after.capacity, after.agent) == (before.capacity, before.agent)
    assert sorted(p.name for p in folder.iterdir()) == sorted([".agent", *(asset.key for asset in after.all)])


def test_a_changed_agent_is_not_taken_for_the_last_one(tmp_path):
    project, folder = tmp_path / "project", tmp_path / "assets"
    shutil.copytree(ROOT / "lambdas", project / "lambdas")
    shutil.copytree(ROOT / "agent", project / "agent")
    (project / ".agent-site").symlink_to(ROOT / ".agent-site")
    before = package(project, folder)

    (project / "agent/notice.py").write_text("# another\n")

    assert package(project, folder).agent != before.agent


@pytest.mark.parametrize(
    "case, content, said",
    [
        ("unknown key", "[compute]\nmax_unit = 4", "compute.max_unit: unknown key; did you mean max_units?"),
        ("no GPU", '[compute]\ninstance_types = ["m5.large"]', "compute.instance_types[0]: m5.large has no GPU"),
        ("no zone", "[network]\nzones = 0", "network.zones: at least 1, got 0"),
        ("zero units", "[compute]\nmax_units = 0", "compute.max_units: at least 1, got 0"),
        ("a queue", '[[queues]]\n[[queues]]\nname = "Big"', "queues[1].name: must look like"),
        ("not TOML", "[compute", "not TOML"),
        ("no file", None, "there is no such file"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 12 else "",
)
def test_an_operators_mistake_is_one_clear_message_and_status_2(case, content, said, tmp_path):
    path = tmp_path / "mine.toml"
    if content is not None:
        path.write_text(content)

    done = run("--settings", path, "--out", tmp_path / "out")

    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_without_the_packages_it_says_what_installs_them():
    done = run(python=(sys.executable, "-S", "-E"))

    assert done.returncode == 2
    assert "make setup" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_publish_before_render_says_what_comes_first(tmp_path):
    done = run("publish", "--bucket", "assets", "--out", tmp_path)

    assert done.returncode == 2
    assert "run `python build.py` first" in done.stderr


def test_a_bucket_name_that_s3_would_refuse_is_refused_before_anybody_is_asked(built):
    done = run("publish", "--bucket", "My_Bucket", "--out", built[0])

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("--bucket: 'My_Bucket': S3 wants lower-case letters")


@pytest.fixture
def s3(monkeypatch):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    with mock_aws():
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket="assets")
        yield client


def test_publishing_twice_uploads_nothing(built, s3):
    out, _ = built
    files = sorted(path for path in (out / "assets").iterdir() if path.name != ".agent")

    assert publish(files, "assets", s3) == [path.name for path in files]
    assert publish(files, "assets", s3) == []
    assert s3.get_object(Bucket="assets", Key=files[0].name)["Body"].read() == files[0].read_bytes()


def test_a_bucket_that_cannot_be_looked_into_is_not_an_empty_one(built, s3):
    """S3 answers 403 to a HEAD by somebody who may not list."""

    def forbid(**_):
        return type("Answer", (), {"status_code": 403, "headers": {}, "content": b"", "raw": None, "text": ""})()

    s3.meta.events.register("before-send.s3.HeadObject", forbid)

    with pytest.raises(CannotPublish, match="403"):
        publish([next((built[0] / "assets").glob("*.zip"))], "assets", s3)


def test_publish_prints_the_deployment(built, s3, monkeypatch):
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    done = CliRunner().invoke(build.cli, ["--out", str(built[0]), "publish", "--bucket", "assets"])

    assert done.exit_code == 0, done.output
    assert "4 uploaded, 0 already there" in done.output
    assert "aws cloudformation deploy --stack-name spindrift" in done.output
    assert "AssetsBucket=assets WorkerImage=" in done.output


def test_a_bucket_that_is_not_there_is_told_without_a_traceback(built, s3, monkeypatch):
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    done = CliRunner().invoke(build.cli, ["--out", str(built[0]), "publish", "--bucket", "nobodys"])

    assert done.exit_code == 1
    assert "s3://nobodys:" in done.output
