"""What an instance is to the things that run on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


class Way(Protocol):
    """From one instance to AWS. Not to be asked with the world's lock held."""

    def reaches(self, service: str) -> bool:
        """Whether HTTPS to the service's endpoint in this region gets there."""
        ...

    def policy(self, service: str) -> Mapping[str, Any] | None:
        """The policy of the VPC endpoint that it goes through, if there is one that limits."""
        ...

    def meets(self, groups: Sequence[str], port: int, address: str) -> bool:
        """Whether a connection to something of those security groups in the VPC gets there."""
        ...


class Open:
    """The way of one that nothing is in the way of."""

    def reaches(self, service: str) -> bool:  # noqa: ARG002 - the seam's
        """Yes."""
        return True

    def policy(self, service: str) -> Mapping[str, Any] | None:  # noqa: ARG002 - the seam's
        """None."""
        return None

    def meets(self, groups: Sequence[str], port: int, address: str) -> bool:  # noqa: ARG002 - the seam's
        """Yes."""
        return True


OPEN = Open()


@dataclass(frozen=True, kw_only=True)
class Host:
    """One running instance, as its ECS agent finds it."""

    instance_id: str
    instance_type: str
    zone: str
    lifecycle: str
    """`spot` or `on-demand`."""
    gpus: int
    """GPUs the driver sees (0 plays the fault of a host whose GPU was not found at boot)."""
    vcpus: int
    memory_mib: int
    root: Path
    """The folder that stands for `/` of the instance: /etc/ecs/ecs.config is root/etc/ecs/ecs.config."""
    config: Mapping[str, str]
    """The lines of /etc/ecs/ecs.config."""
    credentials: Callable[[], dict[str, str]]
    """Fresh credentials of the instance role: AccessKeyId, SecretAccessKey, Token, Expiration."""
    target_state: Callable[[], str] = lambda: ""
    """What Auto Scaling is making of it, as the metadata says; "" when it is in no group."""
    role: str = ""
    """ARN of the instance role."""
    images: set[str] = field(default_factory=set)
    """Names of the container images on its disk."""
    way: Way = OPEN
    """Where it can get from its subnet."""
