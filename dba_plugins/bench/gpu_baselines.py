"""What else a GPU user could decode with: fp16 attention of one query token, every implementation there is.

Each is measured twice: with heads of 128 channels, the usual size, and with the widths of the decoupled cache
(keys Ds + Dg, values padded to that or keys to the values), so that quantization is not credited with the
narrower head.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

#: Channels of a head in the usual attention.
USUAL_WIDTH = 128
Call = Callable[[], Tensor]
_SDPA = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


@attrs.frozen(kw_only=True)
class Floats:
    """The fp16 problem: batch, query heads, KV heads, tokens, and channels of a head."""

    batch: int
    heads: int
    kv_heads: int
    tokens: int
    width: int
    device: torch.device

    @property
    def nbytes(self) -> int:
        """Of keys and values."""
        return 2 * 2 * self.batch * self.kv_heads * self.tokens * self.width

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """q [B,H,1,D], k and v [B,G,T,D], N(0,1), fp16."""

        def draw(heads: int, tokens: int) -> Tensor:
            size = (self.batch, heads, tokens, self.width)
            return torch.randn(size, device=self.device, dtype=torch.float16)

        return draw(self.heads, 1), draw(self.kv_heads, self.tokens), draw(self.kv_heads, self.tokens)


def fp16_calls(floats: Floats) -> Iterator[tuple[str, Call | str]]:
    """The implementations as (name, call), or (name, why it does not run)."""
    q, k, v = floats.tensors()
    shared = floats.heads != floats.kv_heads
    for name, backend in _SDPA.items():
        yield f"sdpa {name}", _tried(_sdpa(q, k, v, backend, shared=shared))
    yield "flash-attn", _flash_attn(q, k, v)
    yield "flashinfer", _flashinfer(q, k, v)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, backend: SDPBackend, *, shared: bool) -> Call:
    def call() -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, enable_gqa=shared)

    return call


def _tried(call: Call) -> Call | str:
    """The call, or what it said when it did not run."""
    try:
        call()
    except RuntimeError as error:
        return str(error).splitlines()[0][:120]
    return call


def _flash_attn(q: Tensor, k: Tensor, v: Tensor) -> Call | str:
    if importlib.util.find_spec("flash_attn") is None:
        return "flash-attn is not installed"
    from flash_attn import flash_attn_with_kvcache

    q, k, v = (x.transpose(1, 2).contiguous() for x in (q, k, v))
    return _tried(lambda: flash_attn_with_kvcache(q, k, v))


def _flashinfer(q: Tensor, k: Tensor, v: Tensor) -> Call | str:
    if importlib.util.find_spec("flashinfer") is None:
        return "flashinfer is not installed"
    if q.shape[0] != 1:
        return "its single decode takes one sequence"
    from flashinfer import single_decode_with_kv_cache

    return _tried(lambda: single_decode_with_kv_cache(q[0, :, 0], k[0], v[0], kv_layout="HND"))
