"""What answers look like, for the OpenAPI page. Those that come by the thousand are written from byte templates.

A test asks the API for thousands of answers and holds each against these; they allow no field that is not here.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

FinishReason = Annotated[
    Literal["stop", "length"],
    Field(description="`stop`: at an end of sequence or a `stop`. `length`: at `max_tokens` or the context's end."),
]
UnixTime = Annotated[int, Field(description="Unix time, in seconds.")]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ErrorDetail(_Answer):
    """What went wrong."""

    message: str = Field(description="A sentence for people.")
    type: str = Field(description="`invalid_request_error`, `authentication_error`, `server_error` and the like.")
    param: str | None = Field(description="The field at fault, such as `messages[0].content`.")
    code: str | None = Field(description="A word for programs, such as `model_not_found`.")


class ErrorEnvelope(_Answer):
    """The one form of all errors."""

    error: ErrorDetail


class Usage(_Answer):
    """Tokens: each prompt counts once, the end token counts as completion."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(_Answer):
    """A token that might have come."""

    token: str
    logprob: float = Field(description="-9999.0 stands for minus infinity.")
    bytes: list[int] = Field(description="Of one token, which may be part of a character.")


class TokenLogprob(TopLogprob):
    """A token that came."""

    top_logprobs: list[TopLogprob] = Field(description="The likeliest, the token itself among them.")


class ChatLogprobs(_Answer):
    """Log-probabilities of a choice."""

    content: list[TokenLogprob]
    refusal: None


class ChatMessage(_Answer):
    """The assistant's turn."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(_Answer):
    """One of `n` answers."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(_Answer):
    """A whole answer to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: UnixTime
    model: str = Field(description="The first served name.")
    choices: list[ChatChoice]
    usage: Usage


class ChatDelta(_Answer):
    """What is new: the role first, then text, at last nothing."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(_Answer):
    """A piece of one answer."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None = Field(description="null but in a choice's last chunk.")


class ChatCompletionChunk(_Answer):
    """An event of a stream."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: UnixTime
    model: str
    choices: list[ChatChunkChoice] = Field(description="Empty in the chunk that brings the usage.")
    usage: Usage | None = Field(None, description="Present where it was asked for.")


class CompletionLogprobs(_Answer):
    """Four lists of equal length."""

    tokens: list[str]
    token_logprobs: list[float | None] = Field(description="null for the first token of an echoed prompt.")
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int] = Field(description="In characters.")


class TextChoice(_Answer):
    """One continuation."""

    index: int = Field(description="j*n + i for choice i of prompt j.")
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason


class TextCompletion(_Answer):
    """A whole answer to a raw text."""

    id: str
    object: Literal["text_completion"]
    created: UnixTime
    model: str
    choices: list[TextChoice]
    usage: Usage


class TextChunkChoice(_Answer):
    """A piece of one continuation."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None


class TextCompletionChunk(_Answer):
    """An event of a stream; it is named like the whole."""

    id: str
    object: Literal["text_completion"]
    created: UnixTime
    model: str
    choices: list[TextChunkChoice]
    usage: Usage | None = None


class ModelCard(_Answer):
    """The model under one of its names."""

    id: str
    object: Literal["model"]
    created: UnixTime
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int = Field(description="Most tokens of prompt and completion together.")


class ModelList(_Answer):
    """All names of the model."""

    object: Literal["list"]
    data: list[ModelCard]


class Tokenized(_Answer):
    """A text's tokens."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(_Answer):
    """The text of some tokens."""

    prompt: str


class TokenizerInfo(_Answer):
    """What `tokenizer_config.json` says; null where it says nothing."""

    model_config = ConfigDict(extra="allow")  # special tokens, by their names

    tokenizer_class: str
    vocab_size: int
    model_max_length: int
    chat_template: str | None
    end_ids: list[int] = Field(description="Ids that end a sequence.")


class Health(_Answer):
    """Completions are answered."""

    status: Literal["ok"]


class Version(_Answer):
    """What runs here."""

    version: str
