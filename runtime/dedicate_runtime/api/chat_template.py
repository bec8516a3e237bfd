"""Conversation to prompt: the model's own Jinja template, in a sandbox.

The environment is what chat templates are written for: trimmed blocks, loop controls, `raise_exception`,
`strftime_now`, a `tojson` that escapes no HTML. Source: https://huggingface.co/docs/transformers/chat_templating.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import jinja2.ext
import jinja2.nodes

from dedicate_runtime.api.errors import ApiError, refuse
from dedicate_runtime.api.model_tokenizer import read_json
from dedicate_runtime.api.template_budget import MAX_CHARACTERS, RenderBudget, TemplateLimitError
from dedicate_runtime.api.template_sandbox import BoundedEnvironment
from dedicate_runtime.errors import ExitCode, StartError

if TYPE_CHECKING:
    import jinja2.parser

    from dedicate_runtime.api.schemas import Message

_TIMEOUT_S = 5.0
"""Arbitrary: a template takes microseconds for a message."""
_ABSENT = {"tools": None, "documents": None}
"""What transformers passes where there are none: a template may ask whether it is none, not whether it is there."""
_OWN_VARIABLES = frozenset({"messages", "add_generation_prompt"})


_END_MARK = "\ue000end of message\ue000"
"""Arbitrary, of private-use characters: shows where a template wrote the end of a message."""


class ChatTemplate:
    """One compiled template. Rendering runs the repository's code in a sandbox: call it off the event loop."""

    def __init__(
        self,
        source: str,
        variables: dict[str, str],
        *,
        timeout_s: float = _TIMEOUT_S,
        max_characters: int = MAX_CHARACTERS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises what Jinja or the Python compiler raise if `source` is no template."""
        self._environment = _build_environment()
        self._template = self._environment.from_string(source)
        self.source = source
        self._variables = variables
        self._reserved = _OWN_VARIABLES | set(variables) | set(self._environment.globals)
        self._new_budget = partial(RenderBudget, timeout_s=timeout_s, max_characters=max_characters, clock=clock)

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        extra: dict[str, Any] | None = None,
    ) -> str:
        """Writes the prompt of a conversation.

        Consecutive turns of one role are merged where the template refuses the conversation as it is. A final message
        that is to be continued ends the prompt, without what the template writes after it; then there is no generation
        prompt.

        Raises:
            ApiError: 400, where the template refuses the conversation anyway, or its limits are exceeded; and for an
                `extra` variable that is not a client's to set.
        """
        for name in extra or ():
            if name in self._reserved:
                refuse("chat_template_kwargs", f"chat_template_kwargs: {name} cannot be set.")
        turns = [_as_turn(message) for message in messages]
        opens_turn = add_generation_prompt and not continue_final_message
        options = {**_ABSENT, **(extra or {}), **self._variables, "add_generation_prompt": opens_turn}
        if not continue_final_message:
            return self._render(turns, options)
        turns[-1]["content"] += _END_MARK
        prompt, mark, _ = self._render(turns, options).rpartition(_END_MARK)
        if not mark:
            refuse("continue_final_message", "The model's chat template leaves out the end of the final message.")
        return prompt

    def _render(self, turns: Sequence[dict[str, Any]], options: dict[str, Any]) -> str:
        budget = self._new_budget()
        merged = list(_merged(turns))
        for attempt in (turns, merged) if len(merged) < len(turns) else (turns,):
            try:
                return self._write(attempt, options, budget)
            except TemplateLimitError as limit:
                refuse("messages", f"The model's chat template cannot be applied to these messages: {limit}.")
            except Exception as error:  # noqa: BLE001 - it can raise anything; none of it is our fault
                refusal = error
        raise ApiError(400, f"The model's chat template refuses these messages: {refusal}", param="messages")

    def _write(self, turns: Sequence[dict[str, Any]], options: dict[str, Any], budget: RenderBudget) -> str:
        return self._environment.render(self._template, {**options, "messages": turns}, budget)


def load_chat_template(folder: Path, variables: dict[str, str]) -> ChatTemplate | None:
    """Finds the template of a model folder; None for a model that has none, such as a base model.

    Raises:
        StartError: the template cannot be compiled.
    """
    source = _read_source(folder)
    if source is None:
        return None
    try:
        return ChatTemplate(source, variables)
    except Exception as error:  # Jinja's own, but also what Python says of the code that Jinja writes
        raise StartError(
            ExitCode.MODEL_CORRUPT, f"The chat template in {folder} cannot be compiled: {error}."
        ) from error


def _read_source(folder: Path) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        source = read_json(folder / name).get("chat_template")
        if isinstance(source, list):  # several, by name
            named = {entry["name"]: entry["template"] for entry in source}
            source = named.get("default")
        if isinstance(source, str):
            return source
    return None


def _as_turn(message: Message) -> dict[str, Any]:
    turn: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": message.content,
    }
    optional = {"name": message.name, "tool_calls": message.tool_calls, "tool_call_id": message.tool_call_id}
    return turn | {name: value for name, value in optional.items() if value is not None}


def _merged(turns: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Joins neighbours of one role, a blank line between them."""
    pending: dict[str, Any] | None = None
    for turn in turns:
        if pending is not None and pending["role"] == turn["role"]:
            pending = {**pending, **turn, "content": f"{pending['content']}\n\n{turn['content']}"}
            continue
        if pending is not None:
            yield pending
        pending = turn
    if pending is not None:
        yield pending


class _GenerationBlocks(jinja2.ext.Extension):
    """Accepts `{% generation %}` blocks, which mark training targets, and renders what is in them."""

    tags = {"generation"}  # noqa: RUF012 - declared so by jinja2

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


def _build_environment() -> BoundedEnvironment:
    environment = BoundedEnvironment(extensions=[jinja2.ext.loopcontrols, _GenerationBlocks])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.bound_filters()
    return environment


def _tojson(value: object, *, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now(UTC).strftime(pattern)
