"""EC2: what the account sees of its instances. VPCs, security groups and launch templates are the emulator's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from localcloud import batch, catalog, imagebuilder, listing
from localcloud.budgets import BudgetResource
from localcloud.control import Control
from localcloud.endpoints import EndpointResource, NetworkCalls, RuleResource
from localcloud.fleet import Fleet, Fleets
from localcloud.formation import Guard, Resource
from localcloud.groupkeeper import Groups
from localcloud.groupnews import News
from localcloud.groups import AutoScaling
from localcloud.herald import Herald
from localcloud.instances import STATE_CODES, Instance, Instances, SpotRequest
from localcloud.interruptions import Interruptions
from localcloud.launch import ApiSurveyor, Surveyor
from localcloud.launchtemplates import LaunchTemplateResource
from localcloud.machine import Machines
from localcloud.market import SPOT, Market
from localcloud.network import Network
from localcloud.offerings import Amis, OfferingCalls
from localcloud.prices import LINUX, PriceCalls, PriceList
from localcloud.quotas import Quotas
from localcloud.runinstances import RunCalls
from localcloud.scalingresources import GroupResource, SpotFleetResource, WarmPoolResource
from localcloud.spotfleet import SpotFleetCalls
from localcloud.wire import Call, Fault, Permission, Service, plays
from localcloud.world import ACCOUNT, REGION, World

if TYPE_CHECKING:
    from localcloud.ecs import Ecs

INSTANCE_FILTERS: Mapping[str, Callable[[Instance], Iterable[str]]] = {
    "instance-id": lambda one: [one.id],
    "instance-state-name": lambda one: [one.state],
    "image-id": lambda one: [one.blueprint.image_id],
    "instance-type": lambda one: [one.pool.type],
    "instance-lifecycle": lambda one: ["spot"] if one.lifecycle == SPOT else [],
    "availability-zone": lambda one: [one.pool.zone],
    "subnet-id": lambda one: [one.subnet.id],
    "spot-instance-request-id": lambda one: [one.request_id],
}
REQUEST_FILTERS: Mapping[str, Callable[[SpotRequest], Iterable[str]]] = {
    "spot-instance-request-id": lambda one: [one.id],
    "instance-id": lambda one: [one.instance_id] if one.instance_id else [],
    "state": lambda one: [one.state],
    "status-code": lambda one: [one.code],
    "launched-availability-zone": lambda one: [one.pool.zone] if one.instance_id else [],
    "launch.instance-type": lambda one: [one.pool.type],
}


class Ec2(RunCalls, SpotFleetCalls, OfferingCalls, PriceCalls, NetworkCalls, Service):
    """The `ec2` service: instances, Spot requests, Spot Fleets, prices, types and where they are, VPC endpoints."""

    name = "ec2"

    def __init__(self, instances: Instances, fleets: Fleets, surveyor: Surveyor, network: Network) -> None:
        super().__init__()
        self.world = instances.world
        self.instances = instances
        self.fleets = fleets
        self.surveyor = surveyor
        self.network = network
        self.amis = Amis(instances)
        self.ran = {}

    def permissions(self, call: Call) -> Iterable[Permission]:
        """Instances and fleets by ARN with their tags, other calls on everything (Service Authorization Reference)."""
        action, params = f"ec2:{call.operation}", call.params
        if call.operation == "RunInstances":
            return list(self.needed_to_run(params))
        owned: Sequence[str] = {
            "TerminateInstances": params.get("InstanceIds", ()),
            "CreateTags": params.get("Resources", ()),
            "DeleteTags": params.get("Resources", ()),
            "ModifySpotFleetRequest": [params.get("SpotFleetRequestId", "")],
            "CancelSpotFleetRequests": params.get("SpotFleetRequestIds", ()),
        }.get(call.operation, ())
        with self.world.lock:
            needs = [Permission(action, *self._owned(one)) for one in owned] or [Permission(action)]
        asked = {"aws:TagKeys": [tag["Key"] for tag in params["Tags"]]} if params.get("Tags") else {}
        needs = [replace(need, context={**need.context, **asked}) for need in needs]
        if call.operation == "RequestSpotFleet":
            role = params["SpotFleetRequestConfig"]["IamFleetRole"]
            needs.append(Permission("iam:PassRole", role, {"iam:PassedToService": "spotfleet.amazonaws.com"}))
        if call.operation == "ModifySpotFleetRequest":
            needs += self.needed_to_launch(params.get("LaunchTemplateConfigs", ()))
        return needs

    def _owned(self, resource: str) -> tuple[str, dict[str, Any]]:
        """ARN and condition keys of an instance or fleet."""
        kind = "instance" if resource.startswith("i-") else "spot-fleet-request"
        tags: Mapping[str, str] = {}
        context: dict[str, Any] = {"ec2:Region": REGION}
        try:
            if kind == "instance":
                instance = self.instances.get(resource)
                tags = instance.tags
                context |= {"ec2:InstanceType": instance.pool.type, "ec2:AvailabilityZone": instance.pool.zone}
            else:
                tags = self.fleets.get(resource).tags
        except KeyError:
            tags = {}  # one that does not exist has no tags; the operation itself says so to who may ask
        for key, value in tags.items():
            context[f"ec2:ResourceTag/{key}"] = context[f"aws:ResourceTag/{key}"] = value
        return f"arn:aws:ec2:{REGION}:{ACCOUNT}:{kind}/{resource}", context

    @plays("InstanceIds", "Filters", "MaxResults", "NextToken")
    def describe_instances(self, call: Call) -> Mapping[str, Any]:
        """Instances, each in a reservation of its own."""
        shown, more = self._chosen(call)
        return {
            "Reservations": [
                {"ReservationId": "r-" + one["InstanceId"][2:], "OwnerId": ACCOUNT, "Groups": [], "Instances": [one]}
                for one in shown
            ],
            **more,
        }

    def _chosen(self, call: Call) -> tuple[list[dict[str, Any]], dict[str, str]]:
        ids: Sequence[str] = call.params.get("InstanceIds", ())
        if ids and "MaxResults" in call.params:
            message = "The parameter instancesSet cannot be used with the parameter maxResults"
            raise Fault("InvalidParameterCombination", message)
        with self.world.lock:
            chosen = [self._instance(one) for one in ids] if ids else self.instances.all()
            chosen = listing.filtered(chosen, call.params.get("Filters", ()), INSTANCE_FILTERS, lambda one: one.tags)
            shown, more = listing.page(chosen, call.params, 1000)
            return [_described(one) for one in shown], more

    @plays("InstanceIds", "Filters", "IncludeAllInstances", "MaxResults", "NextToken")
    def describe_instance_status(self, call: Call) -> Mapping[str, Any]:
        """State and status checks; running instances only, unless all are asked for."""
        shown, more = self._chosen(call)
        return {
            "InstanceStatuses": [
                {
                    "InstanceId": one["InstanceId"],
                    "AvailabilityZone": one["Placement"]["AvailabilityZone"],
                    "InstanceState": one["State"],
                    "InstanceStatus": {"Status": "ok" if one["State"]["Name"] == "running" else "not-applicable"},
                    "SystemStatus": {"Status": "ok" if one["State"]["Name"] == "running" else "not-applicable"},
                }
                for one in shown
                if call.params.get("IncludeAllInstances") or one["State"]["Name"] == "running"
            ],
            **more,
        }

    @plays("InstanceIds")
    def terminate_instances(self, call: Call) -> Mapping[str, Any]:
        """End instances at once; when one of them does not exist, none."""
        with self.world.lock:
            chosen = [self._instance(one) for one in call.params["InstanceIds"]]
            before = {one.id: _state(one) for one in chosen}
            for one in chosen:
                self.instances.terminate(one, "api", self.world.now())
            return {
                "TerminatingInstances": [
                    {"InstanceId": one.id, "PreviousState": before[one.id], "CurrentState": _state(one)}
                    for one in chosen
                ]
            }

    def described(self, one: Instance) -> dict[str, Any]:
        """An instance as the API shows it."""
        return _described(one)

    @plays("Resources", "Tags")
    def create_tags(self, call: Call) -> Mapping[str, Any]:
        """Tag instances and Spot Fleet requests. Tags of other resources come with CloudFormation here."""
        tags = {tag["Key"]: tag["Value"] for tag in call.params["Tags"]}
        with self.world.lock:
            for taggable in self._taggable(call):
                self._retag(taggable, taggable.tags | tags)
        return {}

    @plays("Resources", "Tags")
    def delete_tags(self, call: Call) -> Mapping[str, Any]:
        """Remove tags by key, or by key and value when a value is given; one that is not there is no error."""
        with self.world.lock:
            for taggable in self._taggable(call):
                held = taggable.tags
                gone = {tag["Key"] for tag in call.params["Tags"] if tag.get("Value") in (None, held.get(tag["Key"]))}
                self._retag(taggable, {key: value for key, value in held.items() if key not in gone})
        return {}

    def _retag(self, taggable: Instance | Fleet, tags: dict[str, str]) -> None:
        if isinstance(taggable, Instance):
            self.instances.retag(taggable, tags)
        else:
            taggable.tags = tags

    def _taggable(self, call: Call) -> list[Instance | Fleet]:
        if unknown := [one for one in call.params["Resources"] if not one.startswith(("i-", "sfr-"))]:
            raise Fault("NotPlayed", f"the local cloud does not play {call.operation} of {', '.join(unknown)}")
        return [self._instance(one) if one.startswith("i-") else self.fleet(one) for one in call.params["Resources"]]

    @plays("SpotInstanceRequestIds", "Filters", "MaxResults", "NextToken")
    def describe_spot_instance_requests(self, call: Call) -> Mapping[str, Any]:
        """Spot requests with their status."""
        with self.world.lock:
            chosen = self.instances.requests()
            if wanted := call.params.get("SpotInstanceRequestIds"):
                if missing := sorted(set(wanted) - {one.id for one in chosen}):
                    message = f"The spot instance request ID '{missing[0]}' does not exist"
                    raise Fault("InvalidSpotInstanceRequestID.NotFound", message)
                chosen = [one for one in chosen if one.id in wanted]
            chosen = listing.filtered(chosen, call.params.get("Filters", ()), REQUEST_FILTERS, lambda _: {})
            shown, more = listing.page(chosen, call.params, 1000)
            return {"SpotInstanceRequests": [self._request(one) for one in shown], **more}

    @plays("InstanceTypes", "Filters", "MaxResults", "NextToken")
    def describe_instance_types(self, call: Call) -> Mapping[str, Any]:
        """Instance types, from moto's copy of AWS's answer."""
        names = call.params.get("InstanceTypes") or catalog.names()
        if unknown := sorted(set(names) - set(catalog.names())):
            raise Fault("InvalidInstanceType", f"The following supplied instance types do not exist: {unknown}")
        names = listing.filtered(
            names, call.params.get("Filters", ()), {"instance-type": lambda name: [name]}, lambda _: {}
        )
        shown, more = listing.page(names, call.params, 100)
        return {"InstanceTypes": [catalog.describe(name) for name in shown], **more}

    def _instance(self, instance_id: str) -> Instance:
        if not instance_id.startswith("i-"):
            raise Fault("InvalidInstanceID.Malformed", f'Invalid id: "{instance_id}"')
        try:
            return self.instances.get(instance_id)
        except KeyError:
            message = f"The instance ID '{instance_id}' does not exist"
            raise Fault("InvalidInstanceID.NotFound", message) from None

    def _request(self, one: SpotRequest) -> dict[str, Any]:
        return {
            "SpotInstanceRequestId": one.id,
            "State": one.state,
            "Status": {"Code": one.code, "Message": one.message, "UpdateTime": one.updated},
            "Type": "one-time",
            "CreateTime": one.created,
            "ProductDescription": LINUX,
            "InstanceInterruptionBehavior": "terminate",
            "SpotPrice": f"{self.instances.market.price(one.pool, 'on-demand'):.6f}",
            "LaunchSpecification": {
                "InstanceType": one.pool.type,
                "Placement": {"AvailabilityZone": one.pool.zone},
            },
            **({"InstanceId": one.instance_id, "LaunchedAvailabilityZone": one.pool.zone} if one.instance_id else {}),
            "Tags": [],
        }


def _state(one: Instance) -> dict[str, Any]:
    return {"Code": STATE_CODES[one.state], "Name": one.state}


def _described(one: Instance) -> dict[str, Any]:
    name = f"ip-{one.ip.replace('.', '-')}.ec2.internal"
    ended = f"User initiated ({one.ended:%Y-%m-%d %H:%M:%S} GMT)" if one.ended else ""
    return {
        "InstanceId": one.id,
        "InstanceType": one.pool.type,
        "ImageId": one.blueprint.image_id,
        "LaunchTime": one.launched,
        "State": _state(one),
        "StateTransitionReason": ended if one.reason_code.startswith("Client") else one.reason,
        **({"StateReason": {"Code": one.reason_code, "Message": one.reason}} if one.reason_code else {}),
        "Placement": {"AvailabilityZone": one.pool.zone, "Tenancy": "default", "GroupName": ""},
        "SubnetId": one.subnet.id,
        "VpcId": one.subnet.vpc,
        **({} if one.ended_for_good else {"PrivateIpAddress": one.ip, "PrivateDnsName": name}),
        **({"InstanceLifecycle": "spot", "SpotInstanceRequestId": one.request_id} if one.request_id else {}),
        **({"IamInstanceProfile": {"Arn": one.blueprint.profile_arn}} if one.blueprint.profile_arn else {}),
        "SecurityGroups": [{"GroupId": group, "GroupName": group} for group in one.blueprint.security_groups],
        "MetadataOptions": {
            "State": "applied",
            "HttpTokens": "required",
            "HttpEndpoint": "enabled",
            "HttpPutResponseHopLimit": one.blueprint.hop_limit,
        },
        "Tags": [{"Key": key, "Value": value} for key, value in one.tags.items()],
    }


def furnish(world: World, control: Control, ecs: Ecs) -> tuple[list[Service], dict[str, Resource], dict[str, Guard]]:
    """EC2, Auto Scaling and their quotas, wired to the containers that run on the instances."""
    herald, surveyor = Herald(world), ApiSurveyor()
    machines = Machines(world, control, ecs)
    instances = Instances(world, Market(world.seed), machines, herald)
    Interruptions(instances, control)
    network = Network(instances)
    machines.in_network(network)
    service = Ec2(instances, Fleets(instances, herald), surveyor, network)
    scaling = AutoScaling(Groups(instances, News()), surveyor)
    builder = imagebuilder.ImageBuilder(world, surveyor, service.amis, ecs.images)
    machines.with_images(builder.pulled)
    jobs, job_resources = batch.furnish(ecs, instances, surveyor)
    machines.on_poweroff(lambda one: instances.terminate(one, "api", world.now()))
    resources: dict[str, Resource] = {
        "AWS::AutoScaling::AutoScalingGroup": GroupResource(scaling),
        "AWS::AutoScaling::WarmPool": WarmPoolResource(scaling),
        "AWS::Budgets::Budget": BudgetResource(world),
        "AWS::EC2::LaunchTemplate": LaunchTemplateResource(),
        "AWS::EC2::SecurityGroupEgress": RuleResource("egress"),
        "AWS::EC2::SecurityGroupIngress": RuleResource("ingress"),
        "AWS::EC2::SpotFleet": SpotFleetResource(service),
        "AWS::EC2::VPCEndpoint": EndpointResource(world, network),
        **imagebuilder.resources(builder),
        **job_resources,
    }
    return [service, scaling, builder, jobs, Quotas(instances), PriceList()], resources, network.guards()
