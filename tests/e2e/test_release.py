"""A release over its life: installed, upgraded, rolled back, uninstalled by Helm, while an endpoint serves.

The older version has a chart and an operator of its own. The release watches one namespace here, so that the endpoints
of other tests are left alone; at the end it is as the other tests know it.
"""

from __future__ import annotations

import copy
import json
import threading
from dataclasses import dataclass

import httpx
import pytest

from dev.chart import CHART
from dev.demo import objects
from dev.demo.kube import await_value
from tests.e2e.pods import is_ready
from tests.other_version import MISSING_FIELD, make_other_version, push_other_operator

NAMESPACE = "released"
OPERATOR = "app.kubernetes.io/component=operator"
CRD = "dedicatedendpoints.dedicate.dev"
ENDPOINT = "dedicate.dev/endpoint=survivor"
STEP_S = 120
PAUSE_S = 0.2


class Client(threading.Thread):
    """Asks for the models of an endpoint until it is stopped, and remembers what was not answered."""

    def __init__(self, served):
        super().__init__()
        self.problems = []
        self.num_answers = 0
        self._served = served
        self._stopped = threading.Event()

    def run(self):
        with httpx.Client(timeout=30, trust_env=False, headers=self._served.headers) as client:
            while not self._stopped.wait(PAUSE_S):
                try:
                    client.get(f"{self._served.url}/models").raise_for_status()
                    self.num_answers += 1
                except httpx.HTTPError as error:
                    self.problems.append(repr(error))

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_exception):
        self._stopped.set()
        self.join(timeout=60)
        assert self.problems == []
        assert self.num_answers


@dataclass
class Release:
    """The release, in one of two versions."""

    kube: object
    values: dict
    old_chart: object
    old_values: dict
    name: str = objects.RELEASE
    namespace: str = objects.OPERATOR_NAMESPACE

    def install_old(self):
        self.kube.install_chart(self.name, self.namespace, self.old_values, chart=self.old_chart)

    def install_new(self):
        self.kube.install_chart(self.name, self.namespace, self.values)

    def start_upgrade(self):
        """Ask for the new version, and do not wait for it."""
        arguments = ("upgrade", self.name, str(CHART), f"--namespace={self.namespace}", "--values=-")
        self.kube.helm(*arguments, stdin=json.dumps(self.values))

    def uninstall(self):
        self.kube.helm("uninstall", self.name, f"--namespace={self.namespace}", "--ignore-not-found", "--wait")

    def revisions(self):
        text = self.kube.helm("history", self.name, f"--namespace={self.namespace}", "--output=json")
        return [revision["revision"] for revision in json.loads(text)]

    def running_images(self):
        """Return the images of the pods that are ready."""
        pods = self.kube.items("pods", self.namespace, OPERATOR)
        return {pod["spec"]["containers"][0]["image"] for pod in pods if is_ready(pod)}

    def leader(self):
        """Return the name of the pod that holds the Lease."""
        (deployment,) = self.kube.items("deployments", self.namespace, OPERATOR)
        lease = self.kube.get("lease", deployment["metadata"]["name"], self.namespace)
        return lease["spec"]["holderIdentity"].rpartition("_")[0]

    def await_images(self, *digests):
        def ask():
            images = self.running_images()
            return True if {image.rpartition("@")[2] for image in images} == set(digests) else None

        await_value(f"the operator's ready pods run {digests}", ask, deadline_s=STEP_S)

    def await_leader(self):
        """Return once a pod leads that is ready and is not going."""

        def ask():
            pods = self.kube.items("pods", self.namespace, OPERATOR)
            return True if self.leader() in {pod["metadata"]["name"] for pod in pods if is_ready(pod)} else None

        await_value("one of the operator's pods leads", ask, deadline_s=STEP_S)


@pytest.fixture(scope="module")
def handled(kube, values, release, node_cluster, tmp_path_factory):
    """The release, ready to be changed; put back at the end, over all namespaces."""
    tree = make_other_version(tmp_path_factory.mktemp("other"))
    mine = copy.deepcopy(values) | {"watch": {"namespaces": [NAMESPACE]}}
    old_values = copy.deepcopy(mine) | {"operator": {"image": push_other_operator(tree, node_cluster.registry)}}
    yield Release(kube, mine, tree / "charts" / "dedicate", old_values)
    kube.install_chart(release, objects.OPERATOR_NAMESPACE, values)


@pytest.fixture(scope="module")
def survivor(handled, open_namespace):
    """An endpoint that the older version has made, and that serves."""
    endpoints = open_namespace(NAMESPACE)
    handled.uninstall()
    handled.install_old()
    endpoints.apply("survivor")
    yield endpoints, endpoints.await_served("survivor")
    handled.install_new()
    endpoints.delete("survivor")
    handled.kube.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def identity(endpoints):
    """What no change of the release may touch: pods that were never restarted, and the template of their Deployment."""
    pods = endpoints.kube.items("pods", endpoints.namespace, ENDPOINT)
    deployment = endpoints.kube.get("deployment", "survivor", endpoints.namespace)
    restarts = [status["restartCount"] for pod in pods for status in pod["status"]["containerStatuses"]]
    return sorted(pod["metadata"]["uid"] for pod in pods), restarts, deployment["spec"]["template"]


def is_definition_new(kube):
    (version,) = json.loads(kube.kubectl("get", "crd", CRD, "--output=json"))["spec"]["versions"]
    return MISSING_FIELD in version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]


def digest_of(values):
    return values["operator"]["image"]["digest"]


@pytest.mark.promise(5)
def test_an_upgrade_brings_the_definition_up_and_touches_no_model(handled, survivor, kube):
    endpoints, served = survivor
    handled.install_old()
    assert not is_definition_new(kube)
    before = identity(endpoints)
    with Client(served):
        handled.start_upgrade()
        # Both versions for a while: a new pod is ready before an old one goes.
        handled.await_images(digest_of(handled.old_values), digest_of(handled.values))
        handled.await_leader()
        handled.await_images(digest_of(handled.values))
        endpoints.await_pass()
    assert is_definition_new(kube)
    assert identity(endpoints) == before
    assert endpoints.await_condition("survivor", "Ready", {"Serving"})["status"] == "True"


@pytest.mark.promise(5)
def test_a_rollback_returns_to_the_older_version_and_touches_no_model(handled, survivor, kube):
    endpoints, served = survivor
    handled.install_old()
    revision = handled.revisions()[-1]
    handled.install_new()
    before = identity(endpoints)
    with Client(served):
        kube.helm("rollback", handled.name, str(revision), f"--namespace={handled.namespace}")
        handled.await_images(digest_of(handled.old_values))
        endpoints.await_pass()
        # The definition goes back with the chart.
        assert not is_definition_new(kube)
        handled.install_new()
        endpoints.await_pass()
    assert is_definition_new(kube)
    assert identity(endpoints) == before
    assert endpoints.await_condition("survivor", "Ready", {"Serving"})["status"] == "True"


@pytest.mark.promise(4)
def test_an_uninstall_leaves_the_endpoints_serving_and_deletable(handled, survivor, kube):
    endpoints, served = survivor
    handled.install_new()
    endpoints.apply("passing", suspend=True, route={"type": "None"})
    endpoints.await_condition("passing", "Ready", {"Suspended"})
    before = identity(endpoints)
    with Client(served):
        handled.uninstall()
        kinds = "deployments,roles,rolebindings,serviceaccounts,networkpolicies,poddisruptionbudgets,leases"
        left = kube.items(kinds, handled.namespace)
        assert [item["kind"] for item in left if item["metadata"]["name"].startswith(handled.name)] in ([], ["Lease"])
        assert kube.items("roles", NAMESPACE) == []
        assert is_definition_new(kube)
        # No operator is needed to delete, and an endpoint that is there is taken up again.
        endpoints.delete("passing")
        handled.install_new()
        endpoints.await_pass()
    assert identity(endpoints) == before
