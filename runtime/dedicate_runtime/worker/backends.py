"""What runs a model: the reference in torch, native kernels on the CPU, Triton on CUDA. Chosen at load, and logged.

A backend has taken the model as it needs it; it says what a cached token costs and makes the runner over a cache.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch

from dedicate_runtime.core.config import AttentionChoice, QuantizationChoice
from dedicate_runtime.errors import ExitCode, StartError
from dedicate_runtime.worker.attention import TorchPagedAttention
from dedicate_runtime.worker.kv_cache import KVCache, count_bytes_per_token
from dedicate_runtime.worker.machine import count_usable_cpus
from dedicate_runtime.worker.model_check import refuse
from dedicate_runtime.worker.model_runner import ModelRunner
from dedicate_runtime.worker.native.attention import why_not_native
from dedicate_runtime.worker.native.cache import NativeKVCache
from dedicate_runtime.worker.native.library import BLOCK_TOKENS, NativeUnavailableError, Pool, load_kernels
from dedicate_runtime.worker.native.linear import WeightFormat
from dedicate_runtime.worker.native.sampling import NativeSampler
from dedicate_runtime.worker.native.stack import NativeModel
from dedicate_runtime.worker.sampler import TorchSampler

if TYPE_CHECKING:
    from dedicate_runtime.core.config import EngineConfig
    from dedicate_runtime.worker.loader import LoadedModel
    from dedicate_runtime.worker.model_check import AttentionLayers

_logger = logging.getLogger(__name__)


class Backend(Protocol):
    """One way to run a loaded model."""

    @property
    def name(self) -> str:
        """What attention is computed by, for logs and metrics."""

    @property
    def bytes_per_token(self) -> int:
        """What the cache takes for one token in all layers together."""

    def make_runner(self, num_blocks: int) -> ModelRunner:
        """Allocates a cache of `num_blocks` blocks. Raises torch.OutOfMemoryError or MemoryError."""


class TorchBackend:
    """The reference: transformers' forward as it is, attention by torch over gathered keys and values."""

    name = "torch"

    def __init__(self, loaded: LoadedModel, layers: AttentionLayers, *, block_size: int) -> None:
        self._loaded = loaded
        self._shapes = layers.shapes
        self._block_size = block_size
        self.bytes_per_token = count_bytes_per_token(layers.shapes, loaded.dtype)

    def make_runner(self, num_blocks: int) -> ModelRunner:
        """See `Backend.make_runner`."""
        loaded = self._loaded
        cache = KVCache(
            self._shapes, num_blocks=num_blocks, block_size=self._block_size, dtype=loaded.dtype, device=loaded.device
        )
        attention = partial(TorchPagedAttention, cache)
        return ModelRunner(loaded.model, cache, attention, TorchSampler(), device=loaded.device)


class NativeBackend:
    """Packed linear layers, fused decoder layers where they are known, and native attention."""

    def __init__(self, loaded: LoadedModel, layers: AttentionLayers, pool: Pool, format_: WeightFormat) -> None:
        self._loaded = loaded
        self._shapes = layers.shapes
        self._pool = pool
        self.model = NativeModel(loaded.model, pool, layers.variants, layers.shapes)
        self.model.take_weights(format_)
        self.name = f"native ({pool.kernels.instruction_set})"
        self.bytes_per_token = count_bytes_per_token(layers.shapes, torch.float32)

    def make_runner(self, num_blocks: int) -> ModelRunner:
        """See `Backend.make_runner`."""
        cache = NativeKVCache(self._shapes, num_blocks=num_blocks)
        self.model.bind(cache)
        sampler = NativeSampler(self._pool)
        return ModelRunner(self._loaded.model, cache, self.model.make_step, sampler, device=self._loaded.device)


def choose_backend(config: EngineConfig, loaded: LoadedModel, layers: AttentionLayers) -> Backend:
    """Takes the fastest backend that serves the model, or the one that was asked for; the model is then its own.

    Raises:
        StartError: what was asked for does not serve this model here.
    """
    backend = _choose(config, loaded, layers)
    if config.is_deterministic and isinstance(backend, TorchBackend):
        raise refuse(
            loaded.model,
            "--deterministic needs the native or the Triton kernels: torch's sums change with the size of a batch",
        )
    return backend


def _choose(config: EngineConfig, loaded: LoadedModel, layers: AttentionLayers) -> Backend:
    if loaded.device.type == "cuda" and config.quantization is QuantizationChoice.NONE:
        return _choose_on_cuda(config, loaded, layers)
    is_int8 = config.quantization is QuantizationChoice.INT8
    is_asked_for = is_int8 or config.attention_backend in {AttentionChoice.NATIVE, AttentionChoice.TRITON}
    if config.attention_backend is AttentionChoice.TORCH and not is_int8:
        return TorchBackend(loaded, layers, block_size=config.block_size)
    obstacle = _find_obstacle(config, loaded, layers)
    if obstacle is None:
        try:
            pool = Pool(load_kernels(), num_threads=count_usable_cpus())
        except NativeUnavailableError as error:
            obstacle = str(error)
        else:
            return _take_native(loaded, layers, pool, WeightFormat.INT8 if is_int8 else WeightFormat.FLOAT32)
    if is_asked_for:
        option = "--quantization int8" if is_int8 else f"--attention-backend {config.attention_backend.value}"
        raise refuse(loaded.model, f"{option} does not serve it here: {obstacle}")
    if loaded.device.type == "cpu":
        _logger.info("The native kernels are not used: %s", obstacle)
    return TorchBackend(loaded, layers, block_size=config.block_size)


def _choose_on_cuda(config: EngineConfig, loaded: LoadedModel, layers: AttentionLayers) -> Backend:
    obstacle: str | None = f"attention by {config.attention_backend.value} was asked for"
    if config.attention_backend in {AttentionChoice.AUTO, AttentionChoice.TRITON}:
        try:
            # Imported here: Triton is there where CUDA is, and takes its time.
            from dedicate_runtime.worker.cuda.attention import find_obstacle  # noqa: PLC0415
            from dedicate_runtime.worker.cuda.backend import CudaBackend  # noqa: PLC0415
        except ImportError as error:
            obstacle = f"Triton cannot be imported ({error})"
        else:
            obstacle = find_obstacle(layers.shapes, config.block_size)
            if obstacle is None:
                return CudaBackend(config, loaded, layers)
    if config.attention_backend not in {AttentionChoice.AUTO, AttentionChoice.TORCH}:
        choice = config.attention_backend.value
        raise refuse(loaded.model, f"--attention-backend {choice} does not serve it on {loaded.device}: {obstacle}")
    _logger.info("Triton is not used: %s", obstacle)
    return TorchBackend(loaded, layers, block_size=config.block_size)


def _find_obstacle(config: EngineConfig, loaded: LoadedModel, layers: AttentionLayers) -> str | None:
    if config.attention_backend is AttentionChoice.TRITON:
        return f"Triton is for CUDA, and the model is on {loaded.device}"
    if loaded.device.type != "cpu":
        return f"the model is on {loaded.device}"
    if loaded.dtype is not torch.float32:
        return f"they compute in float32, not in {str(loaded.dtype).removeprefix('torch.')}"
    if config.block_size != BLOCK_TOKENS:
        return f"they want blocks of {BLOCK_TOKENS} tokens, not of {config.block_size}"
    return why_not_native(layers.shapes, layers.variants)


def _take_native(loaded: LoadedModel, layers: AttentionLayers, pool: Pool, format_: WeightFormat) -> NativeBackend:
    try:
        backend = NativeBackend(loaded, layers, pool, format_)
    except MemoryError as error:
        raise StartError(ExitCode.OUT_OF_MEMORY, "The packed weights do not fit into memory.") from error
    if backend.model.is_fused:
        # What is left for torch is too small to share, and its threads would spin on the cores that ours want.
        torch.set_num_threads(1)
    _logger.info(
        "Packed the weights as %s for %s on %d threads, layers %s",
        format_.name.lower(),
        backend.name,
        pool.num_threads,
        "fused" if backend.model.is_fused else "one by one",
    )
    return backend
