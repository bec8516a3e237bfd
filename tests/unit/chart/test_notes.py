"""What Helm prints after an installation: commands that can be typed as they stand."""

import json
import re
import shutil
import textwrap

import pytest
import yaml

from dedicate_operator.names import DEFAULT_CLIENT, keys_secret_name
from dev.chart import CHART, KUBERNETES_VERSION, run_helm
from dev.paths import REPOSITORY


@pytest.fixture
def render_notes(tmp_path):
    """Render NOTES.txt as a value of a manifest, since `helm template` leaves it out."""
    chart = shutil.copytree(CHART, tmp_path / "chart")
    notes = chart / "templates" / "NOTES.txt"
    manifest = 'kind: Notes\ntext: {{ include "notes" . | toJson }}\n'
    wrapped = '{{- define "notes" }}' + notes.read_text() + "{{ end -}}\n" + manifest
    (chart / "templates" / "notes.yaml").write_text(wrapped)

    def render(values):
        options = ["--namespace=dedicate-system", f"--kube-version={KUBERNETES_VERSION}", "--values=-"]
        command = ["template", "dedicate", str(chart), "--show-only=templates/notes.yaml", *options]
        return yaml.safe_load(run_helm(command, stdin=json.dumps(values)))["text"]

    return render


def test_the_endpoint_is_the_smallest_example(render_notes):
    (manifest,) = re.findall(r"<<END\n(.*?)\n  END\n", render_notes({}), re.DOTALL)
    endpoint = yaml.safe_load(textwrap.dedent(manifest))
    assert endpoint == yaml.safe_load((REPOSITORY / "examples" / "smallest.yaml").read_text())


def test_the_key_is_where_the_operator_puts_it(render_notes):
    notes = render_notes({})
    assert f" {keys_secret_name('seallm')} " in notes
    assert f"{{.data.{DEFAULT_CLIENT}}}" in notes
    assert "{.status.url}" in notes


@pytest.mark.parametrize(
    ("values", "namespace"), [({}, "default"), ({"watch": {"namespaces": ["team-a", "team-b"]}}, "team-a")]
)
def test_commands_name_a_namespace_that_is_served(values, namespace, render_notes):
    notes = render_notes(values)
    commands = re.findall(r"kubectl (?:apply|get \w+) --namespace (\S+)", notes)
    assert commands == [namespace] * 4
    assert "helm test dedicate --namespace dedicate-system" in notes


@pytest.mark.parametrize(
    ("values", "advice"),
    [
        ({}, "No route.className is set"),
        ({"route": {"type": "HTTPRoute"}}, "no route.parentRefs is set"),
        ({"replicas": 0}, "It is PAUSED"),
    ],
)
def test_what_is_still_to_be_done_is_said(values, advice, render_notes):
    assert advice in render_notes(values)


@pytest.mark.parametrize(
    "route", [{"className": "traefik"}, {"type": "HTTPRoute", "parentRefs": [{"namespace": "infra", "name": "public"}]}]
)
def test_nothing_is_said_where_nothing_is_to_be_done(route, render_notes):
    notes = render_notes({"route": route, "tests": {"enabled": False}})
    assert "is set" not in notes
    assert "PAUSED" not in notes
    assert "helm test" not in notes
