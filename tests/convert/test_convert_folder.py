"""The folder of a conversion: it knows its weights, has one writer, and is refused where it cannot fit."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from llama_oracle import CONFIG, random_weights, write_folder

from dba_cli.main import main
from dba_core import free_memory
from dba_core.errors import RecordMismatchError
from dba_core.runs.folder import one_writer
from dba_core.runs.load import load_run

pytestmark = pytest.mark.torch


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    write_folder(tmp_path / "model", CONFIG, random_weights(CONFIG))
    (tmp_path / "b.txt").write_text("".join(f"{n} it was the best of times\n" for n in range(60)))
    sizes = [
        "--tokenizer",
        "bytes",
        "--context",
        "32",
        "--eval-tokens",
        "64",
        "--eval",
        str(tmp_path / "b.txt"),
    ]
    return ["convert", str(tmp_path / "model"), "--keep", "--out", str(tmp_path / "out"), *sizes]


def test_its_weights_belong_to_its_configuration(command: list[str], tmp_path: Path) -> None:
    assert main(command) == 0
    assert load_run(tmp_path / "out").warnings == ()
    config = tmp_path / "out" / "resolved_config.json"
    data = json.loads(config.read_text())
    data["model"]["norm_eps"] = 0.5
    config.write_text(json.dumps(data))
    with pytest.raises(RecordMismatchError, match=r"model\.norm_eps was .* and is now 0\.5"):
        load_run(tmp_path / "out")


def test_two_conversions_into_one_folder(command: list[str], tmp_path: Path, capsys) -> None:
    dead = tmp_path / ".out.abcd1234"
    dead.mkdir()
    (tmp_path / ".out.notes").mkdir()
    with one_writer(tmp_path / ".out.lock", folder=tmp_path / "out"):
        before = sorted(path.name for path in tmp_path.iterdir())
        assert main(command) == 1
        assert f"out is in use: process {os.getpid()}" in capsys.readouterr().err
        assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert main(command) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.notes", "b.txt", "model", "out"]


def test_a_model_that_cannot_fit_is_refused_before_it_is_read(
    command: list[str], tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(free_memory, "SMALL", 0)
    monkeypatch.setattr(free_memory, "free_bytes", lambda device: 1000)
    assert main(command) == 3
    assert "needs at least" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
