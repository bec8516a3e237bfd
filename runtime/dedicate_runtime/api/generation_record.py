"""What is told of a request that generates, in the access log and in traces: filled in as it goes, read at its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dedicate_runtime.core.request import SamplingParams
    from dedicate_runtime.engine.interface import SequenceTimes


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a request's life, by `time.monotonic`."""

    name: str
    began_at: float
    ended_at: float

    @property
    def duration_s(self) -> float:
        return self.ended_at - self.began_at


@dataclass(slots=True, kw_only=True)
class GenerationRecord:
    """What was asked for, and what came of it. `prompt` and `completion` stay empty unless they are to be logged."""

    operation: str
    """`chat` or `text_completion`, as OpenTelemetry calls the two."""
    answer_id: str
    requested_model: str
    """One of the served names."""
    model: str
    is_stream: bool
    num_choices: int
    sampling: SamplingParams
    """Of the first choice."""
    finish_reasons: list[str | None] = field(init=False)
    """By choice; None for those that did not finish."""
    phases: tuple[Phase, ...] = ()
    prompt: Any = None
    """Messages, or texts and lists of token ids."""
    completion: Any = None
    """Texts, by choice."""

    def __post_init__(self) -> None:
        self.finish_reasons = [None] * self.num_choices


def build_phases(times: Sequence[SequenceTimes]) -> tuple[Phase, ...]:
    """Lays out a request's life in the engine: `queue`, `prefill`, `decode`, as far as it came.

    Each lasts from the first of its sequences that enters it to the last that leaves it: those of one sequence follow
    each other, those of several overlap.
    """
    phases = []
    if times:
        began_at = min(each.submitted_at for each in times)
        phases.append(Phase("queue", began_at, max(each.started_at or each.ended_at for each in times)))
    started = [(each.started_at, each) for each in times if each.started_at is not None]
    if started:
        began_at = min(start for start, _ in started)
        phases.append(Phase("prefill", began_at, max(each.first_token_at or each.ended_at for _, each in started)))
    decoding = [(each.first_token_at, each.ended_at) for each in times if each.first_token_at is not None]
    if decoding:
        phases.append(Phase("decode", min(start for start, _ in decoding), max(end for _, end in decoding)))
    return tuple(phases)
