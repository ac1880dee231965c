"""The configuration of the corpus and its tokenizer."""

from __future__ import annotations

import attrs

from dba_core.serialization.validators import between, not_empty, one_of
from dba_core.serialization.values import Serializable, exact_types


@attrs.frozen(kw_only=True, field_transformer=exact_types)
class DataConfig(Serializable):
    """What to train on.

    source: `pydoc` (the language reference inside CPython), `docstrings` (those of its standard library), or
    the path of a text file, a folder of text files, a `.npy` or a `.bin` token array. tokenizer: `bytes`, the
    path of a Hugging Face `tokenizer.json`, `tiktoken:NAME`, or `ids:VOCABULARY` for token arrays without
    text. held_out: the share of tokens at the end that is never trained on. bin_dtype: the integer type of a
    `.bin` file.
    """

    source: str = attrs.field(default="pydoc", validator=not_empty)
    tokenizer: str = attrs.field(default="bytes", validator=not_empty)
    held_out: float = attrs.field(default=0.1, validator=between(0.0001, 0.9))
    bin_dtype: str = attrs.field(default="uint16", validator=one_of("uint16", "uint32"))
