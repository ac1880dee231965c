"""`dba bench converted`: the Llama beside ours is the source itself, and every row is of real calls."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from llama_oracle import CONFIG, random_weights, write_folder

from dba_cli.main import main

pytestmark = pytest.mark.torch

WIDE = {**CONFIG, "head_dim": 12, "max_position_embeddings": 8192}
POLICY = "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Llama and what it was converted to."""
    place = tmp_path_factory.mktemp("converted")
    write_folder(place / "model", WIDE, random_weights(WIDE))
    (place / "a.txt").write_text("the quick brown fox jumps over the lazy dog. " * 30)
    (place / "b.txt").write_text("".join(f"{n} bottles hanging on the wall\n" for n in range(300)))
    made = [
        "convert",
        str(place / "model"),
        "--out",
        str(place / "out"),
        "--pairs",
        "2",
        "--tokenizer",
        "bytes",
    ]
    texts = ["--calibrate", str(place / "a.txt"), "--eval", str(place / "b.txt"), "--no-comparators"]
    assert main([*made, *texts, "--context", "32", "--calibrate-tokens", "96", "--eval-tokens", "64"]) == 0
    return place


@pytest.mark.parametrize("scaling", [None, {"type": "linear", "factor": 4.0}])
def test_transformers_own_llama_gives_the_sources_logits(scaling, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from dba_core.model.pretrained import open_pretrained
    from dba_plugins.bench.llama import llama_of

    config = WIDE if scaling is None else {**WIDE, "rope_scaling": scaling}
    source = open_pretrained(write_folder(tmp_path / "model", config, random_weights(config)))
    tokens = torch.randint(256, (2, 13), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected, found = llama_of(source)(tokens).logits, source.build()(tokens)
    assert (found - expected).abs().max() / expected.abs().max() < 1e-5


def test_names_go_back_and_forth() -> None:
    from dba_plugins.checkpoints.llama_names import from_huggingface, to_huggingface

    for name in random_weights(WIDE):
        ours = from_huggingface(name)
        assert ours is not None
        assert to_huggingface(ours) == name


def test_the_command_measures_prefill_and_decode(place: Path, capsys) -> None:
    pytest.importorskip("transformers")
    given = ["bench", "converted", str(place / "model"), str(place / "out")]
    assert main([*given, "--prompt", "9,20", "--new-tokens", "3", "--repeats", "2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    ours = {"source in dba, fp16 cache", "converted, fp16 cache", f"converted, {POLICY},resid=0"}
    for phase, theirs in (
        ("prefill", {"transformers"}),
        ("decode", {"transformers, static cache", "transformers, dynamic cache"}),
    ):
        for length in (9, 20):
            found = {row["name"]: row for row in rows if (row["phase"], row["length"]) == (phase, length)}
            assert set(found) == ours | theirs
            tokens = length if phase == "prefill" else 3
            for row in found.values():
                assert row["tokens_per_second"] == pytest.approx(tokens / row["ms"] * 1e3)
            fp16, small = (found[name]["cache_megabytes"] for name in sorted(ours)[:2])
            assert small < fp16 == found["source in dba, fp16 cache"]["cache_megabytes"]


def test_a_source_of_another_vocabulary_and_a_short_text_are_refused(
    place: Path, tmp_path: Path, capsys
) -> None:
    pytest.importorskip("transformers")
    other = {**WIDE, "vocab_size": 300}
    folder = write_folder(tmp_path / "other", other, random_weights(other))
    assert main(["bench", "converted", str(folder), str(place / "out")]) == 2
    assert "was not converted from the other" in capsys.readouterr().err
    long = ["bench", "converted", str(place / "model"), str(place / "out"), "--prompt", "99999"]
    assert main(long) == 3
    assert "give a --prompt of at most that" in capsys.readouterr().err


def test_a_measurement_without_a_picture_has_no_plot(place: Path, capsys) -> None:
    for command in ("converted", "kernels", "plugins", "recall", "startup"):
        assert main(["bench", command, "--plot"]) == 2
        assert "--plot" in capsys.readouterr().err
