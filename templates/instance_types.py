"""The instance types that Spindrift can buy: x86 with whole NVIDIA GPUs, as the ECS GPU image runs them.

Source: EC2 User Guide, "Accelerated computing instances" (p3's rows; the rest is held against moto's copy of
DescribeInstanceTypes by a test).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

NO_GPU = re.compile(r"(a|c|d|h|i|im|is|m|r|t|u|x|z|hpc|mac)\d.*\.")
"""Families that have no accelerator at all; others may have one that is not ours (AMD, Inferentia, Graviton's T4g)."""


@dataclass(frozen=True)
class InstanceType:
    """What one instance of a type offers. Memory in MiB, as EC2 states it."""

    gpus: int
    vcpus: int
    memory_mib: int

    @property
    def cpu_per_gpu(self) -> int:
        """CPU units (1,024 are one vCPU) for each GPU, when every GPU has a task."""
        return self.vcpus * 1024 // self.gpus

    @property
    def memory_mib_per_gpu(self) -> int:
        """Memory for each GPU's task: the kernel keeps some 4 %, and we ask ECS to keep 256 MiB (userdata.py)."""
        return (self.memory_mib * 95 // 100 - 256) // self.gpus


GIB = 1024
INSTANCE_TYPES: dict[str, InstanceType] = {
    "g4dn.xlarge": InstanceType(1, 4, 16 * GIB),
    "g4dn.2xlarge": InstanceType(1, 8, 32 * GIB),
    "g4dn.4xlarge": InstanceType(1, 16, 64 * GIB),
    "g4dn.8xlarge": InstanceType(1, 32, 128 * GIB),
    "g4dn.12xlarge": InstanceType(4, 48, 192 * GIB),
    "g4dn.16xlarge": InstanceType(1, 64, 256 * GIB),
    "g4dn.metal": InstanceType(8, 96, 384 * GIB),
    "g5.xlarge": InstanceType(1, 4, 16 * GIB),
    "g5.2xlarge": InstanceType(1, 8, 32 * GIB),
    "g5.4xlarge": InstanceType(1, 16, 64 * GIB),
    "g5.8xlarge": InstanceType(1, 32, 128 * GIB),
    "g5.12xlarge": InstanceType(4, 48, 192 * GIB),
    "g5.16xlarge": InstanceType(1, 64, 256 * GIB),
    "g5.24xlarge": InstanceType(4, 96, 384 * GIB),
    "g5.48xlarge": InstanceType(8, 192, 768 * GIB),
    "g6.xlarge": InstanceType(1, 4, 16 * GIB),
    "g6.2xlarge": InstanceType(1, 8, 32 * GIB),
    "g6.4xlarge": InstanceType(1, 16, 64 * GIB),
    "g6.8xlarge": InstanceType(1, 32, 128 * GIB),
    "g6.12xlarge": InstanceType(4, 48, 192 * GIB),
    "g6.16xlarge": InstanceType(1, 64, 256 * GIB),
    "g6.24xlarge": InstanceType(4, 96, 384 * GIB),
    "g6.48xlarge": InstanceType(8, 192, 768 * GIB),
    "gr6.4xlarge": InstanceType(1, 16, 128 * GIB),
    "gr6.8xlarge": InstanceType(1, 32, 256 * GIB),
    "g6e.xlarge": InstanceType(1, 4, 32 * GIB),
    "g6e.2xlarge": InstanceType(1, 8, 64 * GIB),
    "g6e.4xlarge": InstanceType(1, 16, 128 * GIB),
    "g6e.8xlarge": InstanceType(1, 32, 256 * GIB),
    "g6e.12xlarge": InstanceType(4, 48, 384 * GIB),
    "g6e.16xlarge": InstanceType(1, 64, 512 * GIB),
    "g6e.24xlarge": InstanceType(4, 96, 768 * GIB),
    "g6e.48xlarge": InstanceType(8, 192, 1536 * GIB),
    "p3.2xlarge": InstanceType(1, 8, 61 * GIB),
    "p3.8xlarge": InstanceType(4, 32, 244 * GIB),
    "p3.16xlarge": InstanceType(8, 64, 488 * GIB),
    "p3dn.24xlarge": InstanceType(8, 96, 768 * GIB),
    "p4d.24xlarge": InstanceType(8, 96, 1152 * GIB),
    "p4de.24xlarge": InstanceType(8, 96, 1152 * GIB),
    "p5.4xlarge": InstanceType(1, 16, 256 * GIB),
    "p5.48xlarge": InstanceType(8, 192, 2048 * GIB),
    "p5e.48xlarge": InstanceType(8, 192, 2048 * GIB),
    "p5en.48xlarge": InstanceType(8, 192, 2048 * GIB),
}


GPU_NAMES = {
    "g4dn": "t4",
    "g5": "a10g",
    "g6": "l4",
    "gr6": "l4",
    "g6e": "l40s",
    "p3": "v100",
    "p3dn": "v100",
    "p4d": "a100",
    "p4de": "a100",
    "p5": "h100",
    "p5e": "h200",
    "p5en": "h200",
}
"""The GPU of each family, as AcceleratorNames of InstanceRequirements spell it."""


def must_have_gpu(name: str) -> str:
    """The name itself; ValueError when it is not a type that we can use, saying why and what would do."""
    if name in INSTANCE_TYPES:
        return name
    family = name.partition(".")[0]
    sizes = [known for known in INSTANCE_TYPES if known.startswith(f"{family}.")]
    if sizes:
        raise ValueError(f"{name} does not exist; {family} comes as {', '.join(sizes)}")
    small = [known for known in INSTANCE_TYPES if known.endswith(".xlarge")]
    reason = "has no GPU" if NO_GPU.match(name) else "is not an x86 type with whole NVIDIA GPUs that is known here"
    raise ValueError(f"{name} {reason}; choose among {', '.join(small)} or a larger size")
