"""The contract of cache formats: values of one or more tokens -> codes and block scales -> values.

    |x' - x| <= BOUND * round_trip_error * max|block of x|          (of a format without blocks: |x|)

is what every value keeps, whatever lies beside its block; on N(0,1) the relative L2 error is what the format
states.
"""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Iterator
from typing import cast

import attrs
import torch
from torch import Tensor

from dba_core.contracts import Encoded, FormatFacts, KVCodec, KVFormatPlugin, KVFormatRequest
from dba_core.registry.contain import Failure, contain, shown
from dba_core.testing.check import Suite
from dba_core.testing.compare import changed, copies, same_bits, well_shaped
from dba_core.testing.every_kind import capability_checks
from dba_core.testing.subject import BreachError, Subject, Violation

KV_FORMAT = Suite("kv_format")
#: Heads and width: blocks are a part of a head, a head, several heads, straddle heads; odd, and one value.
SIZES = ((2, 64), (4, 8), (3, 5), (1, 1), (2, 33), (3, 7))
QUICK_SIZES = ((2, 64), (3, 5), (1, 1))
#: The largest error of a value, in units of the stated root mean square.
BOUND = 3.0
#: What is rounded away where fp16 numbers end, relative to nothing.
TINY = 6e-8
_FACTS_SCRIPT = """
import sys
sys.path[:] = {path!r}
from dba_core.registry import Registry
Registry().load("kv_format", {name!r}).plugin.facts
print(*(name for name in ("torch", "triton") if name in sys.modules))
"""


@attrs.frozen(kw_only=True, eq=False)
class Case:
    """A codec built for one tensor."""

    request: KVFormatRequest
    facts: FormatFacts
    codec: KVCodec

    def __str__(self) -> str:
        return str(self.request)

    def values(self, subject: Subject, *, batch: int = 2, tokens: int = 5, seed: int = 0) -> Tensor:
        """N(0,1) float32 [B,G,T,D]."""
        sizes = (batch, self.request.n_heads, tokens, self.request.head_dim)
        return subject.random(*sizes, seed=seed, dtype="float32")

    def encode(self, x: Tensor, *, what: str = "N(0,1)") -> Encoded:
        """Raises BreachError where the codec raises or returns something else."""
        done: object = contain(lambda: self.codec.encode(x))
        if isinstance(done, Encoded) and (done.scales is not None) == self.facts.quantized:
            return done
        raise BreachError(
            Violation(
                case=f"{self}, {what}",
                expected=f"Encoded, {'with' if self.facts.quantized else 'without'} scales",
                got=f"it raised {done}" if isinstance(done, Failure) else shown(done),
                hint="Return Encoded(codes, scales); scales is None where the facts state no qblocks.",
            )
        )

    def decode(self, encoded: Encoded, *, what: str = "N(0,1)") -> Tensor:
        """Raises BreachError where the codec raises or returns another shape."""
        done: object = contain(lambda: self.codec.decode(encoded.codes, encoded.scales))
        wanted = (*encoded.codes.shape[:3], self.request.head_dim)
        if isinstance(done, Tensor) and done.shape == wanted:
            return done
        found = list(done.shape) if isinstance(done, Tensor) else shown(done)
        raise BreachError(
            Violation(
                case=f"{self}, {what}",
                expected=f"values {list(wanted)}",
                got=f"it raised {done}" if isinstance(done, Failure) else str(found),
                hint="decode() gives back the width of a head, without what packing added.",
            )
        )

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

    def close(self, x: Tensor, *, what: str, hint: str) -> Iterator[Violation]:
        """A violation where a value comes back further away than allowed, or not as a number."""
        got = self.round_trip(x, what=what)
        error = (got - x.double()).abs()
        wrong = ~(error <= self.allowed(x))
        if wrong.any():
            at = [int(i) for i in wrong.nonzero()[0]]
            yield Violation(
                case=f"{self}, {what}",
                expected=f"{float(x[tuple(at)]):.6g} within {float(self.allowed(x)[tuple(at)]):.3g}",
                got=f"{float(got[tuple(at)]):.6g} at {at}; {int(wrong.sum())} of {wrong.numel()} are wrong",
                hint=hint,
            )


def facts_of(subject: Subject) -> FormatFacts:
    """What the plugin states. Raises BreachError where that is no FormatFacts."""
    facts = contain(lambda: cast("KVFormatPlugin", subject.loaded.plugin).facts)
    if isinstance(facts, FormatFacts):
        return facts
    found = f"reading it raised {facts}" if isinstance(facts, Failure) else shown(facts)
    raise BreachError(
        Violation(
            case="facts",
            expected="a FormatFacts",
            got=found,
            hint="Give the plugin `facts = FormatFacts(...)`: policies and sizes read nothing else.",
        )
    )


def cases(subject: Subject) -> Iterator[Case]:
    """Sizes x block lengths: the shortest, the default and the longest."""
    facts = facts_of(subject)
    blocks = {min(facts.qblocks), facts.default_qblock, max(facts.qblocks)} if facts.qblocks else {0}
    for heads, width in QUICK_SIZES if subject.quick else SIZES:
        for qblock in sorted(blocks):
            request = KVFormatRequest(n_heads=heads, head_dim=width, qblock=qblock, device=subject.device)
            for codec in subject.built(request):
                yield Case(request=request, facts=facts, codec=codec)


@KV_FORMAT.check("what the format costs and keeps is stated, and read without torch")
def facts_without_torch(subject: Subject) -> Iterator[Violation]:
    facts_of(subject)
    if not subject.installed:
        return
    script = _FACTS_SCRIPT.format(
        path=[entry for entry in sys.path if entry], name=subject.loaded.info.qualified
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    if done.returncode or done.stdout.split():
        yield Violation(
            case=subject.loaded.info.module,
            expected="facts that can be read without importing torch",
            got=f"imported: {done.stdout.strip()}" if not done.returncode else done.stderr.strip()[-300:],
            hint="Import torch, and the module of the codec, in build().",
        )


@KV_FORMAT.check(
    "planes have the stated dtypes, widths and bytes for any number of tokens, values their shape"
)
def planes_as_stated(subject: Subject) -> Iterator[Violation]:
    for case in cases(subject):
        heads, width, qblock = case.request.n_heads, case.request.head_dim, case.request.qblock
        facts = case.facts
        for batch, tokens in ((1, 1), (2, 5), (3, 0)):
            encoded = case.encode(case.values(subject, batch=batch, tokens=tokens))
            codes = (encoded.codes, facts.code_dtype, [heads, tokens, facts.code_width(width)])
            planes = {"codes": codes}
            if encoded.scales is not None:
                n_blocks = facts.n_blocks(heads * width, qblock)
                planes["scales"] = (encoded.scales, facts.scale_dtype, [n_blocks, tokens])
            for name, (plane, dtype, shape) in planes.items():
                yield from well_shaped(
                    plane,
                    shape=(batch, *shape),
                    dtype=getattr(torch, dtype),
                    device=subject.device,
                    what=name,
                    case=str(case),
                )
            yield from well_shaped(
                case.decode(encoded),
                shape=(batch, heads, tokens, width),
                dtype=torch.float32 if facts.quantized else getattr(torch, facts.code_dtype),
                device=subject.device,
                what="decoded values",
                case=str(case),
            )


@KV_FORMAT.check("on N(0,1), in blocks of the default length, the relative L2 error is the stated one")
def stated_error(subject: Subject) -> Iterator[Violation]:
    facts = facts_of(subject)
    request = KVFormatRequest(n_heads=4, head_dim=64, qblock=facts.default_qblock, device=subject.device)
    for codec in subject.built(request):
        case = Case(request=request, facts=facts, codec=codec)
        x = case.values(subject, tokens=64)
        error = float((case.round_trip(x) - x.double()).norm() / x.double().norm())
        stated = facts.round_trip_error
        if not 0.5 * stated <= error <= 1.05 * stated:
            yield Violation(
                case=str(case),
                expected=f"a relative L2 error of {stated:g}, as stated, at most half of it less",
                got=f"{error:.3g}",
                hint="Look at the order of packed codes and at rounding; or state what is measured here.",
            )


@KV_FORMAT.check("every value keeps the bound of its own block, for odd widths and heads of unlike size too")
def each_value_close(subject: Subject) -> Iterator[Violation]:
    for case in cases(subject):
        x = case.values(subject)
        yield from case.close(x, what="N(0,1)", hint="Look at the last values of a head and of a row.")
        sizes = torch.logspace(-2, 2, x.shape[1], device=x.device)[:, None, None]
        hint = "Block n of a row is its values n * qblock on, over all heads; the last one may be short."
        yield from case.close(x * sizes, what="heads of unlike size", hint=hint)


@KV_FORMAT.check("twice, or a sixteenth, of the values gives twice, or a sixteenth, of what is read")
def scale_invariance(subject: Subject) -> Iterator[Violation]:
    for case in cases(subject):
        x = case.values(subject)
        x = torch.where(x < 0, -1.0, 1.0) * x.abs().clamp(min=0.25)  # within the normal numbers of fp16
        once = case.round_trip(x)
        for factor in (2.0, 0.0625, 256.0):
            got = case.round_trip(x * factor, what=f"N(0,1) x {factor:g}") / factor
            off = (got - once).abs() > 1e-3 * case.facts.round_trip_error * once.abs() + 1e-12
            if off.any():
                yield Violation(
                    case=f"{case}, N(0,1) x {factor:g}",
                    expected=f"{factor:g} times what N(0,1) is read as",
                    got=f"{int(off.sum())} of {off.numel()} values differ",
                    hint="Codes may depend on x / scale alone, and the scale on the largest value alone.",
                )


@KV_FORMAT.check("zeros are read as zeros, in a row of zeros and in blocks of their own")
def zeros(subject: Subject) -> Iterator[Violation]:
    for case in cases(subject):
        x = case.values(subject)
        x[:, :, 1] = 0.0
        x[0] = 0.0
        got = case.round_trip(x, what="zeros")
        if not (got[x == 0] == 0).all():
            yield Violation(
                case=f"{case}, tokens of zeros",
                expected="zeros",
                got=f"{float(got[x == 0].abs().max()):.3g}",
                hint="Divide by a scale that is never 0, and give zero a code of its own.",
            )


@KV_FORMAT.check("a value a thousand times larger costs its own block alone; the largest input is finite")
def outliers(subject: Subject) -> Iterator[Violation]:
    for case in cases(subject):
        x = case.values(subject)
        plain = case.round_trip(x)
        x[0, 0, 2, 0] = 1000.0
        hint = "Scales must not overflow, and codes must be clamped after rounding."
        yield from case.close(x, what="one value of 1000", hint=hint)
        got = case.round_trip(x)
        beside = max(case.request.qblock, 1)
        same = (got == plain).transpose(1, 2).flatten(2)  # [B, T, G*D]
        same[0, 2, :beside] = True
        if not same.all():
            yield Violation(
                case=f"{case}, one value of 1000",
                expected="every value outside its block as before",
                got=f"{int((~same).sum())} others changed",
                hint="One scale per block of `qblock` values of one token.",
            )
        x = case.values(subject).clamp(-1, 1) * case.facts.max_input
        x[:, :, 0] = case.facts.max_input
        yield from case.close(x, what="up to max_input", hint=f"{hint} Or state a smaller max_input.")


@KV_FORMAT.check("the smallest numbers, denormal ones too, come back finite and as small")
def denormals(subject: Subject) -> Iterator[Violation]:
    for case in cases(subject):
        for size in (1e-30, 1e-38, 1e-40, 1e-45):
            x = case.values(subject) * size
            hint = "Keep scales at normal numbers (2**-126 at least): x / scale must not be infinite."
            yield from case.close(x, what=f"N(0,1) x {size:g}", hint=hint)


@KV_FORMAT.check("token by token and row by row the codes are those of all at once")
def each_token_alone(subject: Subject) -> Iterator[Violation]:
    for case in cases(subject):
        x = case.values(subject, batch=3)
        whole = case.encode(x)
        for what, axis, parts in (
            ("token by token", 2, [case.encode(x[:, :, t : t + 1]) for t in range(x.shape[2])]),
            ("row by row", 0, [case.encode(x[b : b + 1]) for b in range(len(x))]),
        ):
            for name in ("codes", "scales")[: 1 + case.facts.quantized]:
                planes = [{"codes": each.codes, "scales": each.scales}[name] for each in (whole, *parts)]
                tensors = [plane for plane in planes if plane is not None]
                if not same_bits(torch.cat(tensors[1:], dim=axis), tensors[0]):
                    yield Violation(
                        case=f"{case}, {what}",
                        expected=f"the {name} of all at once",
                        got="others",
                        hint="A token's codes and scales may depend on that token alone.",
                    )


@KV_FORMAT.check("any floating dtype and strides are taken; a part of the planes is read as in the whole")
def dtypes_and_strides(subject: Subject) -> Iterator[Violation]:
    for case in cases(subject):
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
                yield Violation(case=f"{case}, {what}", expected="the same codes", got="others", hint=hint)
        part = Encoded(plain.codes[:, :, 1:3], None if plain.scales is None else plain.scales[:, :, 1:3])
        if not same_bits(case.decode(part), values[:, :, 1:3]):
            hint = "The planes of a cache are longer than what is read: assume no strides in decode()."
            yield Violation(case=f"{case}, tokens 1 and 2", expected="their values", got="others", hint=hint)


@KV_FORMAT.check("the same bits every time, from another codec, a copy and a pickle; inputs stay as given")
def deterministic(subject: Subject) -> Iterator[Violation]:
    for case, again in zip(cases(subject), cases(subject), strict=True):
        x = case.values(subject)
        given = {"x": x}
        before = copies(given)
        first = case.encode(x)
        given |= {"codes": first.codes} | ({} if first.scales is None else {"scales": first.scales})
        before = copies(given) | before
        values = case.decode(first).clone()
        others = {"once more": case.codec, "another codec": again.codec}
        made = contain(
            lambda case=case: (copy.deepcopy(case.codec), pickle.loads(pickle.dumps(case.codec)))  # type: ignore[misc]
        )
        if isinstance(made, Failure):
            hint = "Caches are copied and pickled with their codecs: a class of a module, plain attributes."
            yield Violation(case=str(case), expected="a copy", got=f"it raised {made}", hint=hint)
        else:
            others |= {"a copy": made[0], "a pickle": made[1]}
        for what, codec in others.items():
            other = attrs.evolve(case, codec=codec)
            second = other.encode(x)
            if not (same_bits(second.codes, first.codes) and same_bits(other.decode(second), values)):
                yield Violation(
                    case=f"{case}, {what}",
                    expected="the same bits",
                    got="others",
                    hint="No random numbers, and no state from one call to the next.",
                )
        yield from changed(before, given, case=str(case))


def _requests(subject: Subject) -> Iterator[KVFormatRequest]:
    facts = facts_of(subject)
    for device in ("cpu", "cuda", "mps", "meta"):
        for qblock in (*facts.qblocks, facts.default_qblock):
            yield KVFormatRequest(n_heads=2, head_dim=24, qblock=qblock, device=device)
    for heads, width in ((1, 1), (96, 1), (1, 576), (7, 1000)):
        yield KVFormatRequest(
            n_heads=heads, head_dim=width, qblock=facts.default_qblock, device=subject.device
        )


capability_checks(KV_FORMAT, _requests)
