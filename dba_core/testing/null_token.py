"""The contract of null tokens: k_sem_null [G,Ds], k_geo_null [G,Dg], v_null [G,Dv], for every query."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import torch
from torch import Tensor, nn

from dba_core.contracts import AttentionShape, NullKV, NullTokenRequest, Request
from dba_core.testing.check import Suite
from dba_core.testing.compare import well_shaped
from dba_core.testing.every_kind import capability_checks
from dba_core.testing.modules import ModuleCase, Tensors, module_checks, modules
from dba_core.testing.subject import Subject, Violation, torch_dtype

NULL_TOKEN = Suite("null_token")
#: Query heads, KV heads, Ds, Dg, Dv.
SIZES = ((4, 4, 8, 8, 8), (4, 2, 3, 6, 5), (3, 1, 0, 8, 7), (1, 1, 1, 2, 1))


def _call(module: nn.Module, inputs: Tensors) -> dict[str, Tensor]:
    null: object = module()
    if not isinstance(null, NullKV):
        raise TypeError(f"the module returned {type(null).__name__}, no NullKV")
    return {"k_sem": null.k_sem, "k_geo": null.k_geo, "v": null.v}


def case_of(subject: Subject, size: tuple[int, int, int, int, int], *, dtype: str) -> ModuleCase:
    """A module without inputs."""
    heads, kv_heads, sem, geo, v = size
    shape = AttentionShape(
        d_model=8, n_heads=heads, n_kv_heads=kv_heads, sem_head_dim=sem, geo_head_dim=geo, v_head_dim=v
    )
    request = NullTokenRequest(shape=shape, device=subject.device, dtype=dtype)
    return ModuleCase(request=request, sizes={}, call=_call)


def cases(subject: Subject) -> Iterator[ModuleCase]:
    """One per size."""
    for size in SIZES:
        yield case_of(subject, size, dtype="float32")


@NULL_TOKEN.check("k_sem [G,Ds], k_geo [G,Dg], v [G,Dv] in the model's dtype: one per KV head, no batch")
def output_form(subject: Subject) -> Iterator[Violation]:
    for size in SIZES:
        for dtype in subject.dtypes:
            case = case_of(subject, size, dtype=dtype)
            for module in modules(subject, case, dtype=dtype):
                for (name, out), width in zip(case.outputs(module, {}).items(), size[2:], strict=True):
                    yield from well_shaped(
                        out,
                        shape=(size[1], width),
                        dtype=torch_dtype(dtype),
                        device=subject.device,
                        what=name,
                        case=str(case),
                    )


@NULL_TOKEN.check("keys and values are finite numbers that half precision can hold")
def finite_at_start(subject: Subject) -> Iterator[Violation]:
    for case in cases(subject):
        for module in modules(subject, case):
            for name, out in case.outputs(module, {}).items():
                if not torch.isfinite(out.half()).all():
                    yield Violation(
                        case=str(case),
                        expected=f"finite numbers in {name}",
                        got=f"{out.detach().flatten()[:4].tolist()}",
                        hint="Start at zeros or small random numbers.",
                    )


def _requests(subject: Subject) -> Iterator[Request]:
    base = case_of(subject, SIZES[0], dtype="float32").request
    yield from (case.request for case in cases(subject))
    for dtype in ("float64", "float16", "bfloat16", "int8"):
        yield attrs.evolve(base, dtype=dtype)
    for device in ("cpu", "cuda", "mps", "meta"):
        yield attrs.evolve(base, device=device)


module_checks(NULL_TOKEN, cases)
capability_checks(NULL_TOKEN, _requests)
