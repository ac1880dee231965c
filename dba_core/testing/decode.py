"""The contract of decode backends: the numbers, against a dense softmax in float64; what they leave alone;
and whether they tell the truth about what they support.

The weight of every token of a row can be read from the output where its value is a one in a channel of its
own: out[h, c] = softmax weight of the token whose value is e_c. Shared by GxDv tokens at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import attrs
import torch
from torch import Tensor

from dba_core.contracts import Request
from dba_core.testing.check import Suite
from dba_core.testing.compare import changed, copies, far, same_bits, well_shaped
from dba_core.testing.decode_cases import (
    FLOAT_POLICY,
    FULL_LONG_LENGTHS,
    FULL_POLICIES,
    GROUPED,
    MIXED_POLICY,
    NO_SEMANTIC,
    ODD,
    PLAIN,
    QUICK_LONG_LENGTHS,
    QUICK_POLICIES,
    SHARED_LATENT,
    WIDE,
    DecodeCase,
    own_formats,
    parity_grid,
)
from dba_core.testing.decode_oracle import Asked, asked, compared, oracle
from dba_core.testing.subject import DTYPES, Subject, Violation, shape_of

DECODE = Suite("decode_backend")
_GENERAL = "Compare with the reference backend, dba_plugins/decode/streaming.py."
_WITH_WINDOW = f"{MIXED_POLICY},resid=5"
#: Room for the ones of 256 tokens at a time.
_MANY_CHANNELS = shape_of(4, 4, 16, 16, 64)

Cases = Callable[[Subject], Iterator[DecodeCase]]


def _equals_oracle(proves: str, *, hint: str = _GENERAL) -> Callable[[Cases], Cases]:
    """A check, named as the function, that its cases are answered as by the oracle."""

    def add(cases: Cases) -> Cases:
        DECODE.check(proves, name=cases.__name__, hint=hint, over=cases)(compared)
        return cases

    return add


@DECODE.check("out [B,H,Dv] in the queries' dtype, lse [B,H] in float32, on the device")
def output_form(subject: Subject) -> Iterator[Violation]:
    for shape, dtype in itertools.product((PLAIN, GROUPED, NO_SEMANTIC), DTYPES):
        policy, where = "ksem=fp16,kgeo=fp16,v=fp16", subject.device
        case = DecodeCase(shape=shape, policy=policy, lengths=(13, 13), dtype=dtype)
        for each, filled in asked(subject, case):
            got, out = each.decode(filled), (2, shape.n_heads, shape.v_head_dim)
            yield from well_shaped(case, got.out, out, dtype=dtype, device=where, what="out")
            if got.lse is not None:
                yield from well_shaped(case, got.lse, out[:2], dtype="float32", device=where, what="lse")


@_equals_oracle("equals float64 over the parity grid: sizes x formats x lengths x null token x dtypes")
def equals_float64(subject: Subject) -> Iterator[DecodeCase]:
    yield from parity_grid(subject)


@_equals_oracle("every cache format, in each of the three tensors, is read right")
def every_format(subject: Subject) -> Iterator[DecodeCase]:
    plain = {"ksem": "fp32", "kgeo": "fp32", "v": "fp32"}
    for fmt, name in itertools.product(own_formats(), plain):
        policy = ",".join(f"{key}={value}" for key, value in {**plain, name: fmt}.items())
        hint = f"Only {name} is in {fmt}: look at how its codes and scales are decoded."
        yield DecodeCase(shape=GROUPED, policy=policy, lengths=(9, 33), hint=hint)


@DECODE.check(
    "the error against the tokens before quantization stays within that of the formats",
    hint="Look at scales, the order of 4-bit codes, and the residual window.",
)
def quantization_error(subject: Subject) -> Iterator[Violation]:
    for (fmt, facts), window in itertools.product(own_formats().items(), ("", ",resid=16")):
        policy = f"ksem={fmt},kgeo={fmt},v={fmt}{window}"
        case = DecodeCase(shape=GROUPED, policy=policy, lengths=(64, 64))
        for each, filled in asked(subject, case):
            got, exact = each.decode(filled).out.double(), oracle(filled, quantized=False).out
            error = float((got - exact).norm() / exact.norm())
            # Errors of keys move the weights, those of values the average: twice the round trip.
            limit = 1e-5 + 2 * facts.round_trip_error
            if not error <= limit:
                yield Violation(case, f"relative L2 error up to {limit:.2g} for {fmt}", f"{error:.3g}")


@DECODE.check(
    "the null token counts exactly once, with no token, one, or many partitions of them", hint=_GENERAL
)
def null_token_once(subject: Subject) -> Iterator[Violation]:
    policies = (MIXED_POLICY, f"{MIXED_POLICY},resid=128") if not subject.quick else (MIXED_POLICY,)
    long = QUICK_LONG_LENGTHS if subject.quick else FULL_LONG_LENGTHS
    for lengths, policy in itertools.product(((0, 0), (1, 0), (70, 129), long), policies):
        case = DecodeCase(shape=GROUPED, policy=policy, lengths=lengths, null=True)
        # Where it is wrong without the null token too, other checks say what is.
        if not any(compared(subject, attrs.evolve(case, null=False))):
            yield from compared(subject, case)


@_equals_oracle("the H/G query heads of a group read their own KV head, h // (H/G)")
def grouped_heads(subject: Subject) -> Iterator[DecodeCase]:
    many = (
        PLAIN,
        shape_of(6, 2, 16, 16, 16),
        shape_of(6, 3, 8, 8, 8),
        shape_of(5, 1, 8, 8, 8),
        SHARED_LATENT,
        WIDE,
    )
    for shape, null in itertools.product(many, (False, True)):
        yield DecodeCase(shape=shape, policy=FLOAT_POLICY, lengths=(13, 7), null=null)


@_equals_oracle("the newest tokens of every row are read from the residual window, older ones as stored")
def residual_window(subject: Subject) -> Iterator[DecodeCase]:
    for resid, lengths in itertools.product((0, 1, 5, 64), ((13, 13), (40, 3), (70, 64))):
        shape = ODD if resid == 5 else GROUPED
        yield DecodeCase(shape=shape, policy=f"{MIXED_POLICY},resid={resid}", lengths=lengths)


@DECODE.check(
    "a row of a ragged batch gives what it gives alone",
    hint="Read cache.lengths (or lengths_device) for every row of the batch.",
)
def ragged_rows(subject: Subject) -> Iterator[Violation]:
    for policy, lengths in itertools.product((FLOAT_POLICY, _WITH_WINDOW), ((13, 4, 0), (1, 65, 64))):
        case = DecodeCase(shape=GROUPED, policy=policy, lengths=lengths)
        for each, filled in asked(subject, case):
            got, right = each.decode(filled), oracle(filled)
            for row, length in enumerate(lengths):
                difference = far(got.out[row], right.out[row], dtype=case.dtype) if length else None
                if difference is not None:
                    expected = f"the {length} tokens of this row and no others"
                    yield Violation(f"{case}, row {row}", expected, difference)


@_equals_oracle(
    "a row without tokens gives zeros and an lse of -inf, or the null token's value",
    hint="Divide by l only where l > 0; the null token is the first state.",
)
def empty_rows(subject: Subject) -> Iterator[DecodeCase]:
    for policy, null in itertools.product((FLOAT_POLICY, _WITH_WINDOW), (False, True)):
        yield DecodeCase(shape=GROUPED, policy=policy, lengths=(0, 0), null=null)


@DECODE.check(
    "scores of a few hundred neither overflow nor lose the largest",
    hint="Subtract the running maximum before every exponential.",
)
def large_scores(subject: Subject) -> Iterator[Violation]:
    case = DecodeCase(shape=PLAIN, policy=FLOAT_POLICY, lengths=(13, 70))
    for each, usual in asked(subject, case):
        filled = attrs.evolve(usual, q_sem=usual.q_sem * 256, q_geo=usual.q_geo * 256)
        got, right = each.decode(filled), oracle(filled)
        # A float32 score of 1000 is known to 6e-5: weights, and the output, to about 1e-3.
        if difference := far(got.out, right.out, dtype="float16"):
            yield Violation(f"{case}, queries x 256", "out", difference)


@DECODE.check("every token of a row has influence, and none on another row")
def every_token_counts(subject: Subject) -> Iterator[Violation]:
    case = DecodeCase(shape=PLAIN, policy=FLOAT_POLICY, lengths=(13, 13))
    for each, usual in asked(subject, case):
        first = each.decode(usual).out
        for token in range(13):
            filled = case.filled(subject)
            for store in (filled.cache.k_sem, filled.cache.k_geo, filled.cache.v):
                store.codes[0, :, token] += 1.0
            out, where = each.decode(filled).out, f"{case}, token {token}"
            if not (out[0] - first[0]).abs().amax() > 1e-4:
                hint = "Look at the first and last token of a block."
                yield Violation(where, "influence", "none on its row", hint)
            if not same_bits(out[1], first[1]):
                yield Violation(where, "row 1 as before", "it changed", "Look at the batch stride.")


@DECODE.check(
    "memory past a row's length is not read: NaN there changes no bit",
    hint="Mask by length before the value is used: 0 * NaN is NaN.",
)
def nothing_past_a_length(subject: Subject) -> Iterator[Violation]:
    policies = QUICK_POLICIES if subject.quick else FULL_POLICIES
    for policy, null in itertools.product(policies, (False, True)):
        case = DecodeCase(shape=GROUPED, policy=policy, lengths=(9, 34), null=null)
        for each, filled in asked(subject, case):
            clean, dirty = each.decode(filled), each.decode(case.filled(subject, poison=True))
            if not same_bits(clean.out, dirty.out):
                bad = "NaN" if torch.isnan(dirty.out).any() else "other numbers"
                yield Violation(case, "the same bits with NaN behind every row's last token", bad)


@DECODE.check(
    "queries, null token and cache are as before", hint="The attention appends; a backend only reads."
)
def changes_nothing(subject: Subject) -> Iterator[Violation]:
    for policy, null in itertools.product((FLOAT_POLICY, _WITH_WINDOW), (False, True)):
        case = DecodeCase(shape=GROUPED, policy=policy, lengths=(13, 4), null=null)
        for each, filled in asked(subject, case):
            cache, before = filled.cache, copies(filled.tensors())
            lengths, on_device = cache.lengths, cache.lengths_device.clone()
            each.decode(filled)
            yield from changed(case, before, filled.tensors())
            after = cache.lengths_device
            if cache.lengths != lengths or not torch.equal(after, on_device):
                got = f"{list(cache.lengths)}, on the device {after.tolist()}"
                yield Violation(case, f"lengths {list(lengths)}", got)


@DECODE.check(
    "the same input gives the same bits, from one object, from another, and after other work",
    hint="No random numbers, no atomic sums, no state from one call to the next.",
)
def deterministic(subject: Subject) -> Iterator[Violation]:
    for policy in (FLOAT_POLICY, MIXED_POLICY):
        case = DecodeCase(shape=GROUPED, policy=policy, lengths=(65, 130), null=True)
        other = attrs.evolve(case, lengths=(3, 200))
        for each, filled in asked(subject, case):
            outs = [each.decode(filled).out, each.decode(filled).out]
            each.decode(other.filled(subject))
            outs.append(each.decode(filled).out)
            outs += [second.decode(again).out for second, again in asked(subject, case)]
            if not all(same_bits(outs[0], out) for out in outs):
                yield Violation(case, "the same bits every time", "outputs that differ")


@_equals_oracle("equals float64 in rows of more than a thousand tokens")
def equals_when_long(subject: Subject) -> Iterator[DecodeCase]:
    more = () if subject.quick else ((1025, 1024), FULL_LONG_LENGTHS)
    for policy, lengths in itertools.product((FLOAT_POLICY, _WITH_WINDOW), (QUICK_LONG_LENGTHS, *more)):
        yield DecodeCase(shape=GROUPED, policy=policy, lengths=lengths)


@DECODE.check(
    "every token of a long row has influence: the oldest, the newest and all between",
    hint="A row attends to all of its tokens: nothing is evicted, no block is skipped.",
)
def no_token_is_left_out(subject: Subject) -> Iterator[Violation]:
    lengths = (331, 130) if subject.quick else QUICK_LONG_LENGTHS
    for policy in (FLOAT_POLICY, _WITH_WINDOW):
        case = DecodeCase(shape=_MANY_CHANNELS, policy=policy, lengths=lengths)
        for each, _ in asked(subject, case):
            for row, (length, missing) in enumerate(zip(lengths, _left_out(subject, each), strict=True)):
                if missing:
                    got = f"none of {_in_words(missing)} of {length}"
                    yield Violation(f"{case}, row {row}", f"influence of all {length} tokens", got)


@_equals_oracle("every row has its own query, tokens and scales, whatever the batch around it")
def rows_keep_apart(subject: Subject) -> Iterator[DecodeCase]:
    for policy in (FLOAT_POLICY, MIXED_POLICY, _WITH_WINDOW):
        yield DecodeCase(shape=GROUPED, policy=policy, lengths=(9, 9, 9))


def _left_out(subject: Subject, each: Asked) -> list[list[int]]:
    """For each row its tokens that have less than half of their weight in every head."""
    lengths, (heads, width) = each.case.lengths, (_MANY_CHANNELS.n_heads, _MANY_CHANNELS.v_head_dim)
    slots = heads * width
    missing: list[list[int]] = [[] for _ in lengths]
    for first in range(0, max(lengths), slots):
        values = _one_hot(first, lengths, heads, width).to(subject.device)
        filled = each.case.filled(subject, values=values)
        enough = each.decode(filled).out.double().cpu() > oracle(filled).out.cpu() / 2  # [B, H, Dv]
        for row, length in enumerate(lengths):
            seen = enough[row].flatten()
            missing[row] += [first + slot for slot in range(min(slots, length - first)) if not seen[slot]]
    return missing


def _one_hot(first: int, lengths: tuple[int, ...], heads: int, width: int) -> Tensor:
    """[B,G,S,Dv]: token `first` + g Dv + c has a one in head g, channel c; all else is zero."""
    values = torch.zeros(len(lengths), heads, max(lengths), width)
    for slot in range(min(heads * width, max(lengths) - first)):
        values[:, slot // width, first + slot, slot % width] = 1.0
    return values


def _in_words(tokens: list[int]) -> str:
    """`tokens 4 to 966, 1000`."""
    runs = itertools.groupby(enumerate(tokens), key=lambda pair: pair[1] - pair[0])
    spans = [[token for _, token in run] for _, run in runs]
    texts = [f"{span[0]} to {span[-1]}" if len(span) > 1 else str(span[0]) for span in spans]
    return f"tokens {', '.join(texts[:5])}" + (" and more" if len(texts) > 5 else "")


@DECODE.capabilities
def _requests(subject: Subject) -> Iterator[Request]:
    """Usual requests and some that few backends take."""
    asks_lse = itertools.product(parity_grid(subject), (False, True))
    grid = [case.request(device=subject.device, needs_lse=needs_lse) for case, needs_lse in asks_lse]
    yield from grid[:: len(grid) // 64 | 1]  # an odd step meets both answers about the log-sum-exp
    base = DecodeCase(shape=PLAIN, policy=MIXED_POLICY, lengths=(13, 4)).request(
        device=subject.device, needs_lse=False
    )
    for dtype in ("float64", "float16", "bfloat16", "int8"):
        yield attrs.evolve(base, dtype=dtype)
    for device in ("cpu", "cuda", "cuda:1", "mps", "meta"):
        yield attrs.evolve(base, device=device, device_capability=(7, 0) if "cuda" in device else None)
    for capacity in (1, 2**31):
        yield attrs.evolve(base, capacity=capacity, batch=1024)
    k_sem, v = attrs.evolve(base.k_sem, n_heads=3), attrs.evolve(base.v, n_heads=3)
    yield attrs.evolve(base, k_sem=k_sem, v=v)
    wide = attrs.evolve(base.shape, v_head_dim=1000)
    yield attrs.evolve(base, shape=wide, v=attrs.evolve(base.v, head_dim=1000))
