"""What a run needs of memory: a lower bound of what is measured, an error before anything is allocated."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
from runs_tiny import dba

from dba_core import free_memory
from dba_core.cache.layer import LayerCache
from dba_core.config.attention import AttentionConfig
from dba_core.config.kv_policy import KVCachePolicy
from dba_core.config.model import ModelConfig
from dba_core.config.run import RunConfig, TrainingConfig
from dba_core.data.corpus import Corpus
from dba_core.data.tokenizers import load_tokenizer
from dba_core.free_memory import NotEnoughMemoryError, free_bytes, gib, require_memory
from dba_core.model.language_model import LanguageModel
from dba_core.registry import Registry
from dba_core.runs.estimate import least_parameters, training_need
from dba_core.training.loop import train

pytestmark = pytest.mark.torch

ATTENTION = AttentionConfig(n_heads=4, sem_head_dim=4, geo_head_dim=8, v_head_dim=8)
#: How many times the estimate the measured peak may be, at most.
FACTOR = 3.0

CASES = {
    "activations": ({"d_model": 64, "n_layers": 4, "context": 64}, {"batch_size": 8}, "float32"),
    "bfloat16": ({"d_model": 64, "n_layers": 4, "context": 64}, {"batch_size": 8}, "bfloat16"),
    "accumulated": (
        {"d_model": 64, "n_layers": 4, "context": 64},
        {"batch_size": 8, "grad_accum": 4},
        "float32",
    ),
    "parameters": (
        {"d_model": 256, "n_layers": 2, "context": 16, "tie_embeddings": False},
        {"batch_size": 2},
        "float32",
    ),
    "logits": (
        {"d_model": 32, "n_layers": 1, "context": 64, "mlp": "gelu", "vocab_size": 4096},
        {"batch_size": 8},
        "float32",
    ),
    "one step": ({"d_model": 64, "n_layers": 2, "context": 64}, {"batch_size": 8, "steps": 1}, "float32"),
}


def configured(case: str) -> RunConfig:
    model, training, dtype = CASES[case]
    steps = {"steps": 3, "warmup_steps": 0, "eval_every": 10, "eval_tokens": 32}
    return RunConfig(
        device="cpu",
        dtype=dtype,
        model=ModelConfig(**{"vocab_size": 256, **model}, attention=ATTENTION).resolved(),
        training=TrainingConfig(**{**steps, **training}),
    )


def corpus() -> Corpus:
    tokens = np.arange(3000) % 251
    return Corpus(
        name="n",
        tokens=tokens,
        n_train=2700,
        tokenizer=load_tokenizer("bytes"),
        documents={},
        n_bytes=3000,
        sha256="0" * 64,
    )


def measured_peak(config: RunConfig, folder: Path) -> int:
    """The most bytes that torch's CPU allocator held at once, model included, beyond those of before."""
    gc.collect()
    with torch.profiler.profile(
        profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]
    ) as profile:
        model = LanguageModel(config.model, seed=1)
        train(
            model,
            corpus(),
            config,
            checkpoint_dir=folder / "checkpoint",
            metrics_path=folder / "metrics.jsonl",
        )
    trace = folder / "trace.json"
    profile.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text())["traceEvents"]
    held = [event["args"] for event in events if event.get("name") == "[memory]"]
    before = held[0]["Total Allocated"] - held[0]["Bytes"]
    return max(each["Total Allocated"] for each in held) - before


@pytest.mark.parametrize("case", CASES)
def test_the_estimate_is_a_lower_bound_within_a_factor(case: str, tmp_path: Path) -> None:
    config = configured(case)
    parameters = LanguageModel(config.model, seed=1).n_parameters
    assert 0.95 * parameters < least_parameters(config.model) <= parameters
    need = training_need(config, parameters=parameters)["total"]
    peak = measured_peak(config, tmp_path)
    assert need <= peak <= FACTOR * need, f"{need:,} and {peak:,}"


def test_the_parts_by_hand() -> None:
    config = configured("logits")
    need = training_need(config, parameters=1000)
    assert (need["weights"], need["gradients"], need["optimizer"]) == (4000, 4000, 8000)
    assert need["logits"] == 2 * 4 * 8 * 64 * 4096
    half = training_need(config, parameters=1000, processes=2)
    assert half["logits"] == need["logits"] // 2
    many_steps = attrs.evolve(config, training=attrs.evolve(config.training, steps=10**9))
    assert training_need(many_steps, parameters=1000) == need, "time is not memory"


def test_free_memory_is_that_of_the_narrowest_limit(tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    assert free_bytes("cpu", proc=proc, cgroups=groups) is None, "another system: unknown"
    (proc / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    8000 kB\nSwapFree:  100 kB\n")
    assert free_bytes("cpu", proc=proc, cgroups=groups) == 8100 * 1024
    (proc / "self" / "cgroup").write_text("0::/a/b\n")
    for folder, limit, used in (("a/b", "max", 0), ("a", "5000000", 2000000)):
        (groups / folder).mkdir(parents=True, exist_ok=True)
        (groups / folder / "memory.max").write_text(f"{limit}\n")
        (groups / folder / "memory.current").write_text(f"{used}\n")
    assert free_bytes("cpu", proc=proc, cgroups=groups) == 3000000 + 100 * 1024
    (groups / "a" / "memory.stat").write_text("anon 7\ninactive_file 1000\n")
    assert free_bytes("cpu", proc=proc, cgroups=groups) == 3001000 + 100 * 1024
    (proc / "self" / "cgroup").write_text("3:cpu:/x\n4:memory:/y\n")
    (groups / "memory" / "y").mkdir(parents=True)
    (groups / "memory" / "y" / "memory.limit_in_bytes").write_text("700000")
    (groups / "memory" / "y" / "memory.usage_in_bytes").write_text("900000")
    assert free_bytes("cpu", proc=proc, cgroups=groups) == 100 * 1024


def test_a_need_is_refused_only_above_what_is_free(monkeypatch) -> None:
    monkeypatch.setattr(free_memory, "free_bytes", lambda device: 2**30)
    require_memory(2**30, device="cpu", what="a run", smaller="it")
    with pytest.raises(
        NotEnoughMemoryError, match=r"a run needs at least 2\.0 GiB .* 1\.0 GiB are free; make it"
    ):
        require_memory(2**31, device="cpu", what="a run", smaller="it")
    monkeypatch.setattr(free_memory, "free_bytes", lambda device: None)
    require_memory(2**60, device="cpu", what="a run", smaller="it")
    assert gib(10**5000) == "over 1,000,000,000 GiB"


@pytest.mark.parametrize(
    "absurd",
    [
        ["model.d_model=1000000000"],
        ["training.batch_size=1000000000000"],
        ["model.n_layers=1000000000"],
        ["model.vocab_size=100000000000000"],
        ["model.d_ff=" + "9" * 4000],
    ],
    ids=lambda sets: sets[0][:24],
)
@pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=["run", "dry"])
def test_absurd_sizes_are_refused_before_anything_is_made(inputs, tmp_path: Path, absurd, more) -> None:
    sets = [part for each in absurd for part in ("--set", each)]
    done = dba("run", *inputs, *sets, "--out", str(tmp_path / "runs"), *more)
    assert done.code == 3
    assert "needs at least" in done.err
    assert "smaller" in done.err
    assert not (tmp_path / "runs").exists()


def test_a_context_longer_than_the_text_says_so(inputs) -> None:
    done = dba("run", *inputs, "--set", "model.context=1000000000000")
    assert done.code == 3
    assert "make model.context smaller" in done.err


def test_a_dry_run_gives_the_model_no_memory_and_says_what_it_would_need(inputs, monkeypatch) -> None:
    made: list[LanguageModel] = []
    build = LanguageModel.__init__

    def watched(self, *given, **named) -> None:
        build(self, *given, **named)
        made.append(self)

    monkeypatch.setattr(LanguageModel, "__init__", watched)
    sizes = ["--set", "model.d_model=4096", "--set", "model.n_layers=8", "--set", "model.d_ff=16384"]
    done = dba("run", *inputs, *sizes, "--dry-run", "--json")
    assert done.code == 0, done.err
    assert len(made) == 1
    assert all(tensor.is_meta for tensor in made[0].parameters())
    need = done.json["memory"]
    assert need["weights"] == 4 * done.json["model"]["cost"]["parameters"]
    assert need["total"] >= 16 * done.json["model"]["cost"]["parameters"]
    monkeypatch.setattr(free_memory, "free_bytes", lambda device: 2**30)
    monkeypatch.setattr("dba_core.runs.summary.free_bytes", lambda device: 2**30)
    assert "it does not fit here" in " ".join(dba("run", *inputs, *sizes, "--dry-run").out.split())


def test_the_dry_run_is_of_the_model_that_is_trained(tiny) -> None:
    dry = dba("run", *tiny.args, "--dry-run", "--json").json
    trained = json.loads(tiny.folder.summary_json.read_text())
    for key in ("model", "plugins", "layer_plugins", "null_attention", "long_sequence", "kv_memory"):
        assert dry[key] == trained[key], key


def test_a_cache_that_cannot_fit_is_refused(tiny) -> None:
    done = dba("sample", str(tiny.folder.path), "--prompt", "a", "--max-new-tokens", "1000000000000")
    assert done.code == 3
    assert "a KV cache for 1 sequence(s) of 1,000,000,000,001 tokens" in done.err
    with pytest.raises(NotEnoughMemoryError, match="layer 2 of a KV cache"):
        LayerCache(
            registry=Registry.default(),
            k_sem=(2, 4),
            k_geo=(2, 4),
            v=(2, 4),
            batch=10**12,
            capacity=1,
            policy=KVCachePolicy(),
            layer=2,
        )
