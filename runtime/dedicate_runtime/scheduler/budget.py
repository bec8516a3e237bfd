"""How many tokens of prefill go into one step, so that neither streams nor first tokens wait for long.

A step gives each decoding sequence one token, so what it costs is the gap that a stream's reader sees; what prefill
does not get in it, a first token waits for. Costs are measured by whoever runs the steps, in units of a step that only
decodes:

1. While something decodes, long prompts add at most one such unit to a step: its gap is twice the usual one, and half
   of the time goes to the prompt.
2. Short prompts, and what is left of long ones once that is short, add at most four: a first token soon is worth one
   longer gap to those who stream. "Short" is what four units compute. More prompts than that wait for the next step
   instead of all getting their first token at the end of a long one.
3. While nothing decodes, the first prompt may have the whole step, less the short prompts' share if others are in line.
4. However dear prefill is, a step takes in a floor of tokens: it always gets on.
5. Once in a while a step only decodes although prompts are there, so that the unit stays known.

Until costs are known there is no limit but the step's own.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dedicate_runtime.core.batch import ScheduledBatch

_LONG_SHARE = 1.0
_SHORT_SHARE = 4.0
MAX_STEPS_WITH_PREFILL = 32
"""One after the other, while costs are known; arbitrary."""

_NUM_SAMPLES = 15
"""Arbitrary: the median follows a change within eight steps and takes no notice of single slow ones."""
_MIN_SAMPLE_TOKENS = 16
"""Fewer tokens of prefill are lost in the noise of the step; arbitrary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCosts:
    """What steps cost lately: one that only decodes, and what each token of prefill adds to a step."""

    decode_s: float
    prefill_token_s: float


class CostMeter:
    """Medians over the last steps."""

    def __init__(self) -> None:
        self._decode_s: deque[float] = deque(maxlen=_NUM_SAMPLES)
        self._prefill_token_s: deque[float] = deque(maxlen=_NUM_SAMPLES)
        self.costs: StepCosts | None = None
        """None until steps of both kinds have been seen."""

    def observe(self, batch: ScheduledBatch, seconds: float) -> None:
        """Takes in what a step took."""
        num_prefill_tokens = batch.num_tokens - batch.num_decode_rows
        if not num_prefill_tokens:
            self._decode_s.append(seconds)
        elif num_prefill_tokens >= _MIN_SAMPLE_TOKENS:
            # A step that only prefills reads the weights once, too, which is most of what a step that decodes does.
            decode_s = median(self._decode_s) if self._decode_s else 0.0
            self._prefill_token_s.append(max(seconds - decode_s, 0.0) / num_prefill_tokens)
        if self._decode_s and self._prefill_token_s:
            self.costs = StepCosts(decode_s=median(self._decode_s), prefill_token_s=median(self._prefill_token_s))


class PrefillBudget:
    """What one step's prefill may still take. `num_left` is the hard limit of the step."""

    def __init__(
        self, num_left: int, *, costs: StepCosts | None, floor: int, is_decoding: bool, has_others_in_line: bool
    ) -> None:
        self.num_left = num_left
        self._max_short = num_left
        self._short_left = num_left
        self._long_left = num_left
        if costs is not None and costs.prefill_token_s > 0:
            tokens_per_unit = costs.decode_s / costs.prefill_token_s
            self._short_left = int(min(max(_SHORT_SHARE * tokens_per_unit, floor), num_left))
            self._long_left = int(min(max(_LONG_SHARE * tokens_per_unit, floor), num_left))
            self._max_short = self._short_left
        self._first_left = 0
        if not is_decoding:
            self._first_left = num_left
            if has_others_in_line:
                self._first_left = max(num_left - self._short_left, self._long_left)

    @property
    def is_open(self) -> bool:
        """True if a short prompt would get something."""
        return self.num_left > 0 and self._short_left > 0

    def take(self, num_wanted: int) -> int:
        """Tokens that a prompt of which `num_wanted` are not cached may feed in this step; 0 if it has to wait."""
        if num_wanted > self._max_short and self._first_left:
            num_taken = min(num_wanted, self._first_left)
        else:
            share = self._short_left if num_wanted <= self._max_short else self._long_left
            num_taken = max(min(num_wanted, share, self.num_left), 0)
            self._short_left -= num_taken
            self._long_left -= num_taken
        if num_taken:
            self._first_left = 0
        self.num_left -= num_taken
        return num_taken
