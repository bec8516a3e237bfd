"""What a step and the queue may hold."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    """Fixed for the life of a scheduler. `max_sequences` counts running and waiting together."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_sequences: int
    max_model_len: int
    max_queued_tokens: int | None = None
    """Prompt tokens of all waiting sequences together; None leaves the bound to `max_sequences`."""
    min_prefill_tokens: int = 16
    """What prefill gets of a step however dear it is. Arbitrary; more where a step with prefill has a price of its own
    that few tokens do not earn back."""


class StepLimit:
    """Tokens that a step may hold, and by that how many sequences may run: less for a while when memory ran out.

    After a shrink, each `_GOOD_STEPS` steps that fit double it again.
    """

    _GOOD_STEPS = 256
    """Arbitrary: seconds on a GPU, half a minute on a CPU. A step that does not fit is lost work."""

    def __init__(self, limits: SchedulerLimits) -> None:
        self._most = limits.max_num_batched_tokens
        self._most_seqs = limits.max_num_seqs
        self._num_good_steps = 0
        self.num_tokens = self._most

    @property
    def num_seqs(self) -> int:
        """Each needs a token of the step once it decodes."""
        return min(self._most_seqs, self.num_tokens)

    def shrink(self, num_tokens: int) -> None:
        """A step of `num_tokens` did not fit: later ones hold half of it."""
        self.num_tokens = max(num_tokens // 2, 1)
        self._num_good_steps = 0

    def grow(self) -> None:
        """A step did fit."""
        if self.num_tokens < self._most:
            self._num_good_steps += 1
            if self._num_good_steps == self._GOOD_STEPS:
                self.num_tokens = min(2 * self.num_tokens, self._most)
                self._num_good_steps = 0

    def restore(self) -> None:
        """What was too large is gone."""
        self.num_tokens = self._most
