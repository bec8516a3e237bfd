"""Two ways to the same tokens, for the tests of this folder: transformers' `generate()` and the engine's steps."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dedicate_runtime.core.config import AttentionChoice, DeviceChoice, DtypeChoice, EngineConfig
from dedicate_runtime.core.request import FinishReason, Request, RequestId, SamplingParams
from dedicate_runtime.engine.build import build_engine

NUM_NEW_TOKENS = 64
CLEAR_LEAD = 1e-4
"""Least lead of the best token over the next, in standard deviations of the logits. The same arithmetic in another
order moves them by less than a tenth of that; where `generate()` itself hesitates, equality would prove nothing."""


@dataclass(frozen=True)
class Answer:
    """What `generate()` answers greedily, and the least lead that a token of it had over the next best."""

    token_ids: list[int]
    lead: float


def make_folder(architecture, folder):
    """Save a model with seeded random weights."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture.model_type, **architecture.config)
    model = AutoModelForCausalLM.from_config(config)
    assert type(model).__name__ == architecture.model_class
    model.save_pretrained(folder)
    return folder


def load_reference(folder):
    """Load a model as transformers alone would run it; it never ends by itself."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    model.generation_config.eos_token_id = None
    return model


def generate(model, prompts, *, max_new_tokens=NUM_NEW_TOKENS, **options):
    """Answer a list of prompts in one call, the shorter ones padded on the left; gives a list of `Answer`."""
    length = max(map(len, prompts))
    output = model.generate(
        torch.tensor([[0] * (length - len(prompt)) + list(prompt) for prompt in prompts]),
        attention_mask=torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts]),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
        **options,
    )
    logits = torch.stack(output.logits, dim=1)
    best = logits.topk(2).values
    leads = ((best[..., 0] - best[..., 1]) / logits.std(dim=-1)).amin(dim=-1)
    return [
        Answer(token_ids, lead)
        for token_ids, lead in zip(output.sequences[:, length:].tolist(), leads.tolist(), strict=True)
    ]


def draw_prompts(model, lengths, *, seed=0):
    """Draw one random prompt for each length until all answers are clear; gives prompts and answers.

    Prompts of one draw begin with the same tokens: that of `length` n is the first n - 1 tokens of a text and one more.
    """
    leads = []
    for attempt in range(8):
        generator = torch.Generator().manual_seed(100 * seed + attempt)
        text = torch.randint(3, model.config.vocab_size, (max(lengths) + len(lengths),), generator=generator).tolist()
        prompts = [[*text[: length - 1], last] for length, last in zip(lengths, text[max(lengths) :], strict=True)]
        answers = generate(model, prompts)
        leads.append(min(answer.lead for answer in answers))
        if leads[-1] >= CLEAR_LEAD:
            return prompts, [answer.token_ids for answer in answers]
    raise AssertionError(f"the model hesitates whatever it reads: its best tokens lead by {leads}")


def make_config(folder, **fields):
    """Configure an engine that computes in float32 on the CPU, with room for all that a test asks of it."""
    base = {
        "max_num_seqs": 8,
        "max_num_batched_tokens": 256,
        "max_queued_requests": 64,
        "kv_cache_tokens": 2048,
        "block_size": 16,
    }
    return EngineConfig(model=str(folder), device=DeviceChoice.CPU, dtype=DtypeChoice.FLOAT32, **{**base, **fields})


def build_each(folder, **fields):
    """Yield an engine for each backend that serves the model: the one that is chosen for it, and torch's."""
    chosen = build_tiny(folder, **fields)
    yield chosen
    if chosen[0] != "torch":
        yield build_tiny(folder, attention_backend=AttentionChoice.TORCH, **fields)


def build_tiny(folder, **fields):
    """Build an engine for a model that is so small that torch's threads cost more than they bring."""
    engine, model = build_engine(make_config(folder, **fields))
    torch.set_num_threads(1)
    return model.attention_backend, engine


def make_request(name, prompt, **sampling):
    """Make a greedy request that runs to its full length, unless `sampling` says otherwise."""
    fields = {"max_tokens": NUM_NEW_TOKENS, "end_ids": frozenset(), "temperature": 0.0, **sampling}
    return Request(request_id=RequestId(name), prompt_token_ids=tuple(prompt), sampling=SamplingParams(**fields))


def make_requests(prompts, **sampling):
    """Make one request for each named prompt."""
    return [make_request(name, prompt, **sampling) for name, prompt in prompts.items()]


def run_outputs(engine, requests, *, stagger=0):
    """Run to the end and give the outputs by request id; the books are checked after every step.

    The first request is submitted at once, and every further one `stagger` steps after the one before.
    """
    waiting = [(index * stagger, request) for index, request in enumerate(requests)]
    outputs = {request.request_id: [] for request in requests}
    for step in count():
        due = [request for arrival, request in waiting if arrival <= step]
        waiting = [entry for entry in waiting if entry[0] > step]
        assert not due or not engine.submit(due)
        if not engine.has_work and not waiting:
            break
        for output in engine.step():
            assert output.error is None
            outputs[output.request_id].append(output)
        engine.check_integrity()
    assert {parts[-1].finish_reason for parts in outputs.values()} == {FinishReason.LENGTH}
    assert engine.stats.num_free_blocks == engine.stats.num_blocks
    return outputs


def run(engine, requests, *, stagger=0):
    """Run to the end and give the tokens by request id."""
    return {
        name: [token_id for output in outputs for token_id in output.token_ids]
        for name, outputs in run_outputs(engine, requests, stagger=stagger).items()
    }
