"""Print the folder of the small real model, making it first where it is missing."""

from __future__ import annotations

from dev.model.api import ensure_model

print(ensure_model())
