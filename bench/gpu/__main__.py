"""`python -m bench.gpu`: the engine on a CUDA device in one command, from torch, transformers and triton alone.

Checks first, then the machine's ceilings, decode, prefill, and transformers' own ways to generate. Every part is
written to the record as soon as it is there; a part that fails is reported and the others go on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
import traceback
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.gpu.subject import Scale

# From a bare checkout: nothing is installed there.
sys.path.insert(0, str(Path(__file__).parents[2] / "runtime"))


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="fewer batches and steps")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, for machines without a device")
    parser.add_argument("--check", action="store_true", help="the checks alone; ends with 1 if one fails")
    parser.add_argument("--no-peers", action="store_true", help="leave transformers' own ways out")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")), help="folder of bench-gpu.json")
    parser.add_argument("--peer", choices=("generate", "continuous"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        # Before triton is imported: kernels are made for the compiler or for the interpreter.
        os.environ["TRITON_INTERPRET"] = "1"
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    return arguments


class _Record:
    """The JSON file, rewritten after every part."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "bench-gpu.json"
        self.parts: dict[str, Any] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, compute: Callable[[], Any]) -> Any:
        """Computes a part; its failure is its result."""
        started = time.monotonic()
        try:
            self.parts[name] = compute()
        except Exception as error:  # noqa: BLE001 - the other parts go on
            traceback.print_exc()
            self.parts[name] = {"error": f"{type(error).__name__}: {error}"[:1000]}
        print(f"{name}: {time.monotonic() - started:.1f} s {json.dumps(self.parts[name])[:300]}", flush=True)
        self._file.write_text(json.dumps(self.parts, indent=1) + "\n")
        return self.parts[name]


def _describe(device: Any) -> dict[str, Any]:
    import torch  # noqa: PLC0415 - after the environment is set
    import transformers  # noqa: PLC0415
    import triton  # type: ignore[import-untyped]  # noqa: PLC0415

    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "torch": torch.__version__,
        "triton": triton.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def _measure(arguments: argparse.Namespace, record: _Record, device: Any) -> None:
    from bench.gpu import peers, report  # noqa: PLC0415 - after the environment is set

    scale = _choose_scale(arguments)
    record.add("ours", lambda: _measure_ours(scale, record, device))
    if not arguments.no_peers:
        flags = ["--device", arguments.device]
        flags += [flag for flag, is_set in (("--tiny", arguments.tiny), ("--quick", arguments.quick)) if is_set]
        for name in peers.PEERS:
            record.add(name, partial(peers.run_peer, name, flags))
    print(report.format_table(record.parts, scale))


def _measure_ours(scale: Scale, record: _Record, device: Any) -> dict[str, float]:
    """Ceilings, prefill and decode, each a part of its own; returns what starting took."""
    import torch  # noqa: PLC0415

    from bench.gpu import measure, subject  # noqa: PLC0415
    from dedicate_runtime.worker.attention import IMPLEMENTATION  # noqa: PLC0415

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    ceilings = measure.measure_ceilings(device, dtype)
    record.add("ceilings", partial(asdict, ceilings))
    started = time.monotonic()
    model = subject.make_model(scale.config, device, dtype, IMPLEMENTATION)
    ours = subject.make_subject(
        model,
        max_num_seqs=max(scale.batches),
        max_model_len=max(scale.context + scale.max_tokens, scale.prefill_tokens + 16),
        max_num_batched_tokens=scale.prefill_tokens,
        tokens_per_seq=scale.context + scale.max_tokens,
    )
    ready_s = time.monotonic() - started
    record.add("prefill", partial(measure.measure_prefill, ours, scale, ceilings))
    for batch in scale.batches:
        record.add(f"decode {batch}", partial(measure.measure_decode, ours, model, batch, scale, ceilings))
    record.add("whole", partial(measure.measure_whole, ours, scale))
    return {"ready_s": ready_s, "capture_s": ours.capture_s}


def _choose_scale(arguments: argparse.Namespace) -> Scale:
    from bench.gpu import subject  # noqa: PLC0415

    if arguments.tiny:
        return subject.TINY
    return subject.QUICK if arguments.quick else subject.FULL


def main() -> int:
    """Runs what the arguments ask for and returns the exit code."""
    arguments = _parse_arguments()
    import torch  # noqa: PLC0415

    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("No CUDA device is usable here; --device cpu --tiny runs the same on the CPU.", file=sys.stderr)
        return 2
    # With its index: what is made on the device reports it so.
    device = torch.device("cuda", 0) if arguments.device == "cuda" else torch.device("cpu")
    if arguments.peer:
        from bench.gpu import peers  # noqa: PLC0415

        peers.print_peer(
            arguments.peer, _choose_scale(arguments), device, torch.bfloat16 if device.type == "cuda" else torch.float32
        )
        return 0
    from bench.gpu import checks  # noqa: PLC0415

    record = _Record(arguments.out)
    record.add("about", lambda: _describe(device))
    results = record.add("checks", lambda: checks.run_checks(device))
    has_failed = "error" in results or any("failed" in result for result in results.values())
    if not arguments.check:
        _measure(arguments, record, device)
    for name, result in results.items():
        print(f"{name:24} {result}")
    return int(has_failed)


if __name__ == "__main__":
    sys.exit(main())
