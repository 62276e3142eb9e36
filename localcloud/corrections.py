"""Where ministack is kinder or looser than AWS, and the clock of its schedules. Knows ministack's names."""

from __future__ import annotations

import functools
import json
import logging
import re
import uuid
from collections.abc import Mapping
from typing import Any

from ministack.core import iam_actions
from ministack.services import eventbridge, iam, lambda_svc, sns, sqs, ssm
from ministack.services.cloudformation import engine, provisioners, stacks
from moto.iam.aws_managed_policies import aws_managed_policies_data

from localcloud import permissions, published
from localcloud.world import ACCOUNT, World

log = logging.getLogger(__name__)

TICK_SECONDS = 1.0
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
    permissions.install(world)
    _hold_services_to_policies()
    _hold_mappings_to_roles()
    _know_parameters_and_policies()
    _name_instance_profiles()
    _await_confirmation()
    _order_by_metadata()


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
    """A service sends to a queue or a topic only if its policy and its key's let it (EventBridge was let through)."""
    allows = sqs.queue_policy_allows

    @functools.wraps(allows)
    def allows_with_key(queue_arn: str, service: str, source_arn: str, source_account: str) -> bool:
        return bool(
            allows(queue_arn, service, source_arn, source_account)
            and permissions.key_lets_service(queue_arn, service, source_arn)
        )

    invoke = eventbridge._invoke_target

    @functools.wraps(invoke)
    def invoked(target: Mapping[str, Any], event: Any, rule: Mapping[str, Any], view: Any = None) -> None:
        arn, service = target["Arn"], "events.amazonaws.com"
        if (
            (":sqs:" in arn and not allows_with_key(arn, service, rule["Arn"], ACCOUNT))
            or (":sns:" in arn and not permissions.topic_lets_service(arn, service, rule["Arn"]))
            or (":lambda:" in arn and not permissions.function_lets_service(arn, service, rule["Arn"]))
        ):
            log.warning("%s may not send to %s: its policy or its key's does not let it", rule["Arn"], arn)
            return
        invoke(target, event, rule, view)

    sqs.queue_policy_allows = allows_with_key
    eventbridge._invoke_target = invoked


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
    needs = [(action, queue_arn) for action in MAPPING_ACTIONS]
    if (key := permissions.key_of(queue_arn)) is not None:
        needs.append(("kms:Decrypt", key["Arn"]))
    for action, resource in needs:
        if not permissions.role_may(config["Role"], name, action, resource, permissions.via("sqs")):
            raise NotAllowed(f"The function execution role does not have permissions to call {action} on {resource}")


def _know_parameters_and_policies() -> None:
    """What AWS publishes: the ids of the ECS images, and the managed policies, from moto's copies of them."""
    ssm._PUBLIC_AMI_PARAMETERS.update(published.ecs_parameters())
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


def _await_confirmation() -> None:
    """A mail address is asked first: its subscription is pending until somebody clicks, which nobody does here."""

    def pending(create: Any) -> Any:
        @functools.wraps(create)
        def created(*arguments: Any, **keywords: Any) -> Any:
            made = create(*arguments, **keywords)
            for topic in sns._topics.values():
                for one in topic["subscriptions"]:
                    if one["protocol"].startswith("email") and not one.get("token"):
                        one.update(confirmed=False, token=uuid.uuid4().hex)
                        one["attributes"]["PendingConfirmation"] = "true"
            return made

        return created

    for kind in ("AWS::SNS::Topic", "AWS::SNS::Subscription"):
        handler = provisioners._RESOURCE_HANDLERS[kind]
        verbs = {verb: pending(handler[verb]) for verb in ("create", "update")}
        provisioners._RESOURCE_HANDLERS[kind] = {**handler, **verbs}

    def unnamed(show: Any) -> Any:
        @functools.wraps(show)
        def shown(params: Any) -> Any:
            status, headers, body = show(params)
            for topic in sns._topics.values():
                for one in topic["subscriptions"]:
                    if not one["confirmed"]:
                        body = body.replace(one["arn"].encode(), b"PendingConfirmation")
            return status, headers, body

        return shown

    for name in ("_list_subscriptions", "_list_subscriptions_by_topic"):
        setattr(sns, name, unnamed(getattr(sns, name)))


def _order_by_metadata() -> None:
    """A reference in a resource's metadata is a dependency like any other."""
    extract = engine._extract_deps

    @functools.wraps(extract)
    def extracted(resource: Mapping[str, Any], names: set[str]) -> Any:
        told = {name for name, _ in engine._intrinsic_references(resource.get("Metadata", {}))}
        return extract(resource, names) | (told & names)

    engine._extract_deps = stacks._extract_deps = extracted
