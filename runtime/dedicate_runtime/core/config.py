"""What the composition root decides about an engine, as one plain value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum


class DeviceChoice(Enum):
    """Where the model runs; `AUTO` takes a GPU where there is one."""

    AUTO = "auto"
    CUDA = "cuda"
    CPU = "cpu"


class DtypeChoice(Enum):
    """Number format of weights and activations; `AUTO` is bfloat16 on CUDA and float32 on the CPU."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class QuantizationChoice(Enum):
    """How weights are held; what is quantized here, at load, is never written anywhere."""

    NONE = "none"
    INT8 = "int8"


class AttentionChoice(Enum):
    """Which backend computes attention; `AUTO` takes the fastest that serves the model on its device."""

    AUTO = "auto"
    TORCH = "torch"
    NATIVE = "native"
    TRITON = "triton"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How one engine is started. Defaults belong to the settings; only what may be absent has one here.

    `model` is a folder or `hf://org/name`. `max_num_batched_tokens` is at least `max_num_seqs`, so that one step can
    decode every running sequence.
    """

    model: str
    device: DeviceChoice
    dtype: DtypeChoice
    max_num_seqs: int
    max_num_batched_tokens: int
    max_queued_requests: int
    revision: str | None = None
    trust_remote_code: bool = False
    max_model_len: int | None = None
    """None takes the model's own context, shortened to what the KV cache holds."""
    kv_cache_tokens: int | None = None
    """None sizes the KV cache from the memory that is free once the weights are loaded."""
    block_size: int = 16
    """Tokens in one KV block. Arbitrary; small blocks waste less, large ones index less."""
    quantization: QuantizationChoice = QuantizationChoice.NONE
    attention_backend: AttentionChoice = AttentionChoice.AUTO
    is_deterministic: bool = False
    """The same request gives the same bits whatever else is computed, at the price of fixed shapes."""
    has_prefix_cache: bool = True
    max_queued_tokens: int = 2**20
    """Prompt tokens of all waiting sequences together."""
    max_queue_seconds: float = math.inf
    """Time to its first step that a request may have to expect and still be admitted."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the field that cannot work."""
        for name in ("max_num_seqs", "max_num_batched_tokens", "block_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if self.max_queued_requests < 0:
            raise ValueError("max_queued_requests must not be negative")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError("max_num_batched_tokens must be at least max_num_seqs")
        for name in ("max_model_len", "kv_cache_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1")

    @property
    def max_sequences(self) -> int:
        """Most sequences that are unfinished at a time: those in a step and those that wait for one."""
        return self.max_num_seqs + self.max_queued_requests
