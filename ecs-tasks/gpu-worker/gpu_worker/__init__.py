"""The GPU worker: takes jobs from a queue, and gives them back when its instance is taken."""
