"""The contract of cache formats: values of one or more tokens -> codes and block scales -> values.

    |x' - x| <= BOUND * round_trip_error * max|block of x|          (of a format without blocks: |x|)

is what every value keeps, whatever lies beside its block; on N(0,1) the relative L2 error is what the format
states.
"""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Iterator
from typing import cast

import attrs
import torch
from torch import Tensor

from dba_core.contracts import Encoded, FormatFacts, KVCodec, KVFormatPlugin, KVFormatRequest
from dba_core.registry.contain import Failure, contain
from dba_core.testing.check import Suite
from dba_core.testing.compare import changed, copies, same_bits, well_shaped
from dba_core.testing.every_kind import imports_none
from dba_core.testing.subject import BreachError, Subject, Violation, told

KV_FORMAT = Suite("kv_format")
#: Heads and width: blocks are a part of a head, a head, several heads, straddle heads; odd, and one value.
SIZES = ((2, 64), (4, 8), (3, 5), (1, 1), (2, 33), (3, 7))
QUICK_SIZES = ((2, 64), (3, 5), (1, 1))
#: The largest error of a value, in units of the stated root mean square.
BOUND = 3.0
#: What is rounded away where fp16 numbers end, relative to nothing.
TINY = 6e-8


@attrs.frozen(kw_only=True, eq=False)
class Case:
    """A codec built for one tensor."""

    request: KVFormatRequest
    facts: FormatFacts
    codec: KVCodec

    def __str__(self) -> str:
        return str(self.request)

    def values(self, subject: Subject, *, batch: int = 2, tokens: int = 5) -> Tensor:
        """N(0,1) float32 [B,G,T,D]."""
        sizes = (batch, self.request.n_heads, tokens, self.request.head_dim)
        return subject.random(*sizes, seed=0, dtype="float32")

    def encode(self, x: Tensor, *, what: str = "N(0,1)") -> Encoded:
        """Raises BreachError where the codec raises or returns something else."""
        done: object = contain(lambda: self.codec.encode(x))
        if isinstance(done, Encoded) and (done.scales is not None) == self.facts.quantized:
            return done
        expected = f"Encoded, {'with' if self.facts.quantized else 'without'} scales"
        hint = "Return Encoded(codes, scales); scales is None where the facts state no qblocks."
        raise BreachError(f"{self}, {what}", expected, told(done), hint)

    def decode(self, encoded: Encoded, *, what: str = "N(0,1)") -> Tensor:
        """Raises BreachError where the codec raises or returns another shape."""
        done: object = contain(lambda: self.codec.decode(encoded.codes, encoded.scales))
        wanted = (*encoded.codes.shape[:3], self.request.head_dim)
        if isinstance(done, Tensor) and done.shape == wanted:
            return done
        got = str(list(done.shape)) if isinstance(done, Tensor) else told(done)
        hint = "decode() gives back the width of a head, without what packing added."
        raise BreachError(f"{self}, {what}", f"values {list(wanted)}", got, hint)

    def round_trip(self, x: Tensor, *, what: str = "N(0,1)") -> Tensor:
        """x as the cache would read it, float64."""
        return self.decode(self.encode(x, what=what), what=what).double()

    def allowed(self, x: Tensor) -> Tensor:
        """The largest error of every value of x [B,G,T,D], float64: by the blocks of each token's row."""
        size = x.double().abs()
        if self.facts.quantized:
            row = size.transpose(1, 2).flatten(2)  # [B, T, G*D]
            blocks = torch.split(row, self.request.qblock, dim=-1)
            row = torch.cat([b.amax(-1, keepdim=True).expand_as(b) for b in blocks], dim=-1)
            size = torch.unflatten(row, -1, (x.shape[1], x.shape[3])).transpose(1, 2)
        return BOUND * self.facts.round_trip_error * size + TINY

    def close(self, x: Tensor, *, what: str, hint: str = "") -> Iterator[Violation]:
        """A violation where a value comes back further away than allowed, or not as a number."""
        got, allowed = self.round_trip(x, what=what), self.allowed(x)
        wrong = ~((got - x.double()).abs() <= allowed)
        if wrong.any():
            at = tuple(int(i) for i in wrong.nonzero()[0])
            yield Violation(
                f"{self}, {what}",
                f"{float(x[at]):.6g} within {float(allowed[at]):.3g}",
                f"{float(got[at]):.6g} at {list(at)}; {int(wrong.sum())} of {wrong.numel()} are wrong",
                hint,
            )


def facts_of(subject: Subject) -> FormatFacts:
    """What the plugin states. Raises BreachError where that is no FormatFacts."""
    facts = contain(lambda: cast("KVFormatPlugin", subject.loaded.plugin).facts)
    if isinstance(facts, FormatFacts):
        return facts
    hint = "Give the plugin `facts = FormatFacts(...)`: policies and sizes read nothing else."
    raise BreachError("facts", "a FormatFacts", told(facts), hint)


def cases(subject: Subject) -> Iterator[Case]:
    """Sizes x block lengths: the shortest, the default and the longest."""
    facts = facts_of(subject)
    blocks = {min(facts.qblocks), facts.default_qblock, max(facts.qblocks)} if facts.qblocks else {0}
    for heads, width in QUICK_SIZES if subject.quick else SIZES:
        for qblock in sorted(blocks):
            request = KVFormatRequest(n_heads=heads, head_dim=width, qblock=qblock, device=subject.device)
            for codec in subject.built(request):
                yield Case(request=request, facts=facts, codec=codec)


@KV_FORMAT.check(
    "what the format costs and keeps is stated, and read without torch",
    hint="Import torch, and the module of the codec, in build().",
)
def facts_without_torch(subject: Subject) -> Iterator[Violation]:
    facts_of(subject)
    info = subject.loaded.info
    code = (
        "from dba_core.registry import Registry\n"
        f"Registry().load('kv_format', {info.qualified!r}).plugin.facts"
    )
    expected = "facts that can be read without importing torch"
    yield from imports_none(subject, code, ("torch", "triton"), case=info.module, expected=expected)


@KV_FORMAT.check(
    "planes have the stated dtypes, widths and bytes for any number of tokens, values their shape", over=cases
)
def planes_as_stated(subject: Subject, case: Case) -> Iterator[Violation]:
    for batch, tokens in ((1, 1), (2, 5), (3, 0)):
        yield from _planes(subject, case, batch=batch, tokens=tokens)


def _planes(subject: Subject, case: Case, *, batch: int, tokens: int) -> Iterator[Violation]:
    heads, width, facts = case.request.n_heads, case.request.head_dim, case.facts
    encoded = case.encode(case.values(subject, batch=batch, tokens=tokens))
    n_blocks = facts.n_blocks(heads * width, case.request.qblock) if facts.quantized else 0
    read = "float32" if facts.quantized else facts.code_dtype
    for what, plane, dtype, shape in (
        ("codes", encoded.codes, facts.code_dtype, (heads, tokens, facts.code_width(width))),
        ("scales", encoded.scales, facts.scale_dtype, (n_blocks, tokens)),
        ("decoded values", case.decode(encoded), read, (heads, tokens, width)),
    ):
        if plane is not None:
            sizes = (batch, *shape)
            yield from well_shaped(case, plane, sizes, dtype=dtype, device=subject.device, what=what)


@KV_FORMAT.check(
    "on N(0,1), in blocks of the default length, the relative L2 error is the stated one",
    hint="Look at the order of packed codes and at rounding; or state what is measured here.",
)
def stated_error(subject: Subject) -> Iterator[Violation]:
    facts = facts_of(subject)
    request = KVFormatRequest(n_heads=4, head_dim=64, qblock=facts.default_qblock, device=subject.device)
    for codec in subject.built(request):
        case = Case(request=request, facts=facts, codec=codec)
        x = case.values(subject, tokens=64)
        error = float((case.round_trip(x) - x.double()).norm() / x.double().norm())
        stated = facts.round_trip_error
        if not 0.5 * stated <= error <= 1.05 * stated:
            expected = f"a relative L2 error of {stated:g}, as stated, at most half of it less"
            yield Violation(case, expected, f"{error:.3g}")


@KV_FORMAT.check(
    "every value keeps the bound of its own block, for odd widths and heads of unlike size too", over=cases
)
def each_value_close(subject: Subject, case: Case) -> Iterator[Violation]:
    x = case.values(subject)
    yield from case.close(x, what="N(0,1)", hint="Look at the last values of a head and of a row.")
    sizes = torch.logspace(-2, 2, x.shape[1], device=x.device)[:, None, None]
    hint = "Block n of a row is its values n * qblock on, over all heads; the last one may be short."
    yield from case.close(x * sizes, what="heads of unlike size", hint=hint)


@KV_FORMAT.check(
    "twice, or a sixteenth, of the values gives twice, or a sixteenth, of what is read",
    hint="Codes may depend on x / scale alone, and the scale on the largest value alone.",
    over=cases,
)
def scale_invariance(subject: Subject, case: Case) -> Iterator[Violation]:
    x = case.values(subject)
    x = torch.where(x < 0, -1.0, 1.0) * x.abs().clamp(min=0.25)  # within the normal numbers of fp16
    once = case.round_trip(x)
    for factor in (2.0, 0.0625, 256.0):
        what = f"N(0,1) x {factor:g}"
        got = case.round_trip(x * factor, what=what) / factor
        off = (got - once).abs() > 1e-3 * case.facts.round_trip_error * once.abs() + 1e-12
        if off.any():
            expected = f"{factor:g} times what N(0,1) is read as"
            yield Violation(f"{case}, {what}", expected, f"{int(off.sum())} of {off.numel()} values differ")


@KV_FORMAT.check(
    "zeros are read as zeros, in a row of zeros and in blocks of their own",
    hint="Divide by a scale that is never 0, and give zero a code of its own.",
    over=cases,
)
def zeros(subject: Subject, case: Case) -> Iterator[Violation]:
    x = case.values(subject)
    x[:, :, 1] = 0.0
    x[0] = 0.0
    got = case.round_trip(x, what="zeros")[x == 0]
    if not (got == 0).all():
        yield Violation(f"{case}, tokens of zeros", "zeros", f"{float(got.abs().max()):.3g}")


@KV_FORMAT.check(
    "a value a thousand times larger costs its own block alone; the largest input is finite", over=cases
)
def outliers(subject: Subject, case: Case) -> Iterator[Violation]:
    x = case.values(subject)
    plain = case.round_trip(x)
    x[0, 0, 2, 0] = 1000.0
    what, hint = (
        "one value of 1000",
        "Scales must not overflow, and codes must be clamped after rounding.",
    )
    yield from case.close(x, what=what, hint=hint)
    same = (case.round_trip(x) == plain).transpose(1, 2).flatten(2)  # [B, T, G*D]
    same[0, 2, : max(case.request.qblock, 1)] = True
    if not same.all():
        yield Violation(
            f"{case}, {what}",
            "every value outside its block as before",
            f"{int((~same).sum())} others changed",
            "One scale per block of `qblock` values of one token.",
        )
    x = case.values(subject).clamp(-1, 1) * case.facts.max_input
    x[:, :, 0] = case.facts.max_input
    yield from case.close(x, what="up to max_input", hint=f"{hint} Or state a smaller max_input.")


@KV_FORMAT.check(
    "the smallest numbers, denormal ones too, come back finite and as small",
    hint="Keep scales at normal numbers (2**-126 at least): x / scale must not be infinite.",
    over=cases,
)
def denormals(subject: Subject, case: Case) -> Iterator[Violation]:
    for size in (1e-30, 1e-38, 1e-40, 1e-45):
        yield from case.close(case.values(subject) * size, what=f"N(0,1) x {size:g}")


@KV_FORMAT.check(
    "token by token and row by row the codes are those of all at once",
    hint="A token's codes and scales may depend on that token alone.",
    over=cases,
)
def each_token_alone(subject: Subject, case: Case) -> Iterator[Violation]:
    x = case.values(subject, batch=3)
    whole = planes_of(case.encode(x))
    for what, axis in (("token by token", 2), ("row by row", 0)):
        parts = [planes_of(case.encode(part)) for part in torch.split(x, 1, dim=axis)]
        for name, plane in whole.items():
            if not same_bits(torch.cat([part[name] for part in parts], dim=axis), plane):
                yield Violation(f"{case}, {what}", f"the {name} of all at once", "others")


def planes_of(encoded: Encoded) -> dict[str, Tensor]:
    """codes, and scales where there are any."""
    return {"codes": encoded.codes} | ({} if encoded.scales is None else {"scales": encoded.scales})


@KV_FORMAT.check(
    "any floating dtype and strides are taken; a part of the planes is read as in the whole", over=cases
)
def dtypes_and_strides(subject: Subject, case: Case) -> Iterator[Violation]:
    x = case.values(subject).bfloat16().float().clamp(-4, 4)
    x = torch.where(x.abs() < 2.0**-6, 0.0, x)  # exact in every dtype
    plain = case.encode(x)
    values = case.decode(plain)
    given = {
        "strided": x.transpose(1, 2).contiguous().transpose(1, 2),
        **{str(dtype): x.to(dtype) for dtype in (torch.float16, torch.bfloat16, torch.float64)},
    }
    for what, each in given.items():
        if not same_bits(case.encode(each, what=what).codes, plain.codes):
            hint = "Convert to float32 first, and assume no strides."
            yield Violation(f"{case}, {what}", "the same codes", "others", hint)
    part = Encoded(plain.codes[:, :, 1:3], None if plain.scales is None else plain.scales[:, :, 1:3])
    if not same_bits(case.decode(part), values[:, :, 1:3]):
        hint = "The planes of a cache are longer than what is read: assume no strides in decode()."
        yield Violation(f"{case}, tokens 1 and 2", "their values", "others", hint)


@KV_FORMAT.check("the same bits every time, from another codec, a copy and a pickle; inputs stay as given")
def deterministic(subject: Subject) -> Iterator[Violation]:
    for case, again in zip(cases(subject), cases(subject), strict=True):
        x = case.values(subject)
        before = copies({"x": x})
        first = case.encode(x)
        given = {"x": x, **planes_of(first)}
        before |= copies(planes_of(first))
        values = case.decode(first).clone()
        codecs = {"once more": case.codec, "another codec": again.codec}
        made = contain(lambda codec=case.codec: (copy.deepcopy(codec), pickle.loads(pickle.dumps(codec))))  # type: ignore[misc]
        if isinstance(made, Failure):
            hint = "Caches are copied and pickled with their codecs: a class of a module, plain attributes."
            yield Violation(case, "a copy", told(made), hint)
        else:
            codecs |= {"a copy": made[0], "a pickle": made[1]}
        for what, codec in codecs.items():
            other = attrs.evolve(case, codec=codec)
            second = other.encode(x)
            if not (same_bits(second.codes, first.codes) and same_bits(other.decode(second), values)):
                hint = "No random numbers, and no state from one call to the next."
                yield Violation(f"{case}, {what}", "the same bits", "others", hint)
        yield from changed(case, before, given)


@KV_FORMAT.capabilities
def _requests(subject: Subject) -> Iterator[KVFormatRequest]:
    facts = facts_of(subject)
    qblock = facts.default_qblock
    for device, length in itertools.product(("cpu", "cuda", "mps", "meta"), (*facts.qblocks, qblock)):
        yield KVFormatRequest(n_heads=2, head_dim=24, qblock=length, device=device)
    for heads, width in ((1, 1), (96, 1), (1, 576), (7, 1000)):
        yield KVFormatRequest(n_heads=heads, head_dim=width, qblock=qblock, device=subject.device)
