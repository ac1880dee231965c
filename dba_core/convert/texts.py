"""The texts of a conversion: one to calibrate on, others to evaluate on, all through the model's tokenizer.

Called by `dba_core.convert.job`.
"""

from __future__ import annotations

import attrs
import numpy as np
import torch
from torch import Tensor

from dba_core.config.data import DataConfig
from dba_core.data.corpus import Corpus, load_corpus
from dba_core.errors import DataError

#: What is calibrated on, and evaluated on, when nothing else is given: texts that every CPython has.
CALIBRATION = "docstrings"
EVALUATION = ("pydoc",)


@attrs.frozen(kw_only=True, eq=False)
class Texts:
    """calibration: sequences [N, context]. evaluation: name and tokens of each text."""

    calibration: Tensor
    calibration_corpus: Corpus
    evaluation: tuple[Corpus, ...]


def read_texts(
    *, tokenizer: str, calibrate: str, calibrate_tokens: int, evaluate: tuple[str, ...], context: int
) -> Texts:
    """Read and encode. Raises DataError for a calibration text shorter than one context, and for one that is
    evaluated on as well.
    """
    corpora = {name: _corpus(name, tokenizer) for name in dict.fromkeys((calibrate, *evaluate))}
    chosen = corpora[calibrate]
    for name in evaluate:
        if corpora[name].sha256 == chosen.sha256:
            raise DataError(
                f"{calibrate!r} is to be calibrated on and evaluated on; what comes out would say nothing "
                "about other texts. Give --calibrate and --eval two texts",
                path="calibrate",
            )
    if len(chosen.tokens) < context:
        raise DataError(
            f"{calibrate!r} has {len(chosen.tokens)} tokens, less than one context of {context}; give a "
            "longer text to --calibrate, or a smaller --context",
            path="calibrate",
        )
    count = max(1, min(calibrate_tokens, len(chosen.tokens)) // context)
    return Texts(
        calibration=_spread(torch.from_numpy(np.asarray(chosen.tokens).astype(np.int64)), context, count),
        calibration_corpus=chosen,
        evaluation=tuple(corpora[name] for name in evaluate),
    )


def _corpus(name: str, tokenizer: str) -> Corpus:
    return load_corpus(DataConfig(source=name, tokenizer=tokenizer), context=1)


def _spread(tokens: Tensor, length: int, count: int) -> Tensor:
    """`count` stretches of `length` tokens, spread evenly over the text: [count, length]."""
    room = len(tokens) - length
    starts = [room * number // max(1, count - 1) for number in range(count)]
    return torch.stack([tokens[start : start + length] for start in starts])
