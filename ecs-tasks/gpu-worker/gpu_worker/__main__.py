"""`python -m gpu_worker`: exits 0 when told to go, 2 when settings or processor are no good, 64 when the GPU is not.

With 1 it exits when its main loop hangs, the stacks of its threads being in the log.
"""

from __future__ import annotations

import os
import signal
import sys
from datetime import UTC, datetime

from gpu_worker import health
from gpu_worker.host import Host, Protection, task_arn, watchdog
from gpu_worker.log import log
from gpu_worker.processor import BadProcessor, Processor
from gpu_worker.scratch import Scratch
from gpu_worker.settings import BadSettings, Settings


def _now() -> datetime:
    return datetime.now(UTC)


def main() -> int:
    """Wire the worker together and let it run."""
    try:
        settings = Settings.read(os.environ)
        host = Host(settings.host_dir, settings.stop_timeout, settings.pulse_file, health.problem, watchdog)
        for asked in (signal.SIGTERM, signal.SIGINT):
            signal.signal(asked, lambda *_: host.stop(_now()))

        def launch() -> Processor:
            return Processor(settings.processor, settings.options, settings.max_output_bytes)

        processors = [launch() for _ in range(settings.processors)]
        from gpu_worker.carrier import Carrier  # noqa: PLC0415
        from gpu_worker.cloud import Cloud  # noqa: PLC0415 (boto3 loads while the processors' processes do)
        from gpu_worker.lanes import Lanes  # noqa: PLC0415
        from gpu_worker.pipeline import Worker  # noqa: PLC0415

        cloud = Cloud(settings)
        for processor in processors:
            processor.wait_ready()
            if settings.batch > 1 and not processor.takes_many:
                raise BadProcessor(f"SPINDRIFT_BATCH is {settings.batch}, and the processor has no process_many")
    except (BadSettings, BadProcessor) as error:
        log("refused", error=str(error))
        return 2

    protection = Protection(settings.ecs_agent_uri)
    owner = task_arn(settings.ecs_metadata_uri)
    log("ready", owner=owner, queue=settings.queue, processor=settings.processor)
    with Scratch(settings.scratch_dir) as scratch:
        lanes = Lanes(processors, launch, _now, settings.batch)
        carrier = Carrier(settings, cloud, host, lanes, scratch, owner, _now)
        Worker(settings, cloud, host, lanes, carrier, protection, _now).run()
    if host.broken:
        return health.BROKEN
    if lanes.unfit:
        return 2
    while not host.stopped:  # on a doomed host a successor would fare no better: wait to be stopped
        host.pulse()
        host.pause(0.5)
    return 0


if __name__ == "__main__":
    if sys.argv[1:] == ["once"]:
        from gpu_worker import once

        sys.exit(once.main())
    sys.exit(main())
