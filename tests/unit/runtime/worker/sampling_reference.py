"""Rows to sample, and sampling by the book: in float64, by full sorts, without shortcuts."""

from __future__ import annotations

import numpy as np

from dedicate_runtime.core.batch import ScheduledRow
from dedicate_runtime.core.request import RequestId, SamplingParams
from dedicate_runtime.worker.sampler import draw_uniform

BORDER = 1e-6
"""How far from the border of two tokens samplers agree, as worker/sampler.py promises."""


def make_row(*, position=0, history=None, **sampling):
    fields = {"max_tokens": 16, "end_ids": frozenset(), "temperature": 1.0, "top_p": 1.0, "top_k": 0, **sampling}
    return ScheduledRow(
        request_id=RequestId("r"),
        token_ids=(1,),
        start=0,
        block_table=(1,),
        sampling=SamplingParams(**fields),
        is_sampled=True,
        output_position=position,
        history=history,
    )


def rank_kept(logits, sampling):
    """By the book, in float64 and without shortcuts: the ids that the filters leave, best first, and their weights."""
    order = np.lexsort((np.arange(len(logits)), -logits))
    ranked = logits[order].astype(np.float64)
    weights = np.exp((ranked - ranked[0]) / sampling.temperature)
    if sampling.top_k:
        weights[sampling.top_k :] = 0.0
    probabilities = weights / weights.sum()
    before = np.cumsum(probabilities) - probabilities
    is_kept = ((before < sampling.top_p) | (sampling.top_p >= 1)) & (weights >= sampling.min_p) & (weights > 0)
    is_kept[0] = True
    return order[is_kept], weights[is_kept]


def is_at_border(logits, row, token_id):
    """True if a draw or a filter that is off by `BORDER` gives `token_id`."""
    sampling = row.sampling
    order = np.lexsort((np.arange(len(logits)), -logits))
    (rank,) = np.flatnonzero(order == token_id)
    ranked = logits[order].astype(np.float64)
    weights = np.exp((ranked - ranked[0]) / sampling.temperature)
    if sampling.top_k:
        weights[sampling.top_k :] = 0.0
    cumulative = np.cumsum(weights)
    (draw,) = draw_uniform([sampling.seed], [row.output_position])
    for error in (-BORDER, 0.0, BORDER):
        before = (cumulative - weights) / cumulative[-1]
        is_kept = ((before < sampling.top_p + error) | (sampling.top_p >= 1)) & (weights > 0)
        is_kept &= weights >= sampling.min_p * (1 + error)
        mass = cumulative[max(np.count_nonzero(is_kept) - 1, 0)]
        if cumulative[rank] - weights[rank] - BORDER * mass <= draw * mass <= cumulative[rank] + BORDER * mass:
            return True
    return False
