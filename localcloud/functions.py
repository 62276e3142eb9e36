"""Lambda functions: what they wrote, for people to read, and their sudden death, for tests. Knows ministack's names."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Mapping
from importlib.metadata import packages_distributions
from typing import Any

from ministack.core import lambda_runtime
from ministack.services import cloudwatch_logs, lambda_svc

from localcloud import permissions
from localcloud.control import Control, Refused
from localcloud.world import ACCOUNT, REGION, World

BUNDLED = {"boto3", "botocore", "dateutil", "jmespath", "s3transfer", "six", "urllib3"}
"""What Lambda's Python runtime has beside the standard library (Lambda developer guide, Python)."""
GUARD = """
import sys

class NotInLambda:
    def find_spec(self, name, path=None, target=None):
        if path is None and name in {refused}:
            raise ModuleNotFoundError("No module named " + repr(name))

sys.meta_path.insert(0, NotInLambda())
"""


class Functions:
    """The processes that ministack runs Lambda code in."""

    def __init__(self, world: World) -> None:
        self._logs = world.state / "logs"
        self._logs.mkdir(exist_ok=True)

    def install(self, world: World, control: Control) -> None:
        """Hide the laptop's packages, keep the logs as files too, offer death, end the processes with the cloud."""
        refused = sorted(set(packages_distributions()) - BUNDLED)
        lambda_runtime._PYTHON_WORKER_SCRIPT = GUARD.format(refused=refused) + lambda_runtime._PYTHON_WORKER_SCRIPT
        write = lambda_svc._emit_lambda_logs

        @functools.wraps(write)
        def written(func: dict[str, Any], request_id: str, text: str, *rest: Any, **keywords: Any) -> None:
            with (self._logs / f"{func['config']['FunctionName']}.log").open("a") as log:
                log.write(f"{text}\n" if text else "")
            if _may_log(func["config"]):
                write(func, request_id, text, *rest, **keywords)

        lambda_svc._emit_lambda_logs = written
        control.offer("lambda/logs", self.logs)
        control.offer("lambda/kill", self.kill)
        world.on_stop(lambda_runtime.reset)

    def logs(self, function: str) -> str:
        """All that the function has written so far, "" for nothing."""
        file = self._logs / f"{function}.log"
        return file.read_text() if file.exists() else ""

    def kill(self, function: str) -> int:
        """SIGKILL the process that runs an invocation of `function` now; its pid. Raises Refused when none does."""
        with lambda_runtime._lock:
            for key, workers in lambda_runtime._workers.items():
                for worker in workers:
                    if key.split(":")[2] == function and worker.in_use and worker._proc is not None:
                        pid = int(worker._proc.pid)
                        os.kill(pid, signal.SIGKILL)
                        return pid
        raise Refused(f"no invocation of {function} is running now")


def _may_log(config: Mapping[str, Any]) -> bool:
    """Whether the function's role lets Lambda write its log, and make the group when it is not there."""
    group = config.get("LoggingConfig", {}).get("LogGroup") or f"/aws/lambda/{config['FunctionName']}"
    arn = f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:{group}"
    needs = {"logs:CreateLogStream": f"{arn}:*", "logs:PutLogEvents": f"{arn}:log-stream:*"}
    if group not in cloudwatch_logs._log_groups:
        needs = {"logs:CreateLogGroup": arn, **needs}
    name = config["FunctionName"]
    return all(permissions.role_may(config["Role"], name, action, where) for action, where in needs.items())
