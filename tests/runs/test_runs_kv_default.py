"""The KV policy of a run that names none: smaller than fp16 at the run's own context, and recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from runs_tiny import dba, only_run, write_inputs

from dba_core.config import KVCachePolicy, RunConfig, load_config
from dba_core.config.loading import list_presets
from dba_core.model.language_model import LanguageModel
from dba_core.runs.estimate import policy_of
from dba_core.runs.plots import memory_title

pytestmark = pytest.mark.torch

FP16 = "ksem=fp16,kgeo=fp16,v=fp16"
NARROW = ("model.n_layers=2", "model.d_model=48", "model.vocab_size=64")


def allocated(config: RunConfig, policy: str) -> int:
    """Bytes of a cache that is really made, of the model's context, as `new_cache` makes one."""
    model = LanguageModel(config.model.resolved(vocab_size=64), seed=1)
    return model.new_cache(batch=1, capacity=config.model.context, policy=policy).nbytes


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        ([*NARROW, "model.context=64"], "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=0"),
        ([*NARROW, "model.context=767"], "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=0"),
        ([*NARROW, "model.context=768"], "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=32"),
        ([*NARROW, "model.context=2048", "model.attention.mode=standard"],
         "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=32"),
        # one head of 1 semantic channel: a byte of codes and two of scale, against two bytes in fp16
        ([*NARROW, "model.attention.n_heads=1", "model.attention.sem_head_dim=1",
          "model.attention.geo_head_dim=4", "model.attention.v_head_dim=8"],
         "ksem=fp16,kgeo=q8_0@32,v=q4_0@32,resid=0"),
        # and 2 geometric channels take 4 bytes both ways, 1 of values 3 against 2
        ([*NARROW, "model.attention.n_heads=1", "model.attention.sem_head_dim=1",
          "model.attention.geo_head_dim=2", "model.attention.v_head_dim=1"], f"{FP16},resid=0"),
    ],
)  # fmt: skip
def test_the_default_is_the_smaller_cache(sets: list[str], expected: str) -> None:
    config = load_config(sets=sets).config
    chosen = policy_of(config)
    assert chosen.short == expected
    own, fp16 = allocated(config, chosen.short), allocated(config, FP16)
    assert own < fp16 if expected != f"{FP16},resid=0" else own == fp16


def test_the_window_that_was_the_default_is_not_smaller_at_a_short_context() -> None:
    config = load_config(sets=[*NARROW, "model.context=128"]).config
    assert allocated(config, "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=32") > allocated(config, FP16)


@pytest.mark.parametrize("preset", [preset.name for preset in list_presets()])
def test_a_policy_that_is_given_is_left_alone(preset: str) -> None:
    given = "ksem=nf4@16,kgeo=q4_0@8,v=q8_0@64,resid=512"
    assert policy_of(load_config(preset=preset, kv_policy=given).config) == KVCachePolicy.parse(given)


def test_a_run_records_which_policy_it_took(tmp_path: Path) -> None:
    args = write_inputs(tmp_path)
    at = args.index("--kv-policy")
    args = [*args[:at], *args[at + 2 :], "--set", "training.steps=1"]
    expected = "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=0"
    assert dba("run", *args, "--dry-run", "--json").json["kv_policy"] == expected
    done = dba("run", *args, "--out", str(tmp_path / "runs"), "--json", "--quiet")
    assert done.code == 0, done.err
    folder = only_run(tmp_path / "runs")
    assert done.json["kv_policy"] == expected
    assert json.loads(folder.config_file.read_text(encoding="utf-8"))["kv_policy"] == expected
    text = folder.summary_md.read_text(encoding="utf-8")
    assert text.index("KV cache at 16 tokens") < text.index("For scale, at 128k")
    again = dba("run", "--config", str(folder.config_file), "--dry-run", "--json")
    assert again.json["kv_policy"] == expected
    assert dba("plugins", "why", "decode_backend").code == 0


def test_the_picture_claims_the_ratio_at_the_own_context() -> None:
    from dba_core.cache.bytes import MemoryRow

    own, long = (
        MemoryRow(context=128, kv_bytes=30, standard_bytes=20),
        MemoryRow(context=131072, kv_bytes=10, standard_bytes=100),
    )
    title = memory_title(own, long, KVCachePolicy(), name="x")
    assert title.splitlines() == [
        "KV memory of x: 1.5x larger than fp16 standard attention at its context of 128",
        "for scale, at 128k: 10.0x smaller than it",
        "ksem=fp16,kgeo=fp16,v=fp16,resid=0",
    ]
    assert "for scale" not in memory_title(long, long, KVCachePolicy(), name="x")
