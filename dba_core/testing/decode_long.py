"""The contract of decode backends, third part: what short rows and a batch of one hide.

The weight of every token of a row can be read from the output where its value is a one in a channel of its
own: out[h, c] = softmax weight of the token whose value is e_c. Shared by GxDv tokens at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from dba_core.testing.decode_ask import Asked, asked, diagnosed
from dba_core.testing.decode_cases import (
    FLOAT_POLICY,
    FULL_LONG_LENGTHS,
    GROUPED,
    MIXED_POLICY,
    QUICK_LONG_LENGTHS,
    DecodeCase,
)
from dba_core.testing.decode_oracle import oracle
from dba_core.testing.decode_safety import DECODE
from dba_core.testing.report import Violation
from dba_core.testing.subject import Subject

_WITH_WINDOW = f"{MIXED_POLICY},resid=5"


def _long_lengths(subject: Subject) -> tuple[tuple[int, int], ...]:
    return (QUICK_LONG_LENGTHS,) if subject.quick else (QUICK_LONG_LENGTHS, (1025, 1024), FULL_LONG_LENGTHS)


@DECODE.check("equals float64 in rows of more than a thousand tokens")
def equals_when_long(subject: Subject) -> Iterator[Violation]:
    for policy in (FLOAT_POLICY, _WITH_WINDOW):
        for lengths in _long_lengths(subject):
            case = DecodeCase(sizes=GROUPED, policy=policy, lengths=lengths)
            for each in asked(subject, case):
                filled = case.filled(subject)
                yield from diagnosed(each, filled, each.decode(filled))


@DECODE.check("every token of a long row has influence: the oldest, the newest and all between")
def no_token_is_left_out(subject: Subject) -> Iterator[Violation]:
    for policy in (FLOAT_POLICY, _WITH_WINDOW):
        case = DecodeCase(sizes=GROUPED, policy=policy, lengths=QUICK_LONG_LENGTHS)
        for each in asked(subject, case):
            for row, length in enumerate(case.lengths):
                if missing := _left_out(each, row):
                    yield Violation(
                        case=f"{case}, row {row}",
                        expected=f"influence of all {length} tokens",
                        got=f"none of {_in_words(missing)} of {length}",
                        hint="A row attends to all of its tokens: nothing is evicted, no block is skipped.",
                    )


@DECODE.check("every row has its own query, tokens and scales, whatever the batch around it")
def rows_keep_apart(subject: Subject) -> Iterator[Violation]:
    for policy in (FLOAT_POLICY, MIXED_POLICY, _WITH_WINDOW):
        case = DecodeCase(sizes=GROUPED, policy=policy, lengths=(9, 9, 9))
        for each in asked(subject, case):
            filled = case.filled(subject)
            yield from diagnosed(each, filled, each.decode(filled))


def _left_out(each: Asked, row: int) -> list[int]:
    """The tokens of one row that have less than half of their weight in every head."""
    sizes, length = each.case.sizes, each.case.lengths[row]
    slots = sizes.v_heads * sizes.v
    missing: list[int] = []
    for first in range(0, length, slots):
        filled = each.case.filled(each.subject, values=_one_hot(each, first))
        got, wanted = each.decode(filled).out[row].double().cpu(), oracle(filled).out[row].cpu()  # [H, Dv]
        share = sizes.heads // sizes.v_heads
        seen = torch.unflatten(got > wanted / 2, 0, (sizes.v_heads, share)).any(dim=1).flatten()  # [slots]
        missing += [first + slot for slot in range(min(slots, length - first)) if not seen[slot]]
    return missing


def _one_hot(each: Asked, first: int) -> Tensor:
    """[B,G,S,Dv]: token `first` + g Dv + c has a one in head g, channel c; all else is zero."""
    sizes, lengths = each.case.sizes, each.case.lengths
    values = torch.zeros(len(lengths), sizes.v_heads, max(lengths), sizes.v, device=each.subject.device)
    for slot in range(min(sizes.v_heads * sizes.v, max(lengths) - first)):
        values[:, slot // sizes.v, first + slot, slot % sizes.v] = 1.0
    return values


def _in_words(tokens: list[int]) -> str:
    """`tokens 4 to 966, 1000`."""
    runs = itertools.groupby(enumerate(tokens), key=lambda pair: pair[1] - pair[0])
    spans = [[token for _, token in run] for _, run in runs]
    texts = [f"{span[0]} to {span[-1]}" if len(span) > 1 else str(span[0]) for span in spans]
    return f"tokens {', '.join(texts[:5])}" + (" and more" if len(texts) > 5 else "")


__all__ = ["DECODE"]
