"""What can be asked about the model: its names, its tokens, its health."""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from dedicate_runtime.api.answers import Detokenized, Health, ModelCard, ModelList, Tokenized, TokenizerInfo, Version
from dedicate_runtime.api.context import ApiContext, check_model
from dedicate_runtime.api.documentation import OF_A_BODY, answer_docs, body_docs
from dedicate_runtime.api.errors import refuse
from dedicate_runtime.api.model_tokenizer import SPECIAL_TOKEN_NAMES
from dedicate_runtime.api.paths import add_readable
from dedicate_runtime.api.planning import encode_text, render_conversation
from dedicate_runtime.api.schemas import DetokenizeRequest, TokenizeRequest
from dedicate_runtime.api.sse import encode_json

if TYPE_CHECKING:
    from dedicate_runtime.api.served_model import ServedModel


def build_model_router(context: ApiContext) -> APIRouter:
    """Builds the routes about the model that need a key."""
    router = APIRouter(tags=["model"])

    async def list_models() -> dict[str, Any]:
        served = context.readiness.require_loaded()
        return {"object": "list", "data": [_card(served, name) for name in served.names]}

    async def retrieve_model(model_id: str) -> dict[str, Any]:
        served = context.readiness.require_loaded()
        check_model(served, model_id)
        return _card(served, model_id)

    async def tokenizer_info() -> dict[str, Any]:
        return _tokenizer_info(context.readiness.require_loaded())

    async def tokenize(request: Request) -> Response:
        wire = await context.read(request, TokenizeRequest)
        served = context.readiness.require_loaded()
        check_model(served, wire.model)
        return Response(await context.in_pool(_tokenize, wire, served), media_type="application/json")

    async def detokenize(request: Request) -> Response:
        wire = await context.read(request, DetokenizeRequest)
        served = context.readiness.require_loaded()
        check_model(served, wire.model)
        if wire.tokens and max(wire.tokens) >= served.info.vocab_size:
            refuse("tokens", f"tokens: {max(wire.tokens)} is not in the vocabulary.")
        text = await context.in_pool(served.tokenizer.decode, wire.tokens, skip_special_tokens=wire.skip_special_tokens)
        return Response(encode_json({"prompt": text}), media_type="application/json")

    guarded = partial(answer_docs, needs_key=context.keys is not None)
    add_readable(router, "/v1/models", list_models, guarded(ModelList, summary="List the model and its aliases"))
    add_readable(
        router, "/v1/models/{model_id:path}", retrieve_model, guarded(ModelCard, 404, summary="Describe the model")
    )
    add_readable(router, "/tokenizer_info", tokenizer_info, guarded(TokenizerInfo, summary="Describe the tokenizer"))
    for path, endpoint, docs in (
        (
            "/tokenize",
            tokenize,
            body_docs(TokenizeRequest, {"text": {"prompt": "Hello"}})
            | guarded(Tokenized, *OF_A_BODY, summary="Tokenise a text or a conversation"),
        ),
        (
            "/detokenize",
            detokenize,
            body_docs(DetokenizeRequest, {"ids": {"tokens": [1, 2]}})
            | guarded(Detokenized, *OF_A_BODY, summary="Give the text of token ids"),
        ),
    ):
        router.add_api_route(path, endpoint, methods=["POST"], **docs)
        # Where a client that knows nothing but the base URL looks for it.
        router.add_api_route(f"/v1{path}", endpoint, methods=["POST"], include_in_schema=False)
    return router


def build_open_router(context: ApiContext) -> APIRouter:
    """Builds the routes that need no key."""
    router = APIRouter(tags=["server"])

    async def health() -> dict[str, str]:
        context.readiness.require_ready()
        return {"status": "ok"}

    async def show_version() -> dict[str, str]:
        return {"version": version("dedicate")}

    is_answering = answer_docs(Health, summary="Tell whether completions are answered", needs_key=False)
    add_readable(router, "/health", health, is_answering)
    is_running = answer_docs(Version, summary="Tell the version of this software", needs_key=False)
    add_readable(router, "/version", show_version, is_running)
    return router


def _card(served: ServedModel, name: str) -> dict[str, Any]:
    """Describes one name. All names are of one model, so none has a parent; an adapter's would be the model."""
    return {
        "id": name,
        "object": "model",
        "created": served.loaded_at,
        "owned_by": "dedicate",
        "root": served.name,
        "parent": None,
        "max_model_len": served.info.max_model_len,
    }


def _tokenizer_info(served: ServedModel) -> dict[str, Any]:
    """Tells what clients that tokenise by these routes need: special tokens and chat template, null if there is none.

    Names are those of `tokenizer_config.json`, which is what vLLM answers with and lm-evaluation-harness reads.
    """
    specials = {name: served.tokenizer.special_tokens.get(name) for name in SPECIAL_TOKEN_NAMES}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "vocab_size": served.info.vocab_size,
        "model_max_length": served.info.max_model_len,
        **specials,
        "chat_template": None if served.template is None else served.template.source,
        "end_ids": sorted(served.end_ids),
    }


def _tokenize(wire: TokenizeRequest, served: ServedModel) -> bytes:
    """Writes the answer for a text, or for a conversation; in JSON, for of millions of ids that takes a while, too."""
    token_ids = _token_ids_of(wire, served)
    answer = {
        "count": len(token_ids),
        "max_model_len": served.info.max_model_len,
        "tokens": token_ids,
        "token_strs": [served.tokenizer.text_of(i) for i in token_ids] if wire.return_token_strs else None,
    }
    return encode_json(answer)


def _token_ids_of(wire: TokenizeRequest, served: ServedModel) -> tuple[int, ...]:
    """Tokenises a text with the tokenizer's specials, or a conversation with its template's, unless told otherwise."""
    if (wire.prompt is None) == (wire.messages is None):
        refuse("prompt", "Exactly one of prompt and messages is needed.")
    if wire.messages is None:
        adds_specials = wire.add_special_tokens is not False
        return encode_text(served, wire.prompt or "", add_special_tokens=adds_specials, param="prompt")
    text = render_conversation(wire.messages, wire, served)
    return encode_text(served, text, add_special_tokens=wire.add_special_tokens is True, param="messages")
