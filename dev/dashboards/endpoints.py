"""The dashboard of the endpoints, told apart by the labels that the chart's PodMonitor gives them."""

from __future__ import annotations

from dev.dashboards.panels import Panel, Query, Row, build_quantiles, build_rate, one

_ENDPOINT = 'namespace="$namespace", dedicate_endpoint=~"$endpoint"'
_BY_ENDPOINT = "sum by (dedicate_endpoint)"

ENDPOINT_ROWS = (
    Row(
        "Requests",
        (
            Panel(
                "Answers",
                "By status.",
                "reqps",
                one(build_rate("dedicate_requests_total", _ENDPOINT, "status"), "{{status}}"),
            ),
            Panel(
                "Errors",
                "Errors that clients were told, in streams too, by code.",
                "reqps",
                one(build_rate("dedicate_request_errors_total", _ENDPOINT, "code"), "{{code}}"),
            ),
            Panel(
                "Refused for want of room",
                "By the bound of the queue that said so.",
                "reqps",
                one(build_rate("dedicate_requests_refused_total", _ENDPOINT, "reason"), "{{reason}}"),
            ),
            Panel(
                "Time to first token",
                "From a request's first byte to its first token.",
                "s",
                build_quantiles("dedicate_time_to_first_token_seconds", _ENDPOINT),
            ),
            Panel(
                "Between tokens",
                "Time between tokens of one choice.",
                "s",
                build_quantiles("dedicate_inter_token_latency_seconds", _ENDPOINT),
            ),
            Panel(
                "Whole requests",
                "From a request's first byte to its answer's last, of those that generated tokens.",
                "s",
                build_quantiles("dedicate_e2e_request_latency_seconds", _ENDPOINT),
            ),
        ),
    ),
    Row(
        "Load",
        (
            Panel(
                "Running and waiting",
                "Sequences in the engine's steps, and those that wait for a place.",
                "none",
                (
                    Query(
                        f"{_BY_ENDPOINT} (dedicate_num_requests_running{{{_ENDPOINT}}})",
                        "running {{dedicate_endpoint}}",
                    ),
                    Query(
                        f"{_BY_ENDPOINT} (dedicate_num_requests_waiting{{{_ENDPOINT}}})",
                        "waiting {{dedicate_endpoint}}",
                    ),
                ),
            ),
            Panel(
                "Expected wait",
                "Until the last of those that wait now has its first step; requests are refused beyond "
                "--max-queue-seconds.",
                "s",
                one(
                    f"max by (dedicate_endpoint, pod) (dedicate_expected_queue_time_seconds{{{_ENDPOINT}}})",
                    "{{pod}}",
                ),
            ),
            Panel(
                "Streams",
                "Event streams being sent.",
                "none",
                one(f"{_BY_ENDPOINT} (dedicate_streams_open{{{_ENDPOINT}}})", "{{dedicate_endpoint}}"),
            ),
            Panel(
                "Tokens",
                "A second, into the engine, found or computed, and out of it.",
                "none",
                (
                    Query(
                        build_rate("dedicate_engine_prompt_tokens_total", _ENDPOINT, "dedicate_endpoint"),
                        "prompt {{dedicate_endpoint}}",
                    ),
                    Query(
                        build_rate("dedicate_engine_generation_tokens_total", _ENDPOINT, "dedicate_endpoint"),
                        "generated {{dedicate_endpoint}}",
                    ),
                ),
            ),
            Panel(
                "Tokens by client",
                "Generated for each key, a second.",
                "none",
                one(build_rate("dedicate_completion_tokens_total", _ENDPOINT, "key_id"), "{{key_id}}"),
            ),
            Panel(
                "Refused by limits of keys",
                "By key and limit.",
                "reqps",
                one(
                    build_rate("dedicate_rate_limited_requests_total", _ENDPOINT, "key_id, limit"),
                    "{{key_id}} {{limit}}",
                ),
            ),
        ),
    ),
    Row(
        "Engine",
        (
            Panel(
                "KV cache in use",
                "Part of the blocks that sequences hold.",
                "percentunit",
                one(f"max by (pod) (dedicate_kv_cache_usage_ratio{{{_ENDPOINT}}})", "{{pod}}"),
                maximum=1,
            ),
            Panel(
                "Prefix cache hits",
                "Part of the prompt tokens that were found instead of computed.",
                "percentunit",
                one(
                    f"{build_rate('dedicate_prefix_cache_hits_total', _ENDPOINT, 'dedicate_endpoint')} / "
                    f"{build_rate('dedicate_prefix_cache_queries_total', _ENDPOINT, 'dedicate_endpoint')}",
                    "{{dedicate_endpoint}}",
                ),
                maximum=1,
            ),
            Panel(
                "Sequences put back",
                "For want of KV blocks; their tokens are computed again.",
                "ops",
                one(build_rate("dedicate_num_preemptions_total", _ENDPOINT, "pod"), "{{pod}}"),
            ),
            Panel(
                "Phases of a request",
                "95th percentile of the time in the queue, until the first token, and until the last.",
                "s",
                tuple(
                    Query(
                        "histogram_quantile(0.95, "
                        f"{build_rate(f'dedicate_request_{phase}_time_seconds_bucket', _ENDPOINT, 'le')})",
                        phase,
                    )
                    for phase in ("queue", "prefill", "decode")
                ),
            ),
            Panel(
                "Duration of steps",
                "95th percentile, by whether a step computed prompts.",
                "s",
                one(
                    f"histogram_quantile(0.95, {build_rate('dedicate_step_seconds_bucket', _ENDPOINT, 'le, kind')})",
                    "{{kind}}",
                ),
            ),
            Panel(
                "Lost engines and restarts",
                "Engines that died or hung, and starts of the container.",
                "none",
                (
                    Query(
                        f"sum by (pod, cause) (increase(dedicate_engine_restarts_total{{{_ENDPOINT}}}[1h]))",
                        "engine {{pod}} {{cause}}",
                    ),
                    Query(
                        f"max by (pod) (changes(dedicate_process_start_time_seconds{{{_ENDPOINT}}}[1h]))",
                        "container {{pod}}",
                    ),
                ),
            ),
            Panel(
                "Models",
                "What each pod has loaded.",
                "none",
                one(
                    "max by (dedicate_endpoint, pod, model, dtype, device, attention_backend) "
                    f"(dedicate_model_info{{{_ENDPOINT}}})",
                    "{{pod}}",
                ),
                kind="table",
                width=16,
            ),
            Panel(
                "Mounted files in use",
                "1 while keys and limits are in use as they are mounted.",
                "none",
                one(
                    f"min by (pod, file) (dedicate_config_last_reload_successful{{{_ENDPOINT}}})",
                    "{{pod}} {{file}}",
                ),
            ),
        ),
    ),
)
