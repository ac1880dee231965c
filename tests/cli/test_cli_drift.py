"""`dba drift` and `dba eval --long-seq` on runs that were really trained: figures, files, codes, refusals."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

from dba_core.config.loading import load_config
from dba_core.config.long_sequence import LongSequenceConfig
from dba_core.documents import write_json
from dba_core.registry import Registry
from dba_core.runs.folder import new_folder
from dba_core.runs.load import Run, load_run
from dba_core.runs.prepare import prepare
from dba_core.training.loop import train
from dba_plugins.drift.logits import Approximation, measure_drift

pytestmark = pytest.mark.torch


CONFIG = """
[model]
context = 24
n_layers = 1
d_model = 32
[model.attention]
n_heads = 2
[model.train_long_seq]
threshold = 24
mem_block = 4
local_window = 4
q_chunk = 4
[training]
steps = 6
batch_size = 4
warmup_steps = 1
lr = 0.05
eval_tokens = 48
[evaluation]
tokens = 100
fidelity_tokens = 8
"""
SMALL = ["--local-window", "4", "--mem-block", "4", "--q-chunk", "4"]
REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three runs: trained with conv, trained with exact attention, standard layout."""
    folder = tmp_path_factory.mktemp("drift")
    (folder / "tiny.toml").write_text(CONFIG)
    (folder / "song.txt").write_text(
        "".join(f"{n} green bottles hanging on the wall\n" for n in range(60, 0, -1))
    )
    off = "model.train_long_seq.enabled=false"
    make_run(folder, "conv", "plugins.summarizer.name=conv")
    make_run(folder, "exact", off)
    make_run(folder, "standard", off, "model.attention.mode=standard")
    return folder


def make_run(folder: Path, name: str, *sets: str) -> None:
    """What `dba run` leaves of a trained model: its configuration and its checkpoint."""
    source = f"data.source={json.dumps(str(folder / 'song.txt'))}"
    loaded = load_config(file=folder / "tiny.toml", sets=[source, *sets])
    prepared = prepare(loaded.config, Registry.default(), device="cpu")
    made = new_folder(folder / "runs", name, now=datetime(2025, 1, 1))
    write_json(made.config_file, prepared.config.to_dict())
    train(
        prepared.model,
        prepared.corpus,
        prepared.config,
        checkpoint_dir=made.checkpoint,
        metrics_path=made.metrics_file,
    )


@pytest.fixture(scope="module")
def run(place: Path) -> Run:
    return load_run(folder_of(place, "conv"))


def folder_of(place: Path, name: str) -> str:
    (path,) = (place / "runs").glob(f"*-{name}")
    return str(path)


def leaves(value: Any, path: str = "") -> Iterator[str]:
    """`settings.all.kl` for every leaf of a document; list indices are left out."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item, path)
    else:
        yield path


def test_figures_are_those_of_the_model_on_the_held_out_text(dba, place: Path, run: Run) -> None:
    done = dba("drift", folder_of(place, "conv"), "--documents", "3", "--length", "20", "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    (setting,) = document["settings"]
    assert document["schema"] == 1
    assert (document["part"], document["context"], document["length"], document["tokens"]) == (
        "held-out",
        24,
        20,
        60,
    )
    assert document["trained_with"].startswith(
        "long-sequence path from 24 tokens on (summarizer conv, mem_block 4,"
    )
    assert setting["numbers"] == {
        "summarizer": "conv", "mem_block": 4, "local_window": 4, "q_chunk": 4, "mass_correction": False,
    }  # fmt: skip
    text = (place / "song.txt").read_bytes()
    held_out = text[len(text) - document["data"]["held_out_tokens"] :]
    stretches = [list(held_out[offset : offset + 21]) for offset in document["offsets"]]
    (drift,) = measure_drift(run.model, stretches, [Approximation(run.config.model.train_long_seq)])
    first = setting["first_memory_position"]
    assert first == 8
    for key, start in (("all", 0), ("beyond_window", first)):
        expected = attrs.asdict(drift.total.result(start=start))
        assert {name: setting[key][name] for name in expected} == expected
        assert expected["kl"] > 0
    assert [each["tokens"] for each in setting["documents"]] == [20, 20, 20]
    assert document["exact_nll"] == pytest.approx(
        sum(point["figures"]["exact_nll"] * point["figures"]["tokens"] for point in setting["curve"]) / 60
    )
    assert [(point["start"], point["stop"]) for point in setting["curve"]] == [(n, n + 1) for n in range(20)]
    with torch.no_grad():
        logits = torch.stack([run.model(torch.tensor([each[:-1]]))[0] for each in stretches])
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), torch.tensor(stretches)[:, 1:].flatten()
        )
    assert document["exact_nll"] == pytest.approx(float(loss), rel=1e-5)


def test_a_sweep_is_the_product_of_its_lists(dba, place: Path) -> None:
    lists = [
        "--summarizer",
        "conv,mean",
        "--mass-correction",
        "both",
        "--local-window",
        "0,8",
        "--mem-block",
        "4,6,4",
    ]
    document = json.loads(dba("drift", folder_of(place, "conv"), *lists, "--q-chunk", "3", "--json").out)
    numbers = [tuple(setting["numbers"].values()) for setting in document["settings"]]
    assert numbers == [
        (summarizer, block, window, 3, mass)
        for summarizer in ("conv", "mean")
        for mass in (True, False)
        for window in (0, 8)
        for block in (4, 6)
    ]
    assert len({setting["all"]["kl"] for setting in document["settings"]}) > 10


def test_every_field_of_the_json_is_documented(dba, place: Path) -> None:
    done = dba("drift", folder_of(place, "exact"), *SMALL, "--json", "--fail-above", "kl=1e9")
    page = (REPO / "docs" / "how-to" / "drift.md").read_text(encoding="utf-8")
    found = {leaf for leaf in leaves(json.loads(done.out)) if not leaf.startswith("data.")}
    names = {part for leaf in found for part in leaf.split(".")}
    assert {"settings", "curve", "beyond_window", "exceeded_by", "numbers"} <= names | {"exceeded_by"}
    assert not {name for name in names if not re.search(rf"`{name}`", page)}


def test_a_window_that_covers_everything_has_no_drift_and_says_why(dba, place: Path) -> None:
    done = dba("drift", folder_of(place, "conv"), "--local-window", "24", "--length", "24", "--json")
    (setting,) = json.loads(done.out)["settings"]
    assert setting["exact"] is True
    assert setting["all"] | {"exact_nll": 0} == {
        "delta_nll": 0.0, "ppl_ratio": 1.0, "max_abs_logit": 0.0, "kl": 0.0, "exact_nll": 0, "tokens": 96,
    }  # fmt: skip
    assert setting["beyond_window"] is None
    assert any("0 by construction" in note for note in json.loads(done.out)["notes"])


def test_the_length_left_out_and_what_is_said_about_it(dba, place: Path) -> None:
    inside = dba("drift", folder_of(place, "exact"), *SMALL, "--json")
    assert json.loads(inside.out)["length"] == 24
    assert "more than the 24" not in inside.out
    assert "made by 'mean'" in inside.out
    wide = dba(
        "drift",
        folder_of(place, "exact"),
        "--local-window",
        "30",
        "--mem-block",
        "2",
        "--q-chunk",
        "8",
        "--json",
    )
    assert json.loads(wide.out)["length"] == 2 * 32
    assert "64 positions (chosen so that half of them read memory tokens) are more than the 24" in wide.out


def test_the_table_and_the_files(dba, place: Path, tmp_path: Path) -> None:
    run = folder_of(place, "exact")
    done = dba("drift", run, *SMALL, "--mass-correction", "both", "--plot")
    assert done.code == 0, done.err
    assert "Long-sequence attention against exact attention" in done.out
    assert len(re.findall(r"^ +mean +(?:on|off) ", done.out, re.MULTILINE)) == 2
    assert (Path(run) / "drift" / "drift.png").read_bytes().startswith(b"\x89PNG")
    again = dba("drift", run, *SMALL, "--save", "there", "--json")
    assert json.loads((tmp_path / "there" / "drift.json").read_text()) == json.loads(again.out)
    assert not (tmp_path / "there" / "drift.png").exists()
    before = sorted(Path(run).rglob("*"))
    assert dba("drift", run, *SMALL).code == 0
    assert sorted(Path(run).rglob("*")) == before, "nothing is written that was not asked for"


def test_other_text_is_taken_whole(dba, place: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("one two three four five " * 4)
    done = dba("drift", folder_of(place, "conv"), "--data", "other.txt", "--length", "95", "--json")
    document = json.loads(done.out)
    assert (document["part"], document["data"]["name"], document["offsets"]) == ("all", "other.txt", [0])
    short = dba("drift", folder_of(place, "conv"), "--data", "other.txt", "--length", "96")
    assert short.code == 3
    assert "at most 95" in short.err


def test_fail_above_exits_1_after_everything_was_written(dba, place: Path, tmp_path: Path) -> None:
    args = ["drift", folder_of(place, "exact"), *SMALL, "--json", "--save", "there"]
    passed = dba(*args, "--fail-above", "kl=100", "--fail-above", "beyond_window.max_abs_logit=1000")
    assert passed.code == 0, passed.err
    failed = dba(*args, "--fail-above", "kl=100", "--fail-above", "beyond_window.kl=-1")
    assert failed.code == 1
    document = json.loads(failed.out)
    assert document["thresholds"] == [
        {"metric": "kl", "limit": 100.0, "exceeded_by": []},
        {"metric": "beyond_window.kl", "limit": -1.0, "exceeded_by": [0]},
    ]
    assert json.loads((tmp_path / "there" / "drift.json").read_text()) == document
    last = failed.err.splitlines()[-1]
    assert last.startswith("error: the drift is above what --fail-above allows: beyond_window.kl ")
    assert "kl 100" not in last


@pytest.mark.parametrize(
    ("args", "code", "hint"),
    [
        (["--fail-above", "delta_nl=1"], 2, "Did you mean 'delta_nll'"),
        (["--mem-block", "0"], 2, "'0' is no whole number >= 1"),
        (["--local-window", "4,,8"], 2, "'' is no whole number >= 0"),
        (["--summarizer", "mean,"], 2, "has an empty name"),
        (["--mass-correction", "maybe"], 2, "Allowed: both, off, on"),
        (["--plugin", "decode_backend=streaming"], 2, "No such option"),
        (["--length", "100000"], 3, "length of at most"),
        (["--data", "nosuch.txt"], 3, "nosuch.txt"),
        (["--summarizer", "men"], 4, "Did you mean 'mean'"),
        (["--summarizer", "linear"], 1, "whose weights this model was not trained with"),
    ],
)  # fmt: skip
def test_refusals(dba, place: Path, args: list[str], code: int, hint: str) -> None:
    done = dba("drift", folder_of(place, "conv"), *args)
    assert done.code == code
    assert done.out == ""
    assert hint in done.err


def test_a_layout_without_semantic_keys_is_refused(dba, place: Path) -> None:
    for command in (["drift"], ["eval", "--long-seq"]):
        done = dba(command[0], folder_of(place, "standard"), *command[1:])
        assert done.code == 1
        assert "no semantic keys" in done.err
        assert "model.attention.mode='decoupled'" in done.err


def test_eval_long_seq_is_the_loss_under_the_runs_own_numbers(dba, place: Path, run: Run) -> None:
    plain = json.loads(dba("eval", folder_of(place, "conv"), "--json").out)
    assert plain["long_sequence"] is None
    done = dba("eval", folder_of(place, "conv"), "--long-seq", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["long_sequence"]["exact"] is False
    assert found["long_sequence"]["numbers"]["summarizer"] == "conv"
    text = (place / "song.txt").read_bytes()
    held_out = torch.tensor(list(text[len(text) - found["data"]["held_out_tokens"] :]))
    losses = []
    with torch.no_grad(), run.model.long_sequence(LongSequenceConfig(mem_block=4, local_window=4, q_chunk=4)):
        for start in range(0, 100, 24):
            stop = min(start + 24, 100)
            logits = run.model(held_out[None, start:stop])[0]
            losses.append(
                torch.nn.functional.cross_entropy(logits, held_out[start + 1 : stop + 1], reduction="sum")
            )
    assert found["held_out"]["loss"] == pytest.approx(float(sum(losses)) / 100, rel=1e-5)
    assert found["held_out"]["loss"] != pytest.approx(plain["held_out"]["loss"], rel=1e-4)
    assert found["fidelity"] == plain["fidelity"], "decoding reads a cache and is not touched"
    table = dba("eval", folder_of(place, "conv"), "--long-seq").out
    assert (
        "long-sequence path: summarizer conv, mem_block 4, local_window 4, q_chunk 4, mass correction off"
        in table
    )


def test_eval_long_seq_says_where_it_is_no_approximation(dba, place: Path) -> None:
    untrained = json.loads(dba("eval", folder_of(place, "exact"), "--long-seq", "--json").out)[
        "long_sequence"
    ]
    assert untrained["numbers"]["summarizer"] == "mean"
    assert untrained["text"].endswith("; trained with exact attention")
