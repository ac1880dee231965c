"""Inputs of the decode contract: caches of every format and length, queries, null tokens. THE parity grid.

Channel 0 of every geometric query is 1 and that of the null key log(number of tokens), so that the null token
gets about half of the mass at any length: leaving it out, or counting it twice, cannot hide among tokens.
"""

from __future__ import annotations

import itertools
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
from dba_core.testing.subject import DTYPES, Subject, shape_of, torch_dtype

#: Unwritten memory behind the tokens of every row, and tokens that `truncate` could take back.
SPARE, ROLLBACK = 3, 2


PLAIN = shape_of(4, 4, 16, 16, 16)
GROUPED = shape_of(4, 2, 16, 32, 32)
ODD = shape_of(4, 2, 3, 6, 5)
NO_SEMANTIC = shape_of(3, 1, 0, 8, 7)
SHARED_LATENT = shape_of(8, 4, 5, 2, 1, sem_heads=1, v_heads=2)
WIDE = shape_of(8, 1, 32, 64, 128)
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
    """One question to a backend. hint: where to look when the answer is wrong."""

    shape: AttentionShape
    policy: str
    lengths: tuple[int, ...]
    null: bool = False
    dtype: str = "float32"
    hint: str = ""

    @property
    def widths(self) -> tuple[int, int, int]:
        """Of one head of k_sem, k_geo and v."""
        return self.shape.sem_head_dim, self.shape.geo_head_dim, self.shape.v_head_dim

    def __str__(self) -> str:
        heads, widths = ("/".join(map(str, three)) for three in (self.shape.cached_heads, self.widths))
        null = ", null token" if self.null else ""
        return (
            f"H{self.shape.n_heads} heads {heads} widths {widths}, {self.policy}, "
            f"lengths {list(self.lengths)}, {self.dtype}{null}"
        )

    def request(self, *, device: str, needs_lse: bool) -> DecodeRequest:
        """What a backend is asked to support."""
        policy = KVCachePolicy.parse(self.policy)
        k_sem, k_geo, v = (
            CachedTensor(n_heads=heads, head_dim=width, format=how.format, qblock=how.qblock)
            for heads, width, how in zip(
                self.shape.cached_heads, self.widths, (policy.k_sem, policy.k_geo, policy.v), strict=True
            )
        )
        cuda = torch.device(device).type == "cuda"
        return DecodeRequest(
            shape=self.shape,
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
        batch, total, heads = len(self.lengths), max(self.lengths), self.shape.n_heads
        sizes = list(zip(self.shape.cached_heads, self.widths, strict=True))
        k_sem, k_geo, v = sizes
        cache = LayerCache(
            registry=Registry.default(),
            k_sem=k_sem,
            k_geo=k_geo,
            v=v,
            batch=batch,
            capacity=total + SPARE,
            policy=KVCachePolicy.parse(self.policy),
            device=subject.device,
            rollback=ROLLBACK,
        )
        if poison:
            for plane in planes(cache).values():
                plane.fill_(torch.nan if plane.is_floating_point() else 119)
        tokens = [
            subject.random(batch, n, total, width, seed=seed, dtype="float32")
            for seed, (n, width) in enumerate(sizes)
        ]
        if values is not None:
            tokens[2] = values
        cache.append(*tokens, counts=self.lengths)
        q_sem, q_geo = (
            subject.random(batch, heads, width, seed=seed) / max(1.0, width**0.5)
            for seed, width in ((3, self.widths[0]), (4, self.widths[1]))
        )
        q_geo[..., 0] = 1.0
        dtype = torch_dtype(self.dtype)
        return Filled(
            cache=cache,
            tokens=tokens,
            q_sem=q_sem.to(dtype),
            q_geo=q_geo.to(dtype),
            null=self._null(subject, dtype) if self.null else None,
        )

    def _null(self, subject: Subject, dtype: torch.dtype) -> NullKV:
        k_sem, k_geo, v = (
            subject.random(self.shape.n_kv_heads, width, seed=5 + number)
            for number, width in enumerate(self.widths)
        )
        k_geo[:, 0] = math.log(max(2, max(self.lengths)))
        return NullKV(k_sem=k_sem.to(dtype), k_geo=k_geo.to(dtype), v=(2.0 + v).to(dtype))


@attrs.frozen(kw_only=True, eq=False)
class Filled:
    """A cache; its tokens as they went in, k_sem [B,G,S,Ds], k_geo, v; scaled queries [B,H,*]; null token."""

    cache: LayerCache
    tokens: list[Tensor]
    q_sem: Tensor
    q_geo: Tensor
    null: NullKV | None

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a backend is given."""
        named = {"q_sem": self.q_sem, "q_geo": self.q_geo, **planes(self.cache)}
        if self.null is not None:
            named |= {"null.k_sem": self.null.k_sem, "null.k_geo": self.null.k_geo, "null.v": self.null.v}
        return named


def planes(cache: LayerCache) -> dict[str, Tensor]:
    """The tensors that a cache holds, the lengths left out."""
    found = {
        f"{name}.{plane}": getattr(store, plane)
        for name, store in (("k_sem", cache.k_sem), ("k_geo", cache.k_geo), ("v", cache.v))
        for plane in ("codes", "scales", "recent_ring")
    }
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def own_formats() -> dict[str, FormatFacts]:
    """The cache formats that come with the library; what is wrong with another is no backend's fault."""
    own = {i.name for i in Registry.default().list("kv_format") if is_ours(i.distribution)}
    return {name: facts for name, facts in installed_formats().items() if name in own}


def parity_grid(subject: Subject) -> Iterator[DecodeCase]:
    """Sizes x policies x lengths x null token in float32, the first two sizes in every other dtype."""
    quick = subject.quick
    shapes, policies = (QUICK_SIZES, QUICK_POLICIES) if quick else (FULL_SIZES, FULL_POLICIES)
    all_lengths = QUICK_LENGTHS if quick else FULL_LENGTHS
    for shape, policy, lengths, null in itertools.product(shapes, policies, all_lengths, (False, True)):
        for dtype in DTYPES if shape in FULL_SIZES[:2] else DTYPES[:1]:
            yield DecodeCase(shape=shape, policy=policy, lengths=lengths, null=null, dtype=dtype)
