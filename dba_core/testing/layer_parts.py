"""The contracts of the modules of a layer.

summarizer   k_sem [B,G,N,L,Ds], v [B,G,N,L,Dv] -> [B,G,N,Ds], [B,G,N,Dv], block n from block n alone
gate         hidden states [B,T,d_model] -> [B,H,T,1] in [0,1], row t from row t alone
null token   k_sem_null [G,Ds], k_geo_null [G,Dg], v_null [G,Dv], for every query
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import attrs
import torch
from torch import Tensor, nn

from dba_core.contracts import (
    GateRequest,
    NullKV,
    NullTokenRequest,
    Request,
    SummarizerRequest,
)
from dba_core.registry.plugin_loading import structure_options
from dba_core.testing.check import Suite
from dba_core.testing.compare import near
from dba_core.testing.modules import (
    Built,
    ModuleCase,
    Tensors,
    alone_checks,
    built,
    module_checks,
    modules_of,
    odd_requests,
)
from dba_core.testing.subject import DTYPES, Subject, Violation, shape_of, torch_dtype

SUMMARIZER, GATE, NULL_TOKEN = Suite("summarizer"), Suite("gate"), Suite("null_token")

#: KV heads, widths of keys and values, tokens of a block.
SUMMARIZER_SIZES = ((2, 8, 8, 4), (3, 5, 7, 3), (2, 0, 6, 8), (1, 1, 1, 2), (1, 3, 2, 65), (2, 4, 4, 1))


def _summarized(module: nn.Module, inputs: Tensors) -> dict[str, Tensor]:
    made: object = module(inputs["k_sem"], inputs["v"])
    if not isinstance(made, tuple) or len(made) != 2:
        raise TypeError(f"the module returned {type(made).__name__}, no tuple of two tensors")
    k, v = made
    return {"k_mem": k, "v_mem": v}


def summarizer_case(
    subject: Subject, size: tuple[int, int, int, int], *, n_blocks: int = 3, dtype: str = "float32"
) -> ModuleCase:
    """Two rows, n_blocks blocks."""
    heads, sem, v, mem_block = size
    shape = shape_of(2 * heads, heads, sem, 4, v)
    return ModuleCase(
        request=SummarizerRequest(shape=shape, mem_block=mem_block, device=subject.device, dtype=dtype),
        inputs={"k_sem": (2, heads, n_blocks, mem_block, sem), "v": (2, heads, n_blocks, mem_block, v)},
        outputs={"k_mem": (2, heads, n_blocks, sem), "v_mem": (2, heads, n_blocks, v)},
        call=_summarized,
    )


def summarizer_cases(subject: Subject) -> Iterator[ModuleCase]:
    """One per size, three blocks each, for checks in float64."""
    for size in SUMMARIZER_SIZES[:3] if subject.quick else SUMMARIZER_SIZES:
        yield summarizer_case(subject, size)


@SUMMARIZER.check(
    "memory keys [B,G,N,Ds] and values [B,G,N,Dv] for any N, in the dtype of the tokens", name="output_form"
)
def summarizer_form(subject: Subject) -> Iterator[Violation]:
    for size, n_blocks, dtype in itertools.product(SUMMARIZER_SIZES, (0, 1, 3), DTYPES):
        case = summarizer_case(subject, size, n_blocks=n_blocks, dtype=dtype)
        for each in built(subject, case, dtype=dtype):
            yield from each.well_shaped(each.ask(each.draw()))


alone_checks(
    SUMMARIZER,
    summarizer_cases,
    unit="block",
    axis=2,
    together="chunks_equal_whole",
    hint="Let block n read its own L tokens alone: the next one is the future.",
)


@SUMMARIZER.check(
    "a learned summarizer starts as the mean of the block",
    hint="Start the learned part at zero: summary = mean + scale * residual, scale 0.",
    over=modules_of(summarizer_cases),
)
def mean_at_start(subject: Subject, each: Built) -> Iterator[Violation]:
    if not any(True for _ in each.module.parameters()):
        return
    inputs = each.draw()
    outputs = each.ask(inputs)
    for name, tokens in (("k_mem", inputs["k_sem"]), ("v_mem", inputs["v"])):
        wanted = tokens.mean(dim=3)
        yield from near(each, outputs[name], wanted, dtype="float64", what=f"the mean as {name}")


@SUMMARIZER.check(
    "half precision stays within its rounding of the same module in float64",
    hint="Sum in float32 and round once.",
)
def half_precision(subject: Subject) -> Iterator[Violation]:
    for dtype in DTYPES:
        case = summarizer_case(subject, (2, 8, 8, 16), dtype=dtype)
        for each in built(subject, case):
            inputs = each.draw(dtype=dtype)
            exact = each.ask({name: x.double() for name, x in inputs.items()})
            each.module.to(torch_dtype(dtype))
            low = each.ask(inputs)
            for name, wanted in exact.items():
                yield from near(case, low[name], wanted, dtype=dtype, what=name)


@SUMMARIZER.capabilities
def _summarizer_requests(subject: Subject) -> Iterator[Request]:
    many = [summarizer_case(subject, size).request for size in SUMMARIZER_SIZES]
    yield from (*many, *odd_requests(many[0]), summarizer_case(subject, (2, 8, 8, 4096)).request)


module_checks(SUMMARIZER, summarizer_cases)

#: Query heads, KV heads, model width, tokens.
GATE_SIZES = ((4, 2, 8, 5), (3, 3, 7, 65), (1, 1, 1, 3))


def gate_case(subject: Subject, size: tuple[int, int, int, int], *, dtype: str = "float32") -> ModuleCase:
    """Two rows."""
    heads, kv_heads, d_model, tokens = size
    shape = shape_of(heads, kv_heads, d_model=d_model)
    return ModuleCase(
        request=GateRequest(shape=shape, device=subject.device, dtype=dtype),
        inputs={"x": (2, tokens, d_model)},
        outputs={"g": (2, heads, tokens, 1)},
        call=lambda module, inputs: {"g": module(inputs["x"])},
    )


def gate_cases(subject: Subject) -> Iterator[ModuleCase]:
    """One per size, for checks in float64."""
    for size in GATE_SIZES:
        yield gate_case(subject, size)


@GATE.check(
    "[B,H,T,1] for any T, in the dtype of the hidden states, and within [0,1] for large ones too",
    name="output_form",
)
def gate_form(subject: Subject) -> Iterator[Violation]:
    for size, tokens, dtype in itertools.product(GATE_SIZES, (0, 1, 65), DTYPES):
        case = gate_case(subject, (*size[:3], tokens), dtype=dtype)
        for each in built(subject, case, dtype=dtype):
            each.move_parameters()
            g = each.ask({"x": 50 * each.draw()["x"]})["g"].detach()
            yield from each.well_shaped({"g": g})
            if not ((g >= 0) & (g <= 1)).all():
                got = f"{float(g.min()):.4g} to {float(g.max()):.4g}"
                yield Violation(f"{case}, x times 50", "g within [0,1]", got, "End with a sigmoid.")


alone_checks(
    GATE,
    gate_cases,
    unit="token",
    axis=1,
    together="streaming_equals_whole",
    hint="Let row t read x[:, t] alone: no shift, no mean over tokens, no convolution over time.",
)


@GATE.check(
    "with default options g starts at 0.5, which leaves both query paths as they are",
    hint="Start with a logit of zero and a projection of zeros.",
)
def neutral_at_start(subject: Subject) -> Iterator[Violation]:
    defaults = attrs.evolve(subject, options=structure_options(subject.loaded, {}))
    for each in modules_of(gate_cases)(defaults):
        g = each.ask(each.draw())["g"]
        yield from near(each, g, torch.full_like(g, 0.5), dtype="float64", what="g = 0.5")


@GATE.capabilities
def _gate_requests(subject: Subject) -> Iterator[Request]:
    many = [case.request for case in gate_cases(subject)]
    yield from (*many, *odd_requests(many[0]))
    for path in ("sem_head_dim", "geo_head_dim"):
        yield attrs.evolve(many[0], shape=attrs.evolve(many[0].shape, **{path: 0}))


module_checks(GATE, gate_cases)

#: Query heads, KV heads, Ds, Dg, Dv.
NULL_SIZES = ((4, 4, 8, 8, 8), (4, 2, 3, 6, 5), (3, 1, 0, 8, 7), (1, 1, 1, 2, 1))


def _null(module: nn.Module, inputs: Tensors) -> dict[str, Tensor]:
    null: object = module()
    if not isinstance(null, NullKV):
        raise TypeError(f"the module returned {type(null).__name__}, no NullKV")
    return {"k_sem": null.k_sem, "k_geo": null.k_geo, "v": null.v}


def null_cases(subject: Subject, *, dtype: str = "float32") -> Iterator[ModuleCase]:
    """One per size: a module without inputs."""
    for heads, kv_heads, sem, geo, v in NULL_SIZES:
        shape = shape_of(heads, kv_heads, sem, geo, v)
        yield ModuleCase(
            request=NullTokenRequest(shape=shape, device=subject.device, dtype=dtype),
            inputs={},
            outputs={"k_sem": (kv_heads, sem), "k_geo": (kv_heads, geo), "v": (kv_heads, v)},
            call=_null,
        )


@NULL_TOKEN.check(
    "k_sem [G,Ds], k_geo [G,Dg], v [G,Dv] in the model's dtype: one per KV head, no batch", name="output_form"
)
def null_form(subject: Subject) -> Iterator[Violation]:
    for dtype in DTYPES:
        for case in null_cases(subject, dtype=dtype):
            for each in built(subject, case, dtype=dtype):
                yield from each.well_shaped(each.ask({}))


@NULL_TOKEN.check(
    "keys and values are finite numbers that half precision can hold",
    hint="Start at zeros or small random numbers.",
    over=modules_of(null_cases),
)
def finite_at_start(subject: Subject, each: Built) -> Iterator[Violation]:
    for name, out in each.ask({}).items():
        if not torch.isfinite(out.half()).all():
            yield Violation(each, f"finite numbers in {name}", f"{out.detach().flatten()[:4].tolist()}")


@NULL_TOKEN.capabilities
def _null_requests(subject: Subject) -> Iterator[Request]:
    many = [case.request for case in null_cases(subject)]
    yield from (*many, *odd_requests(many[0]))


module_checks(NULL_TOKEN, null_cases)
