"""Greedy tokens are those of transformers' own `generate()`, for every architecture that is served.

Each model answers in mixed batches, after prefix hits, with its prompts fed in chunks, and out of a cache so small that
sequences are preempted; by the backend that is chosen for it and by torch's, which every other is held against.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dedicate_runtime.engine.build import build_engine
from dedicate_runtime.errors import ExitCode, StartError
from dedicate_runtime.worker.attention import BACKEND_ARGUMENT, IMPLEMENTATION, register_attention
from dedicate_runtime.worker.native.library import NativeUnavailableError, load_kernels
from dedicate_runtime.worker.native.stack import FusedLayers
from tests.runtime.architectures import SERVED
from tests.runtime.fidelity import (
    build_each,
    draw_prompts,
    load_reference,
    make_config,
    make_folder,
    make_request,
    make_requests,
    run,
)
from tests.runtime.refused_architectures import REFUSED

# Modelling code of GPTBigCode, at import.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

LENGTHS = {"one": 1, "short": 7, "long": 41, "fork": 39}
"""Prompts that all begin with the same tokens: the shorter ones part from the longest at their last token."""
REPEATED = 20
"""Tokens of an answer that come back as part of the next prompt, as in a chat."""


@dataclass(frozen=True)
class Case:
    """A model, prompts for it, and what transformers answers."""

    folder: Path
    prompts: dict[str, list[int]]
    expected: dict[str, list[int]]


@pytest.fixture(scope="module", params=SERVED, ids=lambda architecture: architecture.name)
def case(request, tmp_path_factory):
    folder = make_folder(request.param, tmp_path_factory.mktemp("model"))
    torch.set_num_threads(1)
    prompts, answers = draw_prompts(load_reference(folder), LENGTHS.values())
    return Case(folder, dict(zip(LENGTHS, prompts, strict=True)), dict(zip(LENGTHS, answers, strict=True)))


def test_mixed_batches(case):
    for backend, engine in build_each(case.folder, has_prefix_cache=False):
        greedy = make_requests(case.prompts)
        sampled = [
            make_request(f"sampled {name}", prompt, temperature=1.0, seed=seed, repetition_penalty=1.1)
            for seed, (name, prompt) in enumerate(case.prompts.items())
        ]
        pairs = zip(greedy, sampled, strict=True)
        tokens = run(engine, [request for pair in pairs for request in pair], stagger=3)
        assert {name: tokens[name] for name in case.prompts} == case.expected, backend


def test_prefix_hits(case):
    long, answer = case.prompts["long"], case.expected["long"]
    followed = make_request("followed", [*long, *answer[:REPEATED]], max_tokens=len(answer) - REPEATED)
    for backend, engine in build_each(case.folder):
        assert run(engine, [make_request("long", long)]) == {"long": answer}, backend
        assert engine.stats.num_prefix_hit_tokens == 0
        tokens = run(engine, [make_request("again", long), followed, make_request("fork", case.prompts["fork"])])
        expected = {"again": answer, "followed": answer[REPEATED:], "fork": case.expected["fork"]}
        assert tokens == expected, backend
        assert engine.stats.num_prefix_hit_tokens >= 32 + 48 + 32


def test_chunks_and_preemption(case):
    for backend, engine in build_each(case.folder, max_num_seqs=4, max_num_batched_tokens=9, kv_cache_tokens=208):
        assert run(engine, make_requests(case.prompts)) == case.expected, backend
        assert engine.stats.num_preemptions > 0


class _Recorder:
    """An attention that computes nothing and remembers what was asked of it."""

    def __init__(self):
        self.asked = set()

    def attend(self, layer, query, key, value, variant):
        named = {
            "sliding window": variant.sliding_window,
            "soft-capping": variant.softcap,
            "sinks": variant.sinks,
        }
        self.asked |= {name for name, value in named.items() if value is not None}
        return torch.zeros(query.shape[1], query.shape[0], value.shape[-1])


@pytest.mark.parametrize("architecture", SERVED, ids=lambda architecture: architecture.name)
def test_its_attention_is_the_listed_one(architecture):
    register_attention()
    config = AutoConfig.for_model(architecture.model_type, **architecture.config)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=IMPLEMENTATION)
    recorder = _Recorder()
    with torch.inference_mode():
        model(
            input_ids=torch.tensor([[3, 4]]),
            position_ids=torch.tensor([[0, 1]]),
            use_cache=False,
            **{BACKEND_ARGUMENT: recorder},
        )
    assert recorder.asked == architecture.attention


@pytest.mark.parametrize("architecture", SERVED, ids=lambda architecture: architecture.name)
def test_its_backend_is_the_listed_one(architecture, tmp_path):
    try:
        load_kernels()
    except NativeUnavailableError as error:
        pytest.skip(f"torch serves everything here: {error}")
    engine, model = build_engine(make_config(make_folder(architecture, tmp_path)))
    is_fused = any(isinstance(module, FusedLayers) for module in engine._runner._model.modules())
    native = "fused" if is_fused else "native"
    assert architecture.backend == ("torch" if model.attention_backend == "torch" else native)


@pytest.mark.parametrize("architecture", REFUSED, ids=lambda architecture: architecture.model_class)
def test_architecture_that_would_be_answered_wrongly_is_refused(architecture, tmp_path):
    folder = make_folder(architecture, tmp_path)
    with pytest.raises(StartError) as caught:
        build_engine(make_config(folder))
    assert caught.value.exit_code is ExitCode.UNSUPPORTED_MODEL
    assert caught.value.sentence.startswith(f"{architecture.model_class} cannot be served: ")
    assert architecture.reason in caught.value.sentence
