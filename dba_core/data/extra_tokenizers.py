"""The tokenizers of two optional packages, Hugging Face `tokenizers` and `tiktoken`. For `load_tokenizer`.

Neither package is imported before a tokenizer of it is asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dba_core.data.text_stream import REPLACEMENT, ByteTextStream, TextStream, WindowTextStream
from dba_core.data.tokenizers import Tokens, real_text, token_dtype
from dba_core.distribution import install_command
from dba_core.errors import DataError, unknown

_KEY = "data.tokenizer"


def _extra(name: str) -> Any:
    """The optional package, which ships no types that hold when it is absent."""
    if importlib.util.find_spec(name) is None:
        raise DataError(
            f"this tokenizer needs the package {name!r}, which is not installed. "
            f"Install it: {install_command(name)}",
            path=_KEY,
        )
    return importlib.import_module(name)


class JsonTokenizer:
    """A Hugging Face `tokenizer.json`. Special tokens are neither added nor hidden."""

    def __init__(self, tokenizer: Any, *, name: str) -> None:
        self.name = name
        self._tokenizer = tokenizer
        self.vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def encode(self, text: str) -> Tokens:
        ids = self._tokenizer.encode(real_text(text), add_special_tokens=False).ids
        return np.array(ids, dtype=token_dtype(self.vocab_size))

    def decode(self, ids: Sequence[int] | Tokens) -> str:
        known = [int(token) for token in ids if 0 <= token < self.vocab_size]
        return str(self._tokenizer.decode(known, skip_special_tokens=False))

    def n_bytes(self, ids: Sequence[int] | Tokens) -> int:
        """Bytes of the decoded text; a tokenizer that loses text on the way counts what is left."""
        return len(self.decode(ids).encode("utf-8"))

    def stream(self, context: Sequence[int] = ()) -> TextStream:
        return WindowTextStream(self.decode, context=context)


def load_tokenizer_json(path: Path) -> JsonTokenizer:
    """Read `tokenizer.json` (the fast tokenizers' file, not `vocab.json` or `tokenizer_config.json`)."""
    try:
        content = json.loads(path.read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(
            f"{str(path)!r} is no JSON file ({error}); give a Hugging Face tokenizer.json", path=_KEY
        ) from None
    if not (isinstance(content, dict) and isinstance(content.get("model"), dict)):
        raise DataError(
            f"{str(path)!r} is JSON but no tokenizer: it has no 'model' object. Give the tokenizer.json that "
            "`tokenizer.save()` or `save_pretrained()` writes, not vocab.json or tokenizer_config.json",
            path=_KEY,
        )
    tokenizer = JsonTokenizer(_extra("tokenizers").Tokenizer.from_file(str(path)), name=str(path))
    if tokenizer.vocab_size == 0:
        raise DataError(f"the tokenizer {str(path)!r} has an empty vocabulary; train it first", path=_KEY)
    return tokenizer


class TiktokenTokenizer:
    """An encoding of `tiktoken`: tokens are byte strings. Special tokens in a text are plain text."""

    def __init__(self, encoding: Any, *, name: str) -> None:
        self.name = name
        self._encoding = encoding
        self.vocab_size = int(encoding.n_vocab)

    def encode(self, text: str) -> Tokens:
        return np.array(self._encoding.encode_ordinary(real_text(text)), dtype=token_dtype(self.vocab_size))

    def decode(self, ids: Sequence[int] | Tokens) -> str:
        return b"".join(map(self._token_bytes, ids)).decode("utf-8", errors="replace")

    def n_bytes(self, ids: Sequence[int] | Tokens) -> int:
        return sum(len(self._token_bytes(token)) for token in ids)

    def stream(self, context: Sequence[int] = ()) -> TextStream:
        return ByteTextStream(self._token_bytes, context=context)

    def _token_bytes(self, token: int) -> bytes:
        try:
            return bytes(self._encoding.decode_single_token_bytes(int(token)))
        except KeyError:  # the vocabularies have holes, and a model may sample one
            return REPLACEMENT.encode("utf-8")


def load_tiktoken(name: str) -> TiktokenTokenizer:
    """The encoding `name` (`gpt2`, `cl100k_base` ...); tiktoken downloads it on first use and keeps it."""
    tiktoken = _extra("tiktoken")
    allowed = tiktoken.list_encoding_names()
    if name not in allowed:
        raise DataError(unknown("tiktoken encoding", name, allowed), path=_KEY)
    try:
        encoding = tiktoken.get_encoding(name)
    except OSError as error:  # network errors of its download are OSErrors too
        raise DataError(
            f"tiktoken could not fetch the encoding {name!r} ({type(error).__name__}: {error}). It is "
            "downloaded once: connect to the internet, or set TIKTOKEN_CACHE_DIR to a folder that holds it, "
            "or use tokenizer 'bytes'",
            path=_KEY,
        ) from error
    return TiktokenTokenizer(encoding, name=f"tiktoken:{name}")
