"""Whatever comes, the answer is a completion or the envelope of a client's fault: never a 500."""

from __future__ import annotations

import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dedicate_runtime.api.schemas import ChatCompletionRequest, CompletionRequest

FIELDS = sorted({*ChatCompletionRequest.model_fields, *CompletionRequest.model_fields} - {"stream"})
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
LIKELY = st.sampled_from(
    [0, 1, 2, -1, 0.5, 40, True, False, "a", "<pad>", [], ["x"], [1, 2], {"65": 1}, {"type": "text"}]
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool", "x"])},
        optional={"content": JSON, "name": JSON},
    ),
    max_size=3,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    endpoint=st.sampled_from(["chat/completions", "completions"]),
    fields=st.dictionaries(st.sampled_from(FIELDS), LIKELY | JSON, max_size=4),
    prompt=st.text(max_size=20) | JSON,
    messages=MESSAGES,
)
async def test_no_field_brings_a_500(api, endpoint, fields, prompt, messages):
    body = {"model": "unit/test", "prompt": prompt, "messages": messages, **fields}
    content = json.dumps(body).encode()
    response = await api.client.post(f"/unit/v1/{endpoint}", content=content)
    assert response.status_code in {200, 400, 404}, (body, response.text)
    if response.status_code != 200:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(["v1/completions", "v1/chat/completions", "tokenize", "detokenize"]), body=st.binary())
async def test_no_bytes_bring_a_500(api, path, body):
    response = await api.client.post(f"/unit/{path}", content=body)
    assert response.status_code == 400


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from(["tokenize", "detokenize"]),
    body=st.dictionaries(st.sampled_from(["prompt", "messages", "tokens", "model"]), JSON),
)
async def test_no_tokenizer_call_brings_a_500(api, path, body):
    response = await api.client.post(f"/unit/{path}", content=json.dumps(body).encode())
    assert response.status_code in {200, 400, 404}, (body, response.text)
