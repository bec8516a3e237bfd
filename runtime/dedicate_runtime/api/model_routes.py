"""What can be asked about the model: its names, its tokens, its health."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from dedicate_runtime.api.context import ApiContext, check_model
from dedicate_runtime.api.documentation import body_docs
from dedicate_runtime.api.errors import refuse
from dedicate_runtime.api.schemas import DetokenizeRequest, TokenizeRequest

if TYPE_CHECKING:
    from dedicate_runtime.api.served_model import ServedModel


def build_model_router(context: ApiContext) -> APIRouter:
    """Builds the routes about the model that need a key."""
    router = APIRouter(tags=["model"])

    @router.get("/v1/models", summary="List the model and its aliases")
    async def list_models() -> dict[str, Any]:
        served = context.readiness.require_loaded()
        return {"object": "list", "data": [_card(served, name) for name in served.names]}

    @router.get("/v1/models/{model_id:path}", summary="Describe the model")
    async def retrieve_model(model_id: str) -> dict[str, Any]:
        served = context.readiness.require_loaded()
        check_model(served, model_id)
        return _card(served, model_id)

    async def tokenize(request: Request) -> Response:
        wire = await context.read(request, TokenizeRequest)
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
        wire = await context.read(request, DetokenizeRequest)
        served = context.readiness.require_loaded()
        check_model(served, wire.model)
        if wire.tokens and max(wire.tokens) >= served.info.vocab_size:
            refuse("tokens", f"tokens: {max(wire.tokens)} is not in the vocabulary.")
        text = await context.in_pool(served.tokenizer.decode, wire.tokens, skip_special_tokens=wire.skip_special_tokens)
        return JSONResponse({"prompt": text})

    @router.get("/tokenizer_info", summary="Describe the tokenizer")
    async def tokenizer_info() -> dict[str, Any]:
        served = context.readiness.require_loaded()
        return {
            "vocab_size": served.info.vocab_size,
            "model_max_length": served.info.max_model_len,
            "bos_token": served.tokenizer.bos_token,
            "eos_token": served.tokenizer.eos_token,
            "end_ids": sorted(served.end_ids),
            "has_chat_template": served.template is not None,
        }

    router.add_api_route("/tokenize", tokenize, methods=["POST"], **body_docs(TokenizeRequest, 400, 401))
    router.add_api_route("/detokenize", detokenize, methods=["POST"], **body_docs(DetokenizeRequest, 400, 401))
    return router


def build_open_router(context: ApiContext) -> APIRouter:
    """Builds the routes that need no key."""
    router = APIRouter(tags=["server"])

    @router.get("/health", summary="Tell whether completions are answered")
    async def health() -> dict[str, str]:
        context.readiness.require_ready()
        return {"status": "ok"}

    @router.get("/version", summary="Tell the version of this software")
    async def show_version() -> dict[str, str]:
        return {"version": version("dedicate")}

    return router


def _card(served: ServedModel, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": served.loaded_at,
        "owned_by": "dedicate",
        "root": served.name,
        "parent": None,
        "max_model_len": served.info.max_model_len,
    }


def _tokenize(wire: TokenizeRequest, served: ServedModel) -> tuple[int, ...]:
    """Tokenises a text with the tokenizer's specials, or a conversation with its template's, unless told otherwise."""
    if (wire.prompt is None) == (wire.messages is None):
        refuse("prompt", "Exactly one of prompt and messages is needed.")
    add_special_tokens = wire.add_special_tokens
    if wire.messages is None:
        text = wire.prompt or ""
        return served.tokenizer.encode(text, add_special_tokens=add_special_tokens is not False)
    if served.template is None:
        refuse("messages", "This model has no chat template. Use prompt.")
    text = served.template.render(wire.messages, add_generation_prompt=wire.add_generation_prompt)
    return served.tokenizer.encode(text, add_special_tokens=add_special_tokens is True)
