"""The options of docs/contract.md: defaults, environment, refusals."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from dedicate_runtime.core.config import DeviceChoice, DtypeChoice
from dedicate_runtime.errors import ExitCode, StartError
from dedicate_runtime.settings import AuthMode, LogLevel, SamplingSource, failure_file_of, parse_settings

REQUIRED = ["--model", "/models/some", "--dedicate", "chat", "--auth", "none"]
CONTRACT = Path(__file__).parents[3] / "docs" / "contract.md"


def parse(*arguments, **environment):
    return parse_settings([*REQUIRED, *arguments], environment)


def refusal(*arguments, required=REQUIRED, **environment):
    with pytest.raises(StartError) as raised:
        parse_settings([*required, *arguments], environment)
    assert raised.value.exit_code is ExitCode.INVALID_ARGUMENTS
    return raised.value.sentence


def contract_rows():
    """Read the table of options: option -> default."""
    section = CONTRACT.read_text().split("## Arguments of the runtime")[1].split("\n## ")[0]
    return dict(re.findall(r"^\| `(--[a-z-]+)` \| (.+?) \|", section, re.MULTILINE))


def test_options_are_those_of_the_contract():
    sentence = subprocess.run(
        [sys.executable, "-m", "dedicate_runtime", "--help"], capture_output=True, text=True, timeout=120, check=True
    ).stdout
    offered = set(re.findall(r"(?m)^  (--[a-z-]+)", sentence))
    assert offered == set(contract_rows())


def test_defaults_are_those_of_the_contract():
    settings = parse()
    for option, default in contract_rows().items():
        name = option.removeprefix("--").replace("-", "_")
        if default.startswith("`") or default.isdigit():
            if option == "--auth":  # set by REQUIRED
                continue
            value = getattr(settings, name)
            text = f"{value:g}" if isinstance(value, float) else str(getattr(value, "value", value))
            assert text == default.strip("`")
        elif default == "none" or "model's" in default or "sized" in default:
            assert getattr(settings, name) is None
        elif default == "off":
            assert getattr(settings, name) is False


@pytest.mark.parametrize(
    ("option", "value", "attribute", "expected"),
    [
        ("--max-model-len", "4096", "max_model_len", 4096),
        ("--dtype", "bfloat16", "dtype", DtypeChoice.BFLOAT16),
        ("--device", "cuda", "device", DeviceChoice.CUDA),
        ("--port", "0", "port", 0),
        ("--drain-seconds", "1.5", "drain_seconds", 1.5),
        ("--stall-seconds", "2.5", "stall_seconds", 2.5),
        ("--kv-cache-tokens", "100", "kv_cache_tokens", 100),
        ("--failure-file", "/dev/termination-log", "failure_file", Path("/dev/termination-log")),
        ("--log-level", "debug", "log_level", LogLevel.DEBUG),
        ("--sampling-defaults", "model", "sampling_defaults", SamplingSource.MODEL),
    ],
)
def test_option_from_command_line_and_environment(option, value, attribute, expected):
    assert getattr(parse(option, value), attribute) == expected
    variable = "DEDICATE_" + option[2:].upper().replace("-", "_")
    assert getattr(parse(**{variable: value}), attribute) == expected


def test_command_line_wins_over_environment():
    assert parse("--port", "1", DEDICATE_PORT="2").port == 1
    assert parse("--served-model-name", "a", DEDICATE_SERVED_MODEL_NAME="b").served_model_names == ("a",)


def test_required_options_may_come_from_the_environment():
    environment = {"DEDICATE_MODEL": "/m/tiny", "DEDICATE_DEDICATE": "x", "DEDICATE_AUTH": "none"}
    settings = parse_settings([], environment)
    assert (settings.model, settings.dedicate, settings.auth) == ("/m/tiny", "x", AuthMode.NONE)


@pytest.mark.parametrize(("text", "expected"), [("true", True), ("1", True), ("False", False), ("", False)])
def test_flags_from_the_environment(text, expected):
    assert parse(DEDICATE_CLAMP_MAX_TOKENS=text).clamp_max_tokens is expected


def test_an_empty_variable_is_an_absent_one():
    settings = parse(DEDICATE_REVISION="", DEDICATE_PORT="", DEDICATE_API_KEYS_DIR="")
    assert (settings.revision, settings.port, settings.api_keys_dir) == (None, 8000, None)


@pytest.mark.parametrize(
    ("model", "given", "names"),
    [
        ("/models/qwen", [], ("qwen",)),
        ("/models/qwen/", [], ("qwen",)),
        ("/models/qwen", ["Qwen/Qwen2"], ("Qwen/Qwen2",)),
        ("hf://Qwen/Qwen2", [], ("Qwen/Qwen2",)),
        ("hf://Qwen/Qwen2", ["short", "other"], ("short", "other", "Qwen/Qwen2")),
        ("hf://Qwen/Qwen2", ["Qwen/Qwen2", "short"], ("Qwen/Qwen2", "short")),
    ],
)
def test_served_names(model, given, names):
    arguments = [item for name in given for item in ("--served-model-name", name)]
    settings = parse_settings(["--model", model, "--dedicate", "x", "--auth", "none", *arguments], {})
    assert settings.served_model_names == names
    from_environment = parse_settings(
        ["--model", model, "--dedicate", "x", "--auth", "none"], {"DEDICATE_SERVED_MODEL_NAME": ", ".join(given)}
    )
    assert from_environment.served_model_names == names


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--port", "x"),
        ("--port", "65536"),
        ("--port", "-1"),
        ("--max-model-len", "0"),
        ("--max-num-seqs", "0"),
        ("--max-queued-requests", "-1"),
        ("--max-num-batched-tokens", "1e3"),
        ("--kv-cache-tokens", "9" * 30),
        ("--drain-seconds", "-1"),
        ("--drain-seconds", "nan"),
        ("--stall-seconds", "0.5"),
        ("--dtype", "int4"),
        ("--device", "tpu"),
        ("--auth", "maybe"),
        ("--log-level", "loud"),
        ("--sampling-defaults", "best"),
        ("--dedicate", "Chat"),
        ("--dedicate", "a/b"),
        ("--dedicate", "v1"),
        ("--dedicate", "x" * 41),
        ("--model", "hf://only-a-name"),
        ("--model", "s3://bucket/model"),
        ("--model", ""),
        ("--served-model-name", ""),
        ("--host", ""),
    ],
)
def test_value_that_cannot_be_used_is_refused_by_name(option, value):
    sentence = refusal(option, value)
    assert option in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence


def test_environment_is_checked_like_the_command_line():
    assert "--port" in refusal(DEDICATE_PORT="x")
    assert "DEDICATE_TRUST_REMOTE_CODE" in refusal(DEDICATE_TRUST_REMOTE_CODE="perhaps")


@pytest.mark.parametrize("arguments", [["--ports", "1"], ["--max-model", "5"], ["stray"], ["-x"]])
def test_unknown_options_are_refused(arguments):
    assert arguments[0] in refusal(*arguments)


@pytest.mark.parametrize("missing", ["--model", "--dedicate"])
def test_missing_required_option_is_refused(missing):
    index = REQUIRED.index(missing)
    assert missing in refusal(required=REQUIRED[:index] + REQUIRED[index + 2 :])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--auth", "api-key"], "--api-keys-dir"),
        (["--api-keys-dir", "/no/such/folder"], "--api-keys-dir"),
        (["--port", "9000"], "--management-port"),
        (["--max-num-batched-tokens", "4"], "--max-num-seqs"),
        (["--revision", "main"], "--revision"),
        (["--quantization", "int8", "--device", "cuda"], "--quantization"),
    ],
)
def test_values_that_do_not_go_together_are_refused(arguments, named):
    assert named in refusal(*arguments)


def test_failure_file_is_found_although_other_options_are_wrong():
    assert failure_file_of(["--port", "x", "--failure-file", "/tmp/why"], {}) == Path("/tmp/why")
    assert failure_file_of(["--port", "x"], {"DEDICATE_FAILURE_FILE": "/tmp/why"}) == Path("/tmp/why")
    assert failure_file_of(["--failure-file"], {}) is None


def test_engine_config_carries_what_the_engine_needs():
    config = parse("--max-num-seqs", "3", "--device", "cpu").engine_config()
    assert (config.max_num_seqs, config.device, config.model) == (3, DeviceChoice.CPU, "/models/some")
