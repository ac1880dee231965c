"""Checkpoints on the disk: whole or not at all whatever fails and wherever, and no damage goes unnoticed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from dba_core.errors import CheckpointError
from dba_core.training import checkpoint
from dba_core.training.checkpoint import has_checkpoint, read_checkpoint, write_checkpoint

pytestmark = pytest.mark.torch


BOTH = ("best", "last")


def write(root: Path, step: int, pointers: tuple[str, ...] = ("last",)) -> Path:
    tensors = {
        "model": {"w": torch.full((3,), float(step))},
        "optimizer": {"m": torch.full((2, 2), float(-step))},
    }
    return write_checkpoint(root, step=step, tensors=tensors, state={"step": step}, pointers=pointers)


def step_of(root: Path, which: str) -> int:
    """The step of a checkpoint all of whose parts agree about it."""
    stored = read_checkpoint(root, which)
    step: int = stored.state["step"]
    assert torch.equal(stored.tensors("model")["w"], torch.full((3,), float(step)))
    assert torch.equal(stored.tensors("optimizer")["m"], torch.full((2, 2), float(-step)))
    return step


def directories(root: Path) -> list[str]:
    return sorted(path.name for path in root.glob("step-*"))


def test_pointers_name_what_they_were_told(tmp_path: Path) -> None:
    root = tmp_path / "run" / "checkpoint"
    first = write(root, 1, BOTH)
    second = write(root, 2)
    assert (step_of(root, "best"), step_of(root, "last")) == (1, 2)
    assert read_checkpoint(root, "last").path == second
    assert directories(root) == sorted([first.name, second.name])
    assert first.name.startswith("step-00000001-")


def test_directories_that_no_pointer_names_are_removed(tmp_path: Path) -> None:
    write(tmp_path, 1, BOTH)
    (tmp_path / "step-00000009-dead").mkdir()
    (tmp_path / "step-00000009-dead" / "model.safetensors").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    for step in (2, 3):
        write(tmp_path, step)
    assert len(directories(tmp_path)) == 2
    write(tmp_path, 4, BOTH)
    assert len(directories(tmp_path)) == 1
    assert (tmp_path / "notes.txt").exists()


def test_tensors_of_every_kind_come_back_to_the_bit(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    tensors = {
        "turned": torch.arange(6.0).view(2, 3).t(),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "bfloat16": torch.tensor([1e-8, float("nan")], dtype=torch.bfloat16),
        "bytes": torch.arange(256, dtype=torch.uint8),
        "parameter": torch.nn.Parameter(torch.tensor([1.0, -0.0])),
        "shared": shared,
        "shared again": shared[2:],
    }
    write_checkpoint(tmp_path, step=1, tensors={"model": tensors}, state={"step": 1}, pointers=("last",))
    read = read_checkpoint(tmp_path, "last").tensors("model")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert read[name].shape == tensor.shape
        bits = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        assert torch.equal(read[name].reshape(-1).view(torch.uint8), bits)


class DiskFull(OSError):  # noqa: N818
    """Stands for whatever a disk can answer."""


class Killed(BaseException):
    """Stands for a process that is gone: nothing in the code may catch it."""


CALLS = [
    (Path, "mkdir"),
    (safetensors.torch, "save_file"),
    (os, "fsync"),
    (os, "replace"),
    (shutil, "rmtree"),
]


def interfere(patch: pytest.MonkeyPatch, at: int, error: type[BaseException], *, after: bool) -> list[str]:
    """Let the `at`-th call to the file system fail, before or after its effect. Returns the calls so far."""
    calls: list[str] = []

    def wrapped(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **given: object) -> object:
            calls.append(name)
            if len(calls) - 1 != at:
                return real(*args, **given)
            if after:
                real(*args, **given)
            raise error("injected")

        return call

    for owner, name in CALLS:
        patch.setattr(owner, name, wrapped(name, getattr(owner, name)))
    return calls


def count_calls(root: Path) -> int:
    write(root, 1, BOTH)
    with pytest.MonkeyPatch.context() as patch:
        calls = interfere(patch, -1, Killed, after=False)
        write(root, 2, BOTH)
    assert {"mkdir", "save_file", "fsync", "replace", "rmtree"} <= set(calls)
    return len(calls)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_process_killed_at_any_instant_leaves_a_whole_checkpoint(tmp_path: Path, after: bool) -> None:
    for at in range(count_calls(tmp_path / "count")):
        root = tmp_path / f"{at}"
        write(root, 1, BOTH)
        with pytest.MonkeyPatch.context() as patch:
            interfere(patch, at, Killed, after=after)
            with pytest.raises(Killed):
                write(root, 2, BOTH)
        best, last = step_of(root, "best"), step_of(root, "last")
        assert (best, last) in [(1, 1), (2, 1), (2, 2)], at
        write(root, 3, BOTH)
        assert (step_of(root, "best"), step_of(root, "last")) == (3, 3)
        assert len(directories(root)) == 1


def test_a_process_killed_during_the_first_save_leaves_none(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interfere(patch, 4, Killed, after=False)
        with pytest.raises(Killed):
            write(tmp_path, 1)
    assert not has_checkpoint(tmp_path, "last")
    with pytest.raises(CheckpointError, match="has no checkpoint 'last'; it has none"):
        read_checkpoint(tmp_path, "last")


def test_a_disk_that_refuses_is_an_error_and_the_old_checkpoint_stays(tmp_path: Path) -> None:
    for at in range(count_calls(tmp_path / "count") - 1):  # the last call removes the old directory
        root = tmp_path / f"{at}"
        write(root, 1, BOTH)
        with pytest.MonkeyPatch.context() as patch:
            interfere(patch, at, DiskFull, after=False)
            with pytest.raises(
                CheckpointError, match=r"step 2 could not be written to \S+ \(injected\).* whole"
            ):
                write(root, 2, BOTH)
        assert step_of(root, "last") in (1, 2)


def damaged(root: Path, name: str) -> Path:
    write(root, 1, ("best",))
    return write(root, 2) / name


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_every_damage_is_noticed_and_the_other_checkpoint_offered(
    tmp_path: Path, name: str, damage: str
) -> None:
    path = damaged(tmp_path, name)
    raw = bytearray(path.read_bytes())
    if damage == "flip":
        raw[len(raw) // 2] ^= 1
        path.write_bytes(bytes(raw))
    elif damage == "truncate":
        path.write_bytes(bytes(raw[:-1]))
    else:
        path.unlink()
    with pytest.raises(CheckpointError, match=rf"{name}.*Copy .*best over .*last") as caught:
        read_checkpoint(tmp_path, "last")
    assert str(path) in str(caught.value)
    shutil.copy(tmp_path / "best", tmp_path / "last")
    assert step_of(tmp_path, "last") == 1


def test_damage_without_another_checkpoint_says_so(tmp_path: Path) -> None:
    (write(tmp_path, 1, BOTH) / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="Restore it from a copy, or train again"):
        read_checkpoint(tmp_path, "last")


@pytest.mark.parametrize("text", ["", "{}", "[]", "step-1", '{"directory": 3, "state_sha256": "x"}'])
def test_a_broken_pointer_is_an_error(tmp_path: Path, text: str) -> None:
    write(tmp_path, 1)
    (tmp_path / "last").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match="is no checkpoint pointer"):
        read_checkpoint(tmp_path, "last")


def test_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    shutil.rmtree(write(tmp_path, 1))
    with pytest.raises(CheckpointError, match=r"state\.json is missing"):
        read_checkpoint(tmp_path, "last")


def test_another_format_names_both_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 1)
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    with pytest.raises(CheckpointError, match="has format 1, this version reads 2"):
        read_checkpoint(tmp_path, "last")


def test_unknown_names_list_what_there_is(tmp_path: Path) -> None:
    write(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"unknown checkpoint 'newest'.*best, last"):
        read_checkpoint(tmp_path, "newest")
    with pytest.raises(CheckpointError, match="no checkpoint 'best'; it has last"):
        read_checkpoint(tmp_path, "best")
    with pytest.raises(CheckpointError, match=r"holds no 'teacher'; it holds model\.safetensors"):
        read_checkpoint(tmp_path, "last").tensors("teacher")


def test_a_state_that_is_not_json_is_refused_before_any_pointer_moves(tmp_path: Path) -> None:
    write(tmp_path, 1)
    with pytest.raises(ValueError, match="JSON"):
        write_checkpoint(tmp_path, step=2, tensors={}, state={"loss": float("nan")}, pointers=("last",))
    assert step_of(tmp_path, "last") == 1


def test_the_pointer_is_plain_json(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    assert json.loads((tmp_path / "last").read_text(encoding="utf-8"))["directory"] == path.name
