"""What an instance is to the things that run on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path


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
