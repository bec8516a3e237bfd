"""Rows of docs/api.md on paths: what else is served, and where."""

from __future__ import annotations

import httpx
import pytest

from dedicate_runtime.api.management import create_management_app
from tests.unit.runtime.api.wire import assert_envelope


@pytest.mark.row("also served")
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("path", "needs_key"),
    [
        ("/v1/models", True),
        ("/v1/models/unit/test", True),
        ("/v1/models/unit%2Ftest", True),
        ("/v1/models/alias", True),
        ("/v1/usage", True),
        ("/tokenizer_info", True),
        ("/health", False),
        ("/version", False),
        ("/docs", False),
        ("/openapi.json", False),
    ],
)
async def test_also_served(api, method, path, needs_key):
    assert (await api.client.request(method, f"/unit{path}")).status_code == 200
    async with httpx.AsyncClient(transport=httpx.ASGITransport(api.app), base_url="http://unit.test") as client:
        assert (await client.request(method, f"/unit{path}")).status_code == (401 if needs_key else 200)


@pytest.mark.row("also served")
async def test_also_served_models(api):
    listing = (await api.client.get("/unit/v1/models")).json()
    assert listing["object"] == "list"
    for card, name in zip(listing["data"], ["unit/test", "alias"], strict=True):
        assert card.pop("created") > 0
        assert card == {
            "id": name,
            "object": "model",
            "owned_by": "dedicate",
            "root": "unit/test",
            "parent": None,
            "max_model_len": 128,
        }
        assert (await api.client.get(f"/unit/v1/models/{name}")).json()["id"] == name


@pytest.mark.row("also served")
@pytest.mark.parametrize("prefix", ["/unit", "/unit/v1"])
@pytest.mark.parametrize(
    ("body", "tokens", "text"),
    [
        ({"prompt": "Hi"}, [256, 39, 72], "<s>Hi"),
        ({"prompt": "Hi", "add_special_tokens": True}, [256, 39, 72], "<s>Hi"),
        ({"prompt": "Hi", "add_special_tokens": False}, [39, 72], "Hi"),
        ({"prompt": "<|end|>", "add_special_tokens": False, "model": "alias"}, [258], "<|end|>"),
        ({"prompt": ""}, [256], "<s>"),
        ({"prompt": "", "add_special_tokens": False}, [], ""),
        ({"messages": [{"role": "user", "content": "x"}], "add_generation_prompt": False}, None, "[user]x<|end|>"),
        ({"messages": [{"role": "user", "content": "x"}], "continue_final_message": True}, None, "[user]x"),
        (
            {"messages": [{"role": "user", "content": "x"}], "add_special_tokens": True},
            None,
            "<s>[user]x<|end|>[assistant]",
        ),
    ],
    ids=str,
)
async def test_also_served_tokenize_and_detokenize(api, prefix, body, tokens, text):
    answer = (await api.client.post(f"{prefix}/tokenize", json={**body, "return_token_strs": True})).json()
    assert set(answer) == {"count", "max_model_len", "tokens", "token_strs"}
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"])
    assert answer["max_model_len"] == 128
    assert "".join(answer["token_strs"]) == text
    if tokens is not None:
        assert answer["tokens"] == tokens
    back = await api.client.post(f"{prefix}/detokenize", json={"tokens": answer["tokens"]})
    assert back.json() == {"prompt": text}


@pytest.mark.row("also served")
@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("tokenize", {}, "prompt"),
        ("tokenize", {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}, "prompt"),
        ("tokenize", {"prompt": ["x"]}, "prompt"),
        ("tokenize", {"messages": []}, "messages"),
        ("tokenize", {"prompt": "x", "chat_template": "{{ 1 }}"}, "chat_template"),
        ("detokenize", {}, "tokens"),
        ("detokenize", {"tokens": [260]}, "tokens"),
        ("detokenize", {"tokens": [-1]}, "tokens"),
        ("detokenize", {"tokens": ["a"]}, "tokens"),
    ],
    ids=str,
)
async def test_also_served_refusals(api, path, body, param):
    assert assert_envelope(await api.client.post(f"/unit/{path}", json=body), 400)["param"] == param


@pytest.mark.row("also served")
@pytest.mark.parametrize("has_template", [True, False])
async def test_also_served_tokenizer_info(make_api, model_folder, has_template):
    """What lm-evaluation-harness makes its remote tokenizer of."""
    template = (model_folder / "chat_template.jinja").read_text()
    if not has_template:
        (model_folder / "chat_template.jinja").unlink()
    api = make_api()
    assert (await api.client.get("/unit/tokenizer_info")).json() == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "vocab_size": 260,
        "model_max_length": 128,
        "bos_token": "<s>",
        "eos_token": "<|end|>",
        "pad_token": None,
        "unk_token": None,
        "chat_template": template if has_template else None,
        "end_ids": [257, 258],
    }


@pytest.mark.row("also served")
async def test_also_served_on_the_management_port_alone(api):
    management = create_management_app(api.readiness, api.metrics.registry)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(management), base_url="http://unit.test") as client:
        for path in ("/healthz", "/readyz", "/startupz", "/metrics"):
            assert (await client.get(path)).status_code == 200
            assert (await api.client.get(path)).status_code == 404
            assert (await api.client.get(f"/unit{path}")).status_code == 404


@pytest.mark.row("mounting")
async def test_mounting_documents_live_under_the_prefix(api):
    document = (await api.client.get("/unit/openapi.json")).json()
    assert all(path.startswith("/unit/") for path in document["paths"])
    assert {"/unit/v1/chat/completions", "/unit/v1/completions", "/unit/v1/models"} <= set(document["paths"])
    assert not document.get("servers")
    assert "/unit/openapi.json" in (await api.client.get("/unit/docs")).text


@pytest.mark.row("mounting")
async def test_mounting_documents_say_where_the_key_goes(make_api):
    document = (await make_api().client.get("/unit/openapi.json")).json()
    assert document["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    assert document["paths"]["/unit/v1/completions"]["post"]["security"] == [{"HTTPBearer": []}]
    assert "security" not in document["paths"]["/unit/health"]["get"]
    document = (await make_api("--auth", "none").client.get("/unit/openapi.json")).json()
    assert "security" not in document["paths"]["/unit/v1/completions"]["post"]


@pytest.mark.row("mounting")
@pytest.mark.parametrize(
    "path", ["/", "/v1/models", "/health", "/docs", "/openapi.json", "/unit2/v1/models", "/x/unit/v1/models", "/unit"]
)
async def test_mounting_outside_the_prefix(api, path):
    assert_envelope(await api.client.get(path), 404)


@pytest.mark.row("mounting")
@pytest.mark.parametrize(
    "path",
    ["/unit/v1/models/", "/unit//v1/models", "//unit/v1//models//", "/unit/v1/models/unit/test/", "/unit/health/"],
)
async def test_mounting_does_not_mind_slashes(api, path):
    response = await api.client.get(httpx.URL("http://unit.test").copy_with(raw_path=path.encode()))
    assert response.status_code == 200, response.text


@pytest.mark.row("mounting")
@pytest.mark.parametrize(("auth", "allowed"), [("api-key", "*"), ("none", None)])
async def test_mounting_lets_pages_of_other_origins_in_where_they_need_a_key(make_api, auth, allowed):
    api = make_api("--auth", auth)
    preflight = {"Origin": "https://page.test", "Access-Control-Request-Method": "POST"}
    asked = await api.client.options(
        "/unit/v1/chat/completions", headers={**preflight, "Access-Control-Request-Headers": "authorization,x-own"}
    )
    assert asked.headers.get("access-control-allow-origin") == allowed
    assert asked.status_code == (200 if allowed else 405)
    assert asked.headers["x-request-id"]
    response = await api.client.get("/unit/v1/models", headers={"Origin": "https://page.test"})
    assert response.headers.get("access-control-allow-origin") == allowed
    assert "access-control-allow-credentials" not in response.headers
