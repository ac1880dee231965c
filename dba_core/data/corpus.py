"""The corpus of a run: one array of tokens, its first part to train on, its tail held out.

    n_train = floor(n * (1 - held_out))        the held-out part is everything after it

Called by training, evaluation and the summary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import attrs

from dba_core.config.data import DataConfig
from dba_core.data.docstrings import read_docstrings
from dba_core.data.pydoc import read_pydoc
from dba_core.data.text_sources import Document, TextSource, read_folder, read_text_file, require_path
from dba_core.data.token_arrays import array_sha256, check_vocabulary, read_bin, read_npy
from dba_core.data.tokenizers import IdTokenizer, Tokenizer, Tokens, load_tokenizer
from dba_core.errors import DataError

#: Texts that every CPython brings along, by the name that `data.source` has for them.
INSTALLED: dict[str, Callable[[], TextSource]] = {"pydoc": read_pydoc, "docstrings": read_docstrings}


@attrs.frozen(kw_only=True, eq=False)
class Corpus:
    """Tokens and where they are from. `train` and `held_out` are views of `tokens`, without overlap.

    n_bytes: UTF-8 bytes of the text; of a token array its stored bytes. sha256: of the same bytes.
    version: that the text depends on. left_out: what was found and not used, and why. is_text: the tokens are
    of a text that was encoded here. keeps_text: they decode to as many bytes as the text has.
    """

    name: str
    tokens: Tokens = attrs.field(repr=False)
    n_train: int
    tokenizer: Tokenizer
    documents: tuple[Document, ...] = attrs.field(repr=False)
    n_bytes: int
    sha256: str
    version: str | None = None
    left_out: tuple[str, ...] = attrs.field(default=(), repr=False)
    is_text: bool = False
    keeps_text: bool = False

    @property
    def byte_counter(self) -> Tokenizer | None:
        """What counts the bytes of these tokens; None where its count would not be that of the text."""
        return self.tokenizer if self.keeps_text else None

    def as_read(self, tokens: Tokens) -> Tokens:
        """A part of the tokens as a text of its own, with the special tokens of the model that is to read it;
        a token array is taken as it is.
        """
        return self.tokenizer.special.around(tokens) if self.is_text else tokens

    @property
    def train(self) -> Tokens:
        return self.tokens[: self.n_train]

    @property
    def held_out(self) -> Tokens:
        return self.tokens[self.n_train :]

    def describe(self) -> dict[str, Any]:
        """What a summary says about the corpus; JSON types only."""
        return {
            "name": self.name,
            "version": self.version,
            "documents": len(self.documents),
            "bytes": self.n_bytes,
            "sha256": self.sha256,
            "tokenizer": self.tokenizer.name,
            "vocab_size": self.tokenizer.vocab_size,
            "tokens": len(self.tokens),
            "train_tokens": len(self.train),
            "held_out_tokens": len(self.held_out),
            "left_out": list(self.left_out),
        }


def load_corpus(config: DataConfig, *, context: int, tokenizer: Tokenizer | None = None) -> Corpus:
    """Read the source, encode it, and split off the held-out tail.

    context: tokens of one training sequence; either part must hold one more (inputs and shifted targets).
    tokenizer: that of a loaded model, instead of loading the one that the configuration names. Raises
    DataError with the file, what is wrong with it and what to do.
    """
    tokenizer = load_tokenizer(config.tokenizer) if tokenizer is None else tokenizer
    if config.source in INSTALLED:
        corpus = _text_corpus(INSTALLED[config.source](), tokenizer, config.held_out)
    else:
        corpus = _file_corpus(require_path(config.source), tokenizer, config)
    _require_length(corpus, context=context, held_out=config.held_out)
    return corpus


def check_source(source: str) -> None:
    """Raise DataError for a corpus that is not there. Reads nothing; the tokens are read by `load_corpus`."""
    if source not in INSTALLED:
        require_path(source)


def _file_corpus(path: Path, tokenizer: Tokenizer, config: DataConfig) -> Corpus:
    suffix = path.suffix.lower()
    if path.is_dir():
        return _text_corpus(read_folder(path), tokenizer, config.held_out)
    if suffix == ".npy":
        return _array_corpus(path, read_npy(path), tokenizer, config.held_out)
    if suffix == ".bin":
        return _array_corpus(path, read_bin(path, config.bin_dtype), tokenizer, config.held_out)
    return _text_corpus(read_text_file(path), tokenizer, config.held_out)


def _text_corpus(source: TextSource, tokenizer: Tokenizer, held_out: float) -> Corpus:
    if isinstance(tokenizer, IdTokenizer):
        raise DataError(
            f"{tokenizer.name!r} does not fit {source.name!r}, which is text; it is for .npy and .bin token "
            "arrays. Give 'bytes', tiktoken:NAME or the path of a tokenizer.json",
            path="data.tokenizer",
        )
    tokens = tokenizer.encode(source.text)
    if len(tokens) == 0:
        raise DataError(
            f"{tokenizer.name!r} does not fit {source.name!r}: it turned {source.n_bytes} bytes into no "
            "token at all. Give the tokenizer of this language, or 'bytes'",
            path="data.tokenizer",
        )
    check_vocabulary(tokens, vocab_size=tokenizer.vocab_size, tokenizer=tokenizer.name)
    kept = tokenizer.n_bytes(tokens)
    return Corpus(
        name=source.name,
        tokens=tokens,
        n_train=train_length(len(tokens), held_out),
        tokenizer=tokenizer,
        documents=source.documents,
        n_bytes=source.n_bytes,
        sha256=source.sha256,
        version=source.version,
        left_out=(*source.left_out, *_lost(tokenizer.name, kept, source.n_bytes)),
        is_text=True,
        keeps_text=kept == source.n_bytes,
    )


def _lost(tokenizer: str, kept: int | None, n_bytes: int) -> Iterator[str]:
    """What a reader of the figures must know of a tokenizer that does not give the text back."""
    if kept is not None and kept != n_bytes:
        yield (
            f"tokenizer {tokenizer}: its tokens decode to {kept:,} bytes and the text has {n_bytes:,}; it "
            "changes the text, or has no token for a part of it, and bits per byte are not given"
        )


def _array_corpus(path: Path, tokens: Tokens, tokenizer: Tokenizer, held_out: float) -> Corpus:
    check_vocabulary(tokens, vocab_size=tokenizer.vocab_size, tokenizer=tokenizer.name)
    return Corpus(
        name=path.name,
        tokens=tokens,
        n_train=train_length(len(tokens), held_out),
        tokenizer=tokenizer,
        documents=(Document(path.name, tokens.nbytes),),
        n_bytes=tokens.nbytes,
        sha256=array_sha256(tokens),
    )


def train_length(n_tokens: int, held_out: float) -> int:
    """floor(n * (1 - held_out)), with the share taken as the decimal number that was written."""
    return int(n_tokens * (1 - Fraction(repr(held_out))))


def _require_length(corpus: Corpus, *, context: int, held_out: float) -> None:
    for part, tokens in (("training", corpus.train), ("held-out", corpus.held_out)):
        if len(tokens) < context + 1:
            raise DataError(
                f"{corpus.name!r} is too short: {len(corpus.tokens)} tokens, of which the {part} part has "
                f"{len(tokens)} with data.held_out={held_out:g}; a context of {context} needs at least "
                f"{context + 1} in either part. Give more text, or make model.context smaller",
                path="data.source",
            )
