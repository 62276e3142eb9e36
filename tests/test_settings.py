import json
import tomllib
from pathlib import Path

import pytest
from moto.ec2.models.instance_types import INSTANCE_TYPES as MOTO

from templates.instance_types import INSTANCE_TYPES
from templates.settings import MOST_QUEUES, BadSettings, Queue, Section, Settings, _flat

ROOT = Path(__file__).parents[1]
LOWEST = {"allocation_strategy": "lowestPrice"}
WEIGHTS = {"g4dn.xlarge": 2, "g4dn.2xlarge": 2, "g5.xlarge": 4, "g5.2xlarge": 5, "g6.xlarge": 3}


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
        assert section in table, f"{section} is not there"
        for kind in _flat(field.annotation):
            for key in kind.model_fields if isinstance(kind, type) and issubclass(kind, Section) else ():
                said = key in json.dumps(table[section]) or f"# {key} = " in text or f"# [{section}.{key}]" in text
                assert said, f"{section}.{key} is not documented in place"


def test_every_option_has_a_line_in_the_file_of_all_options():
    """What the tests deploy, update and delete as `everything` must not lose an option that came later."""
    table = tomllib.loads((ROOT / "tests/everything.toml").read_text())

    assert Settings.load(ROOT / "tests/everything.toml") == Settings.read(table)
    for section, key in (
        ("network", "private"), ("compute", "attributes"), ("on_demand", "warm_units"), ("worker", "shared_files"),
        ("uploads", "ingest"), ("uploads", "delete_after_success"), ("security", "session_manager"),
        ("notify", "email"), ("notify", "scaling"), ("notify", "monthly_budget_usd"),
    ):  # fmt: skip
        assert table[section][key], f"{section}.{key}"
    assert {queue["placement"] for queue in table["queues"] if "placement" in queue} == {"on-demand", "spot"}


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
            "compute.instance_types[1]: m5.large has no GPU; choose among g4dn.xlarge, g5.xlarge, g6.xlarge, g6e.xlarge or a larger size",
        ),
        (
            "another make of GPU",
            {"compute": {"instance_types": ["g4ad.xlarge"]}},
            "compute.instance_types[0]: g4ad.xlarge is not an x86 type with whole NVIDIA GPUs that is known here; "
            "choose among g4dn.xlarge, g5.xlarge, g6.xlarge, g6e.xlarge or a larger size",
        ),
        (
            "a size that does not exist",
            {"compute": {"instance_types": ["gr6.xlarge"]}},
            "compute.instance_types[0]: gr6.xlarge does not exist; gr6 comes as gr6.4xlarge, gr6.8xlarge",
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
        (
            "lease too long",
            {"queues": [{"lease_seconds": 43_201}]},
            "queues[0].lease_seconds: at most 43200, got 43201",
        ),
        ("lease too short", {"queues": [{"lease_seconds": 9}]}, "queues[0].lease_seconds: at least 10, got 9"),
        (
            "the second queue",
            {"queues": [{}, {"name": "urgent", "prefix": "urgent*"}]},
            "queues[1].prefix: must look like ^[A-Za-z0-9!_.'()/-]*$, got 'urgent*'",
        ),
        ("no queue", {"queues": []}, "queues: at least 1, got 0"),
        (
            "more queues than a Lambda can be told",
            {"queues": [{"name": f"q{n}", "prefix": f"{n}"} for n in range(MOST_QUEUES + 1)]},
            "queues: at most 10, got 11",
        ),
        ("one queue, not a list", {"queues": {"name": "mine"}}, "queues: must be a list, got {'name': 'mine'}"),
        ("as it was once", {"queue": {"max_tasks": 3}}, "queue: unknown key; did you mean queues?"),
        ("a queue's unknown key", {"queues": [{"nam": "mine"}]}, "queues[0].nam: unknown key; did you mean name?"),
        (
            "where its workers may run",
            {"queues": [{"placement": "cheap"}]},
            "queues[0].placement: one of 'any', 'spot' or 'on-demand', got 'cheap'",
        ),
        (
            "two queues of one name",
            {"queues": [{"prefix": "a/"}, {"prefix": "b/"}]},
            "queues: each has a name of its own, got 'default' twice",
        ),
        (
            "two queues of one prefix",
            {"queues": [{"name": "a", "prefix": "in/"}, {"name": "b", "prefix": "in/"}]},
            "queues: each has a prefix of its own, got 'in/' twice",
        ),
        (
            "two queues whose resources would have one name",
            {"queues": [{"name": "big-1"}, {"name": "big1", "prefix": "big/"}]},
            "queues: names must differ in more than hyphens, got 'big-1', 'big1'",
        ),
        (
            "S3 takes no prefix within another",
            {"uploads": {"ingest": "direct"}, "queues": [{}, {"name": "urgent", "prefix": "urgent/"}]},
            "queues[1].prefix: S3 itself takes no prefix within another (uploads.ingest is direct), "
            "got 'urgent/' and ''",
        ),
        (
            "attributes beside a list",
            {"compute": {"attributes": {}, "instance_types": ["g5.xlarge"]}},
            "compute.attributes: instead of instance_types, not beside it; got both",
        ),
        (
            "attributes that nothing has",
            {"compute": {"attributes": {"min_vcpus": 8, "max_vcpus": 4}}},
            "compute.attributes.max_vcpus: at least min_vcpus (8), got 4",
        ),
        (
            "a GPU of another make",
            {"compute": {"attributes": {"gpu_names": ["radeon-pro-v520"]}}},
            "compute.attributes.gpu_names[0]: one of 't4', 'v100', 'a10g', 'l4', 'l40s', 'a100' or 'h100', "
            "got 'radeon-pro-v520'",
        ),
        (
            "a GPU that Auto Scaling has no word for",
            {"profile": "groups", "spot": LOWEST, "compute": {"attributes": {"gpu_names": ["t4", "l4"]}}},
            "compute.attributes.gpu_names: groups know only t4, v100, a100 (profile is groups), got l4",
        ),
        (
            "a strategy that attributes do not go with",
            {"compute": {"attributes": {}}},
            "spot.allocation_strategy: with compute.attributes one of priceCapacityOptimized, capacityOptimized, "
            "lowestPrice, got 'diversified'",
        ),
        (
            "more subnets than EC2 takes attributes",
            {"compute": {"attributes": {}}, "spot": LOWEST, "network": {"zones": 5}},
            "network: at most 4 subnets with compute.attributes, got 5",
        ),
        (
            "attributes that allow too small a host",
            {"compute": {"attributes": {"min_memory_mib": 8192}}, "spot": LOWEST},
            "worker.memory_mib: at most 7526 per GPU on the smallest type that compute.attributes allows, got 12288",
        ),
        (
            "a warm pool of two types",
            {"on_demand": {"warm_units": 1}},
            "on_demand.instance_types: a warm pool has one type (warm_units is 1), got g4dn.xlarge, g5.xlarge",
        ),
        (
            "more warm than there may be",
            {"on_demand": {"instance_types": ["g5.xlarge"], "warm_units": 5}},
            "on_demand.warm_units: at most max_units (4), got 5",
        ),
        ("nobody to tell", {"notify": {"scaling": True}}, "notify.email: must be set when notify.scaling is, got none"),
        (
            "nobody to warn",
            {"notify": {"monthly_budget_usd": 500}},
            "notify.email: must be set when notify.monthly_budget_usd is, got none",
        ),
        (
            "private subnets that are given",
            {"network": {"vpc_id": "vpc-12345678", "subnet_ids": ["subnet-12345678"], "private": True}},
            "network.private: only for a VPC of our own, got vpc_id vpc-12345678 (its subnets are as they are)",
        ),
        ("profile", {"profile": "fleets"}, "profile: one of 'fleet' or 'groups', got 'fleets'"),
        (
            "a bucket's name",
            {"buckets": {"uploads": "mine"}},
            "buckets: unknown key; known are profile, network, compute, spot, on_demand, queues, worker, image, batch, "
            "uploads, security, notify, logs, tags",
        ),
        (
            "stops after the instance",
            {"worker": {"stop_timeout_seconds": 120}},
            "worker.stop_timeout_seconds: at most 110, got 120",
        ),
        (
            "scratch on files that are not shared",
            {"worker": {"scratch": "shared"}},
            "worker.scratch: shared only with worker.shared_files",
        ),
        (
            "a batch for a program that takes one file",
            {"worker": {"command": ["sharpen", "{input}"], "batch": 2}},
            "worker.batch: 1 with a command, which is given one file; got 2",
        ),
        (
            "jobs longer than SQS holds a message",
            {"worker": {"job_seconds": 43_201}},
            "worker.job_seconds: at most 43200, got 43201",
        ),
        (
            "a task that no host can take",
            {"worker": {"memory_mib": 16_384}},
            "worker.memory_mib: at most 15308 per GPU on g4dn.xlarge, got 16384",
        ),
        (
            "more tasks than GPUs",
            {"queues": [{"max_tasks": 9}]},
            "queues[0].max_tasks: at most compute.max_units (8: one GPU each), got 9",
        ),
        (
            "a deadline that nobody says",
            {"on_demand": {"urgency": "deadline"}},
            "queues[0].max_wait_seconds: more than on_demand.patience_seconds (180) when on_demand.urgency is deadline, "
            "got none",
        ),
        (
            "a deadline that help would miss",
            {"on_demand": {"urgency": "deadline"}, "queues": [{"max_wait_seconds": 180}]},
            "queues[0].max_wait_seconds: more than on_demand.patience_seconds (180) when on_demand.urgency is deadline, "
            "got 180",
        ),
        (
            "more tasks than dear GPUs",
            {"queues": [{"placement": "on-demand", "max_tasks": 5}]},
            "queues[0].max_tasks: at most on_demand.max_units (4: one GPU each), got 5",
        ),
        (
            "a weight that is none",
            {"compute": {"weights": {"g5.xlarge": 0}}},
            "compute.weights.g5.xlarge: at least 1, got 0",
        ),
        (
            "a part of a unit",
            {"compute": {"weights": {"g5.xlarge": 2.5}}},
            "compute.weights.g5.xlarge: must be a whole number, got 2.5",
        ),
        (
            "weights where EC2 chooses the types",
            {"compute": {"attributes": {}, "weights": {"g4dn.xlarge": 1, "g5.xlarge": 2}}, "spot": LOWEST},
            "compute.weights: only with compute.instance_types, got compute.attributes",
        ),
        (
            "weights of groups",
            {"profile": "groups", "compute": {"weights": WEIGHTS}},
            "compute.weights: only with profile fleet, got groups",
        ),
        (
            "less than one On-Demand instance, weighed",
            {"compute": {"weights": {**WEIGHTS, "g4dn.xlarge": 6, "g5.xlarge": 5}}},
            "on_demand.max_units: at least 5 (one g5.xlarge) unless urgency is spot-only, got 4",
        ),
        (
            "more tasks than units",
            {"compute": {"weights": WEIGHTS}, "queues": [{"max_tasks": 9}]},
            "queues[0].max_tasks: at most compute.max_units (8: one unit each), got 9",
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


def test_all_mistakes_of_a_list_are_told_and_only_those():
    told = mistakes(queues=[{"name": "Big"}, {"prefix": "a*", "max_failures": 0}])

    assert [line.partition(":")[0] for line in told] == [
        "queues[0].name", "queues[1].prefix", "queues[1].max_failures",
    ]  # fmt: skip


def test_a_deadline_is_wanted_only_where_on_demand_helps_out():
    queues = [{"max_wait_seconds": 181}, {"name": "spare", "prefix": "spare/", "placement": "spot"}]

    assert Settings.read({"on_demand": {"urgency": "deadline"}, "queues": queues}).queues[0].max_wait_seconds == 181


def test_all_mistakes_are_told_at_once_those_between_sections_too():
    told = mistakes(
        network={"zones": 0, "colour": 1},
        worker={"memory_mib": 99_999},
        queues=[{"max_tasks": 99}],
        logs={"retention_days": 2},
    )

    assert [line.partition(":")[0] for line in told] == [
        "network.zones", "network.colour", "logs.retention_days", "queues[0].max_tasks", "worker.memory_mib",
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
    assert Settings.read({"on_demand": {"urgency": "spot-only", "max_units": 0}}).max_on_demand_instances == 0


def test_types_without_a_weight_and_weights_without_a_type_are_all_named():
    told = mistakes(
        compute={"instance_types": ["g5.xlarge", "g6.xlarge"], "weights": {"g5.xlarge": 2, "p3.2xlarge": 3}}
    )

    ours = "compute.instance_types, on_demand.instance_types"
    assert told == [
        f"compute.weights: one for each type of {ours}, none for g4dn.xlarge, g6.xlarge",
        f"compute.weights: only for types of {ours}, got p3.2xlarge",
    ]


def test_a_unit_is_a_gpu_until_types_are_weighed():
    plain = Settings.read({"compute": {"instance_types": ["g5.xlarge", "g5.12xlarge"]}})
    weighed = Settings.read(
        {"compute": {"weights": WEIGHTS}, "on_demand": {"instance_types": ["g6.xlarge", "g4dn.xlarge"], "max_units": 7}}
    )

    assert [plain.units_of(name) for name in ("g5.xlarge", "g5.12xlarge")] == [1, 4]
    assert {name: weighed.units_of(name) for name in WEIGHTS} == WEIGHTS
    assert (plain.on_demand_units, plain.max_on_demand_instances) == (1, 4)
    assert (weighed.on_demand_units, weighed.max_on_demand_instances) == (2, 3)


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


def test_names_of_queues_begin_their_resources():
    assert [Queue(name=name).title for name in ("default", "big-ones", "v2")] == ["Default", "BigOnes", "V2"]
