"""Tokenizers: text to tokens and back. Called by the corpus, generation, evaluation and the command line.

`bytes` (the default) needs nothing: a token is one byte of the UTF-8 text. `ids:N` is for token arrays whose
text is unknown. The extras `tokenizers` and `tiktoken` are in `extra_tokenizers`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from dba_core.data.special_tokens import SpecialTokens
from dba_core.data.text_stream import REPLACEMENT, ByteTextStream, TextStream, WindowTextStream
from dba_core.errors import DataError, nearest
from dba_core.printable import no_text

Tokens = npt.NDArray[np.integer[Any]]
#: More tokens than any vocabulary in use has, and few enough that an embedding of them can be allocated.
MAX_VOCABULARY = 1 << 24
_FORMS = "allowed: bytes, ids:VOCABULARY, tiktoken:NAME, or the path of a Hugging Face tokenizer.json"


class Tokenizer(Protocol):
    """`name` is the text that `load_tokenizer` reads back; tokens are 0 .. vocab_size-1.

    special: what begins and ends the texts of the model that this tokenizer was loaded for, which `encode`
    never adds: `special.start(ids)` is a prompt, `special.around(ids)` a whole text. A tokenizer alone has
    none.
    """

    special: SpecialTokens

    @property
    def name(self) -> str: ...

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str) -> Tokens:
        """One-dimensional array of tokens; no special tokens are added. Raises DataError for a text that
        UTF-8 cannot hold.
        """
        ...

    def decode(self, ids: Sequence[int] | Tokens) -> str:
        """Bytes that are no UTF-8, and ids that are no token, become U+FFFD."""
        ...

    def n_bytes(self, ids: Sequence[int] | Tokens) -> int | None:
        """UTF-8 bytes of the text of these tokens; None where tokens have no text."""
        ...

    def stream(self, context: Sequence[int] = ()) -> TextStream:
        """A fresh incremental decoder for what follows the tokens `context`."""
        ...


def real_text(text: str) -> str:
    """The text itself. Raises DataError for one that UTF-8 cannot hold."""
    if wrong := no_text(text):
        raise DataError(f"a text cannot be turned into tokens: {wrong}")
    return text


def token_dtype(vocab_size: int) -> type[np.unsignedinteger[Any]]:
    """The smallest unsigned type that holds every token."""
    if vocab_size <= 1 << 8:
        return np.uint8
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


class ByteTokenizer:
    """One token per byte of the UTF-8 text."""

    name = "bytes"
    vocab_size = 256
    special = SpecialTokens()

    def encode(self, text: str) -> Tokens:
        return np.frombuffer(real_text(text).encode("utf-8"), dtype=np.uint8)

    def decode(self, ids: Sequence[int] | Tokens) -> str:
        return b"".join(map(_byte, ids)).decode("utf-8", errors="replace")

    def n_bytes(self, ids: Sequence[int] | Tokens) -> int:
        return len(ids)

    def stream(self, context: Sequence[int] = ()) -> TextStream:
        return ByteTextStream(_byte, context=context)


def _byte(token: int) -> bytes:
    """A model may have a larger vocabulary than 256; what is no byte shows as U+FFFD."""
    return bytes((token,)) if 0 <= token < 256 else REPLACEMENT.encode("utf-8")


class IdTokenizer:
    """Tokens without text, for token arrays: the text form is the numbers themselves, separated by spaces."""

    special = SpecialTokens()

    def __init__(self, vocab_size: int) -> None:
        self.name = f"ids:{vocab_size}"
        self.vocab_size = vocab_size

    def encode(self, text: str) -> Tokens:
        words = text.split()
        for position, word in enumerate(words):
            if not (_is_number(word) and int(word) < self.vocab_size):
                raise DataError(
                    f"tokenizer {self.name!r} reads token numbers, got {word!r:.60} at word {position}; "
                    f"allowed: numbers from 0 to {self.vocab_size - 1}, separated by spaces",
                    path="data.tokenizer",
                )
        return np.array([int(word) for word in words], dtype=token_dtype(self.vocab_size))

    def decode(self, ids: Sequence[int] | Tokens) -> str:
        return " ".join(str(int(token)) for token in ids)

    def n_bytes(self, ids: Sequence[int] | Tokens) -> None:
        return None

    def stream(self, context: Sequence[int] = ()) -> TextStream:
        return WindowTextStream(self.decode, context=context)


def load_tokenizer(text: str) -> Tokenizer:
    """The tokenizer of a name: `bytes`, `ids:VOCABULARY`, `tiktoken:NAME` or the path of a tokenizer.json.

    Raises DataError: unknown name, missing extra (with the command that installs it), file that is none.
    """
    if text == "bytes":
        return ByteTokenizer()
    kind, colon, rest = text.partition(":")
    if colon and kind in _PREFIXES:
        return _PREFIXES[kind](rest)
    path = Path(text)
    if path.is_dir():
        raise DataError(f"{text!r} is a folder; give the tokenizer.json inside it", path="data.tokenizer")
    if not path.is_file():
        raise DataError(_not_found(path), path="data.tokenizer")
    from dba_core.data.extra_tokenizers import load_tokenizer_json

    return load_tokenizer_json(path)


def special_of(document: Mapping[str, Any], tokenizer: Tokenizer, *, source: str) -> SpecialTokens:
    """The special tokens that `document` (the fields of a tokenizer_config.json) names, as tokens of
    `tokenizer`. Raises DataError, which names `source`, for a value that makes no sense.
    """
    from dba_core.data.extra_tokenizers import JsonTokenizer

    if not isinstance(tokenizer, JsonTokenizer):
        return SpecialTokens.from_document(document, source=source)
    return SpecialTokens.from_document(
        document, source=source, token_id=tokenizer.token_id, template=tokenizer.template()
    )


def with_special(tokenizer: Tokenizer, special: SpecialTokens) -> Tokenizer:
    """The same tokenizer for a model with these special tokens."""
    made = copy.copy(tokenizer)
    made.special = special
    return made


def check_fit(tokens: Tokens, *, tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raise DataError for tokens that a model of `vocab_size` does not have: the tokenizer is of another."""
    largest = int(tokens.max()) if len(tokens) else -1
    if largest >= vocab_size:
        raise DataError(
            f"the tokenizer {tokenizer.name!r} gives token {largest}, and the model knows 0 to "
            f"{vocab_size - 1}: they do not belong together. Give the model's own tokenizer.json",
            path="data.tokenizer",
        )


def _not_found(path: Path) -> str:
    names = ["bytes", "ids:", "tiktoken:"]
    if path.parent.is_dir():
        names += [entry.name for entry in path.parent.iterdir()]
    close = nearest(path.name, names)
    hint = f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
    return f"no tokenizer {str(path)!r}, and no such file. {hint}{_FORMS[0].upper()}{_FORMS[1:]}"


def _id_tokenizer(vocabulary: str) -> Tokenizer:
    if not (_is_number(vocabulary) and 1 <= int(vocabulary) <= MAX_VOCABULARY):
        raise DataError(
            f"'ids:...': {vocabulary!r:.60} is no vocabulary size; allowed: 1 to {MAX_VOCABULARY}. Write "
            "ids:50257, say",
            path="data.tokenizer",
        )
    return IdTokenizer(int(vocabulary))


def _is_number(text: str) -> bool:
    """A whole number of no more digits than a token can have; Python refuses to convert very long ones."""
    return text.isascii() and text.isdigit() and len(text) <= 20


def _tiktoken(name: str) -> Tokenizer:
    from dba_core.data.extra_tokenizers import load_tiktoken

    return load_tiktoken(name)


_PREFIXES: dict[str, Callable[[str], Tokenizer]] = {"ids": _id_tokenizer, "tiktoken": _tiktoken}
