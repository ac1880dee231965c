"""Which KV policy: every tensor's formats measured one at a time, their costs added, the best sums measured.

    predicted(ksem=A, kgeo=B, v=C) = kl(A, rest exact) + kl(B, rest exact) + kl(C, rest exact)

each under the same residual window. Quantization noises of different tensors are independent and small, so
their divergences add to first order; the order of the sums is what the search needs, and what it chooses is
measured as a whole. Bytes are those of a whole cache at the context that a budget is for, its residual window
included (cache.bytes): a window costs little of a long context and much of a short one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import attrs

from dba_core.cache.bytes import bytes_per_token, cache_bytes
from dba_core.config.kv_policy import KVCachePolicy, TensorFormat, installed_formats
from dba_core.contracts import AttentionShape
from dba_plugins.tune.distance import Divergence
from dba_plugins.tune.search import Candidate, Goal, SearchResult, search

TENSORS = ("k_sem", "k_geo", "v")
#: The window that is tried beside none and a run's own.
WINDOW = 32
Measure = Callable[[KVCachePolicy], Divergence]


def formats_to_try() -> tuple[TensorFormat, ...]:
    """The formats and block lengths that the installed formats want to be tried in."""
    return tuple(
        TensorFormat(name, qblock) for name, facts in installed_formats().items() for qblock in facts.tried
    )


@attrs.frozen(kw_only=True)
class Sizes:
    """What caches of layers of one shape take. context: tokens of the sequence that a budget is for."""

    shape: AttentionShape
    n_layers: int
    context: int

    def of(self, policy: KVCachePolicy) -> int:
        """Bytes of the cache of such a sequence, as `new_cache` makes one, all layers."""
        return cache_bytes(self.shape, self.n_layers, policy, self.context)

    def per_token(self, policy: KVCachePolicy) -> float:
        """The same shared out over its tokens."""
        return self.of(policy) / self.context

    def windows(self, wanted: Iterable[int], goal: Goal) -> tuple[int, ...]:
        """Those of the windows that are worth measuring: with the others even the smallest formats take more
        than the goal allows, or than fp16, which loses nothing.
        """
        tried, wide = formats_to_try(), KVCachePolicy()
        small = [min(tried, key=lambda fmt: _bytes_of(self.shape, tensor, fmt)) for tensor in TENSORS]
        found = []
        for window in sorted(set(wanted)):
            least = self.per_token(KVCachePolicy(k_sem=small[0], k_geo=small[1], v=small[2], residual=window))
            if window == 0 or (goal.fits(least) and least < self.per_token(wide)):
                found.append(window)
        return tuple(found)


@attrs.frozen(kw_only=True)
class Single:
    """One tensor in one format, the others in fp16, under a residual window. bytes_per_token: of the tensor,
    without a window. kl: nats per token; fp16 counts as 0.
    """

    tensor: str
    format: TensorFormat
    residual: int
    bytes_per_token: int
    kl: float


@attrs.frozen(kw_only=True)
class PolicySearch:
    """sizes: what a policy takes where the budget holds. windows: that were measured, in tokens. singles:
    what the prediction is made of.
    """

    goal: Goal
    sizes: Sizes
    windows: tuple[int, ...]
    singles: tuple[Single, ...]
    result: SearchResult[KVCachePolicy]

    @property
    def chosen(self) -> KVCachePolicy | None:
        return None if self.result.chosen is None else self.result.chosen.candidate.key


def policies_to_measure(
    shape: AttentionShape, n_layers: int, formats: Sequence[TensorFormat] | None = None
) -> list[tuple[str, TensorFormat, int]]:
    """Tensor, format and its bytes per token in all layers, for every format that is not as large as another
    with shorter blocks; a tensor that is not there is left out.
    """
    found = []
    for tensor in TENSORS:
        if tensor == "k_sem" and not shape.sem_head_dim:
            continue
        seen: set[tuple[str, int]] = set()
        for fmt in sorted(formats_to_try() if formats is None else formats, key=lambda each: each.qblock):
            size = n_layers * _bytes_of(shape, tensor, fmt)
            if (fmt.format, size) not in seen:
                seen.add((fmt.format, size))
                found.append((tensor, fmt, size))
    return found


def measure_singles(
    shape: AttentionShape,
    n_layers: int,
    measure: Measure,
    *,
    windows: Sequence[int] = (0,),
    formats: Sequence[TensorFormat] | None = None,
) -> tuple[Single, ...]:
    """Measure every tensor in every format, alone, under every window. fp16 is not measured."""
    return tuple(
        Single(
            tensor=tensor,
            format=fmt,
            residual=residual,
            bytes_per_token=size,
            kl=0.0 if fmt.format == "fp16" else measure(_alone(tensor, fmt, residual)).kl,
        )
        for residual in windows
        for tensor, fmt, size in policies_to_measure(shape, n_layers, formats)
    )


def combinations(singles: Iterable[Single], sizes: Sizes) -> Iterator[Candidate[KVCachePolicy]]:
    """fp16, and every other choice of one format per tensor under one window, with its size and the sum of
    the costs.
    """
    wide = KVCachePolicy()
    yield Candidate(key=wide, bytes_per_token=sizes.per_token(wide), predicted=0.0)
    by_window: dict[int, dict[str, list[Single]]] = {}
    for single in singles:
        by_window.setdefault(single.residual, {}).setdefault(single.tensor, []).append(single)
    for residual, by_tensor in by_window.items():
        for parts in itertools.product(*by_tensor.values()):
            if not any(part.format.qblock for part in parts):
                continue
            policy = attrs.evolve(wide, **{part.tensor: part.format for part in parts}, residual=residual)
            yield Candidate(
                key=policy,
                bytes_per_token=sizes.per_token(policy),
                predicted=sum(part.kl for part in parts),
            )


def search_policy(
    sizes: Sizes,
    goal: Goal,
    measure: Measure,
    *,
    windows: Iterable[int] = (0,),
    known: Mapping[KVCachePolicy, Divergence] | None = None,
) -> PolicySearch:
    """The policy that meets `goal`; `measure` compares one with exact attention. windows: to try. known:
    policies that were measured already; they take part.
    """
    tried = sizes.windows(windows, goal)
    singles = measure_singles(sizes.shape, sizes.n_layers, measure, windows=tried)
    result = search(
        combinations(singles, sizes),
        goal,
        lambda candidate: measure(candidate.key),
        known=[
            (Candidate(key=policy, bytes_per_token=sizes.per_token(policy), predicted=math.nan), measured)
            for policy, measured in (known or {}).items()
        ],
    )
    return PolicySearch(goal=goal, sizes=sizes, windows=tried, singles=singles, result=result)


def _alone(tensor: str, fmt: TensorFormat, residual: int) -> KVCachePolicy:
    return attrs.evolve(KVCachePolicy(), **{tensor: fmt}, residual=residual)


def _bytes_of(shape: AttentionShape, tensor: str, fmt: TensorFormat) -> int:
    """Of one token in one layer."""
    with_it = bytes_per_token(shape, _alone(tensor, fmt, 0))
    rest = bytes_per_token(shape, KVCachePolicy()) - 2 * _channels(shape, tensor)
    return with_it - rest


def _channels(shape: AttentionShape, tensor: str) -> int:
    sem, geo, v = shape.cached_heads
    return {"k_sem": sem * shape.sem_head_dim, "k_geo": geo * shape.geo_head_dim, "v": v * shape.v_head_dim}[
        tensor
    ]
