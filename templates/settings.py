"""What an operator chooses, read from spindrift.toml: frozen, and refused at birth with every mistake named at once."""

from __future__ import annotations

import ipaddress
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from math import ceil
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from templates.instance_types import INSTANCE_TYPES, InstanceType, must_have_gpu

MOST_OVERRIDES = 300
"""EC2 User Guide, "Fleet quotas": launch specifications or overrides in one Spot Fleet request."""
SMALLEST_ROOT_GIB = 30
"""The snapshot of the ECS AL2023 images (aws/amazon-ecs-ami, variables.pkr.hcl)."""
MOST_QUEUES = 10
"""So many are told to the Lambdas in their environment, of which Lambda takes 4 KB (Developer Guide, "Quotas")."""
HEAVIEST = 999
"""The most that Auto Scaling takes for a weight (API reference, LaunchTemplateOverrides); Spot Fleet names no limit."""
SMALLEST_PRIVATE = 22
"""With eleven usable addresses in a subnet, as a /24 gives, the interface endpoints leave none to the instances."""
STACK_TAG = "spindrift:stack"
"""On everything that can be tagged: the permissions to drain and terminate are conditioned on it."""

Retention = Literal[1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288]
"""The days that CloudWatch Logs accepts (PutRetentionPolicy), up to nine years."""


class BadSettings(Exception):
    """Everything that is wrong with the settings, one line each: key, limit, value."""


def must_name_a_bucket(name: str) -> str:
    """The name itself; ValueError when S3 would refuse it (S3 User Guide, "General purpose bucket naming rules")."""
    if not 3 <= len(name) <= 63:
        raise ValueError(f"{name!r} has {len(name)} characters; S3 wants 3 to 63")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*[a-z0-9]", name):
        raise ValueError(
            f"{name!r}: S3 wants lower-case letters, digits, dots and hyphens, with a letter or digit at both ends"
        )
    if ".." in name or re.fullmatch(r"\d+\.\d+\.\d+\.\d+", name):
        raise ValueError(f"{name!r}: S3 refuses two dots in a row, and anything like an IP address")
    if name.startswith(("xn--", "sthree-", "amzn-s3-demo-")) or name.endswith(
        ("-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3", "-an")
    ):
        raise ValueError(f"{name!r}: S3 keeps this prefix or suffix for itself")
    return name


def must_be_a_network(cidr: str) -> str:
    """The block itself; ValueError unless it is an IPv4 block with room for sixteen subnets."""
    try:
        block = ipaddress.IPv4Network(cidr)
    except ValueError as error:
        raise ValueError(f"{cidr!r} is not an IPv4 block such as 10.42.0.0/16 ({error})") from error
    if not 16 <= block.prefixlen <= 24:
        raise ValueError(f"{cidr!r} must be between /16 (a VPC's largest) and /24 (it is cut into sixteen subnets)")
    return cidr


def must_be_some(values: tuple[str, ...]) -> tuple[str, ...]:
    """The values themselves; ValueError when there is none."""
    if not values:
        raise ValueError("at least 1, got none")
    return values


def must_differ(values: tuple[str, ...]) -> tuple[str, ...]:
    """The values themselves; ValueError when one is there twice (it would make two pools of one)."""
    if twice := sorted({value for value in values if values.count(value) > 1}):
        raise ValueError(f"{', '.join(twice)} is there twice")
    return values


GpuName = Literal["t4", "v100", "a10g", "l4", "l40s", "a100", "h100"]
"""EC2's words (AcceleratorNames of InstanceRequirements) for the GPUs of the types that we know."""
InstanceTypes = Annotated[
    tuple[Annotated[str, AfterValidator(must_have_gpu)], ...], AfterValidator(must_be_some), AfterValidator(must_differ)
]


class Section(BaseModel):
    """A part of the settings: unknown keys are mistakes, and nothing changes after birth."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Network(Section):
    """Where instances live: a VPC of our own, or one that is given with its subnets."""

    vpc_id: Annotated[str, Field(pattern=r"^vpc-[0-9a-f]{8,17}$")] | None = None
    subnet_ids: Annotated[
        tuple[Annotated[str, Field(pattern=r"^subnet-[0-9a-f]{8,17}$")], ...], AfterValidator(must_differ)
    ] = ()
    cidr: Annotated[str, AfterValidator(must_be_a_network)] = "10.42.0.0/16"
    zones: Annotated[int, Field(ge=1, le=6)] = 3
    private: bool = False

    @model_validator(mode="after")
    def _given_together(self) -> Self:
        if self.vpc_id and not self.subnet_ids:
            raise ValueError(f"subnet_ids: at least one when vpc_id is set, got none for {self.vpc_id}")
        if self.subnet_ids and not self.vpc_id:
            raise ValueError(f"vpc_id: must be set when subnet_ids are, got only {', '.join(self.subnet_ids)}")
        if self.vpc_id and self.private:
            raise ValueError(
                f"private: only for a VPC of our own, got vpc_id {self.vpc_id} (its subnets are as they are)"
            )
        return self

    @property
    def subnets(self) -> int:
        """How many subnets, ours or given: each makes a pool of every instance type."""
        return len(self.subnet_ids) or self.zones


class Attributes(Section):
    """Which types the Spot Fleet may buy, by what they have beside one GPU: EC2 adds new ones by itself. Memory in MiB.

    One GPU, because EC2 takes no weights with attributes: it counts instances, we count GPUs.
    """

    gpu_names: tuple[GpuName, ...] = ()
    min_vcpus: Annotated[int, Field(ge=1, le=1024)] = 4
    max_vcpus: Annotated[int, Field(ge=1, le=1024)] | None = None
    min_memory_mib: Annotated[int, Field(ge=1024)] = 16_384
    max_memory_mib: Annotated[int, Field(ge=1024)] | None = None
    exclude: Annotated[tuple[Annotated[str, Field(pattern=r"^[a-z0-9.*-]{1,30}$")], ...], Field(max_length=400)] = ()

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        for key in ("vcpus", "memory_mib"):
            least, most = getattr(self, f"min_{key}"), getattr(self, f"max_{key}")
            if most is not None and most < least:
                raise ValueError(f"max_{key}: at least min_{key} ({least}), got {most}")
        return self


class Compute(Section):
    """What the Spot Fleet may buy: types from a list, or by attributes; and what an instance of each type is worth."""

    instance_types: InstanceTypes = ("g4dn.xlarge", "g4dn.2xlarge", "g5.xlarge", "g5.2xlarge", "g6.xlarge")
    attributes: Attributes | None = None
    weights: dict[str, Annotated[int, Field(ge=1, le=HEAVIEST)]] = Field(default_factory=dict)
    max_units: Annotated[int, Field(ge=1, le=10_000)] = 8
    root_volume_gib: Annotated[int, Field(ge=SMALLEST_ROOT_GIB, le=16_384)] = 60

    @model_validator(mode="after")
    def _one_choice(self) -> Self:
        if self.attributes and "instance_types" in self.model_fields_set:
            raise ValueError("attributes: instead of instance_types, not beside it; got both")
        return self


class Spot(Section):
    """How the Spot Fleet chooses among its pools."""

    allocation_strategy: Literal[
        "diversified", "priceCapacityOptimized", "capacityOptimized", "capacityOptimizedPrioritized", "lowestPrice"
    ] = "diversified"


class OnDemand(Section):
    """What is bought when Spot is short. The first type is tried first."""

    instance_types: InstanceTypes = ("g4dn.xlarge", "g5.xlarge")
    max_units: Annotated[int, Field(ge=0, le=10_000)] = 4
    warm_units: Annotated[int, Field(ge=0, le=10_000)] = 0
    urgency: Literal["now", "deadline", "spot-only"] = "now"
    patience_seconds: Annotated[int, Field(ge=0, le=3600)] = 180
    calm_seconds: Annotated[int, Field(ge=0, le=3600)] = 180

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        gpus = {name: INSTANCE_TYPES[name].gpus for name in self.instance_types}
        if len(set(gpus.values())) > 1:
            told = ", ".join(f"{name} {count}" for name, count in gpus.items())
            raise ValueError(f"instance_types: all must have the same number of GPUs, got {told}")
        return self

    @model_validator(mode="after")
    def _warm_ones_are_alike(self) -> Self:
        if self.warm_units > self.max_units:
            raise ValueError(f"warm_units: at most max_units ({self.max_units}), got {self.warm_units}")
        if self.warm_units and len(self.instance_types) > 1:
            told = ", ".join(self.instance_types)
            raise ValueError(f"instance_types: a warm pool has one type (warm_units is {self.warm_units}), got {told}")
        return self


class Queue(Section):
    """Where jobs wait, which uploads become its jobs, which machines may do them, and how many tasks they are worth."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$", max_length=40)] = "default"
    prefix: Annotated[str, Field(max_length=100, pattern=r"^[A-Za-z0-9!_.'()/-]*$")] = ""
    placement: Literal["any", "spot", "on-demand"] = "any"
    lease_seconds: Annotated[int, Field(ge=10, le=43_200)] = 60
    jobs_per_task: Annotated[int, Field(ge=1)] = 20
    max_tasks: Annotated[int, Field(ge=1, le=5_000)] = 8
    max_failures: Annotated[int, Field(ge=1, le=100)] = 3
    max_wait_seconds: Annotated[int, Field(ge=60, le=1_209_600)] | None = None

    @property
    def title(self) -> str:
        """What the logical ids of its resources begin with: `big-ones` is BigOnes."""
        return "".join(part.capitalize() for part in self.name.split("-"))


class Worker(Section):
    """The container that does the work: one GPU each."""

    cpu: Annotated[int, Field(ge=128)] = 3072
    memory_mib: Annotated[int, Field(ge=256)] = 12_288
    processor: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")] = "gpu_worker.images:process"
    command: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    options: dict[str, Any] = Field(default_factory=dict)
    job_seconds: Annotated[int, Field(ge=1, le=43_200)] = 900
    max_input_mib: Annotated[int, Field(ge=1, le=2**20)] = 1024
    max_output_mib: Annotated[int, Field(ge=1, le=2**20)] = 8192
    processors: Annotated[int, Field(ge=1, le=32)] = 1
    batch: Annotated[int, Field(ge=1, le=32)] = 1
    scratch: Literal["disk", "memory", "shared"] = "disk"
    stop_timeout_seconds: Annotated[int, Field(ge=2, le=110)] = 110
    shared_files: bool = False

    @model_validator(mode="after")
    def _scratch_is_there(self) -> Self:
        if self.scratch == "shared" and not self.shared_files:
            raise ValueError("scratch: shared only with worker.shared_files")
        return self

    @model_validator(mode="after")
    def _a_command_takes_one(self) -> Self:
        if self.command and self.batch > 1:
            raise ValueError(f"batch: 1 with a command, which is given one file; got {self.batch}")
        return self

    @model_validator(mode="after")
    def _one_processor(self) -> Self:
        if self.command and self.processor != type(self).model_fields["processor"].default:
            raise ValueError("a processor or a command, not both")
        return self


class Uploads(Section):
    """How uploads become jobs, and what becomes of them."""

    ingest: Literal["lambda", "direct"] = "lambda"
    delete_after_success: bool = False


class Security(Section):
    """Who holds the keys."""

    customer_key: bool = True
    session_manager: bool = False


class Notify(Section):
    """What people are told, and when."""

    email: Annotated[str, Field(pattern=r"^[^@\s]+@[^@\s]+\.[^@\s]+$", max_length=254)] | None = None
    scaling: bool = False
    on_demand_hours: Annotated[int, Field(ge=1, le=24)] = 6
    monthly_budget_usd: Annotated[int, Field(ge=1, le=10_000_000)] | None = None

    @model_validator(mode="after")
    def _somebody_listens(self) -> Self:
        for key in ("scaling", "monthly_budget_usd"):
            if getattr(self, key) and not self.email:
                raise ValueError(f"email: must be set when notify.{key} is, got none")
        return self


class Logs(Section):
    """How long logs are kept."""

    retention_days: Retention = 30


Archive = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*\.tar(\.[a-z0-9]+)?$", max_length=500)]
"""The key of a tar in the assets bucket, compressed or not."""
Family = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{1,19}$")]
"""A family of instance types, as g4dn."""
App = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,39}$")]


class Image(Section):
    """The image of our own: on what it is built, what is put into it, and how many are kept."""

    instance_types: Annotated[
        tuple[Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*\.[a-z0-9-]+$")], ...],
        AfterValidator(must_be_some),
        AfterValidator(must_differ),
    ] = ("g4dn.xlarge",)
    keep: Annotated[int, Field(ge=1, le=10)] = 2
    in_use_days: Annotated[int, Field(ge=1, le=365)] = 30
    apps: dict[App, dict[Family, Archive]] = Field(default_factory=dict)


class Batch(Section):
    """For the stack `batch`."""

    attempts: Annotated[int, Field(ge=1, le=10)] = 10


class Settings(Section):
    """All of spindrift.toml. Every key has a default that is safe and cheap."""

    profile: Literal["fleet", "groups"] = "fleet"
    network: Network = Network()
    compute: Compute = Compute()
    spot: Spot = Spot()
    on_demand: OnDemand = OnDemand()
    queues: Annotated[tuple[Queue, ...], Field(min_length=1, max_length=MOST_QUEUES)] = (Queue(),)
    worker: Worker = Worker()
    image: Image = Image()
    batch: Batch = Batch()
    uploads: Uploads = Uploads()
    security: Security = Security()
    notify: Notify = Notify()
    logs: Logs = Logs()
    tags: dict[str, str] = Field(default_factory=dict)

    @field_validator("queues")
    @classmethod
    def _told_apart(cls, queues: tuple[Queue, ...]) -> tuple[Queue, ...]:
        for key in ("name", "prefix"):
            values = [getattr(queue, key) for queue in queues]
            if twice := sorted({value for value in values if values.count(value) > 1}):
                raise ValueError(f"each has a {key} of its own, got {', '.join(map(repr, twice))} twice")
        for title in {queue.title for queue in queues}:
            if len(alike := [queue.name for queue in queues if queue.title == title]) > 1:
                raise ValueError(f"names must differ in more than hyphens, got {', '.join(map(repr, alike))}")
        return queues

    @field_validator("tags")
    @classmethod
    def _ours_and_theirs(cls, tags: dict[str, str]) -> dict[str, str]:
        for key in tags:
            if key == STACK_TAG or key.lower().startswith("aws:") or not 1 <= len(key) <= 128:
                raise ValueError(f"{key!r} cannot be set; {STACK_TAG} is ours, aws: is AWS's, 128 characters at most")
        if len(tags) > 40:
            raise ValueError(f"at most 40 (AWS takes 50, some are ours and some its own), got {len(tags)}")
        return tags

    @classmethod
    def load(cls, path: Path) -> Self:
        """The settings in a TOML file. Raises BadSettings."""
        try:
            return cls.read(tomllib.loads(path.read_text("utf-8")))
        except FileNotFoundError as error:
            raise BadSettings(f"{path}: there is no such file") from error
        except (OSError, UnicodeDecodeError) as error:
            raise BadSettings(f"{path}: cannot be read ({error})") from error
        except tomllib.TOMLDecodeError as error:
            raise BadSettings(f"{path}: not TOML: {error}") from error

    @classmethod
    def read(cls, table: Mapping[str, Any]) -> Self:
        """The settings in a table of tables. Raises BadSettings with all mistakes, those between sections too."""
        mistakes: list[str] = []
        good: dict[str, Any] = {}
        for name in [*cls.model_fields, *(name for name in table if name not in cls.model_fields)]:
            try:
                good[name] = getattr(cls.model_validate({name: table[name]} if name in table else {}), name)
            except ValidationError as error:
                mistakes += [_told(mistake) for mistake in error.errors() if not _is_echo(mistake)]
        for law in LAWS:
            if set(law.__annotations__) - {"return"} <= good.keys():
                mistakes += law(**{name: good[name] for name in law.__annotations__ if name != "return"})
        if mistakes:
            raise BadSettings("\n".join(mistakes))
        return cls(**good)

    def units_of(self, instance_type: str) -> int:
        """How many units an instance of this type is: its weight, or, where nobody weighs, its GPUs."""
        return _units_of(instance_type, self.compute)

    @property
    def on_demand_units(self) -> int:
        """Units of one On-Demand instance.

        Its group counts instances, of whichever type it gets: each is taken for the least of them, so that rather a
        little too much is bought than too little.
        """
        return _least(self.on_demand, self.compute)[0]

    @property
    def max_on_demand_instances(self) -> int:
        """The ceiling of On-Demand as whole instances."""
        return self.on_demand.max_units // self.on_demand_units

    @property
    def warm_instances(self) -> int:
        """How many On-Demand instances wait stopped."""
        return ceil(self.on_demand.warm_units / self.on_demand_units)


def _units_of(name: str, compute: Compute) -> int:
    return compute.weights.get(name, INSTANCE_TYPES[name].gpus)


def _least(on_demand: OnDemand, compute: Compute) -> tuple[int, str]:
    """Units of the least of the On-Demand types, and which that is."""
    units, rank = min((_units_of(name, compute), rank) for rank, name in enumerate(on_demand.instance_types))
    return units, on_demand.instance_types[rank]


def _tasks_fit_their_gpus(queues: tuple[Queue, ...], compute: Compute, on_demand: OnDemand) -> list[str]:
    mistakes = []
    for place, queue in enumerate(queues):
        key, most = "compute.max_units", compute.max_units
        if queue.placement == "on-demand":
            key, most = "on_demand.max_units", on_demand.max_units
        if queue.max_tasks > most:
            each = "one unit" if compute.weights else "one GPU"
            mistakes.append(f"queues[{place}].max_tasks: at most {key} ({most}: {each} each), got {queue.max_tasks}")
    return mistakes


def _on_demand_may_have_one(on_demand: OnDemand, compute: Compute) -> list[str]:
    least, name = _least(on_demand, compute)
    if on_demand.max_units >= least or on_demand.urgency == "spot-only":
        return []
    return [
        f"on_demand.max_units: at least {least} (one {name}) unless urgency is spot-only, got {on_demand.max_units}"
    ]


def _all_types_are_weighed_or_none(profile: str, compute: Compute, on_demand: OnDemand) -> list[str]:
    """A fleet counts GPUs, or what instances are worth: of both at once no sum would make sense."""
    weights = compute.weights
    if not weights:
        return []
    mistakes = ["compute.weights: only with profile fleet, got groups"] if profile == "groups" else []
    if compute.attributes:
        return [*mistakes, "compute.weights: only with compute.instance_types, got compute.attributes"]
    ours = "compute.instance_types, on_demand.instance_types"
    bought = {*compute.instance_types, *on_demand.instance_types}
    if missing := sorted(bought - weights.keys()):
        mistakes.append(f"compute.weights: one for each type of {ours}, none for {', '.join(missing)}")
    if others := sorted(weights.keys() - bought):
        mistakes.append(f"compute.weights: only for types of {ours}, got {', '.join(others)}")
    return mistakes


def _a_deadline_is_said(queues: tuple[Queue, ...], on_demand: OnDemand) -> list[str]:
    """Help takes patience_seconds to be there: with less to wait, it would always be too late."""
    if on_demand.urgency != "deadline":
        return []
    return [
        f"queues[{place}].max_wait_seconds: more than on_demand.patience_seconds ({on_demand.patience_seconds}) "
        f"when on_demand.urgency is deadline, got {queue.max_wait_seconds or 'none'}"
        for place, queue in enumerate(queues)
        if queue.placement == "any" and (queue.max_wait_seconds or 0) <= on_demand.patience_seconds
    ]


def _prefixes_can_be_told_apart_by_s3(queues: tuple[Queue, ...], uploads: Uploads) -> list[str]:
    """S3 refuses overlapping filters (S3 User Guide, "Configuring event notifications using object key name")."""
    if uploads.ingest == "lambda":
        return []
    return [
        f"queues[{place}].prefix: S3 itself takes no prefix within another (uploads.ingest is direct), "
        f"got {queue.prefix!r} and {other.prefix!r}"
        for place, queue in enumerate(queues)
        for other in queues
        if other is not queue and queue.prefix.startswith(other.prefix)
    ]


def _task_fits_its_host(worker: Worker, compute: Compute, on_demand: OnDemand) -> list[str]:
    hosts = {name: INSTANCE_TYPES[name] for name in on_demand.instance_types}
    if wanted := compute.attributes:
        smallest = InstanceType(1, wanted.min_vcpus, wanted.min_memory_mib)
        hosts["the smallest type that compute.attributes allows"] = smallest
    else:
        hosts |= {name: INSTANCE_TYPES[name] for name in compute.instance_types}
    tight = min(hosts, key=lambda name: hosts[name].memory_mib_per_gpu)
    slow = min(hosts, key=lambda name: hosts[name].cpu_per_gpu)
    mistakes = []
    if worker.memory_mib > (most := hosts[tight].memory_mib_per_gpu):
        mistakes.append(f"worker.memory_mib: at most {most} per GPU on {tight}, got {worker.memory_mib}")
    if worker.cpu > (most := hosts[slow].cpu_per_gpu):
        mistakes.append(f"worker.cpu: at most {most} per GPU on {slow}, got {worker.cpu}")
    return mistakes


def _apps_are_there_for_every_family(image: Image, compute: Compute, on_demand: OnDemand) -> list[str]:
    """Attributes let EC2 choose among families that nobody has built for."""
    if not image.apps:
        return []
    if compute.attributes:
        return [
            "image.apps: only with compute.instance_types, since each family has an archive; got compute.attributes"
        ]
    families = {name.partition(".")[0] for name in (*compute.instance_types, *on_demand.instance_types)}
    return [
        f"image.apps.{app}: an archive for each family of instance_types, none for {', '.join(missing)}"
        for app, archives in image.apps.items()
        if (missing := sorted(families - archives.keys()))
    ]


def _one_thing_is_shared(image: Image, worker: Worker) -> list[str]:
    if image.apps and worker.shared_files:
        return ["image.apps: not with worker.shared_files, since tasks find either at /shared; got both"]
    return []


def _pools_fit_the_fleet(compute: Compute, network: Network) -> list[str]:
    pools = (1 if compute.attributes else len(compute.instance_types)) * network.subnets
    if pools <= MOST_OVERRIDES:
        return []
    return [f"compute.instance_types: types times subnets is at most {MOST_OVERRIDES} in a Spot Fleet, got {pools}"]


def _attributes_are_what_ec2_takes(profile: str, compute: Compute, spot: Spot, network: Network) -> list[str]:
    """EC2 User Guide, "Specify attributes for instance type selection for EC2 Fleet or Spot Fleet", considerations; and
    Auto Scaling's API has fewer names of GPUs than EC2's (botocore 1.43, AcceleratorName of both).
    """
    if not (wanted := compute.attributes):
        return []
    mistakes = []
    if spot.allocation_strategy not in (known := ("priceCapacityOptimized", "capacityOptimized", "lowestPrice")):
        mistakes.append(
            f"spot.allocation_strategy: with compute.attributes one of {', '.join(known)}, "
            f"got {spot.allocation_strategy!r}"
        )
    if profile == "fleet" and network.subnets > 4:
        mistakes.append(f"network: at most 4 subnets with compute.attributes, got {network.subnets}")
    if profile == "groups" and (unknown := [name for name in wanted.gpu_names if name not in ("t4", "v100", "a100")]):
        mistakes.append(
            f"compute.attributes.gpu_names: groups know only t4, v100, a100 (profile is groups), "
            f"got {', '.join(unknown)}"
        )
    return mistakes


LAWS: tuple[Callable[..., list[str]], ...] = (
    _tasks_fit_their_gpus,
    _on_demand_may_have_one,
    _all_types_are_weighed_or_none,
    _a_deadline_is_said,
    _prefixes_can_be_told_apart_by_s3,
    _task_fits_its_host,
    _apps_are_there_for_every_family,
    _one_thing_is_shared,
    _pools_fit_the_fleet,
    _attributes_are_what_ec2_takes,
)
"""What must hold between sections: functions of the sections they name, asked when those are good in themselves."""

_LIMITS = {
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "string_too_long": "at most {max_length} characters",
    "string_pattern_mismatch": "must look like {pattern}",
    "literal_error": "one of {expected}",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "string_type": "must be text",
    "tuple_type": "must be a list",
    "too_short": "at least {min_length}",
    "too_long": "at most {max_length}",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "dict_type": "must be a table",
    "model_type": "must be a table",
}
_COUNTED = ("too_short", "too_long")


def _is_echo(mistake: Any) -> bool:
    """A list that is too short only because pydantic dropped the entries that it complains of already."""
    return bool(mistake["type"] == "too_short" and len(mistake["input"]) >= mistake["ctx"]["min_length"])


def _told(mistake: Any) -> str:
    """One of pydantic's errors in our words: key, limit, value."""
    place, kind = mistake["loc"], mistake["type"]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")
    if kind == "extra_forbidden":
        known = list(_section(place[:-1]).model_fields)
        near = get_close_matches(str(place[-1]), known, n=1)
        return f"{key}: unknown key; " + (f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}")
    if kind == "value_error":
        # A section says itself which of its keys is wrong.
        between = "." if isinstance(mistake["input"], dict) and place[-1:] != ("tags",) else ": "
        return f"{key}{between}{mistake['ctx']['error']}"
    limit = _LIMITS.get(kind, mistake["msg"]).format(**mistake.get("ctx", {}))
    return f"{key}: {limit}, got {len(mistake['input']) if kind in _COUNTED else repr(mistake['input'])}"


def _section(place: Sequence[str | int]) -> type[BaseModel]:
    """The section that a place in the settings belongs to."""
    section: type[BaseModel] = Settings
    for name in (part for part in place if isinstance(part, str)):
        kinds = _flat(section.model_fields[name].annotation)
        section = next(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section))
    return section


def _flat(annotation: Any) -> list[Any]:
    return [annotation, *(inner for part in get_args(annotation) for inner in _flat(part))]
