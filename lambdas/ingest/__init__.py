"""Uploads become jobs."""
