"""The endpoints' and the operator's NetworkPolicies, enforced: connections from pod to pod, let through or refused.

The controller that enforces them (dev/cluster) rejects at once what no policy allows. Traefik runs beside the node, so
it is named by its address where a policy names its peers; in a cluster it is a pod, and its namespace is named.
"""

from __future__ import annotations

import httpx
import pytest

from dev.demo import objects
from dev.demo.errors import DemoError
from dev.demo.kube import await_value, build_namespace
from tests.e2e.pods import is_ready

OPERATOR = "app.kubernetes.io/component=operator"
FRIEND, STRANGER, MONITORING = "policy-friend", "policy-stranger", "monitoring"
API, MANAGEMENT, ELSEWHERE = 8000, 9000, 8080
# A policy takes effect within a second or two of its object, a pod's within as much of its address.
EFFECT_S = 30
STARTED_S = 120
CHAT = {"model": "smollm", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}

LISTEN = f"""
import socketserver, threading
for port in (443, {ELSEWHERE}, {ELSEWHERE + 1}):
    server = socketserver.ThreadingTCPServer(("", port), socketserver.BaseRequestHandler)
    threading.Thread(target=server.serve_forever).start()
"""
CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3).close()
    print("open")
except (TimeoutError, ConnectionRefusedError) as error:
    print("closed", repr(error))
"""


def build_pod(namespace, image, labels=None):
    """Return a pod that listens on three ports and from which connections are tried."""
    hardened = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "probe", "namespace": namespace, "labels": labels or {}},
        "spec": {
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "securityContext": {
                "runAsNonRoot": True,
                "seccompProfile": {"type": "RuntimeDefault"},
                "sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}],
            },
            "containers": [
                {"name": "probe", "image": image, "command": ["python", "-c", LISTEN], "securityContext": hardened}
            ],
        },
    }


class Prober:
    """Tries connections from within pods."""

    def __init__(self, kube, image):
        self.kube = kube
        self.image = image

    def start(self, namespace, labels=None):
        self.kube.apply(build_pod(namespace, self.image, labels))

        def ask():
            statuses = self.kube.get("pod", "probe", namespace)["status"].get("containerStatuses", [])
            return True if statuses and statuses[0]["ready"] else None

        await_value(f"the probe in {namespace} runs", ask, deadline_s=STARTED_S)

    def address(self, namespace, selector):
        """Return the address of the one ready pod."""
        pods = [pod for pod in self.kube.items("pods", namespace, selector) if is_ready(pod)]
        return pods[0]["status"]["podIP"]

    def connect(self, source, host, port):
        """Return whether a pod (`namespace/pod` or `namespace/kind/name`) gets a connection."""
        namespace, _, pod = source.partition("/")
        arguments = ("exec", f"--namespace={namespace}", pod, "--", "python", "-c", CONNECT, host, str(port))
        answer = self.kube.kubectl(*arguments)
        return answer.startswith("open")

    def await_connect(self, expected, *connection):
        def ask():
            return True if self.connect(*connection) is expected else None

        await_value(f"{connection} is {'open' if expected else 'closed'}", ask, deadline_s=EFFECT_S)


@pytest.fixture(scope="module")
def prober(kube, release, values):
    image = values["operator"]["image"]
    prober = Prober(kube, f"{image['repository']}:{image['tag']}@{image['digest']}")
    for namespace in (FRIEND, STRANGER, MONITORING):
        kube.apply(build_namespace(namespace))
        prober.start(namespace)
    yield prober
    for namespace in (FRIEND, STRANGER, MONITORING):
        kube.kubectl("delete", "namespace", namespace, "--wait=false")


@pytest.fixture(scope="module")
def guarded(endpoints, prober, node_cluster):
    """An endpoint that names who may reach it; its name, its URL, and its pod's address."""
    policy = {"mode": "Restricted", "allowFrom": [in_namespace(FRIEND), address_of(node_cluster)]}
    endpoints.apply("guarded", networkPolicy=policy)
    served = endpoints.await_served("guarded")
    yield served, prober.address(endpoints.namespace, "dedicate.dev/endpoint=guarded")
    endpoints.delete("guarded")


def in_namespace(name):
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


def address_of(node_cluster):
    return {"ipBlock": {"cidr": f"{node_cluster.plan.host_address}/32"}}


@pytest.mark.promise(12)
def test_only_named_peers_reach_the_api_port(prober, guarded):
    _, address = guarded
    prober.await_connect(True, f"{FRIEND}/probe", address, API)
    prober.await_connect(False, f"{STRANGER}/probe", address, API)
    prober.await_connect(False, f"{MONITORING}/probe", address, API)
    assert prober.connect(f"{FRIEND}/probe", address, API)


def test_the_service_is_no_way_around_the_policy(prober, guarded, endpoints):
    host = f"guarded.{endpoints.namespace}.svc.cluster.local"
    prober.await_connect(True, f"{FRIEND}/probe", host, 80)
    prober.await_connect(False, f"{STRANGER}/probe", host, 80)


def test_a_chat_comes_through_the_ingress(guarded):
    served, _ = guarded
    url = f"{served.url}/chat/completions"
    answer = httpx.post(url, json=CHAT, headers=served.headers, timeout=120, trust_env=False)
    assert answer.status_code == 200


@pytest.mark.promise(12)
def test_metrics_are_for_the_monitoring_and_the_operator(prober, guarded, kube):
    _, address = guarded
    prober.await_connect(True, f"{MONITORING}/probe", address, MANAGEMENT)
    prober.await_connect(False, f"{FRIEND}/probe", address, MANAGEMENT)
    prober.await_connect(False, f"{STRANGER}/probe", address, MANAGEMENT)
    (operator, *_) = kube.items("pods", objects.OPERATOR_NAMESPACE, OPERATOR)
    name = f"{objects.OPERATOR_NAMESPACE}/{operator['metadata']['name']}"
    prober.await_connect(True, name, address, MANAGEMENT)
    assert not prober.connect(name, address, API)


@pytest.mark.promise(12)
def test_a_model_on_a_claim_reaches_nobody(prober, guarded, endpoints, node_cluster):
    source = f"{endpoints.namespace}/deployment/guarded"
    friend = prober.kube.get("pod", "probe", FRIEND)["status"]["podIP"]
    plan = node_cluster.plan
    for host, port in (
        (friend, ELSEWHERE),
        (friend, 443),
        (plan.api_service_address, 443),
        (plan.host_address, plan.ports.registry),
        (plan.dns_service_address, 53),
    ):
        prober.await_connect(False, source, host, port)
        # It is the policy that refuses: the same connection, from a pod that none selects.
        assert prober.connect(f"{STRANGER}/probe", host, port), (host, port)


def test_a_model_of_a_hub_reaches_names_https_and_its_mirror(prober, endpoints):
    """The endpoint sleeps; a pod with its label stands for its own."""
    mirror = [{"name": "HF_ENDPOINT", "value": f"http://probe.{FRIEND}.svc:{ELSEWHERE}"}]
    hub = {
        "model_uri": "hf://organisation/name",
        "suspend": True,
        "runtime": {"env": mirror},
        "route": {"type": "None"},
    }
    endpoints.apply("sleeping", **hub)
    await_value(
        "the policy is there",
        lambda: prober.kube.get("networkpolicy", "sleeping", endpoints.namespace),
        deadline_s=EFFECT_S,
    )
    prober.start(endpoints.namespace, {"dedicate.dev/endpoint": "sleeping"})
    try:
        friend, source = prober.kube.get("pod", "probe", FRIEND)["status"]["podIP"], f"{endpoints.namespace}/probe"
        prober.await_connect(False, source, friend, ELSEWHERE + 1)
        prober.await_connect(True, source, friend, 443)
        prober.await_connect(True, source, friend, ELSEWHERE)
        host = f"guarded.{endpoints.namespace}.svc.cluster.local"
        resolved = ("python", "-c", f"import socket; print(socket.gethostbyname({host!r}))")
        kubectl = prober.kube.kubectl
        assert kubectl("exec", "probe", f"--namespace={endpoints.namespace}", "--", *resolved).strip()
    finally:
        prober.kube.kubectl("delete", "pod", "probe", f"--namespace={endpoints.namespace}")
        endpoints.delete("sleeping")


def test_an_endpoint_that_names_nobody_is_open_at_its_api_alone(prober, shared, endpoints):
    address = prober.address(endpoints.namespace, "dedicate.dev/endpoint=shared")
    prober.await_connect(True, f"{STRANGER}/probe", address, API)
    prober.await_connect(False, f"{STRANGER}/probe", address, MANAGEMENT)


def test_the_operator_reaches_the_api_server_and_nobody_else(prober, kube, node_cluster):
    (operator, *_) = kube.items("pods", objects.OPERATOR_NAMESPACE, OPERATOR)
    source = f"{objects.OPERATOR_NAMESPACE}/{operator['metadata']['name']}"
    friend = kube.get("pod", "probe", FRIEND)["status"]["podIP"]
    prober.await_connect(False, source, friend, ELSEWHERE)
    prober.await_connect(True, source, node_cluster.plan.api_service_address, 443)
    address = operator["status"]["podIP"]
    # The kubelet's probes may come from anywhere, so this port is open to all.
    prober.await_connect(True, f"{STRANGER}/probe", address, 8080)


def test_mode_none_takes_the_policy_away(prober, guarded, endpoints):
    """Last here: it opens what the others found closed."""
    _, address = guarded
    endpoints.apply("guarded", networkPolicy={"mode": "None"})
    prober.await_connect(True, f"{STRANGER}/probe", address, MANAGEMENT)
    assert prober.kube.get("networkpolicy", "guarded", endpoints.namespace) is None


def test_a_probe_that_cannot_run_is_an_error(prober):
    """`closed` is said by the probe alone, so that a broken one is no proof of a policy."""
    with pytest.raises(DemoError):
        prober.connect(f"{STRANGER}/nothing", "127.0.0.1", 1)
