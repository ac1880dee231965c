"""The texts of a conversion: one to calibrate on, others to evaluate on, by the model's tokenizer."""

from __future__ import annotations

import attrs
import numpy as np
import torch
from torch import Tensor

from dba_core.config.run import DataConfig
from dba_core.data.corpus import Corpus, load_corpus
from dba_core.data.tokenizers import Tokenizer, Tokens, check_fit
from dba_core.errors import DataError


@attrs.frozen(kw_only=True, eq=False)
class CalibrationText:
    """sequences [N, context], spread over the corpus; between: the longest stretch between two of them."""

    corpus: Corpus
    sequences: Tensor
    between: Tokens


def read_evaluation(names: tuple[str, ...], *, tokenizer: Tokenizer, vocab_size: int) -> tuple[Corpus, ...]:
    """Read and encode the texts to evaluate on. Raises DataError for a tokenizer of another model."""
    return tuple(_corpus(name, tokenizer, vocab_size) for name in dict.fromkeys(names))


def read_calibration(
    name: str, *, unlike: tuple[Corpus, ...], tokens: int, tokenizer: Tokenizer, vocab_size: int, context: int
) -> CalibrationText:
    """Read and encode the text to calibrate on, `tokens` of it in sequences of `context`.

    Raises DataError for one shorter than one context, and for one that is among those that are evaluated on.
    """
    chosen = _corpus(name, tokenizer, vocab_size)
    if any(corpus.sha256 == chosen.sha256 for corpus in unlike):
        raise DataError(
            f"{name!r} is to be calibrated on and evaluated on; what comes out would say nothing about other "
            "texts. Give --calibrate and --eval two texts",
            path="calibrate",
        )
    length = len(chosen.tokens)
    if length < context:
        raise DataError(
            f"{name!r} has {length} tokens, less than one context of {context}; give a longer text to "
            "--calibrate, or a smaller --context",
            path="calibrate",
        )
    count = max(1, min(tokens, length) // context)
    starts = [(length - context) * number // max(1, count - 1) for number in range(count)]
    gaps = zip([start + context for start in starts], [*starts[1:], length], strict=True)
    whole = torch.from_numpy(np.asarray(chosen.tokens).astype(np.int64))
    return CalibrationText(
        corpus=chosen,
        sequences=torch.stack([whole[start : start + context] for start in starts]),
        between=chosen.tokens[slice(*max(gaps, key=lambda gap: gap[1] - gap[0]))],
    )


def _corpus(name: str, tokenizer: Tokenizer, vocab_size: int) -> Corpus:
    """`tokens` as the model reads the text: between its special tokens, where its tokenizer adds them."""
    corpus = load_corpus(DataConfig(source=name, tokenizer=tokenizer.name), context=1, tokenizer=tokenizer)
    corpus = attrs.evolve(corpus, tokens=corpus.as_read(corpus.tokens))
    check_fit(corpus.tokens, tokenizer=tokenizer, vocab_size=vocab_size)
    return corpus
