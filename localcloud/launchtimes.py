"""How long a launch takes on AWS and of what: the one table that the local cloud and the replay go by. Pure.

All are seconds of AWS's. AWS promises none of them, so beside each stands a public measurement, or "assumed" and what
it rests on; docs/decisions/0034-how-long-a-launch-takes.md has the sources. What a launch really takes in an account
can be read there (docs/launch.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PENDING = 17.0
"""From the launch until `running`: 16.5 s for six families alike (2026), 12 s and 16 s (2022 and 2023), 5 s (2021)."""
BOOT = 40.0
"""From `running` to the user data, the volume still filling from its snapshot. Assumed, between the 17 s of instances
without a GPU and the 40 to 70 s of slow ones of Amazon Linux 2023; with GPUs it is "much longer", says AWS.
"""
RESTART = 25.0
"""The same for an instance that was stopped, to its services. Assumed: a warm pool saved one user 30 s in all, of which
we credit half.
"""
FETCH = 5.0
"""User data fetches the agent. Assumed: 1.3 MB by one signed request, and a package unpacked."""
REGISTER = 8.0
"""The ECS agent, from its start until the instance is in the cluster: 3 s for the GPUs, the rest is assumed."""
ASK = 2.0
"""The ECS agent asks the registry whether the image that is on the disk is still the right one. Assumed."""
PULL_RATE = 0.03
"""GB of an image in a second, compressed, downloaded and unpacked: .028 (AWS, 9.5 GB in 334 s), and 2.7 GB within 55 s.

Unpacking on the way to a gp3 volume of 125 MB/s is what limits it, so instances with faster networks are no faster.
"""
READ_RATE = 0.025
"""GB in a second that a new volume brings from its snapshot as they are touched. Assumed: an image of 15 GB took more
than ten minutes to start so, which is this if it read all of it; in order, a whole volume came at .13.
"""
DISK_RATE = 0.125
"""GB in a second from a gp3 volume that is whole (EBS User Guide, "General Purpose SSD volumes": the baseline)."""
PLACE = 2.0
"""ECS finds that the instance has room for a task, and tells its agent. Assumed."""
CONTAINER = 3.0
"""From the image on the disk to the first process: less than 5 s (AWS)."""


@dataclass(frozen=True, kw_only=True)
class Image:
    """A worker's image, in GB, and the seconds its processor takes to load once it has been read."""

    pulled: float
    """Compressed, as a registry counts it."""
    read: float
    """Of the unpacked image, what a worker touches before its first job."""
    loads: float


GPU = Image(pulled=3.0, read=1.0, loads=11.0)
"""A processor with PyTorch and CUDA, 5.5 GB unpacked. Measured: the wheels of torch 2.7.1 are 3.0 GB (AWS tells 3.03 GB
of the image pytorch:2.7.1-cuda11.8-cudnn9-runtime), `import torch` touches .8 GB and takes 7 s of a CPU. Assumed: the
first kernels touch .2 GB more, and a CUDA context takes 4 s.
"""
BUILT_IN = Image(pulled=0.11, read=0.06, loads=2.0)
"""Our own Dockerfile: .3 GB unpacked. The sizes are measured, what is read and how long it loads is assumed."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """The parts of a launch, in their order, in seconds."""

    pending: float
    boot: float
    register: float
    """User data and the ECS agent, until the instance has joined the cluster."""
    pull: float
    start: float
    """From the image on the disk until the first job begins."""

    @property
    def seconds(self) -> float:
        """From the launch to the first job."""
        return self.joins + self.pull + self.start

    @property
    def joins(self) -> float:
        """From the launch until ECS counts the instance. It does not work yet."""
        return self.pending + self.boot + self.register


def stock(image: Image = GPU) -> Launch:
    """From ECS's own image: the agent is fetched, the worker's image is pulled, and what was pulled is in memory."""
    return Launch(
        pending=PENDING,
        boot=BOOT,
        register=FETCH + REGISTER,
        pull=pulling(image),
        start=PLACE + CONTAINER + image.loads,
    )


def baked(image: Image = GPU) -> Launch:
    """From an image of our own, with agent and worker in it: what a worker reads comes from the snapshot."""
    return Launch(
        pending=PENDING,
        boot=BOOT,
        register=REGISTER,
        pull=ASK,
        start=PLACE + CONTAINER + reading(image) + image.loads,
    )


def warm(image: Image = GPU) -> Launch:
    """The same, stopped after a first boot and started again: by then EBS has filled its volume."""
    return Launch(
        pending=PENDING,
        boot=RESTART,
        register=REGISTER,
        pull=ASK,
        start=PLACE + CONTAINER + image.read / DISK_RATE + image.loads,
    )


def pulling(image: Image) -> float:
    """How long the pull of an image takes that is not on the disk."""
    return ASK + image.pulled / PULL_RATE


def reading(image: Image) -> float:
    """How long a worker takes to read what it needs, from a volume that is new and still filling from its snapshot."""
    return image.read / READ_RATE


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How instances of both kinds are launched."""

    spot: Launch
    on_demand: Launch


KINDS: Mapping[str, Kind] = {
    "stock": Kind(spot=stock(), on_demand=stock()),
    "baked": Kind(spot=baked(), on_demand=baked()),
    "warm": Kind(spot=baked(), on_demand=warm()),
}
"""By name, with an image of GPU. Only On-Demand has a warm pool: a stopped Spot instance is EC2's to start again."""
