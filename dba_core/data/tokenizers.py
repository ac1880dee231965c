"""Tokenizers: text to tokens and back.

`bytes` (the default) needs nothing: a token is one byte of the UTF-8 text. `ids:N` is for token arrays whose
text is unknown. A Hugging Face tokenizer.json and the encodings of tiktoken need the packages of those names,
which are imported when a tokenizer of theirs is asked for.
"""

from __future__ import annotations

import abc
import copy
import functools
import importlib
import importlib.util
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from dba_core.data.special_tokens import SpecialTokens
from dba_core.data.text_stream import REPLACEMENT, ByteTextStream, TextStream, WindowTextStream
from dba_core.distribution import install_command
from dba_core.documents import read_object
from dba_core.errors import DataError, DBAError, did_you_mean, unknown
from dba_core.printable import no_text, printable
from dba_core.registry.contain import Failure, contain

T = TypeVar("T")
Tokens = npt.NDArray[np.integer[Any]]
#: More tokens than any vocabulary in use has, and few enough that an embedding of them can be allocated.
MAX_VOCABULARY = 1 << 24
_ADVICE = "Give a Hugging Face tokenizer.json, whole and unchanged"
_REASON_LIMIT = 300


def _bad_tokenizer(message: str) -> DataError:
    return DataError(message, path="data.tokenizer")


class Tokenizer(abc.ABC):
    """`name` is the text that `load_tokenizer` reads back; tokens are 0 .. vocab_size-1.

    special: what begins and ends the texts of the model that this tokenizer was loaded for, which `encode`
    never adds: `special.start(ids)` is a prompt, `special.around(ids)` a whole text. A tokenizer alone has
    none.
    """

    special = SpecialTokens()

    def __init__(self, *, name: str, vocab_size: int) -> None:
        self.name = name
        self.vocab_size = vocab_size

    @abc.abstractmethod
    def encode(self, text: str) -> Tokens:
        """One-dimensional array of tokens; no special tokens are added. Raises DataError for a text that
        UTF-8 cannot hold.
        """

    @abc.abstractmethod
    def decode(self, ids: Sequence[int] | Tokens) -> str:
        """Bytes that are no UTF-8, and ids that are no token, become U+FFFD."""

    def n_bytes(self, ids: Sequence[int] | Tokens) -> int | None:
        """UTF-8 bytes of the text of these tokens, of what is left of it where the tokenizer loses some; None
        where tokens have no text.
        """
        return len(self.decode(ids).encode("utf-8"))

    def stream(self, context: Sequence[int] = ()) -> TextStream:
        """A fresh incremental decoder for what follows the tokens `context`."""
        return WindowTextStream(self.decode, context=context)

    def _array(self, ids: Sequence[int]) -> Tokens:
        return np.array(ids, dtype=token_dtype(self.vocab_size))


def _real_text(text: str) -> str:
    """The text itself. Raises DataError for one that UTF-8 cannot hold."""
    if wrong := no_text(text):
        raise DataError(f"a text cannot be turned into tokens: {wrong}")
    return text


def token_dtype(vocab_size: int) -> type[np.unsignedinteger[Any]]:
    """The smallest unsigned type that holds every token."""
    if vocab_size <= 1 << 8:
        return np.uint8
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


class _ByteStrings(Tokenizer):
    """Each token is a byte string; a model may sample one that is none, which shows as U+FFFD."""

    @abc.abstractmethod
    def _bytes_of(self, token: int) -> bytes: ...

    def decode(self, ids: Sequence[int] | Tokens) -> str:
        return b"".join(map(self._bytes_of, ids)).decode("utf-8", errors="replace")

    def n_bytes(self, ids: Sequence[int] | Tokens) -> int:
        return sum(len(self._bytes_of(token)) for token in ids)

    def stream(self, context: Sequence[int] = ()) -> TextStream:
        return ByteTextStream(self._bytes_of, context=context)


class ByteTokenizer(_ByteStrings):
    """One token per byte of the UTF-8 text."""

    def __init__(self) -> None:
        super().__init__(name="bytes", vocab_size=256)

    def encode(self, text: str) -> Tokens:
        return np.frombuffer(_real_text(text).encode("utf-8"), dtype=np.uint8)

    def n_bytes(self, ids: Sequence[int] | Tokens) -> int:
        return len(ids)

    def _bytes_of(self, token: int) -> bytes:
        return bytes((token,)) if 0 <= token < 256 else REPLACEMENT.encode("utf-8")


class IdTokenizer(Tokenizer):
    """Tokens without text, for token arrays: the text form is the numbers themselves, separated by spaces."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__(name=f"ids:{vocab_size}", vocab_size=vocab_size)

    def encode(self, text: str) -> Tokens:
        words = text.split()
        for position, word in enumerate(words):
            if not (_is_number(word) and int(word) < self.vocab_size):
                raise _bad_tokenizer(
                    f"tokenizer {self.name!r} reads token numbers, got {word!r:.60} at word {position}; "
                    f"allowed: numbers from 0 to {self.vocab_size - 1}, separated by spaces"
                )
        return self._array([int(word) for word in words])

    def decode(self, ids: Sequence[int] | Tokens) -> str:
        return " ".join(str(int(token)) for token in ids)

    def n_bytes(self, ids: Sequence[int] | Tokens) -> None:
        return None


class JsonTokenizer(Tokenizer):
    """A Hugging Face `tokenizer.json`. `encode` adds no special tokens; those in a text are tokens of their
    own, and `decode` shows them. What the file says of truncation, padding and random encoding (`dropout`,
    and `nbest_size` with `alpha`) belongs to the training that wrote it and is left out.
    """

    def __init__(self, tokenizer: Any, *, name: str) -> None:
        largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        super().__init__(name=name, vocab_size=largest + 1)
        self._tokenizer = tokenizer

    def encode(self, text: str) -> Tokens:
        encode = functools.partial(self._tokenizer.encode, _real_text(text), add_special_tokens=False)
        return self._array(self._guarded(encode, "encode a text").ids)

    def decode(self, ids: Sequence[int] | Tokens) -> str:
        known = [int(token) for token in ids if 0 <= token < self.vocab_size]
        decode = functools.partial(self._tokenizer.decode, known, skip_special_tokens=False)
        return str(self._guarded(decode, "decode tokens"))

    def token_id(self, text: str) -> int | None:
        """The token whose text this is, as a whole."""
        found: int | None = self._tokenizer.token_to_id(text)
        return found

    def template(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The tokens that the file's post-processor puts before and after a text."""
        encode = functools.partial(self._tokenizer.encode, "a", add_special_tokens=True)
        made = self._guarded(encode, "apply its post-processor")
        mask = made.special_tokens_mask
        n_before = sum(itertools.takewhile(bool, mask))
        n_after = sum(itertools.takewhile(bool, mask[n_before:][::-1]))
        return tuple(made.ids[:n_before]), tuple(made.ids[len(mask) - n_after :])

    def _guarded(self, action: Callable[[], T], what: str) -> T:
        return guarded(
            action,
            lambda reason: _bad_tokenizer(
                f"the tokenizer {self.name!r} cannot {what}: {reason}. Take the file from the model again"
            ),
        )


class TiktokenTokenizer(_ByteStrings):
    """An encoding of `tiktoken`: tokens are byte strings. Special tokens in a text are plain text."""

    def __init__(self, encoding: Any, *, name: str) -> None:
        super().__init__(name=name, vocab_size=int(encoding.n_vocab))
        self._encoding = encoding

    def encode(self, text: str) -> Tokens:
        return self._array(self._encoding.encode_ordinary(_real_text(text)))

    def _bytes_of(self, token: int) -> bytes:
        try:
            return bytes(self._encoding.decode_single_token_bytes(int(token)))
        except KeyError:  # the vocabularies have holes
            return REPLACEMENT.encode("utf-8")


def guarded(action: Callable[[], T], failed: Callable[[str], DBAError]) -> T:
    """The result of foreign code that reads foreign data. failed: the error to raise for what it raised,
    which it gets as text.

    `tokenizers` raises bare `Exception` for a damaged file and lets a Rust panic through as a `BaseException`
    of its own; a chat template may raise whatever its expressions do. Our own errors, KeyboardInterrupt,
    SystemExit and MemoryError pass through as they are.
    """
    found = contain(action)
    if not isinstance(found, Failure):
        return found
    if isinstance(found.error, (DBAError, SystemExit, GeneratorExit, MemoryError)):
        raise found.error
    text = printable(" ".join(str(found.error).split())).rstrip(".") or type(found.error).__name__
    raise failed(text if len(text) <= _REASON_LIMIT else f"{text[:_REASON_LIMIT]}...") from None


def load_tokenizer(text: str) -> Tokenizer:
    """The tokenizer of a name: `bytes`, `ids:VOCABULARY`, `tiktoken:NAME` or the path of a tokenizer.json.

    Raises DataError: unknown name, missing extra (with the command that installs it), file that is none.
    """
    if text == "bytes":
        return ByteTokenizer()
    kind, colon, rest = text.partition(":")
    if colon and kind == "ids":
        if not (_is_number(rest) and 1 <= int(rest) <= MAX_VOCABULARY):
            raise _bad_tokenizer(
                f"'ids:...': {rest!r:.60} is no vocabulary size; allowed: 1 to {MAX_VOCABULARY}. Write "
                "ids:50257, say"
            )
        return IdTokenizer(int(rest))
    if colon and kind == "tiktoken":
        return _load_tiktoken(rest)
    path = Path(text)
    if path.is_dir():
        raise _bad_tokenizer(f"{text!r} is a folder; give the tokenizer.json inside it")
    if not path.is_file():
        names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, ["bytes", "ids:", "tiktoken:", *names])
        raise _bad_tokenizer(
            f"no tokenizer {text!r}, and no such file. {hint}Allowed: bytes, ids:VOCABULARY, tiktoken:NAME, "
            "or the path of a Hugging Face tokenizer.json"
        )
    return _load_json(path)


def _is_number(text: str) -> bool:
    """A whole number of no more digits than a token can have; Python refuses to convert very long ones."""
    return text.isascii() and text.isdigit() and len(text) <= 20


def _load_json(path: Path) -> JsonTokenizer:
    """Read `tokenizer.json` (the fast tokenizers' file, not `vocab.json` or `tokenizer_config.json`).

    Raises DataError that names the file for everything that is wrong with it.
    """
    where = str(path)
    content = read_object(path, error=DataError, advice=_ADVICE)
    if not isinstance(content.get("model"), dict):
        raise _bad_tokenizer(
            f"{where!r} is JSON but no tokenizer: it has no 'model' object. Give the tokenizer.json that "
            "`tokenizer.save()` or `save_pretrained()` writes, not vocab.json or tokenizer_config.json"
        )
    for problem in _vocabulary_problems(content):
        raise _bad_tokenizer(f"{where!r} is no tokenizer that can be used: {problem}. {_ADVICE}")
    package = _extra("tokenizers")
    made = guarded(
        lambda: JsonTokenizer(package.Tokenizer.from_str(json.dumps(_plain(content))), name=where),
        lambda reason: _bad_tokenizer(
            f"{where!r} is damaged, or of a version of the package 'tokenizers' that is not the installed "
            f"one: {reason}. {_ADVICE}, or: python -m pip install --upgrade tokenizers"
        ),
    )
    if made.vocab_size == 0:
        raise _bad_tokenizer(f"the tokenizer {where!r} has an empty vocabulary; train it first")
    if made.vocab_size > MAX_VOCABULARY:
        raise _bad_tokenizer(
            f"the tokenizer {where!r} has {made.vocab_size:,} tokens; allowed: {MAX_VOCABULARY:,}. {_ADVICE}"
        )
    return made


def _plain(content: dict[str, Any]) -> dict[str, Any]:
    """Without what cuts, pads or randomly varies the tokens of a text."""
    random = ("dropout", "alpha", "nbest_size")
    model = {key: value for key, value in content["model"].items() if key not in random}
    return {**content, "model": model, "truncation": None, "padding": None}


def _vocabulary_problems(content: Mapping[str, Any]) -> Iterable[str]:
    """What is wrong with the numbers of the tokens; the package would take some of it, or panic."""
    vocab, added = content["model"].get("vocab"), content.get("added_tokens")
    numbers = list(vocab.items()) if isinstance(vocab, dict) else []
    tables = [each for each in (added if isinstance(added, list) else []) if isinstance(each, dict)]
    for text, number in [*numbers, *((str(each.get("content")), each.get("id")) for each in tables)]:
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < MAX_VOCABULARY:
            yield f"token {text!r:.60} has number {number!r:.60}; allowed: 0 to {MAX_VOCABULARY - 1}"
    seen: dict[int, str] = {}
    for text, number in numbers:
        if number in seen:
            yield f"tokens {seen[number]!r:.60} and {text!r:.60} have the same number {number}"
        seen[number] = text


def _load_tiktoken(name: str) -> TiktokenTokenizer:
    """The encoding `name` (`gpt2`, `cl100k_base` ...); tiktoken downloads it on first use and keeps it."""
    tiktoken = _extra("tiktoken")
    allowed = tiktoken.list_encoding_names()
    if name not in allowed:
        raise _bad_tokenizer(unknown("tiktoken encoding", name, allowed))
    try:
        encoding = tiktoken.get_encoding(name)
    except OSError as error:  # network errors of its download are OSErrors too
        raise _bad_tokenizer(
            f"tiktoken could not fetch the encoding {name!r} ({type(error).__name__}: {error}). It is "
            "downloaded once: connect to the internet, or set TIKTOKEN_CACHE_DIR to a folder that holds it, "
            "or use tokenizer 'bytes'"
        ) from error
    return TiktokenTokenizer(encoding, name=f"tiktoken:{name}")


def _extra(name: str) -> Any:
    """The optional package, which ships no types that hold when it is absent."""
    if importlib.util.find_spec(name) is None:
        raise _bad_tokenizer(
            f"this tokenizer needs the package {name!r}, which is not installed. "
            f"Install it: {install_command(name)}"
        )
    return importlib.import_module(name)


def special_of(document: Mapping[str, Any], tokenizer: Tokenizer, *, source: str) -> SpecialTokens:
    """The special tokens that `document` (the fields of a tokenizer_config.json) names, as tokens of
    `tokenizer`. Raises DataError, which names `source`, for a value that makes no sense.
    """
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
        raise _bad_tokenizer(
            f"the tokenizer {tokenizer.name!r} gives token {largest}, and the model knows 0 to "
            f"{vocab_size - 1}: they do not belong together. Give the model's own tokenizer.json"
        )
