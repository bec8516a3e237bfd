"""What chat templates of the great families do renders as transformers renders it, character for character.

The templates are written in the manner of those families; between them they use what real ones use.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from dedicate_runtime.api.chat_template import ChatTemplate
from dedicate_runtime.api.errors import ApiError
from dedicate_runtime.api.schemas import Message

SPECIALS = {"bos_token": "<s>", "eos_token": "</s>"}

TEMPLATES = {file.stem: file.read_text() for file in sorted((Path(__file__).parent / "templates").glob("*.jinja"))}
CALL = {
    "id": "abcdefghi",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Hà Nội", "days": [1, 2.5, None], "now": True}},
}
CONVERSATIONS = {
    "one turn": [{"role": "user", "content": "Hi"}],
    "system": [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "Hi"}],
    "two turns": [
        {"role": "user", "content": "  Hi there,\nyou {{ braces }} {% and %} tags  "},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello 👋 <|channel>x<channel|> y"},
        {"role": "user", "content": 'Ünïcödé "quotes" \\ <tags> &amp;'},
    ],
    "open end": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "<think>so</think>He"}],
    "same role": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
    "tools": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": '{"sun": 1}', "tool_call_id": "abcdefghi"},
        {"role": "tool", "content": "x", "tool_call_id": "abcdefghi"},
        {"role": "assistant", "content": "Sunny."},
        {"role": "user", "content": "Thanks", "name": "Ann"},
    ],
    "many": [{"role": ("user", "assistant")[i % 2], "content": f"turn {i}"} for i in range(51)],
}


@pytest.mark.parametrize("conversation", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize("source", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("is_open", [True, False], ids=["open", "closed"])
@pytest.mark.parametrize("extra", [{}, {"enable_thinking": False, "date_string": "1 Jan 2030"}], ids=["plain", "extra"])
def test_renders_as_transformers_does(source, conversation, is_open, extra):
    """Refusals too: with the same words, where turns of one role are merged first."""
    template = ChatTemplate(source, SPECIALS)
    messages = [Message.model_validate(turn) for turn in conversation]
    expected, refusals = first_accepted(
        source, [conversation, merged(conversation)], add_generation_prompt=is_open, **extra
    )
    if expected is not None:
        assert template.render(messages, add_generation_prompt=is_open, extra=extra) == expected
        return
    with pytest.raises(ApiError) as caught:
        template.render(messages, add_generation_prompt=is_open, extra=extra)
    assert refusals[-1] in caught.value.message


def first_accepted(source, conversations, **options):
    """Give the text of the first conversation that the template takes, and how it refused those before."""
    refusals = []
    for conversation in conversations:
        try:
            (text,), _ = render_jinja_template([conversation], chat_template=source, **SPECIALS, **options)
        except TemplateError as refused:
            refusals.append(str(refused))
        else:
            return text, refusals
    return None, refusals


def merged(conversation):
    """Join neighbours of one role."""
    turns = []
    for turn in conversation:
        if turns and turns[-1]["role"] == turn["role"]:
            turns[-1] = turns[-1] | {"content": f"{turns[-1]['content']}\n\n{turn['content']}"}
        else:
            turns.append(turn)
    return turns
