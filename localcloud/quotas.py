"""Service Quotas: the vCPUs of GPU instances that the account may run, as the market's own limit has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from localcloud.instances import Instances
from localcloud.market import ON_DEMAND, SPOT
from localcloud.wire import Call, Fault, Permission, Service, plays
from localcloud.world import REGION

CODES: Mapping[str, tuple[str, str]] = {
    "L-3819A6DF": ("All G and VT Spot Instance Requests", SPOT),
    "L-7212CCBC": ("All P4, P3 and P2 Spot Instance Requests", SPOT),
    "L-C4BD4855": ("All P5 Spot Instance Requests", SPOT),
    "L-DB2E81BA": ("Running On-Demand G and VT instances", ON_DEMAND),
    "L-417A185B": ("Running On-Demand P instances", ON_DEMAND),
}
"""EC2's quotas of vCPUs by code (Service Quotas console, Amazon EC2)."""
UNLIMITED_VCPUS = 10_000.0
"""What is answered while nobody has set `market/quota`: AWS always names a number."""


class Quotas(Service):
    """The `service-quotas` service. One limit holds for all families of a market here (see `Instances.quota`)."""

    name = "service-quotas"

    def __init__(self, instances: Instances) -> None:
        self._instances = instances
        self._world = instances.world

    def permissions(self, call: Call) -> Iterable[Permission]:
        """The prefix of its actions is not the service's name (Service Authorization Reference)."""
        yield Permission(f"servicequotas:{call.operation}")

    @plays("ServiceCode", "QuotaCode")
    def get_service_quota(self, call: Call) -> Mapping[str, Any]:
        """One of EC2's quotas of vCPUs."""
        service, code = call.params["ServiceCode"], call.params["QuotaCode"]
        if service != "ec2" or code not in CODES:
            raise Fault("NoSuchResourceException", f"The request failed because the quota {service}/{code} is not here")
        name, market = CODES[code]
        with self._world.lock:
            value = float(self._instances.quota.get(market, UNLIMITED_VCPUS))
        return {
            "Quota": {
                "ServiceCode": "ec2",
                "ServiceName": "Amazon Elastic Compute Cloud (Amazon EC2)",
                "QuotaArn": f"arn:aws:servicequotas:{REGION}::ec2/{code}",
                "QuotaCode": code,
                "QuotaName": name,
                "Value": value,
                "Unit": "None",
                "Adjustable": True,
                "GlobalQuota": False,
            }
        }
