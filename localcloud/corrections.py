"""Where ministack is kinder or looser than AWS, and the clock of its schedules. Knows ministack's names."""

from __future__ import annotations

import functools
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import moto
from ministack.core import iam_actions, iam_evaluator
from ministack.services import dynamodb, eventbridge, iam, kms, lambda_svc, s3, sns, sqs, ssm
from ministack.services.cloudformation import provisioners
from moto.iam.aws_managed_policies import aws_managed_policies_data
from moto.ssm.utils import convert_to_params
from moto.utilities.utils import load_resource

from localcloud.formation import NotPlayed
from localcloud.world import ACCOUNT, REGION, World

log = logging.getLogger(__name__)

TICK_SECONDS = 1.0
KEY_ACTIONS: Mapping[str, tuple[str, ...]] = {
    "sqs:SendMessage": ("kms:GenerateDataKey", "kms:Decrypt"),
    "sqs:ReceiveMessage": ("kms:Decrypt",),
    "sns:Publish": ("kms:GenerateDataKey", "kms:Decrypt"),
    "s3:PutObject": ("kms:GenerateDataKey",),
    "s3:GetObject": ("kms:Decrypt",),
    **{
        f"dynamodb:{operation}": ("kms:Decrypt",)
        for operation in ("PutItem", "GetItem", "UpdateItem", "DeleteItem", "Query", "Scan")
    },
}
"""What a caller needs of the customer key of the thing that it uses (developer guides of the five services)."""
BATCHES = {
    "sqs:SendMessageBatch": "sqs:SendMessage",
    "sqs:DeleteMessageBatch": "sqs:DeleteMessage",
    "sqs:ChangeMessageVisibilityBatch": "sqs:ChangeMessageVisibility",
    "sns:PublishBatch": "sns:Publish",
}
"""A batch is no action of its own (Service Authorization Reference)."""
MAPPING_ACTIONS = ("sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes")
"""What Lambda asks of a function's role before it makes a mapping from a queue (Lambda developer guide)."""


def install(world: World) -> None:
    """Make all corrections."""
    _scale_schedules(world)
    _name_actions()
    _name_log_streams()
    _hold_services_to_policies()
    _hold_callers_to_keys()
    _hold_mappings_to_roles()
    _know_parameters_and_policies()
    _name_instance_profiles()


def _scale_schedules(world: World) -> None:
    rate = eventbridge._parse_rate_seconds

    @functools.wraps(rate)
    def scaled(expression: str) -> float | None:
        seconds = rate(expression)
        return None if seconds is None else world.scaled(seconds)

    eventbridge._parse_rate_seconds = scaled
    eventbridge._SCHEDULER_TICK_INTERVAL = max(0.1, world.scaled(TICK_SECONDS))


def _name_actions() -> None:
    extract = iam_actions.extract_iam_action

    @functools.wraps(extract)
    def action_of(*request: Any) -> str | None:
        action: str | None = extract(*request)
        return BATCHES.get(action or "", action)

    iam_actions.extract_iam_action = action_of


def _name_log_streams() -> None:
    """To IAM a log group is `…:log-group:NAME:*`, its stream `…:log-group:NAME:log-stream:STREAM` (Logs user guide)."""
    extract = iam_actions.extract_resource_arn

    @functools.wraps(extract)
    def arn_of(service: str, method: str, path: str, headers: Any, body: bytes, *rest: Any) -> str:
        arn = str(extract(service, method, path, headers, body, *rest))
        if service != "logs" or not re.fullmatch(r"arn:aws:logs:[^:]+:\d+:log-group:[^:]+", arn):
            return arn
        operation = headers.get("x-amz-target", "").rsplit(".", 1)[-1]
        if operation in ("TagResource", "UntagResource", "ListTagsForResource"):
            return arn
        stream = json.loads(body).get("logStreamName") if operation != "CreateLogStream" else None
        return f"{arn}:log-stream:{stream}" if stream else f"{arn}:*"

    iam_actions.extract_resource_arn = arn_of


def _hold_services_to_policies() -> None:
    """A service sends to a queue only if the queue's policy lets it (EventBridge was let through) and its key's too."""
    allows = sqs.queue_policy_allows

    @functools.wraps(allows)
    def allows_with_key(queue_arn: str, service: str, source_arn: str, source_account: str) -> bool:
        return bool(
            allows(queue_arn, service, source_arn, source_account)
            and _key_lets_service(_key_of(queue_arn), service, source_arn, source_account)
        )

    invoke = eventbridge._invoke_target

    @functools.wraps(invoke)
    def invoked(target: Mapping[str, Any], event: Any, rule: Mapping[str, Any], view: Any = None) -> None:
        arn = target["Arn"]
        if ":sqs:" in arn and not allows_with_key(arn, "events.amazonaws.com", rule["Arn"], ACCOUNT):
            log.warning(
                "%s may not send to %s: the policy of the queue or of its key does not let it", rule["Arn"], arn
            )
            return
        invoke(target, event, rule, view)

    sqs.queue_policy_allows = allows_with_key
    eventbridge._invoke_target = invoked


def _key_lets_service(key: Mapping[str, Any] | None, service: str, source_arn: str, source_account: str) -> bool:
    if key is None:
        return True
    source = {"aws:sourcearn": source_arn, "aws:sourceaccount": source_account}
    return all(
        iam_evaluator.evaluate_resource_policy(
            key["Policy"], _context("*", "Service", action, key["Arn"], source), service=service
        ).decision
        == "Allow"
        for action in ("kms:GenerateDataKey", "kms:Decrypt")
    )


def _hold_callers_to_keys() -> None:
    enforce = iam_evaluator.enforce

    @functools.wraps(enforce)
    def enforced(
        access_key: str,
        action: str,
        service: str,
        region: str,
        resource_arn: str = "*",
        service_context: Mapping[str, Any] | None = None,
    ) -> Any:
        denied = enforce(access_key, action, service, region, resource_arn, service_context)
        if denied is None and action in KEY_ACTIONS and (key := _key_of(resource_arn)) is not None:
            for needed in KEY_ACTIONS[action]:
                denied = denied or enforce(access_key, needed, "kms", region, key["Arn"], _via(service))
        return denied

    iam_evaluator.enforce = enforced


def _hold_mappings_to_roles() -> None:
    handler = provisioners._RESOURCE_HANDLERS["AWS::Lambda::EventSourceMapping"]
    create = handler["create"]

    @functools.wraps(create)
    def created(logical_id: str, properties: Mapping[str, Any], stack: str) -> Any:
        _check_mapping(properties["FunctionName"], properties["EventSourceArn"])
        return create(logical_id, properties, stack)

    by_api = lambda_svc._create_esm

    @functools.wraps(by_api)
    def created_by_api(data: Mapping[str, Any]) -> Any:
        try:
            _check_mapping(data["FunctionName"], data["EventSourceArn"])
        except NotAllowed as error:
            return lambda_svc._invalid_parameter_value(str(error))
        return by_api(data)

    provisioners._RESOURCE_HANDLERS["AWS::Lambda::EventSourceMapping"] = {**handler, "create": created}
    lambda_svc._create_esm = created_by_api


class NotAllowed(Exception):
    """AWS would refuse this; the message is AWS's."""


def _check_mapping(function: str, queue_arn: str) -> None:
    """Raise NotAllowed for a mapping that Lambda refuses, or that would never deliver for want of the key."""
    record, config, name = lambda_svc._get_func_record_for_ref(function)
    queue = sqs._queue_by_arn(queue_arn)
    if record is None or queue is None:
        raise NotAllowed(f"no function {function} or no queue {queue_arn}")
    if int(queue["attributes"]["VisibilityTimeout"]) < int(config["Timeout"]):
        raise NotAllowed(
            f"Queue visibility timeout: {queue['attributes']['VisibilityTimeout']} seconds is less than Function "
            f"timeout: {config['Timeout']} seconds"
        )
    role = config["Role"].rsplit("/", 1)[-1]
    needs = [(action, queue_arn) for action in MAPPING_ACTIONS]
    if (key := _key_of(queue_arn)) is not None:
        needs.append(("kms:Decrypt", key["Arn"]))
    for action, resource in needs:
        if not _role_may(role, name, action, resource):
            raise NotAllowed(f"The function execution role does not have permissions to call {action} on {resource}")


def _role_may(role: str, session: str, action: str, resource: str) -> bool:
    caller = f"arn:aws:sts::{ACCOUNT}:assumed-role/{role}/{session}"
    context = _context(caller, "AssumedRole", action, resource, _via("sqs"))
    result = iam_evaluator.evaluate(context, iam_evaluator._gather_role_policies(role, ACCOUNT))
    service = action.split(":", 1)[0]
    if (found := iam_evaluator._resource_policy(service, resource)) is not None:
        result = iam_evaluator.combine_resource_policy(result, context, *found, required=service == "kms")
    return bool(result.decision == "Allow")


def _context(principal: str, kind: str, action: str, resource: str, keys: Mapping[str, str]) -> Any:
    return iam_evaluator.EvalContext(
        principal_arn=principal,
        principal_type=kind,
        principal_account="" if kind == "Service" else ACCOUNT,
        action=action,
        resource_arn=resource,
        region=REGION,
        secure_transport=True,
        service_context=dict(keys),
    )


def _via(service: str) -> dict[str, str]:
    return {"kms:viaservice": f"{service}.{REGION}.amazonaws.com", "kms:calleraccount": ACCOUNT}


def _key_of(arn: str) -> Mapping[str, Any] | None:
    """The customer key that the queue, topic, table or bucket is encrypted with, None for none."""
    service, name = arn.split(":")[2:3], arn.rsplit(":", 1)[-1]
    reference: str | None = None
    if service == ["sqs"] and (queue := sqs._queue_by_arn(arn)):
        reference = queue["attributes"].get("KmsMasterKeyId")
    elif service == ["sns"] and (topic := sns._topics.get(arn)):
        reference = topic["attributes"].get("KmsMasterKeyId")
    elif service == ["dynamodb"] and (table := dynamodb._tables.get(name.split("/")[1] if "/" in name else "")):
        reference = (table.get("SSEDescription") or {}).get("KMSMasterKeyArn")
    elif service == ["s3"] and (rules := s3._bucket_encryption.get(name.split("/")[0])):
        reference = next(iter(re.findall(r"<KMSMasterKeyID>([^<]+)<", rules)), None)
    if not reference:
        return None
    key: Mapping[str, Any] | None = kms._resolve_key(reference)
    if key is None:
        raise NotPlayed(f"{arn} is encrypted with {reference}, which is no key of the local cloud")
    return key


def _know_parameters_and_policies() -> None:
    """What AWS publishes: the ids of the ECS images, and the managed policies, from moto's copies of them."""
    images = Path(moto.__file__).parent / f"ssm/resources/ecs/optimized_amis/{REGION}.json"
    for parameter in convert_to_params(load_resource(str(images))):
        ssm._PUBLIC_AMI_PARAMETERS[parameter["Name"]] = parameter["Value"]
    look_up = iam._lookup_policy

    @functools.wraps(look_up)
    def looked_up(arn: str) -> Any:
        known = look_up(arn)
        name = arn.rsplit("/", 1)[-1]
        if known is None and (published := _published_policies().get(name)) is not None:
            path = f"{published['Path']}{name}".removeprefix("/")
            if arn == f"arn:aws:iam::aws:policy/{path}":
                known = iam._make_aws_managed_record(path, json.dumps(published["Document"]))
                iam._aws_managed_policies[arn] = known
        return known

    iam._lookup_policy = looked_up


@functools.cache
def _published_policies() -> Mapping[str, Any]:
    published: Mapping[str, Any] = json.loads(aws_managed_policies_data)
    return published


def _name_instance_profiles() -> None:
    """Ref of an instance profile is its name (ministack gives the ARN)."""
    handler = provisioners._RESOURCE_HANDLERS["AWS::IAM::InstanceProfile"]

    def arn_of(name: str) -> str:
        return str(iam._instance_profiles[name]["Arn"])

    def create(logical_id: str, properties: Any, stack: str) -> tuple[str, Any]:
        arn, attributes = handler["create"](logical_id, properties, stack)
        return arn.rsplit("/", 1)[-1], attributes

    def update(name: str, old: Any, new: Any, stack: str, logical_id: str) -> tuple[str, Any]:
        arn, attributes = handler["update"](arn_of(name), old, new, stack, logical_id)
        return arn.rsplit("/", 1)[-1], attributes

    def delete(name: str, properties: Any) -> None:
        handler["delete"](arn_of(name), properties)

    provisioners._RESOURCE_HANDLERS["AWS::IAM::InstanceProfile"] = {
        "create": create,
        "update": update,
        "update_with_logical_id": True,
        "delete": delete,
    }
