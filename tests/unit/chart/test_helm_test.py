"""The program that `helm test` runs: it passes when all is well, and else says in one sentence what is not."""

import copy
import io
import json
import runpy
import ssl
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from dev.chart import CHART

SERVER = "https://10.0.0.1:443"
GROUP = f"{SERVER}/apis/dedicate.dev/v1alpha1"
DEPLOYMENT = f"{SERVER}/apis/apps/v1/namespaces/dedicate-system/deployments/dedicate"
ENDPOINT = "http://seallm.default.svc/seallm/v1"
WELL = {
    GROUP: {"resources": [{"name": "dedicatedendpoints"}, {"name": "dedicatedendpoints/status"}]},
    DEPLOYMENT: {"spec": {"replicas": 2}, "status": {"availableReplicas": 2}},
    f"{ENDPOINT}/models": {"data": [{"id": "seallm"}]},
    f"{ENDPOINT}/completions": {"choices": [{"text": " Paris.", "finish_reason": "stop"}]},
}


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the program with these answers by address; return the requests that it made."""
    read_text = Path.read_text
    (tmp_path / "key").write_text("sk-1\n")
    environment = {
        "KUBERNETES_SERVICE_HOST": "10.0.0.1",
        "KUBERNETES_SERVICE_PORT": "443",
        "OPERATOR_NAME": "dedicate",
        "OPERATOR_NAMESPACE": "dedicate-system",
        "ENDPOINT_URL": ENDPOINT,
        "ENDPOINT_KEY_FILE": str(tmp_path / "key"),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ssl, "create_default_context", lambda cafile: cafile)
    monkeypatch.setattr(Path, "read_text", lambda path: "token" if path.name == "token" else read_text(path))

    def run(changed=None):
        asked = []

        def answer(request, timeout, context):
            assert (context is not None) == request.full_url.startswith(SERVER)
            asked.append(request)
            said = (copy.deepcopy(WELL) | (changed or {}))[request.full_url]
            if isinstance(said, Exception):
                raise said
            return io.BytesIO(said if isinstance(said, bytes) else json.dumps(said).encode())

        monkeypatch.setattr(urllib.request, "urlopen", answer)
        runpy.run_path(str(CHART / "files" / "helm_test.py"))
        return asked

    return run


def refuse(code):
    return urllib.error.HTTPError("", code, "", {}, io.BytesIO(b"no"))


def test_all_is_well(run, capsys):
    asked = run()
    assert [request.full_url for request in asked] == list(WELL)
    assert [request.get_header("Authorization") for request in asked] == ["Bearer token"] * 2 + ["Bearer sk-1"] * 2
    assert json.loads(asked[-1].data)["model"] == "seallm"
    assert [line[:4] for line in capsys.readouterr().out.splitlines()] == ["ok: "] * 3


def test_without_an_endpoint_it_ends_after_the_operator(run, monkeypatch):
    monkeypatch.delenv("ENDPOINT_URL")
    assert [request.full_url for request in run()] == [GROUP, DEPLOYMENT]


@pytest.mark.parametrize(
    ("url", "said", "complaint"),
    [
        (GROUP, {"resources": []}, "does not serve dedicatedendpoints"),
        (GROUP, refuse(404), "answered 404: no"),
        (GROUP, urllib.error.URLError("refused"), "did not answer"),
        (DEPLOYMENT, {"spec": {"replicas": 2}, "status": {"availableReplicas": 1}}, "1 of 2 operator pods"),
        (DEPLOYMENT, {"spec": {"replicas": 2}, "status": {}}, "0 of 2 operator pods"),
        (f"{ENDPOINT}/models", refuse(401), "answered 401: no"),
        (f"{ENDPOINT}/models", b"<html>", "something else than JSON"),
        (f"{ENDPOINT}/models", {"data": []}, "does not answer as OpenAI's API does"),
        (f"{ENDPOINT}/completions", {"choices": [{"text": "", "finish_reason": "error"}]}, "ended with 'error'"),
    ],
)
def test_what_is_wrong_is_said(url, said, complaint, run):
    with pytest.raises(SystemExit) as end:
        run({url: said})
    assert str(end.value.code).startswith("FAILED: ")
    assert complaint in str(end.value.code)
