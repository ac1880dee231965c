"""Cases for both Triton decode backends and their comparison with float64, on the CPU and on a GPU."""

from __future__ import annotations

import attrs
import torch
from decode_cases import expected, filled, queries, random_null, request

from dba_core.contracts import NullKV
from dba_plugins.decode.triton.backend import OnePassDecode, Step, TwoPassDecode
from dba_plugins.decode.triton.limits import OnePassOptions, TwoPassOptions
from dba_plugins.decode.triton.spec import KernelSpec

#: (n_heads, heads of k_sem, of k_geo, of v, Ds, Dg, Dv); the block is 32 tokens but for odd widths, 16.
GROUPED = (8, 2, 2, 2, 32, 64, 64)
SINGLE = (2, 2, 2, 2, 32, 32, 32)
MANY = (20, 1, 1, 1, 32, 32, 32)
SHARED = (4, 1, 2, 4, 16, 32, 16)
ODD = (6, 3, 3, 3, 6, 20, 7)
NARROW = (4, 2, 2, 2, 0, 4, 5)
WIDE = (2, 1, 1, 1, 64, 128, 256)
STUDIED = "ksem=q4_0,kgeo=q8_0,v=q4_0"

#: Largest absolute and relative error against float64, by the queries' dtype; the output is rounded to it.
LIMITS = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}


@attrs.frozen(kw_only=True)
class Case:
    """passes: of the backend. options: of its plugin."""

    sizes: tuple[int, ...] = GROUPED
    policy: str = STUDIED
    lengths: tuple[int, ...] = (70, 33)
    null: bool = False
    dtype: torch.dtype = torch.float16
    passes: int = 2
    options: dict[str, int] = attrs.field(factory=dict)
    scale: float = 1.0

    def __str__(self) -> str:
        null = ",null" if self.null else ""
        more = "".join(f",{name}={value}" for name, value in self.options.items())
        dtype = str(self.dtype).removeprefix("torch.")
        lengths = "-".join(map(str, self.lengths))
        return f"{self.passes}pass,{self.policy},{self.sizes},{lengths},{dtype}{null}{more}"


def prepared(case: Case, *, device: str = "cpu"):
    """cache, the tensors that went in, q_sem, q_geo, null; past the lengths the cache holds NaN."""
    torch.manual_seed(0)
    total = max(1, *case.lengths)
    cache, tensors = filled(case.sizes, case.policy, case.lengths, total=total, poison=True)
    null = random_null(case.sizes) if case.null else None
    width = case.sizes[4] + case.sizes[5]
    q_sem, q_geo = (
        (case.scale * q / width**0.5).to(case.dtype) for q in queries(case.sizes, len(case.lengths))
    )
    return cache, tensors, q_sem, q_geo, null


def built(case: Case, cache):
    k_sem, k_geo, v = cache.specs
    asked = request(
        case.sizes,
        k_sem=k_sem,
        k_geo=k_geo,
        v=v,
        residual_len=cache.residual_len,
        batch=cache.batch,
        capacity=cache.capacity,
        has_null=case.null,
        dtype=str(case.dtype).removeprefix("torch."),
    )
    spec = KernelSpec.of(asked)
    if case.passes == 1:
        return OnePassDecode(spec, OnePassOptions(**case.options))
    return TwoPassDecode(spec, TwoPassOptions(**case.options), processors=None)


def poisoned(monkeypatch) -> None:
    """Scratch and output begin as NaN: what is not written shows."""
    for name in ("new_output", "new_state"):
        original = getattr(Step, name)

        def made(self, *args, original=original):
            result = original(self, *args)
            planes = [result] if isinstance(result, torch.Tensor) else [result.out, result.lse]
            for plane in planes:
                if plane is not None:
                    plane.fill_(torch.nan)
            return result

        monkeypatch.setattr(Step, name, made)


def compare(case: Case, got, cache, tensors, q_sem, q_geo, null: NullKV | None) -> None:
    """All on the CPU."""
    out, lse = expected(q_sem.float(), q_geo.float(), cache, tensors, null)
    limit = LIMITS[case.dtype]
    held = torch.isfinite(lse)
    assert got.out.dtype == case.dtype
    assert torch.isfinite(got.out).all()
    if not held.all():
        assert got.out[~held].eq(0).all()
        assert got.lse[~held].eq(-torch.inf).all()
    out = torch.where(held[..., None], out, 0.0)
    torch.testing.assert_close(got.out.double(), out, rtol=limit, atol=limit)
    # scores are sums in float32 whatever the queries are; nf4's levels are rounded to fp16 with them
    torch.testing.assert_close(
        got.lse[held].double(), lse[held], rtol=min(limit, 1e-3), atol=min(limit, 1e-3)
    )
