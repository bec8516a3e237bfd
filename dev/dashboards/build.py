"""Panels and expressions become the JSON that Grafana loads; `dev.derived` writes it into the chart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from dev.dashboards.endpoints import ENDPOINT_ROWS
from dev.dashboards.operators import OPERATOR_ROWS
from dev.dashboards.panels import Panel, Row

# Of Grafana 10; newer ones migrate it when they load it.
_SCHEMA_VERSION = 39
_COLUMNS = 24
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


def build_dashboards() -> dict[str, str]:
    """Return the text of each dashboard by the name of its file."""
    namespace = _variable("namespace", "Namespace", "label_values(dedicate_operator_build_info, namespace)")
    operator = _build("dedicate-operator", "Dedicate / Operator", [namespace], OPERATOR_ROWS)
    namespace = _variable("namespace", "Namespace", "label_values(dedicate_model_info, namespace)")
    query = 'label_values(dedicate_model_info{namespace="$namespace"}, dedicate_endpoint)'
    endpoint = _variable("endpoint", "Endpoint", query, is_multiple=True)
    endpoints = _build("dedicate-endpoints", "Dedicate / Endpoints", [namespace, endpoint], ENDPOINT_ROWS)
    return {
        name: json.dumps(dashboard, indent=2) + "\n"
        for name, dashboard in {"operator.json": operator, "endpoints.json": endpoints}.items()
    }


def _build(uid: str, title: str, variables: Sequence[dict[str, Any]], rows: Sequence[Row]) -> dict[str, Any]:
    source = {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}
    return {
        "uid": uid,
        "title": title,
        "tags": ["dedicate"],
        "schemaVersion": _SCHEMA_VERSION,
        "editable": True,
        "timezone": "",
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [source, *variables]},
        "annotations": {"list": []},
        "panels": _lay_out(rows),
    }


def _variable(name: str, label: str, query: str, *, is_multiple: bool = False) -> dict[str, Any]:
    variable: dict[str, Any] = {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": _DATASOURCE,
        "query": {"query": query, "refId": name},
        # On each change of the time range: an endpoint that came meanwhile is in the list.
        "refresh": 2,
        "sort": 1,
        "multi": is_multiple,
        "includeAll": is_multiple,
    }
    return variable | ({"allValue": ".*", "current": {"text": "All", "value": "$__all"}} if is_multiple else {})


def _lay_out(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return rows and panels with their places, line by line."""
    panels: list[dict[str, Any]] = []
    top = 0
    for row in rows:
        place = {"h": 1, "w": _COLUMNS, "x": 0, "y": top}
        panels.append({"id": len(panels) + 1, "type": "row", "title": row.title, "gridPos": place, "panels": []})
        top += 1
        left = 0
        for panel in row.panels:
            if left + panel.width > _COLUMNS:
                left, top = 0, top + panel.height
            place = {"h": panel.height, "w": panel.width, "x": left, "y": top}
            panels.append({"id": len(panels) + 1, **_build_panel(panel), "gridPos": place})
            left += panel.width
        top += max(panel.height for panel in row.panels)
    return panels


def _build_panel(panel: Panel) -> dict[str, Any]:
    is_table = panel.kind == "table"
    targets = [
        {
            "refId": chr(ord("A") + index),
            "datasource": _DATASOURCE,
            "expr": query.expression,
            "legendFormat": query.legend,
            **({"instant": True, "range": False, "format": "table"} if is_table else {}),
        }
        for index, query in enumerate(panel.queries)
    ]
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.maximum is not None:
        defaults["max"] = panel.maximum
    hidden = {"id": "organize", "options": {"excludeByName": {"Time": True, "Value": True}}}
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": _DATASOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {},
        "transformations": [hidden] if is_table else [],
    }
