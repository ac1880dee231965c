"""A run whose layers choose plugins of their own: its record, its summary, and what is done with it later."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from runs_tiny import dba, losses, only_run

from dba_core.config.loading import load_config
from dba_core.errors import RecordMismatchError
from dba_core.report import SilentReporter
from dba_core.runs.folder import RunFolder
from dba_core.runs.job import RunInterruptedError, run_job
from dba_core.runs.load import load_run
from dba_core.training.loop import StepFinished

pytestmark = pytest.mark.torch

CHOICES = [
    "summarizer=linear",
    "summarizer@layers.1=mean",
    "gate@layers.0=static",
    "gate@layers.1=none",
    "null_token@layers.1=learned",
    "decode_backend@layers.1=streaming:block=8",
]
KNOBS = ("threshold=16", "mem_block=2", "local_window=2", "q_chunk=2")
PLUGINS = [word for choice in CHOICES for word in ("--plugin", choice)]
SETS = [word for knob in KNOBS for word in ("--set", f"model.train_long_seq.{knob}")]


@pytest.fixture(scope="module")
def layered(tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, dict]:
    """The folder and the summary of the run."""
    root = tmp_path_factory.mktemp("layered")
    done = dba("run", *tiny.args, *PLUGINS, *SETS, "--out", str(root), "--json", "--quiet")
    assert done.code == 0, done.err
    return only_run(root), done.json


def test_the_record_names_what_ran_in_which_layers(layered) -> None:
    plugins = json.loads(layered[0].config_file.read_text())["plugins"]
    own = plugins["layers"]
    assert {text: {kind: choice["name"] for kind, choice in own[text].items()} for text in own} == {
        "0": {"gate": "static"},
        "1": {"summarizer": "mean", "gate": "none", "null_token": "learned", "decode_backend": "streaming"},
    }
    for choice in [*own["0"].values(), *own["1"].values()]:
        assert choice["record"]["distribution"] == "dba-attention"
        assert choice["record"]["why"] == "chosen by name"
    assert own["1"]["decode_backend"]["options"]["block"] == 8
    assert plugins["summarizer"]["record"]["why"] == "chosen by name"
    assert plugins["gate"] == {"name": "auto", "options": {}, "record": None}, "no layer has it"


def test_the_summary_shows_it(layered) -> None:
    folder, summary = layered
    named = {kind: (facts["name"], facts["layers"]) for kind, facts in summary["plugins"].items()}
    assert {kind: named[kind] for kind in ("summarizer", "null_token")} == {
        "summarizer": ("linear", "0"),
        "null_token": ("none", "0"),
    }
    assert named["decode_backend"][1] == "0"
    assert "gate" not in named
    keys = "name distribution version contract options how why layers passed_over not_built"
    assert list(summary["plugins"]["summarizer"]) == keys.split()
    assert list(summary["layer_plugins"]["0"]["gate"]) == keys.split()
    assert summary["layer_plugins"]["0"]["gate"]["name"] == "static"
    assert summary["layer_plugins"]["1"]["null_token"]["layers"] == "1"
    assert summary["null_attention"] == "Active (Unfused)"
    assert "summarizer linear (layer 0), mean (layer 1), mass" in summary["long_sequence"]["text"]
    text = folder.summary_md.read_text()
    for row in (
        "| Gate, layer 0 | static",
        "| Gate, layer 1 | none",
        "| Summarizer, layer 1 | mean of dba",
    ):
        assert row in text
    assert summary["plots"]["gate"] == "plots/gate.png"


def test_the_dry_run_says_the_same(tiny, layered) -> None:
    done = dba("run", *tiny.args, *PLUGINS, *SETS, "--dry-run", "--json")
    for key in ("plugins", "layer_plugins", "null_attention", "long_sequence"):
        assert done.json[key] == layered[1][key]


def test_it_repeats_from_its_record(layered, tmp_path: Path) -> None:
    done = dba("run", "--config", str(layered[0].config_file), "--out", str(tmp_path), "--json", "--quiet")
    assert done.code == 0, done.err
    again = only_run(tmp_path)
    assert losses(again) == losses(layered[0])
    assert done.json["losses"] == layered[1]["losses"]
    assert done.json["layer_plugins"]["0"]["gate"]["why"] == "as recorded (chosen by name)"
    diff = dba("config", "diff", str(layered[0].path), str(again.path), "--json")
    assert diff.code == 1
    assert {each["key"].rpartition(".")[2] for each in diff.json["differences"]} == {"how", "why"}


class StopsAfterFive(SilentReporter):
    """Presses Ctrl-C after step 5."""

    def event(self, event) -> None:
        if isinstance(event, StepFinished) and event.step == 5:
            raise KeyboardInterrupt


def test_interrupted_it_goes_on_with_the_same_plugins_only(tiny, layered, tmp_path: Path) -> None:
    config = load_config(file=layered[0].config_file)
    with pytest.raises(RunInterruptedError):
        run_job(config, root=tmp_path, reporter=StopsAfterFive())
    folder = only_run(tmp_path)
    recorded = folder.config_file.read_text()
    data = json.loads(recorded)
    data["plugins"]["layers"]["0"]["gate"]["options"]["init"] = 0.25
    folder.config_file.write_text(json.dumps(data))
    refused = dba("run", "--resume", str(folder.path))
    assert refused.code == 3
    assert "plugins.gate.options.init was 0.5 and is now 0.25" in refused.err
    data = json.loads(recorded)
    data["plugins"]["layers"]["1"]["null_token"] = {"name": "none", "options": {}, "record": None}
    folder.config_file.write_text(json.dumps(data))
    refused = dba("run", "--resume", str(folder.path))
    assert refused.code == 3
    assert "plugins.layers.1.null_token.name was 'learned' and is now 'none'" in refused.err
    folder.config_file.write_text(recorded)
    done = dba("run", "--resume", str(folder.path), "--json", "--quiet")
    assert done.code == 0, done.err
    assert losses(folder) == losses(layered[0])


def test_it_is_evaluated_sampled_and_compared(layered) -> None:
    run = str(layered[0].path)
    exact = dba("eval", run, "--json").json
    assert exact["held_out"]["loss"] == pytest.approx(layered[1]["losses"]["held_out"], rel=1e-6)
    assert exact["null_attention"] == "Active (Unfused)"
    as_trained = dba("eval", run, "--long-seq", "--json").json
    assert as_trained["long_sequence"]["numbers"]["summarizer"] == "linear (layer 0), mean (layer 1)"
    assert as_trained["held_out"]["loss"] == pytest.approx(
        layered[1]["losses"]["held_out_as_trained"], rel=1e-6
    )
    sampled = dba("sample", run, "--prompt", "7", "--temperature", "0", "--json")
    other = dba(
        "sample",
        run,
        "--prompt",
        "7",
        "--temperature",
        "0",
        "--json",
        "--plugin",
        "decode_backend=streaming:block=4",
    )
    assert sampled.code == other.code == 0
    assert sampled.json["samples"] == other.json["samples"]
    drift = dba("drift", run, "--json")
    assert drift.code == 0, drift.err
    assert "linear (layer 0), mean (layer 1)" in drift.json["trained_with"]


def test_a_backend_for_all_layers_replaces_those_of_single_layers(layered) -> None:
    from dba_core.registry.choice import PluginChoice

    choice = PluginChoice("streaming", options={"block": 4})
    run = load_run(layered[0].path, plugins={"decode_backend": choice})
    cache = run.model.new_cache(batch=1, capacity=8, policy=run.config.kv_policy)
    pairs = zip(run.model.attentions, cache.layers, strict=True)
    assert [layer.decode_selection(own).options.block for layer, own in pairs] == [4, 4]


def test_drift_in_one_layer_stops_it(layered, tmp_path: Path) -> None:
    data = json.loads(layered[0].config_file.read_text())
    data["plugins"]["layers"]["1"]["null_token"]["record"]["version"] = "0.0.1"
    file = tmp_path / "resolved_config.json"
    file.write_text(json.dumps(data))
    done = dba("run", "--config", str(file), "--out", str(tmp_path / "runs"))
    assert done.code == 5
    assert (
        "error: in layer 1, null_token 'learned' was recorded with dba-attention 0.0.1, installed is"
        in done.err
    )
    assert "--plugin null_token@layers.1=NAME" in done.err
    with pytest.raises(RecordMismatchError, match="in layer 1, null_token"):
        load_run(tmp_path)
    allowed = dba("run", "--config", str(file), "--dry-run", "--allow-drift", "--json")
    assert allowed.json["warnings"][0].startswith("in layer 1, null_token 'learned'")


def test_other_plugins_of_a_layer_are_another_run(tiny, layered, tmp_path: Path) -> None:
    """The checkpoint belongs to the layers' plugins too."""
    config = layered[0].config_file
    data = json.loads(config.read_text())
    before = config.read_text()
    data["plugins"]["layers"]["0"]["gate"] = {"name": "causal", "options": {}, "record": None}
    try:
        config.write_text(json.dumps(data))
        done = dba("eval", str(layered[0].path))
    finally:
        config.write_text(before)
    assert done.code == 5
    assert "plugins.gate.name was 'static' and is now 'causal'" in done.err


def test_why_explains_each_choice(tiny) -> None:
    text = dba("plugins", "why", "gate", *tiny.args, *PLUGINS, *SETS).out.splitlines()
    assert text[0].startswith("gate@layers.0: static of dba-attention ")
    assert [line for line in text if line.startswith("gate@layers.1: none of dba")]
    several = dba("plugins", "why", "summarizer", *tiny.args, *PLUGINS, *SETS, "--json").json
    assert [(each["name"], each["layers"]) for each in several] == [("linear", "0"), ("mean", "1")]


def test_strict_refuses_a_fallback_before_anything_is_written(tiny, tmp_path: Path) -> None:
    widths = [f"model.attention.{name}_head_dim=none" for name in ("sem", "geo", "v")]
    sets = [word for text in [*widths, "model.attention.mode=standard"] for word in ("--set", text)]
    out = ["--out", str(tmp_path / "runs")]
    refused = dba("run", *tiny.args, *sets, *out, "--strict")
    assert refused.code == 1
    assert "--strict allows no fallback; choose what runs by name (--plugin gate=none)" in refused.err
    assert "gate of layers 0-1, causal, sem_head_dim: got 0" in refused.err
    assert not (tmp_path / "runs").exists()
    assert dba("run", *tiny.args, *sets, *out, "--strict", "--dry-run", "--plugin", "gate=none").code == 0
    assert dba("run", *tiny.args, "--strict", "--dry-run").code == 0
    assert dba("plugins", "why", "gate", *tiny.args, *sets, "--strict").code == 1
