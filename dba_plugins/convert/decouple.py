"""A model with rotated attention as one with decoupled attention, by rearranging its weights.

    score = q_sem . k_sem / sqrt(Ds) + R q_geo . R k_geo / sqrt(Dg)

The chosen pairs of channels become semantic: they keep their weights and lose their rotation, the others keep
theirs with the frequencies that they had. Queries are scaled so that both divisions give the source's one by
sqrt(D), and a learned temperature becomes part of their weights. `fit` gives the queries of each pair the
complex factor that best stands for the lost rotation. What is not rotated may be transformed at will as long
as queries undo it, which costs nothing:

- the mean key is subtracted: it adds one constant to all scores of a query, which the softmax cancels. It and
  Cov(k) weigh keys by how much noise on them disturbs the attention (`calibration`);
- `latent` r: the semantic keys of all KV heads become one of r numbers, the r directions that matter most to
  the scores: with M = blockdiag_g E[q_g q_g^T] = L L^T, the top eigenvectors V of L^T Cov(k) L (eigenvalues
  e) give keys V^T L^T (k - mean) and queries V^T L^-1 q;
- `spread`: semantic keys are stored in such directions, times e^(-1/4), and queries times e^(1/4), and then
  turned by an orthogonal matrix that mixes all channels. Quantization then adds about the same noise to every
  channel: with key variances e s^2 and query variances 1 / s^2 what it does to the scores is
  (sum e s^2)(sum s^-2), least at s = e^(-1/4), and no channel is an outlier in its block. Values are turned
  only (QuaRot: Ashkboos et al. 2024, arXiv:2404.00456). Queries and the output projection undo it.

Which pairs lose their rotation: per layer and KV head, those that lose the least by a rule of RULES.

    kl     the measured change of the attention distribution (`calibration`), after the fit where there is one
    norm   the mean length in queries times that in keys (MHA2MLA: Ji et al. 2025, arXiv:2502.14837)
    low    the frequency itself: the slowest pairs first

A small table and not a kind of plugin: a rule runs once, on one machine, and leaves nothing in the model but
its choice, so nobody who loads the model needs it (docs/decisions/pair-selection.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
import torch
from torch import Tensor

from dba_core.attention.module import DecoupledAttention
from dba_core.config.attention import AttentionConfig
from dba_core.config.model import ModelConfig
from dba_core.errors import UsageError, unknown
from dba_core.model.language_model import LanguageModel
from dba_core.registry.choice import PluginChoice, PluginChoices
from dba_plugins.convert.calibration import Calibration, LayerCalibration, rotated_weights

#: What a decoupled model starts from: no gate and no null token, as the source model has none.
PLAIN = PluginChoices(gate=PluginChoice("none"), null_token=PluginChoice("none"))


@attrs.frozen(kw_only=True)
class Recipe:
    """pairs: channel pairs of a head that become semantic. latent: width of one semantic key for all KV
    heads; None keeps one per head. rule: of RULES. spread, fit: see the module.
    """

    pairs: int
    latent: int | None = None
    rule: str = "kl"
    spread: bool = True
    fit: bool = True


#: layer, frequencies [P], fit -> what unrotating each pair costs [G,P]; only the order within a row matters.
Rule = Callable[[LayerCalibration, Tensor, bool], Tensor]


def _kl(layer: LayerCalibration, frequencies: Tensor, fit: bool) -> Tensor:
    return layer.residual if fit else layer.damage


def _norm(layer: LayerCalibration, frequencies: Tensor, fit: bool) -> Tensor:
    return layer.q_norm * layer.k_norm


def _low(layer: LayerCalibration, frequencies: Tensor, fit: bool) -> Tensor:
    return frequencies.expand_as(layer.damage)


RULES: dict[str, Rule] = {"kl": _kl, "norm": _norm, "low": _low}


def select_pairs(
    calibration: Calibration, frequencies: Tensor, *, pairs: int, rule: str, fit: bool = True
) -> Tensor:
    """The pairs that become semantic, ascending: int64 [layers, G, pairs].

    fit: whether queries get the factors of `LayerCalibration.fit`. frequencies: radians per token of the
    source's pairs [G or 1, P]. Raises UsageError for a rule that does not exist and for a number of pairs
    that leaves nothing on one side.
    """
    if rule not in RULES:
        raise UsageError(unknown("selection rule", rule, RULES))
    n_pairs = frequencies.shape[-1]
    if not 1 <= pairs < n_pairs:
        raise UsageError(
            f"{pairs} pairs cannot become semantic; allowed: 1 to {n_pairs - 1}, since a head has {n_pairs} "
            "pairs and at least one stays rotated"
        )
    costs = [RULES[rule](layer, frequencies, fit) for layer in calibration.layers]
    chosen = [cost.argsort(dim=-1, stable=True)[:, :pairs].sort(dim=-1).values for cost in costs]
    return torch.stack(chosen)


def pairs_of(source: LanguageModel, calibration: Calibration, recipe: Recipe) -> Tensor:
    """What `select_pairs` chooses for the recipe."""
    frequencies = source.attentions[0].rope.frequencies
    return select_pairs(calibration, frequencies, pairs=recipe.pairs, rule=recipe.rule, fit=recipe.fit)


def decouple(
    source: LanguageModel, calibration: Calibration, chosen: Tensor, recipe: Recipe
) -> LanguageModel:
    """The converted model, float32, in evaluation mode. It shares all weights but attention's with the
    source, which stays as it is.

    chosen [layers,G,pairs]: of `select_pairs`. Raises UsageError for a latent that is wider than what it
    stands for.
    """
    # no summarizer: nothing here trains one
    exact = attrs.evolve(source.config.train_long_seq, enabled=False)
    config = attrs.evolve(
        source.config, attention=decoupled_config(source.config.attention, recipe), train_long_seq=exact
    ).resolved()
    made = []
    parts = zip(source.attentions, calibration.layers, chosen, strict=True)
    for layer, (before, measured, pairs) in enumerate(parts):
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            after = DecoupledAttention(
                config.attention,
                gate=PLAIN.gate,
                null_token=PLAIN.null_token,
                train_long_seq=config.train_long_seq,
                layer=layer,
                context=config.context,
            )
            _fill(before, after, measured, pairs, recipe)
        made.append(after)
    return with_attentions(source, made, config=config).eval()


def with_attentions(
    source: LanguageModel, attentions: Sequence[DecoupledAttention], *, config: ModelConfig
) -> LanguageModel:
    """A model of `config` with these layers' attention; every other module is shared with the source."""
    model = LanguageModel(config, attentions=attentions, shapes_only=True)
    for own, made in [(source, model), *zip(source.blocks, model.blocks, strict=True)]:
        for name, module in own.named_children():
            if name not in ("blocks", "attn"):
                setattr(made, name, module)
    return model.train(source.training)


def decoupled_config(source: AttentionConfig, recipe: Recipe) -> AttentionConfig:
    """The layout that `recipe` gives a model of this one. Raises UsageError where it does not fit."""
    shape = source.resolved().shape
    own_width, n_pairs = 2 * recipe.pairs, shape.geo_head_dim // 2
    if not 1 <= recipe.pairs < n_pairs:
        raise UsageError(
            f"{recipe.pairs} pairs cannot become semantic; allowed: 1 to {n_pairs - 1}, since a head has "
            f"{n_pairs} pairs and at least one stays rotated"
        )
    if recipe.latent is not None and not 1 <= recipe.latent <= own_width * shape.n_kv_heads:
        raise UsageError(
            f"a latent of {recipe.latent} channels cannot stand for {shape.n_kv_heads} semantic keys of "
            f"{own_width}; allowed: 1 to {own_width * shape.n_kv_heads}, or none"
        )
    return attrs.evolve(
        source,
        mode="decoupled",
        sem_head_dim=own_width if recipe.latent is None else recipe.latent,
        geo_head_dim=shape.geo_head_dim - own_width,
        sem_kv_heads=None if recipe.latent is None else 1,
        rope_table=True,
        sem_offset=True,
        tie_qk=False,
        learned_temperature=False,
    )


def _fill(
    before: DecoupledAttention,
    after: DecoupledAttention,
    measured: LayerCalibration,
    pairs: Tensor,
    recipe: Recipe,
) -> None:
    """Write one layer's weights; everything is computed in float64. pairs [G,n]."""
    shape = before.shape
    kv_heads, width, share = shape.n_kv_heads, shape.geo_head_dim, shape.n_heads // shape.n_kv_heads
    of_q, of_k = rotated_weights(before)
    q = of_q.double().view(kv_heads, share, width, -1)  # [G, H/G, D, d_model]
    k = of_k.double().view(kv_heads, width, -1)
    frequencies = before.rope.frequencies.expand(kv_heads, -1)  # [G, P]
    semantic, rotated, kept = channels_of(pairs, width)

    q_sem = _rows(q, semantic)  # [G, H/G, Ds, d_model]
    if recipe.fit:
        q_sem = _turned(q_sem, measured.fit, pairs)
    k_sem = torch.stack([k[g, semantic[g]] for g in range(kv_heads)])
    mean = measured.k_mean.view(kv_heads, width).gather(1, semantic)  # [G, Ds]
    if recipe.latent is None and not recipe.spread:
        keys, queries = _identity(kv_heads, semantic.shape[1])
    else:
        keys, queries = _key_maps(measured, semantic, pairs, recipe)
    # keys [M, n, Ds of M's heads], queries [G, n, Ds]: what k_sem and q_sem are multiplied by
    stacked = k_sem.reshape(len(keys), -1, k_sem.shape[-1])
    sem_width, geo_width = after.shape.sem_head_dim, after.shape.geo_head_dim
    after.load_state_dict(
        {
            "k_sem.weight": (keys @ stacked).flatten(0, 1),
            "sem_offset": (keys @ mean.reshape(len(keys), -1, 1)).squeeze(-1),
            "q_sem.weight": (queries[:, None] @ q_sem).flatten(0, 2) * (sem_width / width) ** 0.5,
            "q_geo.weight": _rows(q, rotated).flatten(0, 2) * (geo_width / width) ** 0.5,
            "k_geo.weight": torch.cat([k[g, rotated[g]] for g in range(kv_heads)]),
            "rope_frequencies.frequencies": frequencies.gather(1, kept),
            **_values(before, spread=recipe.spread),
        }
    )


def _values(before: DecoupledAttention, *, spread: bool) -> dict[str, Tensor]:
    shape = before.shape
    v, out = before.v_proj.weight.double(), before.out_proj.weight.double()
    if spread:
        turn = spreading_matrix(shape.v_head_dim)
        v = (turn @ v.view(shape.n_kv_heads, shape.v_head_dim, -1)).flatten(0, 1)
        out = (out.view(len(out), shape.n_heads, -1) @ turn.mT).flatten(1)
    return {"v_proj.weight": v, "out_proj.weight": out}


def channels_of(pairs: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """pairs [G,n] -> semantic channels [G,2n], rotated ones [G,D-2n] by halves, their pairs [G,P-n]."""
    half = width // 2
    every = torch.arange(half)
    kept = torch.stack([every[~torch.isin(every, row)] for row in pairs])
    return torch.cat([pairs, pairs + half], dim=1), torch.cat([kept, kept + half], dim=1), kept


def _turned(q: Tensor, fit: Tensor, pairs: Tensor) -> Tensor:
    """q [G,H/G,2n,d_model] by halves, times the factors fit [G,H/G,P,2] of the pairs [G,n]."""
    factors = torch.stack([fit[g][:, pairs[g]] for g in range(len(q))])  # [G, H/G, n, 2]
    real, imaginary = factors[..., :1], factors[..., 1:]
    a, b = q.chunk(2, dim=2)
    return torch.cat([real * a - imaginary * b, real * b + imaginary * a], dim=2)


def _rows(q: Tensor, channels: Tensor) -> Tensor:
    """q [G,H/G,D,d_model], channels [G,n] -> [G,H/G,n,d_model]."""
    return torch.stack([q[g][:, channels[g]] for g in range(len(q))])


def _identity(kv_heads: int, width: int) -> tuple[Tensor, Tensor]:
    eye = torch.eye(width, dtype=torch.float64).expand(kv_heads, -1, -1)
    return eye, eye


def _key_maps(
    measured: LayerCalibration, semantic: Tensor, pairs: Tensor, recipe: Recipe
) -> tuple[Tensor, Tensor]:
    """What makes the stored keys, of every head [G,Ds,Ds] or of all [1,r,G*Ds], and of each head's queries
    [G,Ds or r,Ds].
    """
    kv_heads, width = semantic.shape
    full = measured.q_moment.shape[-1]
    moments = torch.stack([measured.q_moment[g][:, semantic[g]][:, :, semantic[g]] for g in range(kv_heads)])
    if recipe.fit:  # of the queries as they will be
        moments = _turned(moments, measured.fit, pairs)
        moments = _turned(moments.mT, measured.fit, pairs)
    blocks = list(moments.mean(1))
    flat = (semantic + full * torch.arange(kv_heads)[:, None]).flatten()
    cov = measured.k_cov[flat][:, flat]
    if recipe.latent is not None:
        every: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
        keys, queries = directions(every, cov, recipe.latent, spread=recipe.spread)
        return keys[None], queries.view(recipe.latent, kv_heads, width).transpose(0, 1)
    own = [cov[g * width : (g + 1) * width, g * width : (g + 1) * width] for g in range(kv_heads)]
    maps = [directions(m, c, width, spread=True) for m, c in zip(blocks, own, strict=True)]
    keys, queries = (torch.stack(part) for part in zip(*maps, strict=True))
    return keys, queries


def directions(moment: Tensor, cov: Tensor, count: int, *, spread: bool) -> tuple[Tensor, Tensor]:
    """The `count` directions that matter most: what stored values [count,n] are multiplied by, and what reads
    them; products of the two are those of before, but for what is left out. See the module.

    moment, cov [n,n]: second moments of what reads, and of what is stored.
    """
    ridge = torch.eye(len(moment), dtype=torch.float64)
    lower = torch.linalg.cholesky(moment + ridge * moment.diagonal().mean() * 1e-6)
    values, vectors = torch.linalg.eigh(lower.mT @ cov @ lower)  # ascending
    top = vectors[:, -count:]
    stored = top.mT @ lower.mT  # [r, n]
    reads = torch.linalg.solve_triangular(lower.mT, top, upper=True).mT
    if spread:
        size = values[-count:].clamp_min(float(values[-1]) * 1e-6 + 1e-30)[:, None] ** 0.25
        turn = spreading_matrix(count)
        stored, reads = turn @ (stored / size), turn @ (reads * size)
    return stored, reads


def spreading_matrix(width: int) -> Tensor:
    """Orthogonal, float64 [width,width]: a Hadamard matrix where the width is a power of two, else a fixed
    random rotation.
    """
    if width & (width - 1) == 0:
        matrix = torch.ones(1, 1, dtype=torch.float64)
        while len(matrix) < width:
            matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
        hadamard: Tensor = matrix / width**0.5
        return hadamard
    generator = torch.Generator().manual_seed(width)
    q, r = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64, generator=generator))
    rotation: Tensor = q * r.diagonal().sign()
    return rotation
