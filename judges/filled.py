"""A template as CloudFormation reads it on deployment: conditions decided, references filled in.

What only AWS knows (ids, generated names) gets a stand-in of the right form, so that a policy, a script or an ARN can
be judged as what it will be.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from judges import Template

REGION = "eu-west-1"
ACCOUNT = "111122223333"
STACK = "spindrift"
PSEUDO: dict[str, Any] = {
    "AWS::AccountId": ACCOUNT,
    "AWS::Partition": "aws",
    "AWS::Region": REGION,
    "AWS::StackId": f"arn:aws:cloudformation:{REGION}:{ACCOUNT}:stack/{STACK}/0a1b2c3d",
    "AWS::StackName": STACK,
    "AWS::URLSuffix": "amazonaws.com",
    "AWS::NotificationARNs": [],
}
NO_VALUE = {"Ref": "AWS::NoValue"}
ARNS = {
    "AWS::ApplicationAutoScaling::ScalingPolicy": "autoscaling:{here}:scalingPolicy:0a1b:resource/ecs/{name}",
    "AWS::AutoScaling::AutoScalingGroup": "autoscaling:{here}:autoScalingGroup:0a1b:autoScalingGroupName/{name}",
    "AWS::AutoScaling::ScalingPolicy": "autoscaling:{here}:scalingPolicy:0a1b:autoScalingGroupName/g:policyName/{name}",
    "AWS::CloudWatch::Alarm": "cloudwatch:{here}:alarm:{name}",
    "AWS::DynamoDB::Table": "dynamodb:{here}:table/{name}",
    "AWS::ECS::Cluster": "ecs:{here}:cluster/{name}",
    "AWS::ECS::Service": "ecs:{here}:service/Cluster/{name}",
    "AWS::ECS::TaskDefinition": "ecs:{here}:task-definition/{name}:1",
    "AWS::EFS::AccessPoint": "elasticfilesystem:{here}:access-point/fsap-0123456789abcdef0",
    "AWS::EFS::FileSystem": "elasticfilesystem:{here}:file-system/fs-0123456789abcdef0",
    "AWS::Events::Rule": "events:{here}:rule/{name}",
    "AWS::IAM::InstanceProfile": "iam::{account}:instance-profile/{name}",
    "AWS::IAM::Role": "iam::{account}:role/{name}",
    "AWS::KMS::Key": "kms:{here}:key/01234567-89ab-cdef-0123-456789abcdef",
    "AWS::Lambda::Function": "lambda:{here}:function:{name}",
    # A log group's Arn ends in its streams (CloudFormation's reference, AWS::Logs::LogGroup).
    "AWS::Logs::LogGroup": "logs:{here}:log-group:{name}:*",
    "AWS::S3::Bucket": "s3:::{name}",
    "AWS::SNS::Topic": "sns:{here}:{name}",
    "AWS::SQS::Queue": "sqs:{here}:{name}",
}
"""What follows `arn:aws:` for the types whose ARNs stand in policies (Service Authorization Reference)."""
REF_IS_ARN = {
    "AWS::AutoScaling::ScalingPolicy",
    "AWS::ApplicationAutoScaling::ScalingPolicy",
    "AWS::ECS::Service",
    "AWS::ECS::TaskDefinition",
    "AWS::SNS::Topic",
}
IDS = {
    "AWS::EC2::LaunchTemplate": "lt-0123456789abcdef0",
    "AWS::EC2::SecurityGroup": "sg-0123456789abcdef0",
    "AWS::EC2::SpotFleet": "sfr-01234567-89ab-cdef-0123-456789abcdef",
    "AWS::EC2::Subnet": "subnet-0123456789abcdef0",
    "AWS::EC2::VPC": "vpc-0123456789abcdef0",
    "AWS::EFS::AccessPoint": "fsap-0123456789abcdef0",
    "AWS::EFS::FileSystem": "fs-0123456789abcdef0",
    "AWS::KMS::Key": "01234567-89ab-cdef-0123-456789abcdef",
}
"""What Ref gives where it is neither a name nor an ARN."""


def settled(template: Template, holds: bool) -> Template:
    """The template with every condition true, or every one false: no Fn::If, and no resource that is then not made."""

    def settle(value: Any) -> Any:
        if isinstance(value, list):
            return [item for item in map(settle, value) if item != NO_VALUE]
        if not isinstance(value, dict):
            return value
        if "Fn::If" in value:
            return settle(value["Fn::If"][1 if holds else 2])
        return {key: done for key, inner in value.items() if (done := settle(inner)) != NO_VALUE}

    made = {
        part: {title: body for title, body in template.get(part, {}).items() if holds or "Condition" not in body}
        for part in ("Resources", "Outputs")
    }
    return {key: settle(made.get(key, value)) for key, value in template.items() if key != "Conditions"}


def filled(template: Template, value: Any, given: Mapping[str, Any] | None = None) -> Any:
    """The value with every intrinsic function worked out. `given` are parameters and pseudo parameters of your own."""
    return _Filling(template, {**PSEUDO, **(given or {})})(value)


def reference(value: Any) -> str:
    """The title of the resource that a Ref or a Fn::GetAtt speaks of; empty when it is neither."""
    if not isinstance(value, dict) or len(value) != 1:
        return ""
    said = value.get("Ref") or value.get("Fn::GetAtt") or ""
    return (said[0] if isinstance(said, list) else str(said)).partition(".")[0]


class _Filling:
    """One template and what is known beside it."""

    def __init__(self, template: Template, known: Mapping[str, Any]) -> None:
        self.template = template
        self.known = known

    def __call__(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self(item) for item in value if item != NO_VALUE]
        if not isinstance(value, dict):
            return value
        if len(value) == 1:
            ((name, said),) = value.items()
            work = self.FUNCTIONS.get(name)
            if work is not None:
                return work(self, said)
        return {key: self(inner) for key, inner in value.items() if inner != NO_VALUE}

    def _ref(self, name: str) -> Any:
        if name in self.known:
            return self.known[name]
        if name in self.template.get("Parameters", {}):
            return _parameter(name, self.template["Parameters"][name])
        body = self.template.get("Resources", {}).get(name, {})
        kind, named = body.get("Type", ""), self._name(name)
        if kind in REF_IS_ARN:
            return self._get_att(f"{name}.Arn")
        if kind == "AWS::SQS::Queue":
            return f"https://sqs.{REGION}.amazonaws.com/{ACCOUNT}/{named}"
        return IDS.get(kind, named)

    def _get_att(self, said: Any) -> Any:
        title, _, attribute = (said if isinstance(said, str) else ".".join(map(str, said))).partition(".")
        kind = self.template.get("Resources", {}).get(title, {}).get("Type", "")
        if kind in ARNS and attribute.lower().endswith("arn"):
            return "arn:aws:" + ARNS[kind].format(here=f"{REGION}:{ACCOUNT}", account=ACCOUNT, name=self._name(title))
        if attribute.endswith("VersionNumber"):
            return "1"
        if attribute.endswith("Name"):
            return self._name(title)
        return IDS.get(kind, f"{title}.{attribute}")

    def _name(self, title: str) -> str:
        """The name that the template gives a resource, or one as CloudFormation makes them."""
        body = self.template.get("Resources", {}).get(title, {})
        last = body.get("Type", "").rpartition("::")[2]
        chosen = body.get("Properties", {}).get(f"{last}Name")
        name = self(chosen) if chosen is not None else f"{STACK}-{title}-0A1B2C3D"
        return str(name).lower() if last == "Bucket" else str(name)

    def _sub(self, said: Any) -> str:
        text, own = said if isinstance(said, list) else (said, {})

        def place(found: re.Match[str]) -> str:
            name = found[1]
            if name.startswith("!"):
                return f"${{{name[1:]}}}"
            if name in own:
                return str(self(own[name]))
            return str(self._get_att(name) if "." in name else self._ref(name))

        return re.sub(r"\$\{([!\w:.]+)\}", place, text)

    def _find_in_map(self, said: Any) -> Any:
        table, key, name = (self(part) for part in said[:3])
        return self(self.template.get("Mappings", {}).get(table, {}).get(key, {}).get(name, ""))

    def _select(self, said: Any) -> Any:
        place, items = int(self(said[0])), self(said[1])
        return items[place] if isinstance(items, list) and place < len(items) else f"item-{place}"

    FUNCTIONS: ClassVar[dict[str, Callable[..., Any]]] = {
        "Ref": _ref,
        "Fn::GetAtt": _get_att,
        "Fn::Sub": _sub,
        "Fn::FindInMap": _find_in_map,
        "Fn::Select": _select,
        "Fn::Base64": __call__,
        "Fn::If": lambda self, said: self(said[1]),
        "Fn::Join": lambda self, said: str(said[0]).join(str(part) for part in self(said[1])),
        "Fn::Split": lambda self, said: str(self(said[1])).split(said[0]),
        "Fn::GetAZs": lambda _, __: [f"{REGION}{letter}" for letter in "abc"],
        "Fn::ImportValue": lambda self, said: self(said),
    }


def _parameter(name: str, body: Mapping[str, Any]) -> Any:
    kind = body.get("Type", "String")
    if "AWS::EC2::Image::Id" in kind:
        return "ami-0123456789abcdef0"
    default = body.get("Default", "1" if kind == "Number" else name.lower())
    return str(default).split(",") if "List" in kind else default
