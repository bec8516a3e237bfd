"""A model folder that is not whole is refused with the name of the file."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from dedicate_runtime.errors import ExitCode, StartError
from dedicate_runtime.worker.checkpoint import check_folder


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(5)}, tmp_path / "model.safetensors")
    return tmp_path


@pytest.fixture
def sharded(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    weight_map = {}
    for name in ("a", "b"):
        file = f"model-{name}.safetensors"
        save_file({name: torch.zeros(2, 2)}, tmp_path / file)
        weight_map[name] = file
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return tmp_path


def refusal(folder):
    with pytest.raises(StartError) as caught:
        check_folder(folder)
    sentence = caught.value.sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence
    return caught.value.exit_code, sentence


def test_whole_file_is_counted(folder):
    assert check_folder(folder).num_elements == 17


def test_all_shards_are_counted(sharded):
    checkpoint = check_folder(sharded)
    assert checkpoint.num_elements == 8
    assert checkpoint.num_bytes == sum(path.stat().st_size for path in sharded.glob("model-*.safetensors"))


def test_missing_folder(tmp_path):
    code, sentence = refusal(tmp_path / "nothing")
    assert code is ExitCode.MODEL_NOT_FOUND
    assert str(tmp_path / "nothing") in sentence


@pytest.mark.parametrize("content", [None, b"{", b"[]", b"\xff\xfe"])
def test_config_that_cannot_be_read(folder, content):
    path = folder / "config.json"
    path.unlink() if content is None else path.write_bytes(content)
    code, sentence = refusal(folder)
    assert code is ExitCode.MODEL_CORRUPT
    assert "config.json" in sentence


@pytest.mark.parametrize("keep", [0, 4, 8, 60, -1])
def test_truncated_weights(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    code, sentence = refusal(folder)
    assert code is ExitCode.MODEL_CORRUPT
    assert "model.safetensors" in sentence


@pytest.mark.parametrize(
    "content",
    [b"not a tensor file at all", (2**63).to_bytes(8, "little"), (2).to_bytes(8, "little") + b"[]", b"\0" * 8],
)
def test_weights_that_are_something_else(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    code, sentence = refusal(folder)
    assert code is ExitCode.MODEL_CORRUPT
    assert "model.safetensors" in sentence


def test_missing_shard(sharded):
    (sharded / "model-b.safetensors").unlink()
    code, sentence = refusal(sharded)
    assert code is ExitCode.MODEL_CORRUPT
    assert "model-b.safetensors is missing" in sentence


def test_index_without_a_map(sharded):
    (sharded / "model.safetensors.index.json").write_text('{"weight_map": ["model-a.safetensors"]}')
    code, sentence = refusal(sharded)
    assert code is ExitCode.MODEL_CORRUPT
    assert "weight_map" in sentence


@pytest.mark.parametrize(
    ("others", "code"),
    [((), ExitCode.MODEL_CORRUPT), (("pytorch_model.bin",), ExitCode.UNSUPPORTED_MODEL)],
)
def test_no_safetensors(folder, others, code):
    (folder / "model.safetensors").unlink()
    for name in others:
        (folder / name).write_bytes(b"")
    assert refusal(folder)[0] is code
