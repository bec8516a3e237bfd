"""A model whose arithmetic is done by the native kernels, while its forward remains transformers' own.

Where every decoder layer is of a known class, all of them become one module that runs them in one call: transformers
embeds, computes the rotary positions, calls it once, and applies norm and head. Elsewhere each linear layer is replaced
by itself, and attention goes through the interface. What is replaced is freed at once, so that a model never lies in
memory twice.
"""

from __future__ import annotations

import ctypes
import logging
import weakref
from typing import TYPE_CHECKING, Any

import torch

from dedicate_runtime.worker.attention import BACKEND_ARGUMENT
from dedicate_runtime.worker.native.attention import NativeStep
from dedicate_runtime.worker.native.layers import LayerWeights, describe_layer, is_known
from dedicate_runtime.worker.native.library import Layer
from dedicate_runtime.worker.native.linear import NativeLinear, PackedWeights, WeightFormat

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dedicate_runtime.worker.attention import AttentionVariant
    from dedicate_runtime.worker.kv_cache import LayerShape
    from dedicate_runtime.worker.native.cache import NativeKVCache
    from dedicate_runtime.worker.native.library import Pool
    from dedicate_runtime.worker.step_inputs import StepInputs

_logger = logging.getLogger(__name__)

_GATE_GROUP = 16
"""Gates and ups alternate in groups of this many, so that one panel of weights holds both."""

_MAX_WINDOWS = 2
"""Different sliding windows, none among them, for which the kernels plan a step."""


class FusedLayers(torch.nn.Module):
    """All decoder layers of a model in one call."""

    def __init__(self, native: NativeModel, num_layers: int) -> None:
        super().__init__()
        self._native = native
        self._num_layers = num_layers

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **arguments: Any,
    ) -> torch.Tensor:
        """(1, num_tokens, hidden_size) float32 to the same, in place."""
        hidden_states = hidden_states.contiguous()
        backend: NativeStep = arguments[BACKEND_ARGUMENT]
        self._native.run_layers(backend.step, hidden_states, position_embeddings, self._num_layers)
        return hidden_states


class NativeModel:
    """The native half of a model: packed weights, the layers' descriptions, and the cache once it is bound."""

    def __init__(
        self, model: Any, pool: Pool, variants: Mapping[int, AttentionVariant], shapes: Mapping[int, LayerShape]
    ) -> None:
        self._model = model
        self._pool = pool
        self._variants = variants
        self._shapes = shapes
        self._layers: list[Layer] = []
        # Everything that the layers' descriptions point to.
        self._kept: list[object] = []
        self._cache: NativeKVCache | None = None
        self._handle = 0
        self.is_fused = False

    def take_weights(self, format_: WeightFormat) -> None:
        """Packs the model's linear layers and puts the native ones in their place.

        Raises:
            MemoryError: the packed weights do not fit; the model is of no use afterwards.
        """
        decoder = self._model.get_decoder()
        if self._is_fusible(decoder):
            layers = decoder.layers
            for index in range(len(layers)):
                self._layers.append(self._pack(index, describe_layer(layers[index]), format_))
                layers[index] = torch.nn.Identity()
            decoder.layers = torch.nn.ModuleList([FusedLayers(self, len(self._layers))])
            self.is_fused = True
        self._replace_linears(self._model, format_)

    def _is_fusible(self, decoder: Any) -> bool:
        """Whether every layer is known, and all are of one shape."""
        layers = getattr(decoder, "layers", None)
        if not isinstance(layers, torch.nn.ModuleList) or len(set(self._shapes.values())) != 1:
            return False
        if len({variant.sliding_window for variant in self._variants.values()}) > _MAX_WINDOWS:
            return False
        each: Iterable[Any] = layers
        return all(is_known(layer) and layer.mlp.config.intermediate_size % _GATE_GROUP == 0 for layer in each)

    def _pack(self, index: int, weights: LayerWeights, format_: WeightFormat) -> Layer:
        shape, variant = self._shapes[index], self._variants[index]
        head_dim = shape.key_dim
        num_heads = weights.qkv.shape[0] // head_dim - 2 * shape.num_kv_heads
        gate_up_bias = None
        if weights.gate_bias is not None and weights.up_bias is not None:
            gate_up_bias = _alternate(weights.gate_bias, weights.up_bias)
        query_norm = self._keep(weights.query_norm)
        return Layer(
            attention_norm=self._keep(weights.attention_norm),
            attention_output_norm=self._keep(weights.attention_output_norm),
            mlp_norm=self._keep(weights.mlp_norm),
            mlp_output_norm=self._keep(weights.mlp_output_norm),
            query_norm=query_norm,
            key_norm=self._keep(weights.key_norm),
            qkv=self._pack_linear(weights.qkv, weights.qkv_bias, format_),
            output=self._pack_linear(weights.output, weights.output_bias, format_),
            gate_up=self._pack_linear(_alternate(weights.gate, weights.up), gate_up_bias, format_),
            down=self._pack_linear(weights.down, weights.down_bias, format_),
            norm_epsilon=weights.norm_epsilon,
            scaling=head_dim**-0.5 if variant.scaling is None else variant.scaling,
            residual_scale=weights.residual_scale,
            num_heads=num_heads,
            num_kv_heads=shape.num_kv_heads,
            head_dim=head_dim,
            # The width of the rotary tables tells at run time how much is rotated.
            rotary_dim=int(weights.is_rotated),
            query_norm_is_whole=int(weights.query_norm is not None and weights.query_norm.numel() != head_dim),
            window=variant.sliding_window or 0,
            activation=int(weights.activation),
        )

    def _keep(self, norm: torch.Tensor | None) -> int | None:
        if norm is None:
            return None
        kept = norm.detach().float().contiguous()
        self._kept.append(kept)
        address: int = kept.data_ptr()
        return address

    def _pack_linear(self, weight: torch.Tensor, bias: torch.Tensor | None, format_: WeightFormat) -> int:
        packed = PackedWeights(self._pool, weight, bias, format_)
        self._kept.append(packed)
        handle: int = packed.handle
        return handle

    def _replace_linears(self, module: torch.nn.Module, format_: WeightFormat) -> None:
        for name, child in module.named_children():
            # Subclasses may compute something else.
            if type(child) is torch.nn.Linear:
                setattr(module, name, NativeLinear(PackedWeights(self._pool, child.weight, child.bias, format_)))
            else:
                self._replace_linears(child, format_)

    def bind(self, cache: NativeKVCache) -> None:
        """Tells the layers where their keys and values are. Once."""
        self._cache = cache
        for index, layer in enumerate(self._layers):
            layer.keys = cache.keys[index].data_ptr()
            layer.values = cache.values[index].data_ptr()
            layer.rotary_dim = layer.rotary_dim and self._find_rotary_dim()
        functions = self._pool.kernels.functions
        array = (Layer * len(self._layers))(*self._layers)
        self._handle = functions.dedicate_stack_create(
            self._pool.handle, array, len(self._layers), self._model.config.get_text_config().hidden_size
        )
        self._destroying = weakref.finalize(self, functions.dedicate_stack_destroy, self._handle)

    def _find_rotary_dim(self) -> int:
        rotary = self._model.get_decoder().rotary_emb
        hidden = torch.zeros(1, 1, 1)
        width: int = rotary(hidden, position_ids=torch.zeros(1, 1, dtype=torch.int64))[0].shape[-1]
        return width

    def make_step(self, inputs: StepInputs) -> NativeStep:
        """The attention backend of one step."""
        assert self._cache is not None, "no cache is bound"
        return NativeStep(self._pool, self._cache, self._handle, inputs)

    def run_layers(
        self,
        step: Any,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None,
        num_layers: int,
    ) -> None:
        """Feeds the step's tokens through all layers; `hidden_states` is changed in place. Raises MemoryError."""
        tables = [] if position_embeddings is None else [table.float().contiguous() for table in position_embeddings]
        step.hidden = hidden_states.data_ptr()
        if tables:
            step.cosines, step.sines = (table.data_ptr() for table in tables)
        functions = self._pool.kernels.functions
        if not functions.dedicate_stack_run(self._handle, ctypes.byref(step), 0, num_layers):
            raise MemoryError

    def take_timers(self) -> dict[str, float]:
        """Seconds that the fused layers took since the last call, by kind of work."""
        seconds = (ctypes.c_double * 4)()
        self._pool.kernels.functions.dedicate_stack_timers(self._handle, seconds)
        return dict(zip(("elementwise", "projections", "attention", "feed_forward"), seconds, strict=True))


def _alternate(gates: torch.Tensor, ups: torch.Tensor) -> torch.Tensor:
    """Rows of both in turn, in groups of 16: (n, ...) and (n, ...) to (2 n, ...)."""
    groups = (-1, _GATE_GROUP, *gates.shape[1:])
    return torch.stack([gates.view(groups), ups.view(groups)], dim=1).view(-1, *gates.shape[1:])
