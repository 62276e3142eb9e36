"""The built-in processor, slow at what it does alone, so that jobs gather before it."""

import time

from gpu_worker import images

process_many = images.process_many


def process(source, output_dir, job):
    time.sleep(1)
    images.process(source, output_dir, job)
