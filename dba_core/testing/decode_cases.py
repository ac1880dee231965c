"""Inputs of the decode contract: caches of every format and length, queries, null tokens. THE parity grid.

Channel 0 of every geometric query is 1 and that of the null key log(number of tokens), so that the null token
gets about half of the mass at any length: leaving it out, or counting it twice, cannot hide among tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import attrs
import torch
from torch import Tensor

from dba_core.cache.layer import LayerCache
from dba_core.config.kv_policy import KVCachePolicy, installed_formats
from dba_core.contracts import AttentionShape, CachedTensor, DecodeRequest, FormatFacts, NullKV
from dba_core.distribution import is_ours
from dba_core.registry import Registry
from dba_core.testing.subject import Subject, torch_dtype

#: Unwritten memory behind the tokens of every row, and tokens that `truncate` could take back.
SPARE, ROLLBACK = 3, 2


@attrs.frozen(kw_only=True)
class Sizes:
    """Query heads, heads of k_sem, k_geo (and the null token) and v, widths of one head."""

    heads: int
    sem_heads: int
    kv_heads: int
    v_heads: int
    sem: int
    geo: int
    v: int

    @property
    def shape(self) -> AttentionShape:
        return AttentionShape(
            d_model=8,
            n_heads=self.heads,
            n_kv_heads=self.kv_heads,
            sem_head_dim=self.sem,
            geo_head_dim=self.geo,
            v_head_dim=self.v,
            sem_kv_heads=self.sem_heads,
            v_kv_heads=self.v_heads,
        )


def sizes(heads: int, kv_heads: int, sem: int, geo: int, v: int) -> Sizes:
    """One number of KV heads for all three tensors."""
    return Sizes(heads=heads, sem_heads=kv_heads, kv_heads=kv_heads, v_heads=kv_heads, sem=sem, geo=geo, v=v)


PLAIN = sizes(4, 4, 16, 16, 16)
GROUPED = sizes(4, 2, 16, 32, 32)
ODD = sizes(4, 2, 3, 6, 5)
NO_SEMANTIC = sizes(3, 1, 0, 8, 7)
SHARED_LATENT = Sizes(heads=8, sem_heads=1, kv_heads=4, v_heads=2, sem=5, geo=2, v=1)
WIDE = sizes(8, 1, 32, 64, 128)
QUICK_SIZES = (PLAIN, GROUPED, ODD)
FULL_SIZES = (*QUICK_SIZES, NO_SEMANTIC, SHARED_LATENT, WIDE)

FLOAT_POLICY = "ksem=fp32,kgeo=fp32,v=fp32"
MIXED_POLICY = "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32"
QUICK_POLICIES = (
    FLOAT_POLICY,
    MIXED_POLICY,
    f"{MIXED_POLICY},resid=5",
    "ksem=nf4@16,kgeo=fp16,v=bf16,resid=3",
)
FULL_POLICIES = (
    *QUICK_POLICIES,
    "ksem=fp16,kgeo=bf16,v=fp16,resid=4",
    "ksem=q8_0@8,kgeo=nf4@16,v=q8_0@32,resid=64",
    "ksem=fp32,kgeo=fp32,v=q4_0@16,resid=7",
    "ksem=q8_0@16,kgeo=q8_0@64,v=bf16,resid=1",
)
QUICK_LENGTHS = ((13, 4), (0, 65))
FULL_LENGTHS = ((13, 13), (13, 4), (1, 63), (0, 65), (129, 128), (257, 700))
#: Longer than the partitions that backends use, and not a multiple of any.
FULL_LONG_LENGTHS = (5003, 2049)
QUICK_LONG_LENGTHS = (1031, 515)


@attrs.frozen(kw_only=True)
class DecodeCase:
    """One question to a backend."""

    sizes: Sizes
    policy: str
    lengths: tuple[int, ...]
    null: bool = False
    dtype: str = "float32"

    def __str__(self) -> str:
        s = self.sizes
        null = ", null token" if self.null else ""
        return (
            f"H{s.heads} heads {s.sem_heads}/{s.kv_heads}/{s.v_heads} widths {s.sem}/{s.geo}/{s.v}, "
            f"{self.policy}, lengths {list(self.lengths)}, {self.dtype}{null}"
        )

    def request(self, *, device: str, needs_lse: bool) -> DecodeRequest:
        """What a backend is asked to support."""
        s, policy = self.sizes, KVCachePolicy.parse(self.policy)
        k_sem, k_geo, v = (
            CachedTensor(n_heads=heads, head_dim=width, format=how.format, qblock=how.qblock)
            for heads, width, how in (
                (s.sem_heads, s.sem, policy.k_sem),
                (s.kv_heads, s.geo, policy.k_geo),
                (s.v_heads, s.v, policy.v),
            )
        )
        cuda = torch.device(device).type == "cuda"
        return DecodeRequest(
            shape=s.shape,
            k_sem=k_sem,
            k_geo=k_geo,
            v=v,
            residual_len=policy.residual,
            batch=len(self.lengths),
            capacity=max(self.lengths) + SPARE,
            has_null=self.null,
            needs_lse=needs_lse,
            device=device,
            device_capability=torch.cuda.get_device_capability(device) if cuda else None,
            dtype=self.dtype,
        )

    def filled(self, subject: Subject, *, poison: bool = False, values: Tensor | None = None) -> Filled:
        """The same numbers every time. poison: NaN and wild codes wherever no token is written. values:
        [B,G,S,Dv] float32, in place of the usual ones.
        """
        s, batch, total = self.sizes, len(self.lengths), max(self.lengths)
        cache = self._cache(device=subject.device)
        if poison:
            for plane in planes(cache).values():
                plane.fill_(torch.nan if plane.is_floating_point() else 119)
        k_sem = subject.random(batch, s.sem_heads, total, s.sem, seed=0, dtype="float32")
        k_geo = subject.random(batch, s.kv_heads, total, s.geo, seed=1, dtype="float32")
        v = values
        if v is None:
            v = subject.random(batch, s.v_heads, total, s.v, seed=2, dtype="float32")
        cache.append(k_sem, k_geo, v, counts=self.lengths)
        q_sem = subject.random(batch, s.heads, s.sem, seed=3) / max(1.0, s.sem**0.5)
        q_geo = subject.random(batch, s.heads, s.geo, seed=4) / max(1.0, s.geo**0.5)
        q_geo[..., 0] = 1.0
        dtype = torch_dtype(self.dtype)
        return Filled(
            cache=cache,
            tokens=(k_sem, k_geo, v),
            q_sem=q_sem.to(dtype),
            q_geo=q_geo.to(dtype),
            null=self._null(subject, dtype) if self.null else None,
        )

    def _cache(self, *, device: str) -> LayerCache:
        s = self.sizes
        return LayerCache(
            k_sem=(s.sem_heads, s.sem),
            k_geo=(s.kv_heads, s.geo),
            v=(s.v_heads, s.v),
            batch=len(self.lengths),
            capacity=max(self.lengths) + SPARE,
            policy=KVCachePolicy.parse(self.policy),
            device=device,
            rollback=ROLLBACK,
        )

    def _null(self, subject: Subject, dtype: torch.dtype) -> NullKV:
        s = self.sizes
        k_geo = subject.random(s.kv_heads, s.geo, seed=6)
        k_geo[:, 0] = math.log(max(2, max(self.lengths)))
        return NullKV(
            k_sem=subject.random(s.kv_heads, s.sem, seed=5).to(dtype),
            k_geo=k_geo.to(dtype),
            v=(2.0 + subject.random(s.kv_heads, s.v, seed=7)).to(dtype),
        )


@attrs.frozen(kw_only=True, eq=False)
class Filled:
    """A cache; its tokens as they went in, k_sem [B,G,S,Ds], k_geo, v; scaled queries [B,H,*]; null token."""

    cache: LayerCache
    tokens: tuple[Tensor, ...]
    q_sem: Tensor
    q_geo: Tensor
    null: NullKV | None

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a backend is given."""
        named = {"q_sem": self.q_sem, "q_geo": self.q_geo, **planes(self.cache)}
        if self.null is not None:
            named |= {"null.k_sem": self.null.k_sem, "null.k_geo": self.null.k_geo, "null.v": self.null.v}
        return named


def own_formats() -> dict[str, FormatFacts]:
    """The cache formats that come with the library; what is wrong with another is no backend's fault."""
    own = {i.name for i in Registry.default().list("kv_format") if is_ours(i.distribution)}
    return {name: facts for name, facts in installed_formats().items() if name in own}


def planes(cache: LayerCache) -> dict[str, Tensor]:
    """The tensors that a cache holds, the lengths left out."""
    named = {}
    for name, store in (("k_sem", cache.k_sem), ("k_geo", cache.k_geo), ("v", cache.v)):
        for plane, tensor in (
            ("codes", store.codes),
            ("scales", store.scales),
            ("recent_ring", store.recent_ring),
        ):
            if tensor is not None:
                named[f"{name}.{plane}"] = tensor
    return named


def parity_grid(subject: Subject) -> Iterator[DecodeCase]:
    """Sizes x policies x lengths x null token in float32, one size of it in every other dtype."""
    quick = subject.quick
    all_sizes, policies = (QUICK_SIZES, QUICK_POLICIES) if quick else (FULL_SIZES, FULL_POLICIES)
    for number, each in enumerate(all_sizes):
        for policy in policies:
            for lengths in QUICK_LENGTHS if quick else FULL_LENGTHS:
                for null in (False, True):
                    case = DecodeCase(sizes=each, policy=policy, lengths=lengths, null=null)
                    for dtype in subject.dtypes if number < 2 else subject.dtypes[:1]:
                        yield attrs.evolve(case, dtype=dtype)
