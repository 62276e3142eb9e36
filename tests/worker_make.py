"""A worker's surroundings in a bottle: real queues, tables and buckets over HTTP, and workers as real processes."""

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import quote_plus, unquote_plus
from uuid import uuid4

import boto3

from gpu_worker.upload import told_by_s3

ROOT = Path(__file__).parent.parent
NOON = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)


def until(true, seconds=20):
    """Wait for a fact; the value that made it true is returned."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        if value := true():
            return value
        time.sleep(0.05)
    raise AssertionError("it did not become true in time")


@contextmanager
def cloud(folder, program=("-m", "ministack"), **env):
    """The emulator, alone: its conditional writes hold when several processes race. Yields the endpoint."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env |= {"PATH": os.environ["PATH"], "GATEWAY_PORT": str(port), "BIND_HOST": "127.0.0.1", "TMPDIR": str(folder)}
    env["PYTHONPATH"] = str(ROOT)
    with (folder / "ministack.log").open("w") as log:
        server = subprocess.Popen([sys.executable, *program], env=env, cwd=folder, stdout=log, stderr=log)
    try:
        until(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(10)


@contextmanager
def running(order, env, folder):
    """Python with these arguments, until the test is done with it; `said()` are the lines that it has logged."""
    log = folder / f"{uuid4().hex}.log"
    with log.open("w") as out:
        process = subprocess.Popen([sys.executable, *order], env=env, stdout=out, stderr=out, cwd=folder)
    process.printed = log.read_text
    process.said = lambda: [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        sys.stderr.write(log.read_text())  # pytest shows it when the test fails


class Bench:
    """One queue, one table, two buckets, and what ingest would have put into them."""

    def __init__(self, endpoint, folder):
        self.folder, self.endpoint = folder, endpoint
        self.host_dir = folder / "host"
        self.host_dir.mkdir()
        (folder / "tmp").mkdir()
        self.diary = folder / "diary"
        name = f"t{uuid4().hex[:12]}"
        keys = {"endpoint_url": endpoint, "region_name": "us-east-1"}
        keys |= {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
        self.sqs, self.s3, self.dynamodb = (boto3.client(each, **keys) for each in ("sqs", "s3", "dynamodb"))
        self.queue = self.sqs.create_queue(QueueName=name, Attributes={"VisibilityTimeout": "60"})["QueueUrl"]
        self.dead = self.sqs.create_queue(QueueName=f"{name}-dead")["QueueUrl"]
        self.table, self.uploads, self.results = name, f"{name}-uploads", f"{name}-results"
        self.dynamodb.create_table(
            TableName=name,
            KeySchema=[{"AttributeName": "job_id", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "job_id", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )
        for bucket in (self.uploads, self.results):
            self.s3.create_bucket(Bucket=bucket)

    def job(self, body, key="a.jpg", *, told=1, size=None, **record):
        """Upload, record and `told` messages; returns the job id."""
        etag = self.s3.put_object(Bucket=self.uploads, Key=key, Body=body)["ETag"].strip('"')
        job_id = sha256(json.dumps([self.uploads, key, etag]).encode()).hexdigest()[:32]
        item = {"job_id": {"S": job_id}, "state": {"S": "QUEUED"}}
        item |= {n: {"N": str(v)} if isinstance(v, int) else {"S": v} for n, v in record.items()}
        self.dynamodb.put_item(TableName=self.table, Item=item)
        message = {"schema": "spindrift.job/1", "job_id": job_id, "bucket": self.uploads, "key": key}
        message |= {"version": "", "etag": etag, "size": len(body) if size is None else size}
        for _ in range(told):
            self.sqs.send_message(QueueUrl=self.queue, MessageBody=json.dumps(message))
        return job_id

    def version(self):
        """From now on the uploads have versions."""
        self.s3.put_bucket_versioning(Bucket=self.uploads, VersioningConfiguration={"Status": "Enabled"})

    def upload(self, body, key):
        """Put an object; returns what S3 would tell of it, under `s3` of a record."""
        put = self.s3.put_object(Bucket=self.uploads, Key=key, Body=body)
        told = {"key": quote_plus(key, safe="/"), "size": len(body), "eTag": put["ETag"].strip('"')}
        told |= {"versionId": put["VersionId"]} if "VersionId" in put else {}
        return {"bucket": {"name": self.uploads}, "object": told}

    def tell(self, *uploads, event="ObjectCreated:Put"):
        """Send one S3 event of these uploads to the job queue; returns the ids of their jobs."""
        body = json.dumps({"Records": [{"eventName": event, "s3": upload} for upload in uploads]})
        self.sqs.send_message(QueueUrl=self.queue, MessageBody=body)
        return [job.job_id for job in told_by_s3(body)]

    def there(self, upload):
        """Whether S3 still has this very upload."""
        which = {"VersionId": upload["object"]["versionId"]} if "versionId" in upload["object"] else {}
        try:
            self.s3.head_object(Bucket=self.uploads, Key=unquote_plus(upload["object"]["key"]), **which)
        except self.s3.exceptions.ClientError as error:
            assert error.response["Error"]["Code"] == "404", error
            return False
        return True

    def record(self, job_id):
        got = self.dynamodb.get_item(TableName=self.table, Key={"job_id": {"S": job_id}}, ConsistentRead=True)
        item = got.get("Item", {"state": {"S": "none"}})
        return {name: value.get("S") or [each["S"] for each in value.get("L", [])] for name, value in item.items()} | {
            name: float(value["N"]) for name, value in item.items() if "N" in value
        }

    def records(self):
        """All records: their texts and lists of texts."""
        pages = self.dynamodb.get_paginator("scan").paginate(TableName=self.table, ConsistentRead=True)
        return [
            {name: value.get("S") or [each["S"] for each in value.get("L", [])] for name, value in item.items()}
            for page in pages
            for item in page["Items"]
        ]

    def versions(self):
        """Every version of every result, where the results have versions."""
        pages = self.s3.get_paginator("list_object_versions").paginate(Bucket=self.results)
        return [each for page in pages for each in page.get("Versions", [])]

    def write(self, job_id, **values):
        """Change a record behind the worker's back."""
        for name, value in values.items():
            self.dynamodb.update_item(
                TableName=self.table,
                Key={"job_id": {"S": job_id}},
                UpdateExpression="SET #n = :v",
                ExpressionAttributeNames={"#n": name},
                ExpressionAttributeValues={":v": {"N": str(value)} if isinstance(value, int) else {"S": value}},
            )

    def until_state(self, job_id, state, seconds=20):
        return until(lambda: (r := self.record(job_id))["state"] == state and r, seconds)

    def stored(self):
        found = self.s3.list_objects_v2(Bucket=self.results).get("Contents", [])
        return sorted(each["Key"] for each in found)

    def messages(self, queue=None):
        """(visible, in flight)."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        told = self.sqs.get_queue_attributes(QueueUrl=queue or self.queue, AttributeNames=names)["Attributes"]
        return int(told[names[0]]), int(told[names[1]])

    def buried(self):
        """The reasons in the dead-letter queue."""
        got = self.sqs.receive_message(QueueUrl=self.dead, MaxNumberOfMessages=10, MessageAttributeNames=["All"])
        return [each["MessageAttributes"]["reason"]["StringValue"] for each in got.get("Messages", [])]

    def all_buried(self):
        """The ids of the jobs in the dead-letter queue, which is empty after."""
        found = []
        while got := self.sqs.receive_message(QueueUrl=self.dead, MaxNumberOfMessages=10).get("Messages"):
            found += [json.loads(each["Body"])["job_id"] for each in got]
            for each in got:
                self.sqs.delete_message(QueueUrl=self.dead, ReceiptHandle=each["ReceiptHandle"])
        return found

    def notice(self, seconds):
        """What the agent writes, as it writes it."""
        deadline = datetime.now(UTC) + timedelta(seconds=seconds)
        text = json.dumps({"schema": "spindrift.notice/1", "kind": "interruption", "deadline": deadline.isoformat()})
        (self.host_dir / "new").write_text(text)
        (self.host_dir / "new").rename(self.host_dir / "notice.json")

    def env(self, **more):
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join([str(ROOT / "ecs-tasks/gpu-worker"), str(ROOT / "tests")]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "TMPDIR": str(self.folder / "tmp"),
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "SPINDRIFT_QUEUE": "default",
            "SPINDRIFT_QUEUE_URL": self.queue,
            "SPINDRIFT_DEAD_LETTER_QUEUE_URL": self.dead,
            "SPINDRIFT_JOBS_TABLE": self.table,
            "SPINDRIFT_RESULTS_BUCKET": self.results,
            "SPINDRIFT_LEASE_SECONDS": "60",
            "SPINDRIFT_HOST_DIR": str(self.host_dir),
            "SPINDRIFT_PROCESSOR": "worker_processors:ordered",
            "SPINDRIFT_OPTIONS": json.dumps({"diary": str(self.diary)}),
            **more,
        }

    @contextmanager
    def worker(self, first="", **env):
        """A worker process; SIGKILLed at the end if it still runs. `first` is code that it runs before anything else.

        `.said()` reads its log, `.printed()` all of its output.
        """
        run = "import runpy; runpy.run_module('gpu_worker', run_name='__main__', alter_sys=True)"
        order = ["-c", f"{first}\n{run}"] if first else ["-m", "gpu_worker"]
        with running(order, self.env(**env), self.folder) as process:
            yield process


@contextmanager
def ecs(task=None):
    """ECS's two endpoints for a container, and DescribeTasks, which tells of any task that it is `task`.

    `.asked` is what the worker asked of task protection.
    """
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self._answer({"TaskARN": "arn:aws:ecs:us-east-1:123456789012:task/spindrift/abc"})

        def do_POST(self):
            self._answer({"tasks": [task] if task else [], "failures": []})

        def do_PUT(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, body))
            self._answer({"protection": {"ProtectionEnabled": body["ProtectionEnabled"], "TaskArn": "arn"}})

        def _answer(self, body):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked, server.url = asked, f"http://127.0.0.1:{server.server_port}"
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
