"""What the soak sends and what counts as an answer: a pure draw from a seed, and a pure judgement."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench.stream import Address, Answer

_WORDS = "the sea was calm and every sailor on deck knew that a storm would come before the night had passed".split()  # noqa: SIM905
_MAX_PROMPT_WORDS = 500
_MAX_TOKENS = 160
_NUM_PREFIXES = 4
_PREFIX_WORDS = 300
_STOPS = (".", "\n", " the", "and", "storm")
_MAX_QUIT_BYTES = 6_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SoakRequest:
    """One request and what may come back. `quit_after_bytes`: the client hangs up then."""

    kind: str
    endpoint: str
    body: dict[str, Any] | str
    """A text is sent as it is: it is no JSON."""
    num_choices: int = 1
    quit_after_bytes: int | None = None
    expected_status: int = 200

    def encode(self, address: Address) -> bytes:
        """Gives the bytes of the request."""
        if not isinstance(self.body, str):
            return address.encode(self.endpoint, self.body)
        return (
            address.encode(self.endpoint, {}).replace(b"Content-Length: 2\r\n", self._length()).removesuffix(b"{}")
            + self.body.encode()
        )

    def _length(self) -> bytes:
        return f"Content-Length: {len(str(self.body).encode())}\r\n".encode()


class SoakDraw:
    """An endless, repeatable series of requests of all kinds."""

    def __init__(self, model: str, *, seed: int) -> None:
        self._model = model
        self._rng = random.Random(seed)
        self._prefixes = [self._text(_PREFIX_WORDS) for _ in range(_NUM_PREFIXES)]
        self._kinds: list[tuple[int, Callable[[], SoakRequest]]] = [
            (30, self._chat),
            (15, self._shared_prefix),
            (15, self._client_gone),
            (10, self._stopped),
            (10, self._several_choices),
            (10, self._text_completion),
            (10, self._bad),
        ]

    def next(self) -> SoakRequest:
        """Draws the next request."""
        weights = [weight for weight, _ in self._kinds]
        (kind,) = self._rng.choices([draw for _, draw in self._kinds], weights=weights)
        return kind()

    def _text(self, num_words: int) -> str:
        return " ".join(self._rng.choices(_WORDS, k=num_words))

    def _body(self, **fields: Any) -> dict[str, Any]:
        rng = self._rng
        return {
            "model": self._model,
            "max_tokens": rng.randint(1, _MAX_TOKENS),
            "temperature": rng.choice([0, 0.7, 1.3]),
            "top_k": rng.choice([0, 5, 40]),
            "repetition_penalty": rng.choice([1.0, 1.0, 1.2]),
            "seed": rng.randrange(1000),
            "stream": rng.random() < 0.7,
            "messages": [{"role": "user", "content": self._text(rng.randint(1, _MAX_PROMPT_WORDS))}],
            **fields,
        }

    def _chat(self) -> SoakRequest:
        return SoakRequest(kind="chat", endpoint="/chat/completions", body=self._body())

    def _shared_prefix(self) -> SoakRequest:
        system = {"role": "system", "content": self._rng.choice(self._prefixes)}
        user = {"role": "user", "content": self._text(self._rng.randint(1, 30))}
        body = self._body(messages=[system, user])
        return SoakRequest(kind="shared prefix", endpoint="/chat/completions", body=body)

    def _client_gone(self) -> SoakRequest:
        return SoakRequest(
            kind="client gone",
            endpoint="/chat/completions",
            body=self._body(stream=True, max_tokens=_MAX_TOKENS),
            quit_after_bytes=self._rng.randint(1, _MAX_QUIT_BYTES),
        )

    def _stopped(self) -> SoakRequest:
        return SoakRequest(
            kind="stop strings", endpoint="/chat/completions", body=self._body(stop=self._rng.sample(_STOPS, 2))
        )

    def _several_choices(self) -> SoakRequest:
        n = self._rng.randint(2, 4)
        return SoakRequest(kind="n > 1", endpoint="/chat/completions", body=self._body(n=n), num_choices=n)

    def _text_completion(self) -> SoakRequest:
        body = self._body(prompt=self._text(self._rng.randint(1, _MAX_PROMPT_WORDS)), logprobs=self._rng.choice([0, 3]))
        del body["messages"]
        return SoakRequest(kind="completion with logprobs", endpoint="/completions", body=body)

    def _bad(self) -> SoakRequest:
        faulty: list[tuple[dict[str, Any] | str, int]] = [
            (self._body(temperature=-1), 400),
            (self._body(messages=[]), 400),
            (self._body(model="nobody/knows-this"), 404),
            (self._body(max_tokens=10**7), 400),
            ('{"model": ', 400),
        ]
        body, status = self._rng.choice(faulty)
        return SoakRequest(kind="bad", endpoint="/chat/completions", body=body, expected_status=status)


def judge(request: SoakRequest, answer: Answer) -> str | None:
    """Says what is wrong with an answer; None if nothing is.

    A full queue (429) is an answer if it says when to retry.
    """
    if answer.status == 429:
        return None if answer.headers.get("retry-after") else "429 without Retry-After"
    if answer.status != request.expected_status:
        return f"status {answer.status}, not {request.expected_status}: {json.dumps(answer.events)[:200]}"
    if not answer.is_whole:
        return "the answer breaks off"
    if answer.status != 200:
        has_message = any((event.get("error") or {}).get("message") for _, event in answer.events)
        return None if has_message else "an error without a message"
    finished: dict[int, str] = {}
    for _, event in answer.events:
        if event.get("error"):
            return f"an error in the answer: {event['error']}"
        for choice in event.get("choices") or []:
            if choice.get("finish_reason"):
                finished[choice["index"]] = choice["finish_reason"]
    if len(finished) != request.num_choices:
        return f"{len(finished)} of {request.num_choices} choices have a finish_reason"
    unknown = set(finished.values()) - {"stop", "length"}
    return f"finish_reason {unknown}" if unknown else None
