"""EC2's RunInstances: one-time Spot instances from a launch template, with what a request puts in its place."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from localcloud import catalog
from localcloud.instances import Instance, Instances, NoCapacity, OverQuota
from localcloud.launch import Blueprint, Subnet, Surveyor
from localcloud.market import SPOT
from localcloud.wire import Call, Fault, Permission, plays
from localcloud.world import ACCOUNT, REGION, World

MARKET = {
    "MarketType": SPOT,
    "SpotOptions": {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"},
}
"""The one market that is played; On-Demand instances come from Auto Scaling groups here."""
TAGGED = ("instance", "volume")
LONGEST_TOKEN = 64


class RunCalls:
    """RunInstances. Part of `ec2.Ec2`."""

    world: World
    instances: Instances
    surveyor: Surveyor
    ran: dict[str, tuple[Mapping[str, Any], Instance]]
    """By client token: what was asked with it, and what came of that."""

    @plays(
        "LaunchTemplate",
        "InstanceType",
        "MinCount",
        "MaxCount",
        "SubnetId",
        "UserData",
        "InstanceMarketOptions",
        "InstanceInitiatedShutdownBehavior",
        "TagSpecifications",
        "ClientToken",
    )
    def run_instances(self, call: Call) -> Mapping[str, Any]:
        """Launch, or answer a client token as before (EC2 Developer Guide, "Ensuring idempotency").

        What the request says is in the place of what the template says, its tags too (API reference, RunInstances).
        """
        params, token = call.params, call.params.get("ClientToken", "")
        _check(params)
        blueprint, subnet = self._asked_for(params)
        with self.world.lock:
            asked, made = self.ran.get(token) or (params, self._launch(blueprint, subnet))
            if token:
                self.ran[token] = asked, made
            if asked != params:
                message = f"The request uses the same client token as a previous, but non-identical request: {token}"
                raise Fault("IdempotentParameterMismatch", message)
            return {
                "ReservationId": "r-" + made.id[2:],
                "OwnerId": ACCOUNT,
                "Groups": [],
                "Instances": [self.described(made)],
            }

    def described(self, one: Instance) -> dict[str, Any]:
        """An instance as the API shows it."""
        raise NotImplementedError

    def needed_to_run(self, params: Mapping[str, Any]) -> Iterator[Permission]:
        """Everything a launch touches (Service Authorization Reference, "Actions defined by Amazon EC2")."""
        _check(params)
        blueprint, subnet = self._asked_for(params)
        template = _arn(f"launch-template/{blueprint.template_id}")
        places = [template, _arn(f"subnet/{subnet.id}"), f"arn:aws:ec2:{REGION}::image/{blueprint.image_id}"]
        places += [_arn(f"security-group/{group}") for group in blueprint.security_groups]
        places += [_arn(f"{kind}/*") for kind in ("instance", "network-interface", "volume", "spot-instances-request")]
        for where in places:
            yield Permission("ec2:RunInstances", where, {"ec2:LaunchTemplate": template})
        for kind in TAGGED:
            tags = {f"aws:RequestTag/{key}": value for key, value in _tags(params, kind).items()}
            yield Permission("ec2:CreateTags", _arn(f"{kind}/*"), {"ec2:CreateAction": "RunInstances", **tags})
        if blueprint.role_arn:
            yield Permission("iam:PassRole", blueprint.role_arn, {"iam:PassedToService": "ec2.amazonaws.com"})

    def _asked_for(self, params: Mapping[str, Any]) -> tuple[Blueprint, Subnet]:
        blueprint = self.surveyor.blueprint(params["LaunchTemplate"])
        subnet = self.surveyor.subnets([params["SubnetId"]])[params["SubnetId"]]
        kind = params.get("InstanceType", blueprint.instance_type)
        if kind not in catalog.names():
            raise Fault("InvalidParameterValue", f"Invalid value '{kind}' for InstanceType.")
        data = params.get("UserData")
        return (
            replace(
                blueprint,
                instance_type=kind,
                user_data=blueprint.user_data if data is None else base64.b64decode(data).decode(),
                tags=_tags(params, "instance") or blueprint.tags,
            ),
            subnet,
        )

    def _launch(self, blueprint: Blueprint, subnet: Subnet) -> Instance:
        try:
            return self.instances.launch(blueprint.instance_type, SPOT, subnet, blueprint, "", {}, self.world.now())
        except NoCapacity as error:
            raise Fault("InsufficientInstanceCapacity", str(error)) from error
        except OverQuota as error:
            raise Fault("MaxSpotInstanceCountExceeded", f"Max spot instance count exceeded: {error}") from error


def _check(params: Mapping[str, Any]) -> None:
    """Raises Fault for what is not played."""
    if (params["MinCount"], params["MaxCount"]) != (1, 1):
        raise Fault("NotPlayed", "the local cloud runs one instance at a time")
    if params.get("InstanceMarketOptions") != MARKET:
        raise Fault("NotPlayed", f"the local cloud plays {MARKET} for InstanceMarketOptions")
    if params.get("InstanceInitiatedShutdownBehavior", "stop") != "terminate":
        raise Fault("InvalidParameterCombination", "InstanceInitiatedShutdownBehavior=stop is not supported for Spot")
    for missing in {"LaunchTemplate", "SubnetId"} - set(params):
        raise Fault("NotPlayed", f"the local cloud runs no instance without {missing}")
    if unplayed := {one["ResourceType"] for one in params.get("TagSpecifications", ())} - set(TAGGED):
        raise Fault("NotPlayed", f"the local cloud does not tag {', '.join(sorted(unplayed))} at a launch")
    if len(params.get("ClientToken", "")) > LONGEST_TOKEN:
        raise Fault("InvalidParameterValue", f"a client token has {LONGEST_TOKEN} characters at the most")


def _tags(params: Mapping[str, Any], kind: str) -> dict[str, str]:
    return {
        tag["Key"]: tag["Value"]
        for one in params.get("TagSpecifications", ())
        if one["ResourceType"] == kind
        for tag in one["Tags"]
    }


def _arn(resource: str) -> str:
    return f"arn:aws:ec2:{REGION}:{ACCOUNT}:{resource}"
