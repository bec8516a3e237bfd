"""`/v1/chat/completions` and `/v1/completions`: wire request -> sequences -> answer, whole or streamed."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from dedicate_runtime.api.access_log import loggable
from dedicate_runtime.api.answers import ChatCompletion, ChatCompletionChunk, TextCompletion, TextCompletionChunk
from dedicate_runtime.api.context import ApiContext, check_model
from dedicate_runtime.api.deadline import deadline_of, terms_of, within_deadline
from dedicate_runtime.api.documentation import OF_GENERATION, TIMEOUT_PARAMETER, answer_docs, body_docs
from dedicate_runtime.api.errors import ApiError, failed
from dedicate_runtime.api.formats import AnswerFormat, AnswerHead, ChatFormat, CompletionFormat
from dedicate_runtime.api.generation import ChoicePlan, Generation, check_room, most_tokens, submit
from dedicate_runtime.api.generation_record import GenerationRecord, build_phases
from dedicate_runtime.api.logprobs import ChatLogprobs, CompletionLogprobs
from dedicate_runtime.api.middleware import RequestRecord, record_of
from dedicate_runtime.api.planning import (
    chat_prompt,
    check_together,
    completion_prompts,
    count_choices,
    echoes_of,
    plan_choices,
)
from dedicate_runtime.api.schemas import ChatCompletionRequest, CompletionRequest, GenerationRequest
from dedicate_runtime.api.sse import DONE, EventStream, cancel_and_wait, event, wait_for_disconnect

if TYPE_CHECKING:
    from dedicate_runtime.api.served_model import ServedModel

_log = logging.getLogger(__name__)
_CLIENT_GONE = 499
"""What the access log says of a client that did not wait; nobody is there to read the answer."""

_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
_TURN = {"role": "user", "content": "What is a token?"}
_CHAT_EXAMPLES = {
    "whole": {"model": _MODEL, "messages": [_TURN]},
    "streamed": {"model": _MODEL, "messages": [_TURN], "stream": True, "stream_options": {"include_usage": True}},
}
_COMPLETION_EXAMPLES = {
    "text": {"model": _MODEL, "prompt": "Once upon a time", "max_tokens": 32, "stop": ["\n"]},
    "likelihood": {"model": _MODEL, "prompt": [1, 2, 3], "echo": True, "logprobs": 1, "max_tokens": 0},
}


def build_generation_router(context: ApiContext) -> APIRouter:
    """Builds the two endpoints that generate."""
    router = APIRouter(tags=["generation"])

    async def create_chat_completion(request: HttpRequest) -> Response:
        wire = await context.read(request, ChatCompletionRequest)
        served = context.readiness.require_ready()
        check_model(served, wire.model)
        check_together(wire)
        client_id = record_of(request).key_id
        check_room(context.engine, client_id, count_choices(wire), terms_of(request))
        prompt = await context.in_pool(chat_prompt, wire, served)
        num_logprobs = (wire.top_logprobs or 0) if wire.logprobs else None
        head = _answer_head(wire, served, "chatcmpl")
        plans = plan_choices(
            wire,
            served,
            [prompt],
            num_logprobs=num_logprobs,
            prompt_param="messages",
            answer_id=head.answer_id,
            client_id=client_id,
        )
        logprobs = ChatLogprobs(served.tokenizer, num_logprobs) if num_logprobs is not None else None
        _note_generation(context, request, wire, head, plans, prompt=wire.messages)
        return await _answer(context, request, wire, plans, ChatFormat(head, len(plans), logprobs))

    async def create_completion(request: HttpRequest) -> Response:
        wire = await context.read(request, CompletionRequest)
        served = context.readiness.require_ready()
        check_model(served, wire.model)
        check_together(wire)
        client_id = record_of(request).key_id
        check_room(context.engine, client_id, count_choices(wire), terms_of(request))
        prompts = await context.in_pool(completion_prompts, wire, served)
        head = _answer_head(wire, served, "cmpl")
        plans = plan_choices(
            wire,
            served,
            prompts,
            num_logprobs=wire.logprobs,
            prompt_param="prompt",
            answer_id=head.answer_id,
            client_id=client_id,
        )
        echoes = echoes_of(wire, served, prompts) if wire.echo else None
        logprobs = None
        if wire.logprobs is not None:
            starts = [len(echo.text) for echo in echoes] if echoes else [0] * len(plans)
            shows_specials = not wire.skip_special_tokens
            logprobs = [
                CompletionLogprobs(served.tokenizer, first_offset=start, shows_specials=shows_specials)
                for start in starts
            ]
        _note_generation(context, request, wire, head, plans, prompt=wire.prompt)
        return await _answer(context, request, wire, plans, CompletionFormat(head, len(plans), logprobs, echoes))

    bounded = partial(within_deadline, longest_s=context.request_timeout_s)
    needs_key = context.keys is not None
    router.add_api_route(
        "/v1/chat/completions",
        bounded(create_chat_completion),
        methods=["POST"],
        **body_docs(ChatCompletionRequest, _CHAT_EXAMPLES, TIMEOUT_PARAMETER),
        **answer_docs(
            ChatCompletion,
            *OF_GENERATION,
            summary="Answer a conversation",
            needs_key=needs_key,
            chunk=ChatCompletionChunk,
        ),
    )
    router.add_api_route(
        "/v1/completions",
        bounded(create_completion),
        methods=["POST"],
        **body_docs(CompletionRequest, _COMPLETION_EXAMPLES, TIMEOUT_PARAMETER),
        **answer_docs(
            TextCompletion,
            *OF_GENERATION,
            summary="Continue a raw text",
            needs_key=needs_key,
            chunk=TextCompletionChunk,
        ),
    )
    return router


def _answer_head(wire: GenerationRequest, served: ServedModel, kind: str) -> AnswerHead:
    options = wire.stream_options
    return AnswerHead(
        answer_id=f"{kind}-{secrets.token_hex(16)}",
        model=served.name,
        include_usage=options is not None and options.include_usage,
        continuous_usage=options is not None and options.continuous_usage_stats,
    )


def _note_generation(
    context: ApiContext,
    request: HttpRequest,
    wire: GenerationRequest,
    head: AnswerHead,
    plans: Sequence[ChoicePlan],
    *,
    prompt: object,
) -> None:
    """Notes what is asked for, so that it is told of requests too that are refused for want of room."""
    record_of(request).generation = GenerationRecord(
        operation="chat" if isinstance(wire, ChatCompletionRequest) else "text_completion",
        answer_id=head.answer_id,
        requested_model=wire.model,
        model=head.model,
        is_stream=wire.stream,
        num_choices=len(plans),
        sampling=plans[0].request.sampling,
        prompt=loggable(prompt) if context.logs_prompts else None,
    )


async def _answer(
    context: ApiContext,
    request: HttpRequest,
    wire: GenerationRequest,
    plans: Sequence[ChoicePlan],
    answer_format: AnswerFormat,
) -> Response:
    """Submits the sequences and answers with what they bring."""
    record = record_of(request)
    if record.admission is not None:
        record.admission.reserve_tokens(most_tokens(plans))
    stream = await submit(context.engine, [plan.request for plan in plans], terms_of(request))
    generation = Generation(
        plans=plans,
        stream=stream,
        metrics=context.metrics,
        problem=lambda: context.readiness.problem,
        arrived_at=record.started_at,
        deadline=deadline_of(request),
        texts={} if context.logs_prompts else None,
    )
    if wire.stream:
        record.is_streamed = True
        context.metrics.observe_stream_start()
        frames = _stream(generation, answer_format, record)
        return EventStream(frames, partial(_close, generation, record), watch=context.streams)
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
        last = _error_event(error, record)
    except Exception:  # noqa: BLE001 - whatever it was, the client is told and the log has it
        _log.exception("A stream met a fault of ours", extra=record.log_fields)
        last = _error_event(failed("The server met an unexpected fault."), record)
    record.is_cut_short = False
    _note_cost(generation, record)
    yield last + DONE


def _error_event(error: ApiError, record: RequestRecord) -> bytes:
    record.note_error(error)
    return event(error.envelope())


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
    """Frees what the engine holds and notes what the request cost and how it went."""
    await generation.aclose()
    _note_cost(generation, record)
    if record.is_streamed:
        generation.metrics.observe_stream_end()
    told = record.generation
    if told is None:
        return
    for index, reason in generation.finish_reasons.items():
        told.finish_reasons[index] = reason
    told.phases = build_phases(generation.stream.times)
    if generation.texts is not None:
        told.completion = loggable(["".join(generation.texts.get(index, ())) for index in range(told.num_choices)])


def _note_cost(generation: Generation, record: RequestRecord) -> None:
    record.num_prompt_tokens = generation.usage.num_prompt_tokens
    record.num_completion_tokens = generation.usage.num_completion_tokens
    record.time_to_first_token_s = generation.time_to_first_token_s
