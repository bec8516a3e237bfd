"""Faults that the worker reports and the engine acts on; no client and no operator ever sees them as such."""

from __future__ import annotations


class DeviceLostError(Exception):
    """The device answers no more: not this step alone but every later one would fail."""


class StepOutOfMemoryError(Exception):
    """A step did not fit into the device's memory: a smaller one may, and nothing of this one is cached."""
