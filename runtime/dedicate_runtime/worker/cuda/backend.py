"""The backend of CUDA devices: Triton attention, fused layers, graphs. Serves as a `worker.backends.Backend`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from dedicate_runtime.worker.cuda.attention import TritonAttentionFactory
from dedicate_runtime.worker.cuda.cache import CudaKVCache
from dedicate_runtime.worker.cuda.fixed_shapes import FixedShapeRunner
from dedicate_runtime.worker.cuda.fusion import fuse_model
from dedicate_runtime.worker.cuda.runner import CudaModelRunner, RunnerLimits
from dedicate_runtime.worker.kv_cache import count_bytes_per_token
from dedicate_runtime.worker.loader import find_context_tokens

if TYPE_CHECKING:
    from dedicate_runtime.core.config import EngineConfig
    from dedicate_runtime.worker.loader import LoadedModel
    from dedicate_runtime.worker.model_check import AttentionLayers

_logger = logging.getLogger(__name__)


class CudaBackend:
    """Takes a model that `attention.find_obstacle` has nothing against; its layers are fused in place.

    Ask for the reference logits before: what stays of the model serves our attention and torch's, not "eager".
    """

    name = "triton"

    def __init__(self, config: EngineConfig, loaded: LoadedModel, layers: AttentionLayers) -> None:
        self._config = config
        self._loaded = loaded
        self._shapes = layers.shapes
        self.bytes_per_token = count_bytes_per_token(layers.shapes, loaded.dtype)
        num_fused = fuse_model(loaded.model, self._make_cache(1))
        _logger.info("Fused %d of %d layers for triton", num_fused, len(layers.shapes))

    def make_runner(self, num_blocks: int) -> CudaModelRunner | FixedShapeRunner:
        """A runner over a cache of `num_blocks` blocks, without graphs until its `capture` is called.

        Raises:
            torch.OutOfMemoryError: the device does not hold it.
        """
        loaded, config = self._loaded, self._config
        cache = self._make_cache(num_blocks)
        factory = TritonAttentionFactory(cache)
        if config.is_deterministic:
            return FixedShapeRunner(loaded.model, cache, factory, device=loaded.device)
        num_tokens = num_blocks * config.block_size
        context_tokens = config.max_model_len or find_context_tokens(loaded.model.config) or num_tokens
        limits = RunnerLimits(max_num_seqs=config.max_num_seqs, max_model_len=min(context_tokens, num_tokens))
        return CudaModelRunner(loaded.model, cache, factory, limits=limits, device=loaded.device)

    def _make_cache(self, num_blocks: int) -> CudaKVCache:
        loaded = self._loaded
        return CudaKVCache(
            self._shapes,
            num_blocks=num_blocks,
            block_size=self._config.block_size,
            dtype=loaded.dtype,
            device=loaded.device,
        )
