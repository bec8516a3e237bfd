"""What `helm test` runs, inside the cluster: is the definition served, the operator up, an endpoint answering?

Needs the standard library only. Ends with 0, or with 1 and a sentence that says what is missing.
"""

import http.client
import json
import os
import ssl
import sys
import urllib.error
import urllib.request
from pathlib import Path

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TIMEOUT_S = 60


def fetch(url, *, bearer=None, body=None, context=None):
    """Return the JSON that `url` answers with; end the test where it answers otherwise or not at all."""
    request = urllib.request.Request(url, data=None if body is None else json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    if bearer:
        request.add_header("Authorization", f"Bearer {bearer}")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=context) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        sys.exit(f"FAILED: {url} answered {error.code}: {error.read(512).decode(errors='replace')}")
    except (OSError, http.client.HTTPException) as error:
        sys.exit(f"FAILED: {url} did not answer: {error}")
    except ValueError as error:
        sys.exit(f"FAILED: {url} answered something else than JSON: {error}")


def check_operator():
    """The API server serves our resource, and the operator's Deployment is available."""
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    context = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    bearer = (ACCOUNT / "token").read_text()

    resources = fetch(f"{server}/apis/dedicate.dev/v1alpha1", bearer=bearer, context=context)["resources"]
    if "dedicatedendpoints" not in {resource["name"] for resource in resources}:
        sys.exit("FAILED: the API server does not serve dedicatedendpoints.dedicate.dev")
    print("ok: dedicatedendpoints.dedicate.dev is served")

    path = f"/apis/apps/v1/namespaces/{os.environ['OPERATOR_NAMESPACE']}/deployments/{os.environ['OPERATOR_NAME']}"
    deployment = fetch(server + path, bearer=bearer, context=context)
    wanted, available = deployment["spec"]["replicas"], deployment.get("status", {}).get("availableReplicas", 0)
    if available < wanted:
        sys.exit(f"FAILED: {available} of {wanted} operator pods are available")
    print(f"ok: {available} of {wanted} operator pods are available")


def check_endpoint(base_url):
    """An endpoint completes a prompt under the name that it reports."""
    path = os.environ.get("ENDPOINT_KEY_FILE")
    key = Path(path).read_text().strip() if path else None
    try:
        model = fetch(f"{base_url}/models", bearer=key)["data"][0]["id"]
        body = {"model": model, "prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}
        choice = fetch(f"{base_url}/completions", bearer=key, body=body)["choices"][0]
        reason, text = choice["finish_reason"], choice["text"]
    except (LookupError, TypeError) as error:
        sys.exit(f"FAILED: {base_url} does not answer as OpenAI's API does: {error!r}")
    if reason not in {"stop", "length"}:
        sys.exit(f"FAILED: the completion ended with {reason!r}")
    print(f"ok: {model} completed: {text!r}")


check_operator()
if url := os.environ.get("ENDPOINT_URL"):
    check_endpoint(url)
