"""Greedy tokens are those of transformers' own `generate()`, for every architecture that is served.

Tiny models with random weights, made from their configs; weights are drawn wide, so that the best token leads clearly
and a wrong position, mask or cache shows at once. Each model answers alone, in a mixed batch, with its prompts fed in
chunks, and out of a cache so small that sequences are preempted.
"""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from dedicate_runtime.core.config import DeviceChoice, DtypeChoice, EngineConfig
from dedicate_runtime.core.request import FinishReason, Request, RequestId, SamplingParams
from dedicate_runtime.engine.build import build_engine
from dedicate_runtime.errors import ExitCode, StartError

VOCAB_SIZE = 320
NUM_NEW_TOKENS = 24
PROMPT_LENGTHS = (1, 7, 23, 41)

SMALL = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT_STYLE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MIXED_LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]

SERVED = {
    "Llama": SMALL,
    "Llama-yarn": {
        **SMALL,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "Qwen2": SMALL,
    "Qwen3": {**SMALL, "head_dim": 16},
    "Qwen3Moe": {
        **SMALL,
        "head_dim": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
    },
    "Mixtral": {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2},
    "Mistral": {**SMALL, "head_dim": 8, "sliding_window": 12},
    "Gemma": {**SMALL, "head_dim": 8},
    "Gemma2": {
        **SMALL,
        "head_dim": 8,
        "sliding_window": 12,
        "layer_types": MIXED_LAYERS,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 10.0,
        "query_pre_attn_scalar": 16,
    },
    "Gemma3-Text": {**SMALL, "head_dim": 8, "sliding_window": 12, "layer_types": MIXED_LAYERS},
    "Phi3": {**SMALL, "sliding_window": 12},
    "Olmo2": SMALL,
    "Granite": SMALL,
    "Starcoder2": {**SMALL, "sliding_window": 12},
    "Cohere2": {**SMALL, "sliding_window": 12, "layer_types": MIXED_LAYERS},
    "GPTNeoX": {**GPT_STYLE, "intermediate_size": 64},
    "GPT2": GPT_STYLE,
    "GptOss": {
        **SMALL,
        "head_dim": 8,
        "sliding_window": 12,
        "layer_types": MIXED_LAYERS,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "DeepseekV3": {
        **SMALL,
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 12,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
    },
}


def make_folder(name, fields, folder):
    """Save a model with seeded random weights."""
    config_class = getattr(transformers, f"{name.split('-')[0]}{'Text' if name.endswith('-Text') else ''}Config")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_class(**fields))
    model.save_pretrained(folder)
    return folder


def make_config(folder, **fields):
    base = {
        "max_num_seqs": 8,
        "max_num_batched_tokens": 256,
        "max_queued_requests": 64,
        "kv_cache_tokens": 1024,
        "block_size": 8,
    }
    return EngineConfig(model=str(folder), device=DeviceChoice.CPU, dtype=DtypeChoice.FLOAT32, **{**base, **fields})


def make_request(name, prompt, **sampling):
    fields = {"max_tokens": NUM_NEW_TOKENS, "end_ids": frozenset(), "temperature": 0.0, **sampling}
    return Request(request_id=RequestId(name), prompt_token_ids=tuple(prompt), sampling=SamplingParams(**fields))


def run(engine, requests):
    """Tokens by request id; the books are checked after every step."""
    assert not engine.submit(requests)
    tokens = {request.request_id: [] for request in requests}
    reasons = {}
    while engine.has_work:
        for output in engine.step():
            assert output.error is None
            tokens[output.request_id] += output.token_ids
            if output.finish_reason is not None:
                reasons[output.request_id] = output.finish_reason
        engine.check_integrity()
    assert set(reasons.values()) == {FinishReason.LENGTH}
    assert engine.stats.num_free_blocks == engine.stats.num_blocks
    return tokens


def generate_with_transformers(folder, prompts):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    model.generation_config.eos_token_id = None
    expected = {}
    for name, prompt in prompts.items():
        ids = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=NUM_NEW_TOKENS,
            do_sample=False,
            pad_token_id=0,
        )
        expected[name] = ids[0, len(prompt) :].tolist()
    return expected


@pytest.fixture(scope="module", params=SERVED)
def served(request, tmp_path_factory):
    """A model's folder, prompts for it, and what transformers answers."""
    folder = make_folder(request.param, SERVED[request.param], tmp_path_factory.mktemp(request.param))
    generator = torch.Generator().manual_seed(1)
    prompts = {
        f"p{length}": torch.randint(3, VOCAB_SIZE, (length,), generator=generator).tolist() for length in PROMPT_LENGTHS
    }
    return folder, prompts, generate_with_transformers(folder, prompts)


def test_alone_and_in_a_mixed_batch(served):
    folder, prompts, expected = served
    engine, _ = build_engine(make_config(folder))
    for name, prompt in prompts.items():
        assert run(engine, [make_request(name, prompt)])[name] == expected[name]
    assert run(engine, [make_request(name, prompt) for name, prompt in prompts.items()]) == expected


def test_with_prompts_in_chunks(served):
    folder, prompts, expected = served
    engine, _ = build_engine(make_config(folder, max_num_seqs=4, max_num_batched_tokens=9))
    assert run(engine, [make_request(name, prompt) for name, prompt in prompts.items()]) == expected


def test_after_preemption(served):
    folder, prompts, expected = served
    engine, _ = build_engine(make_config(folder, kv_cache_tokens=120, block_size=4))
    assert run(engine, [make_request(name, prompt) for name, prompt in prompts.items()]) == expected
    assert engine.stats.num_preemptions > 0


REFUSED = {
    "StableLm": SMALL,
    "Mamba": {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    "Qwen3Next": {
        **SMALL,
        "head_dim": 16,
        "num_experts": 4,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    },
    "Bloom": {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "Bert": {**GPT_STYLE, "intermediate_size": 64},
}


@pytest.mark.parametrize("name", REFUSED)
def test_architecture_that_would_be_answered_wrongly_is_refused(name, tmp_path):
    folder = make_folder(name, REFUSED[name], tmp_path)
    with pytest.raises(StartError) as caught:
        build_engine(make_config(folder))
    assert caught.value.exit_code is ExitCode.UNSUPPORTED_MODEL
    assert name in caught.value.sentence
