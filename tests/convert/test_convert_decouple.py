"""What a conversion keeps exactly, and that what it measures is what it says."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from llama_oracle import CONFIG, random_weights, write_folder

from dba_cli.main import main
from dba_core.attention.rope import rope_frequencies
from dba_core.cache.bytes import bytes_per_token
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.errors import UnsupportedError, UsageError
from dba_core.evaluation.cached_loss import text_loss
from dba_core.model.language_model import LanguageModel
from dba_core.model.pretrained import open_pretrained
from dba_plugins.convert.calibration import Calibration, calibrate
from dba_plugins.convert.comparators import with_rotated_split
from dba_plugins.convert.decouple import RULES, Recipe, decouple, select_pairs, spreading_matrix
from dba_plugins.convert.heal import heal

pytestmark = pytest.mark.torch

#: With a context that long training would take memory tokens for.
WIDE = {
    **CONFIG,
    "max_position_embeddings": 8192,
    "head_dim": 12,
    "rope_scaling": {"type": "linear", "factor": 1.0},
}
FP32 = KVCachePolicy.parse("ksem=fp32,kgeo=fp32,v=fp32")


def tokens(count: int = 40) -> torch.Tensor:
    return torch.randint(256, (2, count), generator=torch.Generator().manual_seed(5))


def source(tmp_path: Path, *, still: int = 0) -> LanguageModel:
    """A tiny model whose `still` slowest pairs do not turn at all."""
    model = open_pretrained(write_folder(tmp_path / "model", WIDE, random_weights(WIDE))).build()
    for attention in model.attentions:
        table = attention.rope_frequencies.frequencies
        table[:, table.shape[1] - still :] = 0.0
    return model


def measured(model: LanguageModel) -> Calibration:
    return calibrate(model, tokens())


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(pairs=3, rule="low", spread=False),
        Recipe(pairs=3, rule="low"),
        Recipe(pairs=2, rule="kl"),
        Recipe(pairs=3, rule="low", latent=12),
        Recipe(pairs=3, rule="low", latent=12, spread=False),
    ],
)
def test_pairs_that_do_not_turn_lose_nothing(recipe: Recipe, tmp_path: Path) -> None:
    """Semantic is what is not rotated; a latent of full width holds all of it."""
    model = source(tmp_path, still=3)
    calibration = measured(model)
    chosen = select_pairs(
        calibration, model.attentions[0].rope.frequencies, pairs=recipe.pairs, rule=recipe.rule
    )
    converted = decouple(model, calibration, chosen, recipe)
    expected = model(tokens())
    assert (converted(tokens()) - expected).abs().max() / expected.abs().max() < 1e-5
    cache = converted.new_cache(batch=2, capacity=40, policy=FP32)
    parts = [converted(part, cache=cache) for part in tokens().split([30, 1, 9], dim=1)]
    assert (torch.cat(parts, 1) - expected).abs().max() / expected.abs().max() < 1e-4


def test_pairs_that_turn_cost_something_and_a_narrow_latent_more(tmp_path: Path) -> None:
    model = source(tmp_path)
    calibration = measured(model)
    frequencies = model.attentions[0].rope.frequencies

    def off(recipe: Recipe) -> float:
        chosen = select_pairs(calibration, frequencies, pairs=recipe.pairs, rule=recipe.rule, fit=recipe.fit)
        difference = decouple(model, calibration, chosen, recipe)(tokens()) - model(tokens())
        return float(difference.detach().abs().mean())

    assert off(Recipe(pairs=1)) < off(Recipe(pairs=5))
    assert off(Recipe(pairs=3)) < off(Recipe(pairs=3, fit=False))
    assert off(Recipe(pairs=3)) < off(Recipe(pairs=3, latent=2))
    assert off(Recipe(pairs=4, latent=16)) == pytest.approx(off(Recipe(pairs=4)), rel=1e-3)
    assert off(Recipe(pairs=3, latent=12)) == pytest.approx(off(Recipe(pairs=3)), rel=1e-3)


def variance(p, x):
    """Of x [T,T] under each row of p."""
    return (p * x**2).sum(-1) - (p * x).sum(-1) ** 2


def test_damage_is_half_the_variance_of_the_change_of_the_scores(tmp_path: Path, monkeypatch) -> None:
    """The same by dense matrices, pair by pair, from the definition."""
    monkeypatch.setattr("dba_plugins.convert.calibration.QUERY_STRIDE", 3)
    model = source(tmp_path)
    row = tokens()[:1]
    layer = calibrate(model.requires_grad_(False), row).layers[0]
    attention, block = model.attentions[0], next(iter(model.blocks))
    h = block.ln1(model.embed(row))[0].double()
    length, (heads, kv_heads, width) = h.shape[0], (4, 2, 12)
    q = (h @ attention.q_geo.weight.double().T).view(length, heads, width).transpose(0, 1)
    k = (h @ attention.k_geo.weight.double().T).view(length, kv_heads, width).transpose(0, 1)
    pairs_q, pairs_k = (torch.complex(t[..., :6], t[..., 6:]) for t in (q, k))
    angle = torch.arange(length).double()[:, None] * attention.rope.frequencies[0]
    turn = torch.polar(torch.ones_like(angle), angle)
    expected = torch.zeros(kv_heads, 6, dtype=torch.float64)
    least = torch.zeros_like(expected)
    weight = torch.zeros(kv_heads, length, dtype=torch.float64)
    doubt = torch.zeros(heads, len(range(0, length, 3)), dtype=torch.float64)
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    for head, group in itertools.product(range(heads), range(kv_heads)):
        if head // 2 != group:
            continue
        a, b = pairs_q[head] * turn, pairs_k[group] * turn
        scores = (a @ b.mH).real / width**0.5
        p = scores.masked_fill(future, -torch.inf).softmax(-1)
        weight[group] += (p * (1 - p))[::3].sum(0)
        doubt[head] = (p * (1 - p)).sum(1)[::3]
        for pair in range(6):
            rotated = torch.outer(a[:, pair], b[:, pair].conj()).real
            still = torch.outer(pairs_q[head][:, pair], pairs_k[group][:, pair].conj()).real
            product = torch.outer(pairs_q[head][:, pair], pairs_k[group][:, pair].conj()) / width**0.5
            expected[group, pair] += variance(p, rotated / width**0.5 - product.real)[::3].mean() / 2
            # the best complex factor by a search around the one that was found
            found = torch.complex(*layer.fit[group, head % 2, pair])
            around = [0, 0.02, -0.02, 0.02j, -0.02j]
            left = [
                variance(p, rotated / width**0.5 - ((found + more) * product).real)[::3].mean() / 2
                for more in around
            ]
            assert float(left[0]) <= min(map(float, left)) + 1e-9
            least[group, pair] += left[0]
            assert float(still.abs().max()) > 0
    torch.testing.assert_close(layer.damage, expected, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(layer.residual, least, rtol=1e-3, atol=1e-6)
    assert (layer.residual <= layer.damage + 1e-9).all()
    weight /= weight.sum(1, keepdim=True)
    means = torch.einsum("gt,gtd->gd", weight, k)
    rows = (weight.sqrt()[..., None] * (k - means[:, None])).transpose(0, 1).flatten(1)
    torch.testing.assert_close(layer.k_mean, means.flatten(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.k_cov, rows.mT @ rows, rtol=1e-4, atol=1e-5)
    asked = q[:, ::3]
    moments = torch.einsum("ht,htd,hte->hde", doubt, asked, asked) / asked.shape[1]
    torch.testing.assert_close(layer.q_moment.flatten(0, 1), moments, rtol=1e-4, atol=1e-5)


def test_the_rules_order_pairs_by_what_they_say(tmp_path: Path) -> None:
    calibration = measured(source(tmp_path))
    frequencies = rope_frequencies(12, 500.0)[None]
    for rule in RULES:
        chosen = select_pairs(calibration, frequencies, pairs=2, rule=rule)
        assert chosen.shape == (2, 2, 2)
        for layer, measured_layer in zip(chosen, calibration.layers, strict=True):
            cost = {
                "kl": measured_layer.residual,
                "norm": measured_layer.q_norm * measured_layer.k_norm,
                "low": frequencies.expand(2, -1),
            }[rule]
            for head in range(2):
                assert set(layer[head].tolist()) == set(cost[head].argsort()[:2].tolist())
    for pairs in (0, 6):
        with pytest.raises(UsageError, match="allowed: 1 to 5"):
            select_pairs(calibration, frequencies, pairs=pairs, rule="kl")
    with pytest.raises(UsageError, match="Did you mean 'low'"):
        select_pairs(calibration, frequencies, pairs=2, rule="lo")


def test_a_split_cache_with_rope_kept_is_the_source(tmp_path: Path) -> None:
    model = source(tmp_path)
    chosen = select_pairs(measured(model), model.attentions[0].rope.frequencies, pairs=2, rule="kl")
    split = with_rotated_split(model, chosen)
    cache = split.new_cache(batch=2, capacity=40, policy=FP32)
    assert [spec.head_dim for spec in cache.layers[0].specs] == [4, 8, 12]
    out = torch.cat([split(part, cache=cache) for part in tokens().split([25, 1, 14], dim=1)], 1)
    torch.testing.assert_close(out, model(tokens()), rtol=1e-4, atol=1e-4)
    assert model.attentions[0].shape.sem_head_dim == 0, "the source is as it was"


@pytest.mark.parametrize("width", [1, 2, 3, 12, 64, 100])
def test_spreading_is_orthogonal(width: int) -> None:
    turn = spreading_matrix(width)
    torch.testing.assert_close(turn @ turn.mT, torch.eye(width, dtype=torch.float64))


def test_a_model_that_is_decoupled_already_is_refused() -> None:
    from dba_core.config.attention import AttentionConfig
    from dba_core.config.model import ModelConfig

    model = LanguageModel(ModelConfig(vocab_size=256, d_model=24, attention=AttentionConfig(n_heads=4)))
    with pytest.raises(UnsupportedError, match="has a semantic path"):
        calibrate(model, tokens())


def test_healing_lowers_the_divergence_or_is_undone(tmp_path: Path) -> None:
    model = source(tmp_path)
    calibration = measured(model)
    recipe = Recipe(pairs=4)
    chosen = select_pairs(calibration, model.attentions[0].rope.frequencies, pairs=4, rule="kl")
    converted = decouple(model, calibration, chosen, recipe)
    before = {name: p.clone() for name, p in converted.state_dict().items()}
    text = torch.randint(256, (2, 640), generator=torch.Generator().manual_seed(3))
    healing = heal(teacher=model, student=converted, sequences=text, steps=4)
    changed = {name for name, p in converted.state_dict().items() if not torch.equal(p, before[name])}
    assert healing.kept == bool(changed)
    assert all(name.split(".")[3][:2] in ("q_", "k_") for name in changed)
    assert healing.kept == (healing.after < healing.before)


def convert_args(tmp_path: Path, *more: str) -> list[str]:
    folder = write_folder(tmp_path / "model", WIDE, random_weights(WIDE))
    texts = {
        "a.txt": "the quick brown fox jumps over the lazy dog. ",
        "b.txt": "once I caught a fish alive. ",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text * 30, encoding="utf-8")
    return [
        *("convert", str(folder), "--out", str(tmp_path / "out"), "--pairs", "2", "--tokenizer", "bytes"),
        *("--calibrate", str(tmp_path / "a.txt"), "--eval", str(tmp_path / "b.txt")),
        *("--context", "32", "--calibrate-tokens", "96", "--eval-tokens", "100", *more),
    ]


def test_the_command_leaves_a_run_that_everything_reads(tmp_path: Path, capsys) -> None:
    assert main([*convert_args(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    folder = tmp_path / "out"
    assert json.loads((folder / "conversion.json").read_text()) == report
    assert (folder / "plots" / "pareto.png").stat().st_size > 5000
    assert (folder / "plots" / "pairs.png").stat().st_size > 5000
    assert "| converted, its policy |" in (folder / "conversion.md").read_text(encoding="utf-8")
    by_key = {variant["key"]: variant for variant in report["variants"]}
    assert list(by_key) == [
        "original",
        "converted",
        "converted_policy",
        "split_rotated",
        "original_policy",
        "original_all_v",
    ]
    assert by_key["original"]["bytes_per_token"] == 2 * 2 * 2 * (12 + 12) * 2 / 2
    assert by_key["split_rotated"]["bytes_per_token"] == by_key["converted_policy"]["bytes_per_token"]

    from dba_core.runs.load import load_run

    run = load_run(folder)
    policy = KVCachePolicy.parse(by_key["converted_policy"]["policy"])
    assert run.config.kv_policy == policy
    assert (
        bytes_per_token(run.model.attentions[0].shape, policy) * 2
        == by_key["converted_policy"]["bytes_per_token"]
    )
    text = run.tokenizer.encode((tmp_path / "b.txt").read_text())
    loss = text_loss(run.model, text, context=32, limit_tokens=100, policy=policy)
    assert loss.nll == pytest.approx(by_key["converted_policy"]["losses"]["b.txt"]["nll"], rel=1e-5)
    assert main(["sample", str(folder), "--prompt", "once", "--max-new-tokens", "3"]) == 0
    assert main(["eval", str(folder), "--json"]) == 0


@pytest.mark.parametrize(
    ("more", "code", "hint"),
    [
        (["--pairs", "6"], 2, "1 to 5"),
        (["--latent", "99"], 2, "a latent of 99 channels"),
        (["--latent", "x"], 2, "neither a whole number"),
        (["--context", "5000"], 3, "less than one context of 5000"),
        (["--calibrate", "B"], 3, "is to be calibrated on and evaluated on"),
        (["--eval", "nosuch.txt"], 3, "nosuch.txt"),
        (["--kv-policy", "ksem=q9"], 3, "q9"),
        (["--tokenizer", "tiktoken:nope"], 3, "nope"),
    ],
)
def test_bad_input_leaves_no_folder(more: list[str], code: int, hint: str, tmp_path: Path, capsys) -> None:
    more = [str(tmp_path / "b.txt") if word == "B" else word for word in more]
    before = convert_args(tmp_path, *more)
    assert main(before) == code
    assert hint in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.txt", "model"]


def test_an_output_folder_that_exists_is_left_alone(tmp_path: Path, capsys) -> None:
    (tmp_path / "out").mkdir()
    assert main(convert_args(tmp_path)) == 2
    assert "exists already" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())
