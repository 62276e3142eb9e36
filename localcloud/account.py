"""What an account that was used before has, and what its stacks tell of themselves. Knows ministack's names."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

from ministack.core.responses import request_scope
from ministack.services import cloudformation, ecr, iam

from localcloud.image import WORKER
from localcloud.world import ACCOUNT, REGION

LINKED_ROLES: Mapping[str, str] = {
    "autoscaling.amazonaws.com": "AWSServiceRoleForAutoScaling",
    "batch.amazonaws.com": "AWSServiceRoleForBatch",
    "imagebuilder.amazonaws.com": "AWSServiceRoleForImageBuilder",
    "ecs.amazonaws.com": "AWSServiceRoleForECS",
    "spot.amazonaws.com": "AWSServiceRoleForEC2Spot",
    "spotfleet.amazonaws.com": "AWSServiceRoleForEC2SpotFleet",
}
"""Service-linked roles by service, as AWS names them (IAM user guide; ministack derives a name of its own)."""


def install() -> None:
    """Make the roles, as the console does on first use; push the worker's image; have every stack tell its
    description.
    """
    _name_linked_roles()
    with request_scope(ACCOUNT, REGION):
        for service in LINKED_ROLES:
            iam._IAM_HANDLERS["CreateServiceLinkedRole"]({"AWSServiceName": [service]})
    push_image(WORKER)
    _tell_descriptions()


def push_image(name: str) -> None:
    """Let ECR know an image, `repository:tag`, as `docker push` does. There are no layers: nothing is pulled here."""
    repository, _, tag = name.partition(":")
    manifest = {"schemaVersion": 2, "layers": [], "annotations": {"org.opencontainers.image.ref.name": name}}
    with request_scope(ACCOUNT, REGION):
        ecr._create_repository({"repositoryName": repository})  # that it is there is fine
        ecr._put_image(
            {"repositoryName": repository, "imageTag": tag or "latest", "imageManifest": json.dumps(manifest)}
        )


def _name_linked_roles() -> None:
    create = iam._IAM_HANDLERS["CreateServiceLinkedRole"]

    @functools.wraps(create)
    def created(params: Mapping[str, Any]) -> Any:
        service = iam._p(params, "AWSServiceName")
        name = LINKED_ROLES.get(service)
        if name is None:
            message = f"the local cloud does not play the service-linked role of {service}"
            return iam._error(400, "NotPlayed", message, ns="iam")
        if name in iam._roles:
            message = f"Service role name {name} has been taken in this account, please try a different suffix."
            return iam._error(400, "InvalidInput", message, ns="iam")
        create(params)
        (made,) = [one for one in iam._roles.values() if one["Path"] == f"/aws-service-role/{service}/"]
        iam._roles[name] = iam._roles.pop(made["RoleName"])
        made["Arn"] = made["Arn"].replace(made["RoleName"], name)
        made["RoleName"] = name
        role = f"<CreateServiceLinkedRoleResult><Role>{iam._role_xml(name)}</Role></CreateServiceLinkedRoleResult>"
        return iam._xml(200, "CreateServiceLinkedRoleResponse", role, ns="iam")

    iam._IAM_HANDLERS["CreateServiceLinkedRole"] = created


def _tell_descriptions() -> None:
    """A stack made by a change set has its template's description too (ministack leaves it empty)."""
    describe = cloudformation._ACTION_HANDLERS["DescribeStacks"]

    @functools.wraps(describe)
    def described(params: Mapping[str, Any]) -> Any:
        for stack in cloudformation._stacks.values():
            stack["Description"] = (stack.get("_template") or {}).get("Description", "")
        return describe(params)

    cloudformation._ACTION_HANDLERS["DescribeStacks"] = described
