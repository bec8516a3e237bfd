"""From a model's folder to a model on its device, or to one sentence that says why not.

transformers and accelerate do the loading; what is decided here is what they would leave to chance: device and dtype,
memory before it is taken, weights that are missing without a word.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.initialization import no_init_weights

from dedicate_runtime.core.config import DeviceChoice, DtypeChoice, EngineConfig
from dedicate_runtime.errors import ExitCode, StartError
from dedicate_runtime.worker.attention import IMPLEMENTATION, register_attention
from dedicate_runtime.worker.machine import count_free_bytes, format_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from dedicate_runtime.worker.checkpoint import Checkpoint

_logger = logging.getLogger(__name__)

_DTYPES = {
    DtypeChoice.FLOAT32: torch.float32,
    DtypeChoice.BFLOAT16: torch.bfloat16,
    DtypeChoice.FLOAT16: torch.float16,
}

_COMPUTED_BUFFERS = frozenset({"inv_freq", "original_inv_freq"})

_LENGTH_DEPENDENT_ROPE = frozenset({"longrope", "dynamic"})
"""Position encodings that rescale all positions by the longest sequence of a call. One call holds many sequences here,
so they are served up to the length at which they begin to: there they are plain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model in evaluation mode on its device."""

    model: Any
    device: torch.device
    dtype: torch.dtype
    vocab_size: int


def choose_device(choice: DeviceChoice) -> torch.device:
    """Returns the device to run on.

    Raises:
        StartError: DEVICE_UNAVAILABLE; a GPU that was asked for is never replaced by the CPU.
    """
    if choice is DeviceChoice.CPU:
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if choice is DeviceChoice.CUDA:
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        raise StartError(
            ExitCode.DEVICE_UNAVAILABLE,
            f"A CUDA device was asked for and none is usable (torch {torch.__version__}, built {built}).",
        )
    return torch.device("cpu")


def choose_dtype(choice: DtypeChoice, device: torch.device) -> torch.dtype:
    """Returns the number format to compute in."""
    if choice is DtypeChoice.AUTO:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return _DTYPES[choice]


def read_config(folder: Path, *, trust_remote_code: bool) -> Any:
    """Parses config.json into transformers' configuration.

    Raises:
        StartError: UNSUPPORTED_MODEL or MODEL_CORRUPT.
    """
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:  # the edge: the configuration code of any architecture
        message = _first_sentence(error)
        if "trust_remote_code" in str(error) and not trust_remote_code:
            message = "it runs code of its own; --trust-remote-code allows that"
        raise StartError(ExitCode.UNSUPPORTED_MODEL, f"The model in {folder} cannot be served: {message}.") from error


def find_context_tokens(config: Any) -> int | None:
    """The longest sequence that the model's positions serve; None if it names no limit."""
    text_config = config.get_text_config()
    limit: int | None = getattr(text_config, "max_position_embeddings", None)
    rope = getattr(text_config, "rope_parameters", None) or {}
    if limit is not None and rope.get("rope_type") in _LENGTH_DEPENDENT_ROPE:
        original = rope.get("original_max_position_embeddings") or getattr(
            text_config, "original_max_position_embeddings", None
        )
        return min(limit, original or limit)
    return limit


def load_model(checkpoint: Checkpoint, model_config: Any, config: EngineConfig, device: torch.device) -> LoadedModel:
    """Loads the weights onto `device`.

    Raises:
        StartError: OUT_OF_MEMORY, UNSUPPORTED_MODEL or MODEL_CORRUPT.
    """
    dtype = choose_dtype(config.dtype, device)
    _check_memory(checkpoint, dtype, device)
    register_attention()
    _logger.info(
        "Loading %s of weights of %s as %s on %s",
        format_bytes(checkpoint.num_bytes),
        model_config.model_type,
        str(dtype).removeprefix("torch."),
        device,
    )
    started = time.monotonic()
    model = _assign_weights(checkpoint, model_config, config, dtype, device)
    if model is None:
        model, loading = _call_from_pretrained(checkpoint.folder, model_config, config, dtype, device)
        _check_complete(checkpoint.folder, loading)
    model.eval()
    model.requires_grad_(requires_grad=False)
    _logger.info("Loaded the weights in %.1f s", time.monotonic() - started)
    return LoadedModel(model=model, device=device, dtype=dtype, vocab_size=model.get_input_embeddings().num_embeddings)


def _check_memory(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> None:
    needed = checkpoint.num_elements * dtype.itemsize
    free = count_free_bytes(device)
    if needed > free:
        raise StartError(
            ExitCode.OUT_OF_MEMORY,
            f"The weights take {format_bytes(needed)} as {str(dtype).removeprefix('torch.')}, and {format_bytes(free)} "
            f"of memory is free on {device}.",
        )


def _assign_weights(
    checkpoint: Checkpoint, model_config: Any, config: EngineConfig, dtype: torch.dtype, device: torch.device
) -> Any | None:
    """The short way, a second sooner: makes the model and hands it the files' tensors as they are.

    None where the files do not hold exactly the model's parameters, by name and shape, or where something else may have
    to be done on the way; transformers' own loading then does it or finds the words for what is wrong.
    """
    if device.type != "cpu" or dtype is not torch.float32 or config.trust_remote_code:
        return None
    if getattr(model_config, "quantization_config", None) is not None:
        return None
    try:
        with no_init_weights():
            make: Any = AutoModelForCausalLM.from_config
            model = make(model_config, dtype=dtype, attn_implementation=IMPLEMENTATION)
        tensors = {name: tensor for file in checkpoint.files for name, tensor in load_file(file).items()}
    except Exception:  # the edge: the other way meets the same fault and names it
        _logger.debug("The weights are not assigned directly", exc_info=True)
        return None
    parameters = model.state_dict(keep_vars=True)
    tied = set(getattr(model, "all_tied_weights_keys", ()))
    if not set(tensors) <= set(parameters) or not set(parameters) - set(tensors) <= tied:
        return None
    # Buffers that no file holds are computed when a model is made, rotary frequencies are; others may be later.
    computed = {name.rpartition(".")[2] for name, _ in model.named_buffers() if name not in parameters}
    if not computed <= _COMPUTED_BUFFERS:
        return None
    if any(tensor.shape != parameters[name].shape for name, tensor in tensors.items()):
        return None
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    model.load_state_dict(tensors, strict=False, assign=True)
    model.tie_weights()
    return model


def _call_from_pretrained(
    folder: Path, model_config: Any, config: EngineConfig, dtype: torch.dtype, device: torch.device
) -> tuple[Any, dict[str, Any]]:
    load: Any = AutoModelForCausalLM.from_pretrained
    try:
        loaded: tuple[Any, dict[str, Any]] = load(
            folder,
            config=model_config,
            dtype=dtype,
            device_map={"": device},
            attn_implementation=IMPLEMENTATION,
            trust_remote_code=config.trust_remote_code,
            use_safetensors=True,
            # Reported by name instead of raised in a lump; `_check_complete` refuses them.
            ignore_mismatched_sizes=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise StartError(
            ExitCode.OUT_OF_MEMORY, f"The weights of {folder} do not fit into the memory of {device}."
        ) from error
    except (SafetensorError, OSError) as error:
        raise StartError(
            ExitCode.MODEL_CORRUPT, f"The weights in {folder} cannot be read: {_first_sentence(error)}."
        ) from error
    except Exception as error:  # the edge: the modelling code of any architecture
        architecture = ", ".join(model_config.architectures or [model_config.model_type])
        is_fixed = isinstance(error, KeyError) and IMPLEMENTATION in str(error)
        why = "its attention cannot be replaced" if is_fixed else _first_sentence(error)
        raise StartError(ExitCode.UNSUPPORTED_MODEL, f"{architecture} cannot be served: {why}.") from error
    return loaded


def _check_complete(folder: Path, loading: dict[str, Any]) -> None:
    """Raises StartError where transformers would go on with random numbers in place of weights."""
    for kind, what in (("missing_keys", "is missing"), ("mismatched_keys", "has another shape than the config says")):
        names = sorted(str(key[0] if isinstance(key, tuple) else key) for key in loading[kind])
        if names:
            others = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise StartError(ExitCode.MODEL_CORRUPT, f"In the weights of {folder}, {names[0]}{others} {what}.")
    if loading["error_msgs"]:
        raise StartError(ExitCode.MODEL_CORRUPT, f"The weights of {folder} do not load: {loading['error_msgs'][0]}.")


def _first_sentence(error: Exception) -> str:
    """The gist of a library's message: its first line, without the full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")
