"""The contract of weight formats: a weight [N,K] -> what it is computed with, and the product x W^T.

|y[m,n] - sum_k w[n,k] x[m,k]| <= product_error max|x[m]| sum_k |w[n,k]|        w: what `rows` gives
"""

from __future__ import annotations

import copy
import itertools
import pickle
import sys
from collections.abc import Iterator
from typing import cast

import attrs
import torch
from torch import Tensor

from dba_core.contracts import PackedWeight, WeightFacts, WeightFormatPlugin, WeightRequest
from dba_core.registry.contain import Failure, contain
from dba_core.testing.check import Suite
from dba_core.testing.compare import same_bits
from dba_core.testing.every_kind import imports_none
from dba_core.testing.subject import DTYPES, BreachError, Subject, Violation, told, torch_dtype

WEIGHT_FORMAT = Suite("weight_format")
#: Rows and columns: one, odd, primes, whole blocks of most formats.
SIZES = ((1, 1), (5, 7), (33, 130), (8, 64), (70, 96))
QUICK_SIZES = ((1, 1), (33, 130))
#: Rows of x: none, one, and more than a kernel for few would take.
LEADS: tuple[tuple[int, ...], ...] = ((0,), (1,), (2, 3), (17,), ())
_FACTS_SCRIPT = """
import sys
sys.path[:] = {path!r}
from dba_core.registry import Registry
Registry().load("weight_format", {name!r}).plugin.facts
"""


_COPIES = {
    "the same again": lambda packed: packed,
    "a deep copy": copy.deepcopy,
    "a pickle": lambda packed: pickle.loads(pickle.dumps(packed)),
}


@attrs.frozen(kw_only=True, eq=False)
class Case:
    """A weight [N,K], and what the format made of it."""

    request: WeightRequest
    weight: Tensor
    packed: PackedWeight

    def __str__(self) -> str:
        return f"weight [{self.request.rows},{self.request.columns}]"

    def x(self, subject: Subject, *lead: int, dtype: str = "float32", seed: int = 1) -> Tensor:
        """N(0,1) [*lead,K]."""
        return subject.random(*lead, self.request.columns, seed=seed, dtype=dtype)

    def product(self, x: Tensor) -> Tensor:
        """Raises BreachError where it raises or has another form."""
        done: object = contain(lambda: self.packed.product(x))
        wanted = (*x.shape[:-1], self.request.rows)
        if isinstance(done, Tensor) and done.shape == wanted and done.dtype == x.dtype:
            return done
        got = f"{list(done.shape)} {done.dtype}" if isinstance(done, Tensor) else told(done)
        raise BreachError(f"{self}, x {list(x.shape)}", f"{list(wanted)} {x.dtype}", got, "product: x W^T")

    def rows(self, index: Tensor) -> Tensor:
        """Raises BreachError where it raises or has another form."""
        done: object = contain(lambda: self.packed.rows(index))
        wanted = (*index.shape, self.request.columns)
        if isinstance(done, Tensor) and done.shape == wanted and done.dtype == torch.float32:
            return done
        got = f"{list(done.shape)} {done.dtype}" if isinstance(done, Tensor) else told(done)
        raise BreachError(
            f"{self}, index {list(index.shape)}", f"{list(wanted)} float32", got, "rows: W[index]"
        )

    def values(self) -> Tensor:
        """What is computed with, [N,K] float64."""
        return self.rows(torch.arange(self.request.rows, device=self.weight.device)).double()

    def far_off(self, most: float) -> Iterator[Violation]:
        """A violation where the values are further from the weight than `most`, relative L2."""
        exact = self.weight.double()
        error = float((self.values() - exact).norm() / exact.norm())
        if not error <= most:
            what = f"{self}, {self.weight.dtype}"
            yield Violation(what, f"a relative L2 error of at most {most:.3g}", f"{error:.3g}")

    def product_problem(self, subject: Subject, x: Tensor, facts: WeightFacts) -> Iterator[Violation]:
        """A violation where a product is further from the exact one than is stated."""
        got, values, exact_x = self.product(x).double(), self.values(), x.double()
        wrong = (got - exact_x @ values.T).abs()
        size = exact_x.abs().amax(-1, keepdim=True) * values.abs().sum(-1)
        rounding = 0.0 if x.dtype == torch.float32 else 2.0 * torch.finfo(x.dtype).eps
        allowed = (facts.product_error + rounding) * size + 1e-30
        if not bool((wrong <= allowed).all()):
            at = int((wrong / allowed).nan_to_num(torch.inf).argmax())
            yield Violation(
                f"{self}, x {list(x.shape)} {x.dtype}",
                f"an error of at most {float(allowed.flatten()[at]):.3g}",
                f"{float(wrong.flatten()[at]):.3g}",
            )


def facts_of(subject: Subject) -> WeightFacts:
    """What the plugin states. Raises BreachError where that is no WeightFacts."""
    facts = contain(lambda: cast("WeightFormatPlugin", subject.loaded.plugin).facts)
    if isinstance(facts, WeightFacts):
        return facts
    raise BreachError("facts", "a WeightFacts", told(facts), "Give the plugin `facts = WeightFacts(...)`.")


def packed(subject: Subject, weight: Tensor) -> Iterator[Case]:
    """The weight, where the plugin takes one of this size."""
    request = WeightRequest(rows=weight.shape[0], columns=weight.shape[1], device=subject.device)
    for pack in subject.built(request):
        made: object = contain(lambda pack=pack: pack(weight))  # type: ignore[misc]
        if isinstance(made, Failure) or not isinstance(made, PackedWeight):
            raise BreachError(f"weight {list(weight.shape)}", "a PackedWeight", told(made), "build() packs")
        yield Case(request=request, weight=weight, packed=made)


def cases(subject: Subject) -> Iterator[Case]:
    """A weight of N(0,1) values per size."""
    for seed, size in enumerate(QUICK_SIZES if subject.quick else SIZES):
        yield from packed(subject, subject.random(*size, seed=seed, dtype="float32"))


@WEIGHT_FORMAT.capabilities
def requests(subject: Subject) -> Iterator[WeightRequest]:
    for (rows, columns), device in itertools.product(SIZES, ("cpu", "cuda", subject.device)):
        yield WeightRequest(rows=rows, columns=columns, device=device)


@WEIGHT_FORMAT.check("the facts are read without torch", hint="Import torch where a weight is packed.")
def facts_without_torch(subject: Subject) -> Iterator[Violation]:
    facts_of(subject)
    subject.tally.cases += 1
    code = _FACTS_SCRIPT.format(path=sys.path, name=subject.loaded.info.qualified)
    yield from imports_none(
        subject, code, ("torch", "triton"), case="facts", expected="facts that need no torch"
    )


@WEIGHT_FORMAT.check("a packed weight has the weight's shape and at most the stated bits per value")
def size_as_stated(subject: Subject) -> Iterator[Violation]:
    facts = facts_of(subject)
    for case in itertools.chain(
        cases(subject), packed(subject, subject.random(256, 256, dtype="float32", seed=0))
    ):
        shape = (case.request.rows, case.request.columns)
        if tuple(case.packed.shape) != shape:
            yield Violation(case, f"shape {shape}", f"{case.packed.shape}")
        most = facts.bits / 8 * 256 * 256 * 1.01
        if shape == (256, 256) and not 0 < case.packed.nbytes <= most:
            yield Violation(
                case, f"at most {most:.0f} bytes ({facts.bits} bits per value)", f"{case.packed.nbytes}"
            )


@WEIGHT_FORMAT.check("N(0,1) values come back with the stated error, zeros as zeros, the weight untouched")
def round_trip(subject: Subject) -> Iterator[Violation]:
    facts = facts_of(subject)
    weight = subject.random(64, 512, dtype="float32", seed=0)
    before = weight.clone()
    for case in packed(subject, weight):
        error = float((case.values() - weight.double()).norm() / weight.double().norm())
        if not error <= facts.round_trip_error:
            yield Violation(
                case, f"a relative L2 error of at most {facts.round_trip_error:.3g}", f"{error:.3g}"
            )
        if not same_bits(weight, before):
            yield Violation(case, "the weight as it was", "another one", "Pack a copy.")
    for case in packed(subject, torch.zeros(9, 40, device=subject.device)):
        if bool(case.values().any()):
            yield Violation("a weight of zeros", "zeros", f"up to {float(case.values().abs().max()):.3g}")


@WEIGHT_FORMAT.check("the product is that of the values which `rows` gives, for any rows of x and dtype")
def product_of_the_values(subject: Subject) -> Iterator[Violation]:
    facts = facts_of(subject)
    for case, lead, dtype in itertools.product(cases(subject), LEADS, DTYPES):
        x = case.x(subject, *lead, dtype=dtype)
        before = x.clone()
        yield from case.product_problem(subject, x, facts)
        if not same_bits(x, before):
            yield Violation(f"{case}, x {list(lead)}", "x as it was", "another one", "Do not write into x.")


@WEIGHT_FORMAT.check("large, tiny and sparse x are multiplied as exactly, strided ones too")
def any_x(subject: Subject) -> Iterator[Violation]:
    facts = facts_of(subject)
    for case in cases(subject):
        x = case.x(subject, 4)
        sparse = x.clone()
        sparse[:, 1:] = 0.0
        spread = x * torch.logspace(-6, 3, x.shape[1], device=x.device)
        strided = case.x(subject, 4, 2)[:, 1]
        for each in (x * 1e6, x * 1e-6, sparse, spread, torch.zeros_like(x), strided):
            yield from case.product_problem(subject, each, facts)


@WEIGHT_FORMAT.check("every row of x, and every row of the weight, is on its own")
def rows_on_their_own(subject: Subject) -> Iterator[Violation]:
    facts = facts_of(subject)
    for case in cases(subject):
        x = case.x(subject, 5)
        loud = x.clone()
        loud[1:] *= 1e4
        drift = float((case.product(loud)[0] - case.product(x)[0]).abs().max())
        size = float(x.abs().max()) * float(case.values().abs().sum(-1).max())
        if not drift <= 2 * facts.product_error * size:
            yield Violation(f"{case}, louder rows beside", "the same first row", f"another by {drift:.3g}")
        if case.request.rows == 1:
            continue
        louder = case.weight.clone()
        louder[1:] *= 1e4
        for other in packed(subject, louder):
            if not same_bits(other.values()[0], case.values()[0]):
                yield Violation(f"{case}, louder rows beside", "the first row's values", "others")


@WEIGHT_FORMAT.check("rows of any index, in any order; a copy and a pickle give the same bits")
def looked_up(subject: Subject) -> Iterator[Violation]:
    for case in cases(subject):
        values = case.values().float()
        index = torch.arange(case.request.rows, device=values.device).flip(0).repeat(2).view(2, -1)
        if not same_bits(case.rows(index), values[index]):
            yield Violation(f"{case}, index {list(index.shape)}", "W[index]", "other values")
        once = case.product(case.x(subject, 2))
        for what, copied in _COPIES.items():
            again = contain(lambda c=case, copied=copied: copied(c.packed).product(c.x(subject, 2)))  # type: ignore[misc]
            if not isinstance(again, Tensor) or not same_bits(again, once):
                got = "another product" if isinstance(again, Tensor) else told(again)
                yield Violation(f"{case}, {what}", "the same product, bit for bit", got)


@WEIGHT_FORMAT.check("float16 and bfloat16 weights are packed too")
def weights_of_any_float(subject: Subject) -> Iterator[Violation]:
    facts = facts_of(subject)
    for dtype in DTYPES:
        weight = subject.random(33, 70, dtype="float32", seed=0).to(torch_dtype(dtype))
        for case in packed(subject, weight):
            error = float((case.values() - weight.double()).norm() / weight.double().norm())
            if not error <= 1.2 * facts.round_trip_error:
                yield Violation(
                    f"{case} of {dtype}", f"a relative error of {facts.round_trip_error:.3g}", f"{error:.3g}"
                )
