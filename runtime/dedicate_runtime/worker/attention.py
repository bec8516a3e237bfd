"""Attention over the paged cache, entered through transformers' attention interface.

A model that keeps the interface's contract calls `attend_through_backend` in each layer, with the extra keyword
arguments that were given to `model(...)`; one of them, `BACKEND_ARGUMENT`, is the backend of this step. Registering a
name that has no mask function makes the model skip the making of masks.
Source: https://huggingface.co/docs/transformers/attention_interface
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

if TYPE_CHECKING:
    from dedicate_runtime.worker.kv_cache import KVCache
    from dedicate_runtime.worker.step_inputs import DecodeView, PrefillView, StepInputs

IMPLEMENTATION = "dedicate_paged"
BACKEND_ARGUMENT = "dedicate_attention"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionVariant:
    """How one layer's attention departs from the plain one.

    `sliding_window` w: a token sees itself and the w - 1 before it. `softcap` c: scores become c * tanh(score / c).
    sinks: (num_heads,), one more score in each head's softmax that brings no value.
    """

    scaling: float | None
    sliding_window: int | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None

    @property
    def is_plain(self) -> bool:
        """True if fused kernels compute it."""
        return self.softcap is None and self.sinks is None


class AttentionBackend(Protocol):
    """What a layer's attention goes to."""

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, variant: AttentionVariant
    ) -> torch.Tensor:
        """Returns (num_tokens, num_heads, value_dim).

        query: (num_heads, num_tokens, key_dim); key, value: (num_kv_heads, num_tokens, dim) of the same tokens.
        """


AttentionFactory = Callable[["StepInputs"], AttentionBackend]
"""Makes the backend of one step."""


class UnsupportedAttentionError(Exception):
    """A layer asks for an attention that no backend computes."""


_HARMLESS_ARGUMENTS = frozenset(
    {
        "cache_position",
        "dropout",
        "head_mask",
        "is_causal",
        "logits_to_keep",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_embeddings",
        "position_ids",
        "return_dict",
        "use_cache",
    }
)
"""Known arguments that say nothing which the batch does not say already."""


def attend_through_backend(  # noqa: PLR0917 - the signature is transformers'
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **arguments: object,
) -> tuple[torch.Tensor, None]:
    """The function that transformers calls: (1, heads, tokens, dim) each in, (1, tokens, heads, dim) out.

    Raises:
        UnsupportedAttentionError: the model passes something whose meaning is unknown here.
    """
    backend = arguments.pop(BACKEND_ARGUMENT, None)
    layer = getattr(module, "layer_idx", None)
    if backend is None or layer is None:
        raise UnsupportedAttentionError("its layers do not pass on what the attention needs")
    unknown = [name for name, given in arguments.items() if given is not None and name not in _HARMLESS_ARGUMENTS]
    if unknown or attention_mask is not None:
        raise UnsupportedAttentionError(f"its attention asks for {', '.join(sorted(unknown)) or 'a mask of its own'}")
    variant = AttentionVariant(scaling=scaling, sliding_window=sliding_window, softcap=softcap, sinks=s_aux)
    output = backend.attend(layer, query[0], key[0], value[0], variant)  # type: ignore[attr-defined]
    return output[None], None


def register_attention() -> None:
    """Makes `IMPLEMENTATION` known to transformers; may be called again."""
    AttentionInterface.register(IMPLEMENTATION, attend_through_backend)


class TorchPagedAttention:
    """The reference: gathers each row's keys and values and leaves the arithmetic to torch.

    Decode rows of like length share one padded gather and one call; each prefill row has a call of its own.
    """

    def __init__(self, cache: KVCache, inputs: StepInputs) -> None:
        self._cache = cache
        self._inputs = inputs

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, variant: AttentionVariant
    ) -> torch.Tensor:
        """See `AttentionBackend.attend`; the new keys and values are in the cache afterwards."""
        self._cache.store(layer, self._inputs.slot_mapping, key.transpose(0, 1), value.transpose(0, 1))
        window = variant.sliding_window
        parts = [
            self._attend_decode(layer, query[:, view.first : view.last], view, variant)
            for view in self._inputs.decode_views(window)
        ]
        parts += [
            self._attend_prefill(layer, (query, key, value), view, variant)
            for view in self._inputs.prefill_views(window)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _attend_decode(
        self, layer: int, query: torch.Tensor, view: DecodeView, variant: AttentionVariant
    ) -> torch.Tensor:
        num_rows, num_keys = view.slots.shape
        keys, values = self._cache.gather(layer, view.slots.view(-1))
        num_kv_heads = keys.shape[1]
        keys = keys.view(num_rows, num_keys, num_kv_heads, -1).transpose(1, 2)
        values = values.view(num_rows, num_keys, num_kv_heads, -1).transpose(1, 2)
        if variant.is_plain:
            # Heads that share keys become query rows of one head: no key is copied or read twice.
            queries = query.transpose(0, 1).reshape(num_rows, num_kv_heads, -1, query.shape[-1])
            output = scaled_dot_product_attention(queries, keys, values, attn_mask=view.mask, scale=variant.scaling)
        else:
            mask = torch.ones(1, dtype=torch.bool, device=keys.device) if view.mask is None else view.mask
            output = _attend_plainly(query.transpose(0, 1)[:, :, None], keys, values, mask, variant)
        return output.reshape(num_rows, query.shape[0], -1)

    def _attend_prefill(
        self,
        layer: int,
        fed: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        view: PrefillView,
        variant: AttentionVariant,
    ) -> torch.Tensor:
        query, key, value = fed
        queries = query[None, :, view.first : view.last]
        if view.slots is None:
            keys, values = key[None, :, view.first : view.last], value[None, :, view.first : view.last]
        else:
            gathered_keys, gathered_values = self._cache.gather(layer, view.slots)
            keys, values = gathered_keys.transpose(0, 1)[None], gathered_values.transpose(0, 1)[None]
        if variant.is_plain:
            output = scaled_dot_product_attention(
                queries,
                keys,
                values,
                attn_mask=view.mask,
                is_causal=view.mask is None,
                scale=variant.scaling,
                enable_gqa=keys.shape[1] != queries.shape[1],
            )
        else:
            output = _attend_plainly(queries, keys, values, view.mask, variant)
        return output[0].transpose(0, 1)


def _attend_plainly(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    variant: AttentionVariant,
) -> torch.Tensor:
    """Attention written out, for what fused kernels leave away. A mask of None is the causal one.

    queries: (n, num_heads, num_queries, key_dim); keys, values: (n, num_kv_heads, num_keys, dim).
    """
    group_size = queries.shape[1] // keys.shape[1]
    keys = keys.repeat_interleave(group_size, dim=1)
    values = values.repeat_interleave(group_size, dim=1)
    if mask is None:
        num_tokens = queries.shape[2]
        mask = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=queries.device).tril()
    scaling = queries.shape[-1] ** -0.5 if variant.scaling is None else variant.scaling
    scores = queries @ keys.transpose(-1, -2) * scaling
    if variant.softcap is not None:
        scores = torch.tanh(scores / variant.softcap) * variant.softcap
    scores = scores.masked_fill(~mask, -torch.inf)
    if variant.sinks is not None:
        sinks = variant.sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, sinks], dim=-1)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(values.dtype)
    return weights[..., : keys.shape[2]] @ values
