"""The run's folder: its name, that nothing is overwritten, and how a short text finds it again. No torch."""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path

import pytest

from dba_core.documents import write_json, write_whole
from dba_core.errors import UsageError
from dba_core.runs.folder import RunFolder, find_run, new_folder, runs_in

NOON = datetime(2025, 3, 4, 12, 30, 59)


def finished(path: Path, *, age: int = 0) -> RunFolder:
    """A folder that counts as a run; a higher age is older."""
    path.mkdir(parents=True)
    folder = RunFolder(path)
    folder.config_file.write_text("{}")
    os.utime(folder.config_file, (10_000 - age, 10_000 - age))
    return folder


def test_the_name_is_time_and_name(tmp_path: Path) -> None:
    assert (
        new_folder(tmp_path / "runs", "default", now=NOON).path
        == tmp_path / "runs" / "20250304-123059-default"
    )


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    names = [new_folder(tmp_path, "a", now=NOON).path.name for _ in range(3)]
    assert names == ["20250304-123059-a", "20250304-123059-a-2", "20250304-123059-a-3"]


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("two words", "two-words"),
        ("../../etc", "etc"),
        ("a/b\\c:d", "a-b-c-d"),
        ("...", "run"),
        ("größe", "gr-e"),
        ("x" * 1000, "x" * 120),
    ],
)
def test_a_name_cannot_leave_the_folder(tmp_path: Path, name: str, slug: str) -> None:
    folder = new_folder(tmp_path, name, now=NOON)
    assert folder.path == tmp_path / f"20250304-123059-{slug}"


def test_a_file_name_that_is_no_utf_8_is_kept_in_json(tmp_path: Path) -> None:
    document = {"name": "caf\udce9 é"}
    write_json(tmp_path / "x.json", document)
    assert (tmp_path / "x.json").read_bytes() == b'{\n  "name": "caf\\udce9 \xc3\xa9"\n}\n'
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == document


def test_find_by_folder_and_by_its_configuration(tmp_path: Path) -> None:
    run = finished(tmp_path / "somewhere" / "x")
    assert find_run(run.path) == run
    assert find_run(str(run.config_file)) == run


def test_find_under_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    old = finished(tmp_path / "runs" / "20250304-123059-small", age=9)
    new = finished(tmp_path / "runs" / "20250301-000000-large", age=1)
    (tmp_path / "runs" / "no-run").mkdir()
    assert [run.path.name for run in runs_in(Path("runs"))] == [old.path.name, new.path.name]
    assert find_run("latest").path.name == new.path.name
    assert find_run("small").path.name == old.path.name
    assert find_run("20250304").path.name == old.path.name
    assert find_run("runs/latest").path.name == new.path.name
    with pytest.raises(UsageError, match="fits 2 runs in runs: 20250304-123059-small, 20250301-000000-large"):
        find_run("2025030")
    with pytest.raises(UsageError, match=r"no run at 'smoll'.*Nearest: 20250304-123059-small"):
        find_run("smoll")


def test_find_where_there_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"none in runs\. Make one with run_job"):
        find_run("latest")
    empty = tmp_path / "alone" / "not-a-run"  # a folder whose parent holds no run
    empty.mkdir(parents=True)
    with pytest.raises(UsageError, match=r"resolved_config\.json"):
        find_run(empty)


def test_files_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"x": 1.5, "text": "ü"})
    before = path.read_text(encoding="utf-8")
    assert before == '{\n  "x": 1.5,\n  "text": "ü"\n}\n'
    with pytest.raises(ValueError, match="Out of range float values"):
        write_json(path, {"x": float("nan")})
    path.with_name("a.json.new").mkdir()
    with pytest.raises(OSError, match=r"a\.json\.new"):
        write_whole(path, "another")
    assert path.read_text(encoding="utf-8") == before
