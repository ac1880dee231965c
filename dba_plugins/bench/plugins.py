"""What each summarizer, gate and null token costs.

Forward and backward, each alone:

    summarizer   blocks of 64 tokens, [1, 8, 32, 64, 32] keys and values: 2,048 tokens
    gate         hidden states [1, 2048, 512], 8 heads
    null token   8 KV heads

Every installed plugin that supports the request takes turns with the others of its kind in one process.
Decode backends have a measurement of their own (`dba bench decode`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs

from dba_core.command import Command, command_line, summary_of
from dba_core.contracts import (
    AttentionShape,
    GateRequest,
    Kind,
    NullTokenRequest,
    Request,
    SummarizerRequest,
)
from dba_core.errors import UnsupportedError
from dba_core.hookspecs import hookimpl
from dba_core.registry import Registry
from dba_core.report import Column, Report, Reporter
from dba_plugins.bench.measured import measured, repeats

if TYPE_CHECKING:
    from torch import Tensor, nn

SHAPE = AttentionShape(d_model=512, n_heads=8, n_kv_heads=8, sem_head_dim=32, geo_head_dim=64, v_head_dim=64)
TOKENS, MEM_BLOCK = 2048, 64
_REQUESTS: dict[Kind, Request] = {
    "summarizer": SummarizerRequest(shape=SHAPE, mem_block=MEM_BLOCK),
    "gate": GateRequest(shape=SHAPE),
    "null_token": NullTokenRequest(shape=SHAPE),
}


@attrs.frozen(kw_only=True)
class PluginsBench:
    """How often."""

    repeats: int = repeats(50)


def run(request: PluginsBench, reporter: Reporter) -> Report:
    """Parameters and time of every installed summarizer, gate and null token, other distributions' too.

    \b
    Examples:
      dba bench plugins
    """
    import torch

    from dba_plugins.bench.timing import interleaved

    registry = Registry.default()
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for kind, wanted in _REQUESTS.items():
        modules = _modules(registry, kind, wanted, notes)
        calls = {name: _call(kind, module) for name, module in modules.items()}
        timings = interleaved(calls, repeats=request.repeats, device=torch.device("cpu")) if calls else {}
        rows += [
            {
                "threads": torch.get_num_threads(),
                "kind": kind,
                "name": name,
                "parameters": sum(p.numel() for p in modules[name].parameters()),
                **timing.fields,
            }
            for name, timing in timings.items()
        ]
    return measured(
        name="plugins",
        title="What each plugin costs",
        command=command_line("bench.plugins", request),
        columns=(
            Column("threads", "threads"),
            Column("kind", "kind"),
            Column("name", "plugin"),
            Column("parameters", "parameters", "{:,}"),
            Column("ms", "ms", "{:.3f}"),
            Column("spread", "quartiles"),
        ),
        rows=tuple(rows),
        notes=(
            f"one layer, {TOKENS:,} tokens, width {SHAPE.d_model}, {SHAPE.n_heads} heads, "
            f"Ds {SHAPE.sem_head_dim}, Dv {SHAPE.v_head_dim}, blocks of {MEM_BLOCK}",
            "forward and backward, float32",
            f"medians of {request.repeats} rounds in turn",
            *notes,
        ),
    )


def _modules(registry: Registry, kind: Kind, request: Request, notes: list[str]) -> dict[str, nn.Module]:
    """What each plugin builds; one that adds nothing, or declines, is noted."""
    from dba_core.registry.choice import PluginChoice

    built: dict[str, nn.Module] = {}
    for info in registry.list():
        if info.kind != kind:
            continue
        try:
            module = registry.select(kind, PluginChoice(info.qualified), request).build()
        except UnsupportedError as error:
            notes.append(f"{kind} {info.name} declines: {'; '.join(map(str, error.reasons))}")
            continue
        if module is None:
            notes.append(f"{kind} {info.name} adds nothing to the model")
        else:
            built[info.name] = module
    return built


def _call(kind: Kind, module: nn.Module) -> Callable[[int], None]:
    """One forward and backward pass on fixed random input."""
    import torch

    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).requires_grad_()

    blocks = (1, SHAPE.n_kv_heads, TOKENS // MEM_BLOCK, MEM_BLOCK)
    inputs = {
        "summarizer": (draw(*blocks, SHAPE.sem_head_dim), draw(*blocks, SHAPE.v_head_dim)),
        "gate": (draw(1, TOKENS, SHAPE.d_model),),
        "null_token": (),
    }[kind]

    def run(_round: int) -> None:
        made = module(*inputs)
        outs = (made.k_sem, made.k_geo, made.v) if kind == "null_token" else made
        parts = outs if isinstance(outs, tuple) else (outs,)
        total = torch.stack([part.sum() for part in parts]).sum()
        if total.requires_grad:
            torch.autograd.backward(total)

    return run


@hookimpl
def dba_command() -> Command[PluginsBench]:
    return Command(
        name="bench.plugins",
        contract=1,
        summary=summary_of(__doc__),
        request_class=PluginsBench,
        run=run,
    )
