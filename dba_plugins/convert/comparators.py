"""What a conversion is compared with at the same number of bytes, or near: the source under KV policies.

    K q8, V q4         the source, its keys in the policy's geometric format
    all q4             the source, its keys in the policy's value format
    split, RoPE kept   the converted model's channels and formats, but every pair still rotated

The last one says what the lost rotation costs, apart from the formats. Called by `dba_plugins.convert.job`.
"""

from __future__ import annotations

import attrs
from torch import Tensor

from dba_core.attention.decode import DecodeBackends
from dba_core.attention.module import DecoupledAttention
from dba_core.attention.projections import Heads, ProjectionWeights
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.contracts import AttentionShape
from dba_core.model.language_model import LanguageModel
from dba_plugins.convert.decouple import channels_of
from dba_plugins.convert.share import with_attentions


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


class _RotatedSplit(DecoupledAttention):
    """A source layer whose rotated keys go into the cache as two tensors: `pairs` [G,n] as k_sem, the rest as
    k_geo. It shares the source's weights and serves cached passes only.
    """

    _source_shape: AttentionShape
    _semantic: Tensor
    _rotated: Tensor

    @classmethod
    def of(cls, source: DecoupledAttention, pairs: Tensor) -> _RotatedSplit:
        made = cls.__new__(cls)
        made.__dict__.update(source.__dict__)
        made._source_shape = source.shape
        made._semantic, made._rotated, _ = channels_of(pairs, source.shape.geo_head_dim)
        made.shape = attrs.evolve(
            source.shape,
            sem_head_dim=made._semantic.shape[1],
            geo_head_dim=made._rotated.shape[1],
        )
        made._backends = DecodeBackends(given="streaming", shape=made.shape, has_null=False, registry=None)
        return made

    def _weights(self) -> ProjectionWeights:
        return super()._weights()._replace(shape=self._source_shape)

    def _heads(self, x: Tensor, cos: Tensor, sin: Tensor) -> Heads:
        heads = super()._heads(x, cos, sin)
        share = heads.q_geo.shape[1] // heads.k_geo.shape[1]
        parts = self._semantic, self._rotated
        q_sem, q_geo = (_gathered(heads.q_geo, part.repeat_interleave(share, dim=0)) for part in parts)
        k_sem, k_geo = (_gathered(heads.k_geo, part) for part in parts)
        return Heads(q_sem=q_sem, q_geo=q_geo, k_sem=k_sem, k_geo=k_geo, v=heads.v)


def _gathered(x: Tensor, channels: Tensor) -> Tensor:
    """x [B,N,T,D], channels [N,n] -> [B,N,T,n]."""
    index = channels.to(x.device)[None, :, None].expand(len(x), -1, x.shape[2], -1)
    return x.gather(-1, index)


def with_rotated_split(source: LanguageModel, chosen: Tensor) -> LanguageModel:
    """The source model, sharing its weights, with its keys cached in two parts."""
    split = [_RotatedSplit.of(layer, pairs) for layer, pairs in zip(source.attentions, chosen, strict=True)]
    return with_attentions(source, split, config=source.config)
