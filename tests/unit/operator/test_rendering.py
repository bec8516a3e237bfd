"""The template that was rendered for a specification stays, whatever a later operator would render for it."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest

from dedicate_operator.manifests import build_deployment
from dedicate_operator.names import (
    MANIFEST_HASH_ANNOTATION,
    RENDERED_ANNOTATION,
    TEMPLATE_HASH_ANNOTATION,
    hash_manifest,
)
from dedicate_operator.parsing import parse_endpoint
from dedicate_operator.rendering import MAX_RECORD_BYTES, find_image, plan_rendering
from dedicate_operator.template import build_pod_template
from tests.unit.operator.builders import DEFAULTS, HUB, as_child, custom_resource

NEWER = replace(DEFAULTS, image="registry/runtime:2")


def endpoint(spec=HUB):
    return parse_endpoint(custom_resource(spec=spec))


def deployment(spec=HUB, defaults=DEFAULTS):
    return as_child(build_deployment(endpoint(spec), defaults))


def rendered_by_another_version(change, spec=HUB):
    """Return the Deployment of an operator whose template is another one."""
    child = deployment(spec)
    record = json.loads(child["metadata"]["annotations"][RENDERED_ANNOTATION])
    template = record["template"]
    del template["metadata"]["annotations"]
    change(template["spec"])
    template["metadata"]["annotations"] = {TEMPLATE_HASH_ANNOTATION: hash_manifest(template)}
    record["hash"] = hash_manifest(template)
    child["metadata"]["annotations"][RENDERED_ANNOTATION] = json.dumps(record)
    child["spec"]["template"] = copy.deepcopy(template)
    return child


def made_without_records(change=lambda pod: pod.update(hostname="former")):
    """Return the Deployment of an operator that kept no records, as the API server gives it."""
    child = rendered_by_another_version(change)
    del child["metadata"]["annotations"][RENDERED_ANNOTATION]
    child["spec"]["template"]["metadata"]["creationTimestamp"] = None
    child["spec"]["template"]["spec"]["restartPolicy"] = "Always"
    return child


def test_first_rendering_is_this_operators_and_is_recorded():
    rendering = plan_rendering(endpoint(), DEFAULTS, None)
    assert rendering.template == build_pod_template(endpoint(), DEFAULTS)
    record = json.loads(rendering.record)
    assert (record["spec"], record["template"]) == (HUB, rendering.template)
    assert rendering.pending is None


def test_the_same_operator_keeps_its_record_to_the_letter():
    child = deployment()
    rendering = plan_rendering(endpoint(), DEFAULTS, child)
    assert rendering.record == child["metadata"]["annotations"][RENDERED_ANNOTATION]
    assert rendering.pending is None
    assert build_deployment(endpoint(), DEFAULTS, rendering=rendering) == build_deployment(endpoint(), DEFAULTS)


def test_promise_05_another_default_image_changes_no_pod_and_is_told():
    rendering = plan_rendering(endpoint(), NEWER, deployment())
    assert find_image(rendering.template) == "registry/runtime:1"
    assert rendering.pending == "the image registry/runtime:2"


def test_promise_05_another_versions_template_is_kept_and_is_told():
    child = rendered_by_another_version(lambda pod: pod.update(hostname="former"))
    rendering = plan_rendering(endpoint(), DEFAULTS, child)
    assert rendering.template["spec"]["hostname"] == "former"
    assert rendering.pending == "another pod template"


@pytest.mark.parametrize(
    "change",
    [
        {"replicas": 3},
        {"suspend": True},
        {"route": {"host": "other.example"}},
        {"rollout": {"strategy": "Recreate"}},
        {"disruption": {"minAvailable": 1}, "replicas": 2},
        {"autoscaling": {"maxReplicas": 2, "metric": {"targetValue": 8}}},
        # What a newer definition of the resource fills in, and what the default says anyway.
        {"startup": {"timeoutSeconds": 1800}, "accelerator": {"sharedMemory": "1Gi"}},
        {"field-of-a-newer-version": {"a": 1}},
    ],
)
def test_a_change_that_concerns_no_pod_renders_nothing(change):
    rendering = plan_rendering(endpoint(HUB | change), NEWER, deployment())
    assert find_image(rendering.template) == "registry/runtime:1"
    assert json.loads(rendering.record)["spec"] == HUB


@pytest.mark.parametrize(
    "change",
    [
        {"startup": {"timeoutSeconds": 60}},
        {"runtime": {"args": ["--max-num-seqs", "4"]}},
        {"model": HUB["model"] | {"revision": "main"}},
        {"runtime": {"image": "registry/runtime:1b"}},
    ],
)
def test_a_change_that_concerns_pods_takes_up_everything_that_is_new(change):
    spec = HUB | change
    rendering = plan_rendering(endpoint(spec), NEWER, deployment())
    assert rendering.template == build_pod_template(endpoint(spec), NEWER)
    assert json.loads(rendering.record)["spec"] == spec
    assert rendering.pending is None


def test_policy_on_operator_upgrade_does_not_wait():
    spec = HUB | {"runtime": {"upgradePolicy": "OnOperatorUpgrade"}}
    rendering = plan_rendering(endpoint(spec), NEWER, deployment())
    assert find_image(rendering.template) == "registry/runtime:2"
    # And back: what was taken up stays.
    child = as_child(build_deployment(endpoint(spec), NEWER, rendering=rendering))
    assert find_image(plan_rendering(endpoint(), NEWER, child, reported_generation=1).template) == "registry/runtime:2"


def test_a_downgrade_keeps_what_the_newer_version_made():
    child = rendered_by_another_version(lambda pod: pod.update(hostname="newer"), HUB | {"newer": {"field": 1}})
    assert plan_rendering(endpoint(HUB), DEFAULTS, child).template["spec"]["hostname"] == "newer"


def test_promise_05_what_an_operator_without_records_made_is_taken_over():
    child = made_without_records()
    rendering = plan_rendering(endpoint(), DEFAULTS, child, reported_generation=1)
    assert rendering.template["spec"] == child["spec"]["template"]["spec"]
    assert "creationTimestamp" not in rendering.template["metadata"]
    assert rendering.pending == "another pod template"
    # What was observed is as it was.
    assert "creationTimestamp" in child["spec"]["template"]["metadata"]
    child["metadata"]["annotations"][RENDERED_ANNOTATION] = rendering.record
    assert plan_rendering(endpoint(), DEFAULTS, child) == rendering


@pytest.mark.parametrize("reported", [None, 0, 2])
def test_a_specification_that_it_had_not_seen_is_rendered(reported):
    rendering = plan_rendering(endpoint(), DEFAULTS, made_without_records(), reported_generation=reported)
    assert rendering.template == build_pod_template(endpoint(), DEFAULTS)


def test_what_it_made_alike_is_ours_from_the_start():
    child = made_without_records(lambda _: None)
    rendering = plan_rendering(endpoint(), DEFAULTS, child, reported_generation=1)
    assert rendering.template == build_pod_template(endpoint(), DEFAULTS)
    assert rendering.pending is None


@pytest.mark.parametrize("name", [MANIFEST_HASH_ANNOTATION, TEMPLATE_HASH_ANNOTATION])
def test_a_deployment_that_is_not_marked_as_ours_is_not_taken_over(name):
    child = made_without_records()
    for marked in (child, child["spec"]["template"]):
        marked["metadata"]["annotations"].pop(name, None)
    rendering = plan_rendering(endpoint(), DEFAULTS, child, reported_generation=1)
    assert rendering.template == build_pod_template(endpoint(), DEFAULTS)


@pytest.mark.parametrize(
    "record",
    [
        "",
        "not JSON",
        "[]",
        '"text"',
        '{"spec": {}}',
        '{"spec": {}, "template": []}',
        '{"spec": {}, "template": {}, "hash": "0"}',
        json.dumps({"spec": HUB, "template": [], "hash": hash_manifest([])}),
        json.dumps({"spec": [], "template": {}, "hash": hash_manifest({})}),
    ],
)
def test_a_record_that_cannot_be_read_is_rendered_anew(record):
    child = deployment()
    child["metadata"]["annotations"][RENDERED_ANNOTATION] = record
    assert find_image(plan_rendering(endpoint(), NEWER, child, reported_generation=1).template) == "registry/runtime:2"


def test_a_record_that_somebody_edited_is_no_record():
    child = deployment()
    text = child["metadata"]["annotations"][RENDERED_ANNOTATION]
    child["metadata"]["annotations"][RENDERED_ANNOTATION] = text.replace("registry/runtime:1", "evil/runtime:1")
    assert find_image(plan_rendering(endpoint(), DEFAULTS, child).template) == "registry/runtime:1"


def test_a_recorded_specification_that_this_version_cannot_read_counts_as_changed():
    child = deployment()
    record = json.loads(child["metadata"]["annotations"][RENDERED_ANNOTATION])
    record["spec"] = {"model": {"uri": "s3://bucket"}}
    child["metadata"]["annotations"][RENDERED_ANNOTATION] = json.dumps(record)
    assert find_image(plan_rendering(endpoint(), NEWER, child, reported_generation=1).template) == "registry/runtime:2"


def test_a_specification_too_large_to_remember_is_rendered_each_time():
    spec = HUB | {"runtime": {"args": ["x" * 1024] * (MAX_RECORD_BYTES // 1024)}}
    rendering = plan_rendering(endpoint(spec), DEFAULTS, None)
    assert rendering.record is None
    # The API server takes 256 KiB for all annotations of an object.
    assert MAX_RECORD_BYTES <= 128 * 1024
    child = as_child(build_deployment(endpoint(spec), DEFAULTS))
    assert RENDERED_ANNOTATION not in child["metadata"]["annotations"]
    assert find_image(plan_rendering(endpoint(spec), NEWER, child).template) == "registry/runtime:2"
