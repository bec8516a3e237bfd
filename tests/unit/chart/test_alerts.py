"""Each alert of the chart, in Prometheus' own rule engine: it fires when it should, not before, and not otherwise."""

import pytest
import yaml

from dev.monitoring import iterate_alerts, load_alerts, read_alerts
from dev.prometheus import PrometheusError, run_promtool

ALERTS = read_alerts()
OPERATOR = 'namespace="dedicate-system", pod="a"'
STANDBY = 'namespace="dedicate-system", pod="b"'
CHAT = 'namespace="team", dedicate_endpoint="chat", pod="chat-1"'
OTHER = 'namespace="team", dedicate_endpoint="chat", pod="chat-2"'
ENDPOINT = {"namespace": "team", "dedicate_endpoint": "chat"}
POD = ENDPOINT | {"pod": "chat-1"}
RELEASE = {"namespace": "dedicate-system"}

# By alert: series that make it fire, minutes until it does, its labels, and sets of series that do not. Values are in
# promtool's notation, one a minute: `1+2x3` is 1, 3, 5, 7.
CASES = {
    "DedicateOperatorDown": (
        {f"dedicate_operator_build_info{{{OPERATOR}}}": "1x5 _x40"},
        16,
        RELEASE,
        [
            {f"dedicate_operator_build_info{{{OPERATOR}}}": "1x60"},
            # One pod of two goes.
            {
                f"dedicate_operator_build_info{{{OPERATOR}}}": "1x5 _x60",
                f"dedicate_operator_build_info{{{STANDBY}}}": "1x60",
            },
        ],
    ),
    "DedicateOperatorNoLeader": (
        {f"dedicate_operator_leader{{{OPERATOR}}}": "0x60", f"dedicate_operator_leader{{{STANDBY}}}": "0x60"},
        3,
        RELEASE,
        [
            {f"dedicate_operator_leader{{{OPERATOR}}}": "0x60", f"dedicate_operator_leader{{{STANDBY}}}": "1x60"},
            # A hand-over.
            {
                f"dedicate_operator_leader{{{OPERATOR}}}": "1x5 0x60",
                f"dedicate_operator_leader{{{STANDBY}}}": "0x6 1x60",
            },
        ],
    ),
    "DedicateOperatorReconcileErrors": (
        {f'dedicate_operator_reconciles_total{{{OPERATOR}, result="failed"}}': "0+15x60"},
        20,
        RELEASE,
        [
            {f'dedicate_operator_reconciles_total{{{OPERATOR}, result="failed"}}': "0+1x60"},
            # A storm that ends.
            {f'dedicate_operator_reconciles_total{{{OPERATOR}, result="failed"}}': "0+600x10 6000x50"},
            {f'dedicate_operator_reconciles_total{{{OPERATOR}, result="succeeded"}}': "0+600x60"},
        ],
    ),
    "DedicateOperatorReconcileCrashes": (
        {f'dedicate_operator_reconciles_total{{{OPERATOR}, result="crashed"}}': "0x10 1x50"},
        12,
        RELEASE,
        [
            {f'dedicate_operator_reconciles_total{{{OPERATOR}, result="crashed"}}': "3x60"},
            {f'dedicate_operator_reconciles_total{{{OPERATOR}, result="failed"}}': "0+10x60"},
        ],
    ),
    "DedicateOperatorQueueSlow": (
        {f"dedicate_operator_queue_oldest_seconds{{{OPERATOR}}}": "90x60"},
        6,
        RELEASE,
        [
            {f"dedicate_operator_queue_oldest_seconds{{{OPERATOR}}}": "20x60"},
            {f"dedicate_operator_queue_oldest_seconds{{{OPERATOR}}}": "90x3 0x57"},
        ],
    ),
    "DedicateOperatorApiErrors": (
        {
            f'dedicate_operator_api_requests_total{{{OPERATOR}, verb="get", resource="leases", code="200"}}': "0+60x60",
            f'dedicate_operator_api_requests_total{{{OPERATOR}, verb="get", resource="leases", code="none"}}': "0+5x60",
            f'dedicate_operator_api_requests_total{{{OPERATOR}, verb="get", resource="pods", code="503"}}': "0+5x60",
        },
        15,
        RELEASE,
        [
            {
                f'dedicate_operator_api_requests_total{{{OPERATOR}, verb="get", resource="x", code="200"}}': "0+60x60",
                f'dedicate_operator_api_requests_total{{{OPERATOR}, verb="get", resource="x", code="404"}}': "0+60x60",
                f'dedicate_operator_api_requests_total{{{OPERATOR}, verb="get", resource="x", code="500"}}': "0+2x60",
            },
        ],
    ),
    "DedicateEndpointNotReady": (
        # Its reasons take turns, and both operators tell of it.
        {
            'dedicate_operator_endpoint_ready{namespace="dedicate-system", pod="a", '
            'endpoint_namespace="team", endpoint_name="chat", reason="Starting"}': "0x10 _x50",
            'dedicate_operator_endpoint_ready{namespace="dedicate-system", pod="a", '
            'endpoint_namespace="team", endpoint_name="chat", reason="CrashLoop"}': "_x10 0x50",
            'dedicate_operator_endpoint_ready{namespace="dedicate-system", pod="b", '
            'endpoint_namespace="team", endpoint_name="chat", reason="Starting"}': "0x11 _x49",
            'dedicate_operator_endpoint_ready{namespace="dedicate-system", pod="b", '
            'endpoint_namespace="team", endpoint_name="chat", reason="CrashLoop"}': "_x11 0x49",
        },
        46,
        {"endpoint_namespace": "team", "endpoint_name": "chat"},
        [
            {
                f"dedicate_operator_endpoint_ready{{{OPERATOR}, endpoint_name='chat', reason='Serving'}}": "1x60",
            },
            {
                f"dedicate_operator_endpoint_ready{{{OPERATOR}, endpoint_name='chat', reason='Suspended'}}": "0x60",
                f"dedicate_operator_endpoint_ready{{{OPERATOR}, endpoint_name='rest', reason='ScaledToZero'}}": "0x60",
            },
            {
                f"dedicate_operator_endpoint_ready{{{OPERATOR}, endpoint_name='chat', reason='Starting'}}": "0x20 _x40",
                f"dedicate_operator_endpoint_ready{{{OPERATOR}, endpoint_name='chat', reason='Serving'}}": "_x20 1x40",
            },
        ],
    ),
    "DedicateRequestsRefused": (
        {
            f'dedicate_requests_refused_total{{{CHAT}, reason="queue_time"}}': "0+6x60",
            f'dedicate_requests_refused_total{{{OTHER}, reason="queue_full"}}': "0x60",
        },
        8,
        ENDPOINT,
        [
            {f'dedicate_requests_refused_total{{{CHAT}, reason="queue_time"}}': "7x60"},
            # What clients asked for themselves.
            {f'dedicate_requests_refused_total{{{CHAT}, reason="deadline"}}': "0+6x60"},
        ],
    ),
    "DedicateLongQueue": (
        {f"dedicate_expected_queue_time_seconds{{{CHAT}}}": "40x60"},
        6,
        ENDPOINT,
        [{f"dedicate_expected_queue_time_seconds{{{CHAT}}}": "12x60"}],
    ),
    "DedicateErrorRate": (
        {
            f'dedicate_requests_total{{{CHAT}, route="/v1/chat/completions", status="200", key_id="a"}}': "0+90x60",
            f'dedicate_requests_total{{{CHAT}, route="/v1/chat/completions", status="503", key_id="a"}}': "0+10x60",
        },
        8,
        ENDPOINT,
        [
            {
                f'dedicate_requests_total{{{CHAT}, status="200"}}': "0+90x60",
                f'dedicate_requests_total{{{CHAT}, status="500"}}': "0+2x60",
                f'dedicate_requests_total{{{CHAT}, status="429"}}': "0+90x60",
            },
        ],
    ),
    "DedicateKVCachePressure": (
        {
            f"dedicate_num_preemptions_total{{{CHAT}}}": "0+30x60",
            f"dedicate_kv_cache_usage_ratio{{{CHAT}}}": "0.97x60",
        },
        14,
        ENDPOINT,
        [
            # Full, and nobody was put back for it.
            {
                f"dedicate_num_preemptions_total{{{CHAT}}}": "5x60",
                f"dedicate_kv_cache_usage_ratio{{{CHAT}}}": "0.97x60",
            },
            {
                f"dedicate_num_preemptions_total{{{CHAT}}}": "0+30x60",
                f"dedicate_kv_cache_usage_ratio{{{CHAT}}}": "0.4x60",
            },
        ],
    ),
    "DedicateEngineRestarts": (
        {f'dedicate_engine_restarts_total{{{CHAT}, cause="died"}}': "0x10 1x50"},
        12,
        POD,
        [{f'dedicate_engine_restarts_total{{{CHAT}, cause="died"}}': "1x60"}],
    ),
    "DedicateRuntimeRestarts": (
        {f"dedicate_process_start_time_seconds{{{CHAT}}}": "1000x5 _x3 2000x5 _x3 3000x50"},
        20,
        POD,
        [
            {f"dedicate_process_start_time_seconds{{{CHAT}}}": "1000x5 _x3 2000x50"},
            # Two pods, each started once.
            {
                f"dedicate_process_start_time_seconds{{{CHAT}}}": "1000x60",
                f"dedicate_process_start_time_seconds{{{OTHER}}}": "2000x60",
            },
        ],
    ),
    "DedicateStaleConfiguration": (
        {f'dedicate_config_last_reload_successful{{{CHAT}, file="limits"}}': "1x5 0x55"},
        12,
        POD | {"file": "limits"},
        [
            {f'dedicate_config_last_reload_successful{{{CHAT}, file="limits"}}': "1x60"},
            {f'dedicate_config_last_reload_successful{{{CHAT}, file="limits"}}': "1x5 0x2 1x53"},
        ],
    ),
}


@pytest.fixture(scope="module")
def rules():
    return load_alerts()


def evaluate(folder, rules, series, minutes, name, labels):
    """Let promtool compare what fires at each of these minutes with one alert of these labels, or with none."""
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
    alert = {
        "alertname": name,
        "alertstate": "firing",
        "severity": ALERTS[name]["labels"]["severity"],
        **(labels or {}),
    }
    matchers = ", ".join(f"{label}='{value}'" for label, value in sorted(alert.items()))
    expected = [] if labels is None else [{"labels": f"ALERTS{{{matchers}}}", "value": 1}]
    question = f"ALERTS{{alertname='{name}', alertstate='firing'}}"
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {"expr": question, "eval_time": f"{minute}m", "exp_samples": expected} for minute in minutes
        ],
    }
    tests = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [test]}
    (folder / "tests.yaml").write_text(yaml.safe_dump(tests))
    run_promtool(["test", "rules", str(folder / "tests.yaml")])


def test_each_alert_has_a_case():
    assert list(CASES) == list(ALERTS)


@pytest.mark.parametrize("name", CASES)
def test_fires(name, rules, tmp_path):
    series, minute, labels, _ = CASES[name]
    evaluate(tmp_path, rules, series, [minute], name, labels)


@pytest.mark.parametrize("name", [name for name in CASES if "for" in ALERTS[name]])
def test_waits_for_its_time(name, rules, tmp_path):
    series, minute, _, _ = CASES[name]
    (waits,) = (alert["for"] for alert in iterate_alerts(rules) if alert["alert"] == name)
    assert waits.endswith("m")
    evaluate(tmp_path, rules, series, [minute - int(waits[:-1]) - 1], name, None)


@pytest.mark.parametrize("name", CASES)
def test_is_silent_while_all_is_well(name, rules, tmp_path):
    for series in CASES[name][3]:
        evaluate(tmp_path, rules, series, range(60), name, None)


def test_a_case_can_fail(rules, tmp_path):
    series, minute, labels, _ = CASES["DedicateLongQueue"]
    with pytest.raises(PrometheusError, match="FAILED"):
        evaluate(tmp_path, rules, series, [minute], "DedicateLongQueue", labels | {"namespace": "another"})


def test_rules_are_without_fault(rules, tmp_path):
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    told = run_promtool(["check", "rules", "--lint=all", "--lint-fatal", str(tmp_path / "rules.yaml")])
    assert f"{len(ALERTS)} rules found" in told


def test_values_reach_the_rules():
    values = {
        "labels": {"release": "monitoring"},
        "alertLabels": {"team": "platform", "tier": "1"},
        "runbookUrl": "https://wiki.example.com/dedicate",
        "endpointNotReadyFor": "2h",
    }
    alerts = {alert["alert"]: alert for alert in iterate_alerts(load_alerts(values))}
    waiting = alerts["DedicateEndpointNotReady"]
    assert waiting["for"] == "2h"
    assert "for 2h." in waiting["annotations"]["description"]
    assert waiting["labels"] == {"severity": "warning", "team": "platform", "tier": "1"}
    assert waiting["annotations"]["runbook_url"] == "https://wiki.example.com/dedicate#dedicateendpointnotready"
