"""The dashboard of the operator."""

from __future__ import annotations

from dev.dashboards.panels import Panel, Query, Row, build_quantiles, build_rate, one

_OPERATOR = 'namespace="$namespace"'

OPERATOR_ROWS = (
    Row(
        "Endpoints",
        (
            Panel(
                "Leader",
                "Pods that lead; 1 but for seconds.",
                "none",
                one(f"sum(dedicate_operator_leader{{{_OPERATOR}}})", "leaders"),
                kind="stat",
                width=3,
            ),
            Panel(
                "Operators",
                "Pods that are scraped, by version.",
                "none",
                one(f"count by (version) (dedicate_operator_build_info{{{_OPERATOR}}})", "{{version}}"),
                kind="stat",
                width=3,
            ),
            Panel(
                "Endpoints by reason",
                "Reason of the Ready condition.",
                "none",
                one(f"max by (reason) (dedicate_operator_endpoints{{{_OPERATOR}}})", "{{reason}}"),
                width=9,
            ),
            Panel(
                "Not Ready",
                "Each endpoint that is not Ready, with the reason; the runbook has each of them.",
                "none",
                one(
                    "max by (endpoint_namespace, endpoint_name, reason) "
                    f"(dedicate_operator_endpoint_ready{{{_OPERATOR}}} == 0)",
                    "{{endpoint_namespace}}/{{endpoint_name}} {{reason}}",
                ),
                kind="table",
                width=9,
            ),
        ),
    ),
    Row(
        "Work",
        (
            Panel(
                "Passes",
                "Passes over an endpoint, by how they ended.",
                "ops",
                one(build_rate("dedicate_operator_reconciles_total", _OPERATOR, "result"), "{{result}}"),
            ),
            Panel(
                "Duration of a pass",
                "From a worker's taking it up to its end.",
                "s",
                build_quantiles("dedicate_operator_reconcile_duration_seconds", _OPERATOR),
            ),
            Panel(
                "Failures by kind",
                "Passes that failed or crashed, by what was wrong.",
                "ops",
                one(build_rate("dedicate_operator_reconcile_errors_total", _OPERATOR, "kind"), "{{kind}}"),
            ),
            Panel(
                "Queue",
                "Endpoints of the leader's queue: waiting for a worker, worked on, due later.",
                "none",
                (
                    Query(f"max(dedicate_operator_queue_depth{{{_OPERATOR}}})", "waiting"),
                    Query(
                        f"max(dedicate_operator_queue_active{{{_OPERATOR}}}"
                        f" and on (pod) dedicate_operator_leader{{{_OPERATOR}}} == 1)",
                        "worked on",
                    ),
                    Query(
                        f"max(dedicate_operator_queue_delayed{{{_OPERATOR}}}"
                        f" and on (pod) dedicate_operator_leader{{{_OPERATOR}}} == 1)",
                        "due later",
                    ),
                ),
            ),
            Panel(
                "Longest wait",
                "For how long an endpoint has waited for a worker.",
                "s",
                one(f"max(dedicate_operator_queue_oldest_seconds{{{_OPERATOR}}})", "oldest"),
            ),
            Panel(
                "Retries",
                "Passes that are made again because one failed.",
                "ops",
                one(build_rate("dedicate_operator_queue_retries_total", _OPERATOR, "pod"), "{{pod}}"),
            ),
        ),
    ),
    Row(
        "API server",
        (
            Panel(
                "Requests",
                "By verb and resource.",
                "reqps",
                one(
                    build_rate("dedicate_operator_api_requests_total", _OPERATOR, "verb, resource"),
                    "{{verb}} {{resource}}",
                ),
            ),
            Panel(
                "Requests that failed",
                "By code; none: no answer came.",
                "reqps",
                one(
                    build_rate(
                        "dedicate_operator_api_requests_total", f'{_OPERATOR}, code!~"2.."', "verb, resource, code"
                    ),
                    "{{code}} {{verb}} {{resource}}",
                ),
            ),
            Panel(
                "Duration of requests",
                "99th percentile by verb; of a watch, until its first line.",
                "s",
                one(
                    "histogram_quantile(0.99, "
                    f"{build_rate('dedicate_operator_api_request_duration_seconds_bucket', _OPERATOR, 'le, verb')})",
                    "{{verb}}",
                ),
            ),
            Panel(
                "Watches begun again",
                "By reason; ended by the server every few minutes is the ordinary course.",
                "ops",
                one(
                    build_rate("dedicate_operator_watch_restarts_total", _OPERATOR, "reason, resource"),
                    "{{reason}} {{resource}}",
                ),
            ),
            Panel(
                "Memory",
                "Resident memory of each pod's process.",
                "bytes",
                one(f"dedicate_operator_process_resident_memory_bytes{{{_OPERATOR}}}", "{{pod}}"),
            ),
            Panel(
                "CPU",
                "CPU seconds a second of each pod's process.",
                "none",
                one(build_rate("dedicate_operator_process_cpu_seconds_total", _OPERATOR, "pod"), "{{pod}}"),
            ),
        ),
    ),
)
