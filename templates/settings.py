"""What an operator chooses, read from spindrift.toml: frozen, and refused at birth with every mistake named at once."""

from __future__ import annotations

import ipaddress
import re
import tomllib
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from templates.instance_types import INSTANCE_TYPES, must_have_gpu

MOST_OVERRIDES = 300
"""EC2 User Guide, "Fleet quotas": launch specifications or overrides in one Spot Fleet request."""
SMALLEST_ROOT_GIB = 30
"""The snapshot of the ECS AL2023 images (aws/amazon-ecs-ami, variables.pkr.hcl)."""
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


BucketName = Annotated[str, AfterValidator(must_name_a_bucket)]
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

    @model_validator(mode="after")
    def _given_together(self) -> Self:
        if self.vpc_id and not self.subnet_ids:
            raise ValueError(f"subnet_ids: at least one when vpc_id is set, got none for {self.vpc_id}")
        if self.subnet_ids and not self.vpc_id:
            raise ValueError(f"vpc_id: must be set when subnet_ids are, got only {', '.join(self.subnet_ids)}")
        return self

    @property
    def subnets(self) -> int:
        """How many subnets, ours or given: each makes a pool of every instance type."""
        return len(self.subnet_ids) or self.zones


class Compute(Section):
    """What the Spot Fleet may buy."""

    instance_types: InstanceTypes = ("g4dn.xlarge", "g4dn.2xlarge", "g5.xlarge", "g5.2xlarge", "g6.xlarge")
    max_units: Annotated[int, Field(ge=1, le=10_000)] = 8
    root_volume_gib: Annotated[int, Field(ge=SMALLEST_ROOT_GIB, le=16_384)] = 60


class Spot(Section):
    """How the Spot Fleet chooses among its pools."""

    allocation_strategy: Literal[
        "diversified", "priceCapacityOptimized", "capacityOptimized", "capacityOptimizedPrioritized", "lowestPrice"
    ] = "diversified"


class OnDemand(Section):
    """What is bought when Spot is short. The first type is tried first."""

    instance_types: InstanceTypes = ("g4dn.xlarge", "g5.xlarge")
    max_units: Annotated[int, Field(ge=0, le=10_000)] = 4
    urgency: Literal["now", "deadline", "spot-only"] = "now"
    patience_seconds: Annotated[int, Field(ge=0, le=3600)] = 180
    calm_seconds: Annotated[int, Field(ge=0, le=3600)] = 300

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        gpus = {name: INSTANCE_TYPES[name].gpus for name in self.instance_types}
        if len(set(gpus.values())) > 1:
            told = ", ".join(f"{name} {count}" for name, count in gpus.items())
            raise ValueError(f"instance_types: all must have the same number of GPUs, got {told}")
        if self.max_units < self.units_per_instance and self.urgency != "spot-only":
            raise ValueError(
                f"max_units: at least {self.units_per_instance} (one {self.instance_types[0]}) "
                f"unless urgency is spot-only, got {self.max_units}"
            )
        return self

    @property
    def units_per_instance(self) -> int:
        """GPUs of one instance; the same whichever type the group gets."""
        return INSTANCE_TYPES[self.instance_types[0]].gpus

    @property
    def max_instances(self) -> int:
        """The ceiling as whole instances."""
        return self.max_units // self.units_per_instance


class Queue(Section):
    """Where jobs wait, how long a worker may hold one unheard, and how many tasks they are worth."""

    lease_seconds: Annotated[int, Field(ge=10, le=43_200)] = 60
    jobs_per_task: Annotated[int, Field(ge=1)] = 20
    max_tasks: Annotated[int, Field(ge=1, le=5_000)] = 8
    max_failures: Annotated[int, Field(ge=1, le=100)] = 3


class Worker(Section):
    """The container that does the work: one GPU each."""

    cpu: Annotated[int, Field(ge=128)] = 3072
    memory_mib: Annotated[int, Field(ge=256)] = 12_288
    processor: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")] = "gpu_worker.images:process"
    options: dict[str, Any] = Field(default_factory=dict)
    stop_timeout_seconds: Annotated[int, Field(ge=2, le=110)] = 110


class Uploads(Section):
    """Which uploads become jobs."""

    prefix: Annotated[str, Field(max_length=512, pattern=r"^[A-Za-z0-9!_.*'()/-]*$")] = ""


class Buckets(Section):
    """Names for the buckets; without one, CloudFormation invents it."""

    uploads: BucketName | None = None
    results: BucketName | None = None

    @model_validator(mode="after")
    def _two(self) -> Self:
        if self.uploads and self.uploads == self.results:
            raise ValueError(f"results: must differ from buckets.uploads, got {self.results!r} for both")
        return self


class Logs(Section):
    """How long logs are kept."""

    retention_days: Retention = 30


class Settings(Section):
    """All of spindrift.toml. Every key has a default that is safe and cheap."""

    network: Network = Network()
    compute: Compute = Compute()
    spot: Spot = Spot()
    on_demand: OnDemand = OnDemand()
    queue: Queue = Queue()
    worker: Worker = Worker()
    uploads: Uploads = Uploads()
    buckets: Buckets = Buckets()
    logs: Logs = Logs()
    tags: dict[str, str] = Field(default_factory=dict)

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
                mistakes += [_told(mistake) for mistake in error.errors()]
        for law in LAWS:
            if set(law.__annotations__) - {"return"} <= good.keys():
                mistakes += law(**{name: good[name] for name in law.__annotations__ if name != "return"})
        if mistakes:
            raise BadSettings("\n".join(mistakes))
        return cls(**good)


def _tasks_fit_their_gpus(queue: Queue, compute: Compute) -> list[str]:
    if queue.max_tasks <= compute.max_units:
        return []
    return [f"queue.max_tasks: at most compute.max_units ({compute.max_units}: one GPU each), got {queue.max_tasks}"]


def _task_fits_its_host(worker: Worker, compute: Compute, on_demand: OnDemand) -> list[str]:
    names = dict.fromkeys(compute.instance_types + on_demand.instance_types)
    tight = min(names, key=lambda name: INSTANCE_TYPES[name].memory_mib_per_gpu)
    slow = min(names, key=lambda name: INSTANCE_TYPES[name].cpu_per_gpu)
    mistakes = []
    if worker.memory_mib > (most := INSTANCE_TYPES[tight].memory_mib_per_gpu):
        mistakes.append(f"worker.memory_mib: at most {most} per GPU on {tight}, got {worker.memory_mib}")
    if worker.cpu > (most := INSTANCE_TYPES[slow].cpu_per_gpu):
        mistakes.append(f"worker.cpu: at most {most} per GPU on {slow}, got {worker.cpu}")
    return mistakes


def _pools_fit_the_fleet(compute: Compute, network: Network) -> list[str]:
    pools = len(compute.instance_types) * network.subnets
    if pools <= MOST_OVERRIDES:
        return []
    return [f"compute.instance_types: types times subnets is at most {MOST_OVERRIDES} in a Spot Fleet, got {pools}"]


LAWS: tuple[Callable[..., list[str]], ...] = (_tasks_fit_their_gpus, _task_fits_its_host, _pools_fit_the_fleet)
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
    "dict_type": "must be a table",
    "model_type": "must be a table",
}


def _told(mistake: Any) -> str:
    """One of pydantic's errors in our words: key, limit, value."""
    keys = [part for part in mistake["loc"] if isinstance(part, str)]
    key, kind = ".".join(keys), mistake["type"]
    if kind == "extra_forbidden":
        known = _siblings(keys)
        near = get_close_matches(keys[-1], known, n=1)
        return f"{key}: unknown key; " + (f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}")
    if kind == "value_error":
        told = str(mistake["ctx"]["error"])
        whole_section = len(keys) == 1 and key != "tags"
        return f"{key}.{told}" if whole_section else f"{key}: {told}"
    limit = _LIMITS.get(kind, mistake["msg"]).format(**mistake.get("ctx", {}))
    return f"{key}: {limit}, got {mistake['input']!r}"


def _siblings(keys: list[str]) -> list[str]:
    if len(keys) == 1:
        return list(Settings.model_fields)
    section = Settings.model_fields[keys[0]].annotation
    return list(section.model_fields) if isinstance(section, type) and issubclass(section, Section) else []
