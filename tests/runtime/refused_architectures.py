"""The architectures that the engine refuses, and why: better no answer than a wrong one."""

from __future__ import annotations

from tests.runtime.architectures import (
    BASE,
    EXPERTS,
    HEADS,
    LATENT,
    LOCAL_EXPERTS,
    ROUTED_EXPERTS,
    VOCAB_SIZE,
    WIDE_GPT,
    RefusedArchitecture,
)

_LINEAR_THEN_FULL = {"layer_types": ["linear_attention", "full_attention"]}

_NO_CONTRACT = "its attention cannot be replaced"
_STATE = "it keeps a state beside the attention cache"
_PARTLY = "1 of its 2 layers have an attention that can be paged"
_TWICE = "layer 0 attends more than once"

REFUSED = (
    RefusedArchitecture(
        "BloomForCausalLM",
        "bloom",
        {"vocab_size": VOCAB_SIZE, "hidden_size": 64, "n_layer": 2, "n_head": 4},
        "BLOOM",
        _NO_CONTRACT,
    ),
    RefusedArchitecture(
        "MptForCausalLM",
        "mpt",
        {"vocab_size": VOCAB_SIZE, "d_model": 64, "n_heads": 4, "n_layers": 2},
        "MPT",
        _NO_CONTRACT,
    ),
    RefusedArchitecture("StableLmForCausalLM", "stablelm", BASE, "StableLM", _NO_CONTRACT),
    RefusedArchitecture(
        "NemotronForCausalLM",
        "nemotron",
        BASE,
        "Nemotron 4, Minitron",
        "its layers do not pass on what the attention needs",
    ),
    RefusedArchitecture(
        "MambaForCausalLM",
        "mamba",
        {"vocab_size": VOCAB_SIZE, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8},
        "Mamba",
        _NO_CONTRACT,
    ),
    RefusedArchitecture(
        "JambaForCausalLM",
        "jamba",
        {**BASE, "num_experts": 2, "mamba_d_state": 8, "use_mamba_kernels": False},
        "Jamba",
        _NO_CONTRACT,
    ),
    RefusedArchitecture(
        "FalconH1ForCausalLM",
        "falcon_h1",
        {**HEADS, "mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8},
        "Falcon H1",
        _NO_CONTRACT,
    ),
    RefusedArchitecture("NemotronHForCausalLM", "nemotron_h", BASE, "Nemotron-H, Nemotron Nano 2", _NO_CONTRACT),
    RefusedArchitecture(
        "Zamba2ForCausalLM",
        "zamba2",
        {**BASE, "layer_types": ["mamba", "hybrid"], "mamba_d_state": 8},
        "Zamba 2",
        _NO_CONTRACT,
    ),
    RefusedArchitecture(
        "Qwen3NextForCausalLM",
        "qwen3_next",
        {**HEADS, **EXPERTS, **_LINEAR_THEN_FULL, "shared_expert_intermediate_size": 32},
        "Qwen3 Next",
        _NO_CONTRACT,
    ),
    RefusedArchitecture(
        "Qwen3_5ForCausalLM", "qwen3_5_text", {**HEADS, **_LINEAR_THEN_FULL}, "Qwen 3.5, its text model", _NO_CONTRACT
    ),
    RefusedArchitecture(
        "GraniteMoeHybridForCausalLM",
        "granitemoehybrid",
        {**BASE, **LOCAL_EXPERTS, "shared_intermediate_size": 64, "layer_types": ["mamba", "attention"]},
        "Granite 4",
        _STATE,
    ),
    RefusedArchitecture("RecurrentGemmaForCausalLM", "recurrent_gemma", BASE, "RecurrentGemma", _STATE),
    RefusedArchitecture(
        "Lfm2ForCausalLM", "lfm2", {**BASE, "layer_types": ["conv", "full_attention"]}, "LFM2", _PARTLY
    ),
    RefusedArchitecture(
        "MiniMaxForCausalLM",
        "minimax",
        {**HEADS, "num_local_experts": 4, **_LINEAR_THEN_FULL},
        "MiniMax Text 01",
        _PARTLY,
    ),
    RefusedArchitecture(
        "Llama4ForCausalLM",
        "llama4_text",
        {
            **HEADS,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 64,
            "attention_chunk_size": 32,
        },
        "Llama 4, its text model",
        "layer 0 is of type chunked_attention",
    ),
    RefusedArchitecture(
        "DeepseekV32ForCausalLM",
        "deepseek_v32",
        {**LATENT, **ROUTED_EXPERTS},
        "DeepSeek V3.2",
        "its forward does not take what the engine gives it",
    ),
    RefusedArchitecture("DiffLlamaForCausalLM", "diffllama", BASE, "DiffLlama", _TWICE),
    RefusedArchitecture("DogeForCausalLM", "doge", BASE, "Doge", "its attention asks for a mask of its own"),
    RefusedArchitecture(
        "BertLMHeadModel", "bert", WIDE_GPT, "BERT", "fed step by step it does not answer as it does at once"
    ),
)
