"""An account on moto for tests of the capacity Lambda: what every profile has, and what moto lacks."""

from collections import Counter
from functools import cache

import boto3
from moto.ec2.models import ec2_backends
from moto.ec2.models.spot_requests import SpotInstanceRequest
from moto.ecs.models import ecs_backends

from capacity.account import STACK_TAG

REGION, ACCOUNT = "eu-west-1", "123456789012"


class Session:
    """A boto3 session that makes each client once: to make those of one account anew takes longer than most tests.

    Only the Lambda's clients are configured: `calls` counts what they ask.
    """

    def __init__(self):
        self._own = boto3.Session(region_name=REGION, aws_access_key_id="x", aws_secret_access_key="x")
        self.calls = Counter()

    @cache  # noqa: B019 - there is one, for as long as there are tests
    def client(self, service, config=None):
        return self._counted(self._own.client(service, config=config), config)

    @cache  # noqa: B019
    def resource(self, service, config=None):
        made = self._own.resource(service, config=config)
        self._counted(made.meta.client, config)
        return made

    def _counted(self, client, config):
        if config:
            client.meta.events.register("before-call", lambda model, **_: self.calls.update([model.name]))
        return client


SESSION = Session()
IMAGE = "ami-12c6146b"


class Account:
    """A cluster, a subnet, a launch template and the table of pools."""

    def __init__(self):
        self.sqs, self.ec2, self.ecs = SESSION.client("sqs"), SESSION.client("ec2"), SESSION.client("ecs")
        self.autoscaling = SESSION.client("autoscaling")
        self.subnet = self.ec2.describe_subnets()["Subnets"][0]["SubnetId"]
        self.ecs.create_cluster(clusterName="spindrift")
        self.ec2.create_launch_template(
            LaunchTemplateName="worker", LaunchTemplateData={"ImageId": IMAGE, "InstanceType": "g5.xlarge"}
        )
        self.pools = SESSION.resource("dynamodb").create_table(
            TableName="pools",
            KeySchema=[{"AttributeName": "pool", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "pool", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )

    def make_group(self, name, most):
        self.autoscaling.create_auto_scaling_group(
            AutoScalingGroupName=name,
            LaunchTemplate={"LaunchTemplateName": "worker"},
            MinSize=0,
            MaxSize=most,
            DesiredCapacity=0,
            VPCZoneIdentifier=self.subnet,
            Tags=[{"Key": STACK_TAG, "Value": "demo", "PropagateAtLaunch": True}],
        )

    def join(self, instances, *, gpus=1, tasks=0):
        """Register the instances in ECS; returns their ARNs."""
        arns = []
        for instance in instances:
            joined = ecs_backends[ACCOUNT][REGION].register_container_instance("spindrift", instance)
            told = {"name": "GPU", "type": "STRINGSET", "stringSetValue": [f"GPU-{n}" for n in range(gpus)]}
            joined.registered_resources.append(told)
            joined.running_tasks_count = tasks
            arns.append(joined.container_instance_arn)
        return arns

    def status(self):
        """ECS's status of each EC2 instance."""
        arns = self.ecs.list_container_instances(cluster="spindrift")["containerInstanceArns"]
        found = self.ecs.describe_container_instances(cluster="spindrift", containerInstances=arns) if arns else {}
        return {c["ec2InstanceId"]: c["status"] for c in found.get("containerInstances", [])}

    def mark(self, instance, code="marked-for-termination"):
        """What EC2 says of the Spot request of an instance it is about to take."""
        requests = ec2_backends[ACCOUNT][REGION].spot_instance_requests.values()
        next(r for r in requests if r.instance.id == instance)._status_code = code


def let_spot_requests_be_filtered(monkeypatch):
    """By instance and by status, as EC2 does and moto does not."""
    plain = SpotInstanceRequest.get_filter_value

    def get_filter_value(self, name, method=None):
        ours = {"instance-id": lambda: self.instance.id, "status-code": lambda: self._status_code}
        return ours[name]() if name in ours else plain(self, name, method)

    monkeypatch.setattr(SpotInstanceRequest, "get_filter_value", get_filter_value)
