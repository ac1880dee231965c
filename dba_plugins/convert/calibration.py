"""What a model does on real text, layer by layer, as the conversion needs it.

With q_i(m), k_i(n) the i-th channel pair of query m and key n as complex numbers, unrotated, and f_i its
frequency, leaving the pair unrotated changes the score of (m, n) by

    d_i(m, n) = Re( q_i(m) conj(k_i(n)) (e^(i f_i (m - n)) - 1) )

and the attention distribution p(m) of query m by, to second order, KL = Var_{n ~ p(m)}[d_i] / 2. `damage` is
its mean over queries, summed over the query heads of a KV head.

The unrotated score may have a constant complex factor c for each query head and pair, absorbed in the query
weights: it stands for the rotation by the distances that the head attends over. `fit` is the c that leaves
the least, by least squares over the covariances under p of the rotated score and of both parts of the
unrotated one, and `residual` what it leaves. All moments under p are matrix products: the scores are bilinear
in (rotated, unrotated) parts of q_i(m) and k_i(n), and their products in the products of these.

Noise of variance s(n) on the score of key n, independent of other keys, changes the distribution of query m
by KL = sum_n p_n(m) (1 - p_n(m)) s(n) / 2. So `k_mean` and `k_cov` weigh key n by
w(n) = sum_m p_n(m) (1 - p_n(m)), and `q_moment` query m by u(m) = sum_n p_n(m) (1 - p_n(m)): what is rarely
looked at may be stored badly, and the first token, which many heads rest on, may not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from dba_core.attention.module import DecoupledAttention
from dba_core.errors import UnsupportedError
from dba_core.model.block import Block
from dba_core.model.language_model import LanguageModel, inference

#: Queries of a sequence at which the distribution is taken: every so manieth.
QUERY_STRIDE = 8
_QUERY_BLOCK = 128


@attrs.frozen(kw_only=True, eq=False)
class LayerCalibration:
    """One layer. G KV heads of D channels, P = D/2 pairs; channels i and i + P are pair i.

    damage, residual [G,P], fit [G,H/G,P,2] (real and imaginary part): see the module. q_norm, k_norm [G,P]:
    root mean square length of the pair in queries and keys. k_mean [G*D], k_cov [G*D,G*D]: of unrotated keys,
    all heads together, weighted by w(n), between two heads by the root of both weights. q_moment
    [G,H/G,D,D]: mean of u(m) q q^T over queries, unrotated and unscaled. float64.
    """

    damage: Tensor
    residual: Tensor
    fit: Tensor
    q_norm: Tensor
    k_norm: Tensor
    k_mean: Tensor
    k_cov: Tensor
    q_moment: Tensor


@attrs.frozen(kw_only=True, eq=False)
class Calibration:
    """All layers, first layer first, and the number of tokens that they were measured on."""

    layers: tuple[LayerCalibration, ...]
    tokens: int


def calibrate(
    model: LanguageModel,
    sequences: Tensor,
    *,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Calibration:
    """Run sequences [N,T] of tokens through the model, all of whose attention is rotated.

    on_step: called with (done, total) after every layer of every sequence. Raises UnsupportedError for a
    model with a semantic path, a gate or a null token.
    """
    attentions = model.attentions
    for attention in attentions:
        _require_plain(attention)
    sums = [_Sums.of(attention) for attention in attentions]
    total = len(sequences) * len(attentions)
    done = 0
    with inference(model):
        for row in sequences:
            x = model.embed(row[None].to(model.device))
            for block, part in zip(cast("Iterable[Block]", model.blocks), sums, strict=True):
                part.add(block.attn, block.ln1(x))
                x = block(x)
                done += 1
                on_step(done, total)
    return Calibration(layers=tuple(part.result() for part in sums), tokens=sequences.numel())


def rotated_weights(attention: DecoupledAttention) -> tuple[Tensor, Tensor]:
    """The weights of queries [H*D,d_model] and keys [G*D,d_model] of a layer whose attention is rotated, a
    learned temperature being part of the queries'; tied keys have what the queries have without it.
    """
    q = attention.q_geo.weight
    k = q if attention.k_geo is None else attention.k_geo.weight
    if attention.logit_scale is None:
        return q, k
    factor = attention.logit_scale.clamp(-8.0, 8.0).exp()
    return (q.view(len(factor), -1, q.shape[-1]) * factor[:, None, None]).flatten(0, 1), k


def _require_plain(attention: DecoupledAttention) -> None:
    parts = attention.gate, attention.null_token
    if attention.shape.sem_head_dim or parts != (None, None):
        raise UnsupportedError(
            f"layer {attention.layer} has a semantic path, a gate or a null token already; only a model "
            "whose attention is rotated throughout can be converted"
        )


@attrs.define(eq=False)
class _Sums:
    """Sums over all sequences so far."""

    gram: Tensor  # [G,H/G,P,3,3]: covariances of the scores: rotated, both parts of the unrotated
    q_square: Tensor
    k_square: Tensor
    k_outer: Tensor  # [G,D+1,G,D+1]: of keys with a 1 behind their channels, weighted
    q_outer: Tensor
    queries: int = 0
    keys: int = 0
    sampled: int = 0

    @classmethod
    def of(cls, attention: DecoupledAttention) -> _Sums:
        kv_heads, width = attention.shape.n_kv_heads, attention.shape.geo_head_dim
        pairs = torch.zeros(kv_heads, width // 2, dtype=torch.float64)
        share = attention.shape.n_heads // kv_heads
        return cls(
            gram=torch.zeros(kv_heads, share, width // 2, 3, 3, dtype=torch.float64),
            q_square=pairs,
            k_square=pairs.clone(),
            k_outer=torch.zeros(kv_heads, width + 1, kv_heads, width + 1, dtype=torch.float64),
            q_outer=torch.zeros(kv_heads, share, width, width, dtype=torch.float64),
        )

    def add(self, attention: DecoupledAttention, hidden: Tensor) -> None:
        """hidden [1,T,d_model]: what the attention is given."""
        shape = attention.shape
        length = hidden.shape[1]
        of_q, of_k = rotated_weights(attention)
        q = _per_head(F.linear(hidden, of_q), shape.n_heads)  # [H, T, D]
        k = _per_head(F.linear(hidden, of_k), shape.n_kv_heads)  # [G, T, D]
        cos, sin = attention.rope.span(0, length, hidden)  # [T, G or 1, P]
        grouped = torch.unflatten(q, 0, (shape.n_kv_heads, -1))  # [G, H/G, T, D]
        self.q_square += _pair_squares(grouped).sum(1).cpu()
        self.k_square += _pair_squares(k).cpu()
        self.queries += length * (shape.n_heads // shape.n_kv_heads)
        self.keys += length
        at = torch.arange(0, length, QUERY_STRIDE, device=hidden.device)
        self.sampled += len(at)
        of_keys, of_queries = [], []
        for head in range(shape.n_kv_heads):
            angle = [t[:, head if t.shape[1] > 1 else 0] for t in (cos, sin)]
            sums = _covariances(grouped[head], k[head], *angle, at=at)
            self.gram[head] += sums.covariance.cpu()
            of_keys.append(sums.of_keys)
            of_queries.append(sums.of_queries)
        rows = grouped[:, :, at].double()  # [G, H/G, m, D]
        self.q_outer += ((rows * torch.stack(of_queries)[..., None]).mT @ rows).cpu()
        keys = F.pad(k.double(), (0, 1), value=1.0) * torch.stack(of_keys).sqrt()[..., None]  # [G, T, D+1]
        flat = keys.transpose(0, 1).flatten(1)
        self.k_outer += (flat.mT @ flat).view(self.k_outer.shape).cpu()

    def result(self) -> LayerCalibration:
        mean, cov = _mean_and_covariance(self.k_outer)
        gram = self.gram / self.sampled
        plain = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
        fit = _least_squares(gram)
        fitted = torch.cat([torch.ones_like(fit[..., :1]), -fit], dim=-1)
        return LayerCalibration(
            damage=(plain @ gram @ plain).clamp_min(0.0).sum(1) / 2,
            residual=(fitted[..., None, :] @ gram @ fitted[..., None]).flatten(-3).clamp_min(0.0).sum(1) / 2,
            fit=fit,
            q_norm=(self.q_square / self.queries).sqrt(),
            k_norm=(self.k_square / self.keys).sqrt(),
            k_mean=mean.flatten(),
            k_cov=cov.flatten(2).flatten(0, 1),
            q_moment=self.q_outer / self.sampled,
        )


def _per_head(x: Tensor, n_heads: int) -> Tensor:
    """[1, T, n*D] -> [n, T, D]."""
    return torch.unflatten(x[0], -1, (n_heads, -1)).transpose(0, 1)


def _pair_squares(x: Tensor) -> Tensor:
    """[..., T, D] -> the sum over T of each pair's squared length: float64 [..., P]."""
    a, b = x.double().chunk(2, dim=-1)
    return (a.square() + b.square()).sum(dim=-2)


def _least_squares(gram: Tensor) -> Tensor:
    """Covariances [...,3,3] -> the factors [...,2] of scores 1 and 2 that leave least of score 0."""
    normal = gram[..., 1:, 1:]
    ridge = 1e-9 * normal.diagonal(dim1=-2, dim2=-1).sum(-1) + 1e-30
    eye = torch.eye(2, dtype=gram.dtype)
    solved: Tensor = torch.linalg.solve(normal + ridge[..., None, None] * eye, gram[..., 1:, :1])
    return solved.squeeze(-1)


def _mean_and_covariance(outer: Tensor) -> tuple[Tensor, Tensor]:
    """outer [G,D+1,G,D+1]: sums of w k k^T, the last channel of k 1 -> mean [G,D], covariance [G,D,G,D]."""
    heads, width = outer.shape[0], outer.shape[1] - 1
    total = torch.stack([outer[g, width, g, width] for g in range(heads)]).clamp_min(1e-30)
    mean = torch.stack([outer[g, :width, g, width] / total[g] for g in range(heads)])
    centre = torch.cat([torch.eye(width, dtype=outer.dtype).expand(heads, -1, -1), -mean[..., None]], dim=-1)
    root = total.rsqrt()
    cov = torch.einsum("gia,gahb,hjb,g,h->gihj", centre, outer, centre, root, root)
    return mean, cov


@attrs.frozen(kw_only=True, eq=False)
class _UnderP:
    """Sums over queries m: covariance [R,P,3,3] of the scores under p, of_keys w(n) [T]; of_queries u(m)
    [R,m]. float64.
    """

    covariance: Tensor
    of_keys: Tensor
    of_queries: Tensor


def _covariances(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, at: Tensor) -> _UnderP:
    """q [R,T,D] of one KV head's R query heads, k [T,D], cos and sin [T,P]; over the queries `at`."""
    keys = _parts(k, cos, sin)  # [T, P, 4]
    moments = torch.cat([keys, _products(keys)], dim=-1).flatten(1)  # [T, P*14]
    rotated_keys = keys[..., :2].transpose(1, 2).flatten(1)  # [T, D], halves
    scale = k.shape[-1] ** -0.5
    total = k.new_zeros(len(q), k.shape[-1] // 2, 3, 3, dtype=torch.float64)
    of_keys = k.new_zeros(len(k), dtype=torch.float64)
    of_queries: list[Tensor] = []
    for rows in torch.split(at, _QUERY_BLOCK):
        stop = int(rows[-1]) + 1
        future = torch.arange(stop, device=k.device) > rows[:, None]
        for number, head in enumerate(q):
            queries = _parts(head[rows], cos[rows], sin[rows])  # [m, P, 4]
            rotated = queries[..., :2].transpose(1, 2).flatten(1)
            scores = (rotated @ rotated_keys[:stop].mT * scale).masked_fill_(future, -torch.inf)
            p = scores.softmax(-1)
            noise = p * (1.0 - p)
            of_keys[:stop] += noise.sum(0).double()
            of_queries.append(noise.sum(-1).double())
            under_p = torch.unflatten(p @ moments[:stop], 1, (-1, 14))  # [m, P, 14]
            mean, second = under_p[..., :4], under_p[..., 4:][..., _SQUARE.to(k.device)]  # [m,P,4], [m,P,4,4]
            covariance = second - mean[..., :, None] * mean[..., None, :]
            linear = _score_vectors(queries) * scale  # [m, P, 3, 4]
            total[number] += (linear @ covariance @ linear.mT).double().sum(0)
    by_head = [torch.cat(of_queries[number :: len(q)]) for number in range(len(q))]
    return _UnderP(covariance=total, of_keys=of_keys, of_queries=torch.stack(by_head))


def _score_vectors(queries: Tensor) -> Tensor:
    """[m,P,4] -> [m,P,3,4]: what a key's parts are multiplied by in the rotated score and in the real and
    imaginary part of the unrotated one.
    """
    turned_a, turned_b, a, b = queries.unbind(-1)
    zero = torch.zeros_like(a)
    rows = ((turned_a, turned_b, zero, zero), (zero, zero, a, b), (zero, zero, -b, a))
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def _parts(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[T,D], [T,P] -> [T,P,4]: rotated and unrotated parts of every pair."""
    a, b = x.chunk(2, dim=-1)
    return torch.stack([a * cos - b * sin, b * cos + a * sin, a, b], dim=-1)


_ROWS, _COLUMNS = torch.triu_indices(4, 4)
#: Where the product of parts i and j stands among the ten.
_SQUARE = torch.zeros(4, 4, dtype=torch.int64)
_SQUARE[_ROWS, _COLUMNS] = _SQUARE[_COLUMNS, _ROWS] = torch.arange(10)


def _products(parts: Tensor) -> Tensor:
    """[..., 4] -> [..., 10]: all products of two parts."""
    return parts[..., _ROWS] * parts[..., _COLUMNS]
