"""The tokenizers of two optional packages, Hugging Face `tokenizers` and `tiktoken`. For `load_tokenizer`.

Neither package is imported before a tokenizer of it is asked for.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dba_core.data.foreign import guarded
from dba_core.data.special_tokens import SpecialTokens
from dba_core.data.text_stream import REPLACEMENT, ByteTextStream, TextStream, WindowTextStream
from dba_core.data.tokenizers import MAX_VOCABULARY, Tokens, real_text, token_dtype
from dba_core.distribution import install_command
from dba_core.documents import parse_object, read_text
from dba_core.errors import DataError, unknown

T = TypeVar("T")
_KEY = "data.tokenizer"
_ADVICE = "Give a Hugging Face tokenizer.json, whole and unchanged"


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
    """A Hugging Face `tokenizer.json`. `encode` adds no special tokens; those in a text are tokens of their
    own, and `decode` shows them. What the file says of truncation, padding and random encoding (`dropout`,
    and `nbest_size` with `alpha`) belongs to the training that wrote it and is left out.
    """

    special = SpecialTokens()

    def __init__(self, tokenizer: Any, *, name: str) -> None:
        self.name = name
        self._tokenizer = tokenizer
        self.vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def encode(self, text: str) -> Tokens:
        encode = functools.partial(self._tokenizer.encode, real_text(text), add_special_tokens=False)
        ids = self._guarded(lambda: encode().ids, "encode a text")
        return np.array(ids, dtype=token_dtype(self.vocab_size))

    def decode(self, ids: Sequence[int] | Tokens) -> str:
        known = [int(token) for token in ids if 0 <= token < self.vocab_size]
        decode = functools.partial(self._tokenizer.decode, known, skip_special_tokens=False)
        return str(self._guarded(decode, "decode tokens"))

    def n_bytes(self, ids: Sequence[int] | Tokens) -> int:
        """Bytes of the decoded text; a tokenizer that loses text on the way counts what is left."""
        return len(self.decode(ids).encode("utf-8"))

    def stream(self, context: Sequence[int] = ()) -> TextStream:
        return WindowTextStream(self.decode, context=context)

    def token_id(self, text: str) -> int | None:
        """The token whose text this is, as a whole."""
        found: int | None = self._tokenizer.token_to_id(text)
        return found

    def template(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The tokens that the file's post-processor puts before and after a text."""
        made = self._guarded(
            lambda: self._tokenizer.encode("a", add_special_tokens=True), "apply its post-processor"
        )
        marked = list(zip(made.ids, made.special_tokens_mask, strict=True))
        before = tuple(token for token, _ in itertools.takewhile(lambda pair: pair[1], marked))
        rest = marked[len(before) :][::-1]
        after = tuple(token for token, _ in itertools.takewhile(lambda pair: pair[1], rest))
        return before, after[::-1]

    def _guarded(self, action: Callable[[], T], what: str) -> T:
        return guarded(
            action,
            lambda reason: DataError(
                f"the tokenizer {self.name!r} cannot {what}: {reason}. Take the file from the model again",
                path=_KEY,
            ),
        )


def load_tokenizer_json(path: Path) -> JsonTokenizer:
    """Read `tokenizer.json` (the fast tokenizers' file, not `vocab.json` or `tokenizer_config.json`).

    Raises DataError that names the file for everything that is wrong with it.
    """
    where = str(path)
    content = parse_object(
        read_text(path, error=DataError, advice=_ADVICE), source=where, error=DataError, advice=_ADVICE
    )
    if not isinstance(content.get("model"), dict):
        raise DataError(
            f"{where!r} is JSON but no tokenizer: it has no 'model' object. Give the tokenizer.json that "
            "`tokenizer.save()` or `save_pretrained()` writes, not vocab.json or tokenizer_config.json",
            path=_KEY,
        )
    for problem in _vocabulary_problems(content):
        raise DataError(f"{where!r} is no tokenizer that can be used: {problem}. {_ADVICE}", path=_KEY)
    package = _extra("tokenizers")
    made = guarded(
        lambda: JsonTokenizer(package.Tokenizer.from_str(json.dumps(_plain(content))), name=where),
        lambda reason: DataError(
            f"{where!r} is damaged, or of a version of the package 'tokenizers' that is not the installed "
            f"one: {reason}. {_ADVICE}, or: python -m pip install --upgrade tokenizers",
            path=_KEY,
        ),
    )
    if made.vocab_size == 0:
        raise DataError(f"the tokenizer {where!r} has an empty vocabulary; train it first", path=_KEY)
    if made.vocab_size > MAX_VOCABULARY:
        raise DataError(
            f"the tokenizer {where!r} has {made.vocab_size:,} tokens; allowed: {MAX_VOCABULARY:,}. {_ADVICE}",
            path=_KEY,
        )
    return made


def _plain(content: dict[str, Any]) -> dict[str, Any]:
    """Without what cuts, pads or randomly varies the tokens of a text."""
    random = ("dropout", "alpha", "nbest_size")
    model = {key: value for key, value in content["model"].items() if key not in random}
    return {**content, "model": model, "truncation": None, "padding": None}


def _vocabulary_problems(content: Mapping[str, Any]) -> list[str]:
    """What is wrong with the numbers of the tokens; the package would take some of it, or panic."""
    vocab = content["model"].get("vocab")
    numbers = list(vocab.items()) if isinstance(vocab, dict) else []
    added = content.get("added_tokens")
    extra = [
        (str(each.get("content")), each.get("id"))
        for each in (added if isinstance(added, list) else [])
        if isinstance(each, dict)
    ]
    for text, number in [*numbers, *extra]:
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < MAX_VOCABULARY:
            return [f"token {text!r:.60} has number {number!r:.60}; allowed: 0 to {MAX_VOCABULARY - 1}"]
    seen: dict[int, str] = {}
    for text, number in numbers:
        if number in seen:
            return [f"tokens {seen[number]!r:.60} and {text!r:.60} have the same number {number}"]
        seen[number] = text
    return []


class TiktokenTokenizer:
    """An encoding of `tiktoken`: tokens are byte strings. Special tokens in a text are plain text."""

    special = SpecialTokens()

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
