"""A request's life in the engine, from those of its sequences."""

from __future__ import annotations

import pytest

from dedicate_runtime.api.generation_record import Phase, build_phases
from dedicate_runtime.engine.interface import SequenceTimes


@pytest.mark.parametrize(
    ("lives", "phases"),
    [
        pytest.param([], [], id="refused"),
        pytest.param([(1, 2, 3, 7)], [("queue", 1, 2), ("prefill", 2, 3), ("decode", 3, 7)], id="one"),
        pytest.param([(1, None, None, 4)], [("queue", 1, 4)], id="gave up in the queue"),
        pytest.param([(1, 2, None, 4)], [("queue", 1, 2), ("prefill", 2, 4)], id="gave up in prefill"),
        pytest.param([(0, 0, 0, 0)], [("queue", 0, 0), ("prefill", 0, 0), ("decode", 0, 0)], id="at zero"),
        pytest.param(
            [(1, 2, 3, 5), (1, 4, 6, 9)],
            [("queue", 1, 4), ("prefill", 2, 6), ("decode", 3, 9)],
            id="several overlap",
        ),
        pytest.param(
            [(1, 2, 3, 5), (1, None, None, 7)],
            [("queue", 1, 7), ("prefill", 2, 3), ("decode", 3, 5)],
            id="one of several never began",
        ),
    ],
)
def test_phases(lives, phases):
    names = ("submitted_at", "started_at", "first_token_at", "ended_at")
    times = [SequenceTimes(**dict(zip(names, life, strict=True))) for life in lives]
    assert build_phases(times) == tuple(Phase(*phase) for phase in phases)
