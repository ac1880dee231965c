"""Which KV policy: every tensor's formats measured one at a time, their costs added, the best sums measured.

    predicted(ksem=A, kgeo=B, v=C) = kl(A, rest exact) + kl(B, rest exact) + kl(C, rest exact)

Quantization noises of different tensors are independent and small, so their divergences add to first order;
the order of the sums is what the search needs, and what it chooses is measured as a whole. A tensor's bytes
follow from its format (cache.bytes). Called by `dba tune` and by `dba convert` with a goal.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import attrs

from dba_core.cache.bytes import bytes_per_token
from dba_core.config.kv_policy import KVCachePolicy, TensorFormat
from dba_core.contracts import AttentionShape
from dba_core.evaluation.reference import Divergence
from dba_core.evaluation.search import Candidate, Goal, SearchResult, search

TENSORS = ("k_sem", "k_geo", "v")
FORMATS = tuple(
    TensorFormat.parse(text)
    for text in ("fp16", "q8_0@32", "q8_0@128", "nf4@32", "q4_0@32", "q4_0@64", "q4_0@128", "q4_0@256")
)
_WIDE = KVCachePolicy(k_sem=TensorFormat("fp16"), k_geo=TensorFormat("fp16"), v=TensorFormat("fp16"))
Measure = Callable[[KVCachePolicy], Divergence]


@attrs.frozen(kw_only=True)
class Single:
    """One tensor in one format, the others in fp16. kl: nats per token; fp16 counts as 0."""

    tensor: str
    format: TensorFormat
    bytes_per_token: int
    kl: float


@attrs.frozen(kw_only=True)
class PolicySearch:
    """singles: what the prediction is made of. residual: of every candidate."""

    goal: Goal
    residual: int
    singles: tuple[Single, ...]
    result: SearchResult[KVCachePolicy]

    @property
    def chosen(self) -> KVCachePolicy | None:
        return None if self.result.chosen is None else self.result.chosen.candidate.key


def policies_to_measure(
    shape: AttentionShape, n_layers: int, formats: Sequence[TensorFormat] = FORMATS
) -> list[tuple[str, TensorFormat, int]]:
    """Tensor, format and its bytes per token in all layers, for every format that is not as large as another
    with shorter blocks; a tensor that is not there is left out.
    """
    found = []
    for tensor in TENSORS:
        if tensor == "k_sem" and not shape.sem_head_dim:
            continue
        seen: set[tuple[str, int]] = set()
        for fmt in sorted(formats, key=lambda each: each.qblock):
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
    residual: int = 0,
    formats: Sequence[TensorFormat] = FORMATS,
) -> tuple[Single, ...]:
    """Measure every tensor in every format, alone. fp16 is not measured."""
    return tuple(
        Single(
            tensor=tensor,
            format=fmt,
            bytes_per_token=size,
            kl=0.0 if fmt.format == "fp16" else measure(_alone(tensor, fmt, residual)).kl,
        )
        for tensor, fmt, size in policies_to_measure(shape, n_layers, formats)
    )


def combinations(singles: Iterable[Single], *, residual: int) -> Iterator[Candidate[KVCachePolicy]]:
    """Every choice of one format per tensor, with the sum of sizes and costs."""
    by_tensor: dict[str, list[Single]] = {}
    for single in singles:
        by_tensor.setdefault(single.tensor, []).append(single)
    for parts in itertools.product(*by_tensor.values()):
        chosen = {part.tensor: part.format for part in parts}
        yield Candidate(
            key=attrs.evolve(_WIDE, **chosen, residual=residual),
            bytes_per_token=sum(part.bytes_per_token for part in parts),
            predicted=sum(part.kl for part in parts),
        )


def search_policy(
    shape: AttentionShape, n_layers: int, goal: Goal, measure: Measure, *, residual: int = 0
) -> PolicySearch:
    """The policy that meets `goal` for layers of this shape; `measure` compares one with exact attention."""
    singles = measure_singles(shape, n_layers, measure, residual=residual)
    result = search(combinations(singles, residual=residual), goal, lambda candidate: measure(candidate.key))
    return PolicySearch(goal=goal, residual=residual, singles=singles, result=result)


def _alone(tensor: str, fmt: TensorFormat, residual: int) -> KVCachePolicy:
    return attrs.evolve(_WIDE, **{tensor: fmt}, residual=residual)


def _bytes_of(shape: AttentionShape, tensor: str, fmt: TensorFormat) -> int:
    """Of one token in one layer."""
    with_it = bytes_per_token(shape, _alone(tensor, fmt, 0))
    rest = bytes_per_token(shape, _WIDE) - 2 * _channels(shape, tensor)
    return with_it - rest


def _channels(shape: AttentionShape, tensor: str) -> int:
    sem, geo, v = shape.cached_heads
    return {"k_sem": sem * shape.sem_head_dim, "k_geo": geo * shape.geo_head_dim, "v": v * shape.v_head_dim}[
        tensor
    ]
