"""The wire types of requests, and the only place that knows their spellings, `random_sed` included.

A field that is null counts as absent; unknown fields are ignored; a known one that cannot be honoured is refused,
unless its value asks for nothing. Descriptions are those of the OpenAPI page and of docs/api.md.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
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
    LogitBias,
    Prompts,
    Stops,
    TokenIds,
    allow_null,
    at_most,
    integral,
)
from dedicate_runtime.api.json_text import MalformedJsonError, parse_json
from dedicate_runtime.api.unsupported import refuse_unsupported

MAX_LOGPROBS = 20
_MAX_CHOICES = 128
"""Arbitrary, OpenAI's own; bounds the work that one request can ask for."""
_SEED_SPELLINGS = ("random_sed", "random_seed", "seed")
DEFAULT_SEED = 2
# Bounds stand inside the validator: outside of one, those of an optional field do not reach the OpenAPI page.
_Seed = Annotated[int, Field(ge=-(2**63), lt=2**64), BeforeValidator(integral)]
_NumLogprobs = Annotated[int, Field(ge=0, le=MAX_LOGPROBS), BeforeValidator(integral)]
_NumTokens = Annotated[int, Field(ge=0), BeforeValidator(integral)]
_NumChoices = Annotated[int, Field(ge=1, le=_MAX_CHOICES), BeforeValidator(integral)]


class _Wire(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, json_schema_extra=allow_null)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if value is not None}


class StreamOptions(_Wire):
    """What a stream tells beside its text."""

    include_usage: bool = Field(default=False, description="One last chunk with the usage and no choices.")
    continuous_usage_stats: bool = Field(default=False, description="The usage so far in each chunk.")


class GenerationRequest(_Wire):
    """What both endpoints have in common."""

    model: str = Field(
        description="The repository id or a served name, as `/v1/models` lists them; another one is 404 "
        "`model_not_found`."
    )
    stream: bool = Field(default=False, description="Answer by server-sent events.")
    stream_options: StreamOptions | None = Field(
        None,
        description="`include_usage`: one last chunk with usage and no choices. `continuous_usage_stats`: usage in "
        "each chunk. Needs `stream`.",
    )
    max_tokens: Integer = Field(
        1024,
        ge=0,
        description="Most new tokens. The default is clamped to the context; a larger explicit value is refused, or "
        "clamped where the endpoint says so. 0 only with `echo`.",
    )
    max_completion_tokens: _NumTokens | None = Field(None, description="The same; wins over `max_tokens`.")
    temperature: float = Field(0.7, ge=0, le=2, allow_inf_nan=False, description="Below 1e-5: greedy.")
    top_p: float = Field(
        0.7, ge=0, le=1, allow_inf_nan=False, description="Sample from the likeliest tokens of this mass. 0: greedy."
    )
    top_k: Integer = Field(
        40, ge=-1, le=2**31 - 1, description="Sample from this many likeliest tokens. 0 or -1: from all."
    )
    min_p: float = Field(
        0.0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Leave out tokens less likely than this part of the likeliest.",
    )
    repetition_penalty: float = Field(
        1.0,
        gt=0,
        allow_inf_nan=False,
        description="Over 1: tokens of the prompt and the text so far become less likely.",
    )
    presence_penalty: float = Field(
        0.0, ge=-2, le=2, allow_inf_nan=False, description="Taken from the logits of tokens in the new text so far."
    )
    frequency_penalty: float = Field(
        0.0, ge=-2, le=2, allow_inf_nan=False, description="The same, once for each time that the token is there."
    )
    logit_bias: LogitBias = Field(
        default_factory=dict, description="Token id, as a string, to what is added to its logit, -100 to 100."
    )
    end_id: FewTokenIds | None = Field(
        None, description="Replaces the model's own end-of-sequence ids, which are the default."
    )
    stop: Stops = Field(
        (),
        description="Ends the text before any of these strings, of which there may be up to 1024. Adds to the model's "
        "own end, which is the default. A special token matches by id.",
    )
    stop_token_ids: FewTokenIds = Field((), description="Ids that end a sequence, too.")
    include_stop_str_in_output: bool = Field(
        default=False, description="Whether the `stop` that ended the text is part of it."
    )
    ignore_eos: bool = Field(default=False, description="Disables `end_id` and the model's own end.")
    min_tokens: Integer = Field(0, ge=0, description="New tokens before an end or a stop counts.")
    random_sed: _Seed | None = Field(
        None,
        json_schema_extra={"default": DEFAULT_SEED},
        description="Seed. It has a default, so answers repeat; -1 is a random one. Also spelled `random_seed` and "
        "`seed`; conflicting values are refused.",
    )
    random_seed: _Seed | None = Field(
        None, json_schema_extra={"default": DEFAULT_SEED}, description="The same as `random_sed`."
    )
    seed: _Seed | None = Field(
        None, json_schema_extra={"default": DEFAULT_SEED}, description="The same as `random_sed`."
    )
    n: _NumChoices = Field(1, description="Choices for each prompt; choice *i* uses the seed + *i*.")
    user: str | None = Field(None, description="Ignored: keys tell clients apart.")
    skip_special_tokens: bool = Field(default=True, description="Whether special tokens are left out of the text.")

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
    def max_tokens_param(self) -> str:
        """The field that says how many tokens there may be."""
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"

    @property
    def explicit_max_tokens(self) -> int | None:
        """The limit that the client asked for, None where it left that to us."""
        if self.max_completion_tokens is not None:
            return self.max_completion_tokens
        return self.max_tokens if "max_tokens" in self.model_fields_set else None


class Message(_Wire):
    """One turn of a conversation. Content is text, or a list of text parts; assistants and tools may leave it out."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content = ""
    name: str | None = None
    tool_calls: Annotated[list[dict[str, Any]], Field(fail_fast=True), at_most(MAX_ITEMS, "tool calls")] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _has_content(self) -> Message:
        if "content" not in self.model_fields_set and self.role not in {"assistant", "tool"}:
            raise ValueError(f"A message of role {self.role} needs content.")
        return self


Messages = Annotated[list[Message], Field(min_length=1, fail_fast=True), at_most(MAX_MESSAGES, "messages")]
"""One fault is enough to refuse: to note a million of them would take seconds."""


class TemplateOptions(_Wire):
    """How a conversation becomes a prompt."""

    add_generation_prompt: bool = Field(
        default=True, description="Whether the prompt ends with the beginning of the assistant's turn."
    )
    continue_final_message: bool = Field(
        default=False, description="Leave the last message open: the answer continues it. Excludes the former."
    )
    documents: Annotated[list[dict[str, Any]], Field(fail_fast=True), at_most(MAX_ITEMS, "documents")] = Field(
        default_factory=list, description="Texts for a chat template that knows `documents`."
    )
    reasoning_effort: str | None = Field(
        None,
        description="For a chat template that knows `reasoning_effort`, or `enable_thinking`, which `none` turns off.",
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Any other variables of the chat template, such as `enable_thinking`."
    )

    @property
    def template_variables(self) -> dict[str, Any]:
        """What the chat template is told beside the messages."""
        variables: dict[str, Any] = {}
        if self.documents:
            variables["documents"] = self.documents
        if self.reasoning_effort is not None:
            variables["reasoning_effort"] = self.reasoning_effort
            variables["enable_thinking"] = self.reasoning_effort != "none"
        return variables | self.chat_template_kwargs


class ChatCompletionRequest(GenerationRequest, TemplateOptions):
    """`POST /v1/chat/completions`."""

    messages: Messages = Field(
        description="Turns of the roles `system`, `developer` (is system), `user`, `assistant` and `tool`. Content is "
        "a string, a list of text parts, or null where an assistant calls tools.",
    )
    logprobs: bool = Field(default=False, description="Log-probabilities of the new tokens.")
    top_logprobs: _NumLogprobs | None = Field(None, description="Alternatives for each new token. Needs `logprobs`.")
    add_special_tokens: bool = Field(
        default=False, description="Add the tokenizer's special tokens on top of what the chat template writes."
    )


class CompletionRequest(GenerationRequest):
    """`POST /v1/completions`: raw text, no chat template."""

    prompt: Prompts = Field(
        description="Texts, or token ids, which are taken as they are. The choice with index j*n + i is choice i of "
        "prompt j."
    )
    logprobs: _NumLogprobs | None = Field(
        None,
        description="Log-probabilities and as many alternatives for each new token; with `echo` for the prompt's, too.",
    )
    echo: bool = Field(default=False, description="Repeat the prompt before the new text.")
    best_of: _NumChoices | None = Field(None, description="Equal to `n`, or absent.")
    add_special_tokens: bool = Field(
        default=True, description="Whether the tokenizer's special tokens are added to texts. Never to ids."
    )


class TokenizeRequest(TemplateOptions):
    """`POST /tokenize`: a text, or the prompt that a conversation becomes."""

    model: str | None = Field(None, description="As for completions, or absent.")
    prompt: str | None = Field(None, description="A text. Exactly one of `prompt` and `messages` is needed.")
    messages: Messages | None = Field(None, description="A conversation.")
    add_special_tokens: bool | None = Field(
        None, description="Add the tokenizer's special tokens. Default: true for texts, false for conversations."
    )
    return_token_strs: bool = Field(default=False, description="Answer with the tokens' texts, too, in `token_strs`.")


class DetokenizeRequest(_Wire):
    """`POST /detokenize`: the text of some token ids."""

    model: str | None = Field(None, description="As for completions, or absent.")
    tokens: TokenIds = Field(description="Token ids.")
    skip_special_tokens: bool = Field(default=False, description="Whether special tokens are left out of the text.")


WireT = TypeVar("WireT", bound=_Wire)
_NOT_FINITE = re.compile(rb'"(\w{1,64})"\s*:\s*[+-]?(?:NaN|Infinity|\d[\d.]*[eE]\+?\d{3,})', re.IGNORECASE)
"""A field whose value is no finite number. Cannot match within a string, where quotes are escaped."""
_SEARCHED_BYTES = 2**20
"""Arbitrary: a better sentence is not worth more than milliseconds."""


def parse_body(body: bytes, wire: type[WireT]) -> WireT:
    """Reads a request's body.

    Raises:
        ApiError: 400, naming the parameter at fault where there is one; 413, it holds too much.
    """
    try:
        data = parse_json(body)
    except MalformedJsonError:
        _refuse_not_finite(body, wire)
        raise
    if not isinstance(data, dict):
        refuse(None, "The body must be a JSON object.")
    refuse_unsupported(data, wire.model_fields)
    try:
        return wire.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        param = _param_of(first["loc"])
        message = str(first["ctx"]["error"]) if first["type"] == "value_error" else f"{first['msg']}."
        refuse(param, f"{param}: {message}" if param else message)


def _refuse_not_finite(body: bytes, wire: type[_Wire]) -> None:
    """Names the parameter where a number is what keeps the body from being JSON: NaN, Infinity, 1e999."""
    for match in _NOT_FINITE.finditer(body, 0, _SEARCHED_BYTES):
        name = str(match[1], "ascii", "replace")
        if name in wire.model_fields:
            refuse(name, f"{name}: Input should be a finite number.")


def _param_of(location: tuple[int | str, ...]) -> str | None:
    """Spells a location the way OpenAI does: `messages[0].content`."""
    param = ""
    for part in location:
        param += f"[{part}]" if isinstance(part, int) else f".{part}" if param else part
    return param or None
