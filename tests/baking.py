"""An image's build, and a boot of it: `unshare --mount --net python -m tests.baking FOLDER`, in namespaces of its own.

FOLDER/order.json says {"files": text by path, "tools": script by name, "objects": text by S3 key, "scripts": in order,
"family", "ecr": status}. The scripts run by bash as root of an overlay on this machine's own `/`, so that nothing of
what they do stays; what they call of ECS's image and this machine has not, or must not, are `tools` that say what they
heard. S3 and ECR have their real names and speak TLS; both refuse what is not signed. FOLDER/report.json is the answer.
"""

import base64
import hashlib
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

from judges.filled import REGION
from tests.first_boot import NO_DISKS, S3, S3_NAME, certificate, signature
from tests.metadata_server import MetadataServer

ECR_NAME = f"api.ecr.{REGION}.amazonaws.com"
PASSWORD = "password-that-must-not-stay"
HEARS = '#!/bin/sh\necho "$(basename "$0") $@" >> /heard\n'
LOGIN = """\
case $1 in login)
  echo "$DOCKER_CONFIG" > /docker-config
  tee "$DOCKER_CONFIG/config.json" >> /heard
esac
"""
"""Docker keeps what it logs in with."""
TOOLS = {
    "systemctl": HEARS,
    "docker": HEARS + LOGIN,
    "sleep": HEARS,
    "journalctl": HEARS,
    "lsblk": NO_DISKS,
}


class Aws(S3):
    """S3's objects, and ECR's word for who asks as it wants."""

    def __init__(self, certificate_path, objects, ecr_status):
        super().__init__(certificate_path, "", 200)
        self.objects, self.ecr_status = objects, ecr_status

    def answer(self, method, path, headers, body):
        if headers["Host"] != ECR_NAME:
            key = path.split("/", 2)[2]
            self.body, self.status = self.objects.get(key, ""), 200 if key in self.objects else 404
            return super().answer(method, path, headers, body)
        self.asked.append(f"{method} https://{ECR_NAME}{path} {headers['x-amz-target']}")
        said = headers.get("Authorization", "").rpartition("Signature=")[2]
        if signature(method, path, headers, hashlib.sha256(body).hexdigest()) != said:
            return 403, {}, "InvalidSignatureException"
        token = base64.b64encode(f"AWS:{PASSWORD}".encode()).decode()
        answer = {"authorizationData": [{"authorizationToken": token, "proxyEndpoint": "https://1.dkr.ecr"}]}
        return self.ecr_status, {}, json.dumps(answer)


def lay(folder, order):
    """The root of the instance: an overlay, with the files and tools of the order. Returns it and its upper layer."""
    scratch = folder / "scratch"
    scratch.mkdir()
    for words in (
        ["mount", "--make-rprivate", "/"],
        ["mount", "-t", "tmpfs", "tmpfs", scratch],
        ["ip", "link", "set", "lo", "up"],
        ["ip", "addr", "add", "169.254.169.254/32", "dev", "lo"],
    ):
        subprocess.run(words, check=True)
    root, upper, work = (scratch / name for name in ("root", "upper", "work"))
    for each in (root, upper, work):
        each.mkdir()
    said = f"lowerdir=/,upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", said, root], check=True)
    subprocess.run(["mount", "-t", "proc", "proc", root / "proc"], check=True)
    hosts = f"127.0.0.1 localhost {S3_NAME} {ECR_NAME}\n"
    certificate(folder / "aws.pem", S3_NAME, ECR_NAME)
    given = {"/etc/hosts": hosts, "/aws.pem": (folder / "aws.pem").read_text(), "/dev/null": "", "/heard": ""}
    for path, text in {**given, **order["files"]}.items():
        place = root / path.lstrip("/")
        if path.startswith("/proc/"):
            (folder / "proc").write_text(text)
            subprocess.run(["mount", "--bind", folder / "proc", place], check=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
    for name, text in {**TOOLS, **order["tools"]}.items():
        place = root / "tools" / name
        place.parent.mkdir(exist_ok=True)
        place.write_text(text)
        place.chmod(0o755)
    return root, upper


def left(upper):
    """Every file that is there: its mode, and its text where it has one."""
    found = {}
    for path in sorted(upper.rglob("*")):
        if path.is_file() and not path.is_symlink():
            text = path.read_bytes().decode(errors="replace")
            found[f"/{path.relative_to(upper)}"] = [oct(stat.S_IMODE(path.stat().st_mode)), text]
    return found


def main(folder):
    order = json.loads((folder / "order.json").read_text())
    root, upper = lay(folder, order)
    os.umask(0o022)
    done = []
    with (
        MetadataServer(port=80, host="169.254.169.254") as metadata,
        Aws(folder / "aws.pem", order["objects"], order["ecr"]) as aws,
    ):
        metadata.broken["meta-data/instance-type"] = f"{order['family']}.xlarge"
        for number, script in enumerate(order["scripts"]):
            (root / f"script-{number}").write_text(script)
            ran = subprocess.run(
                ["chroot", root, "bash", f"/script-{number}"],
                env={"PATH": "/tools:/usr/sbin:/usr/bin:/sbin:/bin", "CURL_CA_BUNDLE": "/aws.pem"},
                stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
            )  # fmt: skip
            done.append([ran.returncode, ran.stdout + ran.stderr])
    mounts = subprocess.run(["chroot", root, "cat", "/proc/mounts"], capture_output=True, text=True).stdout
    seen = subprocess.run(["chroot", root, "sh", "-c", "stat -c %a /shared && cd /shared && find . -type f"],
                          capture_output=True, text=True).stdout  # fmt: skip
    report = {
        "done": done,
        "heard": (root / "heard").read_text().splitlines(),
        "asked": aws.asked,
        "all_mounts": (root / "proc/self/mountinfo").read_text().replace(str(root), "").splitlines(),
        "mounts": [line for line in mounts.splitlines() if " /shared " in line],
        "shared": seen.splitlines(),
        "left": left(upper),
    }
    (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
