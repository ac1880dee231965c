"""`dba bench plugins`: what each summarizer, gate and null token costs, forward and backward, alone.

    summarizer   blocks of 64 tokens, [1, 8, 32, 64, 32] keys and values: 2,048 tokens
    gate         hidden states [1, 2048, 512], 8 heads
    null token   8 KV heads

Every installed plugin that supports the request takes turns with the others of its kind in one process.
Decode backends have a measurement of their own (`dba bench decode`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dba_core.contracts import (
    AttentionShape,
    GateRequest,
    Kind,
    NullTokenRequest,
    Request,
    SummarizerRequest,
)
from dba_core.errors import UnsupportedError
from dba_core.registry import Registry
from dba_core.registry.choice import PluginChoice
from dba_plugins.bench.machine import describe_machine
from dba_plugins.bench.report import Column, Report
from dba_plugins.bench.timing import interleaved

SHAPE = AttentionShape(d_model=512, n_heads=8, n_kv_heads=8, sem_head_dim=32, geo_head_dim=64, v_head_dim=64)
TOKENS, MEM_BLOCK = 2048, 64
CPU = torch.device("cpu")
_REQUESTS: dict[Kind, Request] = {
    "summarizer": SummarizerRequest(shape=SHAPE, mem_block=MEM_BLOCK),
    "gate": GateRequest(shape=SHAPE),
    "null_token": NullTokenRequest(shape=SHAPE),
}


def measure_plugins(*, repeats: int, command: str, registry: Registry | None = None) -> Report:
    """Every installed plugin of the three kinds."""
    registry = Registry.default() if registry is None else registry
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for kind, request in _REQUESTS.items():
        modules = _modules(registry, kind, request, notes)
        calls = {name: _call(kind, module) for name, module in modules.items()}
        timings = interleaved(calls, repeats=repeats, device=CPU) if calls else {}
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
    return Report(
        name="plugins",
        title="What each plugin costs",
        command=command,
        columns=(
            Column("threads", "threads"),
            Column("kind", "kind"),
            Column("name", "plugin"),
            Column("parameters", "parameters", "{:,}"),
            Column("ms", "ms", "{:.3f}"),
            Column("spread", "quartiles"),
        ),
        rows=tuple(rows),
        machine=describe_machine(CPU),
        notes=(
            f"one layer, {TOKENS:,} tokens, width {SHAPE.d_model}, {SHAPE.n_heads} heads, "
            f"Ds {SHAPE.sem_head_dim}, Dv {SHAPE.v_head_dim}, blocks of {MEM_BLOCK}",
            "forward and backward, float32",
            f"medians of {repeats} rounds in turn",
            *notes,
        ),
    )


def _modules(registry: Registry, kind: Kind, request: Request, notes: list[str]) -> dict[str, nn.Module]:
    """What each plugin builds; one that adds nothing, or declines, is noted."""
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
