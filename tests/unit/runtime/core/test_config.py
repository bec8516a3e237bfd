"""An engine that cannot work is refused by the name of the field."""

from __future__ import annotations

import pytest

from dedicate_runtime.core.config import DeviceChoice, DtypeChoice, EngineConfig

VALID = {
    "model": "/models/small",
    "device": DeviceChoice.CPU,
    "dtype": DtypeChoice.AUTO,
    "max_num_seqs": 4,
    "max_num_batched_tokens": 8,
    "max_queued_requests": 2,
}


def test_capacity_counts_running_and_waiting():
    assert EngineConfig(**VALID).max_sequences == 6


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_num_seqs", 0),
        ("max_num_batched_tokens", 3),
        ("max_queued_requests", -1),
        ("max_model_len", 0),
        ("kv_cache_tokens", 0),
        ("block_size", 0),
    ],
)
def test_value_that_cannot_work_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        EngineConfig(**{**VALID, field: value})
