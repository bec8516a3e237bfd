"""What is measured: a model made on the spot, and our engine around it, put together as the runtime does."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from dedicate_runtime.core.config import DeviceChoice, DtypeChoice, EngineConfig
from dedicate_runtime.core.request import ModelInfo, Request, RequestId, SamplingParams
from dedicate_runtime.engine.build import assemble_engine
from dedicate_runtime.engine.engine import Engine
from dedicate_runtime.worker.attention import TorchPagedAttention, register_attention
from dedicate_runtime.worker.cuda.backend import CudaBackend
from dedicate_runtime.worker.kv_cache import KVCache
from dedicate_runtime.worker.loader import LoadedModel
from dedicate_runtime.worker.model_check import inspect_layers
from dedicate_runtime.worker.model_runner import ModelRunner
from dedicate_runtime.worker.sampler import TorchSampler

SEED = 0
BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How large everything is: the table of docs, a quick look, or a test's.

    `max_tokens` is what a sequence may decode until the last one of its batch has been read and measured.
    """

    config: Qwen2Config
    batches: tuple[int, ...]
    context: int
    max_tokens: int
    num_steps: int
    prefill_tokens: int
    peer_batch: int
    peer_tokens: int


def qwen2_1_5b() -> Qwen2Config:
    """The shape of Qwen2-1.5B. Source: https://huggingface.co/Qwen/Qwen2-1.5B/blob/main/config.json."""
    return Qwen2Config(
        vocab_size=151936,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def tiny() -> Qwen2Config:
    """A model for machines without a device."""
    return Qwen2Config(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


FULL = Scale(
    config=qwen2_1_5b(),
    batches=(1, 8, 32, 128, 256),
    context=1024,
    max_tokens=1024,
    num_steps=100,
    prefill_tokens=8192,
    peer_batch=128,
    peer_tokens=32,
)
QUICK = Scale(
    config=qwen2_1_5b(),
    batches=(1, 32, 256),
    context=1024,
    max_tokens=1024,
    num_steps=40,
    prefill_tokens=8192,
    peer_batch=32,
    peer_tokens=16,
)
TINY = Scale(
    config=tiny(),
    batches=(1, 3),
    context=20,
    max_tokens=24,
    num_steps=3,
    prefill_tokens=40,
    peer_batch=2,
    peer_tokens=3,
)


def make_model(config: Qwen2Config, device: torch.device, dtype: torch.dtype, implementation: str) -> Any:
    """A model with seeded random weights, made on its device."""
    torch.manual_seed(SEED)
    register_attention()
    make: Any = AutoModelForCausalLM.from_config
    with device:
        model = make(config, dtype=dtype, attn_implementation=implementation)
    return model.eval().requires_grad_(requires_grad=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """An engine that has captured its graphs, and its runner."""

    engine: Engine
    runner: Any
    capture_s: float


def make_subject(
    model: Any, *, max_num_seqs: int, max_model_len: int, max_num_batched_tokens: int, tokens_per_seq: int | None = None
) -> Subject:
    """Our engine over `model`, which becomes its own.

    `tokens_per_seq` sizes the cache; without it, every sequence fits at full length.
    """
    config = EngineConfig(
        model="bench",
        device=DeviceChoice.AUTO,
        dtype=DtypeChoice.AUTO,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max(max_num_batched_tokens, max_num_seqs),
        max_queued_requests=max_num_seqs,
        max_model_len=max_model_len,
        block_size=BLOCK_SIZE,
    )
    per_seq = -(-(tokens_per_seq or max_model_len) // BLOCK_SIZE) + 1
    num_blocks = max(max_num_seqs * per_seq, -(-max_model_len // BLOCK_SIZE) + 1)
    vocab_size = model.get_input_embeddings().num_embeddings
    loaded = LoadedModel(model=model, device=model.device, dtype=model.dtype, vocab_size=vocab_size)
    runner = CudaBackend(config, loaded, inspect_layers(model, model.device)).make_runner(num_blocks)
    started = time.monotonic()
    runner.capture()
    capture_s = time.monotonic() - started
    return Subject(engine=_assemble(config, runner, num_blocks, loaded), runner=runner, capture_s=capture_s)


def make_reference(model: Any, *, max_num_seqs: int, max_model_len: int, max_num_batched_tokens: int) -> Engine:
    """The same engine over the torch backend."""
    num_blocks = max_num_seqs * (-(-max_model_len // BLOCK_SIZE) + 1)
    loaded = LoadedModel(
        model=model,
        device=model.device,
        dtype=model.dtype,
        vocab_size=model.get_input_embeddings().num_embeddings,
    )
    shapes = inspect_layers(model, model.device).shapes
    cache = KVCache(shapes, num_blocks=num_blocks, block_size=BLOCK_SIZE, dtype=model.dtype, device=model.device)
    runner = ModelRunner(model, cache, partial(TorchPagedAttention, cache), TorchSampler(), device=model.device)
    config = EngineConfig(
        model="bench",
        device=DeviceChoice.AUTO,
        dtype=DtypeChoice.AUTO,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max(max_num_batched_tokens, max_num_seqs),
        max_queued_requests=max_num_seqs,
        max_model_len=max_model_len,
        block_size=BLOCK_SIZE,
    )
    return _assemble(config, runner, num_blocks, loaded)


def _assemble(config: EngineConfig, runner: Any, num_blocks: int, loaded: LoadedModel) -> Engine:
    info = ModelInfo(
        folder="",
        vocab_size=loaded.vocab_size,
        max_model_len=config.max_model_len or 1,
        dtype=str(loaded.dtype),
        device=str(loaded.device),
        attention_backend="triton",
        num_kv_blocks=num_blocks,
        block_size=BLOCK_SIZE,
    )
    return assemble_engine(config, info, runner, None)


def make_requests(num: int, num_tokens: int, vocab_size: int, *, max_tokens: int, first: int = 0) -> list[Request]:
    """Requests of random prompts with the product's own sampling; `first` tells one set from the next."""
    generator = torch.Generator().manual_seed(SEED + first)
    prompts = torch.randint(0, vocab_size, (num, num_tokens), generator=generator).tolist()
    sampling = SamplingParams(max_tokens=max_tokens, end_ids=frozenset())
    return [
        Request(request_id=RequestId(f"{first}-{index}"), prompt_token_ids=tuple(prompt), sampling=sampling)
        for index, prompt in enumerate(prompts)
    ]
