"""The contract of decode backends, first part: the numbers, against a dense softmax in float64."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import torch

from dba_core.testing.check import Suite
from dba_core.testing.compare import far, same_bits, well_shaped
from dba_core.testing.decode_ask import asked, diagnosed
from dba_core.testing.decode_cases import (
    FLOAT_POLICY,
    FULL_LONG_LENGTHS,
    GROUPED,
    MIXED_POLICY,
    NO_SEMANTIC,
    ODD,
    PLAIN,
    QUICK_LONG_LENGTHS,
    SHARED_LATENT,
    WIDE,
    DecodeCase,
    own_formats,
    parity_grid,
    sizes,
)
from dba_core.testing.decode_oracle import oracle, unquantized
from dba_core.testing.subject import Subject, Violation, torch_dtype

DECODE = Suite("decode_backend")
_PLAIN_CASE = DecodeCase(sizes=PLAIN, policy="ksem=fp16,kgeo=fp16,v=fp16", lengths=(13, 13))


@DECODE.check("out [B,H,Dv] in the queries' dtype, lse [B,H] in float32, on the device")
def output_form(subject: Subject) -> Iterator[Violation]:
    for each_sizes in (PLAIN, GROUPED, NO_SEMANTIC):
        for dtype in subject.dtypes:
            case = attrs.evolve(_PLAIN_CASE, sizes=each_sizes, dtype=dtype)
            for each in asked(subject, case):
                got, where = each.decode(case.filled(subject)), subject.device
                heads, shape = case.sizes.heads, (2, case.sizes.heads, case.sizes.v)
                wanted = torch_dtype(dtype)
                yield from well_shaped(
                    got.out, shape=shape, dtype=wanted, device=where, what="out", case=str(case)
                )
                if got.lse is not None:
                    yield from well_shaped(
                        got.lse,
                        shape=(2, heads),
                        dtype=torch.float32,
                        device=where,
                        what="lse",
                        case=str(case),
                    )


@DECODE.check("equals float64 over the parity grid: sizes x formats x lengths x null token x dtypes")
def equals_float64(subject: Subject) -> Iterator[Violation]:
    for case in parity_grid(subject):
        for each in asked(subject, case):
            filled = case.filled(subject)
            yield from diagnosed(each, filled, each.decode(filled))


@DECODE.check("every cache format, in each of the three tensors, is read right")
def every_format(subject: Subject) -> Iterator[Violation]:
    plain = {"ksem": "fp32", "kgeo": "fp32", "v": "fp32"}
    for fmt in own_formats():
        for name in plain:
            policy = ",".join(f"{key}={value}" for key, value in {**plain, name: fmt}.items())
            case = DecodeCase(sizes=GROUPED, policy=policy, lengths=(9, 33))
            for each in asked(subject, case):
                filled = case.filled(subject)
                for found in each.answers(each.decode(filled), oracle(filled)):
                    hint = f"Only {name} is in {fmt}: look at how its codes and scales are decoded."
                    yield attrs.evolve(found, hint=hint)


@DECODE.check("the error against the tokens before quantization stays within that of the formats")
def quantization_error(subject: Subject) -> Iterator[Violation]:
    for fmt, facts in own_formats().items():
        for policy in (f"ksem={fmt},kgeo={fmt},v={fmt}", f"ksem={fmt},kgeo={fmt},v={fmt},resid=16"):
            case = DecodeCase(sizes=GROUPED, policy=policy, lengths=(64, 64))
            for each in asked(subject, case):
                filled = case.filled(subject)
                got, exact = each.decode(filled).out.double(), unquantized(filled).out
                error = float((got - exact).norm() / exact.norm())
                # Errors of keys move the weights, those of values the average: twice the round trip.
                limit = 1e-5 + 2 * facts.round_trip_error
                if not error <= limit:
                    yield Violation(
                        case=str(case),
                        expected=f"relative L2 error up to {limit:.2g} for {fmt}",
                        got=f"{error:.3g}",
                        hint="Look at scales, the order of 4-bit codes, and the residual window.",
                    )


@DECODE.check("the null token counts exactly once, with no token, one, or many partitions of them")
def null_token_once(subject: Subject) -> Iterator[Violation]:
    policies = (MIXED_POLICY, f"{MIXED_POLICY},resid=128") if not subject.quick else (MIXED_POLICY,)
    long = QUICK_LONG_LENGTHS if subject.quick else FULL_LONG_LENGTHS
    for lengths in ((0, 0), (1, 0), (70, 129), long):
        for policy in policies:
            case = DecodeCase(sizes=GROUPED, policy=policy, lengths=lengths, null=True)
            if not _right_without_null(subject, case):
                continue  # the null token is not what is wrong; other checks say what is
            for each in asked(subject, case):
                filled = case.filled(subject)
                yield from diagnosed(each, filled, each.decode(filled))


def _right_without_null(subject: Subject, case: DecodeCase) -> bool:
    plain = attrs.evolve(case, null=False)
    for each in asked(subject, plain):
        filled = plain.filled(subject)
        if list(each.answers(each.decode(filled), oracle(filled))):
            return False
    return True


@DECODE.check("the H/G query heads of a group read their own KV head, h // (H/G)")
def grouped_heads(subject: Subject) -> Iterator[Violation]:
    many = (PLAIN, sizes(6, 2, 16, 16, 16), sizes(6, 3, 8, 8, 8), sizes(5, 1, 8, 8, 8), SHARED_LATENT, WIDE)
    for each_sizes in many:
        for null in (False, True):
            case = DecodeCase(sizes=each_sizes, policy=FLOAT_POLICY, lengths=(13, 7), null=null)
            for each in asked(subject, case):
                filled = case.filled(subject)
                yield from diagnosed(each, filled, each.decode(filled))


@DECODE.check("the newest tokens of every row are read from the residual window, older ones as stored")
def residual_window(subject: Subject) -> Iterator[Violation]:
    for resid in (0, 1, 5, 64):
        for lengths in ((13, 13), (40, 3), (70, 64)):
            policy = f"{MIXED_POLICY},resid={resid}"
            case = DecodeCase(sizes=ODD if resid == 5 else GROUPED, policy=policy, lengths=lengths)
            for each in asked(subject, case):
                filled = case.filled(subject)
                yield from diagnosed(each, filled, each.decode(filled))


@DECODE.check("a row of a ragged batch gives what it gives alone")
def ragged_rows(subject: Subject) -> Iterator[Violation]:
    for policy in (FLOAT_POLICY, f"{MIXED_POLICY},resid=5"):
        for lengths in ((13, 4, 0), (1, 65, 64)):
            case = DecodeCase(sizes=GROUPED, policy=policy, lengths=lengths)
            for each in asked(subject, case):
                filled = case.filled(subject)
                got, right = each.decode(filled), oracle(filled)
                for row, length in enumerate(lengths):
                    difference = far(got.out[row], right.out[row], dtype=case.dtype) if length else None
                    if difference is not None:
                        yield Violation(
                            case=f"{case}, row {row}",
                            expected=f"the {length} tokens of this row and no others",
                            got=difference,
                            hint="Read cache.lengths (or lengths_device) for every row of the batch.",
                        )


@DECODE.check("a row without tokens gives zeros and an lse of -inf, or the null token's value")
def empty_rows(subject: Subject) -> Iterator[Violation]:
    for policy in (FLOAT_POLICY, f"{MIXED_POLICY},resid=5"):
        for null in (False, True):
            case = DecodeCase(sizes=GROUPED, policy=policy, lengths=(0, 0), null=null)
            for each in asked(subject, case):
                filled = case.filled(subject)
                got = each.decode(filled)
                hint = "Divide by l only where l > 0; the null token is the first state."
                yield from each.answers(got, oracle(filled), hint=hint)


@DECODE.check("scores of a few hundred neither overflow nor lose the largest")
def large_scores(subject: Subject) -> Iterator[Violation]:
    case = DecodeCase(sizes=PLAIN, policy=FLOAT_POLICY, lengths=(13, 70))
    for each in asked(subject, case):
        filled = case.filled(subject)
        filled = attrs.evolve(filled, q_sem=filled.q_sem * 256, q_geo=filled.q_geo * 256)
        got, right = each.decode(filled), oracle(filled)
        # A float32 score of 1000 is known to 6e-5: weights, and the output, to about 1e-3.
        if difference := far(got.out, right.out, dtype="float16"):
            hint = "Subtract the running maximum before every exponential."
            yield Violation(case=f"{case}, queries x 256", expected="out", got=difference, hint=hint)


@DECODE.check("every token of a row has influence, and none on another row")
def every_token_counts(subject: Subject) -> Iterator[Violation]:
    case = DecodeCase(sizes=PLAIN, policy=FLOAT_POLICY, lengths=(13, 13))
    for each in asked(subject, case):
        first = each.decode(case.filled(subject)).out
        for token in range(13):
            filled = case.filled(subject)
            for store in (filled.cache.k_sem, filled.cache.k_geo, filled.cache.v):
                store.codes[0, :, token] += 1.0
            out = each.decode(filled).out
            if not (out[0] - first[0]).abs().amax() > 1e-4:
                hint = "Look at the first and last token of a block."
                yield Violation(
                    case=f"{case}, token {token}", expected="influence", got="none on its row", hint=hint
                )
            if not same_bits(out[1], first[1]):
                hint = "Look at the batch stride."
                yield Violation(
                    case=f"{case}, token {token}", expected="row 1 as before", got="it changed", hint=hint
                )
