"""What the device samples inside a graph is what `worker.sampler` samples, token by token."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dedicate_runtime.core.batch import ScheduledRow, TokenHistory
from dedicate_runtime.core.request import RequestId, SamplingParams
from dedicate_runtime.worker.cuda.sampling import WIDTH, SamplingColumns, is_narrow, rank_best, sample_narrow
from dedicate_runtime.worker.sampler import GREEDY_BELOW, TorchSampler, draw_uniform

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_row(output_position=0, history=None, prompt_targets=(), **sampling):
    fields = {"max_tokens": 8, "end_ids": frozenset(), **sampling}
    return ScheduledRow(
        request_id=RequestId("r"),
        token_ids=(0,),
        start=0,
        block_table=(1,),
        sampling=SamplingParams(**fields),
        is_sampled=True,
        output_position=output_position,
        history=history,
        prompt_targets=prompt_targets,
    )


def make_columns(rows):
    def column(values, dtype):
        return torch.tensor(np.array(values), dtype=dtype, device=DEVICE)

    greedy = [row.sampling.temperature < GREEDY_BELOW for row in rows]
    return SamplingColumns(
        temperature=column(
            [1.0 if g else r.sampling.temperature for r, g in zip(rows, greedy, strict=True)], torch.float64
        ),
        top_k=column([1 if g else r.sampling.top_k for r, g in zip(rows, greedy, strict=True)], torch.int64),
        top_p=column([row.sampling.top_p for row in rows], torch.float64),
        min_p=column([row.sampling.min_p for row in rows], torch.float64),
        draw=column(
            draw_uniform([row.sampling.seed for row in rows], [row.output_position for row in rows]), torch.float64
        ),
    )


rows_strategy = st.lists(
    st.builds(
        make_row,
        output_position=st.integers(0, 1000),
        seed=st.integers(-(2**63), 2**63 - 1),
        temperature=st.sampled_from([0.0, 0.1, 0.7, 1.0, 3.0]),
        top_k=st.integers(1, WIDTH),
        top_p=st.sampled_from([0.0, 0.1, 0.7, 0.95, 1.0]),
        min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=150, deadline=None)
@given(
    rows=rows_strategy,
    vocab_size=st.sampled_from([2, 50, 127, 320, 8192, 8200, 20011]),
    scale=st.sampled_from([0.01, 1.0, 8.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    draw=st.integers(0, 2**32),
)
def test_tokens_are_those_of_the_sampler(rows, vocab_size, scale, dtype, draw):
    generator = torch.Generator().manual_seed(draw)
    # In bfloat16 many logits are equal: ties are part of the draw.
    logits = (torch.randn(len(rows), vocab_size, generator=generator) * scale).to(DEVICE, dtype)
    sampled = sample_narrow(logits, make_columns(rows))
    expected = TorchSampler().sample(logits.float(), rows)
    assert sampled[:, 0].tolist() == list(expected.token_ids)
    assert not sampled[:, 1].any()


def test_broken_rows_are_marked_and_harm_no_other():
    logits = torch.randn(5, 20000, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    logits[0, 777] = torch.nan
    logits[1] = -torch.inf
    logits[2, 5] = torch.inf
    logits[3, 100:] = -torch.inf
    rows = [make_row(seed=index) for index in range(5)]
    sampled = sample_narrow(logits, make_columns(rows))
    expected = TorchSampler().sample(logits.clone(), rows)
    assert sampled[:, 1].tolist() == [1, 1, 1, 0, 0] == [int(broken) for broken in expected.is_broken]
    assert sampled[:3, 0].tolist() == [0, 0, 0]
    assert sampled[3:, 0].tolist() == list(expected.token_ids)[3:]


@pytest.mark.parametrize("vocab_size", [64 * 129, 64 * 300 + 1])
def test_ties_across_groups_go_to_the_lower_id(vocab_size):
    logits = torch.zeros(2, vocab_size, device=DEVICE)
    logits[1, ::2] = -0.0
    logits[1, vocab_size - 3] = 1.0
    ids, values = rank_best(logits, WIDTH)
    assert ids[0].tolist() == list(range(WIDTH))
    assert ids[1].tolist() == [vocab_size - 3, *range(WIDTH - 1)]
    assert values[1, 0] == 1.0


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (make_row(), True),
        (make_row(top_k=0, temperature=0.0), True),
        (make_row(top_k=0), False),
        (make_row(top_k=WIDTH + 1), False),
        (make_row(num_logprobs=0), False),
        (make_row(logit_bias={3: 1.0}), False),
        (make_row(prompt_targets=(1,)), False),
        (make_row(min_tokens=2, end_ids=frozenset({1})), False),
        (make_row(min_tokens=2, end_ids=frozenset({1}), output_position=2), True),
        (make_row(history=TokenHistory(prompt_token_ids=(1,), output_token_ids=())), False),
    ],
)  # fmt: skip
def test_what_the_device_samples_alone(row, expected):
    assert is_narrow(row) is expected
