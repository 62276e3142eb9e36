"""The GPU worker: takes jobs from a queue, and gives them back when its instance is taken.

A processor runs in the worker's environment. Where the stack has a shared file system, SPINDRIFT_SHARED_DIR says where
it is: one directory for all jobs and all machines. The worker itself writes nothing there but files of jobs in hand, to
`.scratch`, where that is asked for.
"""
