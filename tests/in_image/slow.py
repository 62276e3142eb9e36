"""A processor that a user brings: a job as long as its upload says, in seconds."""

import time


def process(source, output_dir, job):
    time.sleep(float(source.read_text()))
    (output_dir / "done").write_text("slept")
