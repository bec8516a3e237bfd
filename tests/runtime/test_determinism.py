"""The same request with the same seed gives the same answer, whatever else is computed and however.

Observed are tokens and log-probabilities, the latter as exact floats: alone, among others and at another place of the
batch, after a preemption, after a prefix hit, and with the prompt read in chunks of other sizes.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dedicate_runtime.core.config import AttentionChoice
from dedicate_runtime.engine.build import build_engine
from dev.model.api import ensure_model
from tests.runtime.architectures import SERVED
from tests.runtime.fidelity import make_config, make_folder, make_request, run, run_outputs

# Modelling code of GPTBigCode, at import.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

NUM_NEW_TOKENS = 20
PROMPT_LENGTHS = (23, 7, 41, 1, 34)
SAMPLINGS = (
    {},
    {"temperature": 0.7, "top_k": 40, "top_p": 0.7, "seed": 3},
    {"temperature": 1.3, "top_k": 0, "top_p": 1.0, "min_p": 0.02, "seed": 5},
    {"temperature": 1.0, "repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.2, "seed": 9},
    {"temperature": 0.9, "top_k": 0, "top_p": 0.95, "logit_bias": {5: 2.0, 6: -3.0}, "seed": 2**63},
)
TIGHT = {"kv_cache_tokens": 80}
"""A cache that the observed requests together overflow."""
BY_NAME = {architecture.name: architecture for architecture in SERVED}
VOCAB_SIZE = 100
"""Ids that every model here knows."""


def make_observed():
    generator = random.Random(1)
    return [
        make_request(
            f"observed {index}",
            [generator.randrange(3, VOCAB_SIZE) for _ in range(length)],
            max_tokens=NUM_NEW_TOKENS,
            num_logprobs=2,
            **sampling,
        )
        for index, (length, sampling) in enumerate(zip(PROMPT_LENGTHS, SAMPLINGS, strict=True))
    ]


def make_company(count, seed):
    generator = random.Random(seed)
    return [
        make_request(
            f"other {index}",
            [generator.randrange(3, VOCAB_SIZE) for _ in range(generator.randrange(1, 60))],
            max_tokens=generator.randrange(4, 40),
            temperature=generator.choice([0.0, 0.7, 1.3]),
            seed=index,
            repetition_penalty=generator.choice([1.0, 1.5]),
            logit_bias={7: 5.0} if generator.random() < 0.3 else {},
        )
        for index in range(count)
    ]


def observe(engine, requests, *, stagger=0):
    """Give each observed answer: its tokens, their log-probabilities and those of the alternatives, bit by bit."""
    return {
        name: [
            (token_id, entry.logprob.hex(), [(other, logprob.hex()) for other, logprob in entry.top])
            for output in outputs
            for token_id, entry in zip(output.token_ids, output.logprobs, strict=True)
        ]
        for name, outputs in run_outputs(engine, requests, stagger=stagger).items()
        if name.startswith("observed")
    }


def observe_alone(engine):
    answers = {}
    for request in make_observed():
        answers |= observe(engine, [request])
    return answers


class Subject:
    """A model whose engines are built in several ways, and its answers when each request has an engine to itself."""

    def __init__(self, folder):
        self._folder = folder
        self.alone = observe_alone(self.build(has_prefix_cache=False))

    def build(self, **fields):
        base = {"max_num_seqs": 16, "is_deterministic": True, "attention_backend": AttentionChoice.NATIVE}
        return build_engine(make_config(self._folder, **{**base, **fields}))[0]


@pytest.fixture(scope="module", params=["SmolLM2-135M-Instruct", "LlamaForCausalLM", "Qwen3ForCausalLM"])
def subject(request, tmp_path_factory):
    if request.param in BY_NAME:
        return Subject(make_folder(BY_NAME[request.param], tmp_path_factory.mktemp("model")))
    return Subject(ensure_model())


def test_seeds_matter(subject):
    engine = subject.build()
    prompt = make_observed()[2].prompt_token_ids
    requests = [make_request(f"seed {seed}", prompt, temperature=1.3, seed=seed, max_tokens=8) for seed in range(3)]
    assert len({tuple(tokens) for tokens in run(engine, requests).values()}) == 3


@pytest.mark.parametrize("seed", [1, 2])
def test_in_company_and_at_any_place_of_the_batch(subject, seed):
    requests = [*make_observed(), *make_company(8, seed)]
    random.Random(seed).shuffle(requests)
    engine = subject.build(has_prefix_cache=False)
    assert observe(engine, requests, stagger=seed) == subject.alone


@pytest.mark.parametrize("budget", [5, 33])
def test_prompts_in_chunks(subject, budget):
    engine = subject.build(has_prefix_cache=False, max_num_seqs=5, max_num_batched_tokens=budget)
    assert observe(engine, make_observed()) == subject.alone


def test_after_prefix_hits(subject):
    engine = subject.build()
    assert observe_alone(engine) == subject.alone
    num_hits = engine.stats.num_prefix_hit_tokens
    assert observe(engine, make_observed()) == subject.alone
    assert engine.stats.num_prefix_hit_tokens >= num_hits + 16 + 32 + 32


def test_after_preemption(subject):
    engine = subject.build(**TIGHT)
    assert observe(engine, make_observed()) == subject.alone
    assert engine.stats.num_preemptions > 0


@pytest.mark.parametrize(
    "architecture", [one for one in SERVED if one.is_bit_exact], ids=lambda architecture: architecture.name
)
def test_every_listed_architecture_is_bit_exact(architecture, tmp_path):
    subject = Subject(make_folder(architecture, tmp_path))
    crowded = subject.build(max_num_batched_tokens=19, **TIGHT)
    assert observe(crowded, [*make_observed(), *make_company(4, 3)], stagger=1) == subject.alone


@pytest.fixture(scope="module")
def shared_engine(tmp_path_factory):
    """By torch: where results vary in their last bits, tokens do not."""
    folder = make_folder(BY_NAME["LlamaForCausalLM"], tmp_path_factory.mktemp("model"))
    return build_engine(make_config(folder, max_num_seqs=16, attention_backend=AttentionChoice.TORCH))[0]


SAMPLING = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.5, 1.0, 2.0]),
        "top_k": st.sampled_from([0, 1, 5, 60]),
        "top_p": st.sampled_from([0.1, 0.8, 1.0]),
        "min_p": st.sampled_from([0.0, 0.1]),
        "repetition_penalty": st.sampled_from([0.8, 1.0, 1.5]),
        "presence_penalty": st.sampled_from([-1.0, 0.0, 1.0]),
        "frequency_penalty": st.sampled_from([0.0, 0.7]),
        "logit_bias": st.dictionaries(st.integers(0, VOCAB_SIZE), st.sampled_from([-100.0, -1.0, 4.0]), max_size=3),
        "seed": st.integers(0, 2**63 - 1),
        "max_tokens": st.integers(1, 8),
    }
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(samplings=st.lists(SAMPLING, min_size=2, max_size=6))
def test_parameters_do_not_leak_between_the_rows_of_a_batch(shared_engine, samplings):
    requests = [
        make_request(f"row {index}", [3 + index, 20, 40], **sampling) for index, sampling in enumerate(samplings)
    ]
    together = run(shared_engine, requests)
    for request in requests:
        assert run(shared_engine, [request]) == {request.request_id: together[request.request_id]}
