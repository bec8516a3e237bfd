"""Plain values that travel between the API process and the engine process.

The engine sees token ids only: text, templates, stop strings and wire formats are the API's. One `Request` is one
sequence; a client's request with `n` choices or several prompts becomes several of them, submitted together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NewType

RequestId = NewType("RequestId", str)


class FinishReason(Enum):
    """Why a sequence ended."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one sequence is sampled. Ranges are checked where a request is parsed, not here.

    `temperature` 0 is greedy; `top_k` 0 is off. The draw for output position i depends on (`seed`, i) and the logits
    alone.
    """

    max_tokens: int
    end_ids: frozenset[int]
    temperature: float = 0.7
    top_p: float = 0.7
    top_k: int = 40
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 2
    min_tokens: int = 0
    num_logprobs: int | None = None
    """Alternatives to report beside the chosen token; None reports no logprobs at all."""
    prompt_logprobs: bool = False

    @property
    def has_penalties(self) -> bool:
        """True if sampling depends on which tokens came before."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One sequence to generate. `prompt_token_ids` is never empty.

    `client_id` tells among whom places are shared fairly; empty where clients have no keys.
    """

    request_id: RequestId
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    client_id: str = ""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities at one position, before temperature and filters, natural logarithm.

    `top` is sorted by descending log-probability, then id; it always contains the chosen token with the same float, so
    it holds `num_logprobs` or `num_logprobs` + 1 pairs.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(slots=True, kw_only=True)
class SequenceOutput:
    """What one step, or several coalesced ones, brought to one sequence.

    `token_ids` holds new tokens in order, the end token included. `logprobs`, if asked for, has one entry for each of
    them. `prompt_logprobs` comes once, with the first output: None for the first prompt position, then one entry each.
    `finish_reason` is set exactly once, on the last output; `error` is a sentence and only comes with `ERROR`. Not
    frozen for the price of that alone; see `core.batch`.
    """

    request_id: RequestId
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs | None, ...] = ()
    finish_reason: FinishReason | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What the API needs to know of the loaded model.

    `folder` is where config, tokenizer and chat template lie: the local folder, or the hub snapshot that was fetched.
    """

    folder: str
    vocab_size: int
    max_model_len: int
    dtype: str
    device: str
    attention_backend: str
    num_kv_blocks: int
    block_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """Gauges and running totals of the engine, taken after a step.

    `num_free_blocks` includes the `num_cached_blocks` that nobody holds but that still have a prefix to offer.
    `num_prefix_hit_tokens` of `num_prefix_query_tokens` were found in the prefix cache when their sequence was first
    admitted. A step that only decodes counts as a decode step, every other one as a prefill step.
    """

    num_running: int
    num_waiting: int
    num_free_blocks: int
    num_blocks: int
    num_preemptions: int
    num_prompt_tokens: int
    num_generated_tokens: int
    num_steps: int
    last_step_s: float
    num_cached_blocks: int = 0
    num_prefix_query_tokens: int = 0
    num_prefix_hit_tokens: int = 0
    num_decode_steps: int = 0
    decode_steps_s: float = 0.0
    num_prefill_steps: int = 0
    prefill_steps_s: float = 0.0
