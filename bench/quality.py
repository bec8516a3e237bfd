"""`make bench-quality`: what int8 costs in quality, told by a fixed text.

The engine reports the log-probability of each token of bench/quality.txt, once in float32 and once in int8, by the way
that a request with `echo` and `logprobs` takes. Perplexity is the exponential of their mean, negated. The distance of
the distributions (Kullback-Leibler, in nats a token) is taken over the likeliest tokens that both report, with all
others as one: the true one is at least that.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tokenizers import Tokenizer

from dedicate_runtime.core.config import DeviceChoice, DtypeChoice, EngineConfig, QuantizationChoice
from dedicate_runtime.core.request import Request, RequestId, SamplingParams, TokenLogprobs
from dedicate_runtime.engine.build import build_engine
from dev.model.api import ensure_model

_TEXT = Path(__file__).parent / "quality.txt"
_WINDOW_TOKENS = 512
"""The text is read in windows, each anew: int8 must not gain by context that a short prompt has not."""
_NUM_ALTERNATIVES = 20


def read_logprobs(
    model: Path, quantization: QuantizationChoice, windows: Sequence[Sequence[int]]
) -> list[TokenLogprobs]:
    """Gives one entry for each token of the windows but their first ones."""
    config = EngineConfig(
        model=str(model),
        device=DeviceChoice.CPU,
        dtype=DtypeChoice.FLOAT32,
        quantization=quantization,
        max_num_seqs=1,
        max_num_batched_tokens=_WINDOW_TOKENS,
        max_queued_requests=len(windows),
        kv_cache_tokens=2 * _WINDOW_TOKENS,
        max_model_len=2 * _WINDOW_TOKENS,
    )
    engine, _ = build_engine(config)
    sampling = SamplingParams(
        max_tokens=1, end_ids=frozenset(), temperature=0.0, num_logprobs=_NUM_ALTERNATIVES, prompt_logprobs=True
    )
    entries: list[TokenLogprobs] = []
    for index, window in enumerate(windows):
        request = Request(request_id=RequestId(str(index)), prompt_token_ids=tuple(window), sampling=sampling)
        refusals = engine.submit([request])
        assert not refusals, refusals
        while engine.has_work:
            for output in engine.step():
                assert output.error is None, output.error
                entries += (entry for entry in output.prompt_logprobs if entry is not None)
    return entries


def cut_windows(token_ids: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Cuts a text into windows of `size` tokens; a last one too short to tell anything is left out."""
    for first in range(0, len(token_ids), size):
        if len(token_ids) - first >= min(size, 64):
            yield token_ids[first : first + size]


def perplexity(entries: Sequence[TokenLogprobs]) -> float:
    """Gives the exponential of the mean negative log-probability."""
    return math.exp(-math.fsum(entry.logprob for entry in entries) / len(entries))


def divergence(reference: Mapping[int, float], other: Mapping[int, float]) -> float:
    """Gives a lower bound of KL(reference || other) from the log-probabilities that both report of likely tokens.

    Tokens that one of them does not report are taken together as one event.
    """
    common = reference.keys() & other.keys()
    pairs = [(math.exp(reference[token]), math.exp(other[token])) for token in common]
    rest = tuple(max(1.0 - math.fsum(side), 1e-12) for side in zip(*pairs, strict=True)) if pairs else (1.0, 1.0)
    return math.fsum(p * math.log(p / q) for p, q in [*pairs, (rest[0], rest[1])] if p > 0)


def compare(reference: Sequence[TokenLogprobs], other: Sequence[TokenLogprobs]) -> dict[str, float]:
    """Gives what a report quotes."""
    kls = [divergence(dict(a.top), dict(b.top)) for a, b in zip(reference, other, strict=True)]
    same = sum(a.top[0][0] == b.top[0][0] for a, b in zip(reference, other, strict=True))
    f32, int8 = perplexity(reference), perplexity(other)
    return {
        "tokens": len(reference),
        "perplexity_f32": round(f32, 4),
        "perplexity_int8": round(int8, 4),
        "ratio": round(int8 / f32, 5),
        "mean_kl_nats_at_least": round(math.fsum(kls) / len(kls), 6),
        "same_likeliest_token": round(same / len(reference), 4),
    }


def main() -> int:
    """Prints the comparison as JSON; exit code 1 if the perplexity of int8 exceeds the limit that was asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench.quality", description=__doc__)
    parser.add_argument("--max-ratio", type=float, help="fail if perplexity grows by more than this factor")
    arguments = parser.parse_args()
    model = ensure_model()
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    token_ids = tokenizer.encode(_TEXT.read_text(), add_special_tokens=False).ids
    windows = list(cut_windows(token_ids, _WINDOW_TOKENS))
    reference = read_logprobs(model, QuantizationChoice.NONE, windows)
    gc.collect()  # one engine at a time is enough for memory
    result = compare(reference, read_logprobs(model, QuantizationChoice.INT8, windows))
    print(json.dumps(result, indent=1))
    return int(arguments.max_ratio is not None and result["ratio"] > arguments.max_ratio)


if __name__ == "__main__":
    sys.exit(main())
