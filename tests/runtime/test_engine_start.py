"""How a start goes wrong, and how it is told: the code and the sentence, from the folder to the engine process."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from dedicate_runtime.core.config import DeviceChoice, DtypeChoice, EngineConfig
from dedicate_runtime.engine.build import build_engine
from dedicate_runtime.errors import ExitCode, StartError

CONTEXT = 128


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    return tmp_path


def make_config(folder, **fields):
    base = {
        "device": DeviceChoice.CPU,
        "dtype": DtypeChoice.AUTO,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 32,
        "max_queued_requests": 4,
    }
    return EngineConfig(model=str(folder), **{**base, **fields})


def refusal(config):
    with pytest.raises(StartError) as caught:
        build_engine(config)
    assert "\n" not in caught.value.sentence
    assert caught.value.sentence.endswith(".")
    return caught.value.exit_code, caught.value.sentence


def edit_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_whole_model_starts_and_says_what_it_is(folder):
    _, model = build_engine(make_config(folder))
    assert model.folder == str(folder)
    assert (model.vocab_size, model.max_model_len, model.dtype, model.device) == (64, CONTEXT, "float32", "cpu")
    # Enough for all sequences at full length, and no more.
    assert model.num_kv_blocks * model.block_size == 4 * CONTEXT


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_gpu_that_is_not_there_is_no_silent_cpu(folder):
    code, sentence = refusal(make_config(folder, device=DeviceChoice.CUDA))
    assert code is ExitCode.DEVICE_UNAVAILABLE
    assert "CUDA" in sentence


def test_context_longer_than_the_models(folder):
    code, sentence = refusal(make_config(folder, max_model_len=CONTEXT + 1))
    assert code is ExitCode.CONTEXT_TOO_LONG
    assert str(CONTEXT) in sentence


def test_context_longer_than_the_cache(folder):
    code, sentence = refusal(make_config(folder, max_model_len=100, kv_cache_tokens=64))
    assert code is ExitCode.CONTEXT_TOO_LONG
    assert "64" in sentence


def test_context_nobody_asked_for_is_shortened_to_the_cache(folder):
    assert build_engine(make_config(folder, kv_cache_tokens=64))[1].max_model_len == 64


def test_cache_that_no_memory_holds(folder):
    code, sentence = refusal(make_config(folder, kv_cache_tokens=10**14))
    assert code is ExitCode.OUT_OF_MEMORY
    assert "KV cache" in sentence


def test_unknown_architecture(folder):
    edit_config(folder, model_type="perceptron", architectures=["PerceptronForCausalLM"])
    code, sentence = refusal(make_config(folder))
    assert code is ExitCode.UNSUPPORTED_MODEL
    assert "perceptron" in sentence


def test_model_that_is_no_language_model(folder):
    edit_config(folder, model_type="vit", architectures=["ViTModel"])
    assert refusal(make_config(folder))[0] is ExitCode.UNSUPPORTED_MODEL


def test_weights_that_are_missing_are_not_made_up(folder):
    edit_config(folder, num_hidden_layers=3)
    code, sentence = refusal(make_config(folder))
    assert code is ExitCode.MODEL_CORRUPT
    assert "layers.2" in sentence


def test_weights_of_another_shape(folder):
    edit_config(folder, intermediate_size=96)
    assert refusal(make_config(folder))[0] is ExitCode.MODEL_CORRUPT


def test_code_of_the_repositorys_own_needs_leave(folder):
    edit_config(folder, model_type="own", auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"})
    code, sentence = refusal(make_config(folder))
    assert code is ExitCode.UNSUPPORTED_MODEL
    assert "--trust-remote-code" in sentence


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_positions_that_depend_on_the_company_are_kept_where_they_do_not(rope_type, tmp_path):
    rope = {"rope_type": rope_type, "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
    if rope_type == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        rope_parameters=rope,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    assert build_engine(make_config(tmp_path))[1].max_model_len == 32
