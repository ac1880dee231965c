"""From hidden states to queries, keys and values, scaled and rotated.

    q_sem = exp(clamp(logit_scale, -8, 8)) / sqrt(Ds) * W_q_sem x        k_sem = W_k_sem x
    q_geo = exp(clamp(logit_scale, -8, 8)) / sqrt(Dg) * R(t) W_q_geo x   k_geo = R(t) W_k_geo x      v = W_v x

Two forms of the same: `project` gives the five tensors (cached paths, long sequences), `project_packed` gives
[q | k | v] with equal head widths from one product with the concatenated weights (training, where it saves a
third of the time at small widths). Both read the weights themselves: hooks of the projections' modules do not
run. Called by attention.module.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dba_core.attention.rope import per_head, rotate_halves
from dba_core.attention.rotated_projection import rotated_projection
from dba_core.contracts import AttentionShape, NullKV


class ProjectionWeights(NamedTuple):
    """The weights of one layer: q_sem [H*Ds,d_model], k_sem [G*Ds,d_model] (None: absent), and so on.

    k_sem has [Gs*Ds,d_model] and v [Gv*Dv,d_model] where they have fewer heads than k_geo. sem_offset
    [Gs,Ds]: what semantic keys are less. logit_scale [H]: the learned temperature. None: without. Tied
    projections pass q's weights as k's.
    """

    shape: AttentionShape
    q_sem: Tensor | None
    k_sem: Tensor | None
    q_geo: Tensor
    k_geo: Tensor
    v: Tensor
    logit_scale: Tensor | None = None
    sem_offset: Tensor | None = None

    def query_scale(self, width: int) -> Tensor | float:
        """What queries of this width are multiplied by: a number, or one per head [H,1,1]."""
        scale: float = width**-0.5
        if self.logit_scale is None:
            return scale
        return (self.logit_scale.clamp(-8.0, 8.0).exp() * scale)[:, None, None]


class Heads(NamedTuple):
    """Queries, already scaled, [B,H,T,Ds|Dg], keys [B,G,T,Ds|Dg] and values [B,G,T,Dv] of T tokens.

    Semantic keys and values may have fewer heads than G: as they go into a cache (`shared` gives all G).
    """

    q_sem: Tensor
    q_geo: Tensor
    k_sem: Tensor
    k_geo: Tensor
    v: Tensor

    def shared(self) -> Heads:
        """The same with G heads of each."""
        kv_heads = self.k_geo.shape[1]
        return self._replace(k_sem=share_heads(self.k_sem, kv_heads), v=share_heads(self.v, kv_heads))

    def gated(self, gate: Tensor) -> Heads:
        """gate [B,H,T,1]: q_sem * 2g and q_geo * 2(1-g); keys and values untouched."""
        double = 2.0 * gate.to(self.q_geo.dtype)
        return self._replace(q_sem=self.q_sem * double, q_geo=self.q_geo * (2.0 - double))


def share_heads(x: Tensor, n_heads: int) -> Tensor:
    """[B,M,T,D] -> [B,n_heads,T,D], each of M heads for n_heads/M neighbours; x itself for M = n_heads."""
    return x if x.shape[1] == n_heads else x.repeat_interleave(n_heads // x.shape[1], dim=1)


def project(x: Tensor, weights: ProjectionWeights, cos: Tensor, sin: Tensor) -> Heads:
    """x [B,T,d_model], cos and sin [(B,) T, G or 1, Dg/2] of the tokens' positions -> Heads."""
    shape = weights.shape
    n_heads, (sem_heads, kv_heads, v_heads) = shape.n_heads, shape.cached_heads
    q_geo = _heads(x, weights.q_geo, n_heads) * weights.query_scale(shape.geo_head_dim)
    k_geo = _heads(x, weights.k_geo, kv_heads)
    if weights.q_sem is None or weights.k_sem is None:
        q_sem, k_sem = q_geo[..., :0], k_geo[..., :0]
    else:
        q_sem = _heads(x, weights.q_sem, n_heads) * weights.query_scale(shape.sem_head_dim)
        k_sem = _heads(x, weights.k_sem, sem_heads)
        if weights.sem_offset is not None:
            k_sem = k_sem - weights.sem_offset[:, None].to(k_sem.dtype)
    return Heads(
        q_sem=q_sem.to(k_sem.dtype),
        q_geo=rotate_halves(q_geo, per_head(cos, n_heads=n_heads), per_head(sin, n_heads=n_heads)).to(
            k_geo.dtype
        ),
        k_sem=k_sem,
        k_geo=rotate_halves(k_geo, per_head(cos, n_heads=kv_heads), per_head(sin, n_heads=kv_heads)),
        v=_heads(x, weights.v, v_heads),
    )


def _heads(x: Tensor, weight: Tensor, n_heads: int) -> Tensor:
    """[B, T, d_model] -> [B, n_heads, T, D]."""
    return torch.unflatten(F.linear(x, weight), -1, (n_heads, -1)).transpose(1, 2)


class PackedHeads(NamedTuple):
    """q [B,T,H,W], k [B,T,G,W], v [B,T,G,W]: one width W for all, the rest of each head zero.

    A query or key head is [geometric, i beside i + Dg/2 | semantic | zeros], a value head [v | zeros].
    """

    q: Tensor
    k: Tensor
    v: Tensor


def packed_width(shape: AttentionShape) -> int:
    """W: the wider of keys and values (scaled_dot_product_attention wants one width), rounded up to even."""
    width = max(shape.sem_head_dim + shape.geo_head_dim, shape.v_head_dim)
    return width + width % 2


def project_packed(
    x: Tensor, weights: ProjectionWeights, cos: Tensor, sin: Tensor, *, gate: Tensor | None = None
) -> PackedHeads:
    """x [B,T,d_model], cos and sin [T, G or 1, Dg/2], gate [B,H,T,1] -> PackedHeads."""
    shape = weights.shape
    n_heads, kv_heads = shape.n_heads, shape.n_kv_heads
    if cos.shape[-2] > 1:
        cos, sin = (torch.cat([t.repeat_interleave(n_heads // kv_heads, -2), t], -2) for t in (cos, sin))
    sizes = n_heads, kv_heads, kv_heads
    q, k, v = rotated_projection(x, _packed_weight(weights), cos, sin, sizes=sizes, width=packed_width(shape))
    if gate is not None:
        q = q * _gate_factor(gate, shape).to(q.dtype)
    if weights.sem_offset is not None:
        k = k - _packed_offset(weights.sem_offset, shape).to(k.dtype)
    return PackedHeads(q=q, k=k, v=v)


def pack_null(null: NullKV, shape: AttentionShape) -> tuple[Tensor, Tensor]:
    """The null key and value in the packed layout: [G,W] each."""
    width = packed_width(shape)
    geo = torch.unflatten(null.k_geo, -1, (2, -1)).transpose(-1, -2).flatten(-2)  # [G, Dg]
    key = torch.cat([geo, null.k_sem], dim=-1)
    return F.pad(key, (0, width - key.shape[-1])), F.pad(null.v, (0, width - null.v.shape[-1]))


def _packed_weight(weights: ProjectionWeights) -> Tensor:
    """[(H+2G)*W, d_model]: the weights of all heads, scaled, in the packed layout."""
    shape = weights.shape
    heads, width = shape.n_heads + shape.n_kv_heads, packed_width(shape)
    geo = torch.cat([_scaled(weights.q_geo, weights, shape.geo_head_dim), weights.k_geo])
    rows = [
        geo.view(heads, 2, shape.geo_head_dim // 2, -1).transpose(1, 2).flatten(1, 2)
    ]  # [H+G, Dg, d_model]
    if weights.q_sem is not None and weights.k_sem is not None:
        k_sem = _share_rows(weights.k_sem, shape.sem_head_dim, shape.n_kv_heads)
        sem = torch.cat([_scaled(weights.q_sem, weights, shape.sem_head_dim), k_sem])
        rows.append(sem.view(heads, shape.sem_head_dim, -1))
    keys = _pad_rows(torch.cat(rows, dim=1) if len(rows) > 1 else rows[0], width)  # [H+G, W, d_model]
    values = _share_rows(weights.v, shape.v_head_dim, shape.n_kv_heads)
    values = _pad_rows(values.view(shape.n_kv_heads, shape.v_head_dim, -1), width)  # [G, W, d_model]
    return torch.cat([keys, values]).flatten(0, 1)


def _share_rows(weight: Tensor, width: int, n_heads: int) -> Tensor:
    """[M*width, d_model] -> [n_heads*width, d_model]; the weight itself for M = n_heads."""
    return share_heads(weight.view(1, -1, width, weight.shape[-1]), n_heads).flatten(0, 2)


def _packed_offset(offset: Tensor, shape: AttentionShape) -> Tensor:
    """[Gs, Ds] -> [G, W], zero but for the semantic channels."""
    shared = share_heads(offset[None, :, None], shape.n_kv_heads)[0, :, 0]  # [G, Ds]
    after = packed_width(shape) - shape.geo_head_dim - shape.sem_head_dim
    return F.pad(shared, (shape.geo_head_dim, after))


def _scaled(weight: Tensor, weights: ProjectionWeights, width: int) -> Tensor:
    """A query weight [H*D,d_model] times the scale of its queries."""
    scale = weights.query_scale(width)
    if isinstance(scale, float):
        return weight * scale
    return (weight.view(len(scale), width, -1) * scale).flatten(0, 1)


def _pad_rows(rows: Tensor, width: int) -> Tensor:
    """[N, D, d_model] -> [N, width, d_model], zeros below."""
    missing = width - rows.shape[1]
    return F.pad(rows, (0, 0, 0, missing)) if missing else rows


def _gate_factor(gate: Tensor, shape: AttentionShape) -> Tensor:
    """gate [B,H,T,1] -> [B,T,H,W]: 2(1-g) on the geometric channels, 2g on the semantic ones."""
    double = 2.0 * gate.transpose(1, 2)  # [B, T, H, 1]
    geo = (2.0 - double).expand(-1, -1, -1, shape.geo_head_dim)
    return torch.cat([geo, double.expand(-1, -1, -1, packed_width(shape) - shape.geo_head_dim)], dim=-1)
