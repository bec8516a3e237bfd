"""Whether what is measured computes the right thing; plain functions, so that a machine without pytest can run them.

Each raises AssertionError, or returns a sentence of what it saw.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import LlamaConfig, Qwen3Config

from bench.gpu.interpreter import products_in_one_order
from bench.gpu.subject import BLOCK_SIZE, Subject, make_model, make_reference, make_requests, make_subject
from dedicate_runtime.core.batch import ScheduledBatch, ScheduledRow
from dedicate_runtime.core.request import Request, RequestId, SamplingParams
from dedicate_runtime.engine.engine import Engine
from dedicate_runtime.worker.attention import IMPLEMENTATION, AttentionVariant, TorchPagedAttention
from dedicate_runtime.worker.cuda.attention import TritonAttentionFactory
from dedicate_runtime.worker.cuda.cache import CudaKVCache
from dedicate_runtime.worker.cuda.fixed_shapes import FixedShapeRunner
from dedicate_runtime.worker.cuda.fusion import fuse_model
from dedicate_runtime.worker.cuda.graphs import CapturedSteps
from dedicate_runtime.worker.cuda.sampling import WIDTH, SamplingColumns, sample_narrow
from dedicate_runtime.worker.kv_cache import LayerShape
from dedicate_runtime.worker.model_check import inspect_layers
from dedicate_runtime.worker.sampler import TorchSampler, draw_uniform
from dedicate_runtime.worker.step_inputs import build_step_inputs

_TOLERANCE = {torch.float32: 1e-3, torch.float16: 5e-3, torch.bfloat16: 2e-2}
"""Relative distance of attention to the reference. In float32 torch may multiply in TF32."""

_LENGTHS = (1, 9, 60, 200)
_LIMITS = {"max_num_seqs": 8, "max_model_len": 256, "max_num_batched_tokens": 128}
_NEW_TOKENS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Small enough for an interpreter, or what a device takes."""

    hidden: int
    lengths: tuple[int, ...]
    new_tokens: int
    dtypes: tuple[torch.dtype, ...]
    head_dims: tuple[int, ...]
    contexts: tuple[int, ...]


ON_DEVICE = Sizes(
    hidden=256,
    lengths=_LENGTHS,
    new_tokens=_NEW_TOKENS,
    dtypes=(torch.float32, torch.float16, torch.bfloat16),
    head_dims=(64, 80, 128, 256),
    contexts=(1, 15, 16, 17, 300, 1500, 4000),
)
ON_CPU = Sizes(hidden=64, lengths=(1, 18), new_tokens=3, dtypes=(torch.float32,), head_dims=(16,), contexts=(1, 17, 40))


def check_attention(device: torch.device, sizes: Sizes) -> str:
    """Decode and chunks in one batch, in every variant and number format, against torch."""
    worst = dict.fromkeys(sizes.dtypes, 0.0)
    sinks = torch.randn(12, device=device)
    variants = [
        AttentionVariant(scaling=None),
        AttentionVariant(scaling=0.1, sliding_window=37),
        AttentionVariant(scaling=None, softcap=20.0, sinks=sinks),
    ]
    for dtype in sizes.dtypes:
        for dim in sizes.head_dims:
            for variant in variants:
                worst[dtype] = max(worst[dtype], _measure_distance(device, dtype, dim, variant, sizes.contexts))
        assert worst[dtype] < _TOLERANCE[dtype], f"{dtype}: {worst[dtype]:.1e} from the reference"
    return ", ".join(f"{str(dtype).removeprefix('torch.')} {distance:.1e}" for dtype, distance in worst.items())


def _measure_distance(
    device: torch.device, dtype: torch.dtype, dim: int, variant: AttentionVariant, contexts: tuple[int, ...]
) -> float:
    longest = max(contexts)
    chunks = [(0, longest // 2 + 1), (longest // 3, longest // 2), (5, 1)]
    spans = [(length - 1, 1) for length in contexts] + chunks
    rows, num_blocks = [], 0
    for index, (start, length) in enumerate(spans):
        count = -(-(start + length) // BLOCK_SIZE)
        table = tuple(range(num_blocks + count, num_blocks, -1))
        num_blocks += count
        rows.append(_make_row(index, (0,) * length, start, table))
    batch = ScheduledBatch(rows=tuple(rows), num_decode_rows=len(contexts))
    shape = LayerShape(num_kv_heads=2, key_dim=dim, value_dim=dim)
    cache = CudaKVCache({0: shape}, num_blocks=num_blocks, block_size=BLOCK_SIZE, dtype=dtype, device=device)
    for slots in cache.slots_of(0):
        slots[BLOCK_SIZE:].normal_()
    inputs = build_step_inputs(batch, block_size=BLOCK_SIZE, device=device)
    query, key, value = (torch.randn(heads, batch.num_tokens, dim, device=device).to(dtype) for heads in (12, 2, 2))
    with torch.inference_mode():
        output = TritonAttentionFactory(cache)(inputs).attend(0, query, key, value, variant)
        expected = TorchPagedAttention(cache, inputs).attend(0, query, key, value, variant)
    assert torch.isfinite(output).all()
    return float(torch.dist(output.float(), expected.float()) / expected.float().norm())


def _make_row(index: int, token_ids: tuple[int, ...], start: int, table: tuple[int, ...]) -> ScheduledRow:
    return ScheduledRow(
        request_id=RequestId(f"check-{index}"),
        token_ids=token_ids,
        start=start,
        block_table=table,
        sampling=SamplingParams(max_tokens=1, end_ids=frozenset()),
        is_sampled=True,
        output_position=0,
    )


def check_sampling(device: torch.device, sizes: Sizes) -> str:
    """The sampler of the graphs against the sampler that defines the tokens, over a vocabulary of real size."""
    vocab_size = 151_936 if sizes is ON_DEVICE else 9_001
    num_rows = 64
    rows = [
        replace(_make_row(index, (0,), 0, (1,)), sampling=_make_sampling(index), output_position=index)
        for index in range(num_rows)
    ]

    def column(values: list[Any], dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    columns = SamplingColumns(
        temperature=column([row.sampling.temperature for row in rows], torch.float64),
        top_k=column([row.sampling.top_k for row in rows], torch.int64),
        top_p=column([row.sampling.top_p for row in rows], torch.float64),
        min_p=column([row.sampling.min_p for row in rows], torch.float64),
        draw=column(
            draw_uniform([row.sampling.seed for row in rows], [row.output_position for row in rows]).tolist(),
            torch.float64,
        ),
    )
    logits = (torch.randn(num_rows, vocab_size, device=device) * 4).to(torch.bfloat16)
    ours = sample_narrow(logits, columns)[:, 0].tolist()
    expected = TorchSampler().sample(logits.float(), rows).token_ids
    assert ours == list(expected), "sampled tokens differ"
    return f"{num_rows} rows over {vocab_size} tokens"


def _make_sampling(index: int) -> SamplingParams:
    return SamplingParams(
        max_tokens=1,
        end_ids=frozenset(),
        temperature=0.3 + index % 7,
        top_k=1 + index * 5 % WIDTH,
        top_p=(0.5, 0.9, 1.0)[index % 3],
        min_p=(0.0, 0.05)[index % 2],
        seed=index,
    )


def _make_config(sizes: Sizes, kind: type[Any] = LlamaConfig) -> Any:
    return kind(
        vocab_size=512,
        hidden_size=sizes.hidden,
        intermediate_size=2 * sizes.hidden,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=sizes.hidden // 4,
        max_position_embeddings=512,
        initializer_range=0.15,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def _make_checked_requests(sizes: Sizes, **sampling: Any) -> list[Request]:
    requests = []
    for index, length in enumerate(sizes.lengths):
        (request,) = make_requests(1, length, 512, max_tokens=sizes.new_tokens, first=index)
        requests.append(replace(request, sampling=replace(request.sampling, **sampling)))
    return requests


def _run(engine: Engine, requests: list[Request]) -> dict[str, list[int]]:
    assert not engine.submit(requests)
    tokens: dict[str, list[int]] = {request.request_id: [] for request in requests}
    while engine.has_work:
        for output in engine.step():
            assert output.error is None, output.error
            tokens[output.request_id] += output.token_ids
        engine.check_integrity()
    return tokens


def _make_checked_subject(device: torch.device, sizes: Sizes, dtype: torch.dtype = torch.float32) -> Subject:
    return make_subject(make_model(_make_config(sizes), device, dtype, IMPLEMENTATION), **_LIMITS)


def check_generate(device: torch.device, sizes: Sizes) -> str:
    """Greedy tokens in float32, from graphs, fused layers and chunks, are those of `generate()`."""
    model = make_model(_make_config(sizes), device, torch.float32, "eager")
    requests = _make_checked_requests(sizes, temperature=0.0)
    expected = {}
    for request in requests:
        prompt = torch.tensor([request.prompt_token_ids], device=device)
        generated = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=sizes.new_tokens,
            do_sample=False,
            pad_token_id=0,
        )
        expected[request.request_id] = generated[0, prompt.shape[1] :].tolist()
    subject = _make_checked_subject(device, sizes)
    assert _run(subject.engine, requests) == expected, "tokens differ from those of generate()"
    return f"{len(requests)} prompts, {sizes.new_tokens} tokens each"


def check_torch_backend(device: torch.device, sizes: Sizes) -> str:
    """Sampled tokens are those of the torch backend with the same seeds."""
    reference = make_reference(make_model(_make_config(sizes), device, torch.float32, IMPLEMENTATION), **_LIMITS)
    requests = _make_checked_requests(sizes, temperature=1.0, seed=5)
    subject = _make_checked_subject(device, sizes)
    assert _run(subject.engine, requests) == _run(reference, requests), "tokens differ from the torch backend's"
    return f"{len(requests)} prompts, seed 5"


def check_graphs(device: torch.device, sizes: Sizes) -> str:
    """Graphs were captured, and a step ahead or none gives the same tokens as eager steps."""
    requests = _make_checked_requests(sizes, temperature=0.8, seed=3)
    subject = _make_checked_subject(device, sizes)
    steps = subject.runner._steps  # noqa: SLF001 - what was captured is nobody else's business
    if isinstance(steps, CapturedSteps):
        assert steps.find_bucket(_LIMITS["max_num_seqs"]) is not None, "no graph was captured"
    ahead = _run(subject.engine, requests)
    subject.runner.max_steps_ahead = 0
    assert _run(subject.engine, requests) == ahead, "a step ahead changes tokens"
    eager = _make_checked_subject(device, sizes)
    eager.runner._steps = CapturedSteps(eager.runner._compute_decode, ())  # noqa: SLF001 - likewise
    assert _run(eager.engine, requests) == ahead, "graphs change tokens"
    return f"captured in {subject.capture_s:.1f} s"


def check_fusion(device: torch.device, sizes: Sizes) -> str:
    """Every plain layer is fused, in low precision too, and answers as before."""
    dtype = sizes.dtypes[-1]
    distances = []
    for kind in (LlamaConfig, Qwen3Config):
        model = make_model(_make_config(sizes, kind), device, dtype, IMPLEMENTATION)
        shapes = inspect_layers(model, device).shapes
        cache = CudaKVCache(shapes, num_blocks=4, block_size=BLOCK_SIZE, dtype=dtype, device=device)
        row = _make_row(0, tuple(range(40)), 0, (1, 2, 3))
        batch = ScheduledBatch(rows=(row,), num_decode_rows=0)
        runner = FixedShapeRunner(model, cache, TritonAttentionFactory(cache), device=device, window_tokens=48)
        with torch.inference_mode():
            expected = runner.compute_logits(batch, range(40))
        assert fuse_model(model, cache) == len(shapes), f"{kind.__name__}: a layer was not fused"
        with torch.inference_mode():
            fused = runner.compute_logits(batch, range(40))
        distances.append(float(torch.dist(fused, expected) / expected.norm()))
    assert max(distances) < (1e-3 if dtype == torch.float32 else 5e-2), distances
    return ", ".join(f"{distance:.1e}" for distance in distances)


def check_fixed_shapes(device: torch.device, sizes: Sizes) -> str:
    """The deterministic runner gives the same bits alone and in company."""
    dtype = sizes.dtypes[-1]
    model = make_model(_make_config(sizes), device, dtype, IMPLEMENTATION)
    shapes = inspect_layers(model, device).shapes
    cache = CudaKVCache(shapes, num_blocks=40, block_size=BLOCK_SIZE, dtype=dtype, device=device)
    window = 64 if sizes is ON_DEVICE else 16
    runner = FixedShapeRunner(model, cache, TritonAttentionFactory(cache), device=device, window_tokens=window)
    tokens = tuple(range(3, 53))
    with torch.inference_mode(), products_in_one_order(device):
        whole = ScheduledBatch(rows=(_make_row(0, tokens, 0, (1, 2, 3, 4)),), num_decode_rows=0)
        alone = runner.compute_logits(whole, range(50))
        parts = []
        for start, end, company in ((0, 21, 37), (21, 22, 5), (22, 50, 90)):
            other = _make_row(1, tuple(range(company)), 0, tuple(range(20, 30)))
            row = _make_row(0, tokens[start:end], start, (8, 7, 6, 5))
            batch = ScheduledBatch(rows=(other, row), num_decode_rows=0)
            parts.append(runner.compute_logits(batch, range(company, company + end - start)))
    assert torch.equal(torch.cat(parts), alone), "bits depend on company"
    return f"50 tokens in {str(dtype).removeprefix('torch.')}"


CHECKS = (
    check_attention,
    check_sampling,
    check_fusion,
    check_generate,
    check_torch_backend,
    check_graphs,
    check_fixed_shapes,
)


def run_checks(device: torch.device) -> dict[str, dict[str, str]]:
    """Runs every check and returns what each saw or why it failed; one failure does not stop the others."""
    sizes = ON_DEVICE if device.type == "cuda" else ON_CPU
    results = {}
    for check in CHECKS:
        torch.manual_seed(0)
        try:
            results[check.__name__] = {"passed": check(device, sizes)}
        except Exception as error:  # noqa: BLE001 - reported, and the next check runs
            results[check.__name__] = {"failed": f"{type(error).__name__}: {error}"[:400]}
    return results
