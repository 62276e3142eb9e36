"""CloudFormation's budget, kept by the emulator through its API. Nothing is ever spent, so it never speaks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from localcloud import substrate, wire
from localcloud.formation import refuse_unplayed
from localcloud.scalingresources import typed
from localcloud.world import ACCOUNT, World

# ruff: noqa: ARG002 - the arguments are formation.Resource's

KIND = "AWS::Budgets::Budget"


class BudgetResource:
    """AWS::Budgets::Budget."""

    def __init__(self, world: World) -> None:
        self._world = world

    def create(self, logical_id: str, properties: dict[str, Any], stack: str) -> tuple[str, dict[str, Any]]:
        """Create it. Ref is its name."""
        refuse_unplayed(KIND, properties, {"Budget", "NotificationsWithSubscribers", "ResourceTags"}, {})
        with self._world.lock:
            suffix = "".join(self._world.dice.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", k=12))
        request = _request({**properties, "Budget": {"BudgetName": f"{logical_id}-{suffix}", **properties["Budget"]}})
        substrate.operator("budgets").create_budget(**request)
        return request["Budget"]["BudgetName"], {}

    def update(
        self, physical_id: str, old: dict[str, Any], new: dict[str, Any], stack: str
    ) -> tuple[str, dict[str, Any]]:
        """Change its limit in place; another name, or other subscribers, are another budget."""
        fixed = [properties.get("NotificationsWithSubscribers") for properties in (old, new)]
        names = [properties["Budget"].get("BudgetName") for properties in (old, new)]
        if fixed[0] != fixed[1] or names[0] != names[1]:
            return self.create("Budget", new, stack)
        request = _request({"Budget": {**new["Budget"], "BudgetName": physical_id}})
        substrate.operator("budgets").update_budget(AccountId=ACCOUNT, NewBudget=request["Budget"])
        return physical_id, {}

    def delete(self, physical_id: str, properties: dict[str, Any]) -> None:
        """Remove it."""
        budgets = substrate.operator("budgets")
        if any(one["BudgetName"] == physical_id for one in budgets.describe_budgets(AccountId=ACCOUNT)["Budgets"]):
            budgets.delete_budget(AccountId=ACCOUNT, BudgetName=physical_id)


def _request(properties: Mapping[str, Any]) -> dict[str, Any]:
    shape = wire.model("budgets").operation_model("CreateBudget").input_shape
    request: dict[str, Any] = typed({"AccountId": ACCOUNT, **properties}, shape, KIND)
    return request
