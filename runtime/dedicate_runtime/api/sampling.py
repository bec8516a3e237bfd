"""What a client asked for -> how a sequence is sampled. Pure, but for the random seed that -1 asks for."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NoReturn

from dedicate_runtime.api.errors import refuse
from dedicate_runtime.core.request import SamplingParams

if TYPE_CHECKING:
    from dedicate_runtime.api.schemas import GenerationRequest
    from dedicate_runtime.api.served_model import ServedModel

_GREEDY_BELOW = 1e-5
_LEAST_PENALTY = 1e-6
"""Arbitrary: beyond it, and its inverse, a penalty decides by itself; much beyond, float32 logits overflow."""
_SEED_RANGE = 2**63
"""Seeds are taken modulo this, so that seed + i of any choice stays a non-negative 64-bit integer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """Where a sequence ends: at ids, which the engine sees, or at strings, which only its text shows.

    `special_stops` are those of the ids that came as a `stop`, with its text.
    """

    ids: frozenset[int]
    strings: tuple[str, ...]
    special_stops: Mapping[int, str]


def resolve_ending(request: GenerationRequest, served: ServedModel) -> Ending:
    """Works out the ends of a request's sequences.

    `end_id` replaces the model's own; `ignore_eos` disables both; `stop` and `stop_token_ids` add. A stop that is a
    special token matches by id, for special tokens are not in the text.

    Raises:
        ApiError: 400, for an id that the vocabulary does not have.
    """
    for name in ("end_id", "stop_token_ids"):
        for token_id in getattr(request, name) or ():
            if token_id >= served.info.vocab_size:
                refuse(name, f"{name}: {token_id} is not in the vocabulary of {served.info.vocab_size} tokens.")
    ids = set(served.end_ids if request.end_id is None else request.end_id)
    if request.ignore_eos:
        ids.clear()
    ids.update(request.stop_token_ids)
    special_stops = {
        token_id: stop for stop in request.stop if (token_id := served.tokenizer.special_id(stop)) is not None
    }
    strings = tuple(stop for stop in request.stop if stop not in special_stops.values())
    return Ending(ids=frozenset(ids | special_stops.keys()), strings=strings, special_stops=special_stops)


def resolve_max_tokens(
    request: GenerationRequest, served: ServedModel, num_prompt_tokens: int, *, prompt_param: str
) -> int:
    """Works out how many tokens one sequence may bring.

    Raises:
        ApiError: 400, `context_length_exceeded`, where prompt and completion cannot fit.
    """
    room = served.info.max_model_len - num_prompt_tokens
    if room <= 0:
        refuse_prompt_length(served, f"{num_prompt_tokens} tokens", prompt_param)
    asked = request.explicit_max_tokens
    if asked is None:
        return min(request.max_tokens, room)
    if asked > room and not served.clamp_max_tokens:
        refuse(
            request.max_tokens_param,
            f"{_told(served)} However, you requested {num_prompt_tokens + asked} tokens "
            f"({num_prompt_tokens} in the prompt, {asked} in the completion). "
            f"Please reduce the length of the prompt or of the completion.",
            code="context_length_exceeded",
        )
    return min(asked, room)


def refuse_prompt_length(served: ServedModel, length: str, param: str) -> NoReturn:
    """Raises the 400 of a prompt that leaves no room for a completion; clients know it by its first sentence."""
    refuse(
        param,
        f"{_told(served)} However, your prompt has {length}, which leaves no room for a completion. "
        f"Please shorten the prompt.",
        code="context_length_exceeded",
    )


def _told(served: ServedModel) -> str:
    return f"This model's maximum context length is {served.info.max_model_len} tokens."


def build_sampling(
    request: GenerationRequest, served: ServedModel, ending: Ending, *, max_tokens: int, num_logprobs: int | None
) -> SamplingParams:
    """Builds the parameters of a request's first choice; `with_choice_seed` gives those of the others.

    Raises:
        ApiError: 400, naming the parameter that cannot be honoured.
    """
    given = request.model_fields_set

    def chosen(name: str) -> float:
        default: float = getattr(request, name)
        return default if name in given else served.sampling_defaults.get(name, default)

    temperature, top_p = chosen("temperature"), chosen("top_p")
    greedy = temperature < _GREEDY_BELOW or top_p == 0
    if request.min_tokens > max_tokens:
        refuse("min_tokens", f"min_tokens: {request.min_tokens} is more than the {max_tokens} tokens there may be.")
    seed = request.chosen_seed
    return SamplingParams(
        max_tokens=max_tokens,
        end_ids=ending.ids,
        temperature=0.0 if greedy else temperature,
        top_p=1.0 if greedy else top_p,
        top_k=max(0, int(chosen("top_k"))),
        min_p=request.min_p,
        repetition_penalty=min(max(chosen("repetition_penalty"), _LEAST_PENALTY), 1 / _LEAST_PENALTY),
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        logit_bias=_parse_logit_bias(request.logit_bias, served.info.vocab_size),
        seed=secrets.randbelow(_SEED_RANGE) if seed == -1 else seed % _SEED_RANGE,
        min_tokens=request.min_tokens,
        num_logprobs=num_logprobs,
    )


def with_choice_seed(sampling: SamplingParams, choice: int) -> SamplingParams:
    """Gives choice i the seed + i, whatever prompt it belongs to, so that a batch equals separate requests."""
    return replace(sampling, seed=(sampling.seed + choice) % _SEED_RANGE) if choice else sampling


def _parse_logit_bias(bias: Mapping[str, float], vocab_size: int) -> dict[int, float]:
    parsed = {}
    for key, value in bias.items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10 and int(key) < vocab_size):
            refuse("logit_bias", f"logit_bias: {key!r} is no token id of the vocabulary of {vocab_size} tokens.")
        parsed[int(key)] = value
    return parsed
