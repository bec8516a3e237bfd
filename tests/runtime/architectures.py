"""The architectures that are tested: each is answered as transformers answers, or refused with a sentence.

Plain data without torch: the tests make tiny models from it, and `dev.models` writes docs/models.md from it. Sizes are
multiples of 16, as the native kernels want them; weights are drawn wide, so that the best token leads clearly and a
wrong position, mask or cache shows at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

VOCAB_SIZE = 128
WINDOW = 12
"""Of every sliding layer: far shorter than the sequences that the tests generate."""

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Architecture:
    """One configuration of an architecture, as small as it can be.

    `attention` names what its layers ask for beyond plain causal attention; the tests compare it with what they really
    ask for. `backend` is what `--attention-backend auto` takes on the CPU: "torch", or native kernels that are "fused"
    over all layers or take the place of one at a time, "native".
    """

    model_class: str
    model_type: str
    config: Config
    models: str
    """Families of published checkpoints that have it."""
    attention: frozenset[str] = frozenset()
    variant: str = ""
    """What sets this configuration apart from another one of the same class."""
    notes: str = ""
    backend: str = "fused"
    is_bit_exact: bool = True
    """On the native backend no bit depends on what else is computed."""

    @property
    def name(self) -> str:
        return f"{self.model_class}, {self.variant}" if self.variant else self.model_class


@dataclass(frozen=True, slots=True)
class RefusedArchitecture:
    """One that the engine does not serve. `reason` is part of the sentence with which it ends."""

    model_class: str
    model_type: str
    config: Config
    models: str
    reason: str


SLIDING = frozenset({"sliding window"})
SOFT_CAP = frozenset({"soft-capping"})
SINKS = frozenset({"sinks"})

GPT = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
WIDE_GPT = {**GPT, "intermediate_size": 128}
BASE = {**WIDE_GPT, "num_key_value_heads": 2}
HEADS = {**BASE, "head_dim": 16}
# Tied embeddings that are scaled on their way in make an untrained model repeat its last token for ever.
_GEMMA = {**HEADS, "tie_word_embeddings": False}
_WINDOW = {"sliding_window": WINDOW}
_MIXED = {
    **_WINDOW,
    "num_hidden_layers": 3,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
ROUTED_EXPERTS = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}
LATENT = {
    **BASE,
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}
_MIXTURE = "mixture of experts"
_LATENT_NOTE = "latent attention, its keys and values cached at full width"


def _rope(rope_type: str, **fields: Any) -> Config:
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 10000.0, **fields}}


_LLAMA = "Llama 2 to 3.3, SmolLM2, TinyLlama, Yi, DeepSeek LLM"
_YARN = _rope("yarn", factor=4.0, original_max_position_embeddings=64)
_LLAMA3_ROPE = _rope(
    "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
)
_LONG_FACTORS = {"short_factor": [1.5] * 8, "long_factor": [4.0] * 8}
_LONGROPE = _rope("longrope", factor=2.0, original_max_position_embeddings=128, **_LONG_FACTORS)
_LATENT_YARN = _rope("yarn", factor=4.0, original_max_position_embeddings=64, mscale=1.0, mscale_all_dim=1.0)

SERVED = (
    Architecture("LlamaForCausalLM", "llama", BASE, _LLAMA),
    Architecture("LlamaForCausalLM", "llama", {**BASE, **_LLAMA3_ROPE}, _LLAMA, variant="llama3 rope scaling"),
    Architecture("LlamaForCausalLM", "llama", {**BASE, **_YARN}, _LLAMA, variant="yarn rope scaling"),
    Architecture("LlamaForCausalLM", "llama", {**BASE, **_rope("linear", factor=2.0)}, _LLAMA, variant="linear rope"),
    Architecture(
        "LlamaForCausalLM",
        "llama",
        {**BASE, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        _LLAMA,
        variant="biases and tied embeddings",
    ),
    Architecture("MistralForCausalLM", "mistral", {**HEADS, **_WINDOW}, "Mistral 7B and Nemo", SLIDING),
    Architecture("MinistralForCausalLM", "ministral", {**HEADS, **_MIXED}, "Ministral 8B", SLIDING, backend="native"),
    Architecture("Ministral3ForCausalLM", "ministral3", HEADS, "Ministral 3, its text model", backend="native"),
    Architecture(
        "MixtralForCausalLM",
        "mixtral",
        {**BASE, **LOCAL_EXPERTS},
        "Mixtral 8x7B, 8x22B",
        notes=_MIXTURE,
        backend="native",
        is_bit_exact=False,
    ),
    Architecture("Qwen2ForCausalLM", "qwen2", BASE, "Qwen 1.5, 2 and 2.5, QwQ"),
    Architecture(
        "Qwen2ForCausalLM",
        "qwen2",
        {**BASE, **_MIXED, "use_sliding_window": True},
        "Qwen 1.5, 2 and 2.5, QwQ",
        SLIDING,
        variant="sliding layers",
    ),
    Architecture(
        "Qwen2MoeForCausalLM",
        "qwen2_moe",
        {**BASE, **EXPERTS, "shared_expert_intermediate_size": 32},
        "Qwen 1.5 MoE, Qwen2 57B-A14B",
        notes=_MIXTURE,
        backend="native",
        is_bit_exact=False,
    ),
    Architecture("Qwen3ForCausalLM", "qwen3", HEADS, "Qwen 3"),
    Architecture(
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        {**HEADS, **EXPERTS},
        "Qwen 3 MoE, Qwen3 Coder",
        notes=_MIXTURE,
        backend="native",
        is_bit_exact=False,
    ),
    Architecture("GemmaForCausalLM", "gemma", _GEMMA, "Gemma 1, CodeGemma", backend="native"),
    Architecture(
        "Gemma2ForCausalLM",
        "gemma2",
        {
            **_GEMMA,
            **_MIXED,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 10.0,
            "query_pre_attn_scalar": 16,
        },
        "Gemma 2",
        SLIDING | SOFT_CAP,
        backend="torch",
        is_bit_exact=False,
    ),
    Architecture(
        "Gemma3ForCausalLM", "gemma3_text", {**_GEMMA, **_MIXED}, "Gemma 3, its text model", SLIDING, backend="native"
    ),
    Architecture(
        "Gemma3nForCausalLM",
        "gemma3n_text",
        {
            **_GEMMA,
            "num_hidden_layers": 4,
            **_WINDOW,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "intermediate_size": [128] * 4,
            "vocab_size_per_layer_input": VOCAB_SIZE,
            "hidden_size_per_layer_input": 16,
            "laurel_rank": 8,
            "num_kv_shared_layers": 2,
            "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
        },
        "Gemma 3n, its text model",
        SLIDING,
        notes="layers that share keys and values cache them twice",
        backend="native",
    ),
    Architecture(
        "Gemma4ForCausalLM",
        "gemma4_text",
        {
            **_GEMMA,
            "num_hidden_layers": 4,
            **_WINDOW,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "vocab_size_per_layer_input": VOCAB_SIZE,
            "hidden_size_per_layer_input": 16,
            "num_kv_shared_layers": 2,
            "global_head_dim": 32,
        },
        "Gemma 4, its text model",
        SLIDING,
        notes="layers that share keys and values cache them twice",
        backend="native",
        is_bit_exact=False,
    ),
    Architecture(
        "VaultGemmaForCausalLM",
        "vaultgemma",
        {**_GEMMA, **_MIXED},
        "VaultGemma",
        SLIDING | SOFT_CAP,
        backend="torch",
        is_bit_exact=False,
    ),
    Architecture("PhiForCausalLM", "phi", BASE, "Phi 1, 1.5 and 2", backend="native"),
    Architecture("Phi3ForCausalLM", "phi3", {**BASE, **_WINDOW}, "Phi 3 and 3.5 mini, Phi 4", SLIDING),
    Architecture(
        "Phi3ForCausalLM",
        "phi3",
        {**BASE, **_LONGROPE, "original_max_position_embeddings": 128},
        "Phi 3 and 3.5 mini, Phi 4",
        variant="longrope, up to the length at which it rescales",
    ),
    Architecture(
        "PhimoeForCausalLM",
        "phimoe",
        {**BASE, "num_local_experts": 4},
        "Phi 3.5 MoE",
        notes=_MIXTURE,
        backend="native",
        is_bit_exact=False,
    ),
    Architecture("OlmoForCausalLM", "olmo", BASE, "OLMo 1", backend="native"),
    Architecture("Olmo2ForCausalLM", "olmo2", BASE, "OLMo 2"),
    Architecture("Olmo3ForCausalLM", "olmo3", {**BASE, **_MIXED}, "OLMo 3", SLIDING, backend="native"),
    Architecture(
        "OlmoeForCausalLM", "olmoe", {**BASE, **EXPERTS}, "OLMoE", notes=_MIXTURE, backend="native", is_bit_exact=False
    ),
    Architecture("GraniteForCausalLM", "granite", BASE, "Granite 3, dense"),
    Architecture(
        "GraniteMoeForCausalLM",
        "granitemoe",
        {**BASE, **LOCAL_EXPERTS},
        "Granite 3, MoE",
        notes=_MIXTURE,
        backend="native",
        is_bit_exact=False,
    ),
    Architecture(
        "GraniteMoeSharedForCausalLM",
        "granitemoeshared",
        {**BASE, **LOCAL_EXPERTS, "shared_intermediate_size": 64},
        "Granite MoE with shared experts",
        notes=_MIXTURE,
        backend="native",
        is_bit_exact=False,
    ),
    Architecture("SmolLM3ForCausalLM", "smollm3", {**BASE, "no_rope_layers": [1, 0]}, "SmolLM3", notes="NoPE layers"),
    Architecture("Starcoder2ForCausalLM", "starcoder2", {**BASE, **_WINDOW}, "StarCoder2", SLIDING, backend="native"),
    Architecture("CohereForCausalLM", "cohere", BASE, "Command R, Aya", backend="native"),
    Architecture(
        "Cohere2ForCausalLM", "cohere2", {**BASE, **_MIXED}, "Command R7B, Command A", SLIDING, backend="native"
    ),
    Architecture("GPT2LMHeadModel", "gpt2", GPT, "GPT-2, DistilGPT2", backend="native", is_bit_exact=False),
    Architecture("GPTNeoXForCausalLM", "gpt_neox", WIDE_GPT, "Pythia, GPT-NeoX, Dolly", backend="native"),
    Architecture("GPTBigCodeForCausalLM", "gpt_bigcode", GPT, "StarCoder, SantaCoder", backend="native"),
    Architecture("OPTForCausalLM", "opt", {**GPT, "ffn_dim": 128, "word_embed_proj_dim": 64}, "OPT", backend="native"),
    Architecture("GlmForCausalLM", "glm", HEADS, "GLM-4 9B", backend="native"),
    Architecture("Glm4ForCausalLM", "glm4", HEADS, "GLM-4 0414", backend="native"),
    Architecture(
        "Glm4MoeForCausalLM",
        "glm4_moe",
        {**HEADS, **ROUTED_EXPERTS},
        "GLM-4.5 to 4.7",
        notes=_MIXTURE,
        backend="native",
        is_bit_exact=False,
    ),
    Architecture(
        "GptOssForCausalLM",
        "gpt_oss",
        {**HEADS, **_MIXED, **LOCAL_EXPERTS},
        "gpt-oss",
        SLIDING | SINKS,
        notes=_MIXTURE,
        backend="torch",
        is_bit_exact=False,
    ),
    Architecture(
        "DeepseekV2ForCausalLM",
        "deepseek_v2",
        {**LATENT, **ROUTED_EXPERTS},
        "DeepSeek V2",
        notes=f"{_LATENT_NOTE}; {_MIXTURE}",
        backend="torch",
        is_bit_exact=False,
    ),
    Architecture(
        "DeepseekV3ForCausalLM",
        "deepseek_v3",
        {**LATENT, **ROUTED_EXPERTS, **_LATENT_YARN},
        "DeepSeek V3, R1",
        notes=f"{_LATENT_NOTE}; {_MIXTURE}",
        backend="torch",
        is_bit_exact=False,
    ),
    Architecture(
        "MiniCPM3ForCausalLM", "minicpm3", LATENT, "MiniCPM3", notes=_LATENT_NOTE, backend="torch", is_bit_exact=False
    ),
    Architecture(
        "MiniMaxM2ForCausalLM",
        "minimax_m2",
        {**HEADS, **LOCAL_EXPERTS},
        "MiniMax M2",
        notes=_MIXTURE,
        backend="native",
        is_bit_exact=False,
    ),
    Architecture("Ernie4_5ForCausalLM", "ernie4_5", BASE, "ERNIE 4.5, dense", backend="native"),
    Architecture(
        "Ernie4_5_MoeForCausalLM",
        "ernie4_5_moe",
        {**BASE, "moe_intermediate_size": 32, "moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 1},
        "ERNIE 4.5, MoE",
        notes=_MIXTURE,
        backend="native",
        is_bit_exact=False,
    ),
    Architecture("Exaone4ForCausalLM", "exaone4", {**BASE, **_MIXED}, "EXAONE 4", SLIDING, backend="native"),
    Architecture("SeedOssForCausalLM", "seed_oss", HEADS, "Seed-OSS", backend="native"),
    Architecture("HunYuanDenseV1ForCausalLM", "hunyuan_v1_dense", HEADS, "Hunyuan, dense", backend="native"),
    Architecture(
        "HunYuanMoEV1ForCausalLM",
        "hunyuan_v1_moe",
        {**HEADS, "num_experts": 4, "moe_topk": 2},
        "Hunyuan A13B",
        notes=_MIXTURE,
        backend="torch",
        is_bit_exact=False,
    ),
    Architecture("ApertusForCausalLM", "apertus", {**BASE, "initializer_range": 0.2}, "Apertus", backend="native"),
    Architecture("ArceeForCausalLM", "arcee", BASE, "AFM 4.5B", backend="native"),
    Architecture("BitNetForCausalLM", "bitnet", BASE, "BitNet b1.58, unpacked weights", backend="native"),
    Architecture("HeliumForCausalLM", "helium", HEADS, "Helium", backend="native"),
    Architecture(
        "DbrxForCausalLM",
        "dbrx",
        {
            "vocab_size": VOCAB_SIZE,
            "d_model": 64,
            "n_heads": 4,
            "n_layers": 2,
            "max_seq_len": 256,
            "initializer_range": 0.3,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
            "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
        },
        "DBRX",
        notes=_MIXTURE,
        backend="native",
        is_bit_exact=False,
    ),
)
