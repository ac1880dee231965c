"""The contract of memory summarizers: k_sem [B,G,N,L,Ds], v [B,G,N,L,Dv] -> [B,G,N,Ds], [B,G,N,Dv]."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import torch
from torch import Tensor, nn

from dba_core.contracts import AttentionShape, Request, SummarizerRequest
from dba_core.testing.check import Suite
from dba_core.testing.compare import near, well_shaped
from dba_core.testing.every_kind import capability_checks
from dba_core.testing.modules import ModuleCase, Tensors, module_checks, modules, trained
from dba_core.testing.subject import Subject, Violation, torch_dtype

SUMMARIZER = Suite("summarizer")
#: KV heads, widths of keys and values, tokens of a block.
SIZES = ((2, 8, 8, 4), (3, 5, 7, 3), (2, 0, 6, 8), (1, 1, 1, 2), (1, 3, 2, 65), (2, 4, 4, 1))
_BLOCK_ALONE = "Let block n read its own L tokens alone: the next one is the future."


def _call(module: nn.Module, inputs: Tensors) -> dict[str, Tensor]:
    made: object = module(inputs["k_sem"], inputs["v"])
    if not isinstance(made, tuple) or len(made) != 2:
        raise TypeError(f"the module returned {type(made).__name__}, no tuple of two tensors")
    k, v = made
    return {"k_mem": k, "v_mem": v}


def _shape(size: tuple[int, int, int, int]) -> AttentionShape:
    heads, sem, v, _ = size
    return AttentionShape(
        d_model=8, n_heads=2 * heads, n_kv_heads=heads, sem_head_dim=sem, geo_head_dim=4, v_head_dim=v
    )


def case_of(subject: Subject, size: tuple[int, int, int, int], *, n_blocks: int, dtype: str) -> ModuleCase:
    """Two rows, n_blocks blocks."""
    heads, sem, v, mem_block = size
    return ModuleCase(
        request=SummarizerRequest(
            shape=_shape(size), mem_block=mem_block, device=subject.device, dtype=dtype
        ),
        sizes={"k_sem": (2, heads, n_blocks, mem_block, sem), "v": (2, heads, n_blocks, mem_block, v)},
        call=_call,
    )


def cases(subject: Subject) -> Iterator[ModuleCase]:
    """One per size, three blocks each, for checks in float64."""
    for size in SIZES[:3] if subject.quick else SIZES:
        yield case_of(subject, size, n_blocks=3, dtype="float32")


@SUMMARIZER.check("memory keys [B,G,N,Ds] and values [B,G,N,Dv] for any N, in the dtype of the tokens")
def output_form(subject: Subject) -> Iterator[Violation]:
    for size in SIZES:
        for n_blocks in (0, 1, 3):
            for dtype in subject.dtypes:
                case = case_of(subject, size, n_blocks=n_blocks, dtype=dtype)
                for module in modules(subject, case, dtype=dtype):
                    outputs = case.outputs(module, case.inputs(subject, dtype=dtype))
                    for name, width in (("k_mem", size[1]), ("v_mem", size[2])):
                        yield from well_shaped(
                            outputs[name],
                            shape=(2, size[0], n_blocks, width),
                            dtype=torch_dtype(dtype),
                            device=subject.device,
                            what=name,
                            case=str(case),
                        )


@SUMMARIZER.check("block n's summary depends on block n of its own row alone: other blocks change no bit")
def each_block_alone(subject: Subject) -> Iterator[Violation]:
    for case in cases(subject):
        for module in modules(subject, case):
            trained(module, subject)
            first = case.outputs(module, case.inputs(subject))
            for row, block in ((0, 0), (0, 1), (0, 2), (1, 1)):
                inputs = case.inputs(subject)
                for x in inputs.values():
                    x[row, :, block] += 1.0
                for name, out in case.outputs(module, inputs).items():
                    same = (out == first[name]).all(dim=-1).all(dim=1)  # [B, N]
                    same[row, block] = True
                    if not same.all():
                        where = [list(map(int, each)) for each in (~same).nonzero()]
                        yield Violation(
                            case=f"{case}, tokens of row {row}, block {block} changed",
                            expected=f"{name} of every other row and block as before",
                            got=f"other values at (row, block) {where}",
                            hint=_BLOCK_ALONE,
                        )


@SUMMARIZER.check("the gradient of block n's summary is zero outside of block n")
def gradient_stays_in_block(subject: Subject) -> Iterator[Violation]:
    for case in cases(subject):
        for module in modules(subject, case):
            trained(module, subject)
            inputs = {name: x.requires_grad_(True) for name, x in case.inputs(subject).items()}
            outputs = case.outputs(module, inputs)
            total = sum(
                (out[:, :, 1].sum() for out in outputs.values()), torch.zeros((), device=subject.device)
            )
            gradients = torch.autograd.grad(total, list(inputs.values()), materialize_grads=True)
            for name, gradient in zip(inputs, gradients, strict=True):
                outside = gradient[:, :, (0, 2)]
                if outside.any():
                    yield Violation(
                        case=f"{case}, summary of block 1",
                        expected=f"no gradient to {name} of blocks 0 and 2",
                        got=f"up to {float(outside.abs().amax()):.3g}",
                        hint=_BLOCK_ALONE,
                    )


@SUMMARIZER.check("blocks one by one give what all give together, as when memory grows chunk by chunk")
def chunks_equal_whole(subject: Subject) -> Iterator[Violation]:
    for case in cases(subject):
        for module in modules(subject, case):
            trained(module, subject)
            inputs = case.inputs(subject)
            whole = case.outputs(module, inputs)
            parts = [
                case.outputs(module, {name: x[:, :, n : n + 1] for name, x in inputs.items()})
                for n in range(3)
            ]
            for name, wanted in whole.items():
                got = torch.cat([part[name] for part in parts], dim=2)
                what = f"{name} of single blocks"
                yield from near(got, wanted, dtype="float64", what=what, case=str(case), hint=_BLOCK_ALONE)


@SUMMARIZER.check("a learned summarizer starts as the mean of the block")
def mean_at_start(subject: Subject) -> Iterator[Violation]:
    for case in cases(subject):
        for module in modules(subject, case):
            if not sum(1 for _ in module.parameters()):
                continue
            inputs = case.inputs(subject)
            outputs = case.outputs(module, inputs)
            for name, tokens in (("k_mem", inputs["k_sem"]), ("v_mem", inputs["v"])):
                wanted = tokens.mean(dim=3)
                hint = "Start the learned part at zero: summary = mean + scale * residual, scale 0."
                yield from near(
                    outputs[name],
                    wanted,
                    dtype="float64",
                    what=f"the mean as {name}",
                    case=str(case),
                    hint=hint,
                )


@SUMMARIZER.check("half precision stays within its rounding of the same module in float64")
def half_precision(subject: Subject) -> Iterator[Violation]:
    for dtype in subject.dtypes:
        case = case_of(subject, (2, 8, 8, 16), n_blocks=3, dtype=dtype)
        for module in modules(subject, case):
            inputs = case.inputs(subject, dtype=dtype)
            exact = case.outputs(module, {name: x.double() for name, x in inputs.items()})
            low = case.outputs(module.to(torch_dtype(dtype)), inputs)
            for name, wanted in exact.items():
                hint = "Sum in float32 and round once."
                yield from near(low[name], wanted, dtype=dtype, what=name, case=str(case), hint=hint)


def _requests(subject: Subject) -> Iterator[Request]:
    for size in SIZES:
        yield case_of(subject, size, n_blocks=1, dtype="float32").request
    base = SummarizerRequest(shape=_shape(SIZES[0]), mem_block=4, device=subject.device)
    for dtype in ("float64", "float16", "bfloat16", "int8"):
        yield attrs.evolve(base, dtype=dtype)
    for device in ("cpu", "cuda", "mps", "meta"):
        yield attrs.evolve(base, device=device)
    yield attrs.evolve(base, mem_block=4096)


module_checks(SUMMARIZER, cases)
capability_checks(SUMMARIZER, _requests)
