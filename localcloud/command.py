"""Start the local cloud: `python -m localcloud.command`, `python build.py local`, or a child of a test."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from localcloud import ec2, ecs, engine, monitoring, substrate
from localcloud.control import Control
from localcloud.formation import Guard, Resource
from localcloud.groups import AutoScaling
from localcloud.image import REGISTRY, WORKER
from localcloud.wire import Service
from localcloud.world import REGION, World


def furnish(world: World, control: Control) -> tuple[list[Service], dict[str, Resource], dict[str, Guard]]:
    """Every service and resource type that is ours, wired together, and what keeps others from being deleted."""
    containers, container_resources = ecs.furnish(world, control)
    services, resources, guards = ec2.furnish(world, control, containers)
    scaling = next(one for one in services if isinstance(one, AutoScaling))
    watching, watch_resources = monitoring.furnish(world, containers, scaling)
    return [containers, *services, *watching], {**container_resources, **resources, **watch_resources}, guards


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def serve(world: World, *, leash: bool = False) -> None:
    """Run the cloud until SIGTERM or SIGINT; on a leash, also until standard input ends."""
    substrate.prepare(world)
    control = Control(world)
    substrate.install(world, control, *furnish(world, control))
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    if leash:
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), stop.set)
    world.start()
    try:
        await substrate.serve(world, control.answer, stop)
    finally:
        world.stop()


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to stop. Prints the environment lines to paste."""
    parser = argparse.ArgumentParser(prog="build.py local", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="where the API answers on 127.0.0.1 (default: a free one)")
    parser.add_argument("--speed", type=float, default=1.0, help="how many times faster AWS's own times pass")
    parser.add_argument("--seed", type=int, default=0, help="of the market and all other chance")
    parser.add_argument("--state", type=Path, help="folder for state and logs (default: one that goes when it ends)")
    parser.add_argument("--containers", action="store_true", help="run tasks in podman or docker, not as processes")
    parser.add_argument("--speeds", type=_speeds, default={}, help="JSON, instance type to speed, for tasks to know")
    # Whoever starts the cloud as a child holds the other end: however it dies, the cloud goes with it.
    parser.add_argument("--leash", action="store_true", help="end when standard input does")
    options = parser.parse_args(arguments)
    endpoint = f"http://127.0.0.1:{options.port or free_port()}"
    try:
        runtime = engine.find() if options.containers else None
    except engine.NoEngine as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if runtime:
        runtime.sweep()
        sys.stdout.write("# tasks run in containers: `make image` builds the worker's image\n")
    with contextlib.ExitStack() as stack:
        state = options.state or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spindrift-local-")))
        sys.stdout.write(
            f"export AWS_ENDPOINT_URL={endpoint}\n"
            f"export AWS_ACCESS_KEY_ID={substrate.OPERATOR_KEY} AWS_SECRET_ACCESS_KEY={substrate.OPERATOR_KEY}\n"
            f"export AWS_DEFAULT_REGION={REGION}\n"
            f"# state and logs: {state}\n# the worker's image is {REGISTRY}/{WORKER}; Ctrl-C ends it\n"
        )
        sys.stdout.flush()
        world = World(
            state=state.resolve(),
            endpoint=endpoint,
            speed=options.speed,
            seed=options.seed,
            engine=runtime,
            speeds=options.speeds,
        )
        asyncio.run(serve(world, leash=options.leash))
    return 0


def _speeds(text: str) -> dict[str, float]:
    return {str(kind): float(speed) for kind, speed in json.loads(text).items()}


if __name__ == "__main__":
    sys.exit(main())
