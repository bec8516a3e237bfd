"""Ceilings of the machine, and times of our engine against them."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from bench.gpu.subject import Scale, Subject, make_requests

if TYPE_CHECKING:
    from collections.abc import Callable

_TARGETS = {1: 900, 8: 6_500, 32: 22_000, 128: 50_000, 256: 62_000}
"""Tokens a second on an H200 at a context of 1k."""

PREFILL_TARGET = 0.6
"""Share of the measured matrix rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """What the machine gives at best: bytes read and written a second, and operations in matrix products a second."""

    bytes_per_s: float
    flops_per_s: float


def synchronize(device: torch.device) -> None:
    """Waits until the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def time_repeatedly(call: Callable[[], object], device: torch.device, *, repeats: int) -> float:
    """Median seconds of `call`, after two calls that do not count."""
    seconds = []
    for index in range(repeats + 2):
        synchronize(device)
        started = time.perf_counter()
        call()
        synchronize(device)
        if index >= 2:
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """A large copy, counting bytes read and written, and a large product of random matrices."""
    is_cuda = device.type == "cuda"
    num_bytes = 2**32 if is_cuda else 2**24
    source = torch.empty(num_bytes, dtype=torch.uint8, device=device)
    copy_s = time_repeatedly(partial(torch.empty_like(source).copy_, source), device, repeats=10)
    size = 8192 if is_cuda else 256
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product_s = time_repeatedly(partial(torch.matmul, left, right), device, repeats=10)
    return Ceilings(bytes_per_s=2 * num_bytes / copy_s, flops_per_s=2 * size**3 / product_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeResult:
    """Steady decoding of one batch size. Roofline: weights once and every cached token once, at the copy's rate."""

    batch: int
    context: float
    tokens_per_s: float
    step_s: float
    floor_s: float
    roofline_tokens_per_s: float
    target_tokens_per_s: int | None


def count_weight_bytes(model: Any) -> int:
    """Bytes that a decode step must read of the weights: each once, however often it is referred to."""
    storages = {
        parameter.untyped_storage().data_ptr(): parameter.untyped_storage().nbytes() for parameter in model.parameters()
    }
    return sum(storages.values())


def measure_decode(subject: Subject, model: Any, batch: int, scale: Scale, ceilings: Ceilings) -> dict[str, Any]:
    """Tokens a second while `batch` sequences decode and nothing else happens, host and scheduler included."""
    engine: Any = subject.engine
    config: Any = scale.config
    requests = make_requests(batch, scale.context, config.vocab_size, max_tokens=scale.max_tokens, first=batch)
    refused = engine.submit(requests)
    assert not refused, refused
    # While the last prompts are read the first sequences decode already, so contexts differ; their mean counts.
    num_tokens = dict.fromkeys((request.request_id for request in requests), 0)
    while not all(num_tokens.values()):
        _count_step(engine, num_tokens)
    for _ in range(3):
        _count_step(engine, num_tokens)
    before, started = sum(num_tokens.values()), time.perf_counter()
    for _ in range(scale.num_steps):
        _count_step(engine, num_tokens)
    seconds = time.perf_counter() - started
    num_new = sum(num_tokens.values()) - before
    context = scale.context + (before + num_new / 2) / batch
    engine.abort([request.request_id for request in requests])
    while engine.has_work:
        engine.step()
    token_bytes = 2 * config.num_hidden_layers * config.num_key_value_heads * _head_dim(config) * model.dtype.itemsize
    floor_s = (count_weight_bytes(model) + batch * context * token_bytes) / ceilings.bytes_per_s
    result = DecodeResult(
        batch=batch,
        context=context,
        tokens_per_s=num_new / seconds,
        step_s=seconds / scale.num_steps,
        floor_s=floor_s,
        roofline_tokens_per_s=batch / floor_s,
        target_tokens_per_s=_TARGETS.get(batch) if scale.context == 1024 else None,
    )
    return asdict(result)


def _count_step(engine: Any, num_tokens: dict[Any, int]) -> None:
    for output in engine.step():
        assert output.finish_reason is None, "a sequence ended before the measurement did"
        num_tokens[output.request_id] += len(output.token_ids)


def _head_dim(config: Any) -> int:
    return int(config.hidden_size // config.num_attention_heads)


def count_prefill_flops(config: Any, num_tokens: int) -> float:
    """Operations of a prompt: products with the layers' weights, and causal attention; the head runs on one token."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    kv_size = config.num_key_value_heads * _head_dim(config)
    weights = hidden * (2 * hidden + 2 * kv_size) + 3 * hidden * config.intermediate_size
    attention = 2 * num_tokens * heads * _head_dim(config)
    return float(config.num_hidden_layers * num_tokens * (2 * weights + attention))


def measure_prefill(subject: Subject, scale: Scale, ceilings: Ceilings) -> dict[str, float]:
    """One long prompt alone, from submission to its first token."""
    seconds = []
    for index in range(5):
        (request,) = make_requests(1, scale.prefill_tokens, scale.config.vocab_size, max_tokens=1, first=10_000 + index)
        subject.engine.submit([request])
        started = time.perf_counter()
        while subject.engine.has_work:
            subject.engine.step()
        seconds.append(time.perf_counter() - started)
    median = statistics.median(seconds[1:])
    rate = count_prefill_flops(scale.config, scale.prefill_tokens) / median
    return {
        "tokens": scale.prefill_tokens,
        "seconds": median,
        "flops_per_s": rate,
        "share_of_matrix_rate": rate / ceilings.flops_per_s,
    }


def measure_whole(subject: Subject, scale: Scale) -> dict[str, float]:
    """What the peers are given: a batch of prompts at once, from submission to the last token."""
    requests = make_requests(
        scale.peer_batch, scale.context, scale.config.vocab_size, max_tokens=scale.peer_tokens, first=20_000
    )
    started = time.perf_counter()
    subject.engine.submit(requests)
    while subject.engine.has_work:
        subject.engine.step()
    return summarise_whole(scale, time.perf_counter() - started)


def summarise_whole(scale: Scale, seconds: float) -> dict[str, float]:
    """The figures of a whole batch."""
    num_tokens = scale.peer_batch * scale.peer_tokens
    return {"batch": scale.peer_batch, "seconds": seconds, "tokens_per_s": num_tokens / seconds}
