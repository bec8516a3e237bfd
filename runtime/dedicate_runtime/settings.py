"""The runtime's options, from the command line and the environment, as one frozen value.

The table of options is docs/contract.md. Nothing here touches the model, the network or a device; a value that cannot
be used ends the start with exit code 2 and a sentence that names the option.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from dedicate_runtime.core.config import (
    AttentionChoice,
    DeviceChoice,
    DtypeChoice,
    EngineConfig,
    QuantizationChoice,
)
from dedicate_runtime.errors import ExitCode, StartError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

HUB_SCHEME = "hf://"
_ENVIRONMENT_PREFIX = "DEDICATE_"
_SEGMENT = re.compile(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?")
"""A DNS label of 40 characters or fewer, as the custom resource has it."""
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_RESERVED_SEGMENTS = frozenset({"v1", "docs", "healthz", "readyz", "metrics"})
_WORDS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False, "": False}

ChoiceT = TypeVar("ChoiceT", bound=Enum)


class SamplingSource(Enum):
    """Where sampling parameters that a request leaves out come from."""

    SPECIFICATION = "specification"
    MODEL = "model"


class AuthMode(Enum):
    """Whether requests need a key."""

    API_KEY = "api-key"
    NONE = "none"


class LogLevel(Enum):
    """The least severe records that are written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every option of the runtime, checked. `served_model_names` is never empty; its first is the one reported."""

    model: str
    revision: str | None
    served_model_names: tuple[str, ...]
    dedicate: str
    dtype: DtypeChoice
    quantization: QuantizationChoice
    attention_backend: AttentionChoice
    deterministic: bool
    disable_prefix_cache: bool
    max_model_len: int | None
    device: DeviceChoice
    trust_remote_code: bool
    sampling_defaults: SamplingSource
    clamp_max_tokens: bool
    auth: AuthMode
    api_keys_dir: Path | None
    limits_file: Path | None
    host: str
    port: int
    management_port: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_queued_requests: int
    max_queued_tokens: int
    max_queue_seconds: float
    request_timeout_seconds: float
    kv_cache_tokens: int | None
    stall_seconds: float
    drain_seconds: float
    failure_file: Path | None
    log_level: LogLevel
    log_prompts: bool

    def engine_config(self) -> EngineConfig:
        """Gives the part of the settings that the engine process needs."""
        return EngineConfig(
            model=self.model,
            revision=self.revision,
            device=self.device,
            dtype=self.dtype,
            trust_remote_code=self.trust_remote_code,
            max_model_len=self.max_model_len,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            max_queued_requests=self.max_queued_requests,
            kv_cache_tokens=self.kv_cache_tokens,
            quantization=self.quantization,
            attention_backend=self.attention_backend,
            is_deterministic=self.deterministic,
            has_prefix_cache=not self.disable_prefix_cache,
            max_queued_tokens=self.max_queued_tokens,
            max_queue_seconds=self.max_queue_seconds,
        )


def parse_settings(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Reads the options; the command line wins over the environment.

    Raises:
        StartError: an option is unknown, missing or out of range; the sentence names it.
    """
    parsed = vars(_build_parser(environment).parse_args(list(arguments)))
    names = parsed.pop("served_model_name") or environment.get("DEDICATE_SERVED_MODEL_NAME", "").split(",")
    parsed["served_model_names"] = _served_model_names(parsed["model"], names)
    settings = Settings(**parsed)
    _check_together(settings)
    return settings


def failure_file_of(arguments: Sequence[str], environment: Mapping[str, str]) -> Path | None:
    """Finds `--failure-file` even where other options are wrong, so that their sentence can be written there."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--failure-file", type=Path, default=environment.get("DEDICATE_FAILURE_FILE") or None)
    try:
        known, _ = parser.parse_known_args(list(arguments))
    except StartError:
        return None
    return Path(known.failure_file) if known.failure_file else None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _refusal(message[:1].upper() + message[1:])


def _refusal(sentence: str) -> StartError:
    return StartError(ExitCode.INVALID_ARGUMENTS, sentence if sentence.endswith(".") else f"{sentence}.")


def _build_parser(environment: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = _Parser(prog="dedicate-runtime", description=__doc__, allow_abbrev=False)

    def option(name: str, parse: Callable[[str], object], default: str | None, help_: str) -> None:
        # argparse parses defaults that are strings, so a value from the environment is checked like any other.
        parser.add_argument(name, type=parse, default=environment.get(_variable(name)) or default, help=help_)

    def required(name: str, parse: Callable[[str], object], help_: str) -> None:
        value = environment.get(_variable(name)) or None
        parser.add_argument(name, type=parse, default=value, required=value is None, help=help_)

    def flag(name: str, help_: str) -> None:
        from_environment = _flag(_variable(name), environment.get(_variable(name), ""))
        parser.add_argument(name, action="store_true", default=from_environment, help=help_)

    required("--model", _model, "a folder, or hf://org/name")
    option("--revision", str, None, "branch, tag or commit of a hub repository")
    parser.add_argument(
        "--served-model-name",
        action="append",
        type=_not_empty,
        help="a name that `model` accepts; repeatable, the first is the one reported (environment: comma-separated)",
    )
    required("--dedicate", _segment, "URL segment: routes live under /{dedicate}")
    option("--dtype", _choice(DtypeChoice), "auto", "auto, float32, bfloat16 or float16")
    option("--quantization", _choice(QuantizationChoice), "none", "none or int8 (weights, at load; CPU only)")
    option("--attention-backend", _choice(AttentionChoice), "auto", "auto, torch, native (CPU) or triton (CUDA)")
    flag("--deterministic", "the same bits for the same request, whatever else is computed")
    flag("--disable-prefix-cache", "compute every prompt anew")
    option("--max-model-len", _integer(1), None, "longest prompt plus completion, in tokens")
    option("--device", _choice(DeviceChoice), "auto", "auto, cuda or cpu")
    flag("--trust-remote-code", "run modelling code that comes with the repository")
    option("--sampling-defaults", _choice(SamplingSource), "specification", "specification or model")
    flag("--clamp-max-tokens", "clamp an explicit max_tokens over the context instead of refusing it")
    option("--auth", _choice(AuthMode), "api-key", "api-key or none")
    option("--api-keys-dir", Path, None, "folder with one file a key: its name is the client's id")
    option("--limits-file", Path, None, "rates and concurrency by client, as YAML")
    option("--host", _not_empty, "0.0.0.0", "address of both ports")  # noqa: S104 - a pod serves its network
    option("--port", _integer(0, 65535), "8000", "port of the API; 0 takes a free one")
    option("--management-port", _integer(0, 65535), "9000", "port of probes and metrics; 0 takes a free one")
    option("--max-num-seqs", _integer(1), "32", "sequences in one step")
    option("--max-num-batched-tokens", _integer(1), "512", "tokens in one step")
    option("--max-queued-requests", _integer(0), "256", "waiting sequences; beyond it 429")
    option("--max-queued-tokens", _integer(1), "1048576", "prompt tokens of waiting sequences; beyond it 429")
    option("--max-queue-seconds", _positive_seconds, "60", "expected wait for a first step; beyond it 429")
    option(
        "--request-timeout-seconds", _positive_seconds, "3600", "most time for one request; clients may ask for less"
    )
    option("--kv-cache-tokens", _integer(1), None, "tokens that the KV cache holds")
    option(
        "--stall-seconds", _positive_seconds, "120", "a step that takes longer hangs, and the engine is started again"
    )
    option("--drain-seconds", _seconds, "300", "from SIGTERM to the end of what still runs")
    option("--failure-file", Path, None, "where the sentence of a failed start is written")
    option("--log-level", _choice(LogLevel), "info", "debug, info, warning or error")
    flag("--log-prompts", "write prompts and answers to the access log")
    return parser


def _variable(option: str) -> str:
    return _ENVIRONMENT_PREFIX + option.removeprefix("--").replace("-", "_").upper()


def _served_model_names(model: str, given: list[str]) -> tuple[str, ...]:
    """Joins the given names and the repository's own: a hub repository's id always works, a folder's only alone."""
    names = [name.strip() for name in given if name.strip()]
    if model.startswith(HUB_SCHEME):
        names.append(model.removeprefix(HUB_SCHEME))
    return tuple(dict.fromkeys(names)) or (Path(model).name or model,)


def _check_together(settings: Settings) -> None:
    """Refuses values that are fine alone and wrong together."""
    if settings.auth is AuthMode.API_KEY and settings.api_keys_dir is None:
        raise _refusal("--api-keys-dir is needed with --auth api-key")
    if settings.api_keys_dir is not None and not settings.api_keys_dir.is_dir():
        raise _refusal(f"--api-keys-dir {settings.api_keys_dir} is not a folder")
    if settings.port == settings.management_port != 0:
        raise _refusal("--port and --management-port must differ")
    if settings.max_num_batched_tokens < settings.max_num_seqs:
        raise _refusal("--max-num-batched-tokens must be at least --max-num-seqs")
    if settings.quantization is QuantizationChoice.INT8 and settings.device is DeviceChoice.CUDA:
        raise _refusal("--quantization int8 is for the CPU only, and --device is cuda")
    if settings.revision is not None and not settings.model.startswith(HUB_SCHEME):
        raise _refusal("--revision is for hf:// models only")


def _model(text: str) -> str:
    if text.startswith(HUB_SCHEME):
        if not _HUB_NAME.fullmatch(text.removeprefix(HUB_SCHEME)):
            raise argparse.ArgumentTypeError(f"must be a folder or hf://org/name, not {text!r}")
        return text
    if not text or "://" in text:
        raise argparse.ArgumentTypeError(f"must be a folder or hf://org/name, not {text!r}")
    return text.rstrip("/") or "/"


def _segment(text: str) -> str:
    if not _SEGMENT.fullmatch(text) or text in _RESERVED_SEGMENTS:
        raise argparse.ArgumentTypeError(
            f"must be lower-case letters, digits and '-', at most 40, and none of "
            f"{', '.join(sorted(_RESERVED_SEGMENTS))}, not {text!r}"
        )
    return text


def _not_empty(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def _flag(variable: str, text: str) -> bool:
    try:
        return _WORDS[text.lower()]
    except KeyError:
        raise _refusal(f"{variable} must be true or false, not {text!r}") from None


def _integer(lowest: int, highest: int | None = None) -> Callable[[str], int]:
    bounds = f"of {lowest} or more" if highest is None else f"from {lowest} to {highest}"

    def parse(text: str) -> int:
        if re.fullmatch(r"[+-]?\d{1,18}", text) is None:
            raise argparse.ArgumentTypeError(f"must be an integer {bounds}, not {text!r}")
        value = int(text)
        if value < lowest or (highest is not None and value > highest):
            raise argparse.ArgumentTypeError(f"must be an integer {bounds}, not {text!r}")
        return value

    return parse


def _seconds(text: str) -> float:
    if re.fullmatch(r"\d{1,9}(\.\d+)?", text) is None:
        raise argparse.ArgumentTypeError(f"must be a number of seconds of 0 or more, not {text!r}")
    return float(text)


def _positive_seconds(text: str) -> float:
    seconds = _seconds(text)
    if seconds < 1:
        raise argparse.ArgumentTypeError(f"must be a number of seconds of 1 or more, not {text!r}")
    return seconds


def _choice(choices: type[ChoiceT]) -> Callable[[str], ChoiceT]:
    def parse(text: str) -> ChoiceT:
        try:
            return choices(text)
        except ValueError:
            names = ", ".join(str(choice.value) for choice in choices)
            raise argparse.ArgumentTypeError(f"must be one of {names}, not {text!r}") from None

    return parse
