"""Fused layers answer as transformers' own do, or are not used; in Triton's interpreter where there is no device."""

from __future__ import annotations

import pytest
import torch
import transformers
import triton.language as tl
from transformers import AutoModelForCausalLM

from dedicate_runtime.core.batch import ScheduledBatch, ScheduledRow
from dedicate_runtime.core.request import RequestId, SamplingParams
from dedicate_runtime.worker.attention import (
    BACKEND_ARGUMENT,
    IMPLEMENTATION,
    TorchPagedAttention,
    register_attention,
)
from dedicate_runtime.worker.cuda.attention import TritonAttentionFactory
from dedicate_runtime.worker.cuda.cache import CudaKVCache
from dedicate_runtime.worker.cuda.fusion import FusedDecoderLayer, FusedRMSNorm, fuse_model
from dedicate_runtime.worker.kv_cache import LayerShape
from dedicate_runtime.worker.step_inputs import build_step_inputs

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytestmark = pytest.mark.skipif(
    DEVICE.type == "cpu" and type(tl.sum).__name__ != "InterpretedFunction",
    reason="runs with TRITON_INTERPRET=1, by test_triton.py",
)

SIZES = {
    "vocab_size": 160,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
FUSED = {
    "Llama": SIZES,
    "Qwen2": SIZES,
    "Qwen3": SIZES,
    "Mistral": {**SIZES, "sliding_window": 9},
    # Every other layer has no positions: those keep their own code.
    "SmolLM3": {**SIZES, "no_rope_layers": [1, 0]},
}
NOT_FUSED = {"Granite": {**SIZES, "residual_multiplier": 0.5}, "Gemma2": SIZES, "Olmo2": SIZES, "Cohere2": SIZES}


def make_model(name, sizes, **options):
    torch.manual_seed(0)
    register_attention()
    config = getattr(transformers, f"{name}Config")(**sizes)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=IMPLEMENTATION, **options)
    for parameter in model.parameters():
        # Norms are drawn as ones: a weight that is left out would not show.
        if parameter.dim() == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval().to(DEVICE)


def make_cache(dim):
    shapes = dict.fromkeys(range(2), LayerShape(num_kv_heads=2, key_dim=dim, value_dim=dim))
    return CudaKVCache(shapes, num_blocks=8, block_size=16, dtype=torch.float32, device=DEVICE)


def make_row(start, tokens, table):
    return ScheduledRow(
        request_id=RequestId("r"),
        token_ids=tokens,
        start=start,
        block_table=table,
        sampling=SamplingParams(max_tokens=1, end_ids=frozenset()),
        is_sampled=True,
        output_position=0,
    )


BATCHES = [
    ScheduledBatch(rows=(make_row(0, tuple(range(2, 22)), (5, 6)), make_row(0, (7,), (3,))), num_decode_rows=0),
    ScheduledBatch(rows=(make_row(1, (9,), (3,)), make_row(20, (4, 5, 6), (5, 6))), num_decode_rows=1),
]


def compute(model, attention):
    outputs = []
    for batch in BATCHES:
        inputs = build_step_inputs(batch, block_size=16, device=DEVICE)
        with torch.inference_mode():
            output = model(
                input_ids=inputs.token_ids,
                position_ids=inputs.positions,
                use_cache=False,
                **{BACKEND_ARGUMENT: attention(inputs)},
            )
        outputs.append(output.logits[0])
    return torch.cat(outputs)


@pytest.mark.parametrize("name", FUSED)
def test_fused_layers_answer_as_the_originals(name):
    model = make_model(name, FUSED[name])
    cache = make_cache(12)
    expected = compute(model, lambda inputs: TorchPagedAttention(cache, inputs))
    num_bytes = sum(parameter.numel() for parameter in model.parameters())
    factory = TritonAttentionFactory(cache, num_splits=2)
    assert fuse_model(model, cache) == (1 if name == "SmolLM3" else 2)
    assert isinstance(model.model.layers[0], FusedDecoderLayer)
    assert isinstance(model.model.norm, FusedRMSNorm)
    torch.testing.assert_close(compute(model, factory), expected, atol=2e-4, rtol=1e-3)
    # Another backend is served by the original, whose weights are views of the fused ones.
    reference = make_cache(12)
    through_original = compute(model, lambda inputs: TorchPagedAttention(reference, inputs))
    torch.testing.assert_close(through_original, expected, atol=2e-4, rtol=1e-3)
    assert sum(parameter.numel() for parameter in model.parameters()) == num_bytes
    attention = model.model.layers[0].layer.self_attn
    assert attention.q_proj.weight.untyped_storage().data_ptr() == attention.v_proj.weight.untyped_storage().data_ptr()


@pytest.mark.parametrize("name", NOT_FUSED)
def test_layers_that_compute_something_else_keep_their_own_code(name):
    model = make_model(name, NOT_FUSED[name])
    dim = model.config.hidden_size // 4 if name in {"Granite", "Olmo2", "Cohere2"} else 12
    cache = make_cache(dim)
    expected = compute(model, lambda inputs: TorchPagedAttention(cache, inputs))
    factory = TritonAttentionFactory(cache, num_splits=1)
    assert fuse_model(model, cache) == 0
    torch.testing.assert_close(compute(model, factory), expected, atol=2e-4, rtol=1e-3)


def test_tied_heads_and_loading_leave_one_copy():
    model = make_model("Qwen2", {**SIZES, "tie_word_embeddings": True})
    cache = make_cache(12)
    assert fuse_model(model, cache) == 2
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
