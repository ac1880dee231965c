"""What a conversion is compared with at the same number of bytes, or near: the source under KV policies.

    K q8, V q4         the source, its keys in the policy's geometric format
    all q4             the source, its keys in the policy's value format
    split, RoPE kept   the converted model's channels and formats, but every pair still rotated

The last one says what the lost rotation costs, apart from the formats.
"""

from __future__ import annotations

import attrs
from torch import Tensor

from dba_core.attention.module import DecoupledAttention
from dba_core.attention.projections import Heads
from dba_core.attention.rope import RopeTable
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.model.language_model import LanguageModel
from dba_plugins.convert.decouple import channels_of, with_attentions


@attrs.frozen(kw_only=True, eq=False)
class Variant:
    """A model under a policy. key: stable, for JSON; name: for people."""

    key: str
    name: str
    model: LanguageModel
    policy: KVCachePolicy


def variants(
    source: LanguageModel,
    converted: LanguageModel,
    chosen: Tensor,
    *,
    policy: KVCachePolicy,
    comparators: bool,
) -> list[Variant]:
    """The reference first: the source with an fp16 cache."""
    wide = KVCachePolicy.uniform("fp16")
    found = [
        Variant(key="original", name="original, fp16 cache", model=source, policy=wide),
        Variant(key="converted", name="converted, fp16 cache", model=converted, policy=wide),
        Variant(key="converted_policy", name="converted, its policy", model=converted, policy=policy),
    ]
    if not comparators:
        return found
    keys, values = policy.k_geo, policy.v
    short = f"K {keys.format.partition('_')[0]}, V {values.format.partition('_')[0]}"
    return [
        *found,
        Variant(
            key="split_rotated",
            name="same split, RoPE kept",
            model=with_rotated_split(source, chosen),
            policy=policy,
        ),
        Variant(key="original_policy", name=f"original, {short}", model=source, policy=policy),
        Variant(
            key="original_all_v",
            name=f"original, all {values.format.partition('_')[0]}",
            model=source,
            policy=attrs.evolve(policy, k_sem=values, k_geo=values),
        ),
    ]


def as_it_is(model: LanguageModel, policy: KVCachePolicy) -> list[Variant]:
    """A model that is not converted, with an fp16 cache and under its policy."""
    return [
        Variant(key="original", name="fp16 cache", model=model, policy=KVCachePolicy.uniform("fp16")),
        Variant(key="original_policy", name="its policy", model=model, policy=policy),
    ]


class RotatedSplit:
    """A source layer's heads with rotated keys in two tensors: `pairs` [G,n] as k_sem, the rest as k_geo."""

    def __init__(self, source: DecoupledAttention, pairs: Tensor) -> None:
        self._source = source
        self.semantic, self.rotated, _ = channels_of(pairs, source.shape.geo_head_dim)  # [G,n], [G,rest]

    @property
    def rope(self) -> RopeTable:
        """The source's: it rotates before the channels are split."""
        return self._source.rope

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor) -> Heads:
        """As `Projection`."""
        heads = self._source.project(x, cos, sin)
        share = heads.q_geo.shape[1] // heads.k_geo.shape[1]
        parts = self.semantic, self.rotated
        q_sem, q_geo = (_gathered(heads.q_geo, part.repeat_interleave(share, dim=0)) for part in parts)
        k_sem, k_geo = (_gathered(heads.k_geo, part) for part in parts)
        return Heads(q_sem=q_sem, q_geo=q_geo, k_sem=k_sem, k_geo=k_geo, v=heads.v)


def _gathered(x: Tensor, channels: Tensor) -> Tensor:
    """x [B,N,T,D], channels [N,n] -> [B,N,T,n]."""
    index = channels.to(x.device)[None, :, None].expand(len(x), -1, x.shape[2], -1)
    return x.gather(-1, index)


def with_rotated_split(source: LanguageModel, chosen: Tensor) -> LanguageModel:
    """The source model, sharing its weights, with its keys cached in two parts."""
    split = [_split(layer, pairs) for layer, pairs in zip(source.attentions, chosen, strict=True)]
    return with_attentions(source, split, config=source.config)


def _split(source: DecoupledAttention, pairs: Tensor) -> DecoupledAttention:
    projection = RotatedSplit(source, pairs)
    config = attrs.evolve(
        source.config,
        mode="decoupled",
        sem_head_dim=projection.semantic.shape[1],
        geo_head_dim=projection.rotated.shape[1],
        learned_temperature=False,
        tie_qk=False,
    )
    layer = DecoupledAttention(
        config,
        gate="none",
        null_token="none",
        decode_backend="streaming",
        layer=source.layer,
        projection=projection,
    )
    layer.out_proj = source.out_proj
    return layer.train(source.training)
