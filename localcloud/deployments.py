"""Stacks as CloudFormation makes and deletes them: our resources, refusals, and what ministack leaves out.

Knows ministack's names.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Mapping
from typing import Any

from ministack import app
from ministack.core.responses import request_scope
from ministack.services import cloudformation
from ministack.services.cloudformation import provisioners, stacks

from localcloud import ledger, substrate, wire
from localcloud.formation import Guard, Resource
from localcloud.world import ACCOUNT, REGION, World

HELD_SECONDS = 50.0
"""How long an answer is held back: the stock command line would wait for a minute, and look again every half."""
IN_THE_WAY_SECONDS = 300.0
"""AWS's time that CloudFormation tries again to delete what is still in use."""


class InTheWay(Exception):
    """Something else still needs what was to be deleted; the message is AWS's."""


def install(world: World, resources: Mapping[str, Resource], guards: Mapping[str, Guard]) -> None:
    """Put our resources among ministack's, and refuse what AWS would refuse."""
    _install_resources(resources)
    _install_ledger(ours=resources)
    _install_guards({**guards, "AWS::S3::Bucket": _objects_left}, world)
    _remember_deployments()
    _hold_deployments()


def _install_resources(resources: Mapping[str, Resource]) -> None:
    for kind, resource in resources.items():
        provisioners._RESOURCE_HANDLERS[kind] = {
            "create": resource.create,
            "update": resource.update,
            "delete": resource.delete,
        }
    threaded = stacks._runs_on_worker_thread
    # ministack makes most resources on its event loop; what calls the API or waits would stop the whole cloud there.
    stacks._runs_on_worker_thread = lambda kind: kind in resources or kind in ledger.SUPPLIED or threaded(kind)


def _install_ledger(ours: Mapping[str, Resource]) -> None:
    provision, change = provisioners._provision_resource, provisioners._update_resource

    def created(kind: str, logical_id: str, properties: dict[str, Any], stack: str) -> tuple[str, dict[str, Any]]:
        if kind not in ours:
            ledger.hold(kind, properties)
        physical_id, attributes = provision(kind, logical_id, properties, stack)
        ledger.supply(substrate.operator, kind, physical_id, {}, properties)
        return physical_id, attributes

    def updated(
        kind: str, physical_id: str, old: dict[str, Any], new: dict[str, Any], stack: str, *rest: Any
    ) -> tuple[str, dict[str, Any]]:
        if kind not in ours:
            ledger.hold(kind, new)
        new_id, attributes = change(kind, physical_id, old, new, stack, *rest)
        ledger.supply(substrate.operator, kind, new_id, old if new_id == physical_id else {}, new)
        return new_id, attributes

    stacks._provision_resource, stacks._update_resource = created, updated


def _install_guards(guards: Mapping[str, Guard], world: World) -> None:
    """Refuse to delete what is in use (ministack deletes it): CloudFormation tries for a while, and then fails."""
    delete, threaded = stacks._delete_resource, stacks._runs_on_worker_thread
    stacks._runs_on_worker_thread = lambda kind: kind in guards or threaded(kind)

    def deleted(kind: str, physical_id: str, *rest: Any) -> None:
        deadline = time.monotonic() + world.scaled(IN_THE_WAY_SECONDS)
        while kind in guards and (obstacle := guards[kind](physical_id)):
            if time.monotonic() > deadline:
                raise InTheWay(obstacle)
            time.sleep(0.2)
        delete(kind, physical_id, *rest)

    stacks._delete_resource = deleted


def _objects_left(bucket: str) -> str | None:
    s3 = substrate.operator("s3")
    if bucket not in {one["Name"] for one in s3.list_buckets()["Buckets"]}:
        return None
    found = s3.list_object_versions(Bucket=bucket, MaxKeys=1)
    left = found.get("Versions", []) + found.get("DeleteMarkers", [])
    return "The bucket you tried to delete is not empty. You must delete all versions in the bucket." if left else None


_to_make: contextvars.ContextVar[Mapping[str, Any] | None] = contextvars.ContextVar("_to_make", default=None)
"""What the deployment that asks makes: the template's resources."""


def _remember_deployments() -> None:
    order = stacks._topological_sort

    def ordered(resources: Mapping[str, Any], conditions: Mapping[str, bool]) -> list[str]:
        names: list[str] = order(resources, conditions)
        _to_make.set({name: resources[name] for name in names})
        return names

    stacks._topological_sort = ordered


def more_to_come(kind: str, logical_id: str, stack: str) -> bool:
    """Whether a deployment has yet to make others of the kind: AWS makes all at a time, ministack one by one."""
    with request_scope(ACCOUNT, REGION):
        made = cloudformation._stacks[stack].get("_resources", {}) if stack in cloudformation._stacks else {}
    alike = [name for name, resource in (_to_make.get() or {}).items() if resource.get("Type") == kind]
    return any(name != logical_id and name not in made for name in alike)


def _hold_deployments() -> None:
    """Answer ExecuteChangeSet when the stack has settled: the stock command line would look only every 30 s."""
    handle = app.SERVICE_HANDLERS["cloudformation"]

    def settling() -> bool:
        statuses = [stack["StackStatus"] for stack in cloudformation._stacks.values()]
        return any(status.endswith("IN_PROGRESS") and status != "REVIEW_IN_PROGRESS" for status in statuses)

    async def held(
        method: str, path: str, headers: dict[str, str], body: bytes, query: dict[str, Any]
    ) -> substrate.Reply:
        reply: substrate.Reply = await handle(method, path, headers, body, query)
        deadline = time.monotonic() + HELD_SECONDS
        while wire.operation_of(headers, body) == "ExecuteChangeSet" and settling() and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        return reply

    app.SERVICE_HANDLERS["cloudformation"] = held
