"""A repository from before `tokenizer.json`: vocabulary and merges alone."""

from __future__ import annotations

import json

from dedicate_runtime.api.model_tokenizer import load_tokenizer


def test_vocabulary_and_merges_alone_give_the_same_ids(model_folder, tmp_path):
    modern = json.loads((model_folder / "tokenizer.json").read_text())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in modern["merges"]]
    (tmp_path / "vocab.json").write_text(json.dumps(modern["vocab"]))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    specials = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer", **specials}))
    older, newer = load_tokenizer(tmp_path), load_tokenizer(model_folder)
    assert older.eos_token == "<|im_end|>"
    assert older.special_id("<|im_end|>") == newer.special_id("<|im_end|>")
    for text in ("The capital of France", "Grüße!", "a\n\nb"):
        assert older.encode(text, add_special_tokens=False) == newer.encode(text, add_special_tokens=False)
