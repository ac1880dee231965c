"""Modules whose weight is packed by a weight format: what a model is built of while it is only run."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dba_core.attention.projections import PROJECTIONS, HeadProjections, Heads, heads_of
from dba_core.attention.rope import rotated
from dba_core.contracts import Pack, PackedWeight
from dba_core.errors import UnsupportedError


class Packed(nn.Module):
    """packed: what is multiplied with. like: no values, the dtype and device of what comes out."""

    like: Tensor

    def __init__(self, packed: PackedWeight, like: Tensor) -> None:
        super().__init__()
        self.packed = packed
        self.register_buffer("like", like.detach().new_empty(0), persistent=False)

    def product(self, x: Tensor) -> Tensor:
        """x [...,K] -> [...,N]. Raises UnsupportedError where a gradient is wanted, and on another device."""
        if x.requires_grad and torch.is_grad_enabled():
            raise UnsupportedError(
                "packed weights are not trained: they have no gradient; run the model under torch.no_grad(), "
                "or train the one whose weights are not packed"
            )
        if x.device != self.packed.device:
            raise UnsupportedError(
                f"the weights were packed on {self.packed.device} and x is on {x.device}; move the model to "
                "its device first, then pack its weights"
            )
        return self.packed.product(x)


class PackedLinear(Packed):
    """x [...,K] -> [...,N], a product with a packed weight, and the bias."""

    bias: Tensor | None

    def __init__(self, pack: Pack, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(pack(weight.detach()), weight)
        self.register_buffer("bias", None if bias is None else bias.detach())

    @classmethod
    def of(cls, pack: Pack, *modules: nn.Module) -> PackedLinear | None:
        """One module for several of the same input, whose outputs lie one after the other; None where one is
        no plain torch.nn.Linear.
        """
        plain = [each for each in modules if type(each) is nn.Linear]
        if len(plain) != len(modules):
            return None
        biases: list[Tensor] = [each.bias for each in plain if each.bias is not None]
        weight = torch.cat([each.weight.detach() for each in plain]) if len(plain) > 1 else plain[0].weight
        return cls(pack, weight, torch.cat(biases) if biases else None)

    def forward(self, x: Tensor) -> Tensor:
        """[...,K] -> [...,N]."""
        y = self.product(x)
        return y if self.bias is None else y + self.bias


def pack_child(module: nn.Module, name: str, pack: Pack) -> list[str]:
    """Pack the weight of the child `name`, if there is one; gives its name if it stays as it is."""
    child = module._modules.get(name)
    if child is None or isinstance(child, Packed):
        return []
    packed = PackedLinear.of(pack, child)
    if packed is None:
        return [name]
    setattr(module, name, packed)
    return []


class PackedProjection(nn.Module):
    """All projections of a layer as one packed weight, in their place; see `projections.Projection`."""

    def __init__(self, pack: Pack, layer: HeadProjections) -> None:
        """layer: with projections that are plain, as they are."""
        super().__init__()
        with torch.no_grad():
            weight, bias = layer.rows(doubled=False)
        self.packed = PackedLinear(pack, weight, bias)
        self.shape, self.rope = layer.shape, layer.rope

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Heads:
        """x [B,T,d_model], cos and sin [(B,) T, G or 1, Dg/2] -> Heads."""
        shape, (sem_heads, kv_heads, v_heads) = self.shape, self.shape.cached_heads
        n_heads, sem, geo = shape.n_heads, shape.sem_head_dim, shape.geo_head_dim
        both = n_heads + kv_heads
        sizes = (both * geo, n_heads * sem, sem_heads * sem, v_heads * shape.v_head_dim)
        turning, q_sem, k_sem, v = self.packed(x).split_with_sizes(sizes, dim=-1)
        if cos.shape[-2] > 1:
            cos, sin = (torch.cat([t.repeat_interleave(n_heads // kv_heads, -2), t], -2) for t in (cos, sin))
        turned = rotated(heads_of(turning, both), cos, sin)  # [B, H+G, T, Dg]
        q_geo, k_geo = turned.split_with_sizes((n_heads, kv_heads), dim=1)
        return Heads(heads_of(q_sem, n_heads), q_geo, heads_of(k_sem, sem_heads), k_geo, heads_of(v, v_heads))


def pack_projections(layer: HeadProjections, pack: Pack) -> list[str]:
    """Pack the projections as one weight, for inference alone. Gives the names of those that stay as they
    are, because more happens in them than a product.
    """
    if isinstance(layer.projection, PackedProjection):
        return []
    if layer.projection is not None:
        return ["projection"]
    if layer.plain_weights() is None:
        return [name for name in PROJECTIONS if layer._modules.get(name) is not None]
    layer.projection = PackedProjection(pack, layer)
    for name in PROJECTIONS:
        setattr(layer, name, None)
    return []


class PackedEmbedding(Packed):
    """tokens [...] -> [...,K]; `product` is the tied output head."""

    def __init__(self, pack: Pack, weight: Tensor) -> None:
        super().__init__(pack(weight.detach()), weight)
        self.num_embeddings = len(weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """[...] -> [...,K]."""
        return self.packed.rows(tokens).to(self.like.dtype)
