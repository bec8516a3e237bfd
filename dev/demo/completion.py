"""Ask an endpoint for a completion as any client would, and give the text as it comes."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from dev.demo.errors import DemoError

_READ_TIMEOUT_S = 120
# The ingress controller learns of a ready pod a moment after the endpoint says so.
_ROUTE_DEADLINE_S = 30
_RETRY_S = 0.3


@dataclass(frozen=True)
class Client:
    """An endpoint's base URL, a key and the model's name."""

    url: str
    key: str
    model: str

    def await_route(self) -> None:
        """Return once the endpoint answers with a list of its models.

        Raises:
            DemoError: it does not before the deadline; the message has the last answer.
        """
        ends = time.monotonic() + _ROUTE_DEADLINE_S
        while True:
            try:
                answer = httpx.get(f"{self.url}/models", headers=self._headers, timeout=_RETRY_S * 10, trust_env=False)
                if answer.status_code == 200:
                    return
                problem = f"status {answer.status_code}: {answer.text[:200]}"
            except httpx.HTTPError as error:
                problem = str(error)
            if time.monotonic() > ends:
                raise DemoError(f"{self.url}/models does not answer as it should: {problem}.")
            time.sleep(_RETRY_S)

    def stream_chat(self, question: str) -> Iterator[str]:
        """Yield the pieces of an answer as the server sends them.

        Raises:
            DemoError: the server refused the request or the stream broke.
        """
        body = self._chat(question) | {"stream": True}
        try:
            with httpx.stream(
                "POST", f"{self.url}/chat/completions", json=body, headers=self._headers, timeout=_READ_TIMEOUT_S,
                trust_env=False,
            ) as answer:  # fmt: skip
                if answer.status_code != 200:
                    raise DemoError(f"{self.url} answered {answer.status_code}: {answer.read().decode()[:300]}")
                yield from _read_pieces(answer)
        except httpx.HTTPError as error:
            raise DemoError(f"The stream from {self.url} broke: {error}.") from error

    def curl_lines(self) -> list[str]:
        """Return a line to paste for each of the two endpoints; the second has the other spelling of the header."""
        chat = self._chat("Name three rivers.") | {"stream": True}
        text = {"model": self.model, "prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}
        return [
            self._curl("chat/completions", chat, f"Authorization: Bearer {self.key}", "--no-buffer"),
            self._curl("completions", text, f"Autherization: Bearer {self.key}"),
        ]

    @property
    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def _chat(self, question: str) -> dict[str, Any]:
        return {"model": self.model, "messages": [{"role": "user", "content": question}], "max_tokens": 64}

    def _curl(self, path: str, body: dict[str, Any], *headers_and_options: str) -> str:
        header, *options = headers_and_options
        words = ["curl", "--silent", *options, f"{self.url}/{path}", "-H", header]
        words += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
        return shlex.join(words)


def _read_pieces(answer: httpx.Response) -> Iterator[str]:
    for line in answer.iter_lines():
        if not line.startswith("data: ") or line == "data: [DONE]":
            continue
        event = json.loads(line.removeprefix("data: "))
        if "error" in event:
            raise DemoError(f"The server ended the stream: {event['error'].get('message')}")
        for choice in event.get("choices", []):
            yield choice["delta"].get("content") or ""
