"""What is found out about an account, and the judgements of what AWS answers: each a function of the answer. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal

from templates.instance_types import INSTANCE_TYPES, InstanceType
from templates.machines import ROOT_DEVICE
from templates.settings import Worker

OK: Literal["ok"] = "ok"
PROBLEM: Literal["problem"] = "problem"
COULD_NOT_LOOK: Literal["could not look"] = "could not look"
State = Literal["ok", "problem", "could not look"]
Market = Literal["spot", "on-demand"]

QUOTAS: Mapping[tuple[Market, str], tuple[str, str]] = {
    ("spot", "g"): ("L-3819A6DF", "All G and VT Spot Instance Requests"),
    ("spot", "p"): ("L-7212CCBC", "All P4, P3 and P2 Spot Instance Requests"),
    ("spot", "p5"): ("L-C4BD4855", "All P5 Spot Instance Requests"),
    ("on-demand", "g"): ("L-DB2E81BA", "Running On-Demand G and VT instances"),
    ("on-demand", "p"): ("L-417A185B", "Running On-Demand P instances"),
    **{("on-demand", letter): ("L-1216C47A", "Running On-Demand Standard instances") for letter in "acdimrt"},
}
"""Code and name of EC2's quotas, in vCPUs, by market and family (EC2 User Guide, "Spot Instance quotas" and
"On-Demand Instance quotas"; 0 in a new account)."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    state: State
    what: str
    do: str = ""
    """What the operator can do about it."""


@dataclass(frozen=True)
class Offered:
    """An instance type as EC2 describes it."""

    size: InstanceType
    markets: frozenset[str]
    """`spot`, `on-demand`, `capacity-block`."""


def family(name: str, market: Market) -> str:
    """Which quota an instance type counts against: `g`, `p` or `p5`. That of newer P is not known."""
    generation = name[:2]
    if market == "spot" and generation > "p4":
        return generation
    return name[0]


def vcpus_for(units: int, size: InstanceType) -> int:
    """The vCPUs of as many whole instances as `units` GPUs take."""
    return ceil(units / size.gpus) * size.vcpus


def weigh_quota(
    market: Market, group: str, limit: float, units: int, key: str, sizes: Sequence[InstanceType]
) -> Finding:
    """A quota of `limit` vCPUs against the `units` that `key` of the settings could ask of these sizes."""
    needs = sorted(vcpus_for(units, size) for size in sizes)
    allows = sorted(min(units, int(limit // size.vcpus) * size.gpus) for size in sizes)
    least, most = f"{needs[0]:,}", f"{needs[-1]:,}"
    subject, raised = _quota(market, group, limit, needs[-1])
    span = most if least == most else f"{least} to {most}, by the types that it gets"
    asked = f"{key} = {units} takes {span}"
    if limit >= needs[-1]:
        return Finding(OK, f"{subject}; {asked}")
    if not allows[-1]:
        none = "is nothing: not one instance will ever start" if limit == 0 else "is less than one instance"
        return Finding(PROBLEM, f"{subject} {none}; {asked}", raised)
    allowed = f"{allows[0]} to {allows[-1]}" if allows[0] != allows[-1] else f"{allows[0]}"
    return Finding(
        PROBLEM, f"{subject} allow {allowed} of {units} units; {asked}", f"{raised}, or lower {key} to {allows[0] or 1}"
    )


def weigh_build(group: str, limit: float, kind: str, vcpus: int) -> Finding:
    """A quota against one instance of a type that an image is baked on; there is one at a time, and On-Demand."""
    subject, raised = _quota("on-demand", group, limit, vcpus)
    what = f"{subject}; a build takes {vcpus} ({kind})"
    if limit >= vcpus:
        return Finding(OK, what)
    return Finding(PROBLEM, what, f"{raised}, or choose other image.instance_types")


def _quota(market: Market, group: str, limit: float, wanted: int) -> tuple[str, str]:
    """What a quota is called and is, and the command that raises it to what is wanted, in vCPUs."""
    quota, name = QUOTAS[market, group]
    raised = (
        "aws service-quotas request-service-quota-increase --service-code ec2 "
        f"--quota-code {quota} --desired-value {wanted}"
    )
    return f"quota {name} ({quota}): {limit:,.0f} vCPUs", raised


def weigh_pools(names: Sequence[str], zones: Collection[str], there: Collection[tuple[str, str]]) -> list[Finding]:
    """The pools (type, zone) that exist, against those that the settings name."""
    nowhere = [name for name in names if not any((name, zone) in there for zone in zones)]
    missing = [
        f"{name} in {zone}" for name in names if name not in nowhere for zone in zones if (name, zone) not in there
    ]
    found = len(names) * len(zones) - len(missing) - len(nowhere) * len(zones)
    findings = [
        Finding(PROBLEM, f"instance type {name} is in none of {', '.join(zones)}", f"take {name} out of the settings")
        for name in nowhere
    ]
    without = f"; passed over: {', '.join(missing)}" if missing else ""
    if found:
        findings.append(Finding(OK, f"pools (type and zone): {found} of {len(names) * len(zones)} exist{without}"))
    return findings


def weigh_attributes(names: Sequence[str], zones: Collection[str], there: Collection[tuple[str, str]]) -> Finding:
    """The types that EC2 finds by attributes, and the pools that they make."""
    pools = [(name, zone) for name in names for zone in zones if (name, zone) in there]
    if not pools:
        what = f"compute.attributes: no type in {', '.join(zones)} satisfies them"
        return Finding(PROBLEM, what, "widen compute.attributes")
    return Finding(OK, f"compute.attributes: {len(pools)} pools today, of {', '.join(names)}")


def weigh_task(worker: Worker, sizes: Mapping[str, InstanceType]) -> list[Finding]:
    """One task for each GPU, against what ECS will register of each type."""
    tight = min(sizes, key=lambda name: sizes[name].memory_mib_per_gpu)
    slow = min(sizes, key=lambda name: sizes[name].cpu_per_gpu)
    memory, cpu = sizes[tight].memory_mib_per_gpu, sizes[slow].cpu_per_gpu
    findings = []
    if worker.memory_mib > memory:
        what = f"task: {worker.memory_mib:,} MiB do not fit beside one GPU of {tight}, which leaves {memory:,} MiB"
        findings.append(Finding(PROBLEM, what, f"lower worker.memory_mib to {memory}, or take {tight} out"))
    if worker.cpu > cpu:
        what = f"task: {worker.cpu:,} CPU units do not fit beside one GPU of {slow}, which has {cpu:,}"
        findings.append(Finding(PROBLEM, what, f"lower worker.cpu to {cpu}, or take {slow} out"))
    fits = (
        f"task: {worker.cpu:,} CPU units and {worker.memory_mib:,} MiB fit beside each GPU; the tightest are "
        f"{cpu:,} units ({slow}) and {memory:,} MiB ({tight})"
    )
    return findings or [Finding(OK, fits)]


def weigh_types(wanted: Collection[tuple[str, Market]], offered: Mapping[str, Offered]) -> Iterator[Finding]:
    """What EC2 says of each type, against our table and the market that it is wanted from. The pools tell of others."""
    for name, market in wanted:
        if name in offered and market not in offered[name].markets:
            yield Finding(PROBLEM, f"instance type {name}: EC2 does not sell it as {market}", f"take {name} out")
    for name in sorted({name for name, _ in wanted} & offered.keys()):
        size, known = offered[name].size, INSTANCE_TYPES.get(name)
        if known and known != size:
            yield Finding(
                PROBLEM,
                f"instance type {name}: EC2 has {size.gpus} GPUs, {size.vcpus} vCPUs, {size.memory_mib} MiB, our table "
                f"{known.gpus}, {known.vcpus}, {known.memory_mib}",
                "correct templates/instance_types.py, or its weight and its tasks are wrong",
            )


def weigh_image(parameter: str, image: Mapping[str, Any], root_gib: int) -> Finding:
    """The instances' image: for x86, and with a root that the launch template knows and is large enough for."""
    subject = f"image of the instances: {parameter} is {image['ImageId']}"
    if image["Architecture"] != "x86_64":
        return Finding(PROBLEM, f"{subject}, for {image['Architecture']}", "choose an image for x86_64")
    if image["RootDeviceName"] != ROOT_DEVICE:
        what = f"{subject} with its root at {image['RootDeviceName']}; the launch template sizes {ROOT_DEVICE}"
        return Finding(PROBLEM, what, "choose an image that is built on Amazon Linux 2023")
    (size,) = [
        disk["Ebs"]["VolumeSize"] for disk in image["BlockDeviceMappings"] if disk.get("DeviceName") == ROOT_DEVICE
    ]
    if size > root_gib:
        what = f"{subject} of {size} GiB; compute.root_volume_gib is {root_gib}"
        return Finding(PROBLEM, what, f"raise compute.root_volume_gib to {size} or more")
    return Finding(OK, f"{subject}, {size} GiB on a root volume of {root_gib}")
