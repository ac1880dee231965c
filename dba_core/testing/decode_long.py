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
    sizes,
)
from dba_core.testing.decode_oracle import oracle
from dba_core.testing.decode_safety import DECODE
from dba_core.testing.subject import Subject, Violation

_WITH_WINDOW = f"{MIXED_POLICY},resid=5"
#: Room for the ones of 256 tokens at a time.
_MANY_CHANNELS = sizes(4, 4, 16, 16, 64)


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
    lengths = (331, 130) if subject.quick else QUICK_LONG_LENGTHS
    for policy in (FLOAT_POLICY, _WITH_WINDOW):
        case = DecodeCase(sizes=_MANY_CHANNELS, policy=policy, lengths=lengths)
        for each in asked(subject, case):
            for row, (length, missing) in enumerate(zip(lengths, _left_out(each), strict=True)):
                if missing:
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


def _left_out(each: Asked) -> list[list[int]]:
    """For each row its tokens that have less than half of their weight in every head."""
    s, lengths = each.case.sizes, each.case.lengths
    slots = s.v_heads * s.v
    missing: list[list[int]] = [[] for _ in lengths]
    for first in range(0, max(lengths), slots):
        filled = each.case.filled(each.subject, values=_one_hot(each, first))
        enough = each.decode(filled).out.double().cpu() > oracle(filled).out.cpu() / 2  # [B, H, Dv]
        share = s.heads // s.v_heads
        seen = torch.unflatten(enough, 1, (s.v_heads, share)).any(dim=2).flatten(1)  # [B, slots]
        for row, length in enumerate(lengths):
            there = range(min(slots, length - first))
            missing[row] += [first + slot for slot in there if not seen[row, slot]]
    return missing


def _one_hot(each: Asked, first: int) -> Tensor:
    """[B,G,S,Dv]: token `first` + g Dv + c has a one in head g, channel c; all else is zero."""
    s, lengths = each.case.sizes, each.case.lengths
    values = torch.zeros(len(lengths), s.v_heads, max(lengths), s.v, device=each.subject.device)
    for slot in range(min(s.v_heads * s.v, max(lengths) - first)):
        values[:, slot // s.v, first + slot, slot % s.v] = 1.0
    return values


def _in_words(tokens: list[int]) -> str:
    """`tokens 4 to 966, 1000`."""
    runs = itertools.groupby(enumerate(tokens), key=lambda pair: pair[1] - pair[0])
    spans = [[token for _, token in run] for _, run in runs]
    texts = [f"{span[0]} to {span[-1]}" if len(span) > 1 else str(span[0]) for span in spans]
    return f"tokens {', '.join(texts[:5])}" + (" and more" if len(texts) > 5 else "")


__all__ = ["DECODE"]
