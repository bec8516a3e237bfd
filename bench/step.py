"""`make bench-steps`: where the time of one step goes, beside the floor of each part.

The worker is put together in this process from its own parts and fed real batches. The fused layers' timers tell what
they do; the head and the layers of the torch path are timed by forward hooks; sampling is what a step takes beyond its
logits; Python is what the engine takes beyond its steps. A floor is the bytes that must be read or the products that
must be computed, over what bench/probe.py measures of this machine in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from bench.load import build_prompts
from bench.probe import Peaks, measure_peaks
from bench.prompts import PromptCounter
from dedicate_runtime.core.batch import RowResult, ScheduledBatch
from dedicate_runtime.core.config import AttentionChoice, DeviceChoice, DtypeChoice, EngineConfig, QuantizationChoice
from dedicate_runtime.core.request import ModelInfo, Request, RequestId, SamplingParams, SequenceOutput
from dedicate_runtime.engine.build import assemble_engine
from dedicate_runtime.engine.engine import Engine
from dedicate_runtime.engine.wire import Stepped, decode_from_engine, encode
from dedicate_runtime.worker.backends import Backend, NativeBackend, choose_backend
from dedicate_runtime.worker.checkpoint import check_folder
from dedicate_runtime.worker.loader import LoadedModel, choose_device, load_model, read_config
from dedicate_runtime.worker.machine import count_usable_cpus
from dedicate_runtime.worker.model_check import inspect_layers
from dedicate_runtime.worker.model_runner import ModelRunner
from dedicate_runtime.worker.results import find_logit_positions
from dev.model.api import ensure_model

_MAX_MODEL_LEN = 1024
_NUM_BLOCKS = 2048
_STEPS, _WARM_STEPS = 48, 8
_PREFILL_TOKENS = 512
_FRAME_HEAD_BYTES = 4


class TimedRunner:
    """A runner that times its steps, and each second one's logits alone before it: the rest is sampling.

    A step is computed twice then; the same keys and values are written to the same places, so nothing changes.
    """

    max_steps_ahead = 0

    def __init__(self, runner: ModelRunner, take_timers: Callable[[], dict[str, float]]) -> None:
        self._runner = runner
        self._take_timers = take_timers
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)

    def launch(self, batch: ScheduledBatch) -> _Done:
        """Computes a step."""
        began = time.perf_counter()
        results = self._runner.execute(batch)
        self.seconds["step"].append(time.perf_counter() - began)
        self._take_timers()
        began = time.perf_counter()
        with torch.inference_mode():
            self._runner.compute_logits(batch, find_logit_positions(batch))
        self.seconds["logits"].append(time.perf_counter() - began)
        for kind, seconds in self._take_timers().items():
            self.seconds[kind].append(seconds)
        return _Done(results=results)

    def forget(self) -> None:
        """Drops what was measured: it was the warm-up."""
        self.seconds.clear()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Done:
    results: list[RowResult]

    def wait(self) -> list[RowResult]:
        return self.results


class HookTimers:
    """Seconds in modules, by kind, from forward hooks."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._began = 0.0

    def watch(self, module: torch.nn.Module, kind: str) -> None:
        """Adds the time of each call of `module` to `kind`."""

        def before(*_: object) -> None:
            self._began = time.perf_counter()

        def after(*_: object) -> None:
            self._seconds[kind] += time.perf_counter() - self._began

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)

    def take(self) -> dict[str, float]:
        """Gives the seconds since the last call."""
        taken = dict(self._seconds)
        self._seconds.clear()
        return taken


@dataclass(frozen=True, slots=True, kw_only=True)
class Workbench:
    """A loaded model with its runner, and what to weigh its time against."""

    config: EngineConfig
    loaded: LoadedModel
    backend: Backend
    runner: ModelRunner
    take_timers: Callable[[], dict[str, float]]
    weight_bytes: int
    """Of all linear layers, the head among them."""
    head_bytes: int
    products: int
    """Multiplications of one token in the layers, the head left out."""


def load_workbench(model: Path, quantization: QuantizationChoice, attention: AttentionChoice) -> Workbench:
    """Puts a worker together as the runtime does, without its checks."""
    torch.set_num_threads(count_usable_cpus())
    config = EngineConfig(
        model=str(model),
        device=DeviceChoice.CPU,
        dtype=DtypeChoice.FLOAT32,
        quantization=quantization,
        attention_backend=attention,
        max_num_seqs=32,
        max_num_batched_tokens=_PREFILL_TOKENS,
        max_queued_requests=64,
        max_model_len=_MAX_MODEL_LEN,
        has_prefix_cache=False,
    )
    device = choose_device(config.device)
    loaded = load_model(check_folder(model), read_config(model, trust_remote_code=False), config, device)
    net: Any = loaded.model
    linears = [module for module in net.modules() if isinstance(module, torch.nn.Linear)]
    head = net.get_output_embeddings()
    num_weights = sum(module.weight.numel() for module in linears)
    bytes_per_weight = 1 if quantization is QuantizationChoice.INT8 else 4
    layers = inspect_layers(loaded.model, device)
    backend = choose_backend(config, loaded, layers)
    timers = HookTimers()
    timers.watch(net.get_output_embeddings(), "head")
    if not isinstance(backend, NativeBackend):
        for module in net.modules():
            if isinstance(module, torch.nn.Linear) and module is not head:
                timers.watch(module, "projections")

    def take_timers() -> dict[str, float]:
        native = backend.model.take_timers() if isinstance(backend, NativeBackend) else {}
        return native | timers.take()

    return Workbench(
        config=config,
        loaded=loaded,
        backend=backend,
        runner=backend.make_runner(_NUM_BLOCKS),
        take_timers=take_timers,
        weight_bytes=num_weights * bytes_per_weight,
        head_bytes=head.weight.numel() * bytes_per_weight,
        products=num_weights - head.weight.numel(),
    )


def build_bench_engine(bench: Workbench, runner: Any) -> Engine:
    """Gives an engine before `runner`."""
    info = ModelInfo(
        folder=bench.config.model,
        vocab_size=bench.loaded.vocab_size,
        max_model_len=_MAX_MODEL_LEN,
        dtype="float32",
        device="cpu",
        attention_backend=bench.backend.name,
        num_kv_blocks=_NUM_BLOCKS,
        block_size=bench.config.block_size,
    )
    return assemble_engine(bench.config, info, runner, None)


def submit(engine: Engine, prompts: Sequence[Sequence[int]], max_tokens: int) -> None:
    """Queues one request for each prompt, sampled as by default, each with a seed of its own."""
    for index, prompt in enumerate(prompts):
        sampling = SamplingParams(max_tokens=max_tokens, end_ids=frozenset(), seed=index)
        request = Request(request_id=RequestId(f"r{index}"), prompt_token_ids=tuple(prompt), sampling=sampling)
        refusals = engine.submit([request])
        assert not refusals, refusals


def measure_decode(bench: Workbench, prompts: Sequence[Sequence[int]]) -> dict[str, float]:
    """Milliseconds of one decode step of `len(prompts)` rows, by part; medians."""
    runner = TimedRunner(bench.runner, bench.take_timers)
    engine = build_bench_engine(bench, runner)
    submit(engine, prompts, _STEPS + _WARM_STEPS + 32)
    while engine.stats.num_generated_tokens < len(prompts) * (_WARM_STEPS + 1):
        engine.step()
    runner.forget()
    whole, frames = [], []
    for _ in range(_STEPS):
        began = time.perf_counter()
        outputs = engine.step()
        whole.append(time.perf_counter() - began)
        frames.append(_time_frames(outputs, engine))
    return _to_parts(runner, whole, frames)


def measure_prefill(bench: Workbench) -> dict[str, float]:
    """Milliseconds of one step that computes a prompt of 512 tokens, by part."""
    runner = TimedRunner(bench.runner, bench.take_timers)
    engine = build_bench_engine(bench, runner)
    whole: list[float] = []
    frames: list[float] = []
    for index in range(4):
        if index == 1:
            runner.forget()
            whole.clear()
            frames.clear()
        submit(engine, [[(7 * position + index) % 4096 for position in range(_PREFILL_TOKENS)]], 1)
        while engine.has_work:
            began = time.perf_counter()
            outputs = engine.step()
            whole.append(time.perf_counter() - began)
            frames.append(_time_frames(outputs, engine))
    return _to_parts(runner, whole, frames)


def _time_frames(outputs: list[SequenceOutput], engine: Engine) -> float:
    """Seconds to write a step's outputs into a frame and to read them out again."""
    began = time.perf_counter()
    decode_from_engine(encode(Stepped(outputs=outputs, stats=engine.stats))[_FRAME_HEAD_BYTES:])
    return time.perf_counter() - began


def _to_parts(runner: TimedRunner, whole: Sequence[float], frames: Sequence[float]) -> dict[str, float]:
    steps, logits_only = runner.seconds["step"], runner.seconds["logits"]
    medians = {kind: 1000 * statistics.median(values) for kind, values in runner.seconds.items()}
    # A step is computed once more for its logits, which is no part of it.
    python = statistics.median(a - b - c for a, b, c in zip(whole, steps, logits_only, strict=True))
    sampling = statistics.median(a - b for a, b in zip(steps, logits_only, strict=True))
    logits = medians["logits"]
    linears = sum(medians.pop(kind, 0.0) for kind in ("projections", "feed_forward"))
    head, attention = medians.pop("head", 0.0), medians.pop("attention", 0.0)
    rest = max(logits - linears - head - attention, 0.0)
    return {
        "linears": linears,
        "head": head,
        "attention": attention,
        "element-wise and the rest of the forward": rest,
        "sampling": max(1000 * sampling, 0.0),
        "Python": max(1000 * python, 0.0),
        "IPC": 1000 * statistics.median(frames),
    }


def find_floors(bench: Workbench, peaks: Peaks, *, num_rows: int, num_tokens: int) -> dict[str, float]:
    """Milliseconds that linears and head take at least: to read their weights, or to multiply by them."""
    is_int8 = bench.config.quantization is QuantizationChoice.INT8
    rate = (peaks.int8_ops_per_s or peaks.f32_flops_per_s) if is_int8 else peaks.f32_flops_per_s
    body = max((bench.weight_bytes - bench.head_bytes) / peaks.read_bytes_per_s, 2 * bench.products * num_tokens / rate)
    head_products = bench.head_bytes // (1 if is_int8 else 4)
    head = max(bench.head_bytes / peaks.read_bytes_per_s, 2 * head_products * num_rows / rate)
    return {"linears": 1000 * body, "head": 1000 * head}


def format_steps(columns: dict[str, tuple[dict[str, float], dict[str, float]]]) -> str:
    """Gives a Markdown table: a row a part, a column a kind of step, `measured (floor)` in milliseconds."""
    parts = list(next(iter(columns.values()))[0])
    lines = ["| ms | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for part in parts:
        cells = [
            f"{measured[part]:.2f}" + (f" ({floors[part]:.2f})" if part in floors else "")
            for measured, floors in columns.values()
        ]
        lines.append(f"| {part} | " + " | ".join(cells) + " |")
    totals = [f"{sum(measured.values()):.2f}" for measured, _ in columns.values()]
    return "\n".join([*lines, "| **step** | " + " | ".join(totals) + " |"])


def measure_throughput(bench: Workbench, prompts: Sequence[Sequence[int]]) -> float:
    """Tokens a second of the engine alone, prefill included, for 128 new tokens of each prompt; best of two."""
    speeds = []
    for _ in range(2):
        engine = build_bench_engine(bench, bench.runner)
        submit(engine, prompts, 128)
        began = time.perf_counter()
        while engine.has_work:
            engine.step()
        speeds.append(128 * len(prompts) / (time.perf_counter() - began))
    return round(max(speeds), 1)


def main() -> int:
    """Prints the table, or the throughput of the engine alone as JSON."""
    arguments = _parse_arguments()
    model = ensure_model()
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    texts = build_prompts(3, 32, PromptCounter(model, tokenizer).count)
    prompts = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    bench = load_workbench(
        model, QuantizationChoice(arguments.quantization), AttentionChoice(arguments.attention_backend)
    )
    if arguments.throughput:
        print(json.dumps({count: measure_throughput(bench, prompts[:count]) for count in (1, 8, 32)}))
        return 0
    peaks = measure_peaks()
    columns = {
        f"decode, B = {rows}": (
            measure_decode(bench, prompts[:rows]),
            find_floors(bench, peaks, num_rows=rows, num_tokens=rows),
        )
        for rows in (1, 8, 32)
    }
    columns["prefill, 512 tokens"] = (
        measure_prefill(bench),
        find_floors(bench, peaks, num_rows=1, num_tokens=_PREFILL_TOKENS),
    )
    print(f"{bench.backend.name}, weights {arguments.quantization}, {count_usable_cpus()} threads")
    print(
        f"measured peaks: {peaks.read_bytes_per_s / 2**30:.1f} GiB/s, {peaks.f32_flops_per_s / 1e9:.0f} GFLOP/s, "
        f"int8 {(peaks.int8_ops_per_s or 0) / 1e9:.0f} GOP/s"
    )
    print(format_steps(columns))
    return 0


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.step", description=__doc__)
    parser.add_argument("--quantization", choices=["none", "int8"], default="none")
    parser.add_argument("--attention-backend", choices=["auto", "torch", "native"], default="auto")
    parser.add_argument("--throughput", action="store_true", help="only the engine's tok/s at 1, 8 and 32, as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
