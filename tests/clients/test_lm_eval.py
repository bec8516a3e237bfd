"""lm-evaluation-harness: what it computes through the API is what its own `hf` backend computes on the same weights."""

from __future__ import annotations

import itertools

import pytest

from dev.paths import REPOSITORY

TEXT = (REPOSITORY / "bench" / "quality.txt").read_text()
TOLERANCE = 1e-3
"""For one token, in nats. Both compute in float32, in another order."""


def build_pairs():
    """Contexts of 0 to 60 words and continuations of 1 to 40, cut from prose; then one continuation that grows."""
    words = TEXT.split(" ")
    lengths = itertools.product([0, 1, 4, 16, 60], [1, 2, 3, 5, 9, 17, 40])
    pairs = []
    for index, (num_context, num_continuation) in enumerate(lengths):
        start = 31 * index % (len(words) - 200)
        middle, end = start + num_context, start + num_context + num_continuation
        space = " " if num_context else ""
        pairs.append([" ".join(words[start:middle]), space + " ".join(words[middle:end])])
    growing = [[" ".join(words[:40]), " " + " ".join(words[40 : 40 + count])] for count in range(1, NUM_GROWING + 1)]
    return pairs + growing


NUM_GROWING = 16
PAIRS = build_pairs()
SAMPLES = {"pairs": PAIRS, "text": TEXT.split("\n\n")[1]}


@pytest.fixture(scope="module")
def seen(lm_eval_probe):
    return lm_eval_probe()


def test_there_are_enough_samples(seen):
    assert len(PAIRS) >= 50
    assert min(seen["num_tokens"]) == 1
    assert max(seen["num_tokens"]) > 40


@pytest.mark.parametrize("way", ["token_ids", "strings", "remote"])
def test_loglikelihoods_equal_the_hf_backends(seen, way):
    """Prompts as token ids in lists, as strings in lists, and as ids by our own tokenizer, four at once."""
    assert len(seen[way]) == len(PAIRS)
    for (ours, is_greedy), (reference, is_greedy_reference), num_tokens in zip(
        seen[way], seen["hf"], seen["num_tokens"], strict=True
    ):
        assert abs(ours - reference) <= TOLERANCE * num_tokens
        assert is_greedy == is_greedy_reference


@pytest.mark.parametrize("way", ["token_ids", "strings", "remote"])
def test_each_token_of_a_growing_continuation_is_equal(seen, way):
    """Differences of neighbours: what one more word, of one token or a few, adds."""
    growing = range(len(PAIRS) - NUM_GROWING, len(PAIRS))
    for shorter, longer in itertools.pairwise(growing):
        ours = seen[way][longer][0] - seen[way][shorter][0]
        reference = seen["hf"][longer][0] - seen["hf"][shorter][0]
        assert abs(ours - reference) <= TOLERANCE


def test_rolling_loglikelihood_is_equal(seen):
    (ours,), (reference,) = seen["token_ids_rolling"], seen["hf_rolling"]
    num_words = len(SAMPLES["text"].split())
    assert abs(ours - reference) <= TOLERANCE * num_words  # a word is at least a token


def test_the_tokenizer_endpoints_are_taken(seen):
    assert seen["remote_backend"] == "remote"
    assert seen["same_ids"]
    assert seen["round_trip"]
    ours, reference = seen["special_ids"]
    assert ours == reference


def test_generations(seen):
    assert "Tokyo" in seen["text_generations"][0]
    assert all("\n\n" not in text for text in seen["text_generations"])


def test_chat_generations_repeat_by_seed(seen):
    """Four at once, sampled, with the seed that the harness sends."""
    assert len(seen["chat_generations"]) == 4
    assert len(set(seen["chat_generations"])) == 1
    assert seen["chat_generations"][0]
