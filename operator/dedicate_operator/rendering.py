"""Which pod template an endpoint has: the one that was rendered for its specification, by whatever version.

An operator of another version, or with another default image, would render another template for the same
specification; taking it up at once would load every model anew. So the template stands, with the specification that it
was rendered for, in an annotation on the Deployment, and is kept until the specification asks for other pods. Whether
it does is found by rendering both specifications, then and now, by the same code: what has no part in pods cannot
count, and a field or a default that came with a new version counts for both.

docs/adr/0008-an-upgrade-rolls-no-model.md has the reasons. Pure.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
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


def plan_rendering(
    endpoint: Endpoint, defaults: EndpointDefaults, deployment: Json | None, *, reported_generation: int | None = None
) -> Rendering:
    """Return the recorded template while it is that of the present specification, and else a new one.

    Args:
        endpoint: whose pods.
        defaults: what it leaves out.
        deployment: its Deployment, None if there is none.
        reported_generation: the generation that the status speaks of.
    """
    fresh = build_pod_template(endpoint, defaults)
    recorded = _read_record(_annotations(deployment).get(names.RENDERED_ANNOTATION))
    if recorded is None and endpoint.generation == reported_generation:
        recorded = _adopt(endpoint, deployment, fresh)
    if recorded is None or endpoint.spec.runtime.upgrade_policy == "OnOperatorUpgrade":
        return _record(endpoint.document, fresh)
    document, template = recorded
    if document != endpoint.document and _render(document, endpoint, defaults) != fresh:
        return _record(endpoint.document, fresh)
    return replace(_record(document, template), pending=_describe_difference(template, fresh))


def _record(document: Mapping[str, Any], template: Manifest) -> Rendering:
    """Return the template, with a record of what it was rendered for."""
    content = {"spec": document, "template": template, "hash": names.hash_manifest(template)}
    record = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return Rendering(template, record if len(record) <= MAX_RECORD_BYTES else None)


def find_image(template: Manifest) -> str | None:
    """Return the image of the runtime in a template, None if there is no such container."""
    containers = template.get("spec", {}).get("containers") or []
    return next((item.get("image") for item in containers if item.get("name") == names.CONTAINER), None)


def _read_record(text: str | None) -> tuple[Json, Manifest] | None:
    """Return the recorded specification and template, None if there is no record or somebody has changed it."""
    try:
        record: Any = json.loads(text or "")
        document, template, claimed = record["spec"], record["template"], record["hash"]
    except (ValueError, KeyError, TypeError):
        return None
    is_whole = isinstance(document, dict) and isinstance(template, dict) and claimed == names.hash_manifest(template)
    return (document, template) if is_whole else None


def _adopt(endpoint: Endpoint, deployment: Json | None, fresh: Manifest) -> tuple[Json, Manifest] | None:
    """Return the template of a Deployment that an operator made which kept no records, None if it is no such one."""
    annotations = _annotations(deployment)
    if deployment is None or names.MANIFEST_HASH_ANNOTATION not in annotations:
        return None
    if names.RENDERED_ANNOTATION in annotations:
        return None
    template: Manifest = copy.deepcopy(deployment["spec"]["template"])
    template["metadata"].pop("creationTimestamp", None)
    hashes = [_annotations(item).get(names.TEMPLATE_HASH_ANNOTATION) for item in (template, fresh)]
    # Of the same hash it is what we would render, but for what the API server filled in.
    return None if hashes[0] in {None, hashes[1]} else (dict(endpoint.document), template)


def _annotations(resource: Json | None) -> dict[str, str]:
    return ((resource or {}).get("metadata") or {}).get("annotations") or {}


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
