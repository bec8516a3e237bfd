"""The table: floor, target and what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.gpu.measure import PREFILL_TARGET

if TYPE_CHECKING:
    from bench.gpu.subject import Scale


def format_table(parts: dict[str, Any], scale: Scale) -> str:
    """One line a batch size, then prefill and the comparison."""
    lines = []
    ceilings = parts.get("ceilings", {})
    if "bytes_per_s" in ceilings:
        lines.append(
            f"copy {ceilings['bytes_per_s'] / 1e12:.2f} TB/s, matrices {ceilings['flops_per_s'] / 1e12:.0f} TFLOP/s"
        )
    titles = ("context", "floor ms", "step ms", "tok/s", "roofline", "share", "target")
    lines.append(f"{'batch':>6} " + " ".join(f"{title:>9}" for title in titles))
    for batch in scale.batches:
        result = parts.get(f"decode {batch}", {"error": "not run"})
        if "error" in result:
            lines.append(f"{batch:>6} {result['error']}")
            continue
        target = result["target_tokens_per_s"]
        cells = (
            f"{result['context']:.0f}",
            f"{result['floor_s'] * 1e3:.2f}",
            f"{result['step_s'] * 1e3:.2f}",
            f"{result['tokens_per_s']:.0f}",
            f"{result['roofline_tokens_per_s']:.0f}",
            f"{result['tokens_per_s'] / result['roofline_tokens_per_s']:.0%}",
            "-" if target is None else str(target),
        )
        lines.append(f"{batch:>6} " + " ".join(f"{cell:>9}" for cell in cells))
    prefill = parts.get("prefill", {"error": "not run"})
    if "error" in prefill:
        lines.append(f"prefill: {prefill['error']}")
    else:
        lines.append(
            f"prefill of {prefill['tokens']}: {prefill['seconds'] * 1e3:.1f} ms, "
            f"{prefill['share_of_matrix_rate']:.0%} of the matrix rate (target {PREFILL_TARGET:.0%})"
        )
    lines += _compare(parts)
    return "\n".join(lines)


def _compare(parts: dict[str, Any]) -> list[str]:
    ours = parts.get("whole", {})
    lines = []
    for name in ("whole", "generate", "continuous"):
        result = parts.get(name)
        if result is None:
            continue
        label = {"whole": "ours", "generate": "generate()", "continuous": "continuous batching"}[name]
        if "error" in result:
            lines.append(f"{label}: {result['error']}")
            continue
        ratio = ours["tokens_per_s"] / result["tokens_per_s"] if "tokens_per_s" in ours else float("nan")
        lines.append(
            f"{label}: {result['batch']} prompts whole in {result['seconds']:.2f} s, "
            f"{result['tokens_per_s']:.0f} tok/s, ours is {ratio:.1f}x"
        )
    return lines
