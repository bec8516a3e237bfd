"""The checks of `bench.gpu`, which also run without pytest: kernels, sampling, fusion, graphs, steps ahead."""

from __future__ import annotations

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]

NAMES = (
    "check_attention",
    "check_sampling",
    "check_fusion",
    "check_generate",
    "check_torch_backend",
    "check_graphs",
    "check_fixed_shapes",
)


@pytest.mark.parametrize("name", NAMES)
def test_check(name):
    from bench.gpu import checks

    assert {check.__name__ for check in checks.CHECKS} == set(NAMES)
    torch.manual_seed(0)
    assert getattr(checks, name)(torch.device("cuda", 0), checks.ON_DEVICE)
