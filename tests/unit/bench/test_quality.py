"""Perplexity and distance from the log-probabilities that an engine reports."""

from __future__ import annotations

import math

import pytest

from bench.peers.gguf_model import find_source_name
from bench.quality import cut_windows, divergence, perplexity
from dedicate_runtime.core.request import TokenLogprobs


def test_perplexity_of_a_uniform_guess_is_the_number_of_choices():
    entries = [TokenLogprobs(0, math.log(1 / 8), ()) for _ in range(5)]
    assert perplexity(entries) == pytest.approx(8)


def test_divergence_is_that_of_the_whole_distribution_if_all_of_it_is_reported():
    p, q = {0: math.log(0.5), 1: math.log(0.5)}, {0: math.log(0.25), 1: math.log(0.75)}
    expected = 0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75)
    assert divergence(p, q) == pytest.approx(expected, abs=1e-6)
    assert divergence(p, p) == pytest.approx(0, abs=1e-6)


def test_divergence_of_partly_reported_distributions_is_a_lower_bound():
    whole_p, whole_q = [0.6, 0.3, 0.1], [0.4, 0.4, 0.2]
    whole = sum(p * math.log(p / q) for p, q in zip(whole_p, whole_q, strict=True))
    told = divergence({0: math.log(0.6), 1: math.log(0.3)}, {0: math.log(0.4), 2: math.log(0.2)})
    assert 0 < told <= whole


def test_windows_hold_every_token_but_a_short_rest():
    assert [len(window) for window in cut_windows(range(1100), 512)] == [512, 512, 76]
    assert [len(window) for window in cut_windows(range(1030), 512)] == [512, 512]


def test_gguf_names_lead_to_the_tensors_of_the_folder():
    assert find_source_name("token_embd.weight") == "model.embed_tokens.weight"
    assert find_source_name("blk.7.attn_k.weight") == "model.layers.7.self_attn.k_proj.weight"
    with pytest.raises(KeyError):
        find_source_name("blk.7.rope_freqs.weight")
