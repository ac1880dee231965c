"""Decode one sequence after the other: dequantize its keys and values, then one softmax over all of them.

    out = softmax(q_sem K_sem^T + q_geo K_geo^T) V

The shortest right answer, and a place to start from; memory grows with the length.
"""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from dba_core import hookimpl
from dba_core.cache.layer import LayerCache
from dba_core.cache.store import TensorStore
from dba_core.contracts import (
    CONTRACT_VERSIONS,
    DecodeBackend,
    DecodeBackendPlugin,
    DecodeOutput,
    DecodeRequest,
    NullKV,
    Reason,
    Support,
    TokenWriter,
)
from dba_core.errors import ConfigError


@attrs.frozen(kw_only=True)
class OldDecodeOptions:
    """max_capacity: the longest cache that the plugin takes, in tokens."""

    max_capacity: int = 1_000_000

    def __attrs_post_init__(self) -> None:
        if self.max_capacity < 1:
            raise ConfigError(f"{self.max_capacity} is out of range; allowed: 1 or more", path="max_capacity")


class OldDecodeDecode:
    """One query token per sequence over one layer's cache, in float32."""

    name = "old-decode"
    fused_null = False
    writer: TokenWriter | None = None

    @torch.no_grad()
    def decode(
        self,
        q_sem: Tensor,
        q_geo: Tensor,
        cache: LayerCache,
        *,
        null: NullKV | None = None,
        needs_lse: bool = False,
    ) -> DecodeOutput:
        """q_sem [B,H,Ds], q_geo [B,H,Dg], scaled -> out [B,H,Dv] and, when asked for, lse [B,H]."""
        q_len, width = q_geo.shape[1], cache.v.head_dim
        out = torch.zeros(cache.batch, q_len, width, device=q_geo.device)
        lse = torch.full((cache.batch, q_len), -torch.inf, device=q_geo.device)
        for row, length in enumerate(cache.lengths):
            if not length and null is None:
                continue  # nothing to attend to: zeros, and a log-sum-exp of -inf
            k_sem, k_geo, v = (_read(store, cache, row) for store in (cache.k_sem, cache.k_geo, cache.v))
            if null is not None:  # key number zero, once
                k_sem = _with_first(null.k_sem, k_sem)
                k_geo = _with_first(null.k_geo, k_geo)
                v = _with_first(null.v, v)
            scores = _per_head(q_sem[row], k_sem.mT) + _per_head(q_geo[row], k_geo.mT)  # [H, S]
            lse[row] = scores.logsumexp(dim=-1)
            out[row] = _per_head(scores.softmax(dim=-1), v)
        return DecodeOutput(out=out.to(q_geo.dtype), lse=lse if needs_lse else None)


def _with_first(first: Tensor, planes: Tensor) -> Tensor:
    """first [G, D] as token number zero of planes [G or fewer heads, S, D] -> [G, 1+S, D]."""
    shared = planes.repeat_interleave(len(first) // len(planes), dim=0)
    return torch.cat((first.float()[:, None], shared), dim=1)


def _per_head(x: Tensor, planes: Tensor) -> Tensor:
    """x [H, M], planes [G, M, N] -> [H, N]; the H/G query heads of a group share one plane."""
    grouped = x.float().unflatten(0, (len(planes), -1))  # [G, H/G, M]
    return (grouped @ planes).flatten(0, 1)


def _read(store: TensorStore, cache: LayerCache, row: int) -> Tensor:
    """The tokens of one row as its newest query reads them: float32 [G, S, D].

    The newest `residual_len` ones lie in the fp16 ring, where there is one, at position % its size.
    """
    length = cache.lengths[row]
    values = store.stored(0, length)[row]
    if store.recent_ring is None:
        return values
    recent = torch.arange(max(0, length - cache.residual_len), length, device=values.device)
    held = store.recent_ring[row][:, recent % store.recent_ring.shape[2]].float()
    return torch.cat((values[:, : length - len(recent)], held), dim=1)


class OldDecodePlugin:
    name = "old-decode"
    contract = CONTRACT_VERSIONS["decode_backend"]
    summary = "dequantizes a sequence whole, then one softmax"
    options_class = OldDecodeOptions

    def supports(self, request: DecodeRequest, options: OldDecodeOptions) -> Support:
        reasons: list[Reason] = []
        if request.capacity > options.max_capacity:
            reasons.append(
                Reason(
                    subject="capacity",
                    got=f"{request.capacity} tokens",
                    supported=f"up to max_capacity={options.max_capacity}",
                    action="Raise max_capacity, or choose decode_backend=streaming.",
                )
            )
        heads = {tensor.n_heads for tensor in (request.k_sem, request.k_geo, request.v)}
        if any(request.shape.n_heads % n for n in heads):
            reasons.append(
                Reason(
                    subject="KV heads",
                    got=f"{sorted(heads)} for {request.shape.n_heads} query heads",
                    supported="divisors of the number of query heads",
                    action="Choose n_kv_heads that divides n_heads.",
                )
            )
        return Support(tuple(reasons))

    def build(self, request: DecodeRequest, options: OldDecodeOptions) -> DecodeBackend:
        return OldDecodeDecode()


@hookimpl
def dba_decode_backend() -> DecodeBackendPlugin:
    return OldDecodePlugin()
