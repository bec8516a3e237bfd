"""Whether a loaded model can be served rightly, found out by running it: refusing is better than answering wrongly.

Two questions. Does every layer's attention come through our interface, with meanings that we know (`inspect_layers`)?
And does the model fed piece by piece say the same as when it reads all at once (`check_stepwise`)? The second finds
whatever carries state past the attention, looks ahead, or counts positions its own way.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from dedicate_runtime.core.batch import ScheduledBatch, ScheduledRow
from dedicate_runtime.core.request import RequestId, SamplingParams
from dedicate_runtime.errors import ExitCode, StartError
from dedicate_runtime.worker.attention import (
    BACKEND_ARGUMENT,
    IMPLEMENTATION,
    AttentionVariant,
    UnsupportedAttentionError,
)
from dedicate_runtime.worker.kv_cache import LayerShape

if TYPE_CHECKING:
    from dedicate_runtime.worker.model_runner import ModelRunner

_SERVED_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})

_CHECKED_TOKENS = 12
"""Length of the text that is read piece by piece; arbitrary."""

_MOST_COMPANY = 40
"""Rows beside the one that must not change; arbitrary, more than fit into any kernel's smallest tile."""

_TOLERANCE = {torch.float32: 0.02}
_LOW_PRECISION_TOLERANCE = 0.2
_QUANTIZED_TOLERANCE = 0.5
"""Relative distance of logits. Equal arithmetic in another order stays far below; a model that reads differently is
far above. Low precision may flip a router's choice, so the median over positions is compared."""


class _LayerInspector:
    """An attention backend that computes nothing and remembers what it was asked."""

    def __init__(self) -> None:
        self.shapes: dict[int, LayerShape] = {}
        self.variants: dict[int, AttentionVariant] = {}

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, variant: AttentionVariant
    ) -> torch.Tensor:
        if layer in self.shapes:
            raise UnsupportedAttentionError(f"layer {layer} attends more than once")
        self.shapes[layer] = LayerShape(num_kv_heads=key.shape[0], key_dim=key.shape[-1], value_dim=value.shape[-1])
        self.variants[layer] = variant
        return torch.zeros((query.shape[1], query.shape[0], value.shape[-1]), dtype=value.dtype, device=value.device)


def refuse(model: Any, why: str) -> StartError:
    """The error for an architecture that cannot be served."""
    return StartError(ExitCode.UNSUPPORTED_MODEL, f"{type(model).__name__} cannot be served: {why}.")


@dataclass(frozen=True, slots=True)
class AttentionLayers:
    """What each layer stores for a token and how it attends, by the layer's index."""

    shapes: dict[int, LayerShape]
    variants: dict[int, AttentionVariant]


def inspect_layers(model: Any, device: torch.device) -> AttentionLayers:
    """Finds out what each layer's attention stores and asks for.

    Raises:
        StartError: UNSUPPORTED_MODEL naming the architecture and what it asks for.
    """
    if not type(model)._supports_attention_backend:  # noqa: SLF001 - transformers' only sign of the contract
        raise refuse(model, "its attention cannot be replaced")
    if type(model)._is_stateful:  # noqa: SLF001 - likewise
        raise refuse(model, "it keeps a state beside the attention cache")
    inspector = _LayerInspector()
    tokens = torch.tensor([[0, 0]], device=device)
    try:
        with torch.inference_mode():
            model(
                input_ids=tokens,
                position_ids=torch.tensor([[0, 1]], device=device),
                use_cache=False,
                logits_to_keep=torch.tensor([1], device=device),
                **{BACKEND_ARGUMENT: inspector},
            )
    except UnsupportedAttentionError as error:
        raise refuse(model, str(error)) from error
    except Exception as error:  # the edge: modelling code of any architecture
        raise refuse(model, f"its forward does not take what the engine gives it ({error})") from error
    config = model.config.get_text_config()
    _check_layers(model, config, inspector)
    return AttentionLayers(inspector.shapes, inspector.variants)


def _check_layers(model: Any, config: Any, inspector: _LayerInspector) -> None:
    num_layers = config.num_hidden_layers
    if sorted(inspector.shapes) != list(range(num_layers)):
        raise refuse(model, f"{len(inspector.shapes)} of its {num_layers} layers have an attention that can be paged")
    layer_types = getattr(config, "layer_types", None) or []
    for layer, layer_type in enumerate(layer_types[:num_layers]):
        if layer_type not in _SERVED_LAYER_TYPES:
            raise refuse(model, f"layer {layer} is of type {layer_type}")
        has_window = inspector.variants[layer].sliding_window is not None
        if layer_type == "sliding_attention" and not has_window:
            raise refuse(model, f"layer {layer} has a sliding window and does not say which")


def check_stepwise(
    model: Any, expected: torch.Tensor, runner: ModelRunner, *, block_size: int, is_quantized: bool = False
) -> None:
    """Compares logits of chunks and single tokens through the engine's path with `expected`, the model's own.

    Uses blocks from 1 on, whose content is meaningless afterwards.

    Raises:
        StartError: UNSUPPORTED_MODEL.
    """
    num_tokens = len(expected)
    token_ids = _choose_tokens(model, num_tokens)
    bounds = [0, num_tokens // 2, num_tokens - 2, num_tokens - 1, num_tokens]
    with torch.inference_mode():
        distances = []
        for start, end in itertools.pairwise(bounds):
            if end > start:
                batch = _build_chunk(token_ids, start, end, block_size=block_size)
                logits = _feed(model, runner, batch)
                reference = expected[end - 1]
                distances.append(torch.dist(logits, reference) / reference.norm().clamp_min(1e-6))
    distance = float(torch.stack(distances).median())
    tolerance = _QUANTIZED_TOLERANCE if is_quantized else _TOLERANCE.get(model.dtype, _LOW_PRECISION_TOLERANCE)
    if not distance < tolerance:
        raise refuse(model, f"fed step by step it does not answer as it does at once (logits differ by {distance:.0%})")


def check_determinism(model: Any, runner: ModelRunner, *, block_size: int, num_blocks: int) -> None:
    """Compares the bits of one sequence's logits alone, in company and read in two chunks.

    Raises:
        StartError: UNSUPPORTED_MODEL, as there is no way to keep the promise that was asked for.
    """
    token_ids = _choose_tokens(model, min(_CHECKED_TOKENS, block_size))
    others = range(2, min(num_blocks, 1 + _MOST_COMPANY) + 1)
    with torch.inference_mode():
        row = _build_chunk(token_ids, 0, len(token_ids), block_size=block_size).rows[0]
        alone = runner.compute_logits(ScheduledBatch(rows=(row,), num_decode_rows=0), [len(token_ids) - 1])
        company = tuple(replace(row, block_table=(block,)) for block in others)
        batch = ScheduledBatch(rows=(*company, row), num_decode_rows=0)
        last = replace(row, token_ids=token_ids[-1:], start=len(token_ids) - 1)
        crowd = (*(replace(last, block_table=one.block_table) for one in company), last)
        batches = [batch, *(ScheduledBatch(rows=rows, num_decode_rows=len(rows)) for rows in ((last,), crowd))]
        outputs = [runner.compute_logits(one, [one.num_tokens - 1]) for one in batches]
    if not all(torch.equal(output, alone) for output in outputs):
        raise refuse(model, "--deterministic cannot be kept: its sums change with the size of a batch")


def _feed(model: Any, runner: ModelRunner, batch: ScheduledBatch) -> torch.Tensor:
    """Logits of the batch's last token: (vocab_size,) float32."""
    try:
        return runner.compute_logits(batch, [batch.num_tokens - 1])[0]
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # the edge: modelling code of any architecture, whose layers may have been replaced
        raise refuse(model, f"its forward fails step by step ({type(error).__name__}: {error})") from error


def _choose_tokens(model: Any, num_tokens: int) -> tuple[int, ...]:
    vocab_size = model.get_input_embeddings().num_embeddings
    return tuple((7919 * position + 13) % vocab_size for position in range(num_tokens))


def compute_reference(model: Any, *, max_tokens: int) -> torch.Tensor:
    """Logits of a short text by transformers' own eager attention: (num_tokens, vocab_size) float32."""
    token_ids = _choose_tokens(model, min(_CHECKED_TOKENS, max_tokens))
    model.set_attn_implementation("eager")
    try:
        with torch.inference_mode():
            output = model(input_ids=torch.tensor([token_ids], device=model.device), use_cache=False)
        logits: torch.Tensor = output.logits[0].float()
        return logits
    finally:
        model.set_attn_implementation(IMPLEMENTATION)


def _build_chunk(token_ids: tuple[int, ...], start: int, end: int, *, block_size: int) -> ScheduledBatch:
    row = ScheduledRow(
        request_id=RequestId("check"),
        token_ids=token_ids[start:end],
        start=start,
        block_table=tuple(range(1, -(-len(token_ids) // block_size) + 1)),
        sampling=SamplingParams(max_tokens=1, end_ids=frozenset()),
        is_sampled=True,
        output_position=0,
    )
    return ScheduledBatch(rows=(row,), num_decode_rows=int(end - start == 1))
