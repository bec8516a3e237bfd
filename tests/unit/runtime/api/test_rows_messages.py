"""Rows of docs/api.md on conversations and the chat template."""

from __future__ import annotations

import pytest

from tests.unit.runtime.api.wire import converse, prompt_text

USER = {"role": "user", "content": "a"}


@pytest.mark.row("messages")
@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([{"role": "user", "content": [{"type": "text", "text": "a"}]}], "[user]a"),
        ([{"role": "user", "content": [{"type": "text", "text": t} for t in "ab"]}], "[user]a\nb"),
        ([{"role": "user", "content": [{"type": "input_text", "text": "a"}]}], "[user]a"),
        ([{"role": "user", "content": ""}], "[user]"),
        ([{"role": "developer", "content": "s"}, USER], "[system]s<|end|>[user]a"),
        ([{**USER, "name": "bob"}], "[user]a"),
        ([{**USER, "refusal": None, "annotations": [], "reasoning_content": "x"}], "[user]a"),
        ([USER, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}], "[user]a<|end|>[assistant]"),
        ([USER, {"role": "assistant", "tool_calls": [{"id": "1"}]}], "[user]a<|end|>[assistant]"),
        (
            [USER, {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}],
            "[user]a<|end|>[assistant]no",
        ),
        ([USER, {"role": "tool", "content": "42", "tool_call_id": "1"}], "[user]a<|end|>[tool]42"),
        ([USER, {"role": "tool", "content": None, "tool_call_id": "1"}], "[user]a<|end|>[tool]"),
        ([USER, USER], "[user]a\n\na"),
        ([USER, USER, {"role": "assistant", "content": "b"}, USER], "[user]a\n\na<|end|>[assistant]b<|end|>[user]a"),
        (
            [{"role": "system", "content": "s"}, {"role": "developer", "content": "t"}, USER],
            "[system]s\n\nt<|end|>[user]a",
        ),
    ],
    ids=str,
)
async def test_messages(api, messages, expected):
    response = await converse(api, messages)
    assert response.status_code == 200, response.text
    assert prompt_text(api) == f"{expected}<|end|>[assistant]"


@pytest.mark.row("messages")
async def test_messages_are_merged_only_where_the_template_refuses(make_api, model_folder):
    (model_folder / "chat_template.jinja").write_text("{% for m in messages %}{{ '[' + m.content + ']' }}{% endfor %}")
    api = make_api()
    await converse(api, [USER, USER])
    assert prompt_text(api) == "[a][a]"


@pytest.mark.row("messages")
@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ("Hi", "messages"),
        ({}, "messages"),
        (["Hi"], "messages[0]"),
        ([USER, {"role": "wizard", "content": "x"}], "messages[1].role"),
        ([{"content": "x"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0]"),
        ([{"role": "system", "content": None}], "messages[0]"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": ["a"]}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": ["text"], "text": "a"}]}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "messages[0].content"),
        ([{**USER, "name": 5}], "messages[0].name"),
    ],
    ids=str,
)
async def test_messages_refusals(api, messages, param):
    response = await converse(api, messages)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


@pytest.mark.row("messages")
@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ raise_exception('no system role here') }}", "no system role here"),
        ("{{ messages[5].content }}", "chat template"),
        ("{{ 1 // 0 }}", "chat template"),
        ("{{ ''.__class__.__mro__ }}", "chat template"),
        ("{{ nothing() }}", "chat template"),
        (None, "/v1/completions"),
    ],
)
@pytest.mark.parametrize("path", ["v1/chat/completions", "tokenize"])
async def test_messages_template_errors(make_api, model_folder, template, told, path):
    file = model_folder / "chat_template.jinja"
    file.unlink() if template is None else file.write_text(template)
    response = await converse(make_api(), [USER], path)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "messages")
    assert told in response.json()["error"]["message"]


@pytest.mark.row("also honoured")
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "None/None/None/True"),
        ({"add_generation_prompt": False}, "None/None/None/False"),
        ({"documents": [{"text": "d"}]}, "d/None/None/True"),
        ({"reasoning_effort": "low"}, "None/low/True/True"),
        ({"reasoning_effort": "none"}, "None/none/False/True"),
        ({"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}}, "None/none/True/True"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "None/None/False/True"),
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["v1/chat/completions", "tokenize", "v1/tokenize"])
async def test_also_honoured_variables_of_the_template(make_api, model_folder, path, fields, expected):
    (model_folder / "chat_template.jinja").write_text(
        "{{ documents[0].text if documents else none }}/{{ reasoning_effort if reasoning_effort else none }}/"
        "{{ enable_thinking if enable_thinking is defined else none }}/{{ add_generation_prompt }}"
    )
    api = make_api()
    response = await converse(api, [USER], path, **fields)
    assert response.status_code == 200, response.text
    if path == "v1/chat/completions":
        assert prompt_text(api) == expected
    else:
        assert api.engine.tokenizer.decode(response.json()["tokens"]) == expected


@pytest.mark.row("also honoured")
@pytest.mark.parametrize("add", [{}, {"add_generation_prompt": False}], ids=str)
@pytest.mark.parametrize(
    ("content", "expected"), [("Sure, e", "Sure, e"), ("e ", "e "), ("", ""), ([{"type": "text", "text": "x"}], "x")]
)
async def test_also_honoured_continue_final_message(api, add, content, expected):
    messages = [USER, {"role": "assistant", "content": content}]
    response = await converse(api, messages, continue_final_message=True, **add)
    assert response.status_code == 200, response.text
    assert prompt_text(api) == f"[user]a<|end|>[assistant]{expected}"


@pytest.mark.row("also honoured")
@pytest.mark.parametrize(
    ("template", "fields"),
    [
        ("{{ messages[0].content }}", {"add_generation_prompt": True}),
        ("{{ messages[0].content[:3] }}", {}),
    ],
)
async def test_also_honoured_continue_final_message_refusals(make_api, model_folder, template, fields):
    (model_folder / "chat_template.jinja").write_text(template)
    response = await converse(make_api(), [USER], continue_final_message=True, **fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "continue_final_message")


@pytest.mark.row("also honoured")
async def test_also_honoured_continue_final_message_tells_the_template(make_api, model_folder):
    (model_folder / "chat_template.jinja").write_text("{{ add_generation_prompt }}: {{ messages[0].content | trim }}")
    api = make_api()
    assert (await converse(api, [USER], continue_final_message=True)).status_code == 200
    assert prompt_text(api) == "False: a"
