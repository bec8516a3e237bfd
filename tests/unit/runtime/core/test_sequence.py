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


def test_tokens_to_feed_count_what_is_being_sampled():
    sequence = make_sequence(prompt=(1, 2, 3))
    assert (sequence.num_tokens, sequence.num_output_tokens, sequence.num_unfed_tokens) == (3, 0, 3)
    sequence.num_fed_tokens = 3
    sequence.num_unknown_tokens = 1
    assert sequence.num_unfed_tokens == 1
    sequence.forget_steps()
    assert sequence.num_unfed_tokens == 3


def test_prompt_logprobs_are_wanted_until_there_is_output():
    sampling = SamplingParams(max_tokens=4, end_ids=frozenset(), prompt_logprobs=True)
    sequence = Sequence(Request(request_id=RequestId("a"), prompt_token_ids=(1, 2), sampling=sampling), arrival=0)
    assert sequence.wants_prompt_logprobs
    sequence.token_ids.append(3)
    assert not sequence.wants_prompt_logprobs
