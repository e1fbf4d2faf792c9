"""Celery tasks, and everything that talks to the outside world: drivers, probes, channels."""
