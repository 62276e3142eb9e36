"""Who may do what: identity, resource and key policies held against a need, and the record of every decision.

What callers ask for themselves ministack puts to `enforce`; what a service of AWS asks in a role's name (Lambda for its
event sources and logs, the ECS agent for images and shared files, Spot Fleet for its launches) is put to `role_may`
here. Every distinct answer to an assumed role is a line of iam.jsonl in the state folder. Knows ministack's names.
"""

from __future__ import annotations

import functools
import json
import re
import threading
from collections.abc import Mapping
from typing import Any

from ministack.core import iam_evaluator
from ministack.core.responses import request_scope
from ministack.services import dynamodb, kms, lambda_svc, s3, sns, sqs, sts

from localcloud import substrate
from localcloud.formation import NotPlayed
from localcloud.world import ACCOUNT, REGION, World

KEY_ACTIONS: Mapping[str, tuple[str, ...]] = {
    "sqs:SendMessage": ("kms:GenerateDataKey", "kms:Decrypt"),
    "sqs:ReceiveMessage": ("kms:Decrypt",),
    "sns:Publish": ("kms:GenerateDataKey", "kms:Decrypt"),
    "s3:PutObject": ("kms:GenerateDataKey",),
    "s3:GetObject": ("kms:Decrypt",),
    "s3:GetObjectVersion": ("kms:Decrypt",),
    **{
        f"dynamodb:{operation}": ("kms:Decrypt",)
        for operation in ("PutItem", "GetItem", "UpdateItem", "DeleteItem", "Query", "Scan", "BatchGetItem")
    },
}
"""What a caller needs of the customer key of the thing that it uses (developer guides of the five services)."""


class Decisions:
    """Every answer to an assumed role: `{"principal", "action", "resource", "allowed"}`, each once."""

    def __init__(self, world: World) -> None:
        self._file = world.state / "iam.jsonl"
        self._known: set[tuple[str, str, str, bool]] = set()
        self._lock = threading.Lock()

    def note(self, role: str, action: str, resource: str, allowed: bool) -> None:
        """Write the answer down, unless it is there."""
        line = (role, action, resource, allowed)
        with self._lock:
            if line in self._known:
                return
            self._known.add(line)
            told = dict(zip(("principal", "action", "resource", "allowed"), line, strict=True))
            with self._file.open("a") as file:
                file.write(json.dumps(told) + "\n")


_kept: list[Decisions] = []


def install(world: World) -> None:
    """Hold callers to the keys of what they use, and write every decision down."""
    _kept[:] = [Decisions(world)]
    enforce = iam_evaluator.enforce

    def asked(access_key: str, action: str, *rest: Any) -> Any:
        denied = enforce(access_key, action, *rest)
        if (role := _role_of(access_key)) and not isinstance(denied, iam_evaluator.AuthError):
            _note(role, action, rest[2], denied is None)
        return denied

    @functools.wraps(enforce)
    def enforced(
        access_key: str,
        action: str,
        service: str,
        region: str,
        resource_arn: str = "*",
        service_context: Mapping[str, Any] | None = None,
    ) -> Any:
        denied = asked(access_key, action, service, region, resource_arn, service_context)
        if denied is None and not _endpoint_lets(access_key, action, service, resource_arn):
            denied = iam_evaluator.EvalResult("ImplicitDeny", "", "", "no VPC endpoint policy allows it")
        if denied is None and action in KEY_ACTIONS and (key := key_of(resource_arn)) is not None:
            for needed in KEY_ACTIONS[action]:
                denied = denied or asked(access_key, needed, "kms", region, key["Arn"], via(service))
        return denied

    iam_evaluator.enforce = enforced


def _endpoint_lets(access_key: str, action: str, service: str, resource: str) -> bool:
    """Whether the policy of the VPC endpoint that the call came through, if any, lets it pass."""
    way = substrate.way_of(access_key)
    policy = way.policy(service) if way else None
    if not policy:
        return True
    arn = str((sts._sessions.get(access_key) or {}).get("Arn", ""))
    return policy_lets(policy, arn, action, resource, {})


def _role_of(access_key: str) -> str:
    """Name of the role that the key is a session of, "" for any other caller."""
    arn = str((sts._sessions.get(access_key) or {}).get("Arn", ""))
    return arn.split("/")[1] if ":assumed-role/" in arn else ""


def _note(role: str, action: str, resource: str, allowed: bool) -> None:
    for decisions in _kept:
        decisions.note(role, action, resource, allowed)


def role_may(
    role_arn: str, session: str, action: str, resource: str = "*", keys: Mapping[str, str] | None = None
) -> bool:
    """Whether a role may do what a service of AWS is about to do in its name. `keys`: condition keys, lower case."""
    role = role_arn.rsplit("/", 1)[-1]
    caller = f"arn:aws:sts::{ACCOUNT}:assumed-role/{role}/{session}"
    with request_scope(ACCOUNT, REGION):
        context = _context(caller, "AssumedRole", action, resource, keys or {})
        result = iam_evaluator.evaluate(context, iam_evaluator._gather_role_policies(role, ACCOUNT))
        service = action.split(":", 1)[0]
        if (found := iam_evaluator._resource_policy(service, resource)) is not None:
            result = iam_evaluator.combine_resource_policy(result, context, *found, required=service == "kms")
    _note(role, action, resource, result.decision == "Allow")
    return bool(result.decision == "Allow")


def auto_scaling_may_publish(topic_arn: str) -> bool:
    """Whether Auto Scaling's service-linked role may publish: unless the topic's policy denies it, and if the key's
    policy names the role, which nobody can give a permission of its own (SNS developer guide, "Key management").
    """
    caller = f"arn:aws:iam::{ACCOUNT}:role/aws-service-role/autoscaling.amazonaws.com/AWSServiceRoleForAutoScaling"
    topic, key = sns._topics.get(topic_arn), key_of(topic_arn)
    if topic is None:
        return False
    context = _context(caller, "AssumedRole", "sns:Publish", topic_arn, {})
    denied = iam_evaluator.evaluate_resource_policy(topic["attributes"].get("Policy"), context).decision == "Deny"
    if denied or key is None:
        return not denied
    named = [
        iam_evaluator.evaluate_resource_policy(
            key["Policy"], _context(caller, "AssumedRole", action, key["Arn"], via("sns")), named_only=True
        ).decision
        for action in ("kms:GenerateDataKey", "kms:Decrypt")
    ]
    return set(named) == {"Allow"}


def file_system_lets(system: Mapping[str, Any], caller: tuple[str, str], action: str, keys: Mapping[str, str]) -> bool:
    """Whether a client may do something with a file system: `caller` is its role's ARN and session, or two times "".

    An Allow in the role's policies or in the file system's suffices, a Deny in either refuses; a file system without
    a policy refuses nobody (EFS User Guide, "Using IAM to control access to file systems").
    """
    arn, policy = system["FileSystemArn"], json.loads(system.get("FileSystemPolicy") or "{}")
    role, session = caller
    own = bool(role) and role_may(role, session, action, arn, keys)
    if not policy:
        return True
    name = f"arn:aws:sts::{ACCOUNT}:assumed-role/{role.rsplit('/', 1)[-1]}/{session}" if role else ""
    context = _context(name, "AssumedRole" if name else "Anonymous", action, arn, keys)
    # Such a policy is about its file system, whether it says so or not.
    statements = [{"Resource": arn, **statement} for statement in policy["Statement"]]
    decision = iam_evaluator.evaluate_resource_policy({"Statement": statements}, context).decision
    return bool(decision == "Allow" or (own and decision != "Deny"))


def policy_lets(policy: Any, caller: str, action: str, resource: str, keys: Mapping[str, str]) -> bool:
    """Whether a policy lets a caller in: an ARN, or "" for a caller that gave no name."""
    context = _context(caller, "AssumedRole" if caller else "Anonymous", action, resource, keys)
    return bool(iam_evaluator.evaluate_resource_policy(policy, context).decision == "Allow")


def service_may(service: str, action: str, policy: Any, resource: str, source_arn: str | None) -> bool:
    """Whether a resource's policy lets a service of AWS do something for a resource of the account, if it names one."""
    keys = {"aws:sourcearn": source_arn, "aws:sourceaccount": ACCOUNT} if source_arn else {}
    context = _context("*", "Service", action, resource, keys)
    return bool(iam_evaluator.evaluate_resource_policy(policy, context, service=service).decision == "Allow")


def key_lets_service(arn: str, service: str, source_arn: str) -> bool:
    """Whether a service may write to a queue or topic as far as its key is concerned; without one it may.

    AWS's own key lets no other service in, whoever asks (SNS and SQS developer guides, "Key management").
    """
    if "alias/aws/" in _key_reference(arn):
        return False
    key = key_of(arn)
    return key is None or all(
        service_may(service, action, key["Policy"], key["Arn"], source_arn)
        for action in ("kms:GenerateDataKey", "kms:Decrypt")
    )


def function_lets_service(function_arn: str, service: str, source_arn: str) -> bool:
    """Whether a service of AWS may invoke the function: its policy must say so."""
    function = lambda_svc._get_func_record_for_ref(function_arn)[0]
    return function is not None and service_may(
        service, "lambda:InvokeFunction", function["policy"], function_arn, source_arn
    )


def topic_lets_service(topic_arn: str, service: str, source_arn: str) -> bool:
    """Whether a service of AWS may publish to the topic: its policy and its key must both let it.

    The policy that a topic is born with lets in what publishes in the owner's own name, which is how CloudWatch and
    Auto Scaling come; EventBridge and Budgets need a statement (SNS developer guide, "Policy document overview").
    """
    topic = sns._topics.get(topic_arn)
    if topic is None:
        return False
    policy = topic["attributes"].get("Policy", "")
    if "__default_policy_ID" in policy:
        lets = service in ("cloudwatch.amazonaws.com", "autoscaling.amazonaws.com")
    else:
        # EventBridge names no source to a topic (EventBridge User Guide, "Amazon SNS permissions").
        source = None if service == "events.amazonaws.com" else source_arn
        lets = service_may(service, "sns:Publish", policy, topic_arn, source)
    return lets and key_lets_service(topic_arn, service, source_arn)


def via(service: str) -> dict[str, str]:
    """Condition keys of a key's use through another service."""
    return {"kms:viaservice": f"{service}.{REGION}.amazonaws.com", "kms:calleraccount": ACCOUNT}


def key_of(arn: str) -> Mapping[str, Any] | None:
    """The customer key that the queue, topic, table or bucket is encrypted with, None for none."""
    reference = _key_reference(arn)
    if not reference or "alias/aws/" in reference:
        return None
    key: Mapping[str, Any] | None = kms._resolve_key(reference)
    if key is None:
        raise NotPlayed(f"{arn} is encrypted with {reference}, which is no key of the local cloud")
    return key


def _key_reference(arn: str) -> str:
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
    return reference or ""


def _context(principal: str, kind: str, action: str, resource: str, keys: Mapping[str, str]) -> Any:
    return iam_evaluator.EvalContext(
        principal_arn=principal,
        principal_type=kind,
        principal_account="" if kind == "Service" else ACCOUNT,
        action=action,
        resource_arn=resource,
        region=REGION,
        secure_transport=keys.get("aws:securetransport", "true") == "true",
        service_context=dict(keys),
    )
