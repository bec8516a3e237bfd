"""`/v1/chat/completions` and `/v1/completions`: wire request -> sequences -> answer, whole or streamed."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from dedicate_runtime.api.body import read_body
from dedicate_runtime.api.context import ApiContext, check_model
from dedicate_runtime.api.documentation import generation_docs
from dedicate_runtime.api.errors import ApiError, failed, refuse
from dedicate_runtime.api.formats import AnswerFormat, AnswerHead, ChatFormat, CompletionFormat, Echo
from dedicate_runtime.api.generation import ChoicePlan, Generation, submit
from dedicate_runtime.api.logprobs import ChatLogprobs, CompletionLogprobs
from dedicate_runtime.api.middleware import RequestRecord, record_of
from dedicate_runtime.api.sampling import (
    build_sampling,
    refuse_prompt_length,
    resolve_ending,
    resolve_max_tokens,
    with_choice_seed,
)
from dedicate_runtime.api.schemas import ChatCompletionRequest, CompletionRequest, GenerationRequest, parse_body
from dedicate_runtime.api.sse import DONE, EventStream, cancel_and_wait, event, wait_for_disconnect
from dedicate_runtime.core.request import Request, RequestId, SamplingParams
from dedicate_runtime.engine.detokenizer import Detokenizer

if TYPE_CHECKING:
    from dedicate_runtime.api.served_model import ServedModel

_log = logging.getLogger(__name__)
_CLIENT_GONE = 499
"""What the access log says of a client that did not wait; nobody is there to read the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sampled:
    """A prompt, and how its first choice is sampled."""

    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams


def build_generation_router(context: ApiContext) -> APIRouter:
    """Builds the two endpoints that generate."""
    router = APIRouter(tags=["generation"])

    async def create_chat_completion(request: HttpRequest) -> Response:
        wire = parse_body(await read_body(request), ChatCompletionRequest)
        served = context.readiness.require_ready()
        check_model(served, wire.model)
        _check_together(wire)
        if wire.top_logprobs is not None and not wire.logprobs:
            refuse("top_logprobs", "top_logprobs needs logprobs to be true.")
        prompt = await context.in_pool(_chat_prompt, wire, served)
        num_logprobs = (wire.top_logprobs or 0) if wire.logprobs else None
        sampled = _sample(wire, served, [prompt], num_logprobs, prompt_param="messages")
        head = _answer_head(wire, served, "chatcmpl")
        plans = _plan(wire, served, sampled, head.answer_id)
        logprobs = ChatLogprobs(served.tokenizer, num_logprobs) if num_logprobs is not None else None
        return await _answer(context, request, wire, plans, ChatFormat(head, len(plans), logprobs))

    async def create_completion(request: HttpRequest) -> Response:
        wire = parse_body(await read_body(request), CompletionRequest)
        served = context.readiness.require_ready()
        check_model(served, wire.model)
        _check_together(wire)
        if wire.best_of is not None and wire.best_of != wire.n:
            refuse("best_of", "best_of must equal n: all choices are returned.")
        prompts = await context.in_pool(_completion_prompts, wire, served)
        sampled = _sample(wire, served, prompts, wire.logprobs, prompt_param="prompt")
        head = _answer_head(wire, served, "cmpl")
        plans = _plan(wire, served, sampled, head.answer_id)
        echoes = _echoes(wire, served, prompts) if wire.echo else None
        logprobs = None
        if wire.logprobs is not None:
            starts = [len(echo.text) for echo in echoes] if echoes else [0] * len(plans)
            logprobs = [CompletionLogprobs(served.tokenizer, first_offset=start) for start in starts]
        return await _answer(context, request, wire, plans, CompletionFormat(head, len(plans), logprobs, echoes))

    router.add_api_route(
        "/v1/chat/completions", create_chat_completion, methods=["POST"], **generation_docs(ChatCompletionRequest)
    )
    router.add_api_route("/v1/completions", create_completion, methods=["POST"], **generation_docs(CompletionRequest))
    return router


def _check_together(wire: GenerationRequest) -> None:
    """Refuses fields of either endpoint that are fine alone and wrong together."""
    if wire.explicit_max_tokens == 0 and not (isinstance(wire, CompletionRequest) and wire.echo):
        refuse("max_tokens", "max_tokens may be 0 only with echo.")
    if wire.stream_options is not None and not wire.stream:
        refuse("stream_options", "stream_options needs stream to be true.")


def _chat_prompt(wire: ChatCompletionRequest, served: ServedModel) -> tuple[int, ...]:
    """Renders and tokenises a conversation; the template writes the special tokens."""
    if served.template is None:
        refuse("messages", "This model has no chat template. Use /v1/completions with a prompt.")
    text = served.template.render(wire.messages, extra=wire.chat_template_kwargs)
    return _encode(served, text, add_special_tokens=wire.add_special_tokens, param="messages")


def _completion_prompts(wire: CompletionRequest, served: ServedModel) -> list[tuple[int, ...]]:
    """Tokenises texts; ids are taken as they are."""
    prompts = []
    for prompt in wire.prompt:
        if isinstance(prompt, str):
            prompts.append(_encode(served, prompt, add_special_tokens=wire.add_special_tokens, param="prompt"))
            continue
        if max(prompt) >= served.info.vocab_size:
            refuse("prompt", f"prompt: {max(prompt)} is not in the vocabulary of {served.info.vocab_size} tokens.")
        prompts.append(prompt)
    return prompts


def _encode(served: ServedModel, text: str, *, add_special_tokens: bool, param: str) -> tuple[int, ...]:
    """Tokenises a text, unless it is so long that it cannot fit: megabytes would keep a thread busy for seconds."""
    least = served.tokenizer.min_tokens_of(text)
    if least > served.info.max_model_len:
        refuse_prompt_length(served, f"{least} tokens or more", param)
    return served.tokenizer.encode(text, add_special_tokens=add_special_tokens)


def _sample(
    wire: GenerationRequest,
    served: ServedModel,
    prompts: Sequence[tuple[int, ...]],
    num_logprobs: int | None,
    *,
    prompt_param: str,
) -> list[_Sampled]:
    """Works out the sampling of each prompt's first choice."""
    ending = resolve_ending(wire, served)
    sampled = []
    for prompt in prompts:
        if not prompt:
            refuse(prompt_param, f"{prompt_param}: there must be at least one token.")
        max_tokens = resolve_max_tokens(wire, served, len(prompt), prompt_param=prompt_param)
        sampling = build_sampling(wire, served, ending, max_tokens=max_tokens, num_logprobs=num_logprobs)
        sampled.append(_Sampled(prompt_token_ids=prompt, sampling=sampling))
    return sampled


def _plan(
    wire: GenerationRequest, served: ServedModel, sampled: Sequence[_Sampled], answer_id: str
) -> list[ChoicePlan]:
    """Lays out the choices: choice i of prompt j has index j*n + i, and the seed + i."""
    stops = resolve_ending(wire, served).strings
    plans = []
    for prompt_index, one in enumerate(sampled):
        discards = one.sampling.max_tokens == 0
        echoes = isinstance(wire, CompletionRequest) and wire.echo and wire.logprobs is not None
        sampling = replace(one.sampling, max_tokens=max(1, one.sampling.max_tokens), prompt_logprobs=echoes)
        for choice in range(wire.n):
            index = prompt_index * wire.n + choice
            plans.append(
                ChoicePlan(
                    index=index,
                    prompt_index=prompt_index,
                    request=Request(
                        request_id=RequestId(f"{answer_id}-{index}"),
                        prompt_token_ids=one.prompt_token_ids,
                        sampling=with_choice_seed(sampling, choice),
                    ),
                    detokenizer=Detokenizer(
                        served.tokenizer.raw,
                        context=one.prompt_token_ids,
                        stops=stops,
                        skip_special_tokens=wire.skip_special_tokens,
                        min_tokens=wire.min_tokens,
                    ),
                    discards_tokens=discards,
                )
            )
    return plans


def _echoes(wire: CompletionRequest, served: ServedModel, prompts: Sequence[tuple[int, ...]]) -> list[Echo]:
    """Gives the prompt of each choice: a text as it came, ids as the text they stand for."""
    echoes = []
    for given, token_ids in zip(wire.prompt, prompts, strict=True):
        text = given if isinstance(given, str) else served.tokenizer.decode(token_ids, skip_special_tokens=False)
        echoes.extend([Echo(text, token_ids)] * wire.n)
    return echoes


def _answer_head(wire: GenerationRequest, served: ServedModel, kind: str) -> AnswerHead:
    options = wire.stream_options
    return AnswerHead(
        answer_id=f"{kind}-{secrets.token_hex(16)}",
        model=served.name,
        include_usage=options is not None and options.include_usage,
        continuous_usage=options is not None and options.continuous_usage_stats,
    )


async def _answer(
    context: ApiContext,
    request: HttpRequest,
    wire: GenerationRequest,
    plans: Sequence[ChoicePlan],
    answer_format: AnswerFormat,
) -> Response:
    """Submits the sequences and answers with what they bring."""
    stream = await submit(context.engine, [plan.request for plan in plans])
    generation = Generation(
        plans=plans,
        stream=stream,
        metrics=context.metrics,
        problem=lambda: context.readiness.problem,
    )
    record = record_of(request)
    if wire.stream:
        frames = _stream(generation, answer_format, record)
        return EventStream(frames, partial(_close, generation, record))
    try:
        return await _collect(generation, answer_format, record, request)
    finally:
        await _close(generation, record)


async def _stream(
    generation: Generation, answer_format: AnswerFormat, record: RequestRecord
) -> AsyncGenerator[bytes, None]:
    """Frames an answer as it comes; a fault on the way is told in the stream, never by silence."""
    record.is_cut_short = True
    try:
        async for delta in generation.deltas():
            frame = answer_format.chunks(delta, generation.usage)
            if frame:
                yield frame
        last = answer_format.usage_chunk(generation.usage)
    except ApiError as error:
        last = event(error.envelope())
    except Exception:  # noqa: BLE001 - whatever it was, the client is told and the log has it
        _log.exception("A stream met a fault of ours", extra={"request_id": record.request_id})
        last = event(failed("The server met an unexpected fault.").envelope())
    record.is_cut_short = False
    yield last + DONE


async def _collect(
    generation: Generation, answer_format: AnswerFormat, record: RequestRecord, request: HttpRequest
) -> Response:
    """Waits for the whole answer, for as long as the client does."""

    async def collect() -> dict[str, Any]:
        async for delta in generation.deltas():
            answer_format.collect(delta)
        return answer_format.whole(generation.usage)

    collecting = asyncio.ensure_future(collect())
    leaving = asyncio.ensure_future(wait_for_disconnect(request.receive))
    try:
        await asyncio.wait([collecting, leaving], return_when=asyncio.FIRST_COMPLETED)
        if collecting.done():
            return JSONResponse(collecting.result())
        record.is_cut_short = True
        return Response(status_code=_CLIENT_GONE)
    finally:
        await cancel_and_wait(collecting, leaving)


async def _close(generation: Generation, record: RequestRecord) -> None:
    """Frees what the engine holds and notes what the request cost."""
    await generation.aclose()
    record.num_prompt_tokens = generation.usage.num_prompt_tokens
    record.num_completion_tokens = generation.usage.num_completion_tokens
    record.time_to_first_token_s = generation.time_to_first_token_s
