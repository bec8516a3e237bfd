"""What can be asked about the model: its names, its tokens, its health."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from dedicate_runtime.api.body import read_body
from dedicate_runtime.api.context import ApiContext, check_model
from dedicate_runtime.api.documentation import body_docs
from dedicate_runtime.api.errors import refuse
from dedicate_runtime.api.model_tokenizer import SPECIAL_TOKEN_NAMES
from dedicate_runtime.api.paths import add_readable
from dedicate_runtime.api.planning import render_conversation
from dedicate_runtime.api.schemas import DetokenizeRequest, TokenizeRequest, parse_body

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
        wire = parse_body(await read_body(request), TokenizeRequest)
        served = context.readiness.require_loaded()
        check_model(served, wire.model)
        token_ids = await context.in_pool(_tokenize, wire, served)
        return JSONResponse(
            {
                "count": len(token_ids),
                "max_model_len": served.info.max_model_len,
                "tokens": token_ids,
                "token_strs": [served.tokenizer.text_of(i) for i in token_ids] if wire.return_token_strs else None,
            }
        )

    async def detokenize(request: Request) -> Response:
        wire = parse_body(await read_body(request), DetokenizeRequest)
        served = context.readiness.require_loaded()
        check_model(served, wire.model)
        if wire.tokens and max(wire.tokens) >= served.info.vocab_size:
            refuse("tokens", f"tokens: {max(wire.tokens)} is not in the vocabulary.")
        text = await context.in_pool(served.tokenizer.decode, wire.tokens, skip_special_tokens=wire.skip_special_tokens)
        return JSONResponse({"prompt": text})

    add_readable(router, "/v1/models", list_models, summary="List the model and its aliases")
    add_readable(router, "/v1/models/{model_id:path}", retrieve_model, summary="Describe the model")
    add_readable(router, "/tokenizer_info", tokenizer_info, summary="Describe the tokenizer")
    for path, endpoint, wire in (
        ("/tokenize", tokenize, TokenizeRequest),
        ("/detokenize", detokenize, DetokenizeRequest),
    ):
        router.add_api_route(path, endpoint, methods=["POST"], **body_docs(wire, 400, 401))
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

    add_readable(router, "/health", health, summary="Tell whether completions are answered")
    add_readable(router, "/version", show_version, summary="Tell the version of this software")
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


def _tokenize(wire: TokenizeRequest, served: ServedModel) -> tuple[int, ...]:
    """Tokenises a text with the tokenizer's specials, or a conversation with its template's, unless told otherwise."""
    if (wire.prompt is None) == (wire.messages is None):
        refuse("prompt", "Exactly one of prompt and messages is needed.")
    if wire.messages is None:
        return served.tokenizer.encode(wire.prompt or "", add_special_tokens=wire.add_special_tokens is not False)
    text = render_conversation(wire.messages, wire, served)
    return served.tokenizer.encode(text, add_special_tokens=wire.add_special_tokens is True)
