"""The checkpoint of a training run: written whole or not at all, checked by hash when it is read.

    checkpoint/
      last, best              pointers: {"directory": "step-00000100-1f2e3d4c", "state_sha256": "..."}
      step-00000100-1f2e3d4c/
        model.safetensors      parameters by name
        optimizer.safetensors  AdamW's state, `name.exp_avg`, `name.exp_avg_sq`, `name.step`
        random.safetensors     torch's generators of every process, `cpu.0`, `cuda.0`, ...
        state.json             step, losses, data position, fingerprint; size and hash of each tensor file

A save fills a new directory, syncs it to the disk, and only then replaces the pointers, `best` before
`last`, each by one atomic rename. A process that dies at any instant leaves pointers to whole checkpoints.
Directories that no pointer names any more are removed after that.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from dba_core.documents import parse_object, read_object, read_text
from dba_core.errors import CheckpointError, unknown
from dba_core.model.weights import check_finite
from dba_core.training.metrics_log import is_count

#: What a pointer may name, and what a state may list: nothing outside of the checkpoint's own folder.
_DIRECTORY = re.compile(r"step-[0-9]{8,20}-[0-9a-f]{8}")
_TENSOR_FILE = re.compile(r"[a-z_]{1,40}\.safetensors")
_SHA256 = re.compile(r"[0-9a-f]{64}")

POINTERS = ("best", "last")
STATE_FILE = "state.json"
FORMAT = 1


@attrs.frozen(kw_only=True)
class StoredCheckpoint:
    """A checkpoint whose files have the hashes that they were written with.

    step: optimizer steps that the weights have seen. fingerprint: what they depend on; None where the version
    that wrote them did not say.
    """

    path: Path
    state: dict[str, Any]
    step: int
    fingerprint: dict[str, Any] | None

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of `name.safetensors`, on the CPU."""
        if f"{name}.safetensors" not in self.state["files"]:
            raise CheckpointError(f"{self.path} holds no {name!r}; it holds {', '.join(self.state['files'])}")
        try:
            return safetensors.torch.load_file(self.path / f"{name}.safetensors")
        except (SafetensorError, OSError, ValueError) as error:
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

    Raises CheckpointError when the disk refuses; what the pointers named before is then still whole, and what
    was written of the new one is taken away.
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
        pointer = json.dumps({"directory": directory.name, "state_sha256": sha256_text(text)})
        for name in (name for name in POINTERS if name in pointers):
            _write_synced(root / f"{name}.new", pointer)
            os.replace(root / f"{name}.new", root / name)
            _sync_directory(root)
    except (OSError, SafetensorError) as error:
        remove_unnamed(root)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        before, then = (
            ("the one before it is whole", "resume")
            if has_checkpoint(root, "last")
            else ("there is none before it", "start the run again")
        )
        raise CheckpointError(
            f"the checkpoint of step {step} could not be written to {root} ({reason}); {before}. Make room "
            f"or repair the disk, then {then}"
        ) from error
    remove_unnamed(root)
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
        return _read_whole(root, which)
    except _DamagedError as damage:
        raise CheckpointError(f"{damage}. {_way_out(root, which)}") from None


class _DamagedError(CheckpointError):
    """What is wrong with a checkpoint, without advice."""


def _read_whole(root: Path, which: str) -> StoredCheckpoint:
    name, digest = _read_pointer(root, which)
    path = root / name / STATE_FILE
    if not path.is_file():
        raise _DamagedError(f"{path} is missing")
    text = read_text(path, error=_DamagedError, advice="It is damaged")
    if sha256_text(text) != digest:
        raise _DamagedError(f"{path} is not what was written: its SHA-256 differs")
    state = parse_object(text, source=str(path), error=_DamagedError, advice="It is damaged")
    if state.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {state.get('format')!a:.60}, this version reads {FORMAT}; use the version "
            "that wrote it"
        )
    step, files, fingerprint = state.get("step"), state.get("files"), state.get("fingerprint", {})
    for key, value, sound, allowed in (
        ("step", step, is_count(step), "a whole number from 0 on"),
        ("files", files, isinstance(files, dict), "a table of files"),
        ("fingerprint", fingerprint, isinstance(fingerprint, dict), "a table"),
    ):
        if not sound:
            raise _DamagedError(f"{path} gives {key!r} as {value!a:.60}; allowed: {allowed}")
    for name, entry in state["files"].items():
        _check_file(path.parent, name, entry)
    return StoredCheckpoint(
        path=path.parent, state=state, step=state["step"], fingerprint=state.get("fingerprint")
    )


def _read_pointer(root: Path, which: str) -> tuple[str, str]:
    """The directory's name and the hash of its state. Raises _DamagedError."""
    path = root / which
    pointer = read_object(path, error=_DamagedError, advice="It is no checkpoint pointer")
    for key, form, what in (
        ("directory", _DIRECTORY, "the name of a step-* directory beside it"),
        ("state_sha256", _SHA256, "a hash"),
    ):
        if not _fits(form, pointer.get(key)):
            raise _DamagedError(
                f"{path} is no checkpoint pointer: its {key!r} is {pointer.get(key)!a:.60}, not {what}"
            )
    return pointer["directory"], pointer["state_sha256"]


def _check_file(directory: Path, name: str, entry: object) -> None:
    """A file of tensors against what the state says of it."""
    if not (
        isinstance(entry, dict)
        and is_count(entry.get("bytes"))
        and _fits(_SHA256, entry.get("sha256"))
        and _fits(_TENSOR_FILE, name)
    ):
        raise _DamagedError(
            f"{directory / STATE_FILE} lists {name!a:.60} as {entry!a:.60}, which is no file of tensors"
        )
    path = directory / name
    if not path.is_file():
        raise _DamagedError(f"{path} is missing")
    if (size := path.stat().st_size) != entry["bytes"]:
        raise _DamagedError(f"{path} has {size} bytes, written were {entry['bytes']}")
    if _sha256_file(path) != entry["sha256"]:
        raise _DamagedError(f"{path} is not what was written: its SHA-256 differs")


def _fits(form: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and form.fullmatch(value) is not None


def _way_out(root: Path, which: str) -> str:
    """What to do about a damaged checkpoint: the other one, if it is another and whole, takes its place."""
    other = next(name for name in POINTERS if name != which)
    with contextlib.suppress(CheckpointError, OSError):
        if (root / other).read_bytes() != (root / which).read_bytes():
            _read_whole(root, other)
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


def remove_unnamed(root: Path) -> None:
    """Remove the directories that no pointer names: older checkpoints, and what killed processes left.

    Where a pointer cannot be read nothing is removed. What cannot be removed now is tried again at the next
    save, start or resume.
    """
    try:
        named = {_read_pointer(root, name)[0] for name in POINTERS if has_checkpoint(root, name)}
    except _DamagedError:
        return
    for directory in root.glob("step-*"):
        if directory.name not in named:
            shutil.rmtree(directory, ignore_errors=True)


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _sha256_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def restore_weights(model: nn.Module, stored: StoredCheckpoint) -> None:
    """Put the checkpoint's weights into the model, on whatever device it is.

    Raises CheckpointError for those of another model, a NaN or an infinity; the model is then unchanged.
    """
    saved, mine = stored.tensors("model"), model.state_dict()
    problems = [f"{name} is missing" for name in mine if name not in saved]
    problems += [f"{name} is unknown to the model" for name in saved if name not in mine]
    problems += [
        f"{name} has shape {tuple(saved[name].shape)}, the model's is {tuple(mine[name].shape)}"
        for name in mine
        if name in saved and saved[name].shape != mine[name].shape
    ]
    if problems:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise CheckpointError(
            f"{stored.path} is the checkpoint of another model: {shown}. Build the model from the "
            "configuration that the run recorded"
        )
    for name, tensor in saved.items():
        check_finite(tensor, name=name, where=str(stored.path / "model.safetensors"))
    model.load_state_dict(saved)
