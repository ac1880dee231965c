"""A checkpoint on the disk: written whole or not at all, checked by hash when it is read.

    checkpoint/
      last, best              pointers: {"directory": "step-00000100-1f2e3d4c", "state_sha256": "..."}
      step-00000100-1f2e3d4c/ *.safetensors, state.json (the rest, and size and hash of each tensor file)

A save fills a new directory, syncs it to the disk, and only then replaces the pointers, `best` before
`last`, each by one atomic rename. A process that dies at any instant leaves pointers to whole checkpoints.
Directories that no pointer names any more are removed after that. Called by training.checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from dba_core.errors import CheckpointError, unknown

POINTERS = ("best", "last")
STATE_FILE = "state.json"
FORMAT = 1


@attrs.frozen(kw_only=True)
class StoredCheckpoint:
    """A checkpoint whose files have the hashes that they were written with."""

    path: Path
    state: dict[str, Any]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of `name.safetensors`, on the CPU."""
        if f"{name}.safetensors" not in self.state["files"]:
            raise CheckpointError(f"{self.path} holds no {name!r}; it holds {', '.join(self.state['files'])}")
        try:
            return safetensors.torch.load_file(self.path / f"{name}.safetensors")
        except SafetensorError as error:
            raise CheckpointError(f"{self.path / name}.safetensors cannot be read: {error}") from error


def write_checkpoint(
    root: Path,
    *,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    pointers: tuple[str, ...],
) -> Path:
    """Write a checkpoint and let `pointers` name it. tensors: one safetensors file per key. Returns its
    directory.

    Raises CheckpointError when the disk refuses; what the pointers named before is then still whole.
    """
    directory = root / f"step-{step:08d}-{secrets.token_hex(4)}"
    try:
        directory.mkdir(parents=True)
        files = {
            f"{name}.safetensors": _write_tensors(directory, name, part) for name, part in tensors.items()
        }
        text = json.dumps({"format": FORMAT, **state, "files": files}, indent=1, allow_nan=False)
        _write_synced(directory / STATE_FILE, text)
        _sync_directory(directory)
        _sync_directory(root)
        pointer = json.dumps({"directory": directory.name, "state_sha256": _sha256_text(text)})
        for name in (name for name in POINTERS if name in pointers):
            _write_synced(root / f"{name}.new", pointer)
            os.replace(root / f"{name}.new", root / name)
            _sync_directory(root)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"the checkpoint of step {step} could not be written to {root} ({error}); the one before it is "
            "whole. Make room or repair the disk, then resume"
        ) from error
    _remove_unnamed(root)
    return directory


def has_checkpoint(root: Path, which: str) -> bool:
    """Whether a pointer of this name exists."""
    return (root / which).is_file()


def read_checkpoint(root: Path, which: str) -> StoredCheckpoint:
    """The checkpoint that `best` or `last` names, all of its files checked.

    Raises CheckpointError for one that is missing, incomplete or changed, with what can be done.
    """
    if which not in POINTERS:
        raise CheckpointError(unknown("checkpoint", which, POINTERS))
    if not has_checkpoint(root, which):
        there = [name for name in POINTERS if has_checkpoint(root, name)]
        raise CheckpointError(
            f"{root} has no checkpoint {which!r}; it has {' and '.join(there) or 'none'}. Training writes "
            "them at its evaluations, and `last` when it is interrupted"
        )
    try:
        pointer = json.loads((root / which).read_text(encoding="utf-8"))
        directory, digest = root / pointer["directory"], pointer["state_sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{root / which} is no checkpoint pointer ({error}). {_way_out(root, which)}"
        ) from None
    state = _read_state(directory, digest, advice=_way_out(root, which))
    for name, entry in state["files"].items():
        _check_file(directory / name, entry, advice=_way_out(root, which))
    return StoredCheckpoint(path=directory, state=state)


def _read_state(directory: Path, digest: str, *, advice: str) -> dict[str, Any]:
    path = directory / STATE_FILE
    if not path.is_file():
        raise CheckpointError(f"{path} is missing. {advice}")
    raw = path.read_bytes()
    if hashlib.sha256(raw).hexdigest() != digest:
        raise CheckpointError(f"{path} is not what was written: its SHA-256 differs. {advice}")
    state: dict[str, Any] = json.loads(raw)
    if state["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has format {state['format']}, this version reads {FORMAT}; use the version that wrote it"
        )
    return state


def _check_file(path: Path, entry: Mapping[str, Any], *, advice: str) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing. {advice}")
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise CheckpointError(f"{path} has {size} bytes, written were {entry['bytes']}. {advice}")
    if _sha256_file(path) != entry["sha256"]:
        raise CheckpointError(f"{path} is not what was written: its SHA-256 differs. {advice}")


def _way_out(root: Path, which: str) -> str:
    """What to do about a damaged checkpoint: the other one, if it is another directory, can take its
    place.
    """
    other = next(name for name in POINTERS if name != which)
    names = [
        (root / name).read_text(encoding="utf-8") for name in (which, other) if has_checkpoint(root, name)
    ]
    if len(names) == 2 and names[0] != names[1]:
        return f"Copy {root / other} over {root / which} to go on from {other!r} instead, or train again"
    return "Restore it from a copy, or train again"


def _write_tensors(directory: Path, name: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    path = directory / f"{name}.safetensors"
    safetensors.torch.save_file(_separate(tensors), path)
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": _sha256_file(path)}


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors; safetensors takes no two that share memory, so a second name gets a copy."""
    apart: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        address = plain.untyped_storage().data_ptr()
        apart[name] = plain.clone() if address in taken else plain
        taken.add(address)
    return apart


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    """Make the directory's entries durable; only POSIX systems can."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _remove_unnamed(root: Path) -> None:
    """Remove the directories that no pointer names; what cannot be removed now is tried again at the next
    save.
    """
    named = {
        json.loads((root / name).read_text(encoding="utf-8"))["directory"]
        for name in POINTERS
        if has_checkpoint(root, name)
    }
    for directory in root.glob("step-*"):
        if directory.name not in named:
            shutil.rmtree(directory, ignore_errors=True)


def _sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _sha256_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
