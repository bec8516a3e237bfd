"""From a configuration to a worker that is ready to step: resolve, check, load, size the cache, try it out."""

from __future__ import annotations

import gc
import logging
import sys
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from dedicate_runtime.core.batch import ScheduledBatch, ScheduledRow
from dedicate_runtime.core.config import AttentionChoice, QuantizationChoice
from dedicate_runtime.core.request import ModelInfo, RequestId, SamplingParams
from dedicate_runtime.errors import ExitCode, StartError
from dedicate_runtime.worker.backends import TorchBackend, choose_backend
from dedicate_runtime.worker.checkpoint import check_folder
from dedicate_runtime.worker.hub import resolve_model
from dedicate_runtime.worker.loader import LoadedModel, choose_device, find_context_tokens, load_model, read_config
from dedicate_runtime.worker.machine import count_free_bytes, format_bytes
from dedicate_runtime.worker.model_check import check_determinism, check_stepwise, compute_reference, inspect_layers

if TYPE_CHECKING:
    from dedicate_runtime.core.config import EngineConfig
    from dedicate_runtime.worker.backends import Backend
    from dedicate_runtime.worker.model_runner import ModelRunner

_logger = logging.getLogger(__name__)

_CACHE_SHARE = {"cuda": 0.9, "cpu": 0.5}
"""Part of the free memory that the KV cache may take. On the CPU others live beside it, the API process among them."""

_SAMPLING_COPIES = 4
"""Copies of all rows' float32 logits that sampling makes at its peak."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A runner that has computed its first token, and what there is to know of its model."""

    runner: ModelRunner
    model: ModelInfo


def build_worker(config: EngineConfig) -> Worker:
    """Makes everything that touches tensors.

    Raises:
        StartError: with the code and the sentence of what went wrong.
    """
    try:
        return _build(config)
    except _BackendMismatchError as mismatch:
        if config.attention_backend is not AttentionChoice.AUTO or config.quantization is not QuantizationChoice.NONE:
            raise mismatch.refusal from mismatch
        _logger.warning("%s does not compute this model rightly, torch does: %s", mismatch.name, mismatch.refusal)
    # Outside of the handler, which keeps the first attempt's memory; what it repacked is loaded anew.
    gc.collect()
    return _build(replace(config, attention_backend=AttentionChoice.TORCH))


class _BackendMismatchError(Exception):
    """A backend other than the reference answers differently from the model itself."""

    def __init__(self, name: str, refusal: StartError) -> None:
        super().__init__(name)
        self.name = name
        self.refusal = refusal


def _build(config: EngineConfig) -> Worker:
    device = choose_device(config.device)
    folder = resolve_model(config.model, config.revision, with_code=config.trust_remote_code)
    checkpoint = check_folder(folder)
    model_config = read_config(folder, trust_remote_code=config.trust_remote_code)
    context_tokens = _limit_context(config, find_context_tokens(model_config))
    loaded = load_model(checkpoint, model_config, config, device)
    layers = inspect_layers(loaded.model, device)
    reference = compute_reference(loaded.model, max_tokens=config.kv_cache_tokens or sys.maxsize)
    backend = choose_backend(config, loaded, layers)
    num_blocks = _count_blocks(config, loaded, backend, context_tokens)
    max_model_len = _fit_context(config, context_tokens, num_blocks)
    runner = _allocate(backend, num_blocks, config, loaded)
    started = time.monotonic()
    _check_answers(config, loaded, backend, runner, reference)
    if config.is_deterministic:
        check_determinism(loaded.model, runner, block_size=config.block_size, num_blocks=num_blocks)
    _logger.info("Checked the model step by step in %.1f s", time.monotonic() - started)
    runner.capture()
    return Worker(
        runner=runner,
        model=ModelInfo(
            folder=str(folder),
            vocab_size=loaded.vocab_size,
            max_model_len=max_model_len,
            dtype=str(loaded.dtype).removeprefix("torch."),
            device=str(device) if device.type == "cpu" else f"{device} ({torch.cuda.get_device_name(device)})",
            attention_backend=backend.name,
            num_kv_blocks=num_blocks,
            block_size=config.block_size,
        ),
    )


def _check_answers(
    config: EngineConfig, loaded: LoadedModel, backend: Backend, runner: ModelRunner, reference: torch.Tensor
) -> None:
    is_quantized = config.quantization is not QuantizationChoice.NONE
    try:
        check_stepwise(loaded.model, reference, runner, block_size=config.block_size, is_quantized=is_quantized)
    except StartError as error:
        if isinstance(backend, TorchBackend):
            raise
        raise _BackendMismatchError(backend.name, error) from error


def _limit_context(config: EngineConfig, model_limit: int | None) -> int | None:
    """The longest sequence that is wanted and possible; None if neither names a limit."""
    if config.max_model_len is None:
        return model_limit
    if model_limit is not None and config.max_model_len > model_limit:
        raise StartError(
            ExitCode.CONTEXT_TOO_LONG,
            f"--max-model-len {config.max_model_len} exceeds the model's context of {model_limit} tokens.",
        )
    return config.max_model_len


def _count_blocks(config: EngineConfig, loaded: LoadedModel, backend: Backend, context_tokens: int | None) -> int:
    if config.kv_cache_tokens is not None:
        return -(-config.kv_cache_tokens // config.block_size)
    bytes_per_token = backend.bytes_per_token
    free = count_free_bytes(loaded.device) - _measure_step(config, loaded, backend, context_tokens)
    num_blocks = int(free * _CACHE_SHARE[loaded.device.type]) // (bytes_per_token * config.block_size)
    if num_blocks < 1:
        raise StartError(
            ExitCode.OUT_OF_MEMORY,
            f"No memory is left for the KV cache: one block takes {format_bytes(bytes_per_token * config.block_size)}, "
            f"{format_bytes(max(free, 0))} is free beside the weights.",
        )
    if context_tokens is None:
        return num_blocks
    # More than all sequences at full length would never be used.
    return min(num_blocks, config.max_num_seqs * -(-context_tokens // config.block_size))


def _fit_context(config: EngineConfig, context_tokens: int | None, num_blocks: int) -> int:
    num_tokens = num_blocks * config.block_size
    if context_tokens is None or context_tokens <= num_tokens:
        return context_tokens or num_tokens
    if config.max_model_len is not None:
        raise StartError(
            ExitCode.CONTEXT_TOO_LONG,
            f"--max-model-len {config.max_model_len} does not fit: the KV cache holds {num_tokens} tokens.",
        )
    _logger.warning(
        "The model's context of %d tokens is shortened to the %d that the KV cache holds", context_tokens, num_tokens
    )
    return num_tokens


def _allocate(backend: Backend, num_blocks: int, config: EngineConfig, loaded: LoadedModel) -> ModelRunner:
    num_tokens = num_blocks * config.block_size
    size = num_tokens * backend.bytes_per_token
    sentence = f"A KV cache of {num_tokens} tokens takes {format_bytes(size)}, which {loaded.device} does not have."
    # The kernel would promise the CPU more than there is, and kill this process once it is used.
    if size > count_free_bytes(loaded.device):
        raise StartError(ExitCode.OUT_OF_MEMORY, sentence)
    try:
        runner = backend.make_runner(num_blocks)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise StartError(ExitCode.OUT_OF_MEMORY, sentence) from error
    _logger.info("The KV cache holds %d tokens in %s", num_tokens, format_bytes(size))
    return runner


def _measure_step(config: EngineConfig, loaded: LoadedModel, backend: Backend, context_tokens: int | None) -> int:
    """Bytes beside weights and cache that the largest step takes at its peak: measured on CUDA, reckoned on the CPU."""
    sampling = config.max_num_seqs * loaded.vocab_size * 4 * _SAMPLING_COPIES
    if loaded.device.type != "cuda":
        return sampling
    num_tokens = min(config.max_num_batched_tokens, context_tokens or config.max_num_batched_tokens)
    num_blocks = -(-num_tokens // config.block_size)
    try:
        runner = backend.make_runner(num_blocks)
        torch.cuda.reset_peak_memory_stats(loaded.device)
        before = torch.cuda.memory_allocated(loaded.device)
        runner.execute(_build_profiling_batch(num_tokens, num_blocks))
        return torch.cuda.max_memory_allocated(loaded.device) - before + sampling
    except torch.OutOfMemoryError as error:
        raise StartError(
            ExitCode.OUT_OF_MEMORY,
            f"A step of {num_tokens} tokens does not fit beside the weights: lower --max-num-batched-tokens.",
        ) from error


def _build_profiling_batch(num_tokens: int, num_blocks: int) -> ScheduledBatch:
    row = ScheduledRow(
        request_id=RequestId("profile"),
        token_ids=(0,) * num_tokens,
        start=0,
        block_table=tuple(range(1, num_blocks + 1)),
        sampling=SamplingParams(max_tokens=1, end_ids=frozenset()),
        is_sampled=True,
        output_position=0,
    )
    return ScheduledBatch(rows=(row,), num_decode_rows=0)
