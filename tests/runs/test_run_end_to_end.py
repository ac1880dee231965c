"""A run leaves every file, and every number in them is what another way of computing it gives."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from runs_tiny import POLICY, dba, losses

from dba_core import load_run
from dba_core.config.run import RunConfig
from dba_core.data.corpus import load_corpus

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def summary(tiny):
    return json.loads(tiny.folder.summary_json.read_text())


@pytest.fixture(scope="module")
def run(tiny):
    return load_run(tiny.folder.path)


def test_every_file_is_there(tiny) -> None:
    names = {
        str(path.relative_to(tiny.folder.path)) for path in tiny.folder.path.rglob("*") if path.is_file()
    }
    fixed = {name for name in names if not name.startswith("checkpoint/step-")}
    assert fixed == {
        "resolved_config.json",
        "metrics.jsonl",
        "summary.json",
        "summary.md",
        "samples.txt",
        "checkpoint/best",
        "checkpoint/last",
        "plots/loss.png",
        "plots/gate.png",
        "plots/kv_memory.png",
    }
    assert tiny.folder.path.name.endswith("-tiny")


def test_json_is_the_summary_and_nothing_else_is_on_stdout(tiny, summary) -> None:
    assert tiny.done.json == summary
    assert "over the first 128 held-out tokens" in tiny.done.err
    assert "\x1b" not in tiny.done.err, "no colours and no bar off a terminal"


def test_the_resolved_configuration_is_resolved(tiny) -> None:
    data = json.loads(tiny.folder.config_file.read_text())
    config = RunConfig.from_dict(data)
    assert config.to_dict() == data
    assert config.device == "cpu"
    assert config.kv_policy.short == POLICY
    assert config.generation.seed == config.seed == 5
    assert (config.model.vocab_size, config.model.d_ff, config.model.embed_dim) == (256, 88, 32)
    assert config.model.attention.n_kv_heads == 2
    knobs = config.model.train_long_seq
    assert (knobs.threshold, knobs.mem_block, knobs.local_window, knobs.q_chunk) == (3072, 64, 512, 128)
    for kind in ("summarizer", "gate", "null_token", "decode_backend"):
        choice = data["plugins"][kind]
        assert choice["name"] != "auto"
        assert choice["record"]["distribution"] == "dba-attention"
        assert choice["record"]["contract"] == 1
        assert choice["record"]["why"].startswith("auto")


def test_metrics_are_those_of_the_steps(tiny, summary) -> None:
    rows = losses(tiny.folder)
    assert [step for kind, step, _ in rows if kind == "train"] == list(range(1, 9))
    assert [step for kind, step, _ in rows if kind == "eval"] == [4, 8]
    train = [loss for kind, _, loss in rows if kind == "train"]
    assert summary["losses"]["train"] == train[-1], "the last twentieth of 8 steps"
    assert summary["training"] == {
        "steps": 8,
        "batch_size": 4,
        "tokens": 8 * 4 * 16,
        "seconds": summary["training"]["seconds"],
        "processes": 1,
    }


def test_the_held_out_loss_is_that_of_the_best_weights(run, summary) -> None:
    corpus = load_corpus(run.config.data, context=16)
    tokens = torch.tensor(corpus.held_out.tolist())
    total = 0.0
    for start in range(0, len(tokens) - 1, 16):
        window = tokens[start : start + 17]
        with torch.no_grad():
            logits = run.model(window[None, :-1])[0].double()
        total -= logits.log_softmax(-1)[torch.arange(len(window) - 1), window[1:]].sum().item()
    n = len(tokens) - 1
    found = summary["losses"]
    assert found["held_out_tokens"] == n
    assert found["held_out"] == pytest.approx(total / n, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(total / n), rel=1e-4)
    assert found["bits_per_byte"] == pytest.approx(total / n / math.log(2), rel=1e-5)
    evaluations = {step: loss for kind, step, loss in losses(run.folder) if kind == "eval"}
    assert found["checkpoint"] == "best"
    assert found["checkpoint_step"] == run.step == min(evaluations, key=evaluations.__getitem__)


def test_sizes_are_those_of_the_real_model_and_cache(run, summary) -> None:
    assert summary["model"]["cost"]["parameters"] == sum(p.numel() for p in run.model.parameters())
    memory = summary["kv_memory"]
    cache = run.model.new_cache(batch=1, capacity=100, policy=POLICY)
    assert cache.nbytes == 100 * memory["bytes_per_token"] + memory["residual_bytes"]
    assert memory["standard_bytes_per_token"] == 2 * 2 * 32 * 2
    assert memory["ratio"] == pytest.approx(memory["standard_bytes_long"] / memory["bytes_long"])
    assert summary["kv_policy"] == POLICY


def test_fidelity_is_that_of_the_policy(run, summary) -> None:
    found = summary["fidelity"]
    assert found["tokens"] == 40
    assert 0 < found["kl"] < 0.1
    assert found["ppl_ratio"] == pytest.approx(math.exp(found["delta_nll"]))


def test_the_rest_of_the_summary(tiny, summary) -> None:
    assert summary["schema"] == 1
    assert summary["null_attention"] == "Inactive"
    assert summary["long_sequence"]["enabled"] is True
    assert summary["long_sequence"]["active"] is False
    assert "below the threshold of 3072" in summary["long_sequence"]["text"]
    assert summary["data"]["held_out_tokens"] + summary["data"]["train_tokens"] == summary["data"]["tokens"]
    speed = summary["speed"]
    assert min(speed["training"], speed["prefill"], speed["decode"], speed["peak_memory_bytes"]) > 0
    assert set(summary["seconds"]) == {"prepare", "train", "evaluate", "fidelity", "speed", "sample", "plots"}
    assert summary["environment"]["versions"]["torch"] == torch.__version__
    assert summary["sample"]["prompt"] + summary["sample"]["text"]
    assert summary["sample"]["text"] in tiny.folder.samples_file.read_text()


def test_summary_md_shows_what_was_asked_for(tiny, summary) -> None:
    text = tiny.folder.summary_md.read_text()
    assert f"| KV Policy | {POLICY} |" in text
    assert "| Null Attention | Inactive |" in text
    assert f"| Parameters | {summary['model']['cost']['parameters']:,} |" in text
    assert f"{summary['losses']['held_out']:.4f}" in text
    for name in ("Long-sequence training", "Summarizer", "Gate", "Null token", "Decode backend"):
        assert f"| {name} |" in text
    for plot in summary["plots"].values():
        assert f"]({plot})" in text
        assert (tiny.folder.path / plot).is_file()


def test_the_pictures_show_something(tiny) -> None:
    from matplotlib.image import imread

    for path in sorted(tiny.folder.plots.glob("*.png")):
        image = imread(path)
        assert min(image.shape[:2]) > 300
        colors = np.unique((image[..., :3] * 255).astype(int) @ [1, 256, 65536])
        assert len(colors) > 20, f"{path.name} is empty"


def test_the_commands_of_the_summary_work(tiny, summary) -> None:
    import shlex

    commands = summary["commands"]
    evaluated = dba(*shlex.split(commands["evaluate"])[1:], "--json")
    assert evaluated.code == 0
    assert evaluated.json["held_out"]["loss"] == summary["losses"]["held_out"]
    assert evaluated.json["fidelity"]["kl"] == summary["fidelity"]["kl"]
    assert evaluated.json["kv_memory"] == summary["kv_memory"]
    sampled = dba(*shlex.split(commands["sample"])[1:])
    assert sampled.code == 0
    assert sampled.out.startswith("The ")
    assert dba(*shlex.split(commands["repeat"])[1:], "--dry-run").code == 0


def test_an_evaluation_of_other_data_and_another_policy(tiny, tmp_path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("3 green bottles hanging on the wall\n" * 4)
    policy = "ksem=fp32,kgeo=fp32,v=fp32,resid=0"
    done = dba("eval", str(tiny.folder.path), "--data", str(other), "--kv-policy", policy, "--json")
    assert done.code == 0
    assert done.json["data"]["name"] == "other.txt"
    assert done.json["held_out"]["tokens"] == 4 * 36 - 1, "all of it"
    assert done.json["kv_policy"] == policy
    assert (done.json["fidelity"]["kl"], done.json["fidelity"]["max_abs_logit"]) == (0, 0)
    table = dba("eval", str(tiny.folder.path), "--data", str(other)).out
    assert POLICY in table
    assert "Null Attention" in table
