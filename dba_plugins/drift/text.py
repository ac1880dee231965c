"""Which stretches of a text the drift is measured on: equally long, without overlap, spread evenly over it.

A stretch of T positions takes T + 1 tokens, the last one as a target only, so neighbours may share a token.
"""

from __future__ import annotations

import attrs

from dba_core.errors import DataError

#: Stretches that are taken where their number was not given.
DEFAULT_DOCUMENTS = 4


@attrs.frozen(kw_only=True)
class Stretches:
    """`length` positions each, from the tokens at `offsets` on."""

    length: int
    offsets: tuple[int, ...]


def choose_stretches(
    n_tokens: int, *, length: int | None, documents: int | None, preferred_length: int
) -> Stretches:
    """Spread `documents` stretches of `length` positions over `n_tokens` tokens.

    length None: `preferred_length`, or what fits. documents None: as many as fit, at most four. Raises
    DataError where what was asked for does not fit.
    """
    targets = n_tokens - 1
    if targets < 1:
        raise DataError(f"{n_tokens} token(s) leave nothing to predict; give a longer text")
    if length is None:
        length = min(preferred_length, targets // (documents or 1))
    if documents is None:
        documents = max(1, min(DEFAULT_DOCUMENTS, targets // length))
    if length < 1 or documents * length > targets:
        length = max(length, 1)
        raise DataError(
            f"{documents} documents of {length} positions need {documents * length + 1} tokens and the text "
            f"has {n_tokens}; ask for a length of at most {max(1, targets // documents)}, for at most "
            f"{max(1, targets // length)} documents, or give a longer text"
        )
    step = length if documents == 1 else (targets - length) // (documents - 1)
    return Stretches(length=length, offsets=tuple(number * step for number in range(documents)))
