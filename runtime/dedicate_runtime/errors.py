"""Every error that crosses a layer of the runtime, as the domain sees it.

The API turns `RequestError`s into the OpenAI envelope; the composition root turns `StartError`s into an exit code and
one sentence. Library exceptions are mapped to these where the library is called, and nowhere else.
"""

from __future__ import annotations

from enum import Enum, IntEnum


class ExitCode(IntEnum):
    """Exit codes of the runtime; the operator reads them. Source: docs/contract.md."""

    INVALID_ARGUMENTS = 2
    MODEL_NOT_FOUND = 10
    GATED_REPO = 11
    MODEL_CORRUPT = 12
    UNSUPPORTED_MODEL = 13
    DEVICE_UNAVAILABLE = 14
    OUT_OF_MEMORY = 15
    DISK_FULL = 16
    CONTEXT_TOO_LONG = 17
    HUB_UNREACHABLE = 18
    UNAUTHORIZED = 19
    CORRUPT_FILE = 20
    INTERNAL_ERROR = 70


class StartError(Exception):
    """The runtime cannot start: one sentence for people, one code for the operator."""

    def __init__(self, exit_code: ExitCode, sentence: str) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code
        self.sentence = sentence


class RequestError(Exception):
    """A request that is refused or has failed, told to its client and to nobody else."""


class RefusalReason(Enum):
    """Which bound kept a request out of the queue."""

    QUEUE_FULL = "queue_full"
    QUEUE_TOKENS = "queue_tokens"
    QUEUE_TIME = "queue_time"
    DEADLINE = "deadline"


class QueueFullError(RequestError):
    """The bounded queue has no room for all sequences of a request; none was admitted.

    After `retry_after_s` there is expected to be room.
    """

    def __init__(
        self, sentence: str, *, reason: RefusalReason = RefusalReason.QUEUE_FULL, retry_after_s: float = 5.0
    ) -> None:
        super().__init__(sentence)
        self.reason = reason
        self.retry_after_s = retry_after_s


class TooManySequencesError(RequestError):
    """A request has more sequences than the queue would take if it were empty."""


class EngineUnavailableError(RequestError):
    """The engine is loading, draining or dead; the request may succeed elsewhere or later."""
