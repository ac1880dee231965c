"""`dba convert` with a goal, and with --keep."""

from __future__ import annotations

import json
from pathlib import Path

import origin_oracle as origin
import pytest
import torch
from llama_oracle import CONFIG, random_weights, write_folder

from dba_cli.main import main
from dba_core.config.attention import AttentionConfig
from dba_core.runs.load import load_run
from dba_plugins.convert.decouple import Recipe
from dba_plugins.convert.recipe_search import Scope, recipes_of

pytestmark = pytest.mark.torch

WIDE = {**CONFIG, "head_dim": 16, "max_position_embeddings": 8192}


def arguments(tmp_path: Path, *more: str) -> list[str]:
    """A tiny model, calibrated on 8 sequences of 32 bytes, with room between them."""
    write_folder(tmp_path / "model", WIDE, random_weights(WIDE))
    for name, words in (("a", "the quick brown fox "), ("b", "it was the best of times ")):
        (tmp_path / f"{name}.txt").write_text("".join(f"{n} {words}\n" for n in range(60)))
    where = {"--out": "out", "--calibrate": "a.txt", "--eval": "b.txt"}
    paths = [part for flag, name in where.items() for part in (flag, str(tmp_path / name))]
    sizes = ["--tokenizer", "bytes", "--context", "32", "--calibrate-tokens", "256", "--eval-tokens", "64"]
    return ["convert", str(tmp_path / "model"), *paths, *sizes, "--no-comparators", *more]


def test_a_budget_is_kept_by_what_is_written(tmp_path: Path, capsys) -> None:
    assert main(arguments(tmp_path, "--budget-bytes", "150", "--json")) == 0
    report = json.loads(capsys.readouterr().out)
    tried = [row for row in report["search"]["rows"] if row["bytes_per_token"] is not None]
    assert all(row["bytes_per_token"] <= 150 for row in tried)
    (chosen,) = [row for row in tried if row["verdict"] == "chosen"]
    assert chosen["measured"]["kl"] == min(row["measured"]["kl"] for row in tried)
    assert (report["recipe"]["pairs"], report["recipe"]["latent"]) == (chosen["pairs"], chosen["latent"])
    (row,) = [row for row in report["variants"] if row["key"] == "converted_policy"]
    assert (row["policy"], row["bytes_per_token"]) == (chosen["policy"], chosen["bytes_per_token"])
    run = load_run(tmp_path / "out")
    assert run.config.kv_policy.short == chosen["policy"]
    width = 2 * chosen["pairs"] if chosen["latent"] is None else chosen["latent"]
    assert run.model.attentions[0].shape.sem_head_dim == width
    exact = [row for row in report["search"]["rows"] if row["policy"] == "fp16"]
    assert {(row["pairs"], row["latent"]) for row in exact} == {
        (2, None), (3, None), (4, None), (5, None), (3, 8), (4, 8), (5, 8),
    }  # fmt: skip
    text = (tmp_path / "out" / "conversion.md").read_text(encoding="utf-8")
    assert "## Search: at most 150 bytes per token" in text
    assert "Bytes per token of a cache of 32 tokens, residual window included." in text


def test_a_budget_is_for_the_target_context_with_the_window(tmp_path: Path, capsys) -> None:
    more = ["--budget-bytes", "170", "--target-context", "5000", "--pairs", "4", "--latent", "none", "--json"]
    assert main(arguments(tmp_path, *more)) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["context"], report["target_context"]) == (32, 5000)
    run = load_run(tmp_path / "out")
    (row,) = [row for row in report["variants"] if row["key"] == "converted_policy"]
    for name, context in (("bytes_per_token", 32), ("bytes_per_token_target", 5000)):
        made = run.model.new_cache(batch=1, capacity=context, policy=run.config.kv_policy)
        assert row[name] == made.nbytes / context
    assert row["bytes_per_token_target"] <= 170
    tried = [row for row in report["search"]["rows"] if row["bytes_per_token"] is not None]
    for each in tried:
        made = run.model.new_cache(batch=1, capacity=5000, policy=each["policy"])
        assert each["bytes_per_token"] == made.nbytes / 5000
    text = (tmp_path / "out" / "conversion.md").read_text(encoding="utf-8")
    assert "| bytes per token at 32 | bytes per token at 5,000 |" in text


def test_what_is_given_stays_and_a_gate_is_kept(tmp_path: Path, capsys) -> None:
    policy = "ksem=q4_0@32,kgeo=q8_0@32,v=q8_0@32"
    more = ["--max-delta-nll", "0.5", "--latent", "none", "--kv-policy", policy]
    assert main(arguments(tmp_path, *more)) == 0
    assert "Search: at most 0.5 nats per token lost" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "conversion.json").read_text(encoding="utf-8"))
    tried = [row for row in report["search"]["rows"] if row["bytes_per_token"] is not None]
    assert {row["policy"] for row in tried} == {f"{policy},resid=0"}
    assert {row["latent"] for row in report["search"]["rows"]} == {None}
    (chosen,) = [row for row in tried if row["verdict"] == "chosen"]
    assert max(chosen["measured"]["kl"], chosen["measured"]["delta_nll"]) <= 0.5


@pytest.mark.parametrize(
    ("more", "code", "hint"),
    [
        (["--budget-bytes", "10"], 1, "the smallest that can be made takes"),
        (["--max-delta-nll", "1e-9"], 1, "no recipe keeps"),
        (["--budget-bytes", "0"], 2, "give at least 1"),
        (["--budget-bytes", "90", "--pairs", "9"], 2, "1 to 7"),
        (["--budget-bytes", "90", "--calibrate-tokens", "9999"], 2, "calibration reads all of"),
        (
            ["--keep", "--pairs", "3", "--calibrate", "x"],
            2,
            "--pairs, --calibrate, --calibrate-tokens would do nothing",
        ),
    ],
)
def test_what_cannot_be_done_leaves_no_folder(
    more: list[str], code: int, hint: str, tmp_path: Path, capsys
) -> None:
    given = arguments(tmp_path, *more)
    if "--keep" in more:
        at = given.index("--no-comparators")
        given = [*given[:at], *given[at + 1 :]]
    assert main(given) == code
    assert hint in " ".join(capsys.readouterr().err.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.txt", "model"]


def test_a_quarter_to_five_eighths_of_the_pairs_with_and_without_a_latent() -> None:
    base = Recipe(pairs=1, rule="norm")
    single = AttentionConfig(mode="gqa", d_model=64, n_heads=4, n_kv_heads=1, geo_head_dim=64, v_head_dim=64)
    assert [recipe.pairs for recipe in recipes_of(single, Scope(base=base))] == [8, 12, 16, 20]
    grouped = AttentionConfig(mode="gqa", d_model=64, n_heads=6, n_kv_heads=3, geo_head_dim=64, v_head_dim=64)
    found = recipes_of(grouped, Scope(base=base, pairs=16))
    assert [(recipe.pairs, recipe.latent, recipe.rule) for recipe in found] == [
        (16, None, "norm"),
        (16, 64, "norm"),
    ]


def test_an_origin_checkpoint_becomes_a_run_as_it_is(tmp_path: Path, capsys) -> None:
    config = {**origin.CONFIG, "vocab_size": 256}
    state = origin.random_state(config)
    checkpoint = origin.write(tmp_path / "old.pt", config, state)
    (tmp_path / "b.txt").write_text("".join(f"{n} it was the best of times\n" for n in range(40)))
    out = tmp_path / "out"
    given = ["convert", str(checkpoint), "--out", str(out), "--eval", str(tmp_path / "b.txt"),
             "--tokenizer", "bytes", "--eval-tokens", "64"]  # fmt: skip
    assert main(given) == 2
    assert "Give --keep" in capsys.readouterr().err
    assert not out.exists()
    assert main([*given, "--keep"]) == 0
    told = capsys.readouterr()
    assert "left out, exact attention does not read them: long_seq_mem_k_alpha" in told.err
    report = json.loads((out / "conversion.json").read_text(encoding="utf-8"))
    assert (report["recipe"], report["calibration"], report["family"]) == (None, None, "origin")
    assert [row["key"] for row in report["variants"]] == ["original", "original_policy"]
    assert sorted(path.name for path in (out / "plots").iterdir()) == ["pareto.png"]
    run = load_run(out)
    tokens = torch.arange(30)[None] + 40
    expected = origin.logits(config, state, tokens)
    assert (run.model(tokens) - expected).abs().max() / expected.abs().max() < 1e-5
    assert main(["sample", str(out), "--prompt", "once", "--max-new-tokens", "3"]) == 0
    assert main(["eval", str(out), "--json"]) == 0


def test_the_source_and_what_is_made_of_it_share_all_but_attention(tmp_path: Path) -> None:
    from dba_core.model.pretrained import open_pretrained
    from dba_plugins.convert.calibration import calibrate
    from dba_plugins.convert.decouple import decouple, select_pairs

    model = open_pretrained(write_folder(tmp_path / "model", WIDE, random_weights(WIDE))).build()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.random.get_rng_state()
    measured = calibrate(model, torch.arange(64).view(2, 32))
    pairs = select_pairs(measured, model.attentions[0].rope.frequencies, pairs=4, rule="kl")
    made = decouple(model, measured, pairs, Recipe(pairs=4))
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, parameter in made.named_parameters():
        if ".attn." not in name:
            assert parameter.data_ptr() == model.get_parameter(name).data_ptr(), name
    assert made.config.attention.mode == "decoupled"
    assert model.config.attention.mode == "gqa"
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
