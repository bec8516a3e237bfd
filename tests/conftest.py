"""What all tiers share; most of it are plugins of dev/."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is, and nothing of the code.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

pytest_plugins = [
    "pytester",
    "dev.told",
    "dev.tiers",
    "dev.cluster.pytest_plugin",
    "dev.faults.pytest_plugin",
    "dev.live_runtime",
]
