"""Fields of the OpenAI format that mean something this runtime does not do. Refusing is kinder than ignoring."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dedicate_runtime.api.errors import refuse

_NO_TOOLS = "This endpoint calls no tools."
_NO_STRUCTURE = "This endpoint does not constrain its output."


def _empty(value: object) -> bool:
    return not value


def _one_of(*neutral: object) -> Callable[[object], bool]:
    return lambda value: value in neutral


UNSUPPORTED_FIELDS: dict[str, tuple[Callable[[object], bool], str]] = {
    "tools": (_empty, _NO_TOOLS),
    "tool_choice": (_one_of("none", "auto"), _NO_TOOLS),
    "functions": (_empty, _NO_TOOLS),
    "function_call": (_one_of("none", "auto"), _NO_TOOLS),
    "response_format": (_one_of({"type": "text"}), "Only the response format text is supported."),
    "structured_outputs": (_empty, _NO_STRUCTURE),
    "guided_json": (_empty, _NO_STRUCTURE),
    "guided_regex": (_empty, _NO_STRUCTURE),
    "guided_choice": (_empty, _NO_STRUCTURE),
    "guided_grammar": (_empty, _NO_STRUCTURE),
    "modalities": (_one_of(["text"], []), "Only the modality text is supported."),
    "audio": (_empty, "This endpoint makes no audio."),
    "prediction": (_empty, "Predicted outputs are not supported."),
    "web_search_options": (lambda value: value is None, "This endpoint searches nothing."),
    "store": (_empty, "This endpoint stores nothing."),
    "suffix": (_empty, "A suffix is not supported: write the fill-in-the-middle tokens into the prompt."),
    "use_beam_search": (_empty, "Beam search is not supported."),
    "prompt_embeds": (_empty, "Embeddings as prompts are not supported."),
}
"""Field -> (whether a value asks for nothing, the sentence if it asks for something)."""


def refuse_unsupported(body: Mapping[str, object]) -> None:
    """Checks the fields that cannot be honoured.

    Raises:
        ApiError: 400 that names the first of them whose value asks for something.
    """
    for name, (asks_nothing, sentence) in UNSUPPORTED_FIELDS.items():
        value = body.get(name)
        if value is not None and not asks_nothing(value):
            refuse(name, sentence)
