import json
import tomllib
from pathlib import Path

import pytest
from moto.ec2.models.instance_types import INSTANCE_TYPES as MOTO

from templates.instance_types import INSTANCE_TYPES
from templates.settings import BadSettings, Settings

ROOT = Path(__file__).parents[1]


def mistakes(**table):
    with pytest.raises(BadSettings) as refused:
        Settings.read(table)
    return str(refused.value).splitlines()


def test_the_file_that_we_ship_says_every_default():
    path = ROOT / "spindrift.toml"
    table = tomllib.loads(path.read_text())
    text = path.read_text()

    assert Settings.load(path) == Settings()
    for section, field in Settings.model_fields.items():
        for key in getattr(field.annotation, "model_fields", {}):
            assert key in table[section] or f"# {key} = " in text, f"{section}.{key} is not documented in place"


@pytest.mark.parametrize(
    "case, table, expected",
    [
        ("unknown key", {"network": {"zoens": 2}}, "network.zoens: unknown key; did you mean zones?"),
        ("unknown section", {"netwrok": {}}, "netwrok: unknown key; did you mean network?"),
        ("no zone", {"network": {"zones": 0}}, "network.zones: at least 1, got 0"),
        ("zero units", {"compute": {"max_units": 0}}, "compute.max_units: at least 1, got 0"),
        ("not a number", {"compute": {"max_units": "many"}}, "compute.max_units: must be a whole number, got 'many'"),
        (
            "a type without a GPU",
            {"compute": {"instance_types": ["g5.xlarge", "m5.large"]}},
            "compute.instance_types: m5.large has no GPU; choose among g4dn.xlarge, g5.xlarge, g6.xlarge, g6e.xlarge or a larger size",
        ),
        (
            "another make of GPU",
            {"compute": {"instance_types": ["g4ad.xlarge"]}},
            "compute.instance_types: g4ad.xlarge is not an x86 type with whole NVIDIA GPUs that is known here; "
            "choose among g4dn.xlarge, g5.xlarge, g6.xlarge, g6e.xlarge or a larger size",
        ),
        (
            "a size that does not exist",
            {"compute": {"instance_types": ["gr6.xlarge"]}},
            "compute.instance_types: gr6.xlarge does not exist; gr6 comes as gr6.4xlarge, gr6.8xlarge",
        ),
        ("no type", {"compute": {"instance_types": []}}, "compute.instance_types: at least 1, got none"),
        (
            "a type twice",
            {"compute": {"instance_types": ["g5.xlarge", "g5.xlarge"]}},
            "compute.instance_types: g5.xlarge is there twice",
        ),
        (
            "the root volume is smaller than the image",
            {"compute": {"root_volume_gib": 8}},
            "compute.root_volume_gib: at least 30, got 8",
        ),
        (
            "a bucket S3 refuses",
            {"buckets": {"uploads": "My_Uploads"}},
            "buckets.uploads: 'My_Uploads': S3 wants lower-case letters, digits, dots and hyphens, "
            "with a letter or digit at both ends",
        ),
        ("a short bucket", {"buckets": {"results": "ab"}}, "buckets.results: 'ab' has 2 characters; S3 wants 3 to 63"),
        (
            "one bucket for both would feed itself",
            {"buckets": {"uploads": "one", "results": "one"}},
            "buckets.results: must differ from buckets.uploads, got 'one' for both",
        ),
        (
            "a VPC without subnets",
            {"network": {"vpc_id": "vpc-12345678"}},
            "network.subnet_ids: at least one when vpc_id is set, got none for vpc-12345678",
        ),
        ("a block too small", {"network": {"cidr": "10.0.0.0/25"}}, None),
        ("not a block", {"network": {"cidr": "10.0.0.1/16"}}, None),
        (
            "mixed On-Demand sizes",
            {"on_demand": {"instance_types": ["g5.xlarge", "g5.12xlarge"]}},
            "on_demand.instance_types: all must have the same number of GPUs, got g5.xlarge 1, g5.12xlarge 4",
        ),
        (
            "less than one On-Demand instance",
            {"on_demand": {"instance_types": ["g5.12xlarge"], "max_units": 3}},
            "on_demand.max_units: at least 4 (one g5.12xlarge) unless urgency is spot-only, got 3",
        ),
        (
            "urgency",
            {"on_demand": {"urgency": "later"}},
            "on_demand.urgency: one of 'now', 'deadline' or 'spot-only', got 'later'",
        ),
        ("lease too long", {"queue": {"lease_seconds": 43_201}}, "queue.lease_seconds: at most 43200, got 43201"),
        ("lease too short", {"queue": {"lease_seconds": 9}}, "queue.lease_seconds: at least 10, got 9"),
        (
            "stops after the instance",
            {"worker": {"stop_timeout_seconds": 120}},
            "worker.stop_timeout_seconds: at most 110, got 120",
        ),
        (
            "a task that no host can take",
            {"worker": {"memory_mib": 16_384}},
            "worker.memory_mib: at most 15308 per GPU on g4dn.xlarge, got 16384",
        ),
        (
            "more tasks than GPUs",
            {"queue": {"max_tasks": 9}},
            "queue.max_tasks: at most compute.max_units (8: one GPU each), got 9",
        ),
        ("days that CloudWatch lacks", {"logs": {"retention_days": 2}}, None),
        ("our own tag", {"tags": {"spindrift:stack": "mine"}}, None),
        ("a section that is a value", {"spot": 3}, "spot: must be a table, got 3"),
        (
            "too many pools",
            {
                "compute": {"instance_types": list(INSTANCE_TYPES)},
                "network": {"vpc_id": "vpc-12345678", "subnet_ids": [f"subnet-{n:08x}" for n in range(8)]},
            },
            f"compute.instance_types: types times subnets is at most 300 in a Spot Fleet, got {8 * len(INSTANCE_TYPES)}",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 45 else "",
)
def test_a_mistake_is_told_with_key_limit_and_value(case, table, expected):
    told = mistakes(**table)

    assert len(told) == 1, told
    if expected:
        assert told == [expected]
    else:
        (section,) = table
        value = table[section] if section == "tags" else next(iter(table[section].values()))
        named = next(iter(value)) if section == "tags" else str(value)
        assert told[0].startswith(section) and named in told[0]


def test_all_mistakes_are_told_at_once_those_between_sections_too():
    told = mistakes(
        network={"zones": 0, "colour": 1},
        worker={"memory_mib": 99_999},
        queue={"max_tasks": 99},
        logs={"retention_days": 2},
    )

    assert [line.partition(":")[0] for line in told] == [
        "network.zones", "network.colour", "logs.retention_days", "queue.max_tasks", "worker.memory_mib",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "case, content, said",
    [
        ("no such file", None, "there is no such file"),
        ("a slip of the pen", b"[network\nzones = 1", "not TOML"),
        ("not text", b"\xff\xfe", "cannot be read"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_that_is_not_settings(case, content, said, tmp_path):
    path = tmp_path / "settings.toml"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(BadSettings, match=said) as refused:
        Settings.load(path)
    assert str(path) in str(refused.value)


def test_spot_only_needs_no_on_demand():
    assert Settings.read({"on_demand": {"urgency": "spot-only", "max_units": 0}}).on_demand.max_instances == 0


def test_our_table_of_instance_types_says_what_ec2_says():
    """A wrong GPU count is a wrong weight, and the Spot Fleet would buy too much or too little."""
    known = {name: MOTO[name] for name in INSTANCE_TYPES if name in MOTO}

    assert set(INSTANCE_TYPES) - set(known) == {"p3.2xlarge", "p3.8xlarge", "p3.16xlarge"}  # moto has no p3
    for name, real in known.items():
        ours = INSTANCE_TYPES[name]
        gpus = sum(gpu["Count"] for gpu in real["GpuInfo"]["Gpus"])
        assert (ours.gpus, ours.vcpus, ours.memory_mib) == (
            gpus,
            real["VCpuInfo"]["DefaultVCpus"],
            real["MemoryInfo"]["SizeInMiB"],
        ), json.dumps(name)
        assert real["ProcessorInfo"]["SupportedArchitectures"] == ["x86_64"], name
        assert "spot" in real["SupportedUsageClasses"], name
