"""One writer per folder: a second one is refused before it writes, who reads is not, a dead one is gone."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import torch
from runs_tiny import dba

from dba_core.runs.folder import FolderInUseError, one_writer
from dba_core.runs.job import one_group_of_writers
from dba_core.training.distributed import World

pytestmark = pytest.mark.torch


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_second_writer_is_refused_and_writes_nothing(tiny) -> None:
    folder = tiny.folder.path
    with one_writer(folder / ".lock", folder=folder):
        before = contents(folder)
        done = dba("run", "--resume", str(folder))
        assert done.code == 1
        assert f"process {os.getpid()} on " in done.err
        assert "is in use" in done.err
        assert dba("sample", str(folder), "--prompt", "a").code == 0, "who reads needs no lock"
        assert contents(folder) == before
    assert not (folder / ".lock").exists()
    assert not (folder / ".lock.json").exists()


def test_the_lock_of_a_process_that_was_killed_is_free(tmp_path: Path) -> None:
    code = textwrap.dedent("""
        import os, signal, sys
        from pathlib import Path
        from dba_core.runs.folder import one_writer
        folder = Path(sys.argv[1])
        with one_writer(folder / ".lock", folder=folder):
            print("held", flush=True)
            sys.stdin.read()
    """)
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdin is not None
    with other:
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(FolderInUseError, match=f"process {other.pid} on "),
            one_writer(tmp_path / ".lock", folder=tmp_path),
        ):
            pass
        other.kill()
    with one_writer(tmp_path / ".lock", folder=tmp_path):
        pass


def test_the_other_processes_of_a_group_stop_with_the_main_one(tmp_path: Path, monkeypatch) -> None:
    told: list[torch.Tensor] = []

    def broadcast(world: World, tensors: list[torch.Tensor]) -> None:
        if world.is_main:
            told.extend(tensor.clone() for tensor in tensors)
        else:
            for tensor in tensors:
                tensor.copy_(told.pop(0))

    monkeypatch.setattr(World, "broadcast", broadcast)
    main, other = World(0, 2), World(1, 2)
    with one_group_of_writers(main, tmp_path), one_group_of_writers(other, tmp_path):
        assert (tmp_path / ".lock").exists()
        with pytest.raises(FolderInUseError, match="process "), one_group_of_writers(main, tmp_path):
            pass
        with pytest.raises(FolderInUseError, match="the main process"), one_group_of_writers(other, tmp_path):
            pass
    assert not (tmp_path / ".lock").exists()


def test_threads_of_one_process_exclude_each_other_too(tmp_path: Path) -> None:
    refused: list[str] = []

    def second() -> None:
        try:
            with one_writer(tmp_path / ".lock", folder=tmp_path):
                pass
        except FolderInUseError as error:
            refused.append(str(error))

    with one_writer(tmp_path / ".lock", folder=tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert len(refused) == 1
