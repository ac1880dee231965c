"""What else a user could decode with: attention of one query token over float keys and values.

    sdpa, V padded      torch's fused attention; V is padded to the keys' width, which keeps it fused
    sdpa                the same with V as wide as it is
    matmul              scores, softmax, weighted sum, as three operations
    flex                compiled FlexAttention (a C++ compiler is needed on a CPU)
    sdpa bf16 / fp16    torch's fused attention on 16-bit tensors

All compute softmax(q k^T) v with q already scaled.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

_SHORT = {torch.float16: "fp16", torch.bfloat16: "bf16"}
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


@attrs.frozen(kw_only=True)
class Baseline:
    """dtype: of its keys and values. pad_v: whether V gets the keys' width. run: of q [B,H,1,D], k, v."""

    name: str
    run: Attention
    dtype: torch.dtype = torch.float32
    pad_v: bool = False

    def prepare(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Its own copies of k [B,G,S,D] and v [B,G,S,Dv], laid out as it wants them."""
        if self.pad_v and v.shape[-1] < k.shape[-1]:
            v = F.pad(v, (0, k.shape[-1] - v.shape[-1]))
        return k.to(self.dtype), v.to(self.dtype)


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, scale=1.0, enable_gqa=q.shape[1] != k.shape[1])


def _matmul(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    grouped = torch.unflatten(q.squeeze(2), 1, (k.shape[1], -1))  # [B, G, H/G, D]
    out = (grouped @ k.mT).softmax(dim=-1) @ v  # [B, G, H/G, Dv]
    return out.flatten(1, 2).unsqueeze(2)


def _flex() -> Attention:
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention, dynamic=True)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = compiled(q, k, v, scale=1.0, enable_gqa=q.shape[1] != k.shape[1])
        assert isinstance(out, Tensor)
        return out

    return run


def baselines(device: torch.device, *, flex: bool) -> tuple[list[Baseline], list[str]]:
    """Those that run on this device, and why others do not."""
    half = torch.float16 if device.type == "cuda" else torch.bfloat16
    found = [
        Baseline(name="sdpa fp32, V padded", run=_sdpa, pad_v=True),
        Baseline(name="sdpa fp32", run=_sdpa),
        Baseline(name="matmul fp32", run=_matmul),
        Baseline(
            name=f"sdpa {'fp16' if half == torch.float16 else 'bf16'}", run=_sdpa, dtype=half, pad_v=True
        ),
    ]
    notes: list[str] = []
    if not flex:
        notes.append("FlexAttention was left out (--no-flex)")
    elif device.type == "cpu" and not _compiler():
        notes.append(
            "FlexAttention was left out: torch.compile needs a C++ compiler on the CPU, and there is none"
        )
    else:
        found.append(Baseline(name="flex fp32", run=_flex(), pad_v=True))
    return found, notes


def _compiler() -> str | None:
    return next((path for name in ("g++", "clang++", "c++") if (path := shutil.which(name))), None)
