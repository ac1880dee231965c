"""What the files beside a Hugging Face model say of its special tokens. Called by `huggingface`.

    tokenizer_config.json     bos_token, eos_token, ..., chat_template
    special_tokens_map.json   the same tokens, in older folders
    chat_template.jinja       goes before the template in tokenizer_config.json
    generation_config.json    bos_token_id, eos_token_id (one or several): where generation stops
    config.json               the same, where generation_config.json does not say

One document comes out, with the same names. `add_bos_token` and `add_eos_token` stay out of it: where there
is a tokenizer.json its post-processor decides what is added, as in transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dba_core.documents import read_object, read_text
from dba_core.errors import CheckpointError

_ADVICE = "Download it again, or remove it"
_IDS = ("bos_token_id", "eos_token_id")


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """The document; files that are not there say nothing. Raises CheckpointError for a damaged one."""
    files = {
        name: _object(folder / name)
        for name in (
            "special_tokens_map.json",
            "tokenizer_config.json",
            "config.json",
            "generation_config.json",
        )
    }
    document: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        document |= {key: value for key, value in files[name].items() if _is_token(key) and value is not None}
    for name in ("config.json", "generation_config.json"):
        document |= {key: files[name][key] for key in _IDS if files[name].get(key) is not None}
    template = folder / "chat_template.jinja"
    if template.is_file():
        document["chat_template"] = read_text(template, error=CheckpointError, advice=_ADVICE)
    elif files["tokenizer_config.json"].get("chat_template") is not None:
        document["chat_template"] = files["tokenizer_config.json"]["chat_template"]
    return document


def tokenizer_notes(folder: Path, tokenizer_json: str | None) -> tuple[str, ...]:
    """What a user should know of the tokens: where transformers 5 does not read the file as it stands."""
    if tokenizer_json is None or '"Prepend"' not in tokenizer_json:
        return ()
    name = _object(folder / "tokenizer_config.json").get("tokenizer_class")
    if name not in ("LlamaTokenizer", "LlamaTokenizerFast"):
        return ()
    return (
        f"Tokens are those of tokenizer.json as it stands. transformers 5 reads a {name} in its own way: "
        "it gives other tokens to a text that begins with a space, and after a special token.",
    )


def _is_token(key: str) -> bool:
    return key.endswith("_token") and not key.startswith("add_")


def _object(path: Path) -> Mapping[str, Any]:
    return read_object(path, error=CheckpointError, advice=_ADVICE) if path.is_file() else {}
