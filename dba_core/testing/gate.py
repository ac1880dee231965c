"""The contract of gates: hidden states [B,T,d_model] -> [B,H,T,1] in [0,1], row t from row t alone."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import torch
from torch import Tensor, nn

from dba_core.contracts import AttentionShape, GateRequest, Request
from dba_core.registry.plugin_loading import structure_options
from dba_core.testing.check import Suite
from dba_core.testing.compare import near, well_shaped
from dba_core.testing.every_kind import capability_checks
from dba_core.testing.modules import ModuleCase, Tensors, module_checks, modules, trained
from dba_core.testing.subject import Subject, Violation, torch_dtype

GATE = Suite("gate")
#: Query heads, KV heads, model width, tokens.
SIZES = ((4, 2, 8, 5), (3, 3, 7, 65), (1, 1, 1, 3))
_ROW_ALONE = "Let row t read x[:, t] alone: no shift, no mean over tokens, no convolution over time."


def _call(module: nn.Module, inputs: Tensors) -> dict[str, Tensor]:
    return {"g": module(inputs["x"])}


def case_of(subject: Subject, size: tuple[int, int, int, int], *, dtype: str) -> ModuleCase:
    """Two rows."""
    heads, kv_heads, d_model, tokens = size
    shape = AttentionShape(
        d_model=d_model, n_heads=heads, n_kv_heads=kv_heads, sem_head_dim=4, geo_head_dim=4, v_head_dim=4
    )
    request = GateRequest(shape=shape, device=subject.device, dtype=dtype)
    return ModuleCase(request=request, sizes={"x": (2, tokens, d_model)}, call=_call)


def cases(subject: Subject) -> Iterator[ModuleCase]:
    """One per size, for checks in float64."""
    for size in SIZES:
        yield case_of(subject, size, dtype="float32")


@GATE.check("[B,H,T,1] for any T, in the dtype of the hidden states, and within [0,1] for large ones too")
def output_form(subject: Subject) -> Iterator[Violation]:
    for heads, kv_heads, d_model, _ in SIZES:
        for tokens in (0, 1, 65):
            for dtype in subject.dtypes:
                case = case_of(subject, (heads, kv_heads, d_model, tokens), dtype=dtype)
                for module in modules(subject, case, dtype=dtype):
                    trained(module, subject)
                    x = 50 * case.inputs(subject, dtype=dtype)["x"]
                    g = case.outputs(module, {"x": x})["g"].detach()
                    yield from well_shaped(
                        g,
                        shape=(2, heads, tokens, 1),
                        dtype=torch_dtype(dtype),
                        device=subject.device,
                        what="g",
                        case=str(case),
                    )
                    if not ((g >= 0) & (g <= 1)).all():
                        yield Violation(
                            case=f"{case}, x times 50",
                            expected="g within [0,1]",
                            got=f"{float(g.min()):.4g} to {float(g.max()):.4g}",
                            hint="End with a sigmoid.",
                        )


@GATE.check("row t depends on token t alone: another token, later or earlier, changes no bit")
def each_token_alone(subject: Subject) -> Iterator[Violation]:
    for case in cases(subject):
        for module in modules(subject, case):
            trained(module, subject)
            first = case.outputs(module, case.inputs(subject))["g"]
            for row, token in ((0, 0), (0, 1), (0, 2), (1, 1)):
                inputs = case.inputs(subject)
                inputs["x"][row, token] += 1.0
                same = (case.outputs(module, inputs)["g"] == first).all(dim=-1).all(dim=1)  # [B, T]
                same[row, token] = True
                if not same.all():
                    where = [list(map(int, each)) for each in (~same).nonzero()]
                    yield Violation(
                        case=f"{case}, token {token} of row {row} changed",
                        expected="g of every other token as before",
                        got=f"other values at (row, token) {where[:8]}",
                        hint=_ROW_ALONE,
                    )


@GATE.check("the gradient of row t is zero at every other token")
def gradient_stays_in_token(subject: Subject) -> Iterator[Violation]:
    for case in cases(subject):
        for module in modules(subject, case):
            trained(module, subject)
            x = case.inputs(subject)["x"].requires_grad_(True)
            g = case.outputs(module, {"x": x})["g"]
            if not g.requires_grad:
                continue
            (gradient,) = torch.autograd.grad(g[:, :, 1].sum(), x, materialize_grads=True)
            others = gradient.abs().amax(dim=(0, 2))  # [T]
            others[1] = 0.0
            if others.any():
                yield Violation(
                    case=f"{case}, g of token 1",
                    expected="no gradient to other tokens",
                    got=f"some to tokens {others.nonzero().flatten().tolist()[:8]}",
                    hint=_ROW_ALONE,
                )


@GATE.check("tokens one by one, as in decoding, give what all give together, as in training")
def streaming_equals_whole(subject: Subject) -> Iterator[Violation]:
    for case in cases(subject):
        for module in modules(subject, case):
            trained(module, subject)
            x = case.inputs(subject)["x"]
            whole = case.outputs(module, {"x": x})["g"]
            steps = [case.outputs(module, {"x": x[:, t : t + 1]})["g"] for t in range(x.shape[1])]
            got = torch.cat(steps, dim=2)
            yield from near(
                got, whole, dtype="float64", what="g token by token", case=str(case), hint=_ROW_ALONE
            )


@GATE.check("with default options g starts at 0.5, which leaves both query paths as they are")
def neutral_at_start(subject: Subject) -> Iterator[Violation]:
    defaults = attrs.evolve(subject, options=structure_options(subject.loaded, {}))
    for case in cases(subject):
        for module in modules(defaults, case):
            g = case.outputs(module, case.inputs(subject))["g"]
            yield from near(
                g,
                torch.full_like(g, 0.5),
                dtype="float64",
                what="g = 0.5",
                case=str(case),
                hint="Start with a logit of zero and a projection of zeros.",
            )


def _requests(subject: Subject) -> Iterator[Request]:
    base = case_of(subject, SIZES[0], dtype="float32").request
    yield from (case.request for case in cases(subject))
    for dtype in ("float64", "float16", "bfloat16", "int8"):
        yield attrs.evolve(base, dtype=dtype)
    for device in ("cpu", "cuda", "mps", "meta"):
        yield attrs.evolve(base, device=device)
    for path in ("sem_head_dim", "geo_head_dim"):
        yield attrs.evolve(base, shape=attrs.evolve(base.shape, **{path: 0}))


module_checks(GATE, cases)
capability_checks(GATE, _requests)
