"""From hidden states to queries, keys and values, scaled and rotated.

    q_sem = exp(clamp(logit_scale, -8, 8)) / sqrt(Ds) * W_q_sem x        k_sem = W_k_sem x - sem_offset
    q_geo = exp(clamp(logit_scale, -8, 8)) / sqrt(Dg) * R(t) W_q_geo x   k_geo = R(t) W_k_geo x      v = W_v x

`project` calls each projection's module and serves any: with hooks, wrapped, an adapter. Of one decoded token
in a small layer calling costs more than computing; where every projection is a plain matrix one product with
all of them serves there. `Packing` lays heads out as kernels want them.
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dba_core.attention.inputs import autocast_enabled
from dba_core.attention.rope import (
    RopeFrequencies,
    RopeTable,
    rope_frequencies,
    rotated,
    shared_rope_table,
)
from dba_core.config.attention import AttentionConfig
from dba_core.contracts import NullKV

#: Channels that carry log(L): its value rounded, and what that left out.
COLUMNS = 2
#: Values of the projections of a layer, at most, that are kept as one matrix too (4 MiB in float32).
SMALL = 2**20
PROJECTIONS = ("q_sem", "k_sem", "q_geo", "k_geo", "v_proj")
_VERSION = operator.attrgetter("_version")
_TORCH_TENSORS: tuple[type, ...] = (nn.Parameter, Tensor)


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

    def null(self, null: NullKV) -> tuple[Tensor, Tensor]:
        """The null key and value in the dtype that they have: [G,W] each."""
        key = side_by_side(null.k_sem, null.k_geo, width=self.width)
        return key, side_by_side(null.v, width=self.width)


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


class _OneMatrix(NamedTuple):
    """All projections of a layer as one matrix [R,d_model] and what is added, [R] or nothing.

    state: of which tensors it was made, and their contents' versions; sources: those, so that no other can
    be at their address.
    """

    weight: Tensor
    bias: Tensor | None
    state: tuple[object, ...]
    sources: tuple[Tensor, ...]


class HeadProjections(nn.Module):
    """The part of a layer that makes heads of hidden states: q_sem ... v_proj and RoPE, or what was injected.

    q_sem is None without a semantic path, k_sem and k_geo where they are tied to the queries'. logit_scale
    [H] is the learned temperature, sem_offset [Gs,Ds] what semantic keys are less.

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
        self._one_matrix: _OneMatrix | None = None
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

    def __getstate__(self) -> dict[str, Any]:
        """A copy or a pickle makes its own matrix of its own weights."""
        return {**vars(self), "_one_matrix": None}

    @property
    def rope(self) -> RopeTable:
        """The rotation angles of this layer."""
        if self.projection is not None:
            return self.projection.rope
        return self._shared_rope if self.rope_frequencies is None else self.rope_frequencies.table

    def query_scale(self, width: int) -> Tensor | float:
        """What queries of this width are multiplied by: a number, or one per head [H,1,1]."""
        scale: float = width**-0.5
        if self.logit_scale is None:
            return scale
        return (self.logit_scale.clamp(-8.0, 8.0).exp() * scale)[:, None, None]

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> Heads:
        """x [B,T,d_model], cos and sin [(B,) T, G or 1, Dg/2] of the tokens' positions (from `rope`) -> their
        queries, scaled, keys and values: rotated, not yet gated.
        """
        if self.projection is not None:
            return self.projection(x, cos, sin)
        shape = self.shape
        n_heads, (sem_heads, kv_heads, v_heads) = shape.n_heads, self._kv_heads
        q_geo = heads_of(self.q_geo(x), n_heads)  # [B, H, T, Dg]
        k_geo = q_geo if self.k_geo is None else heads_of(self.k_geo(x), kv_heads)  # [B, G, T, Dg]
        if self.q_sem is None:
            q_sem, k_sem = q_geo[..., :0], k_geo[..., :0]
        else:
            q_sem = heads_of(self.q_sem(x), n_heads)  # [B, H, T, Ds]
            k_sem = q_sem if self.k_sem is None else heads_of(self.k_sem(x), sem_heads)  # [B, Gs, T, Ds]
            q_sem = (q_sem * self.query_scale(shape.sem_head_dim)).to(k_sem.dtype)
        if self.sem_offset is not None:
            k_sem = k_sem - self.sem_offset[:, None].to(k_sem.dtype)
        q_geo = rotated(q_geo * self.query_scale(shape.geo_head_dim), cos, sin).to(k_geo.dtype)
        return Heads(q_sem, q_geo, k_sem, rotated(k_geo, cos, sin), v=heads_of(self.v_proj(x), v_heads))

    def project_token(self, x: Tensor, cos: Tensor, sin: Tensor, gate: Tensor | None) -> Heads | None:
        """The heads of one token, x [B,1,d_model], gated by [B,H,1,1], in a few operations, no gradients.

        None where that is not what calling the modules gives, or the layer is not small.
        """
        shape = self.shape
        if self.projection is not None or cos.shape[-2] > 1 or x.dtype != cos.dtype:
            return None
        if x.device.type != "cpu" or torch.is_grad_enabled() or autocast_enabled(x.device):
            return None
        made = self._matrix_of_all(doubled=gate is not None)
        if made is None:
            return None
        batch, n_heads, (sem_heads, kv_heads, v_heads) = x.shape[0], shape.n_heads, self._kv_heads
        sem, geo, both = shape.sem_head_dim, shape.geo_head_dim, n_heads + kv_heads
        y = F.linear(x, made.weight, made.bias)  # [B, 1, R]
        sizes = (both * geo, n_heads * sem, sem_heads * sem, v_heads * shape.v_head_dim)
        turning, q_sem, k_sem, v = y.split_with_sizes(sizes, dim=-1)
        turning = turning.view(batch, both, 2, geo // 2)
        turned = turning * cos  # [B, H+G, 2, Dg/2]
        (a, b), (turned_a, turned_b) = turning.chunk(2, dim=2), turned.chunk(2, dim=2)
        turned_a.addcmul_(b, sin, value=-1)
        turned_b.addcmul_(a, sin)
        q_geo, k_geo = turned.view(batch, both, 1, geo).split_with_sizes((n_heads, kv_heads), dim=1)
        q_sem = q_sem.view(batch, n_heads, 1, sem)
        if gate is not None:  # the queries are doubled
            gate = gate.to(q_geo.dtype)
            q_sem, q_geo = q_sem * gate, torch.addcmul(q_geo, q_geo, gate, value=-1)
        k_sem, v = k_sem.view(batch, sem_heads, 1, sem), v.view(batch, v_heads, 1, shape.v_head_dim)
        return Heads(q_sem, q_geo, k_sem, k_geo, v)

    def _matrix_of_all(self, *, doubled: bool) -> _OneMatrix | None:
        """[W_q_geo | W_k_geo | W_q_sem | W_k_sem | W_v], rows of queries scaled and, before a gate, doubled.

        None where a projection is not plain or they are not small. It is made again when a weight is another
        one or was written to, and where a cache starts, for writes that torch does not count (those to
        `weight.data`).
        """
        sources = self.plain_weights()
        if sources is None:
            return None
        beside = self._parameters.get("logit_scale"), self._buffers.get("sem_offset")
        sources += [each for each in beside if each is not None]
        if any(map(Tensor.is_inference, sources)):  # torch counts no writes to those
            return None
        state = (doubled, *map(id, sources), *map(Tensor.data_ptr, sources), *map(_VERSION, sources))
        made = self._one_matrix
        if made is not None and made.state == state:
            return made
        if sum(each.numel() for each in sources) > SMALL:
            return None
        with torch.inference_mode(False), torch.no_grad():
            weight, bias = self.rows(doubled=doubled)
        self._one_matrix = made = _OneMatrix(weight, bias, state, tuple(sources))
        return made

    def rows(self, *, doubled: bool) -> tuple[Tensor, Tensor | None]:
        """[W_q_geo | W_k_geo | W_q_sem | W_k_sem | W_v] and what is added, of projections that are plain; the
        rows of queries scaled and, if `doubled`, doubled.
        """
        q_geo, k_geo, q_sem, k_sem, v = self.matrices()
        queries = [2.0 * each if doubled else each for each in (q_geo, q_sem)]
        rows = [each.flatten(0, 1) for each in (queries[0], k_geo, queries[1], k_sem, v)]
        weight = torch.cat(rows)
        if self.sem_offset is None:
            return weight, None
        bias = weight.new_zeros(len(weight))
        first = sum(map(len, rows[:3]))
        bias[first : first + len(rows[3])] = -self.sem_offset.flatten().to(weight.dtype)
        return weight, bias

    def plain_weights(self) -> list[Tensor] | None:
        """The projections' weights where calling each is exactly a product with its weight, else None."""
        present = [module for module in map(self._modules.get, PROJECTIONS) if module is not None]
        if not all(map(_is_plain, present)):
            return None
        return [cast("Tensor", each._parameters["weight"]) for each in present]

    def matrices(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Those of q_geo, k_geo, q_sem, k_sem and v, [heads, width, d_model], of projections that are plain;
        the queries' scaled; of no rows where there is no semantic path.
        """
        shape = self.shape
        sem, geo = shape.sem_head_dim, shape.geo_head_dim

        def rows(module: nn.Module, width: int) -> Tensor:
            return cast("nn.Linear", module).weight.view(-1, width, shape.d_model)

        q_geo = rows(self.q_geo, geo)
        k_geo = q_geo if self.k_geo is None else rows(self.k_geo, geo)
        if self.q_sem is None:
            q_sem, k_sem = q_geo[:, :0], k_geo[:, :0]
        else:
            q_sem = rows(self.q_sem, sem)
            k_sem = q_sem if self.k_sem is None else rows(self.k_sem, sem)
            q_sem = q_sem * self.query_scale(sem)
        v = rows(self.v_proj, shape.v_head_dim)
        return q_geo * self.query_scale(geo), k_geo, q_sem, k_sem, v


def _is_plain(module: nn.Module) -> bool:
    """A torch.nn.Linear whose call nothing intercepts: no subclass (a parametrization makes one), no bias, no
    hook, no `forward` of the instance's own, a weight that is a tensor of torch's own class.
    """
    if type(module) is not nn.Linear or "forward" in vars(module):
        return False
    own = module._parameters
    if own.get("bias") is not None or type(own.get("weight")) not in _TORCH_TENSORS:
        return False
    return not (
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def matrix(d_in: int, d_out: int) -> nn.Linear:
    """x [...,d_in] -> [...,d_out], a product with a weight."""
    return nn.Linear(d_in, d_out, bias=False)


def heads_of(y: Tensor, n_heads: int) -> Tensor:
    """[B, T, n_heads*D] -> [B, n_heads, T, D]."""
    return torch.unflatten(y, -1, (n_heads, -1)).transpose(1, 2)
