"""Decode over the cache's blocks in plain torch with an online softmax; the reference of every other backend.

    for each block of keys:  m' = max(m, max_j s_j)
                             l' = l e^(m - m') + sum_j e^(s_j - m')
                             acc' = acc e^(m - m') + sum_j e^(s_j - m') v_j
    out = acc / l,           lse = m + log l

State is float32. The null token is the first state: m = s_null, l = 1, acc = v_null. Without one m starts at
a finite number below any score, and l = 0 says that nothing was seen.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import torch
from torch import Tensor

from dba_core.contracts import (
    DecodeBackend,
    DecodeBackendPlugin,
    DecodeOutput,
    DecodeRequest,
    KVLayer,
    NullKV,
    Reason,
    Support,
    TokenWriter,
)
from dba_core.hookspecs import hookimpl
from dba_core.serialization.validators import at_least

LOWEST = -1e30
DTYPES = ("float32", "bfloat16", "float16", "float64")


@attrs.frozen(kw_only=True)
class StreamingOptions:
    """block: cached tokens that are dequantized and scored at a time."""

    block: int = attrs.field(default=1024, validator=at_least(1))


class StreamingDecode:
    """See the module. Reads the cache through `KVTensor.read`; no state of its own."""

    name = "streaming"
    fused_null = False
    writer: TokenWriter | None = None

    def __init__(self, options: StreamingOptions) -> None:
        self._block = options.block

    @torch.no_grad()
    def decode(
        self,
        q_sem: Tensor,
        q_geo: Tensor,
        cache: KVLayer,
        *,
        null: NullKV | None = None,
        needs_lse: bool = False,
    ) -> DecodeOutput:
        """q_sem [B,H,Ds], q_geo [B,H,Dg], scaled -> out [B,H,Dv] and, when asked for, lse [B,H]."""
        sem, geo = q_sem.float(), q_geo.float()
        m, mass, acc = _first_state(sem, geo, null, v_width=cache.v.head_dim)
        for start, stop in self._spans(cache):
            scores = _scores(sem, cache.k_sem.read(start, stop))
            scores += _scores(geo, cache.k_geo.read(start, stop))  # [B, H, n]
            held = _held(cache, start, stop)
            if held is not None:
                scores.masked_fill_(~held, LOWEST)
            m_new = torch.maximum(m, scores.amax(dim=-1))
            weights = (scores - m_new.unsqueeze(-1)).exp_()
            if held is not None:
                weights.masked_fill_(~held, 0.0)  # while m is LOWEST, a key that is not there has e^0
            keep = (m - m_new).exp_()
            mass = mass * keep + weights.sum(dim=-1)
            acc = acc * keep.unsqueeze(-1) + _values(weights, cache.v.read(start, stop))
            m = m_new
        seen = mass > 0
        out = acc / torch.where(seen, mass, 1.0).unsqueeze(-1)
        lse = torch.where(seen, m + mass.log(), -torch.inf) if needs_lse else None
        return DecodeOutput(out=out.to(q_geo.dtype), lse=lse)

    def _spans(self, cache: KVLayer) -> Iterator[tuple[int, int]]:
        """Blocks of positions; a new one begins where the first row's residual window does."""
        turn = max(0, min(cache.lengths) - cache.residual_len)
        for low, high in ((0, turn), (turn, cache.length)):
            for start in range(low, high, self._block):
                yield start, min(start + self._block, high)


def _first_state(
    q_sem: Tensor, q_geo: Tensor, null: NullKV | None, *, v_width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """m [B,H], mass (l) [B,H], acc [B,H,Dv] before any token."""
    batch, n_heads, _ = q_geo.shape
    if null is None:
        m = q_geo.new_full((batch, n_heads), LOWEST)
        return m, torch.zeros_like(m), q_geo.new_zeros(batch, n_heads, v_width)
    m = _scores(q_sem, null.k_sem.float()[None, :, None]) + _scores(q_geo, null.k_geo.float()[None, :, None])
    m = m.squeeze(-1)  # [B, H]
    values = null.v.float().repeat_interleave(n_heads // len(null.v), dim=0)  # [H, Dv]
    return m, torch.ones_like(m), values.expand(batch, -1, -1)


def _scores(q: Tensor, keys: Tensor) -> Tensor:
    """q [B,H,D], keys [B or 1,G,n,D] -> [B,H,n]; the H/G query heads of a group read one KV head."""
    grouped = torch.unflatten(q, 1, (keys.shape[1], -1))  # [B, G, H/G, D]
    return (grouped @ keys.mT).flatten(1, 2)


def _values(weights: Tensor, values: Tensor) -> Tensor:
    """weights [B,H,n], values [B,G,n,Dv] -> [B,H,Dv]."""
    grouped = torch.unflatten(weights, 1, (values.shape[1], -1))  # [B, G, H/G, n]
    return (grouped @ values).flatten(1, 2)


def _held(cache: KVLayer, start: int, stop: int) -> Tensor | None:
    """bool [B,1,n]: positions below a row's length; None when all are."""
    if stop <= min(cache.lengths):
        return None
    positions = torch.arange(start, stop, device=cache.lengths_device.device)
    return (positions < cache.lengths_device.unsqueeze(1)).unsqueeze(1)


class StreamingPlugin:
    name = "streaming"
    contract = 1
    summary = "plain torch, block by block, any format, any device; the reference"
    options_class = StreamingOptions

    def supports(self, request: DecodeRequest, options: StreamingOptions) -> Support:
        reasons = [
            Reason(
                subject=f"heads of {name}",
                got=f"{tensor.n_heads} for {request.shape.n_heads} query heads",
                supported="a divisor of the number of query heads",
                action="Choose n_kv_heads that divides n_heads.",
            )
            for name, tensor in (("k_sem", request.k_sem), ("k_geo", request.k_geo), ("v", request.v))
            if request.shape.n_heads % tensor.n_heads
        ]
        if request.dtype not in DTYPES:
            reasons.append(
                Reason(
                    subject="dtype",
                    got=request.dtype,
                    supported=", ".join(DTYPES),
                    action="Run the model in one of these.",
                )
            )
        return Support(tuple(reasons))

    def build(self, request: DecodeRequest, options: StreamingOptions) -> DecodeBackend:
        return StreamingDecode(options)


@hookimpl
def dba_decode_backend() -> DecodeBackendPlugin:
    return StreamingPlugin()
