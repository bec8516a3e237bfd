"""Which pod template an endpoint has: the one that was rendered for its specification, by whatever version.

An operator of another version, or with another default image, would render another template for the same
specification; taking it up at once would load every model anew. So the template stands, with the specification that it
was rendered for, in an annotation on the Deployment, and is kept until the specification asks for other pods. Whether
it does is found by rendering both specifications, then and now, by the same code: what has no part in pods cannot
count, and a field or a default that came with a new version counts for both.

docs/adr/0008-an-upgrade-rolls-no-model.md has the reasons. Pure.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from dedicate_operator import names
from dedicate_operator.errors import SpecError
from dedicate_operator.kinds import Json
from dedicate_operator.parsing import parse_spec
from dedicate_operator.settings import EndpointDefaults
from dedicate_operator.spec import Endpoint
from dedicate_operator.template import Manifest, build_pod_template

# Half of what the API server takes for all annotations of an object. Reached by some 100 kB of arguments and variables.
MAX_RECORD_BYTES = 128 * 1024


@dataclass(frozen=True, slots=True)
class Rendering:
    """The template that pods are to be made of.

    Attributes:
        record: what the Deployment is to remember, None if it is too large for that.
        pending: what this operator would change in the pods if it were asked for a new template, None if nothing.
    """

    template: Manifest
    record: str | None
    pending: str | None = None


def plan_rendering(endpoint: Endpoint, defaults: EndpointDefaults, deployment: Json | None) -> Rendering:
    """Return the recorded template while it is that of the present specification, and else a new one."""
    fresh = build_pod_template(endpoint, defaults)
    text = ((deployment or {}).get("metadata", {}).get("annotations") or {}).get(names.RENDERED_ANNOTATION)
    recorded = _read_record(text)
    if recorded is None or endpoint.spec.runtime.upgrade_policy == "OnOperatorUpgrade":
        return render_anew(endpoint, fresh)
    document, template = recorded
    if document != endpoint.document and _render(document, endpoint, defaults) != fresh:
        return render_anew(endpoint, fresh)
    return Rendering(template, text, _describe_difference(template, fresh))


def render_anew(endpoint: Endpoint, template: Manifest) -> Rendering:
    """Return the template, with a record of what it was rendered for."""
    record = json.dumps({"spec": endpoint.document, "template": template}, sort_keys=True, separators=(",", ":"))
    return Rendering(template, record if len(record) <= MAX_RECORD_BYTES else None)


def find_image(template: Manifest) -> str | None:
    """Return the image of the runtime in a template, None if there is no such container."""
    containers = template.get("spec", {}).get("containers") or []
    return next((item.get("image") for item in containers if item.get("name") == names.CONTAINER), None)


def _read_record(text: str | None) -> tuple[Json, Manifest] | None:
    """Return the recorded specification and template, None if there is no record or somebody has changed it."""
    try:
        record: Any = json.loads(text or "")
        document, template = record["spec"], record["template"]
        annotations = dict(template["metadata"]["annotations"])
        claimed = annotations.pop(names.TEMPLATE_HASH_ANNOTATION)
    except (ValueError, KeyError, TypeError):
        return None
    metadata = {key: value for key, value in template["metadata"].items() if key != "annotations"}
    if annotations:
        metadata["annotations"] = annotations
    is_whole = claimed == names.hash_manifest({**template, "metadata": metadata})
    return (document, template) if is_whole and isinstance(document, dict) else None


def _render(document: Json, endpoint: Endpoint, defaults: EndpointDefaults) -> Manifest | None:
    try:
        former = replace(endpoint, spec=parse_spec(document, endpoint.key.name))
    except SpecError:
        return None
    return build_pod_template(former, defaults)


def _describe_difference(template: Manifest, fresh: Manifest) -> str | None:
    if template == fresh:
        return None
    image = find_image(fresh)
    return "another pod template" if image == find_image(template) else f"the image {image}"
