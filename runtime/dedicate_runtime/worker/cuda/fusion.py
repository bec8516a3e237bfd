"""Fewer, larger kernels for decoder layers of the plain kind, one layer at a time and only where they agree.

Plain is what Llama began and Mistral, Qwen2 and Qwen3 kept: RMSNorm, grouped attention with rotated halves and maybe
norms of queries and keys, RMSNorm, gated SiLU. A layer that looks so is tried on a short text beside its original; one
that computes something else, such as scaled residuals or no rotation, keeps transformers' own code.

The fused weights are the only ones: the original's projections become views of them, and the original stays in place
for backends that are not ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import linear

from dedicate_runtime.core.batch import ScheduledBatch, ScheduledRow
from dedicate_runtime.core.request import RequestId, SamplingParams
from dedicate_runtime.worker.attention import BACKEND_ARGUMENT
from dedicate_runtime.worker.cuda.attention import TritonAttentionFactory, TritonPagedAttention
from dedicate_runtime.worker.cuda.fused_kernels import rms_norm, rotate_and_write, silu_mul
from dedicate_runtime.worker.step_inputs import build_step_inputs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dedicate_runtime.worker.attention import AttentionVariant
    from dedicate_runtime.worker.cuda.cache import CudaKVCache

_LAYER_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION_PARTS = {"q_proj", "k_proj", "v_proj", "o_proj"}
_ATTENTION_NORMS = {"q_norm", "k_norm"}
_MLP_PARTS = {"gate_proj", "up_proj", "down_proj", "act_fn"}

_TRIED_TOKENS = 12
"""Length of the text on which a fused layer is compared; arbitrary."""

_TOLERANCE = {torch.float32: 1e-4}
_LOW_PRECISION_TOLERANCE = 0.03
"""Relative distance of what a layer adds to its input. Sums in another order stay far below."""


class FusedRMSNorm(nn.Module):
    """An RMSNorm in one kernel."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.weight: nn.Parameter = norm.weight  # type: ignore[assignment]
        self.variance_epsilon: float = norm.variance_epsilon  # type: ignore[assignment]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """As the original: normalises the last dimension."""
        rows = hidden_states.reshape(-1, hidden_states.shape[-1]).contiguous()
        return rms_norm(rows, self.weight, self.variance_epsilon)[1].view(hidden_states.shape)


class FusedDecoderLayer(nn.Module):
    """A plain decoder layer in ten kernels. Other backends than ours go through the original."""

    def __init__(self, layer: nn.Module, index: int, variant: AttentionVariant) -> None:
        super().__init__()
        self.layer = layer
        self._index = index
        self._variant = variant
        attention: Any = layer.self_attn
        mlp: Any = layer.mlp
        self._qkv, self._qkv_bias = _fuse_linears([attention.q_proj, attention.k_proj, attention.v_proj])
        self._gate_up, _ = _fuse_linears([mlp.gate_proj, mlp.up_proj])
        self._norms = None
        if hasattr(attention, "q_norm"):
            self._norms = (attention.q_norm.weight, attention.k_norm.weight, attention.q_norm.variance_epsilon)

    def forward(self, hidden_states: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
        """As the original's; the batch is flattened, so its first dimension is 1."""
        backend = named.get(BACKEND_ARGUMENT)
        if not isinstance(backend, TritonPagedAttention):
            output: torch.Tensor = self.layer(hidden_states, *arguments, **named)
            return output
        layer: Any = self.layer
        before, after = layer.input_layernorm, layer.post_attention_layernorm
        cosines, sines = named["position_embeddings"]
        hidden = hidden_states[0]
        _, normed = rms_norm(hidden, before.weight, before.variance_epsilon)
        projected = linear(normed, self._qkv, self._qkv_bias)
        rotation = (cosines[0], sines[0])
        query = rotate_and_write(
            projected, rotation, self._norms, backend.cache.slots_of(self._index), backend.slot_mapping
        )
        attended = backend.attend_cached(self._index, query.transpose(0, 1), self._variant)
        added = layer.self_attn.o_proj(attended.flatten(1))
        hidden, normed = rms_norm(hidden, after.weight, after.variance_epsilon, added)
        activated = silu_mul(linear(normed, self._gate_up))
        # In place on a tensor of our own: the sum is made where the product is written.
        return hidden.addmm_(activated, layer.mlp.down_proj.weight.t())[None]


def _fuse_linears(linears: list[nn.Linear]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """One weight and bias out of several, which become views of them: nothing is held twice but for this moment."""
    weight = torch.cat([one.weight.detach() for one in linears])
    bias = None
    if linears[0].bias is not None:
        bias = torch.cat([one.bias.detach() for one in linears])
    first = 0
    for one in linears:
        last = first + one.out_features
        one.weight = nn.Parameter(weight[first:last], requires_grad=False)
        if bias is not None:
            one.bias = nn.Parameter(bias[first:last], requires_grad=False)
        first = last
    return weight, bias


def fuse_model(model: Any, cache: CudaKVCache) -> int:
    """Replaces what it can of `model` in place and returns the number of fused decoder layers.

    Writes to the first block of `cache`, whose content is meaningless afterwards. Any cache serves the fused model.
    """
    with torch.inference_mode():
        trials = _record_layers(model, cache)
    num_fused = 0
    for layers, place, trial in trials:
        # Outside inference mode: weights that were made in it could not be shared with the original.
        with torch.no_grad():
            fused = FusedDecoderLayer(layers[place], trial.index, trial.variant)
        with torch.inference_mode():
            if trial.agrees(fused):
                layers[place] = fused
                num_fused += 1
    for parent, name, norm in list(_find_norms(model)):
        setattr(parent, name, FusedRMSNorm(norm))
    return num_fused


class _Trial:
    """What one layer was given and what it answered, with the attention that it asked for."""

    def __init__(self, index: int, variant: AttentionVariant, given: tuple[Any, dict[str, Any]], output: Any) -> None:
        self.index = index
        self.variant = variant
        self._given = given
        self._output = output

    def agrees(self, fused: FusedDecoderLayer) -> bool:
        """True if `fused` adds the same to its input as the original did."""
        arguments, named = self._given
        hidden, expected = named.get("hidden_states", arguments[0] if arguments else None), self._output
        if hidden is None or not isinstance(expected, torch.Tensor) or named.get("position_embeddings") is None:
            return False
        dim = named["position_embeddings"][0].shape[-1]
        backend = named[BACKEND_ARGUMENT]
        if {dim} != {slots.shape[-1] for slots in backend.cache.slots_of(self.index)}:
            return False
        output = fused(hidden.clone(), **{name: value for name, value in named.items() if name != "hidden_states"})
        distance = torch.dist(output.float(), expected.float())
        change = torch.dist(expected.float(), hidden.float())
        tolerance = _TOLERANCE.get(expected.dtype, _LOW_PRECISION_TOLERANCE)
        rounding = 2 * torch.finfo(expected.dtype).eps * expected.float().norm()
        return bool(distance <= tolerance * change + rounding)


def _record_layers(model: Any, cache: CudaKVCache) -> list[tuple[nn.ModuleList, int, _Trial]]:
    """Runs the model on a short text and notes what its plain layers saw."""
    batch = _build_batch(min(_TRIED_TOKENS, cache.block_size))
    device = cache.slots_of(cache.layers[0])[0].device
    inputs = build_step_inputs(batch, block_size=cache.block_size, device=device)
    backend = _RecordingBackend(TritonAttentionFactory(cache)(inputs))
    seen: dict[nn.Module, tuple[Any, dict[str, Any], Any]] = {}

    def remember(layer: nn.Module, arguments: Any, named: dict[str, Any], output: Any) -> None:
        seen[layer] = (arguments, {**named, BACKEND_ARGUMENT: backend.inner}, output)

    candidates = list(_find_plain_layers(model))
    hooks = [layers[place].register_forward_hook(remember, with_kwargs=True) for layers, place in candidates]
    try:
        model(
            input_ids=inputs.token_ids,
            position_ids=inputs.positions,
            use_cache=False,
            logits_to_keep=torch.tensor([0], device=inputs.device),
            **{BACKEND_ARGUMENT: backend},
        )
    finally:
        for hook in hooks:
            hook.remove()
    trials = []
    for layers, place in candidates:
        layer: Any = layers[place]
        index = layer.self_attn.layer_idx
        if layer in seen and index in backend.variants:
            arguments, named, output = seen[layer]
            trials.append((layers, place, _Trial(index, backend.variants[index], (arguments, named), output)))
    return trials


class _RecordingBackend:
    """Passes attention on and remembers the variants."""

    def __init__(self, inner: TritonPagedAttention) -> None:
        self.inner = inner
        self.variants: dict[int, AttentionVariant] = {}

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, variant: AttentionVariant
    ) -> torch.Tensor:
        self.variants[layer] = variant
        return self.inner.attend(layer, query, key, value, variant)


def _find_plain_layers(model: nn.Module) -> Iterator[tuple[nn.ModuleList, int]]:
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            for place, layer in enumerate(module):
                if _is_plain(layer):
                    yield module, place


def _is_plain(layer: nn.Module) -> bool:
    if _names_of(layer) != _LAYER_PARTS:
        return False
    attention: Any = layer.self_attn
    mlp: Any = layer.mlp
    parts = _names_of(attention)
    if parts - _ATTENTION_NORMS != _ATTENTION_PARTS or len(parts & _ATTENTION_NORMS) == 1:
        return False
    if _names_of(mlp) != _MLP_PARTS:
        return False
    linears = [getattr(attention, name) for name in _ATTENTION_PARTS]
    linears += [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    norms = [layer.input_layernorm, layer.post_attention_layernorm]
    norms += [getattr(attention, name) for name in parts & _ATTENTION_NORMS]
    return (
        all(type(one) is nn.Linear for one in linears)
        and all(_is_rms_norm(one) for one in norms)
        and all(one.bias is None for one in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
        and len({one.bias is None for one in (attention.q_proj, attention.k_proj, attention.v_proj)}) == 1
    )


def _names_of(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}


def _is_rms_norm(module: object) -> bool:
    return (
        isinstance(module, nn.Module)
        and type(module).__name__.endswith("RMSNorm")
        and set(dict(module.named_parameters())) == {"weight"}
        and isinstance(getattr(module, "variance_epsilon", None), float)
    )


def _find_norms(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Norms that compute what ours does, outside of fused layers."""
    for parent in _walk(model):
        for name, child in parent.named_children():
            if _is_rms_norm(child) and _norm_agrees(child):
                yield parent, name, child


def _walk(module: nn.Module) -> Iterator[nn.Module]:
    if not isinstance(module, FusedDecoderLayer):
        yield module
        for child in module.children():
            yield from _walk(child)


def _norm_agrees(norm: nn.Module) -> bool:
    weight: torch.Tensor = norm.weight  # type: ignore[assignment]
    probe = torch.linspace(-2.0, 3.0, 4 * weight.numel(), device=weight.device).to(weight.dtype).view(4, -1)
    with torch.inference_mode():
        expected = norm(probe).float()
        distance = torch.dist(FusedRMSNorm(norm)(probe).float(), expected)
    tolerance = _TOLERANCE.get(weight.dtype, _LOW_PRECISION_TOLERANCE)
    return bool(distance <= tolerance * expected.norm())


def _build_batch(num_tokens: int) -> ScheduledBatch:
    row = ScheduledRow(
        request_id=RequestId("fusion"),
        token_ids=tuple(range(1, num_tokens + 1)),
        start=0,
        block_table=(1,),
        sampling=SamplingParams(max_tokens=1, end_ids=frozenset()),
        is_sampled=True,
        output_position=0,
    )
    return ScheduledBatch(rows=(row,), num_decode_rows=0)
