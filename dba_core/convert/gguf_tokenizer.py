"""The tokenizer of a GGUF file as a Hugging Face tokenizer.json: byte-level BPE. Called by `gguf_file`.

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


def tokenizer_config(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What the file says of special tokens, in the names of a tokenizer_config.json; {} without tokenizer."""
    tokens = fields.get("tokenizer.ggml.tokens")
    if tokens is None:
        return {}
    found = {name: _special(fields, key) for name, key in _NAMES.items()}
    ends = [number for name in _ENDS if (number := _special(fields, name)) is not None]
    llama = fields.get("tokenizer.ggml.model") == "llama" or fields.get("tokenizer.ggml.pre") == "llama-bpe"
    document: dict[str, Any] = {
        f"{name}_token": tokens[number]
        for name, number in found.items()
        if number is not None and 0 <= number < len(tokens)
    }
    document["add_bos_token"] = fields.get("tokenizer.ggml.add_bos_token", llama)
    document["add_eos_token"] = fields.get("tokenizer.ggml.add_eos_token", False)
    if found["bos"] is not None:
        document["bos_token_id"] = found["bos"]
    if ends:
        document["eos_token_id"] = ends
    if "tokenizer.chat_template" in fields:
        document["chat_template"] = fields["tokenizer.chat_template"]
    return document


def _special(fields: Mapping[str, Any], name: str) -> int | None:
    number = fields.get(f"tokenizer.ggml.{name}_token_id")
    return None if number is None or number in _NO_TOKEN else int(number)


def tokenizer_json(fields: Mapping[str, Any]) -> str | None:
    """The text of a tokenizer.json; None for a kind of tokenizer that is not rebuilt here."""
    pre = fields.get("tokenizer.ggml.pre", "gpt-2")
    if fields.get("tokenizer.ggml.model") != "gpt2" or pre not in _PRE_TOKENIZERS:
        return None
    if not {"tokenizer.ggml.tokens", "tokenizer.ggml.merges"} <= fields.keys():
        return None
    tokens = fields["tokenizer.ggml.tokens"]
    kinds = fields.get("tokenizer.ggml.token_type", [])
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
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": fields["tokenizer.ggml.merges"],
        },
    }
    return json.dumps(document, ensure_ascii=False)


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
