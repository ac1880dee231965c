"""What a model costs by arithmetic alone: parameters, FLOPs per token. No torch.

    forward(t)  = 2 * M + sum over layers of 2 * H * (Ds + Dg + Dv) * (S + 1) / 2
    training(t) = 3 * forward(t)                      the backward pass is two products for each one forward

M: the entries of all matrices that multiply a token's vector: projections, MLP, gate, output head. A tied
embedding counts once, as the head; an untied one is a lookup and counts nothing, like norms, null tokens and
the summarizer, which is not part of the plain path. S: the context; a query sees (S + 1) / 2 keys on average.
One multiply-add is 2 FLOPs. Called by the job and `dba run --dry-run`.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

import attrs

from dba_core.contracts import AttentionShape

_NOT_MULTIPLIED = (".null_token.", ".summarizer.")
_EMBEDDING = "tok_emb.weight"

NamedShape = tuple[str, tuple[int, ...]]


@attrs.frozen(kw_only=True)
class Cost:
    """Parameters of a model, and FLOPs per token at its full context."""

    parameters: int
    forward_flops_per_token: int
    training_flops_per_token: int


def model_cost(
    parameters: Iterable[NamedShape],
    *,
    shape: AttentionShape,
    n_layers: int,
    context: int,
    tied_embeddings: bool,
) -> Cost:
    """The cost of a model with these parameters, given as (dotted name, shape)."""
    named = list(parameters)
    multiplied = sum(prod(size) for name, size in named if _is_multiplied(name, size, tied_embeddings))
    widths = shape.sem_head_dim + shape.geo_head_dim + shape.v_head_dim
    attention = n_layers * shape.n_heads * widths * (context + 1)
    forward = 2 * multiplied + attention
    return Cost(
        parameters=sum(prod(size) for _, size in named),
        forward_flops_per_token=forward,
        training_flops_per_token=3 * forward,
    )


def _is_multiplied(name: str, size: tuple[int, ...], tied_embeddings: bool) -> bool:
    if name == _EMBEDDING:
        return tied_embeddings
    return len(size) == 2 and not any(part in name for part in _NOT_MULTIPLIED)
