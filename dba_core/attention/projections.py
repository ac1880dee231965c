"""From hidden states to queries, keys and values, scaled and rotated.

    q_sem = exp(clamp(logit_scale, -8, 8)) / sqrt(Ds) * W_q_sem x        k_sem = W_k_sem x - sem_offset
    q_geo = exp(clamp(logit_scale, -8, 8)) / sqrt(Dg) * R(t) W_q_geo x   k_geo = R(t) W_k_geo x      v = W_v x

`project` calls each projection's module and serves any: with hooks, wrapped, an adapter. `Packing` lays heads
out as kernels want them.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from dba_core.attention.rope import (
    RopeFrequencies,
    RopeTable,
    rope_frequencies,
    rotate_both,
    shared_rope_table,
)
from dba_core.config.attention import AttentionConfig
from dba_core.contracts import AttentionShape, NullKV

#: Channels that carry log(L): its value rounded, and what that left out.
COLUMNS = 2


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

    def gated(self, gate: Tensor | None) -> Heads:
        """gate [B,H,T,1]: q_sem * 2g and q_geo * 2(1-g); keys and values untouched. None: as they are."""
        if gate is None:
            return self
        double = 2.0 * gate.to(self.q_geo.dtype)
        return Heads(self.q_sem * double, self.q_geo * (2.0 - double), self.k_sem, self.k_geo, self.v)


def share_heads(x: Tensor, n_heads: int) -> Tensor:
    """[B,M,T,D] -> [B,n_heads,T,D], each of M heads for n_heads/M neighbours; x itself for M = n_heads."""
    return x if x.shape[1] == n_heads else x.repeat_interleave(n_heads // x.shape[1], dim=1)


class PackedHeads(NamedTuple):
    """Queries [B,T,H,W], keys and values [B,T,G,W], the rest of each head zero."""

    q: Tensor
    k: Tensor
    v: Tensor


class PackedNull(NamedTuple):
    """The null key and value, [G,W] each."""

    k: Tensor
    v: Tensor


class Packing(NamedTuple):
    """Queries, keys and values as one tensor each, of one width W, for scaled_dot_product_attention:

        query [q_sem | q_geo | 0 | 1 1]           value [v | 0]
        token or null key [k_sem | k_geo | 0]     memory key [k_mem | 0 | log(L)]

    The last two channels exist only where they carry the weight of memory tokens
    (attention.long_sequence). The null token is key number zero, visible to every query.

    width: W. log_mass: what the columns give a memory logit; None without columns. dtype: of what is made,
    but for the null token. A tuple for torch.compile's sake.
    """

    width: int
    dtype: torch.dtype
    log_mass: float | None = None

    @classmethod
    def of(
        cls, *parts: Tensor, v: Tensor, dtype: torch.dtype, log_mass: float | None = None, align: int = 1
    ) -> Packing:
        """parts: the queries' or the keys'. W: their widths, columns included, or the values' where that is
        more, rounded up to a multiple of `align`.
        """
        keys = sum(part.shape[-1] for part in parts) + (0 if log_mass is None else COLUMNS)
        width = -(-max(keys, v.shape[-1]) // align) * align
        return cls(width=width, dtype=dtype, log_mass=log_mass)

    def queries(self, q_sem: Tensor, q_geo: Tensor) -> Tensor:
        """[B,H,T,Ds], [B,H,T,Dg] -> [B,H,T,W], a new tensor."""
        ones = None if self.log_mass is None else torch.ones(COLUMNS, device=q_geo.device)
        return side_by_side(q_sem, q_geo, width=self.width, dtype=self.dtype, tail=ones)

    def tokens(self, k_sem: Tensor, k_geo: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """[B,G,T,Ds], [B,G,T,Dg], [B,G,T,Dv] -> keys and values [B,G,T,W], new tensors."""
        return (
            side_by_side(k_sem, k_geo, width=self.width, dtype=self.dtype),
            side_by_side(v, width=self.width, dtype=self.dtype),
        )

    def heads(self, q_sem: Tensor, q_geo: Tensor, k_sem: Tensor, k_geo: Tensor, v: Tensor) -> PackedHeads:
        """Queries, keys and values as above, [B,H,T,*] and [B,G,T,*] -> [B,T,H,W] and [B,T,G,W]."""
        q, (k, v) = self.queries(q_sem, q_geo), self.tokens(k_sem, k_geo, v)
        return PackedHeads(*(each.transpose(1, 2) for each in (q, k, v)))

    def memory(self, k_mem: Tensor, v_mem: Tensor) -> tuple[Tensor, Tensor]:
        """[B,G,N,Ds], [B,G,N,Dv] -> [B,G,N,W] each."""
        tail = None if self.log_mass is None else columns(self.log_mass, k_mem)
        return (
            side_by_side(k_mem, width=self.width, dtype=self.dtype, tail=tail),
            side_by_side(v_mem, width=self.width, dtype=self.dtype),
        )

    def null(self, null: NullKV) -> PackedNull:
        """The null key and value in the dtype that they have."""
        return PackedNull(
            side_by_side(null.k_sem, null.k_geo, width=self.width), side_by_side(null.v, width=self.width)
        )


def side_by_side(
    *parts: Tensor, width: int, dtype: torch.dtype | None = None, tail: Tensor | None = None
) -> Tensor:
    """The parts [...,D_i] in this order, zeros up to `width`, the tail [n] in the last channels: a new tensor
    [...,width]. dtype: None is that of the parts.
    """
    lead = parts[0].shape[:-1]
    missing = width - sum(part.shape[-1] for part in parts) - (0 if tail is None else len(tail))
    pieces = [*parts, parts[0].new_zeros(()).expand(*lead, missing)]
    if tail is not None:
        pieces.append(tail.expand(*lead, -1))
    pieces = [piece for piece in pieces if piece.shape[-1]]
    return torch.cat(pieces if dtype is None else [piece.to(dtype) for piece in pieces], dim=-1)


def null_first(null: Tensor, tokens: Tensor, *, dim: int) -> Tensor:
    """null [G,W] before the tokens: [B,T,G,W] along dim=1, [B,G,T,W] along dim=2."""
    rows = null.to(tokens.dtype).unsqueeze(dim - 1)  # [1, G, W] or [G, 1, W]
    return torch.cat([rows.expand(len(tokens), -1, -1, -1), tokens], dim=dim)


def columns(log_mass: float, like: Tensor) -> Tensor:
    """[2]: log(L) in `like`'s dtype and what that rounding left out."""
    high = torch.tensor(log_mass, dtype=torch.float64, device="cpu").to(like.dtype)
    low = (log_mass - high.double()).to(like.dtype)
    return torch.stack([high, low]).to(like.device)


class Projection(Protocol):
    """What a layer can be given in place of projections of its own."""

    @property
    def rope(self) -> RopeTable:
        """The angles that it rotates by."""
        ...

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor) -> Heads:
        """x [B,T,d_model], cos and sin [(B,) T, G or 1, Dg/2] of the tokens' positions -> their Heads."""
        ...


class Projections(NamedTuple):
    """The modules that make one layer's heads, each [B,T,d_model] -> [B,T,heads*width].

    kv_heads: of k_sem, k_geo and v; k_sem and v may have fewer than k_geo. q_sem: None without a semantic
    path; k_sem, k_geo: None where they are tied to the queries'. logit_scale [H]: the learned temperature.
    sem_offset [Gs,Ds]: what semantic keys are less. None: without.
    """

    shape: AttentionShape
    kv_heads: tuple[int, int, int]
    q_sem: nn.Module | None
    k_sem: nn.Module | None
    q_geo: nn.Module
    k_geo: nn.Module | None
    v: nn.Module
    logit_scale: Tensor | None = None
    sem_offset: Tensor | None = None

    def query_scale(self, width: int) -> Tensor | float:
        """What queries of this width are multiplied by: a number, or one per head [H,1,1]."""
        scale: float = width**-0.5
        if self.logit_scale is None:
            return scale
        return (self.logit_scale.clamp(-8.0, 8.0).exp() * scale)[:, None, None]


class HeadProjections(nn.Module):
    """The part of a layer that makes heads of hidden states: q_sem ... v_proj and RoPE, or what was injected.

    config: resolved. projection: in place of projections of the layer's own, which then do not exist.
    """

    logit_scale: nn.Parameter | None
    sem_offset: Tensor | None

    def __init__(self, config: AttentionConfig, projection: Projection | None = None) -> None:
        super().__init__()
        self.config = config
        self.shape = shape = config.shape
        self.projection = projection
        self._kv_heads = shape.cached_heads
        geo, theta = shape.geo_head_dim, config.rope_theta
        self._shared_rope = shared_rope_table(geo, theta)
        table = rope_frequencies(geo, theta).expand(shape.n_kv_heads, -1)
        self.rope_frequencies = RopeFrequencies(table) if config.rope_table else None
        if projection is None:
            self._make_projections()

    def _make_projections(self) -> None:
        shape, tied = self.shape, self.config.tie_qk
        n_heads, sem, geo = shape.n_heads, shape.sem_head_dim, shape.geo_head_dim
        sem_heads, kv_heads, v_heads = shape.cached_heads
        self.q_sem = matrix(shape.d_model, n_heads * sem) if sem else None
        self.k_sem = matrix(shape.d_model, sem_heads * sem) if sem and not tied else None
        self.q_geo = matrix(shape.d_model, n_heads * geo)
        self.k_geo = None if tied else matrix(shape.d_model, kv_heads * geo)
        self.v_proj = matrix(shape.d_model, v_heads * shape.v_head_dim)
        temperature = nn.Parameter(torch.zeros(n_heads)) if self.config.learned_temperature else None
        self.register_parameter("logit_scale", temperature)
        offset = torch.zeros(sem_heads, sem) if self.config.sem_offset else None
        self.register_buffer("sem_offset", offset)

    @property
    def rope(self) -> RopeTable:
        """The rotation angles of this layer."""
        if self.projection is not None:
            return self.projection.rope
        return self._shared_rope if self.rope_frequencies is None else self.rope_frequencies.table

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> Heads:
        """x [B,T,d_model], cos and sin [(B,) T, G or 1, Dg/2] of the tokens' positions (from `rope`) -> their
        queries, scaled, keys and values: rotated, not yet gated.
        """
        if self.projection is not None:
            return self.projection(x, cos, sin)
        return project(x, self.projections(), cos, sin)

    def projections(self) -> Projections:
        """The modules as they are now: an adapter may have replaced one."""
        return Projections(
            shape=self.shape,
            kv_heads=self._kv_heads,
            q_sem=self.q_sem,
            k_sem=self.k_sem,
            q_geo=self.q_geo,
            k_geo=self.k_geo,
            v=self.v_proj,
            logit_scale=self.logit_scale,
            sem_offset=self.sem_offset,
        )


def matrix(d_in: int, d_out: int) -> nn.Linear:
    """x [...,d_in] -> [...,d_out], a product with a weight."""
    return nn.Linear(d_in, d_out, bias=False)


def project(x: Tensor, layer: Projections, cos: Tensor, sin: Tensor) -> Heads:
    """x [B,T,d_model], cos and sin [(B,) T, G or 1, Dg/2] of the tokens' positions -> Heads."""
    shape = layer.shape
    n_heads, (sem_heads, kv_heads, v_heads) = shape.n_heads, layer.kv_heads
    q_geo = _heads(layer.q_geo(x), n_heads)  # [B, H, T, Dg]
    k_geo = q_geo if layer.k_geo is None else _heads(layer.k_geo(x), kv_heads)  # [B, G, T, Dg]
    if layer.q_sem is None:
        q_sem, k_sem = q_geo[..., :0], k_geo[..., :0]
    else:
        q_sem = _heads(layer.q_sem(x), n_heads)  # [B, H, T, Ds]
        k_sem = q_sem if layer.k_sem is None else _heads(layer.k_sem(x), sem_heads)  # [B, Gs, T, Ds]
        q_sem = q_sem * layer.query_scale(shape.sem_head_dim)
    if layer.sem_offset is not None:
        k_sem = k_sem - layer.sem_offset[:, None].to(k_sem.dtype)
    q_geo = q_geo * layer.query_scale(shape.geo_head_dim)
    q_geo, k_geo = rotate_both(q_geo, k_geo, cos, sin)
    return Heads(q_sem.to(k_sem.dtype), q_geo, k_sem, k_geo, v=_heads(layer.v(x), v_heads))


def _heads(y: Tensor, n_heads: int) -> Tensor:
    """[B, T, n_heads*D] -> [B, n_heads, T, D]."""
    batch, q_len, width = y.shape
    if q_len == 1:
        return y.reshape(batch, n_heads, 1, width // n_heads)
    return torch.unflatten(y, -1, (n_heads, -1)).transpose(1, 2)
