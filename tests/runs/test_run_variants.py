"""Other layouts and plugins, a run that fails, and what must leave nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from runs_tiny import POLICY, dba, only_run

pytestmark = pytest.mark.torch


def test_standard_attention_has_no_gate_picture_and_says_why(inputs, tmp_path: Path) -> None:
    widths = [f"model.attention.{name}_head_dim=none" for name in ("sem", "geo", "v")]
    sets = [
        word
        for text in [*widths, "model.attention.mode=standard", "training.steps=2"]
        for word in ("--set", text)
    ]
    done = dba("run", *inputs, *sets, "--out", str(tmp_path / "runs"), "--json", "--quiet")
    assert done.code == 0, done.err
    folder = only_run(tmp_path / "runs")
    assert done.json["model"]["layout"] == "standard"
    assert done.json["plots"]["gate"].startswith("left out: the gate plugin 'none'")
    assert "gate: left out" in folder.summary_md.read_text()
    assert not (folder.plots / "gate.png").exists()
    assert "no semantic path" in done.json["long_sequence"]["text"]
    assert json.loads(folder.config_file.read_text())["plugins"]["summarizer"]["record"] is None


def test_plugins_and_policy_change_exactly_what_they_say(inputs, tiny, tmp_path: Path) -> None:
    policy = "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=64"
    changes = ["--plugin", "gate=static", "--plugin", "null_token=learned", "--kv-policy", policy]
    args = [*inputs[:4], *changes, "--set", "training.steps=2", "--out", str(tmp_path / "runs"), "--json"]
    done = dba("run", *args)
    assert done.code == 0, done.err
    assert done.json["null_attention"] == "Active (Fused)"
    assert done.json["kv_policy"] == policy
    assert (done.json["plugins"]["gate"]["name"], done.json["plugins"]["gate"]["why"]) == (
        "static",
        "chosen by name",
    )
    assert "resid=64 covers the whole context of 16 tokens" in done.json["warnings"][0]
    assert "warning: the fp16 window" in done.err
    before = json.loads(tiny.folder.config_file.read_text())
    after = json.loads(only_run(tmp_path / "runs").config_file.read_text())
    assert {key for key in before if before[key] != after[key]} == {
        "data",
        "kv_policy",
        "plugins",
        "training",
    }
    changed = {kind for kind in before["plugins"] if before["plugins"][kind] != after["plugins"][kind]}
    assert changed == {"gate", "null_token"}


LONG = ("threshold=16", "mem_block=2", "local_window=2", "q_chunk=2")


@pytest.mark.parametrize("every", [0, 2])
def test_a_run_that_takes_the_path_reports_both_losses(inputs, tmp_path: Path, every: int) -> None:
    knobs = [f"model.train_long_seq.{knob}" for knob in (*LONG, f"exact_every={every}")]
    sets = [word for knob in (*knobs, "training.steps=40", "training.lr=1e-2") for word in ("--set", knob)]
    args = [*inputs, *sets, "--plugin", "summarizer=mean", "--out", str(tmp_path / "runs"), "--json"]
    done = dba("run", *args, "--quiet")
    assert done.code == 0, done.err
    turn = "one step in 2 exact" if every else "no exact steps"
    assert done.json["long_sequence"]["text"].endswith(f"mass correction off, {turn}")
    losses, folder = done.json["losses"], only_run(tmp_path / "runs")
    as_trained = dba("eval", str(folder.path), "--long-seq", "--json").json["held_out"]["loss"]
    assert losses["held_out_as_trained"] == pytest.approx(as_trained, rel=1e-6)
    assert losses["held_out"] != losses["held_out_as_trained"]
    far = losses["held_out"] - losses["held_out_as_trained"] > 0.1
    assert far == any("smaller model.train_long_seq.exact_every" in text for text in done.json["warnings"])
    assert f"{as_trained:.4f} with the long-sequence path" in folder.summary_md.read_text()


def test_a_dry_run_describes_and_writes_nothing(inputs, tiny, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    done = dba("run", *inputs, "--dry-run", "--json", "--out", str(tmp_path / "runs"))
    assert done.code == 0
    assert done.err == ""
    assert sorted(tmp_path.rglob("*")) == before
    ran = json.loads(tiny.folder.summary_json.read_text())
    for key in ("model", "kv_policy", "kv_memory", "plugins", "null_attention", "long_sequence", "data"):
        assert done.json[key] == ran[key], key
    assert done.json["training_tokens"] == ran["training"]["tokens"]
    flops = done.json["model"]["cost"]["training_flops_per_token"]
    assert done.json["training_flops"] == done.json["training_tokens"] * flops
    table = dba("run", *inputs, "--dry-run").out
    for text in (
        "Parameters",
        "FLOPs per token",
        "KV bytes per token",
        "KV cache at 16 tokens",
        "at 128k",
        "auto:",
        POLICY,
    ):
        assert text in table


@pytest.mark.parametrize(
    ("args", "code", "hint"),
    [
        (["--data", "nosuch.txt"], 3, "nosuch.txt"),
        (["--set", "model.context=5000"], 3, "too short"),
        (["--set", "model.vocab_size=100"], 3, "model.vocab_size: 100 is smaller"),
        (["--plugin", "gate=cusal"], 4, "Did you mean 'causal'"),
        (["--plugin", "decode_backend=triton"], 4, "unknown decode_backend 'triton'"),
        (["--plugin", "gate=causal:initt=0.5"], 3, "Did you mean 'init'"),
        (["--device", "cuda:99"], 3, "--device cpu"),
        (
            ["--set", "model.train_long_seq.enabled=false", "--plugin", "summarizer=men"],
            4,
            "Did you mean 'mean'",
        ),
    ],
)
def test_wrong_input_leaves_nothing(inputs, tmp_path: Path, args: list[str], code: int, hint: str) -> None:
    done = dba("run", *inputs, *args, "--out", str(tmp_path / "runs"))
    assert done.code == code
    assert done.out == ""
    assert hint in done.err
    assert not (tmp_path / "runs").exists()


def test_a_run_that_fails_leaves_what_there_is(inputs, tmp_path: Path) -> None:
    sets = ["--set", "training.lr=1e30", "--set", "training.warmup_steps=0", "--set", "training.grad_clip=0"]
    done = dba("run", *inputs, *sets, "--out", str(tmp_path / "runs"), "--quiet")
    assert done.code == 1
    assert done.out == ""
    folder = only_run(tmp_path / "runs")
    assert folder.config_file.is_file()
    assert folder.metrics_file.is_file()
    assert not folder.summary_json.exists()
    assert str(folder.path) in done.err
    assert "training.lr" in done.err


def test_why_explains_the_choice_and_what_was_passed_over(inputs) -> None:
    chosen = dba("plugins", "why", "gate", *inputs, "--json")
    assert chosen.code == 0
    assert (chosen.json["name"], chosen.json["passed_over"]) == ("causal", [])
    assert chosen.json["request"]["shape"]["sem_head_dim"] == 2
    other = dba("plugins", "why", "gate", "--preset", "paper-baseline", "--json").json
    assert other["name"] == "none"
    assert [passed["name"] for passed in other["passed_over"]] == ["causal"]
    assert other["passed_over"][0]["reasons"][0]["action"]
    text = dba("plugins", "why", "gate", "--preset", "paper-baseline").out
    assert text.startswith("gate: none of dba")
    assert "  passed over: causal of dba-attention: sem_head_dim: got 0" in text
    assert (
        "  not asked: static of dba-attention: not in the order of auto, only chosen by name; sem_head_dim"
        in text
    )
    absent = dba("plugins", "why", "summarizer", "--preset", "paper-baseline")
    assert absent.code == 1
    assert "has no summarizer" in absent.err
    assert dba("plugins", "why", "decode_backend", *inputs).out.startswith("decode_backend: cpu of dba")


def test_info_describes_a_plugin() -> None:
    found = dba("plugins", "info", "causal", "--json").json
    assert (found["kind"], found["name"], found["distribution"], found["contract"]) == (
        "gate",
        "causal",
        "dba-attention",
        1,
    )
    assert [option["name"] for option in found["options"]] == ["init"]
    both = dba("plugins", "info", "none", "--json").json
    assert {each["kind"] for each in both} == {"gate", "null_token"}
    assert dba("plugins", "info", "none", "--kind", "gate", "--json").json["kind"] == "gate"
    text = dba("plugins", "info", "causal").out
    assert "--plugin gate=causal" in text
    assert "init" in text
