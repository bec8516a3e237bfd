"""The wire types of requests, and the only place that knows their spellings, `random_sed` included.

A field that is null counts as absent; unknown fields are ignored; a known one that cannot be honoured is refused,
unless its value asks for nothing.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from dedicate_runtime.api.errors import refuse
from dedicate_runtime.api.fields import (
    MAX_ITEMS,
    MAX_MESSAGES,
    Content,
    FewTokenIds,
    Integer,
    Prompts,
    Stops,
    TokenIds,
    at_most,
)
from dedicate_runtime.api.json_text import parse_json
from dedicate_runtime.api.unsupported import refuse_unsupported

MAX_LOGPROBS = 20
_MAX_CHOICES = 128
"""Arbitrary, OpenAI's own; bounds the work that one request can ask for."""
_SEED_SPELLINGS = ("random_sed", "random_seed", "seed")
DEFAULT_SEED = 2


class _Wire(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if value is not None}


class StreamOptions(_Wire):
    """What a stream tells beside its text."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class GenerationRequest(_Wire):
    """What both endpoints have in common. Ranges are those of docs/api.md."""

    model: str = Field(description="Repository id or served name, as `/v1/models` lists them.")
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Integer = Field(1024, ge=0)
    max_completion_tokens: Integer | None = Field(None, ge=1, description="Wins over `max_tokens`.")
    temperature: float = Field(0.7, ge=0, le=2, allow_inf_nan=False, description="Below 1e-5: greedy.")
    top_p: float = Field(0.7, ge=0, le=1, allow_inf_nan=False, description="0: greedy.")
    top_k: Integer = Field(40, ge=-1, le=2**31 - 1, description="0 or -1: off.")
    min_p: float = Field(0.0, ge=0, le=1, allow_inf_nan=False)
    repetition_penalty: float = Field(1.0, gt=0, allow_inf_nan=False)
    presence_penalty: float = Field(0.0, ge=-2, le=2, allow_inf_nan=False)
    frequency_penalty: float = Field(0.0, ge=-2, le=2, allow_inf_nan=False)
    logit_bias: Annotated[
        dict[str, Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]], at_most(MAX_ITEMS, "token ids")
    ] = Field(default_factory=dict, description="Token id, as a string, to what is added to its logit.")
    end_id: FewTokenIds | None = Field(None, description="Replaces the model's own end-of-sequence ids.")
    stop: Stops = Field((), description="Ends the text before any of these strings.")
    stop_token_ids: FewTokenIds = ()
    ignore_eos: bool = False
    min_tokens: Integer = Field(0, ge=0)
    random_sed: Integer | None = Field(
        None, ge=-(2**63), lt=2**64, description=f"Seed; default {DEFAULT_SEED}, so answers repeat; -1: a random one."
    )
    random_seed: Integer | None = Field(None, ge=-(2**63), lt=2**64, description="The same as `random_sed`.")
    seed: Integer | None = Field(None, ge=-(2**63), lt=2**64, description="The same as `random_sed`.")
    n: Integer = Field(1, ge=1, le=_MAX_CHOICES)
    user: str | None = None
    skip_special_tokens: bool = True

    @property
    def chosen_seed(self) -> int:
        """The seed under whichever spelling it came; the default otherwise.

        Raises:
            ApiError: 400, for spellings that disagree.
        """
        given = {name: getattr(self, name) for name in _SEED_SPELLINGS if getattr(self, name) is not None}
        if len(set(given.values())) > 1:
            refuse(list(given)[-1], f"{' and '.join(given)} mean the same and hold different values.")
        return int(next(iter(given.values()), DEFAULT_SEED))

    @property
    def explicit_max_tokens(self) -> int | None:
        """The limit that the client asked for, None where it left that to us."""
        if self.max_completion_tokens is not None:
            return self.max_completion_tokens
        return self.max_tokens if "max_tokens" in self.model_fields_set else None


class Message(_Wire):
    """One turn of a conversation. Content is text, or a list of text parts; only assistants may leave it out."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content = ""
    name: str | None = None
    tool_calls: Annotated[list[dict[str, Any]], Field(fail_fast=True), at_most(MAX_ITEMS, "tool calls")] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _has_content(self) -> Message:
        if "content" not in self.model_fields_set and self.role != "assistant":
            raise ValueError(f"A message of role {self.role} needs content.")
        return self


Messages = Annotated[list[Message], Field(min_length=1, fail_fast=True), at_most(MAX_MESSAGES, "messages")]
"""One fault is enough to refuse: to note a million of them would take seconds."""


class ChatCompletionRequest(GenerationRequest):
    """`POST /v1/chat/completions`."""

    messages: Messages
    logprobs: bool = False
    top_logprobs: Integer | None = Field(None, ge=0, le=MAX_LOGPROBS, description="Needs `logprobs`.")
    add_special_tokens: bool = Field(default=False, description="On top of what the chat template writes.")
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict, description="Variables of the chat template.")


class CompletionRequest(GenerationRequest):
    """`POST /v1/completions`: raw text, no chat template."""

    prompt: Prompts
    logprobs: Integer | None = Field(None, ge=0, le=MAX_LOGPROBS)
    echo: bool = False
    best_of: Integer | None = Field(None, ge=1, description="Equal to `n`, or absent.")
    add_special_tokens: bool = True


class TokenizeRequest(_Wire):
    """`POST /tokenize`: a text, or the prompt that a conversation becomes."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True
    return_token_strs: bool = False


class DetokenizeRequest(_Wire):
    """`POST /detokenize`: the text of some token ids."""

    model: str | None = None
    tokens: TokenIds
    skip_special_tokens: bool = False


WireT = TypeVar("WireT", bound=_Wire)


def parse_body(body: bytes, wire: type[WireT]) -> WireT:
    """Reads a request's body.

    Raises:
        ApiError: 400, naming the parameter at fault where there is one; 413, it holds too much.
    """
    data = parse_json(body)
    if not isinstance(data, dict):
        refuse(None, "The body must be a JSON object.")
    refuse_unsupported(data)
    try:
        return wire.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        param = _param_of(first["loc"])
        message = str(first["ctx"]["error"]) if first["type"] == "value_error" else f"{first['msg']}."
        refuse(param, f"{param}: {message}" if param else message)


def _param_of(location: tuple[int | str, ...]) -> str | None:
    """Spells a location the way OpenAI does: `messages[0].content`."""
    param = ""
    for part in location:
        param += f"[{part}]" if isinstance(part, int) else f".{part}" if param else part
    return param or None
