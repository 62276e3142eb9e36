"""The product's own processor at the pace of a GPU: what is uploaded under slow/ takes seconds, and little CPU.

Where tasks share files, each job leaves its key there.
"""

import os
import time
from pathlib import Path

from gpu_worker import images

SECONDS = 2
problems = images.problems


def process(input, output_dir, job):  # noqa: A002 (the contract's name)
    images.process(input, output_dir, job)
    if shared := os.environ.get("SPINDRIFT_SHARED_DIR"):
        (Path(shared) / job["job_id"]).write_text(job["key"], "utf-8")
    if job["key"].startswith("slow/"):
        time.sleep(SECONDS)
