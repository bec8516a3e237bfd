"""Everything the API knows of the model it serves, read once when the engine is ready."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dedicate_runtime.api.chat_template import ChatTemplate, load_chat_template
from dedicate_runtime.api.model_tokenizer import ModelTokenizer, load_tokenizer, read_json
from dedicate_runtime.core.request import ModelInfo
from dedicate_runtime.settings import SamplingSource, Settings

_MODEL_DEFAULTS = ("temperature", "top_p", "top_k", "repetition_penalty")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A loaded model, as its clients meet it.

    `end_ids` is the union of config, generation_config and the tokenizer's eos_token: some chat models name one id in
    config.json and end their turns with another. `sampling_defaults` overrides the specification's where it has a name.
    """

    names: tuple[str, ...]
    info: ModelInfo
    tokenizer: ModelTokenizer
    template: ChatTemplate | None
    end_ids: frozenset[int]
    sampling_defaults: Mapping[str, float | int]
    clamp_max_tokens: bool
    loaded_at: int

    @property
    def name(self) -> str:
        """The name that answers report."""
        return self.names[0]


def load_served_model(info: ModelInfo, settings: Settings) -> ServedModel:
    """Reads tokenizer, chat template and defaults from the model's folder. Takes up to a second.

    Raises:
        StartError: a file is missing or unreadable.
    """
    folder = Path(info.folder)
    tokenizer = load_tokenizer(folder)
    special = {"bos_token": tokenizer.bos_token or "", "eos_token": tokenizer.eos_token or ""}
    config, generation = read_json(folder / "config.json"), read_json(folder / "generation_config.json")
    eos_id = tokenizer.raw.token_to_id(tokenizer.eos_token) if tokenizer.eos_token else None
    use_model_defaults = settings.sampling_defaults is SamplingSource.MODEL
    return ServedModel(
        names=settings.served_model_names,
        info=info,
        tokenizer=tokenizer,
        template=load_chat_template(folder, special),
        end_ids=frozenset(
            token_id
            for token_id in {*_ids(config), *_ids(config.get("text_config")), *_ids(generation), eos_id}
            if token_id is not None
        ),
        sampling_defaults=_model_defaults(generation) if use_model_defaults else {},
        clamp_max_tokens=settings.clamp_max_tokens,
        loaded_at=int(time.time()),
    )


def _ids(config: object) -> list[int]:
    """Reads `eos_token_id`, which is one id, a list of them, or nothing."""
    value = config.get("eos_token_id") if isinstance(config, dict) else None
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, int)]


def _model_defaults(generation: Mapping[str, Any]) -> dict[str, float | int]:
    """Takes the repository's own sampling parameters; one that does not sample is greedy."""
    defaults = {name: generation[name] for name in _MODEL_DEFAULTS if generation.get(name) is not None}
    if generation.get("do_sample") is False:
        defaults["temperature"] = 0.0
    return defaults
