"""What is left out of the engine's imports is left out, and is there for whoever asks for it after all."""

from __future__ import annotations

import subprocess
import sys

import pytest

TIMEOUT_S = 240
HEAVY = ("torch._inductor", "torch.distributed.tensor", "torch._dynamo.convert_frame", "triton")

IMPORT_LEANLY = """
import sys
from dedicate_runtime.engine.lean_imports import lean_imports
import torch
has_distributed = torch.distributed.is_available()
with lean_imports():
    import dedicate_runtime.engine.build
    from transformers.models.llama import modeling_llama
assert torch.distributed.is_available() == has_distributed
"""

ASKED_LATER = {
    "nothing": f"""
left_out = [name for name in {HEAVY!r} if name in sys.modules]
assert not left_out, left_out
""",
    "attribute": """
assert torch._dynamo.config.recompile_limit > 0
assert torch._dynamo is sys.modules["torch._dynamo"]
""",
    "submodule": """
import torch._dynamo.config
assert torch._dynamo.config is sys.modules["torch._dynamo.config"]
from torch._dynamo.exc import Unsupported
assert torch._dynamo.exc.Unsupported is Unsupported
""",
    "compiler": """
graphs = []
compiled = torch.compile(lambda x: x * 2 + 1, backend=lambda graph, _: graphs.append(graph) or graph.forward)
assert compiled(torch.ones(2)).tolist() == [3.0, 3.0]
assert len(graphs) == 1
""",
    "mask": """
from transformers import masking_utils
with masking_utils.TransformGetItemToIndex():
    pass
assert type(masking_utils.TransformGetItemToIndex()).__module__.startswith("torch._dynamo")
""",
}


@pytest.mark.parametrize("what", ASKED_LATER)
def test_asked_for_later(what):
    program = IMPORT_LEANLY + ASKED_LATER[what]
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr[-2000:]
