"""Turn a GGUF file into the folder that transformers reads: safetensors, config, tokenizer, chat template.

The metadata of the GGUF file is the authority for token ids and the template: what transformers guesses on the way
(its converter takes defaults for what it does not know) is overwritten from there, and checked.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# gguf's tag of a control token. Source: the GGUF specification, `tokenizer.ggml.token_type`.
_CONTROL_TOKEN = 3


class ConversionError(Exception):
    """The converted folder does not say what the GGUF file says."""


def read_metadata(gguf_file: Path) -> dict[str, Any]:
    """Read all key-value pairs of a GGUF file."""
    from gguf import GGUFReader

    return {key: field.contents() for key, field in GGUFReader(gguf_file).fields.items()}


def convert_gguf(gguf_file: Path, folder: Path) -> None:
    """Write the float32 model in `gguf_file` to `folder`, which must exist.

    Raises:
        ConversionError: a token id, special token or the template differs from the GGUF file's.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    metadata = read_metadata(gguf_file)
    ids = {name: int(metadata[f"tokenizer.ggml.{name}_token_id"]) for name in ("bos", "eos", "padding")}
    source = {"pretrained_model_name_or_path": str(gguf_file.parent), "gguf_file": gguf_file.name}

    tokenizer = AutoTokenizer.from_pretrained(**source)
    tokens = metadata["tokenizer.ggml.tokens"]
    tokenizer.add_special_tokens(
        {
            "bos_token": tokens[ids["bos"]],
            "eos_token": tokens[ids["eos"]],
            "pad_token": tokens[ids["padding"]],
            "additional_special_tokens": [
                token
                for token, kind in zip(tokens, metadata["tokenizer.ggml.token_type"], strict=True)
                if kind == _CONTROL_TOKEN
            ],
        }
    )
    tokenizer.chat_template = metadata["tokenizer.chat_template"]
    tokenizer.model_max_length = int(metadata["llama.context_length"])
    _set_pre_tokenizer(tokenizer, metadata["tokenizer.ggml.pre"])
    tokenizer.save_pretrained(folder)

    config = AutoConfig.from_pretrained(**source)
    config.bos_token_id, config.eos_token_id, config.pad_token_id = ids["bos"], ids["eos"], ids["padding"]
    config.architectures = ["LlamaForCausalLM"]
    config.dtype = torch.float32
    config.save_pretrained(folder)
    generation = {"bos_token_id": ids["bos"], "eos_token_id": ids["eos"], "pad_token_id": ids["padding"]}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2))

    # `save_pretrained` of a model that was read from GGUF raises, so the tensors are written without it. The head is
    # tied to the embedding and is not stored twice.
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    check_folder(folder, metadata)


def _set_pre_tokenizer(tokenizer: Any, name: str) -> None:
    """Restore what the GGUF file names and transformers' converter drops: how text is split before merges apply.

    Source: llama.cpp's `smollm` pre-tokenizer: single digits, then GPT-2's expression.
    """
    from tokenizers import pre_tokenizers

    if name != "smollm":
        raise ConversionError(f"no rule for the pre-tokenizer {name!r}")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def check_folder(folder: Path, metadata: dict[str, Any]) -> None:
    """Hold the folder against the metadata of the GGUF file that it was made from.

    Raises:
        ConversionError: names the first difference.
    """
    from transformers import AutoTokenizer

    config = json.loads((folder / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = metadata["tokenizer.ggml.tokens"]
    control = {
        t for t, kind in zip(tokens, metadata["tokenizer.ggml.token_type"], strict=True) if kind == _CONTROL_TOKEN
    }
    eos_id = metadata["tokenizer.ggml.eos_token_id"]
    pairs = {
        "config eos_token_id": (config["eos_token_id"], eos_id),
        "tokenizer eos_token_id": (tokenizer.eos_token_id, eos_id),
        "tokenizer bos_token_id": (tokenizer.bos_token_id, metadata["tokenizer.ggml.bos_token_id"]),
        "vocabulary": (tokenizer.convert_ids_to_tokens(list(range(len(tokens)))), tokens),
        "special tokens": (set(tokenizer.all_special_tokens), control),
        "chat template": (tokenizer.chat_template, metadata["tokenizer.chat_template"]),
        "context length": (config["max_position_embeddings"], metadata["llama.context_length"]),
        "layers": (config["num_hidden_layers"], metadata["llama.block_count"]),
    }
    for what, (ours, theirs) in pairs.items():
        if ours != theirs:
            raise ConversionError(f"{what} differs from the GGUF file: {str(ours)[:200]} != {str(theirs)[:200]}")
