"""Who may do what, who may come in, and what is tied to one account, region or partition."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from judges.filled import reference
from judges.rules.stack import Objection, Rule, Stack, listed, strings

ANYWHERE = {"0.0.0.0/0", "::/0"}
REGION = re.compile(r"(?<![\w.-])[a-z]{2}(-gov)?-(north|south|east|west|central)[a-z]*-\d[a-f]?(?![\w.-])")
ACCOUNT = re.compile(r"(?<=:)\d{12}(?=:)")
PARTITION = re.compile(r"arn:aws[\w-]*:")
DOMAIN = re.compile(r"\b(amazonaws\.com|aws\.amazon\.com)\b")
NAME_OF_SERVICE = re.compile(r"(^|aws-service-role/)[a-z0-9-]+\.amazonaws\.com(?=$|/)")
"""Principals, and the roles linked to them, are called so in every partition."""
OPERATORS = {"Tags", "TagSpecifications", "SPINDRIFT_OPTIONS", "SPINDRIFT_PROCESSOR"}
"""What is in these is the operator's own text."""
ENCRYPTION = {
    "DynamoDB::Table": "SSESpecification",
    "S3::Bucket": "BucketEncryption",
    "SNS::Topic": "KmsMasterKeyId",
}
NAMED_ROLES = {"IAM::Role": "RoleName", "IAM::ManagedPolicy": "ManagedPolicyName", "IAM::User": "UserName"}


def statements(stack: Stack) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every statement of what an identity may do."""
    for title, properties in stack.of("IAM::Role", "IAM::Policy", "IAM::ManagedPolicy", "IAM::RolePolicy"):
        inner = [policy.get("PolicyDocument", {}) for policy in properties.get("Policies", ())]
        for document in (properties.get("PolicyDocument", {}), *inner):
            for statement in listed(document.get("Statement")):
                yield title, statement


def actions_are_named(stack: Stack) -> Iterator[Objection]:
    """A wildcard allows tomorrow what nobody has read today."""
    for title, statement in statements(stack):
        if "NotAction" in statement or "NotResource" in statement:
            yield title, "NotAction and NotResource allow all but what is named"
        for action in listed(statement.get("Action")):
            if "*" in action and statement.get("Effect") == "Allow":
                yield title, f"{action}: actions must be named"


def roles_have_no_names(stack: Stack) -> Iterator[Objection]:
    """A named role wants CAPABILITY_NAMED_IAM and stands in the way of a second stack."""
    for kind, key in NAMED_ROLES.items():
        for title, properties in stack.of(kind):
            if key in properties:
                yield title, f"{key} must be left out: the stack is deployed with CAPABILITY_IAM"


def at_home_in_every_partition(stack: Stack) -> Iterator[Objection]:
    """arn:aws, amazonaws.com, a region or an account in a template is wrong in all others."""
    parts = {**stack.resources, **stack.template.get("Outputs", {})}
    for title, body in parts.items():
        for path, text in strings(_without_operators(body)):
            place = "/".join(path)
            for what, pattern in (("partition", PARTITION), ("account", ACCOUNT), ("region", REGION)):
                if found := pattern.search(text):
                    yield title, f"{place}: the {what} is fixed ({found[0]})"
            if DOMAIN.search(NAME_OF_SERVICE.sub("", text)):
                yield title, f"{place}: the domain is fixed ({text[:80]}); use AWS::URLSuffix or a mapping"


def _without_operators(body: Any) -> Any:
    if isinstance(body, list):
        return [_without_operators(item) for item in body]
    if not isinstance(body, dict):
        return body
    if str(body.get("Name")) in OPERATORS:
        return {}
    return {key: _without_operators(value) for key, value in body.items() if key not in OPERATORS}


def nobody_comes_in(stack: Stack) -> Iterator[Objection]:
    """Instances have no inbound rule at all, and nothing is open to everybody."""
    of_instances = {
        reference(group)
        for _, properties in stack.of("EC2::LaunchTemplate")
        for group in properties.get("LaunchTemplateData", {}).get("SecurityGroupIds", ())
    }
    for title, properties in stack.of("EC2::SecurityGroup"):
        rules = properties.get("SecurityGroupIngress", ())
        if rules and title in of_instances:
            yield title, "inbound rules on instances: nothing has to come in"
        for rule in rules:
            if ANYWHERE & {rule.get("CidrIp"), rule.get("CidrIpv6")}:
                yield title, f"open to everybody: {rule}"
    for title, properties in stack.of("EC2::SecurityGroupIngress"):
        if reference(properties.get("GroupId")) in of_instances or ANYWHERE & {properties.get("CidrIp")}:
            yield title, "an inbound rule on instances, or one for everybody"


def buckets_speak_tls(stack: Stack) -> Iterator[Objection]:
    """Each bucket refuses what does not come by TLS."""
    closed = set()
    for _, properties in stack.of("S3::BucketPolicy"):
        for statement in listed(properties.get("PolicyDocument", {}).get("Statement")):
            said = statement.get("Condition", {}).get("Bool", {}).get("aws:SecureTransport")
            if statement.get("Effect") == "Deny" and str(said).lower() == "false":
                closed.add(reference(properties.get("Bucket")))
    for title, _ in stack.of("S3::Bucket"):
        if title not in closed:
            yield title, "no bucket policy that denies what does not come by TLS (aws:SecureTransport)"


def everything_is_encrypted(stack: Stack) -> Iterator[Objection]:
    """Where the stack has a key of its own, it is used; where not, queues say that SQS encrypts."""
    keys = {title for title, _ in stack.of("KMS::Key")}
    for title, properties in stack.of("SQS::Queue"):
        by_sqs = not keys and properties.get("SqsManagedSseEnabled") is True
        if reference(properties.get("KmsMasterKeyId")) not in keys and not by_sqs:
            yield title, "not encrypted by the stack's key, nor (without one) by SQS"
    for kind, part in ENCRYPTION.items():
        for title, properties in stack.of(kind):
            used = {title for path, title in strings(properties.get(part)) if title in keys}
            if keys and not used:
                yield title, f"{part} does not name the stack's key"


def keys_know_their_users(stack: Stack) -> Iterator[Objection]:
    """A wildcard for a principal is a door for all accounts, unless a condition names who, and of which account."""
    for title, properties in stack.of("KMS::Key"):
        for statement in listed(properties.get("KeyPolicy", {}).get("Statement")):
            principal = statement.get("Principal")
            named = {key for test in statement.get("Condition", {}).values() for key in test}
            anybody = principal == "*" or (isinstance(principal, dict) and "*" in listed(principal.get("AWS")))
            if anybody and not {"aws:PrincipalArn", "kms:CallerAccount"} <= named:
                yield title, "its policy is for everybody: aws:PrincipalArn and kms:CallerAccount must say who"


RULES: tuple[Rule, ...] = (
    actions_are_named,
    everything_is_encrypted,
    keys_know_their_users,
    roles_have_no_names,
    at_home_in_every_partition,
    nobody_comes_in,
    buckets_speak_tls,
)
