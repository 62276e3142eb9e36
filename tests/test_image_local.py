"""The stack `image` by the stock command line: deployed, built, used by a cluster, changed, deleted."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from click.testing import CliRunner

import build as command
from localcloud.laptop import ASSETS_BUCKET, PROJECT, WORKER_IMAGE, DidNotWork, Laptop, laptop
from ops import down
from tests.cloud import eventually
from tests.permissions import answers, deployed_grants, unused, wrong
from tests.test_stacks import DEFAULTS, build, changed, client, left, resources, what_there_is

pytestmark = [pytest.mark.story, pytest.mark.stacks, pytest.mark.timeout(240)]
NAME = "/imagebuilder/mine/ami"


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Laptop]:
    with laptop(tmp_path / "cloud", speed=200, seed=5) as cloud:
        cloud.aws("s3", "mb", f"s3://{ASSETS_BUCKET}")
        yield cloud


def deploy(cloud: Laptop, template: Path, worker: str = WORKER_IMAGE) -> None:
    cloud.run(sys.executable, "build.py", "publish", "--bucket", ASSETS_BUCKET, "--out", template.parent)
    cloud.aws(
        *("cloudformation", "deploy", "--stack-name", "mine", "--template-file", str(template)),
        *("--capabilities", "CAPABILITY_IAM", "--s3-bucket", ASSETS_BUCKET),
        *("--parameter-overrides", f"AssetsBucket={ASSETS_BUCKET}", f"WorkerImage={worker}"),
    )


def bake(cloud: Laptop) -> str:
    """Build by the operator's command. What it printed; raises DidNotWork when the build failed."""
    return cloud.run(PROJECT / ".venv/bin/python", "build.py", "ami", "--stack", "mine", "--follow")


def amis(cloud: Laptop) -> list[str]:
    images = client(cloud, "ec2").describe_images(Owners=["self"])["Images"]
    return [one["ImageId"] for one in images]


def newest(cloud: Laptop) -> str:
    return str(client(cloud, "ssm").get_parameter(Name=NAME)["Parameter"]["Value"])


def rewritten(built: Path, name: str, change: Any) -> Path:
    """Another template: the built one with one thing changed."""
    template = json.loads((built / "image.json").read_text())
    change(template["Resources"])
    (built / name).write_text(json.dumps(template))
    return built / name


def test_an_image_is_baked_used_renewed_and_cleaned_away(cloud: Laptop, tmp_path: Path) -> None:
    before = what_there_is(cloud)
    built = build(tmp_path / "built", changed(DEFAULTS, ("keep = 2", "keep = 1")))
    deploy(cloud, built / "image.json")
    assert "AVAILABLE" in bake(cloud)
    [first] = amis(cloud)
    assert newest(cloud) == first

    # A cluster takes it.
    cloud.deploy(built, "cluster", AmiId=NAME)
    template = resources(cloud, "cluster")["LaunchTemplate"]
    [version] = client(cloud, "ec2").describe_launch_template_versions(LaunchTemplateId=template)[
        "LaunchTemplateVersions"
    ]
    assert version["LaunchTemplateData"]["ImageId"] == first
    cloud.aws("cloudformation", "delete-stack", "--stack-name", "cluster")

    # Another worker is another version of the recipe; one that does not exist is not waited for.
    deploy(cloud, built / "image.json", worker=f"{WORKER_IMAGE}-nowhere")
    assert resources(cloud, "mine")["Recipe"].endswith("/1.0.1")
    with pytest.raises(DidNotWork, match="nowhere is not in its registry"):
        bake(cloud)
    deploy(cloud, built / "image.json", worker="example.com/nobody/knows:1")
    with pytest.raises(DidNotWork, match=r"FAILED: component worker: example\.com/nobody/knows:1: not found"):
        bake(cloud)
    assert (amis(cloud), newest(cloud)) == ([first], first), "what there was is still there"

    # The newest alone is kept.
    deploy(cloud, built / "image.json")
    assert "the same" in bake(cloud)
    assert amis(cloud) == [newest(cloud)] != [first]

    # A role that may not write the parameter fails the build; nobody hears of the image.
    last = newest(cloud)
    deploy(
        cloud,
        rewritten(built, "powerless.json", lambda made: made["BuilderRole"]["Properties"].pop("ManagedPolicyArns")),
    )
    with pytest.raises(DidNotWork, match="not authorized to perform ssm:PutParameter"):
        bake(cloud)
    assert newest(cloud) == last

    with pytest.raises(DidNotWork):
        deploy(
            cloud,
            rewritten(built, "spot.json", lambda made: made["Infrastructure"]["Properties"].update(SpotPrice="1")),
        )

    cloud.aws("cloudformation", "delete-stack", "--stack-name", "mine")
    eventually(lambda: "mine" not in _stacks(cloud), within=60, what="the stack is gone")
    assert not {name for name in left(cloud, before) if name.startswith("mine")}


def test_down_cancels_a_build_and_names_the_images_that_stay(
    cloud: Laptop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in cloud.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(down, "PAUSE_SECONDS", 0.1)
    archives = [f"apps/octave-{family}.tar.gz" for family in ("g4dn", "g5", "g6")]
    named = ", ".join(f'{key[12:-7]} = "{key}"' for key in archives)
    built = build(tmp_path / "built", f"{DEFAULTS}\n[image.apps]\noctave = {{ {named} }}\n")
    deploy(cloud, built / "image.json")
    with pytest.raises(DidNotWork, match=r"octave-g4dn\.tar\.gz: The requested URL returned error: 404"):
        bake(cloud)
    for key in archives:
        client(cloud, "s3").put_object(Bucket=ASSETS_BUCKET, Key=key, Body=b"")
    bake(cloud)
    [ami] = amis(cloud)
    template, asked = json.loads((built / "image.json").read_text()), answers(cloud, "mine")
    found = wrong(deployed_grants(cloud, "mine", template), asked)
    found += unused(deployed_grants(cloud, "mine", template, managed=False), asked, [])
    assert not found, "\n".join(found)
    assert run("status", "--stack", "mine")[1].endswith("python build.py ami --stack mine\n")
    cloud.run(PROJECT / ".venv/bin/python", "build.py", "ami", "--stack", "mine")

    code, said = run("down", "--stack", "mine", "--yes")
    assert code == 0, said
    assert "/3 is cancelled" in said
    assert f"stays: image {ami} (14.0 GiB, about 0.70 USD a month; running from it: 0)" in said
    assert f"kept: parameter {NAME} ({ami})\n      aws ssm delete-parameter --name {NAME}\n" in said
    assert f"aws ec2 deregister-image --delete-associated-snapshots --image-id {ami}" in said
    assert "proved: of mine there is no instance" in said
    assert amis(cloud) == [ami]

    code, said = run("down", "--stack", "mine", "--yes", "--delete-data")
    assert (code, f"goes, and what launches from it launches no more: image {ami}" in said) == (0, True), said
    assert (amis(cloud), client(cloud, "ec2").describe_snapshots()["Snapshots"]) == ([], [])
    with pytest.raises(ClientError, match="ParameterNotFound"):
        newest(cloud)


def run(*words: str) -> tuple[int, str]:
    """A command of build.py: its exit status, and what it printed."""
    done = CliRunner().invoke(command.cli, [*words])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    return done.exit_code, done.output


def _stacks(cloud: Laptop) -> set[str]:
    told = client(cloud, "cloudformation").describe_stacks()["Stacks"]
    return {one["StackName"] for one in told if one["StackStatus"] != "DELETE_COMPLETE"}
