"""From hidden states to queries, keys and values, scaled and rotated.

    q_sem = exp(clamp(logit_scale, -8, 8)) / sqrt(Ds) * W_q_sem x        k_sem = W_k_sem x - sem_offset
    q_geo = exp(clamp(logit_scale, -8, 8)) / sqrt(Dg) * R(t) W_q_geo x   k_geo = R(t) W_k_geo x      v = W_v x

`project` calls each projection's module and serves any: with hooks, wrapped, an adapter. `project_packed` is
one product for all of them, for training, where it saves a third of the time at small widths. It serves where
every projection is a plain matrix (`Projections.plain`), so that calling it is nothing but that product:

    y = x [W_q | W_k | W_v]^T,   (y_2i + j y_2i+1) *= cos + j sin   on the geometric channels of q and k

Channels 2i and 2i+1 of a head are a complex number turned by the angle of (position, i); the weights are
reordered so that these are RoPE's half-split pairs. The complex product runs in place, on y forward and on
its gradient backward, both of which nobody else has seen: RoPE as operations of its own costs a sixth of a
small attention layer's step, this a twentieth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dba_core.attention.inputs import autocast_enabled, compute_dtype
from dba_core.attention.packing import PackedHeads, PackedNull, Packing, side_by_side
from dba_core.attention.rope import (
    RopeFrequencies,
    RopeTable,
    rope_frequencies,
    rotate_both,
    shared_rope_table,
)
from dba_core.config.attention import AttentionConfig
from dba_core.contracts import AttentionShape, NullKV

_COMPLEX_PARTS = (torch.float32, torch.float64)
_TORCH_TENSORS: tuple[type, ...] = (nn.Parameter, Tensor)
_ThreeHeads = tuple[Tensor, Tensor, Tensor]


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

    @property
    def plain(self) -> bool:
        """Whether each is exactly a product with its weight: `project_packed` then gives what calls give."""
        modules = (self.q_sem, self.k_sem, self.q_geo, self.k_geo, self.v)
        return all(module is None or _is_plain(module) for module in modules)

    def query_scale(self, width: int) -> Tensor | float:
        """What queries of this width are multiplied by: a number, or one per head [H,1,1]."""
        scale: float = width**-0.5
        if self.logit_scale is None:
            return scale
        return (self.logit_scale.clamp(-8.0, 8.0).exp() * scale)[:, None, None]


def _is_plain(module: nn.Module) -> bool:
    """A torch.nn.Linear whose call nothing intercepts: no subclass (a parametrization makes one), no bias, no
    hook, no `forward` of the instance's own, a weight that is a tensor of torch's own class.
    """
    if type(module) is not nn.Linear or "forward" in vars(module):
        return False
    bias = cast("Tensor | None", module.bias)
    hooks = [module._forward_pre_hooks, module._forward_hooks, module._backward_hooks]
    hooks.append(module._backward_pre_hooks)
    return bias is None and type(module.weight) in _TORCH_TENSORS and not any(hooks)


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
        return project(x, self._projections(), cos, sin)

    def _packed(
        self, x: Tensor, *, gate: Tensor | None, null: NullKV | None
    ) -> tuple[PackedHeads, PackedNull | None]:
        """The heads of the tokens at positions 0.., of one width, and the null token laid out as they are."""
        cos, sin = self.rope.span(0, x.shape[1], x)
        if self.projection is None:
            layer = self._projections()
            if layer.plain:
                packed = project_packed(x, layer, cos, sin, gate=gate)
                return packed, None if null is None else pack_null(null, self.shape)
        heads = self.project(x, cos, sin).gated(gate).shared()
        packing = Packing.of(heads.q_sem, heads.q_geo, v=heads.v, dtype=compute_dtype(heads.v))
        packed = packing.heads(*heads)
        return packed, None if null is None else packing.null(null)

    def _projections(self) -> Projections:
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


def packed_width(shape: AttentionShape) -> int:
    """W: the wider of keys and values (scaled_dot_product_attention wants one width), rounded up to even."""
    width = max(shape.sem_head_dim + shape.geo_head_dim, shape.v_head_dim)
    return width + width % 2


def project_packed(
    x: Tensor, layer: Projections, cos: Tensor, sin: Tensor, *, gate: Tensor | None = None
) -> PackedHeads:
    """x [B,T,d_model], cos and sin [T, G or 1, Dg/2], gate [B,H,T,1] -> heads of width W.

    A query or key head is [geometric, i beside i + Dg/2 | semantic | zeros], a value head [v | zeros].
    """
    shape = layer.shape
    n_heads, kv_heads = shape.n_heads, shape.n_kv_heads
    if cos.shape[-2] > 1:
        cos, sin = (torch.cat([t.repeat_interleave(n_heads // kv_heads, -2), t], -2) for t in (cos, sin))
    sizes = n_heads, kv_heads, kv_heads
    q, k, v = rotated_projection(x, _packed_weight(layer), cos, sin, sizes=sizes, width=packed_width(shape))
    if gate is not None:
        q = q * _gate_factor(gate, shape).to(q.dtype)
    if layer.sem_offset is not None:
        k = k - _packed_offset(layer.sem_offset, shape).to(k.dtype)
    return PackedHeads(q=q, k=k, v=v)


def pack_null(null: NullKV, shape: AttentionShape) -> PackedNull:
    """The null key and value as `project_packed` orders channels."""
    width = packed_width(shape)
    geo = torch.unflatten(null.k_geo, -1, (2, -1)).transpose(-1, -2).flatten(-2)  # [G, Dg]
    return PackedNull(side_by_side(geo, null.k_sem, width=width), side_by_side(null.v, width=width))


def _packed_weight(layer: Projections) -> Tensor:
    """[(H+2G)*W, d_model]: the weights of all heads, scaled, in the packed layout."""
    shape = layer.shape
    heads, width = shape.n_heads + shape.n_kv_heads, packed_width(shape)
    q_geo = _weight(layer.q_geo)
    k_geo = q_geo if layer.k_geo is None else _weight(layer.k_geo)
    geo = torch.cat([_scaled(q_geo, layer, shape.geo_head_dim), k_geo])
    pairs = geo.view(heads, 2, shape.geo_head_dim // 2, -1).transpose(1, 2)
    rows = [pairs.flatten(1, 2)]  # [H+G, Dg, d_model]
    if layer.q_sem is not None:
        q_sem = _weight(layer.q_sem)
        k_sem = q_sem if layer.k_sem is None else _weight(layer.k_sem)
        k_sem = _share_rows(k_sem, shape.sem_head_dim, shape.n_kv_heads)
        sem = torch.cat([_scaled(q_sem, layer, shape.sem_head_dim), k_sem])
        rows.append(sem.view(heads, shape.sem_head_dim, -1))
    keys = _pad_rows(torch.cat(rows, dim=1), width)  # [H+G, W, d_model]
    values = _share_rows(_weight(layer.v), shape.v_head_dim, shape.n_kv_heads)
    values = _pad_rows(values.view(shape.n_kv_heads, shape.v_head_dim, -1), width)  # [G, W, d_model]
    return torch.cat([keys, values]).flatten(0, 1)


def _weight(module: nn.Module) -> Tensor:
    """The matrix of a projection that is plain."""
    return cast("nn.Linear", module).weight


def _share_rows(weight: Tensor, width: int, n_heads: int) -> Tensor:
    """[M*width, d_model] -> [n_heads*width, d_model]; the weight itself for M = n_heads."""
    return share_heads(weight.view(1, -1, width, weight.shape[-1]), n_heads).flatten(0, 2)


def _packed_offset(offset: Tensor, shape: AttentionShape) -> Tensor:
    """[Gs, Ds] -> [G, W], zero but for the semantic channels."""
    shared = share_heads(offset[None, :, None], shape.n_kv_heads)[0, :, 0]  # [G, Ds]
    after = packed_width(shape) - shape.geo_head_dim - shape.sem_head_dim
    return F.pad(shared, (shape.geo_head_dim, after))


def _scaled(weight: Tensor, layer: Projections, width: int) -> Tensor:
    """A query weight [H*D,d_model] times the scale of its queries."""
    scale = layer.query_scale(width)
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


def rotated_projection(
    x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, *, sizes: tuple[int, int, int], width: int
) -> _ThreeHeads:
    """x [B,T,d_model], weight [N*W,d_model] -> q [B,T,H,W], k [B,T,G,W], v [B,T,G,W].

    sizes: (H, G, G), N their sum; width: W, even. The first Dg channels of every query and key head are
    rotated by cos and sin [T, H+G or 1, Dg/2].
    """
    plain = torch.compiler.is_compiling() or autocast_enabled(x.device)
    if plain or x.dtype not in _COMPLEX_PARTS:
        return _out_of_place(F.linear(x, weight), cos, sin, sizes, width)
    apply = cast("Callable[..., _ThreeHeads]", _RotatedProjection.apply)
    return apply(x, weight, cos, sin, sizes, width)


class _RotatedProjection(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        cos: Tensor,
        sin: Tensor,
        sizes: tuple[int, int, int],
        width: int,
    ) -> _ThreeHeads:
        ctx.save_for_backward(x, weight, cos, sin)
        ctx.sizes, ctx.width = sizes, width
        heads = torch.unflatten(F.linear(x, weight), -1, (-1, width))  # [B, T, N, W]
        _turn(heads, torch.complex(cos, sin), sizes)
        q, k, v = torch.split(heads, list(sizes), dim=2)
        return q, k, v

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        x, weight, cos, sin = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted
            turned = _out_of_place(torch.cat(grads, dim=2).flatten(2), cos, -sin, ctx.sizes, ctx.width)
            grad = torch.cat(turned, dim=2)
        else:
            grad = torch.cat(grads, dim=2)  # [B, T, N, W]
            _turn(grad, torch.complex(cos, -sin), ctx.sizes)
        rows = grad.flatten(2).flatten(0, 1)  # [B*T, N*W]
        x_grad = (rows @ weight).view_as(x) if ctx.needs_input_grad[0] else None
        weight_grad = rows.mT @ x.flatten(0, 1) if ctx.needs_input_grad[1] else None
        return x_grad, weight_grad, None, None, None, None


def _turn(heads: Tensor, angle: Tensor, sizes: tuple[int, int, int]) -> None:
    """Multiply the rotated channels of heads [B,T,N,W] by angle [T, H+G or 1, Dg/2], in place."""
    pairs = torch.view_as_complex(torch.unflatten(heads, -1, (-1, 2)))  # [B, T, N, W/2]
    pairs[:, :, : sizes[0] + sizes[1], : angle.shape[-1]].mul_(angle)


def _out_of_place(
    y: Tensor, cos: Tensor, sin: Tensor, sizes: tuple[int, int, int], width: int
) -> _ThreeHeads:
    """The same on y [B,T,N*W] in real arithmetic: for compiled code, half precision, second derivatives."""
    turned, v = torch.split(torch.unflatten(y, -1, (-1, width)), [sizes[0] + sizes[1], sizes[2]], dim=2)
    rotary = 2 * cos.shape[-1]
    even, odd = torch.unflatten(turned[..., :rotary], -1, (-1, 2)).unbind(-1)  # [B, T, H+G, Dg/2]
    pairs = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)
    turned = torch.cat([pairs.to(y.dtype), turned[..., rotary:]], dim=-1)
    q, k = torch.split(turned, list(sizes[:2]), dim=2)
    return q, k, v
