"""The contract of decode backends, second part: what they leave alone, and whether they tell the truth."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import torch

from dba_core.contracts import DecodeRequest, Request
from dba_core.testing.compare import changed, copies, same_bits
from dba_core.testing.decode import DECODE
from dba_core.testing.decode_ask import asked
from dba_core.testing.decode_cases import (
    FLOAT_POLICY,
    FULL_POLICIES,
    GROUPED,
    MIXED_POLICY,
    PLAIN,
    QUICK_POLICIES,
    DecodeCase,
    parity_grid,
)
from dba_core.testing.every_kind import capability_checks
from dba_core.testing.subject import Subject, Violation


@DECODE.check("memory past a row's length is not read: NaN there changes no bit")
def nothing_past_a_length(subject: Subject) -> Iterator[Violation]:
    for policy in QUICK_POLICIES if subject.quick else FULL_POLICIES:
        for null in (False, True):
            case = DecodeCase(sizes=GROUPED, policy=policy, lengths=(9, 34), null=null)
            for each in asked(subject, case):
                clean = each.decode(case.filled(subject))
                dirty = each.decode(case.filled(subject, poison=True))
                if not same_bits(clean.out, dirty.out):
                    bad = "NaN" if torch.isnan(dirty.out).any() else "other numbers"
                    yield Violation(
                        case=str(case),
                        expected="the same bits with NaN behind every row's last token",
                        got=bad,
                        hint="Mask by length before the value is used: 0 * NaN is NaN.",
                    )


@DECODE.check("queries, null token and cache are as before")
def changes_nothing(subject: Subject) -> Iterator[Violation]:
    for policy in (FLOAT_POLICY, f"{MIXED_POLICY},resid=5"):
        for null in (False, True):
            case = DecodeCase(sizes=GROUPED, policy=policy, lengths=(13, 4), null=null)
            for each in asked(subject, case):
                filled = case.filled(subject)
                before, lengths = copies(filled.tensors()), filled.cache.lengths
                device_lengths = filled.cache.lengths_device.clone()
                each.decode(filled)
                yield from changed(before, filled.tensors(), case=str(case))
                after = filled.cache.lengths_device
                if filled.cache.lengths != lengths or not torch.equal(after, device_lengths):
                    yield Violation(
                        case=str(case),
                        expected=f"lengths {list(lengths)}",
                        got=f"{list(filled.cache.lengths)}, on the device {after.tolist()}",
                        hint="The attention appends; a backend only reads.",
                    )


@DECODE.check("the same input gives the same bits, from one object, from another, and after other work")
def deterministic(subject: Subject) -> Iterator[Violation]:
    for policy in (FLOAT_POLICY, MIXED_POLICY):
        case = DecodeCase(sizes=GROUPED, policy=policy, lengths=(65, 130), null=True)
        other = attrs.evolve(case, lengths=(3, 200))
        for each in asked(subject, case):
            filled = case.filled(subject)
            first = each.decode(filled).out
            again = [each.decode(filled).out]
            each.decode(other.filled(subject))
            again.append(each.decode(filled).out)
            again += [second.decode(case.filled(subject)).out for second in asked(subject, case)]
            if not all(same_bits(first, out) for out in again):
                yield Violation(
                    case=str(case),
                    expected="the same bits every time",
                    got="outputs that differ",
                    hint="No random numbers, no atomic sums, no state from one call to the next.",
                )


def _requests(subject: Subject) -> Iterator[Request]:
    """Usual requests and some that few backends take."""
    cases = [case for case in parity_grid(subject) for _ in range(2)]
    grid = [case.request(device=subject.device, needs_lse=bool(n % 2)) for n, case in enumerate(cases)]
    yield from grid[:: len(grid) // 64 | 1]  # an odd step meets both answers about the log-sum-exp
    base = DecodeCase(sizes=PLAIN, policy=MIXED_POLICY, lengths=(13, 4)).request(
        device=subject.device, needs_lse=False
    )
    for dtype in ("float64", "float16", "bfloat16", "int8"):
        yield attrs.evolve(base, dtype=dtype)
    for device in ("cpu", "cuda", "cuda:1", "mps", "meta"):
        yield attrs.evolve(base, device=device, device_capability=(7, 0) if "cuda" in device else None)
    for capacity in (1, 2**31):
        yield attrs.evolve(base, capacity=capacity, batch=1024)
    yield _with_heads(base, 3)
    yield _with_width(base, 1000)


def _with_heads(base: DecodeRequest, heads: int) -> DecodeRequest:
    return attrs.evolve(
        base, k_sem=attrs.evolve(base.k_sem, n_heads=heads), v=attrs.evolve(base.v, n_heads=heads)
    )


def _with_width(base: DecodeRequest, width: int) -> DecodeRequest:
    shape = attrs.evolve(base.shape, v_head_dim=width)
    return attrs.evolve(base, shape=shape, v=attrs.evolve(base.v, head_dim=width))


capability_checks(DECODE, _requests)
__all__ = ["DECODE"]
