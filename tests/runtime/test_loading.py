"""The short way of loading gives the model that transformers' own loading gives, and stands back where it cannot."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from dedicate_runtime.core.config import AttentionChoice, QuantizationChoice
from dedicate_runtime.errors import ExitCode, StartError
from dedicate_runtime.worker import loader
from dedicate_runtime.worker.checkpoint import check_folder
from tests.runtime.architectures import SERVED
from tests.runtime.fidelity import build_tiny, make_config, make_folder

BY_NAME = {architecture.name: architecture for architecture in SERVED}
CPU = torch.device("cpu")


@pytest.fixture(params=["LlamaForCausalLM", "Qwen3ForCausalLM", "Phi3ForCausalLM"])
def folder(request, tmp_path):
    make_folder(BY_NAME[request.param], tmp_path)
    return tmp_path


def assign(folder):
    model_config = loader.read_config(folder, trust_remote_code=False)
    loader.register_attention()
    return loader._assign_weights(check_folder(folder), model_config, make_config(folder), torch.float32, CPU)


def test_weights_that_are_assigned_are_those_that_are_loaded(folder):
    assigned = assign(folder)
    assert assigned is not None
    config = make_config(folder)
    model_config = loader.read_config(folder, trust_remote_code=False)
    loaded, _ = loader._call_from_pretrained(folder, model_config, config, torch.float32, CPU)
    expected = dict(loaded.named_parameters()) | dict(loaded.named_buffers())
    got = dict(assigned.named_parameters()) | dict(assigned.named_buffers())
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor), name
        assert got[name].dtype == tensor.dtype, name


@pytest.mark.parametrize("change", ["missing", "more", "shape"])
def test_files_that_do_not_fit_are_left_to_transformers(folder, change):
    file = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    name = next(name for name in sorted(tensors) if "down_proj" in name)
    if change == "missing":
        del tensors[name]
    elif change == "more":
        tensors["model.surplus.weight"] = torch.zeros(3)
    else:
        tensors[name] = tensors[name][:, :-1].clone()
    save_file(tensors, file, metadata={"format": "pt"})
    assert assign(folder) is None


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("MixtralForCausalLM", {}),  # its experts are torch's
        ("LlamaForCausalLM", {"attention_backend": AttentionChoice.TORCH}),
        ("LlamaForCausalLM", {"block_size": 8}),  # not for the native kernels
    ],
)
def test_a_promise_of_equal_bits_that_cannot_be_kept_is_refused(tmp_path, name, fields):
    make_folder(BY_NAME[name], tmp_path)
    with pytest.raises(StartError, match="--deterministic") as raised:
        build_tiny(tmp_path, is_deterministic=True, **fields)
    assert raised.value.exit_code is ExitCode.UNSUPPORTED_MODEL


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {"attention_backend": AttentionChoice.NATIVE, "block_size": 8},
            "native does not serve it here: they want blocks",
        ),
        ({"attention_backend": AttentionChoice.TRITON}, "triton does not serve it here: Triton is for CUDA"),
        ({"quantization": QuantizationChoice.INT8, "block_size": 8}, "--quantization int8 does not serve it here"),
    ],
)
def test_what_was_asked_for_and_cannot_be_had_is_refused(tmp_path, fields, told):
    make_folder(BY_NAME["LlamaForCausalLM"], tmp_path)
    with pytest.raises(StartError, match=told) as raised:
        build_tiny(tmp_path, **fields)
    assert raised.value.exit_code is ExitCode.UNSUPPORTED_MODEL


def test_what_the_kernels_do_not_serve_torch_does(tmp_path):
    make_folder(BY_NAME["LlamaForCausalLM"], tmp_path)
    backend, _ = build_tiny(tmp_path, block_size=8)
    assert backend == "torch"
