"""The demonstration's pure parts: what it shows, what it applies, what it prints."""

from __future__ import annotations

import io
import json
import shlex
from pathlib import Path

import pytest

from dev.cluster.plan import Ports
from dev.demo import objects
from dev.demo.completion import Client
from dev.demo.endpoint import find_condition
from dev.demo.kube import build_namespace, find_obstacle, is_rolled_out
from dev.demo.progress import Progress
from dev.images.recipe import RECIPES, ImageReference

CLIENT = Client("http://localhost:8080/smollm/v1", "it's-a-key", "smollm")


def test_a_step_is_shown_with_its_detail_and_its_end(tmp_path: Path) -> None:
    stream = io.StringIO()
    with Progress(tmp_path / "demo.log", stream) as progress, progress.step("Images") as say:
        say("step 4 of 13")
    shown = stream.getvalue()
    assert "Images: step 4 of 13 (0 s)" in shown
    assert shown.splitlines()[-1].startswith("==> Images: done in")
    assert "Images: step 4 of 13" in (tmp_path / "demo.log").read_text()


def test_a_failed_step_stands_in_the_log_with_its_cause(tmp_path: Path) -> None:
    with (
        Progress(tmp_path / "demo.log", io.StringIO()) as progress,
        pytest.raises(ValueError, match="no disk"),
        progress.step("Images"),
    ):
        raise ValueError("no disk")
    assert "no disk" in (tmp_path / "demo.log").read_text()


def test_the_curl_lines_survive_a_shell() -> None:
    lines = CLIENT.curl_lines()
    assert [shlex.split(line)[-1] for line in lines] == [line.split(" -d ")[1].strip("'") for line in lines]
    urls = {word for line in lines for word in shlex.split(line) if word.startswith("http")}
    assert urls == {f"{CLIENT.url}/chat/completions", f"{CLIENT.url}/completions"}
    headers = {word for line in lines for word in shlex.split(line) if word.endswith("it's-a-key")}
    assert headers == {"Authorization: Bearer it's-a-key", "Autherization: Bearer it's-a-key"}
    assert all(json.loads(shlex.split(line)[-1])["model"] == "smollm" for line in lines)


def test_local_values_name_images_by_digest() -> None:
    images = {name: ImageReference("r:5000", f"dedicate-{name}", "k", f"sha256:{name}") for name in RECIPES}
    ports = Ports(*range(20000, 20012))
    values = objects.build_local_values(images, host="localhost", class_name="traefik", ports=ports)
    assert values["runtime"]["image"] == {
        "repository": "r:5000/dedicate-runtime",
        "tag": "k",
        "digest": "sha256:runtime",
    }
    assert values["route"] == {
        "host": "localhost",
        "className": "traefik",
        "externalPort": ports.ingress,
        "externalTLSPort": ports.ingress_tls,
    }
    assert values["networkPolicy"]["apiServer"]["ports"] == [443, ports.api]


def test_a_registry_without_a_tag_leaves_the_tag_to_the_chart() -> None:
    values = objects.build_registry_values("registry.example.com/team", None)
    assert values["operator"]["image"] == {"repository": "registry.example.com/team/dedicate-operator"}


def test_the_volume_is_bound_to_the_claim_and_to_no_other() -> None:
    volume, claim = objects.build_model_volume(Path("/models"), "demo")
    assert volume["spec"]["claimRef"] == {"namespace": "demo", "name": claim["metadata"]["name"]}
    assert claim["spec"]["volumeName"] == volume["metadata"]["name"]


def test_fields_given_to_the_endpoint_replace_its_own() -> None:
    spec = objects.build_endpoint("pvc://models/smollm", accelerator={"count": 16})["spec"]
    assert spec["accelerator"] == {"count": 16}
    assert spec["model"]["uri"] == "pvc://models/smollm"


def test_namespaces_enforce_the_restricted_standard() -> None:
    assert build_namespace("x")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_a_condition_that_is_not_there_is_empty() -> None:
    assert find_condition({"metadata": {}}, "Ready") == {}


@pytest.mark.parametrize(
    ("status", "rolled_out"),
    [
        ({"observedGeneration": 2, "replicas": 1, "updatedReplicas": 1, "availableReplicas": 1}, True),
        ({"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1, "availableReplicas": 1}, False),
        ({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 1, "availableReplicas": 1}, False),
        ({"observedGeneration": 2, "replicas": 1, "updatedReplicas": 1}, False),
    ],
)
def test_a_rollout_is_over_when_only_new_pods_are_left(status: dict[str, int], rolled_out: bool) -> None:
    deployment = {"metadata": {"generation": 2}, "spec": {"replicas": 1}, "status": status}
    assert is_rolled_out(deployment) is rolled_out


def test_the_obstacle_is_told_in_the_clusters_words() -> None:
    waiting = {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such tag"}}}
    assert find_obstacle({"status": {"containerStatuses": [waiting]}}) == "ImagePullBackOff no such tag"
    unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no room"}
    assert find_obstacle({"status": {"conditions": [unscheduled]}}) == "Unschedulable no room"
    assert find_obstacle({"status": {"containerStatuses": [{"state": {"running": {}}}]}}) is None
