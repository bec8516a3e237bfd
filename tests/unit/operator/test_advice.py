"""Each message says what to do next, by the field that its author wrote."""

from __future__ import annotations

import re

import pytest
import yaml

from dedicate_operator.advice import ADVISED_REASONS, MAX_ADVICE_LENGTH, advise
from dedicate_operator.parsing import parse_endpoint
from tests.unit.operator.builders import CRD_FILE, custom_resource, walk

HUB = {"uri": "hf://org/name"}
GATED = {"model": HUB | {"tokenSecretRef": {"name": "hub"}}, "auth": {"apiKeysSecretRef": {"name": "keys"}}}
CLAIM = {"model": {"uri": "pvc://models/chat"}}
CACHED = {"model": HUB, "cache": {"existingClaim": {"name": "shared"}}}
OWNED = {"model": HUB, "cache": {"persistentVolumeClaim": {"size": "100Gi"}}}
SIZED = {"model": HUB, "cache": {"emptyDir": {"sizeLimit": "20Gi"}}}
LIMITED = {"model": HUB, "auth": {"limitsConfigMapRef": {"name": "limits"}}}
# What each reason is advised in, beside the plainest endpoint.
SPECS = [{"model": HUB}, GATED, CLAIM, CACHED, OWNED, SIZED, LIMITED, {"model": HUB, "runtime": {"image": "a/b"}}]
MESSAGES = [
    "1 Insufficient nvidia.com/gpu",
    "1 node(s) had untolerated taint {a: b}",
    "1 Insufficient memory",
    "didn't match Pod's node affinity/selector",
    "something else",
]


def endpoint(spec):
    return parse_endpoint(custom_resource(spec=spec))


@pytest.mark.parametrize(
    ("spec", "reason", "message", "named"),
    [
        (CLAIM, "ClaimNotFound", 'persistentvolumeclaim "models" not found', "spec.model.uri"),
        (CACHED, "ClaimNotFound", 'persistentvolumeclaim "shared" not found', "spec.cache.existingClaim"),
        (GATED, "SecretNotFound", 'secret "hub" not found', "spec.model.tokenSecretRef"),
        (GATED, "SecretNotFound", 'secret "keys" not found', "spec.auth.apiKeysSecretRef"),
        (GATED, "SecretNotFound", 'secret "other" not found', "spec.runtime.env"),
        (LIMITED, "ConfigMapNotFound", 'configmap "limits" not found', "spec.auth.limitsConfigMapRef"),
        ({"model": HUB}, "Unschedulable", MESSAGES[0], "spec.accelerator.count"),
        ({"model": HUB}, "Unschedulable", MESSAGES[1], "spec.scheduling.tolerations"),
        ({"model": HUB}, "Unschedulable", MESSAGES[2], "spec.resources.requests"),
        ({"model": HUB}, "Unschedulable", MESSAGES[3], "spec.scheduling"),
        ({"model": HUB}, "Unschedulable", MESSAGES[4], "kubectl describe pods --namespace team"),
        ({"model": HUB}, "ImagePull", "not found", "runtime.image in the chart's values"),
        (SPECS[-1], "ImagePull", "not found", "spec.runtime.image"),
        ({"model": HUB}, "GatedRepo", "401", "spec.model.tokenSecretRef"),
        (GATED, "GatedRepo", "401", "Secret hub"),
        ({"model": HUB}, "Unauthorized", "401", "spec.model.tokenSecretRef"),
        (GATED, "Unauthorized", "401", "Secret hub"),
        ({"model": HUB}, "DiskFull", "no room", "a claim in spec.cache"),
        (OWNED, "DiskFull", "no room", "spec.cache.persistentVolumeClaim.size"),
        (CACHED, "DiskFull", "no room", "claim shared"),
        (SIZED, "DiskFull", "no room", "spec.cache.emptyDir.sizeLimit (now 20Gi)"),
        (CLAIM, "ModelCorrupt", "damaged", "Copy the model to its claim"),
        ({"model": HUB}, "ModelCorrupt", "damaged", "from the cache"),
        ({"model": HUB}, "NotAdmitted", "no ingress controller of class a", "spec.route.className"),
        ({"model": HUB}, "NotAdmitted", "Gateway a/b has not answered", "spec.route.parentRefs"),
        ({"model": HUB}, "NotAdmitted", "Gateway a/b says no (NotAllowedByListeners)", "allowedRoutes.namespaces"),
        ({"model": HUB}, "NotAdmitted", "Gateway a/b says no (NoMatchingListenerHostname)", "spec.route.host"),
        ({"model": HUB}, "NotAdmitted", "Gateway a/b says no (NoMatchingParent)", "sectionName"),
        (CLAIM, "ModelNotFound", "no such folder", "claim's root"),
        ({"model": HUB}, "ModelNotFound", "404", "spec.model.revision"),
    ],
)
def test_advice_names_what_is_to_be_changed(spec, reason, message, named):
    said = advise(endpoint(spec), reason, message)
    assert said.startswith(message)
    assert named in said.removeprefix(message)


def test_limit_that_was_too_low_is_told():
    spec = CLAIM | {"resources": {"limits": {"memory": "1Gi"}}}
    assert "spec.resources.limits.memory (now 1Gi)" in advise(endpoint(spec), "OOMKilled", "killed")


def test_message_ends_once_before_the_advice():
    assert advise(endpoint(CLAIM), "InvalidArguments", "bad. ") == "bad. Correct spec.runtime.args"


def test_what_tells_itself_what_to_do_is_left_as_it_is():
    assert advise(endpoint(CLAIM), "PathConflict", "choose another") == "choose another"


@pytest.mark.parametrize("reason", sorted(ADVISED_REASONS))
def test_each_field_that_advice_names_exists_and_none_is_cut(reason):
    (version,) = yaml.safe_load(CRD_FILE.read_text())["spec"]["versions"]
    fields = {path.removeprefix("$.") for path, _ in walk(version["schema"]["openAPIV3Schema"])}
    for spec in SPECS:
        for message in MESSAGES:
            advice = advise(endpoint(spec), reason, message).removeprefix(message)
            assert 0 < len(advice) <= MAX_ADVICE_LENGTH
            for field in re.findall(r"spec(?:\.[A-Za-z]+)+", advice):
                assert field in fields or field.rpartition(".")[2] == "memory", field
