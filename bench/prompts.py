"""How long a prompt is for the model: with the chat template that every server renders around it."""

from __future__ import annotations

from pathlib import Path

import jinja2
from tokenizers import Tokenizer


class PromptCounter:
    """Counts the tokens of a one-message conversation as the model's own template and tokenizer make them."""

    def __init__(self, model: Path, tokenizer: Tokenizer) -> None:
        source = (model / "chat_template.jinja").read_text()
        self._template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False).from_string(source)  # noqa: S701 - no HTML
        self._tokenizer = tokenizer

    def count(self, prompt: str) -> int:
        """Gives the number of tokens that a server computes before its first answer token."""
        messages = [{"role": "user", "content": prompt}]
        text = self._template.render(messages=messages, add_generation_prompt=True)
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)
