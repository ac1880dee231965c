"""Logits of a language model with exact or long-sequence attention: dense, float64, one query at a time.

Projections come from `attention_oracle.dense_heads`; norms and feed-forward layers are the model's own.
"""

from __future__ import annotations

import attrs
import torch
from attention_oracle import dense_heads, dense_null
from torch import Tensor

from dba_core.attention.module import DecoupledAttention
from dba_core.config.long_sequence import LongSequenceConfig
from dba_core.model.language_model import LanguageModel


@attrs.frozen
class Figures:
    """Means of loss and divergence, the largest logit difference, over some positions."""

    delta_nll: float
    kl: float
    max_abs_logit: float
    exact_nll: float


@torch.no_grad()
def dense_logits(model: LanguageModel, tokens: Tensor, path: LongSequenceConfig | None = None) -> Tensor:
    """model in float64, tokens [1, T] -> [1, T, V]. path: summarizer `mean`; None is exact attention."""
    x = model.tok_emb(tokens)
    for block in model.blocks:
        x = x + _attention(block.attn, block.ln1(x), path)
        x = x + block.ff(block.ln2(x))
    return model.ln_f(x) @ model.tok_emb.weight.T


def dense_figures(exact: Tensor, approximate: Tensor, targets: Tensor, start: int, stop: int) -> Figures:
    """Logits [1, T, V] of both, targets [1, T]; over positions start .. stop-1."""
    p, q = (torch.softmax(logits[0, start:stop], -1) for logits in (exact, approximate))  # [n, V]
    rows, wanted = torch.arange(stop - start), targets[0, start:stop]
    nll, exact_nll = -q[rows, wanted].log(), -p[rows, wanted].log()
    return Figures(
        delta_nll=float((nll - exact_nll).mean()),
        kl=float((p * (p / q).log()).sum(-1).mean()),
        max_abs_logit=float((approximate - exact)[0, start:stop].abs().max()),
        exact_nll=float(exact_nll.mean()),
    )


def _attention(layer: DecoupledAttention, x: Tensor, path: LongSequenceConfig | None) -> Tensor:
    """x [1, T, d_model] -> [1, T, d_model]."""
    heads, null = dense_heads(layer, x), dense_null(layer)
    n_heads, length = heads.q_geo.shape[1:3]
    groups = n_heads // heads.v.shape[1]
    out = x.new_zeros(1, length, n_heads, heads.v.shape[-1])
    for t in range(length):
        for head in range(n_heads):
            g = head // groups
            keys_sem, keys_geo, values = heads.k_sem[0, g], heads.k_geo[0, g], heads.v[0, g]
            scores = keys_sem[: t + 1] @ heads.q_sem[0, head, t] + keys_geo[: t + 1] @ heads.q_geo[0, head, t]
            values = values[: t + 1]
            if path is not None:
                scores, values = _with_memory(scores, values, keys_sem, heads.q_sem[0, head, t], t, path)
            if null is not None:
                score = null.k_sem[g] @ heads.q_sem[0, head, t] + null.k_geo[g] @ heads.q_geo[0, head, t]
                scores, values = torch.cat([scores, score[None]]), torch.cat([values, null.v[g][None]])
            out[0, t, head] = torch.softmax(scores, 0) @ values
    return out.flatten(2) @ layer.out_proj.weight.T


def _with_memory(
    scores: Tensor, values: Tensor, keys_sem: Tensor, q_sem: Tensor, t: int, path: LongSequenceConfig
) -> tuple[Tensor, Tensor]:
    """Scores and values [t+1, ...] with those of the far past taken together, block by block."""
    block, chunk = path.mem_block, t // path.q_chunk
    n_mem = max(0, chunk * path.q_chunk - path.local_window) // block
    kept = slice(n_mem * block, None)
    bonus = torch.tensor(float(block)).double().log() if path.mass_correction else 0.0
    memory = [
        (
            keys_sem[n * block : (n + 1) * block].mean(0) @ q_sem + bonus,
            values[n * block : (n + 1) * block].mean(0),
        )
        for n in range(n_mem)
    ]
    if not memory:
        return scores, values
    far_scores, far_values = (torch.stack(column) for column in zip(*memory, strict=True))
    return torch.cat([far_scores, scores[kept]]), torch.cat([far_values, values[kept]])
