"""Known fields that this runtime does not act on: what to refuse, and what may be left unheard.

A field that would change the answer is refused, unless its value asks for nothing: refusing is kinder than answering
something else. A field that says nothing about the answer is ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from dedicate_runtime.api.errors import refuse

_NO_TOOLS = "This endpoint calls no tools."
_NO_STRUCTURE = "This endpoint does not constrain its output."
_NO_SUCH_SAMPLING = "This way of sampling is not supported."
_NO_IDS = "Tokens are returned as text; /tokenize gives the ids of one."
_NO_BEAMS = "Beam search is not supported."


def _empty(value: object) -> bool:
    return not value


def _one_of(*neutral: object) -> Callable[[object], bool]:
    return lambda value: value in neutral


def _is_false(value: object) -> bool:
    return value is False  # 0 asks for the prompt's own tokens


def _never(_: object) -> bool:
    return False


class Refusal(NamedTuple):
    """Whether a value asks for nothing, and the sentence if it asks for something."""

    asks_nothing: Callable[[object], bool]
    sentence: str


UNSUPPORTED_FIELDS: dict[str, Refusal] = {
    "tools": Refusal(_empty, _NO_TOOLS),
    "tool_choice": Refusal(_one_of("none", "auto"), _NO_TOOLS),
    "functions": Refusal(_empty, _NO_TOOLS),
    "function_call": Refusal(_one_of("none", "auto"), _NO_TOOLS),
    "response_format": Refusal(_one_of({"type": "text"}), "Only the response format text is supported."),
    "structured_outputs": Refusal(_empty, _NO_STRUCTURE),
    "guided_json": Refusal(_empty, _NO_STRUCTURE),
    "guided_regex": Refusal(_empty, _NO_STRUCTURE),
    "guided_choice": Refusal(_empty, _NO_STRUCTURE),
    "guided_grammar": Refusal(_empty, _NO_STRUCTURE),
    "json_schema": Refusal(_empty, _NO_STRUCTURE),
    "regex": Refusal(_empty, _NO_STRUCTURE),
    "ebnf": Refusal(_empty, _NO_STRUCTURE),
    "grammar": Refusal(_empty, _NO_STRUCTURE),
    "allowed_token_ids": Refusal(_empty, "allowed_token_ids is not supported: logit_bias can favour tokens."),
    "bad_words": Refusal(_empty, "bad_words is not supported: logit_bias can forbid tokens."),
    "logits_processors": Refusal(_empty, _NO_SUCH_SAMPLING),
    "typical_p": Refusal(_one_of(0, 1), _NO_SUCH_SAMPLING),
    "top_a": Refusal(_empty, _NO_SUCH_SAMPLING),
    "tfs": Refusal(_one_of(0, 1), _NO_SUCH_SAMPLING),
    "tfs_z": Refusal(_one_of(0, 1), _NO_SUCH_SAMPLING),
    "epsilon_cutoff": Refusal(_empty, _NO_SUCH_SAMPLING),
    "eta_cutoff": Refusal(_empty, _NO_SUCH_SAMPLING),
    "mirostat": Refusal(_empty, _NO_SUCH_SAMPLING),
    "mirostat_mode": Refusal(_empty, _NO_SUCH_SAMPLING),
    "dry_multiplier": Refusal(_empty, _NO_SUCH_SAMPLING),
    "xtc_probability": Refusal(_empty, _NO_SUCH_SAMPLING),
    "dynatemp_range": Refusal(_empty, _NO_SUCH_SAMPLING),
    "smoothing_factor": Refusal(_empty, _NO_SUCH_SAMPLING),
    "no_repeat_ngram_size": Refusal(_empty, _NO_SUCH_SAMPLING),
    "use_beam_search": Refusal(_empty, _NO_BEAMS),
    "num_beams": Refusal(_one_of(0, 1), _NO_BEAMS),
    "best_of": Refusal(_one_of(1), "best_of is a parameter of /v1/completions: all choices of n are returned."),
    "echo": Refusal(_empty, "echo is a parameter of /v1/completions."),
    "suffix": Refusal(_empty, "A suffix is not supported: write the fill-in-the-middle tokens into the prompt."),
    "prompt_embeds": Refusal(_empty, "Embeddings as prompts are not supported."),
    "truncate_prompt_tokens": Refusal(_never, "Prompts are not shortened here; /tokenize tells how long one is."),
    "prompt_logprobs": Refusal(
        _is_false, "Log-probabilities of a prompt come from /v1/completions with echo and logprobs."
    ),
    "logprob_token_ids": Refusal(_empty, "logprob_token_ids is not supported: alternatives come by likelihood."),
    "return_token_ids": Refusal(_empty, _NO_IDS),
    "return_tokens_as_token_ids": Refusal(_empty, _NO_IDS),
    "chat_template": Refusal(_empty, "Only the model's own chat template is used."),
    "thinking_token_budget": Refusal(_one_of(-1), "Thinking has no budget of its own here: use max_tokens."),
    "cache_salt": Refusal(_empty, "The prefix cache is shared by all requests of this endpoint."),
    "priority": Refusal(_empty, "All requests have the same priority."),
    "modalities": Refusal(_one_of(["text"], []), "Only the modality text is supported."),
    "audio": Refusal(_empty, "This endpoint makes no audio."),
    "moderation": Refusal(_empty, "This endpoint moderates nothing."),
    "web_search_options": Refusal(_never, "This endpoint searches nothing."),
}
"""Where an endpoint has a field of that name, it is that endpoint's own and not refused."""

IGNORED_FIELDS: dict[str, str] = {
    "store": "nothing is stored",
    "metadata": "it would go with what is stored",
    "service_tier": "there is one",
    "prediction": "a hint that makes OpenAI's answers faster, not other ones",
    "prompt_cache_key": "prompts with the same beginning share the cache anyway",
    "prompt_cache_retention": "likewise",
    "prompt_cache_options": "likewise",
    "safety_identifier": "keys tell clients apart",
    "verbosity": "no model served here knows it; ask for it in the messages",
    "parallel_tool_calls": "there are no tools",
    "spaces_between_special_tokens": "the tokenizer decides",
    "length_penalty": "a parameter of beam search",
    "early_stopping": "likewise",
    "request_id": "send the header `x-request-id`",
}
"""What clients send that says nothing about the answer, and why it can be left unheard. So can any unknown field."""


def refuse_unsupported(body: Mapping[str, object], own_fields: Collection[str]) -> None:
    """Checks the fields that cannot be honoured, but for `own_fields`, which the endpoint knows.

    Raises:
        ApiError: 400 that names the first of them whose value asks for something.
    """
    for name, (asks_nothing, sentence) in UNSUPPORTED_FIELDS.items():
        value = body.get(name)
        if value is not None and name not in own_fields and not asks_nothing(value):
            refuse(name, sentence)
