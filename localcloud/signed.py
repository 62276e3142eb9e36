"""One signed call of a JSON API with given credentials: what the ECS agent sends, without the weight of a client."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from localcloud import wire
from localcloud.world import REGION


class Refused(Exception):
    """The API answered with an error, or (code RequestCanceled, status 500) did not answer."""

    def __init__(self, code: str, message: str, status: int, request_id: str = "") -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message, self.status, self.request_id = code, message, status, request_id


def call(
    endpoint: str, service: str, operation: str, credentials: Mapping[str, str], params: Mapping[str, Any]
) -> dict[str, Any]:
    """The answer, times as epoch seconds. `credentials`: AccessKeyId, SecretAccessKey, Token. Raises Refused."""
    described = wire.model(service).metadata
    headers = {
        "Content-Type": f"application/x-amz-json-{described['jsonVersion']}",
        "X-Amz-Target": f"{described['targetPrefix']}.{operation}",
    }
    body = json.dumps(params).encode()
    request = AWSRequest("POST", f"{endpoint}/", headers=headers, data=body)
    keys = Credentials(credentials["AccessKeyId"], credentials["SecretAccessKey"], credentials.get("Token"))
    SigV4Auth(keys, described.get("signingName", described["endpointPrefix"]), REGION).add_auth(request)
    sent = dict(request.prepare().headers)
    http = urllib.request.Request(f"{endpoint}/", body, sent, method="POST")  # noqa: S310
    try:
        with urllib.request.urlopen(http, timeout=20) as reply:  # noqa: S310
            answer: dict[str, Any] = json.loads(reply.read() or b"{}")
            return answer
    except urllib.error.HTTPError as error:
        with error:
            raise _refusal(error) from error
    except OSError as error:
        raise Refused("RequestCanceled", str(error), 500) from error


def _refusal(error: urllib.error.HTTPError) -> Refused:
    try:
        told = json.loads(error.read() or b"{}")
    except ValueError:
        told = {}
    code = str(told.get("__type") or told.get("code") or error.code).rsplit("#", 1)[-1]
    message = told.get("message") or told.get("Message") or error.reason
    return Refused(code, str(message), error.code, error.headers.get("x-amzn-RequestId", ""))
