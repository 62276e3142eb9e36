"""The scripts that bake an image, run for real in a root of their own."""

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from functools import cache

import pytest

from judges.filled import filled, settled
from judges.scripts import components, user_data
from templates import userdata
from templates.userdata import part
from tests.baking import HEARS, PASSWORD
from tests.metadata_server import SECRET_KEY
from tests.stacks_make import IMAGE, stack
from tests.test_userdata import AGENT, APART, ROOT, why_not

KEY = "agent-0123456789abcdef.pyz"
WORKER = "111122223333.dkr.ecr.eu-west-1.amazonaws.com/gpu-worker:7"
NVIDIA = {
    "/sys/bus/pci/devices/0000:00:1e.0/vendor": "0x10de\n",
    "/sys/bus/pci/devices/0000:00:1e.0/class": "0x030200\n",
}
DISKS = """\
 64424509440 /dev/nvme0n1 Amazon Elastic Block Store
125000000000 /dev/nvme1n1 Amazon EC2 NVMe Instance Storage
600000000000 /dev/nvme2n1 Amazon EC2 NVMe Instance Storage
"""
OWN_DISK = "/dev/nvme2n1"
OWN = "tmpfs"
"""What stands for the file system on it."""
BOOT = "/usr/local/sbin/spindrift-shared\n"
MEMORY = {"/proc/meminfo": "MemTotal: 16777216 kB\nMemFree: 1 kB\n"}
PROBE = (
    "mount --make-rprivate / && mount -t tmpfs tmpfs /mnt && mkdir /mnt/u /mnt/w /mnt/r && "
    "mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/u,workdir=/mnt/w /mnt/r && mount -t proc proc /mnt/r/proc && "
    "chroot /mnt/r true"
)


@cache
def no_root():
    """What keeps this machine from giving a script a root of its own; nothing, mostly."""
    probe = subprocess.run([*APART, "sh", "-c", PROBE], capture_output=True, text=True)
    return probe.stderr.strip() or "unshare failed" if probe.returncode else ""


def scripts(worker=WORKER, table=IMAGE):
    template = stack(table, agent_sha256=hashlib.sha256(AGENT.encode()).hexdigest(), name="image")
    return components(template, {"AssetsBucket": "my-assets", "WorkerImage": worker})


def first_boot():
    template = stack({}, agent_sha256=hashlib.sha256(AGENT.encode()).hexdigest())
    return user_data(settled(template, True), {"AssetsBucket": "my-assets"})["LaunchTemplate"]


def tar(**files):
    """An archive of short texts. It is text itself."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return content.getvalue().decode("ascii")


ARCHIVES = {key: tar(program=f"of {key}") for key in IMAGE["image"]["apps"]["octave"].values()}


@pytest.fixture
def bake(tmp_path):
    """Run scripts one after the other in a root of their own; the report of all."""
    if reason := why_not() or no_root():
        pytest.skip(f"no namespaces with overlays here: {reason}")

    def run(*run, files=None, tools=None, objects=None, family="g4dn", ecr=200):
        order = {
            "files": files or {}, "tools": tools or {}, "objects": {KEY: AGENT} if objects is None else objects,
            "scripts": run, "family": family, "ecr": ecr,
        }  # fmt: skip
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        (folder / "order.json").write_text(json.dumps(order))
        command = [*APART, sys.executable, "-m", "tests.baking", folder]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads((folder / "report.json").read_text())

    return run


def disks(label, gb=600):
    """Tools of an instance with disks of its own, and a root volume of 64 GB; what is mounted from the largest is really
    mounted, from memory.
    """
    mount = f"""#!/bin/sh
case $* in
  *" {OWN_DISK} "*) exec mount-really --types tmpfs --options noatime,nodev,nosuid tmpfs /mnt/spindrift ;;
esac
exec mount-really "$@"
"""
    return {
        "lsblk": f"#!/bin/sh\ncat <<'EOF'\n{DISKS}EOF\n", "blkid": f"#!/bin/sh\necho {label}\n",
        "df": f"#!/bin/sh\necho 1K-blocks\ncase $2 in /mnt/*) echo {gb}000000 ;; *) echo 64000000 ;; esac\n",
        "mkfs.xfs": HEARS, "mount": mount, "mount-really": f'#!/bin/sh\nexec {shutil.which("mount")} "$@"\n',
    }  # fmt: skip


def mounted(report, place):
    """What is mounted there: which folder of which kind of file system, and how (man 5 proc_pid_mountinfo)."""
    [words] = [line.split() for line in report["all_mounts"] if line.split()[4] == place]
    return {"from": words[3], "kind": words[words.index("-") + 1], "how": set(words[5].split(","))}


def shared_at_boot():
    return part("shared.sh").replace("{MEMORY_MIB}", "12288")


# The agent


def test_the_agent_and_its_unit_are_baked_in_and_not_started(bake):
    report = bake(scripts()["AgentComponent build"])

    assert report["done"][0][0] == 0, report["done"]
    assert report["left"]["/opt/spindrift/agent.pyz"] == ["0o644", AGENT]
    assert report["left"]["/etc/systemd/system/spindrift-agent.service"][1] == userdata.UNIT
    assert "/etc/spindrift/agent.env" not in report["left"]
    assert report["heard"] == []


@pytest.mark.parametrize(
    ("case", "baked", "fetched"),
    [("the same agent: nothing is fetched", AGENT, 0), ("an older agent: ours is fetched", "an older agent\n", 1)],
)
def test_user_data_goes_on_working_on_a_baked_image(bake, case, baked, fetched):
    report = bake(first_boot(), files={"/opt/spindrift/agent.pyz": baked})

    assert report["done"][0][0] == 0, report["done"]
    assert report["asked"] == [f"GET https://s3.eu-west-1.amazonaws.com/my-assets/{KEY}"] * fetched
    assert report["left"]["/opt/spindrift/agent.pyz"][1] == AGENT
    assert report["heard"] == ["systemctl daemon-reload", "systemctl enable --now spindrift-agent.service"]


@pytest.mark.parametrize(("restarts", "status"), [("0", 0), ("3", 1)])
def test_an_agent_that_does_not_stay_up_fails_the_image(bake, restarts, status):
    told = f"{HEARS}case $1 in show) echo {restarts};; esac\n"
    report = bake(scripts()["AgentComponent test"], files={"/etc/spindrift/here": ""}, tools={"systemctl": told})

    assert report["done"][0][0] == status, report["done"]
    assert "systemctl start spindrift-agent.service" in report["heard"]


# The worker


def test_the_worker_is_pulled_with_a_password_that_does_not_stay(bake):
    report = bake(scripts()["WorkerComponent build"])

    assert report["done"][0][0] == 0, report["done"]
    registry = WORKER.partition("/")[0]
    assert report["heard"] == [
        f"docker login --username AWS --password-stdin {registry}", PASSWORD, f"docker pull --quiet {WORKER}"
    ]  # fmt: skip
    config = report["left"].pop("/docker-config")[1].strip()
    assert config.startswith("/tmp/") and not any(path.startswith(config) for path in report["left"])
    for secret in (PASSWORD, SECRET_KEY):
        assert secret not in json.dumps([report["done"], {k: v for k, v in report["left"].items() if k != "/heard"}])


def test_a_public_image_is_pulled_without_asking_ecr(bake):
    report = bake(scripts("public.ecr.aws/me/worker:1")["WorkerComponent build"])

    assert (report["asked"], report["heard"]) == ([], ["docker pull --quiet public.ecr.aws/me/worker:1"])


def test_without_a_password_nothing_is_pulled(bake):
    report = bake(scripts()["WorkerComponent build"], ecr=403)

    assert report["done"][0][0] != 0
    assert not any("pull" in line for line in report["heard"])


def test_an_image_without_the_worker_fails(bake):
    missing = {"docker": HEARS + "exit 1\n"}

    assert bake(scripts()["WorkerComponent test"])["done"][0][0] == 0
    assert bake(scripts()["WorkerComponent test"], tools=missing)["done"][0][0] != 0


# The boot


def test_a_boot_updates_nothing_and_starts_no_ssh(bake):
    report = bake(scripts()["BootComponent build"], files={"/etc/cloud/cloud.cfg.d/05_logging.cfg": ""})

    assert report["done"][0][0] == 0, report["done"]
    assert "package_upgrade: false" in report["left"]["/etc/cloud/cloud.cfg.d/99-spindrift.cfg"][1]
    [masked] = report["heard"]
    assert masked.startswith("systemctl mask ") and "sshd.service" in masked
    assert "ssm" not in masked, "Image Builder itself needs it, and so does Session Manager"


# /shared


def test_shared_is_set_up_by_a_unit_before_any_task_could_mount_it(bake):
    report = bake(scripts()["SharedComponent build"])

    assert report["done"][0][0] == 0, report["done"]
    mode, text = report["left"]["/usr/local/sbin/spindrift-shared"]
    assert (mode, text) == ("0o755", shared_at_boot())
    unit = report["left"]["/etc/systemd/system/spindrift-shared.service"][1]
    assert "Before=docker.service ecs.service" in unit
    assert report["heard"] == ["systemctl daemon-reload", "systemctl enable spindrift-shared.service"]


@pytest.mark.parametrize(
    ("case", "gpus", "mib"),
    [
        ("one GPU: its task's memory and 1 GiB stay", NVIDIA, 16_384 - 12_288 - 1_024),
        ("none: all but 1 GiB", {"/sys/bus/pci/devices/0000:00:05.0/vendor": "0x1d0f\n"}, 16_384 - 1_024),
    ],
)
def test_without_a_disk_shared_is_the_memory_that_nobody_needs(bake, case, gpus, mib):
    report = bake(scripts()["SharedComponent build"], BOOT, files={**MEMORY, **gpus})

    assert report["done"][1] == [0, ""]
    [mount] = report["mounts"]
    assert mount.startswith("tmpfs /shared tmpfs ") and f"size={mib * 1024}k" in mount
    assert report["shared"] == ["1777"]


def test_without_memory_to_spare_it_is_a_folder(bake):
    small = {"/proc/meminfo": "MemTotal: 13600000 kB\n"}
    report = bake(scripts()["SharedComponent build"], BOOT, files={**small, **NVIDIA})

    assert (report["mounts"], report["shared"]) == ([], ["1777"])
    assert "no memory to spare" in report["done"][1][1]


@pytest.mark.parametrize(
    ("case", "label", "formatted"),
    [("new: it is formatted", "", 1), ("after a reboot: it is as it was", "spindrift", 0)],
)
def test_on_the_largest_disk_of_its_own_are_shared_and_scratch_space(bake, case, label, formatted):
    report = bake(scripts()["SharedComponent build"], BOOT, files=MEMORY, tools=disks(label))

    assert report["done"][1:] == [[0, ""]]
    assert report["heard"][2:] == [f"mkfs.xfs -q -K -L spindrift {OWN_DISK}"] * formatted
    shared, volumes = (mounted(report, place) for place in ("/shared", "/var/lib/docker/volumes"))
    assert (shared["kind"], volumes["kind"]) == (OWN, OWN)
    assert (shared["from"], volumes["from"]) == ("/shared", "/volumes")
    assert {"nodev", "nosuid", "noatime"} <= shared["how"] & volumes["how"]
    assert report["shared"] == ["1777"]


@pytest.mark.parametrize("boots", [1, 2])
def test_scratch_space_is_on_the_largest_disk_of_its_own_whatever_the_image(bake, boots):
    again = "/var/lib/cloud/scripts/per-boot/spindrift-disk\n"
    report = bake(first_boot(), *([again] * (boots - 1)), tools=disks(""))

    assert report["done"] == [[0, ""]] * boots
    assert report["heard"][2:] == [f"mkfs.xfs -q -K -L spindrift {OWN_DISK}"]
    volumes = mounted(report, "/var/lib/docker/volumes")
    assert (volumes["kind"], volumes["from"]) == (OWN, "/volumes")


def test_a_root_volume_that_was_made_larger_has_the_scratch_space(bake):
    report = bake(scripts()["SharedComponent build"], BOOT, files=MEMORY, tools=disks("", gb=60))

    assert report["done"][1:] == [[0, ""]]
    assert mounted(report, "/shared")["from"] == "/shared"
    assert not [line for line in report["all_mounts"] if "/var/lib/docker" in line]


def test_user_data_and_the_image_s_own_unit_do_not_get_in_each_other_s_way(bake):
    report = bake(scripts()["SharedComponent build"], BOOT, first_boot(), files=MEMORY, tools=disks(""))

    assert [status for status, _ in report["done"]] == [0, 0, 0], report["done"]
    assert sum(line.startswith("mkfs") for line in report["heard"]) == 1
    assert mounted(report, "/shared") and mounted(report, "/var/lib/docker/volumes")


def test_a_disk_that_cannot_be_had_costs_neither_the_agent_nor_shared(bake):
    broken = {**disks(""), "mkfs.xfs": "#!/bin/sh\necho appears to contain an existing filesystem >&2; exit 1\n"}
    report = bake(scripts()["SharedComponent build"], BOOT, first_boot(), files={**MEMORY, **NVIDIA}, tools=broken)

    built, boot, user_data = report["done"]
    assert (built[0], boot[0], user_data[0]) == (0, 0, 1)
    assert "existing filesystem" in user_data[1]
    assert report["mounts"][0].startswith("tmpfs /shared tmpfs ")
    assert "systemctl enable --now spindrift-agent.service" in report["heard"]


@pytest.mark.parametrize(("mode", "status"), [("1777", 0), ("755", 1)])
def test_a_shared_that_not_everybody_has_fails_the_image(bake, mode, status):
    report = bake(f"mkdir -p /shared; chmod {mode} /shared", scripts()["SharedComponent test"])

    assert report["done"][1][0] == status
    assert report["heard"] == ["systemctl is-active spindrift-shared.service"]


def test_what_was_built_for_the_family_is_unpacked(bake):
    template = stack(IMAGE, name="image")
    made = components(template, {"AssetsBucket": "my-assets"})
    build = [made["AppsComponent build"], made["SharedComponent build"]]
    report = bake(*build, BOOT, objects=ARCHIVES, family="g5", files=MEMORY)

    assert [status for status, _ in report["done"]] == [0, 0, 0], report["done"]
    assert report["shared"] == ["1777", "./octave/program"]
    assert len(report["asked"]) == 3


def test_a_family_that_nobody_built_for_boots_all_the_same(bake):
    files = {**MEMORY, "/opt/spindrift/apps/octave/g4dn": tar(program="x")}
    report = bake(scripts()["SharedComponent build"], BOOT, files=files, family="p5")

    assert report["done"][1:] == [[0, "spindrift: nothing of /opt/spindrift/apps/octave was built for p5\n"]]


@pytest.mark.parametrize(
    ("case", "objects"), [("no tar", {**ARCHIVES, "apps/octave-g5.tar.gz": "not a tar"}), ("nothing", {})]
)
def test_an_archive_that_cannot_be_read_fails_the_build(bake, case, objects):
    report = bake(scripts()["AppsComponent build"], objects=objects)

    assert report["done"][0][0] != 0


# A clone


def test_a_clone_registers_afresh(bake):
    state = dict.fromkeys(("/var/lib/ecs/data/agent.db", "/var/lib/ecs/gpu/nvidia-gpu-info.json"), "who I am")
    made = scripts()
    report = bake(made["ForgetComponent validate"], made["ForgetComponent build"], made["ForgetComponent validate"],
                  files=state)  # fmt: skip

    assert [status for status, _ in report["done"]] == [1, 0, 0], report["done"]
    assert report["heard"] == ["systemctl stop ecs.service"]
    assert not any(path.startswith("/var/lib/ecs/") for path in report["left"])


@pytest.mark.parametrize(
    ("case", "files", "smi", "status", "said"),
    [
        ("a GPU and its driver", NVIDIA, "echo GPU 0", 0, "GPU 0\n"),
        ("a GPU that the driver does not see", NVIDIA, "exit 9", 9, ""),
        ("no GPU", {"/sys/bus/pci/devices/0/vendor": "0x1d0f\n"}, "exit 9", 0, "spindrift: no GPU here, the driver was not tested\n"),
    ],
)  # fmt: skip
def test_the_driver_is_tested_where_there_is_a_gpu(bake, case, files, smi, status, said):
    report = bake(scripts()["GpuComponent test"], files=files, tools={"nvidia-smi": f"#!/bin/sh\n{smi}\n"})

    assert report["done"] == [[status, said]]


def test_forgetting_comes_last():
    template = stack(IMAGE, name="image")
    recipe = template["Resources"]["Recipe"]["Properties"]["Components"]

    assert recipe[-1]["ComponentArn"] == {"Ref": "ForgetComponent"}
    assert "stop ecs.service" in filled(template, template["Resources"]["ForgetComponent"]["Properties"]["Data"])
