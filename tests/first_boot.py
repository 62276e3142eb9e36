"""An instance's first boot: `unshare --mount --net python -m tests.first_boot FOLDER`, in namespaces of its own.

FOLDER/user-data.sh is run by its own first line, at its own absolute paths. Above /etc, /opt, /run and /var/lib lie
overlays, so that what it leaves is seen and nothing of it stays. The metadata service has its real address; S3 has its
real name, speaks TLS and refuses what is not signed as S3 wants it. systemctl only says what it heard, and lsblk that
there are no disks: this machine's own are not to be formatted.

FOLDER/order.json says {"life_cycle", "agent": what S3 has for every key, "s3_status"}; FOLDER/report.json is the answer.
"""

import datetime
import hashlib
import hmac
import json
import os
import ssl
import stat
import subprocess
import sys
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from judges.filled import REGION
from tests.metadata_server import ACCESS_KEY, SECRET_KEY, LocalServer, MetadataServer

WATCHED = ("etc", "opt", "run", "var/lib")
S3_NAME = f"s3.{REGION}.amazonaws.com"
NO_DISKS = "#!/bin/sh\n"
SYSTEMCTL = '#!/bin/sh\necho "$@" >> "$HEARD"\n'


class S3(LocalServer):
    """One object for every key, for who asks as S3 wants it: signature version 4, with the session's token."""

    def __init__(self, certificate: Path, body: str, status: int) -> None:
        super().__init__(443)
        self.body, self.status = body, status
        self.asked: list[str] = []
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)

    def answer(self, method, path, headers, body):
        self.asked.append(f"{method} https://{headers['Host']}{path}")
        if "x-amz-content-sha256" not in headers or "x-amz-security-token" not in headers:
            return 400, {}, "InvalidRequest"
        if (
            signature(method, path, headers, headers["x-amz-content-sha256"])
            != headers.get("Authorization", "").rpartition("Signature=")[2]
        ):
            return 403, {}, "SignatureDoesNotMatch"
        return self.status, {}, self.body if self.status == 200 else "AccessDenied"


def signature(method, path, headers, payload_hash):
    """What the request must be signed with (AWS General Reference, "Create a signed AWS API request")."""
    said = dict(part.split("=", 1) for part in headers["Authorization"].removeprefix("AWS4-HMAC-SHA256 ").split(", "))
    scope = said["Credential"].removeprefix(f"{ACCESS_KEY}/")
    names = said["SignedHeaders"].split(";")
    canonical = "\n".join(
        [method, path, "", *(f"{name}:{headers[name].strip()}" for name in names), "", said["SignedHeaders"],
         payload_hash]
    )  # fmt: skip
    text = "\n".join(["AWS4-HMAC-SHA256", headers["x-amz-date"], scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = f"AWS4{SECRET_KEY}".encode()
    for part in (*scope.split("/"), text):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return key.hex()


def certificate(path, *names):
    """A certificate of these names, signed by itself, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0])])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(one) for one in names]), critical=False)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    form, secret = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path.write_bytes(key.private_bytes(encoding, form, secret) + made.public_bytes(encoding))


def cover(scratch):
    """Lay an overlay on each watched folder, and give the machine the addresses of an instance."""
    command = ["mount", "--make-rprivate", "/"], ["mount", "-t", "tmpfs", "tmpfs", scratch]
    for words in (
        *command,
        ["ip", "link", "set", "lo", "up"],
        ["ip", "addr", "add", "169.254.169.254/32", "dev", "lo"],
    ):
        subprocess.run(words, check=True)
    for name in WATCHED:
        upper, work = scratch / name / "upper", scratch / name / "work"
        upper.mkdir(parents=True)
        work.mkdir()
        said = f"lowerdir=/{name},upperdir={upper},workdir={work}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", said, f"/{name}"], check=True)


def left(scratch):
    """Every file and folder that is new: its mode, and its text."""
    found = {}
    for name in WATCHED:
        upper = scratch / name / "upper"
        for path in sorted(upper.rglob("*")):
            text = path.read_text() if path.is_file() else None
            found[f"/{name}/{path.relative_to(upper)}"] = [oct(stat.S_IMODE(path.stat().st_mode)), text]
    del found["/etc/hosts"]
    return found


def main(folder):
    order = json.loads((folder / "order.json").read_text())
    scratch, tools, heard = folder / "scratch", folder / "tools", folder / "heard"
    for each in (scratch, tools):
        each.mkdir()
    for name, text in {"systemctl": SYSTEMCTL, "lsblk": NO_DISKS}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    heard.touch()
    certificate(folder / "s3.pem", S3_NAME)
    cover(scratch)
    with Path("/etc/hosts").open("a") as hosts:
        hosts.write(f"\n127.0.0.1 {S3_NAME}\n")
    script = folder / "user-data.sh"
    script.chmod(0o700)
    os.umask(0o022)
    with (
        MetadataServer(port=80, host="169.254.169.254") as metadata,
        S3(folder / "s3.pem", order["agent"], order["s3_status"]) as s3,
    ):
        metadata.life_cycle = order["life_cycle"]
        done = subprocess.run(
            [script],
            env={"PATH": f"{tools}:/usr/sbin:/usr/bin:/sbin:/bin", "HEARD": heard, "CURL_CA_BUNDLE": folder / "s3.pem"},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    report = {
        "status": done.returncode,
        "said": done.stdout + done.stderr,
        "systemctl": heard.read_text().splitlines(),
        "s3": s3.asked,
        "metadata": [f"{method} {path}" for _, method, path, _ in metadata.asked],
        "left": left(scratch),
    }
    (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
