"""The CUDA runner's logic: buffers, padding, tokens fed on the device, a step ahead. Graphs are replaced by calls where
there is no device, and kernels are interpreted.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
import triton.language as tl
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig

from bench.gpu.interpreter import products_in_one_order
from dedicate_runtime.core.batch import BlockCopy, ScheduledBatch, ScheduledRow, TokenHistory
from dedicate_runtime.core.request import RequestId, SamplingParams
from dedicate_runtime.worker.attention import IMPLEMENTATION, TorchPagedAttention, register_attention
from dedicate_runtime.worker.cuda.attention import TritonAttentionFactory
from dedicate_runtime.worker.cuda.cache import CudaKVCache
from dedicate_runtime.worker.cuda.fixed_shapes import FixedShapeRunner
from dedicate_runtime.worker.cuda.runner import CudaModelRunner, RunnerLimits
from dedicate_runtime.worker.kv_cache import KVCache, LayerShape
from dedicate_runtime.worker.model_runner import ModelRunner
from dedicate_runtime.worker.sampler import TorchSampler

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytestmark = pytest.mark.skipif(
    DEVICE.type == "cpu" and type(tl.sum).__name__ != "InterpretedFunction",
    reason="runs with TRITON_INTERPRET=1, by test_triton.py",
)

VOCAB_SIZE = 320
SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "gemma2": Gemma2Config(
        **SIZES,
        sliding_window=12,
        layer_types=["sliding_attention", "full_attention"],
        attn_logit_softcapping=5.0,
        final_logit_softcapping=10.0,
        query_pre_attn_scalar=16,
    ),
}
SHAPES = dict.fromkeys(range(2), LayerShape(num_kv_heads=2, key_dim=16, value_dim=16))
NUM_BLOCKS = 40
PROMPTS = [tuple((7 * i + 13 * j) % VOCAB_SIZE for i in range(n)) for j, n in enumerate((1, 5, 17, 33, 20))]


CASES = {"llama": ("llama", True), "llama-eager": ("llama", False), "gemma2": ("gemma2", True)}
"""Name of the model, and whether decode goes through buckets."""


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def model(case):
    torch.manual_seed(0)
    register_attention()
    model = AutoModelForCausalLM.from_config(CONFIGS[case[0]], attn_implementation=IMPLEMENTATION)
    return model.eval().to(DEVICE)


def make_cache(kind):
    return kind(SHAPES, num_blocks=NUM_BLOCKS, block_size=16, dtype=torch.float32, device=DEVICE)


def make_reference(model):
    cache = make_cache(KVCache)
    return ModelRunner(model, cache, partial(TorchPagedAttention, cache), TorchSampler(), device=DEVICE)


@pytest.fixture
def runner(case, model):
    cache = make_cache(CudaKVCache)
    limits = RunnerLimits(max_num_seqs=8, max_model_len=128)
    factory = TritonAttentionFactory(cache, num_splits=None if DEVICE.type == "cuda" else 2)
    runner = CudaModelRunner(model, cache, factory, limits=limits, device=DEVICE, has_graphs=case[1])
    runner.capture()
    return runner


class Sequences:
    """Stands in for the scheduler: rows of sequences that own the blocks from `8 * index + 1` on."""

    def __init__(self, prompts, sampling):
        self.prompts = prompts
        self.sampling = sampling
        self.outputs = [[] for _ in prompts]
        self.tables = [tuple(range(8 * index + 1, 8 * index + 9)) for index in range(len(prompts))]

    def row(self, index, start, end, *, num_outputs, fed_by=None):
        prompt, sampling = self.prompts[index], self.sampling[index]
        known = (*prompt, *self.outputs[index])
        token_ids = (0,) if fed_by is not None else known[start:end]
        is_sampled = end == len(prompt) + num_outputs
        history = None
        if is_sampled and sampling.has_penalties:
            history = TokenHistory(prompt_token_ids=prompt, output_token_ids=tuple(self.outputs[index]))
        return ScheduledRow(
            request_id=RequestId(str(index)),
            token_ids=token_ids,
            start=start,
            block_table=self.tables[index][: -(-end // 16)],
            sampling=sampling,
            is_sampled=is_sampled,
            output_position=num_outputs,
            prompt_targets=prompt[start + 1 : end + 1] if sampling.prompt_logprobs else (),
            fed_by=fed_by,
            history=history,
        )

    def prefill(self):
        rows = [self.row(i, 0, len(prompt), num_outputs=0) for i, prompt in enumerate(self.prompts)]
        return ScheduledBatch(rows=tuple(rows), num_decode_rows=0)

    def decode(self, num_outputs, order, feeding=None):
        """Rows of the sequences in `order`; `feeding` is the batch before, where its tokens are not known yet."""
        places = {} if feeding is None else {row.request_id: place for place, row in enumerate(feeding.rows)}
        rows = []
        for index in order:
            end = len(self.prompts[index]) + num_outputs
            fed_by = places.get(str(index))
            rows.append(self.row(index, end - 1, end, num_outputs=num_outputs, fed_by=fed_by))
        return ScheduledBatch(rows=tuple(rows), num_decode_rows=len(rows))

    def take(self, batch, results):
        for row, result in zip(batch.rows, results, strict=True):
            assert result.error is None
            if row.is_sampled:
                self.outputs[int(row.request_id)].append(result.token_id)


def make_sampling(**fields):
    return SamplingParams(**{"max_tokens": 8, "end_ids": frozenset(), **fields})


NARROW = [
    make_sampling(temperature=0.0),
    make_sampling(seed=3, temperature=2.0),
    make_sampling(seed=4, top_k=5, top_p=1.0, temperature=3.0),
    make_sampling(seed=5, min_p=0.1, temperature=1.5),
    make_sampling(temperature=0.0),
]
MIXED = [
    make_sampling(seed=1, temperature=1.5, repetition_penalty=1.5),
    make_sampling(seed=3, temperature=2.0),
    make_sampling(seed=4, top_k=0, top_p=1.0, temperature=2.0),
    make_sampling(temperature=0.0, num_logprobs=2),
    make_sampling(temperature=0.0, presence_penalty=2.0, logit_bias={5: 9.0}),
]


def run_in_step(runner, sampling, num_steps=4):
    """Each step's results are known before the next is launched."""
    sequences = Sequences(PROMPTS, sampling)
    batch = sequences.prefill()
    sequences.take(batch, runner.launch(batch).wait())
    for step in range(1, num_steps):
        order = range(len(PROMPTS))
        batch = sequences.decode(step, order)
        sequences.take(batch, runner.launch(batch).wait())
    return sequences.outputs


def run_ahead(runner, sampling, num_steps=4):
    """Each step is launched before the results of the one before are read; rows change places."""
    sequences = Sequences(PROMPTS, sampling)
    batch = sequences.prefill()
    launched = runner.launch(batch)
    for step in range(1, num_steps):
        order = [(place * 2 + step) % len(PROMPTS) for place in range(len(PROMPTS))]
        following = sequences.decode(step, order, feeding=batch)
        launched_following = runner.launch(following)
        sequences.take(batch, launched.wait())
        batch, launched = following, launched_following
    sequences.take(batch, launched.wait())
    return sequences.outputs


WITHOUT_HISTORY = [
    make_sampling(seed=1, temperature=1.5),
    make_sampling(seed=3, temperature=2.0, min_tokens=3, end_ids=frozenset({1, 2})),
    make_sampling(seed=4, top_k=0, top_p=1.0, temperature=2.0),
    make_sampling(temperature=0.0, num_logprobs=2),
    make_sampling(temperature=0.0, logit_bias={5: 9.0}),
]


@pytest.mark.parametrize("sampling", [NARROW, WITHOUT_HISTORY], ids=["on-device", "on-host"])
def test_tokens_are_those_of_the_reference_in_step_and_ahead(model, runner, sampling):
    expected = run_in_step(make_reference(model), sampling)
    assert run_in_step(runner, sampling) == expected
    assert run_ahead(runner, sampling) == expected


def test_penalties_see_every_token(model, runner):
    assert run_in_step(runner, MIXED) == run_in_step(make_reference(model), MIXED)


def test_decode_rows_beside_chunks_of_others(model, runner):
    expected = run_in_step(make_reference(model), NARROW, num_steps=4)
    sequences = Sequences(PROMPTS, NARROW)
    early = [sequences.row(i, 0, len(PROMPTS[i]), num_outputs=0) for i in (0, 1, 2)]
    batch = ScheduledBatch(rows=tuple(early), num_decode_rows=0)
    launched = runner.launch(batch)
    for step, bounds in enumerate([((0, 7), (0, 3)), ((7, 33), (3, 18)), ((33, 33), (18, 20))], start=1):
        decode = sequences.decode(step, [2, 0, 1], feeding=batch)
        chunks = [
            sequences.row(index, start, end, num_outputs=0)
            for index, (start, end) in zip((3, 4), bounds, strict=True)
            if end > start
        ]
        batch = ScheduledBatch(rows=(*decode.rows, *chunks), num_decode_rows=3)
        following = runner.launch(batch)
        sequences.take(ScheduledBatch(rows=tuple(early), num_decode_rows=0), launched.wait())
        early, launched = list(batch.rows), following
    sequences.take(batch, launched.wait())
    assert sequences.outputs[:3] == expected[:3]
    assert [outputs[:1] for outputs in sequences.outputs[3:]] == [outputs[:1] for outputs in expected[3:]]


def test_results_on_the_host_are_those_of_the_reference(model, runner):
    sampling = [replace(params, num_logprobs=3, prompt_logprobs=True) for params in NARROW]
    reference = make_reference(model)
    batch = Sequences(PROMPTS, sampling).prefill()
    for ours, theirs in zip(runner.launch(batch).wait(), reference.launch(batch).wait(), strict=True):
        assert ours.token_id == theirs.token_id
        assert len(ours.prompt_logprobs) == len(theirs.prompt_logprobs)
        for entry, expected in zip(ours.prompt_logprobs, theirs.prompt_logprobs, strict=True):
            assert entry.logprob == pytest.approx(expected.logprob, abs=1e-3)
        assert ours.logprobs.logprob == pytest.approx(theirs.logprobs.logprob, abs=1e-3)


def test_padding_writes_nothing_and_blocks_are_copied_first(model, runner):
    cache = runner._cache
    run_in_step(runner, NARROW, num_steps=3)
    for layer in cache.layers:
        for slots in cache.slots_of(layer):
            assert not slots[:16].any()
            assert slots[9 * 16 : 10 * 16].any()
    batch = Sequences(PROMPTS[:1], NARROW[:1]).prefill()
    copied = replace(batch, block_copies=(BlockCopy(source=9, target=39),))
    runner.launch(copied).wait()
    keys, _ = cache.slots_of(0)
    assert torch.equal(keys[39 * 16 : 40 * 16], keys[9 * 16 : 10 * 16])
    assert keys[39 * 16 : 40 * 16].any()


def test_row_of_no_numbers_fails_alone(model, runner):
    sequences = Sequences(PROMPTS, NARROW)
    batch = sequences.prefill()
    sequences.take(batch, runner.launch(batch).wait())
    keys, _ = runner._cache.slots_of(0)
    keys[8 * 16 + 16] = torch.nan
    batch = sequences.decode(1, range(len(PROMPTS)))
    results = runner.launch(batch).wait()
    assert [result.error is not None for result in results] == [False, True, False, False, False]
    assert results[0].token_id is not None


def test_fixed_shapes_give_the_same_bits_in_any_company_and_any_chunks(model):
    def make_runner():
        cache = make_cache(CudaKVCache)
        return FixedShapeRunner(model, cache, TritonAttentionFactory(cache), device=DEVICE, window_tokens=16)

    sequences = Sequences(PROMPTS, NARROW)
    length = len(PROMPTS[3])
    alone = make_runner()
    with torch.inference_mode(), products_in_one_order(DEVICE):
        whole = ScheduledBatch(rows=(sequences.row(3, 0, length, num_outputs=0),), num_decode_rows=0)
        expected = alone.compute_logits(whole, range(length))
        crowded = make_runner()
        first = [sequences.row(i, 0, len(PROMPTS[i]), num_outputs=0) for i in (1, 2)]
        part = sequences.row(3, 0, 19, num_outputs=0)
        batch = ScheduledBatch(rows=(*first, part), num_decode_rows=0)
        skipped = sum(len(row.token_ids) for row in first)
        parts = [crowded.compute_logits(batch, range(skipped, skipped + 19))]
        for start, end in ((19, 20), (20, length)):
            row = sequences.row(3, start, end, num_outputs=0)
            other = sequences.row(0, 0, 1, num_outputs=0)
            batch = ScheduledBatch(rows=(other, row), num_decode_rows=2 if end == start + 1 else 0)
            parts.append(crowded.compute_logits(batch, range(1, 1 + end - start)))
    assert torch.equal(torch.cat(parts), expected)
    torch.testing.assert_close(
        expected, make_reference(model).compute_logits(whole, range(length)), atol=1e-3, rtol=1e-3
    )
    outputs = run_in_step(make_runner(), MIXED, num_steps=3)
    assert outputs == run_in_step(make_reference(model), MIXED, num_steps=3)
