"""Writes docs/reference/support-matrix.md from what the built-in plugins answer to typical requests.

    python docs/gen/support_matrix.py

The answers need torch, the documentation build must not: so the page is committed, and a test
compares it with what this module would write. Device types are asked about, not used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from dba_core.config.kv_policy import TensorFormat, installed_formats
from dba_core.contracts import AttentionShape, CachedTensor, DecodeRequest, Request, SummarizerRequest
from dba_core.distribution import NAME
from dba_core.kinds import KINDS, PluginKind
from dba_core.registry import Registry

PAGE = Path(__file__).resolve().parents[1] / "reference" / "support-matrix.md"
SHAPE = AttentionShape(d_model=128, n_heads=8, n_kv_heads=2, sem_head_dim=8, geo_head_dim=16, v_head_dim=16)
PLAIN = AttentionShape(d_model=128, n_heads=8, n_kv_heads=8, sem_head_dim=0, geo_head_dim=16, v_head_dim=16)
HEAD = """# Support matrix

What each built-in plugin answers when it is asked whether it can do something: `yes`, or what it names as
the obstacle. The plugins' own `supports` is asked, on a machine without a GPU and with every
extra installed; `dba plugins why KIND` asks it for your configuration.

<!-- Written by docs/gen/support_matrix.py; a test holds it to the code. -->
"""


def decode(*, formats: str = "q4_0", device: str = "cpu", dtype: str = "float32", width: int = 16) -> Request:
    qblock = TensorFormat.parse(formats).qblock
    shape = AttentionShape(
        d_model=128, n_heads=8, n_kv_heads=2, sem_head_dim=8, geo_head_dim=width, v_head_dim=16
    )

    def stored(head_dim: int) -> CachedTensor:
        return CachedTensor(n_heads=2, head_dim=head_dim, format=formats, qblock=qblock)

    return DecodeRequest(
        shape=shape,
        k_sem=stored(8),
        k_geo=stored(width),
        v=stored(16),
        residual_len=32 if qblock else 0,
        batch=1,
        capacity=4096,
        has_null=True,
        device=device,
        device_capability=(9, 0) if device == "cuda" else None,
        dtype=dtype,
    )


def columns(kind: PluginKind) -> dict[str, Any]:
    """Column title -> the request that is asked."""
    if kind.request is DecodeRequest:
        formats = {name: decode(formats=name) for name in installed_formats()}
        return formats | {
            "bfloat16 queries": decode(dtype="bfloat16"),
            "a head width of 512": decode(width=512),
            "CUDA": decode(device="cuda", dtype="float16"),
        }
    typical = kind.typical("cpu", None) if kind.typical else None
    if not isinstance(typical, Request):
        return {} if typical is None else {"typical": typical}
    asked = attrs.evolve(typical, shape=SHAPE)
    found: dict[str, Any] = {
        "float32": asked,
        "bfloat16": attrs.evolve(asked, dtype="bfloat16"),
        "float16": attrs.evolve(asked, dtype="float16"),
        "no semantic path": attrs.evolve(asked, shape=PLAIN),
        "CUDA": attrs.evolve(asked, device="cuda", dtype="bfloat16"),
    }
    if isinstance(asked, SummarizerRequest):
        found["blocks of one token"] = attrs.evolve(asked, mem_block=1)
    return found


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(section(kind) for kind in KINDS.values() if kind.typical)])


def section(kind: PluginKind) -> str:
    asked = columns(kind)
    registry = Registry()
    names = [info.name for info in registry.list() if info.kind == kind.name and info.distribution == NAME]
    lines = [("asked", *(f"`{name}`" for name in names)), ("---",) * (len(names) + 1)]
    plugins = [registry.load(kind.name, name, distribution=NAME).plugin for name in names]
    for title, request in asked.items():
        answers = [plugin.supports(request, plugin.options_class()) for plugin in plugins]
        cells = [", ".join(reason.subject for reason in answer.reasons) or "yes" for answer in answers]
        lines.append((title, *cells))
    return f"## `{kind.name}`\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
