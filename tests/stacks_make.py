"""Stacks as the tests of judges, updates and user data want them."""

import json
import tomllib
from pathlib import Path

from templates.assets import Asset, Assets
from templates.settings import Settings
from templates.stacks import STACKS, rendered

HASH = "0123456789abcdef" * 4
EVERYTHING = tomllib.loads((Path(__file__).parent / "everything.toml").read_text("utf-8"))
GIVEN_VPC = {"vpc_id": "vpc-12345678", "subnet_ids": ["subnet-11111111", "subnet-22222222"]}
WEIGHTS = {"g4dn.xlarge": 4, "g4dn.2xlarge": 4, "g5.xlarge": 7, "g5.2xlarge": 8, "g6.xlarge": 5}
TABLES = {
    "defaults": {},
    "everything": EVERYTHING,
    "groups": {**EVERYTHING, "profile": "groups", "compute": {"attributes": {"gpu_names": ["t4"]}}},
    "plain": {
        "network": GIVEN_VPC,
        "on_demand": {"urgency": "spot-only", "max_units": 0},
        "security": {"customer_key": False},
        "compute": {"weights": WEIGHTS},
        "spot": {"allocation_strategy": "capacityOptimizedPrioritized"},
    },
}
"""Settings that together turn every option on and off."""
APPS = {f"{family}": f"apps/octave-{family}.tar.gz" for family in ("g4dn", "g5", "g6")}
IMAGE = {"image": {"apps": {"octave": APPS}}}
"""Everything that an image of one's own can have."""


def assets(agent_sha256=HASH):
    return Assets(
        ingest=Asset(f"ingest-{HASH[:16]}.zip", HASH),
        capacity=Asset(f"capacity-{HASH[:16]}.zip", HASH),
        market=Asset(f"market-{HASH[:16]}.zip", HASH),
        agent=Asset(f"agent-{HASH[:16]}.pyz", agent_sha256),
    )


def stack(table, agent_sha256=HASH, name="cluster"):
    """A template as JSON reads it."""
    return json.loads(rendered(STACKS[name](Settings.read(table), assets(agent_sha256))))
