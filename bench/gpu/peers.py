"""transformers' own ways to generate, with the same model and prompts, each in a process that may fail alone."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from bench.gpu.measure import summarise_whole, synchronize
from bench.gpu.subject import Scale, make_model, make_requests

PEERS = ("generate", "continuous")
_TIMEOUT_S = 150
_MARK = "PEER-RESULT "


def run_peer(name: str, arguments: list[str]) -> dict[str, Any]:
    """Figures of one peer, or `error`."""
    command = [sys.executable, "-m", "bench.gpu", "--peer", name, *arguments]
    try:
        ended = subprocess.run(
            command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"took over {_TIMEOUT_S} s"}
    for line in ended.stdout.splitlines():
        if line.startswith(_MARK):
            result: dict[str, Any] = json.loads(line.removeprefix(_MARK))
            return result
    return {"error": (ended.stderr.strip().splitlines() or ["no result"])[-1][:300]}


def print_peer(name: str, scale: Scale, device: torch.device, dtype: torch.dtype) -> None:
    """What the child process does."""
    model = make_model(scale.config, device, dtype, "sdpa")
    measure = {"generate": _measure_generate, "continuous": _measure_continuous}[name]
    measure(model, scale, 2)
    seconds = measure(model, scale, scale.peer_tokens)
    first_s = measure(model, scale, 1) if name == "generate" else None
    result = summarise_whole(scale, seconds)
    if first_s is not None and scale.peer_tokens > 1:
        result["decode_tokens_per_s"] = scale.peer_batch * (scale.peer_tokens - 1) / max(seconds - first_s, 1e-9)
    print(_MARK + json.dumps(result), flush=True)


def _make_prompts(scale: Scale) -> list[list[int]]:
    requests = make_requests(scale.peer_batch, scale.context, scale.config.vocab_size, max_tokens=1, first=20_000)
    return [list(request.prompt_token_ids) for request in requests]


def _make_generation_config(num_tokens: int, **others: Any) -> Any:
    make: Any = GenerationConfig
    return make(
        max_new_tokens=num_tokens, do_sample=True, temperature=0.7, top_k=40, top_p=0.7, pad_token_id=0, **others
    )


def _measure_generate(model: Any, scale: Scale, num_tokens: int) -> float:
    prompts = torch.tensor(_make_prompts(scale), device=model.device)
    generation = _make_generation_config(num_tokens, min_new_tokens=num_tokens, eos_token_id=None)
    synchronize(model.device)
    started = time.perf_counter()
    with torch.inference_mode():
        model.generate(prompts, attention_mask=torch.ones_like(prompts), generation_config=generation)
    synchronize(model.device)
    return time.perf_counter() - started


def _measure_continuous(model: Any, scale: Scale, num_tokens: int) -> float:
    # An end token that is never sampled: the length alone ends a sequence.
    generation = _make_generation_config(num_tokens, eos_token_id=-1)
    prompts = _make_prompts(scale)
    outputs = model.generate_batch(inputs=prompts, generation_config=generation)
    # From the first request's arrival to the last one's end: its start-up, graphs included, is left out as ours is.
    created = min(output.created_time for output in outputs.values())
    seconds: float = max(output.lifespan[1] for output in outputs.values()) - created
    num_generated = sum(len(output.generated_tokens) for output in outputs.values())
    if num_generated != scale.peer_batch * num_tokens:
        raise RuntimeError(f"{num_generated} tokens came of {scale.peer_batch * num_tokens}")
    return seconds
