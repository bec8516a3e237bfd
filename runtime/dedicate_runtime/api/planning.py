"""Wire request -> sequences: what is tokenised, how each choice is sampled, where its text ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dedicate_runtime.api.errors import refuse
from dedicate_runtime.api.formats import Echo
from dedicate_runtime.api.generation import ChoicePlan
from dedicate_runtime.api.sampling import (
    Ending,
    build_sampling,
    refuse_prompt_length,
    resolve_ending,
    resolve_max_tokens,
    with_choice_seed,
)
from dedicate_runtime.api.schemas import (
    ChatCompletionRequest,
    CompletionRequest,
    GenerationRequest,
    Message,
    TemplateOptions,
)
from dedicate_runtime.core.request import Request, RequestId
from dedicate_runtime.engine.detokenizer import Detokenizer

if TYPE_CHECKING:
    from dedicate_runtime.api.served_model import ServedModel

_MAX_SEQUENCES = 1024
"""Of one request. Arbitrary, over what a queue admits by default: a list must not cost before it is refused."""

_CHARACTERS_PER_TOKEN = 16
"""Four times what text has. Of a longer one the beginning tells whether it can fit. Arbitrary."""


def check_together(wire: GenerationRequest) -> None:
    """Refuses fields that are fine alone and wrong together.

    Raises:
        ApiError: 400, naming one of them.
    """
    if wire.stream_options is not None and not wire.stream:
        refuse("stream_options", "stream_options needs stream to be true.")
    if wire.explicit_max_tokens == 0 and not (isinstance(wire, CompletionRequest) and wire.echo):
        refuse(wire.max_tokens_param, f"{wire.max_tokens_param} may be 0 only with echo.")
    if isinstance(wire, ChatCompletionRequest) and wire.top_logprobs and not wire.logprobs:
        refuse("top_logprobs", "top_logprobs needs logprobs to be true.")
    if isinstance(wire, CompletionRequest):
        if wire.best_of is not None and wire.best_of != wire.n:
            refuse("best_of", "best_of must equal n: all choices are returned.")
        if count_choices(wire) > _MAX_SEQUENCES:
            refuse("prompt", f"prompt: at most {_MAX_SEQUENCES} choices in one request.")


def count_choices(wire: GenerationRequest) -> int:
    """Sequences that the request asks for."""
    return wire.n * (len(wire.prompt) if isinstance(wire, CompletionRequest) else 1)


def render_conversation(messages: Sequence[Message], options: TemplateOptions, served: ServedModel) -> str:
    """Writes the prompt that a conversation becomes.

    Raises:
        ApiError: 400, where the model has no template, or its template refuses.
    """
    if served.template is None:
        refuse("messages", "This model has no chat template. Use /v1/completions with a prompt.")
    opens_turn = options.add_generation_prompt and "add_generation_prompt" in options.model_fields_set
    if options.continue_final_message and opens_turn:
        refuse("continue_final_message", "continue_final_message and add_generation_prompt exclude each other.")
    return served.template.render(
        messages,
        add_generation_prompt=options.add_generation_prompt,
        continue_final_message=options.continue_final_message,
        extra=options.template_variables,
    )


def chat_prompt(wire: ChatCompletionRequest, served: ServedModel) -> tuple[int, ...]:
    """Renders and tokenises a conversation; the template writes the special tokens."""
    text = render_conversation(wire.messages, wire, served)
    return encode_text(served, text, add_special_tokens=wire.add_special_tokens, param="messages")


def completion_prompts(wire: CompletionRequest, served: ServedModel) -> list[tuple[int, ...]]:
    """Tokenises texts; ids are taken as they are."""
    prompts = []
    for prompt in wire.prompt:
        if isinstance(prompt, str):
            prompts.append(encode_text(served, prompt, add_special_tokens=wire.add_special_tokens, param="prompt"))
            continue
        if max(prompt) >= served.info.vocab_size:
            refuse("prompt", f"prompt: {max(prompt)} is not in the vocabulary of {served.info.vocab_size} tokens.")
        prompts.append(prompt)
    return prompts


def encode_text(served: ServedModel, text: str, *, add_special_tokens: bool, param: str) -> tuple[int, ...]:
    """Tokenises a text, unless it is so long that it cannot fit: megabytes would keep a thread busy for seconds."""
    context = served.info.max_model_len
    least = served.tokenizer.min_tokens_of(text)
    if least <= context < len(text) // _CHARACTERS_PER_TOKEN:
        beginning = served.tokenizer.encode(text[: context * _CHARACTERS_PER_TOKEN], add_special_tokens=False)
        least = len(beginning) // 2  # where it is cut off, a token or two may be others
    if least > context:
        refuse_prompt_length(served, f"{least} tokens or more", param)
    return served.tokenizer.encode(text, add_special_tokens=add_special_tokens)


def plan_choices(
    wire: GenerationRequest,
    served: ServedModel,
    prompts: Sequence[tuple[int, ...]],
    *,
    num_logprobs: int | None,
    prompt_param: str,
    answer_id: str,
    client_id: str,
) -> list[ChoicePlan]:
    """Lays out the choices: choice i of prompt j has index j*n + i, and the seed + i.

    Raises:
        ApiError: 400, naming what cannot be honoured.
    """
    ending = resolve_ending(wire, served)
    plans = []
    for prompt_index, prompt in enumerate(prompts):
        if not prompt:
            refuse(prompt_param, f"{prompt_param}: there must be at least one token.")
        max_tokens = resolve_max_tokens(wire, served, len(prompt), prompt_param=prompt_param)
        sampling = build_sampling(wire, served, ending, max_tokens=max_tokens, num_logprobs=num_logprobs)
        discards_tokens = max_tokens == 0
        if isinstance(wire, CompletionRequest) and wire.echo:  # the engine makes one token at least
            echoed = num_logprobs is not None
            sampling = replace(sampling, max_tokens=max(1, max_tokens), prompt_logprobs=echoed)
        for choice in range(wire.n):
            index = prompt_index * wire.n + choice
            request = Request(
                request_id=RequestId(f"{answer_id}-{index}"),
                prompt_token_ids=prompt,
                sampling=with_choice_seed(sampling, choice),
                client_id=client_id,
            )
            plans.append(
                ChoicePlan(
                    index=index,
                    prompt_index=prompt_index,
                    request=request,
                    detokenizer=_new_detokenizer(wire, served, prompt, ending),
                    discards_tokens=discards_tokens,
                    shown_stops=ending.special_stops if wire.include_stop_str_in_output else {},
                )
            )
    return plans


def _new_detokenizer(
    wire: GenerationRequest, served: ServedModel, prompt: tuple[int, ...], ending: Ending
) -> Detokenizer:
    return Detokenizer(
        served.tokenizer.raw,
        context=prompt,
        stops=ending.strings,
        skip_special_tokens=wire.skip_special_tokens,
        min_tokens=wire.min_tokens,
        includes_stop=wire.include_stop_str_in_output,
    )


def echoes_of(wire: CompletionRequest, served: ServedModel, prompts: Sequence[tuple[int, ...]]) -> list[Echo]:
    """Gives the prompt of each choice: a text as it came, ids as the text they stand for."""
    echoes = []
    for given, token_ids in zip(wire.prompt, prompts, strict=True):
        text = given if isinstance(given, str) else served.tokenizer.decode(token_ids, skip_special_tokens=False)
        echoes.extend([Echo(text, token_ids)] * wire.n)
    return echoes
