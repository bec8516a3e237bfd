"""A sequence's status moves along its table and nowhere else."""

from __future__ import annotations

import itertools

import pytest

from dedicate_runtime.core.request import Request, RequestId, SamplingParams
from dedicate_runtime.core.sequence import TRANSITIONS, IllegalTransitionError, Sequence, SequenceStatus


def make_sequence(prompt=(1, 2, 3)):
    sampling = SamplingParams(max_tokens=4, end_ids=frozenset())
    return Sequence(Request(request_id=RequestId("a"), prompt_token_ids=prompt, sampling=sampling), arrival=0)


@pytest.mark.parametrize(("source", "target"), list(itertools.product(SequenceStatus, repeat=2)))
def test_status_moves_along_the_table(source, target):
    sequence = make_sequence()
    sequence.status = source
    if target in TRANSITIONS[source]:
        sequence.move_to(target)
        assert sequence.status is target
    else:
        with pytest.raises(IllegalTransitionError, match=f"{source.value} does not lead to {target.value}"):
            sequence.move_to(target)
        assert sequence.status is source


@pytest.mark.parametrize(
    ("start", "end", "tokens"), [(0, 5, (1, 2, 3, 8, 9)), (2, 4, (3, 8)), (3, 4, (8,)), (0, 1, (1,)), (4, 5, (9,))]
)
def test_tokens_are_read_across_prompt_and_output(start, end, tokens):
    sequence = make_sequence()
    sequence.output_token_ids += [8, 9]
    assert sequence.tokens_between(start, end) == tokens
