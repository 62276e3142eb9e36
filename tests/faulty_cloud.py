"""`python faulty_cloud.py`: the emulator, as hard as AWS on a bad day, over HTTP.

A quarter of the messages are delivered twice. One call in fifty of S3 and of DynamoDB fails, however often it is tried
again: half of those calls are never performed, the other half are, and answered with an error all the same.
"""

import json
import os
from hashlib import sha256
from types import SimpleNamespace

from localcloud.deliveries import Deliveries

SEED = os.environ["SEED"]
APP = b"app/worker"
"""What botocore says of itself where AWS_SDK_UA_APP_ID is `worker`."""
FAILING = 50
DUPLICATES = 0.25
ERRORS = {
    "dynamodb": (b"application/x-amz-json-1.0", json.dumps({"__type": "InternalServerError"}).encode()),
    "s3": (b"application/xml", b"<Error><Code>InternalError</Code></Error>"),
}


def fault(headers):
    """None, `before` or `after`; a call keeps its id when botocore tries it again. Others than workers have none."""
    call = headers.get(b"amz-sdk-invocation-id", b"")
    if APP not in headers.get(b"user-agent", b"") or service(headers) not in ERRORS:
        return None
    return {0: "before", 1: "after"}.get(int(sha256(SEED.encode() + call).hexdigest(), 16) % (2 * FAILING))


def service(headers):
    target = headers.get(b"x-amz-target", b"").decode()
    return {"": "s3", "DynamoDB_20120810": "dynamodb"}.get(target.partition(".")[0])


def on_a_bad_day(app):
    performed = set()

    async def faulty(scope, receive, send):
        headers = dict(scope.get("headers", []))
        happens = fault(headers) if scope["type"] == "http" else None
        if happens is None:
            await app(scope, receive, send)
            return
        if happens == "after" and headers[b"amz-sdk-invocation-id"] not in performed:
            performed.add(headers[b"amz-sdk-invocation-id"])
            await app(scope, receive, _nobody)
        kind, body = ERRORS[service(headers)]
        await send({"type": "http.response.start", "status": 500, "headers": [(b"content-type", kind)]})
        await send({"type": "http.response.body", "body": body})

    return faulty


async def _nobody(_):
    pass


def main():
    from ministack import app

    deliveries = Deliveries(SimpleNamespace(seed=SEED))
    deliveries.install(SimpleNamespace(offer=lambda *_: None))
    deliveries.duplicate(DUPLICATES)
    app.app = on_a_bad_day(app.app)
    app.main()


if __name__ == "__main__":
    main()
