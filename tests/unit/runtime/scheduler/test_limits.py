"""A step that did not fit makes later ones smaller, for a while."""

from __future__ import annotations

from dedicate_runtime.scheduler.limits import SchedulerLimits, StepLimit


def make_limit():
    return StepLimit(SchedulerLimits(max_num_seqs=32, max_num_batched_tokens=512, max_sequences=64, max_model_len=1024))


def test_limit_is_half_of_what_did_not_fit():
    limit = make_limit()
    limit.shrink(400)
    assert (limit.num_tokens, limit.num_seqs) == (200, 32)
    limit.shrink(31)
    assert (limit.num_tokens, limit.num_seqs) == (15, 15)


def test_limit_doubles_after_many_steps_that_fit_and_never_exceeds_its_most():
    limit = make_limit()
    limit.shrink(300)
    sizes = []
    for _ in range(1000):
        limit.grow()
        sizes.append(limit.num_tokens)
    assert sizes[200] == 150
    assert sorted(set(sizes)) == [150, 300, 512]


def test_limit_starts_counting_again_after_each_step_that_does_not_fit():
    limit = make_limit()
    for _ in range(20):
        limit.shrink(300)
        for _ in range(100):
            limit.grow()
    assert limit.num_tokens == 150
