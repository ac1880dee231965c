"""The tokenizer of a GGUF file as a Hugging Face tokenizer.json: byte-level BPE.

tokenizer.ggml.model           gpt2 (byte-level BPE); sentencepiece models are left out: no tokenizer then
tokenizer.ggml.pre             how text is cut before merging
tokenizer.ggml.bos_token_id    and so on: special tokens; `eos`, `eot` and `eom` all end a text
tokenizer.ggml.add_bos_token   where it is missing, llama.cpp adds one for sentencepiece and Llama 3
tokenizer.chat_template        of Jinja
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from dba_core.errors import CheckpointError
from dba_core.printable import printable
from dba_plugins.checkpoints.fields import Fields

_CONTROL = 3  # llama.cpp's token type of special tokens
_USER_DEFINED = 4

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_DIGITS = {"type": "Digits", "individual_digits": True}
_PRE_TOKENIZERS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [_BYTE_LEVEL],
    "smollm": [_DIGITS, _BYTE_LEVEL],
    "starcoder": [_DIGITS, _BYTE_LEVEL],
    "llama-bpe": [
        {"type": "Split", "pattern": {"Regex": _LLAMA3}, "behavior": "Isolated", "invert": False},
        {**_BYTE_LEVEL, "use_regex": False},
    ],
}


_NAMES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "sep": "seperator", "mask": "mask"}
_ENDS = ("eos", "eot", "eom")
_NO_TOKEN = (-1, (1 << 32) - 1)


def tokenizer_config(fields: Fields) -> dict[str, Any]:
    """What the file says of special tokens, in the names of a tokenizer_config.json; {} without tokenizer.
    Raises CheckpointError for fields that are of another type.
    """
    if "tokenizer.ggml.tokens" not in fields.table:
        return {}
    tokens = _texts(fields, "tokenizer.ggml.tokens")
    found = {name: _special(fields, key) for name, key in _NAMES.items()}
    ends = [number for name in _ENDS if (number := _special(fields, name)) is not None]
    llama = (
        fields.table.get("tokenizer.ggml.model") == "llama"
        or fields.table.get("tokenizer.ggml.pre") == "llama-bpe"
    )
    document: dict[str, Any] = {
        f"{name}_token": tokens[number]
        for name, number in found.items()
        if number is not None and 0 <= number < len(tokens)
    }
    document["add_bos_token"] = fields.flag("tokenizer.ggml.add_bos_token", default=llama)
    document["add_eos_token"] = fields.flag("tokenizer.ggml.add_eos_token", default=False)
    if found["bos"] is not None:
        document["bos_token_id"] = found["bos"]
    if ends:
        document["eos_token_id"] = ends
    if "tokenizer.chat_template" in fields.table:
        document["chat_template"] = fields.text("tokenizer.chat_template")
    return document


def _special(fields: Fields, name: str) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    if fields.table.get(key, -1) in _NO_TOKEN:
        return None
    return fields.whole(key, least=0)


def tokenizer_json(fields: Fields) -> str | None:
    """The text of a tokenizer.json; None for a kind of tokenizer that is not rebuilt here. Raises
    CheckpointError for fields that are of another type or do not fit each other.
    """
    pre = fields.text("tokenizer.ggml.pre", default="gpt-2")
    if fields.table.get("tokenizer.ggml.model") != "gpt2" or pre not in _PRE_TOKENIZERS:
        return None
    if not {"tokenizer.ggml.tokens", "tokenizer.ggml.merges"} <= fields.table.keys():
        return None
    tokens, merges = (_texts(fields, f"tokenizer.ggml.{name}") for name in ("tokens", "merges"))
    kinds = _kinds(fields, len(tokens))
    numbers = {token: number for number, token in enumerate(tokens)}
    if len(numbers) < len(tokens):
        twice = next(token for number, token in enumerate(tokens) if numbers[token] != number)
        raise CheckpointError(
            f"{fields.where}: the token {printable(twice)!r} is in tokenizer.ggml.tokens twice; get the file "
            "again, or give another of the same model"
        )
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added(number, tokens[number], special=kind == _CONTROL)
            for number, kind in enumerate(kinds)
            if kind in (_CONTROL, _USER_DEFINED)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _PRE_TOKENIZERS[pre]},
        "post_processor": _template(tokenizer_config(fields)),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre == "llama-bpe",
            "vocab": numbers,
            "merges": merges,
        },
    }
    return json.dumps(document, ensure_ascii=False)


def _texts(fields: Fields, name: str) -> list[str]:
    value = fields.raw(name)
    if not isinstance(value, list):  # the format's lists hold texts
        raise fields.wrong(name, "an array of texts")
    return value


def _kinds(fields: Fields, n_tokens: int) -> list[int]:
    """The type of each token; none where the file does not say."""
    name = "tokenizer.ggml.token_type"
    value = fields.table.get(name)
    if value is None:
        return []
    if not isinstance(value, np.ndarray) or len(value) != n_tokens:
        raise fields.wrong(name, f"an array of {n_tokens} numbers, one for each token")
    kinds: list[int] = value.tolist()
    return kinds


def _added(number: int, token: str, *, special: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": number, "content": token, **flags, "special": special}


def _template(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The post-processor that adds what the file says, so that every reader of the tokenizer.json adds it."""
    before = [config["bos_token"]] if config.get("add_bos_token") and "bos_token" in config else []
    after = [config["eos_token"]] if config.get("add_eos_token") and "eos_token" in config else []
    if not before and not after:
        return None
    numbers = {
        "bos_token": config.get("bos_token_id"),
        "eos_token": (config.get("eos_token_id") or [None])[0],
    }
    texts = {config[name]: number for name, number in numbers.items() if name in config}
    parts: list[dict[str, Any]] = [{"SpecialToken": {"id": text, "type_id": 0}} for text in before]
    parts += [{"Sequence": {"id": "A", "type_id": 0}}]
    parts += [{"SpecialToken": {"id": text, "type_id": 0}} for text in after]
    pair = [*parts, {"Sequence": {"id": "B", "type_id": 1}}]
    return {
        "type": "TemplateProcessing",
        "single": parts,
        "pair": pair,
        "special_tokens": {
            text: {"id": text, "ids": [texts[text]], "tokens": [text]} for text in (*before, *after)
        },
    }
