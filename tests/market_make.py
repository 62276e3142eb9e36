"""The market Lambda on a small EC2 with a clock in the test's hand: real clients, answered at the wire."""

import json
from collections import Counter
from datetime import timedelta
from functools import cache
from io import BytesIO

import boto3
import ec2_make
from botocore.awsrequest import AWSResponse
from moto.core.botocore_stubber import MockRawResponse
from moto.core.models import botocore_stubber

from localcloud import wire
from localcloud.prices import ZONE_IDS, PriceList
from localcloud.wire import Call, Fault
from market.cloud import Aws
from market.handler import run
from market.settings import Settings

NOON = ec2_make.NOON
ENVIRONMENT = {
    "AWS_REGION": "us-east-1",
    "POOLS_TABLE": "pools",
    "TYPES": json.dumps({"g4dn.xlarge": 1, "g5.xlarge": 1, "g6.xlarge": 1, "g5.2xlarge": 1}),
    "SUBNETS": "subnet-a,subnet-b,",
    "MAX_UNITS": "8",
}


@cache
def session():
    """One for all tests: it reads AWS's service models, which takes a while."""
    return boto3.Session(region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")


def settings(**changes):
    return Settings.read({**ENVIRONMENT, **changes})


class World:
    """EC2 and the price list are the local cloud's; the table is moto's, which must be mocked.

    `refuse`: the error code that an operation answers with. `after`: what else happens when it has answered.
    """

    def __init__(self, folder, *, steered=True, target=4, **changes):
        self.ec2 = ec2_make.Cloud(folder)
        self.ec2.world.advance(1)
        self.calls = Counter()
        self.refuse = {}
        self.after = {}
        chosen = settings(**changes)
        if steered:
            kinds = [*chosen.types.items()]
            self.fleet = self.ec2.fleet(target, **ec2_make.config_of(target, kinds, zones="ab"))
            self.ec2.world.advance(30)
            chosen = settings(**changes, SPOT_FLEET_ID=self.fleet)
        self.session = session()
        self.table = self.session.resource("dynamodb").create_table(
            TableName="pools",
            KeySchema=[{"AttributeName": "pool", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "pool", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )
        self.settings = chosen
        self.wake()

    def wake(self):
        """A fresh sandbox, as after a quiet time."""
        self.aws = Aws(self.session, self.settings)
        answered_by(self.aws._ec2, self.answer)
        if self.aws._pricing is not None:
            answered_by(self.aws._pricing, self.answer)

    @property
    def now(self):
        return self.ec2.world.clock

    def run(self, minutes=0):
        """Let time pass, then have the Lambda look once."""
        self.ec2.world.clock += timedelta(minutes=minutes)
        self.ec2.world.advance(1)
        run(self.aws, self.now)
        self.ec2.world.advance(10)

    def answer(self, service, operation, params):
        self.calls[operation] += 1
        if operation in self.refuse:
            raise Fault(self.refuse[operation], "No.")
        if operation == "DescribeSubnets":
            return {"Subnets": [_subnet(one) for one in params["SubnetIds"]]}
        if operation == "DescribeAvailabilityZones":
            return {"AvailabilityZones": [_zone(name) for name in ZONE_IDS]}
        module = PriceList() if service == "pricing" else self.ec2.ec2
        answer = module.answer(Call(operation, params, "arn:aws:sts::123456789012:assumed-role/market/s"))
        self.after.get(operation, lambda: None)()
        return answer

    def rows(self):
        return {item["pool"]: item for item in self.table.scan()["Items"]}

    def take(self, pool, *moments):
        """What the capacity Lambda writes when EC2 takes instances of ours."""
        self.table.update_item(
            Key={"pool": pool},
            UpdateExpression="SET taken = :taken, taken_ids = :ids",
            ExpressionAttributeValues={
                ":taken": [int(moment.timestamp()) for moment in moments],
                ":ids": [f"i-{n}" for n, _ in enumerate(moments)],
            },
        )

    def price(self, pool, usd):
        kind, zone = pool.split("/")
        self.ec2.market.set_price(ec2_make.Pool(kind, zone), usd, self.now)

    def offered(self):
        """The pools that the fleet launches in."""
        config = self.ec2.described(self.fleet)["SpotFleetRequestConfig"]
        return {
            f"{one['InstanceType']}/us-east-1{one['SubnetId'][-1]}"
            for one in config["LaunchTemplateConfigs"][0]["Overrides"]
        }


def answered_by(client, answer):
    """Have a client's requests answered by `answer(service, operation, params)`, held to botocore's shapes."""
    service = client.meta.service_model.service_name

    def sent(request, event_name, **_):
        operation = event_name.rsplit(".", 1)[-1]
        body = request.body if isinstance(request.body, bytes) else (request.body or "").encode()
        headers = {
            key.lower(): value if isinstance(value, str) else value.decode() for key, value in request.headers.items()
        }
        try:
            result = answer(service, operation, wire.params_of(service, operation, headers, body))
        except Fault as fault:
            result = fault
        status, told, content = wire.answer_of(service, operation, result)
        return AWSResponse(request.url, status, told, MockRawResponse(BytesIO(content).read()))

    client.meta.events.unregister("before-send", botocore_stubber)  # moto's own answer
    client.meta.events.register(f"before-send.{client.meta.service_model.service_id.hyphenize()}.*", sent)


def _zone(name):
    return {"ZoneName": name, "ZoneId": ZONE_IDS[name], "State": "available", "ZoneType": "availability-zone"}


def _subnet(name):
    known = ec2_make.SUBNETS[name]
    return {
        "SubnetId": name,
        "VpcId": known.vpc,
        "AvailabilityZone": known.zone,
        "AvailabilityZoneId": ZONE_IDS[known.zone],
    }
