"""Which *.safetensors files of a folder are the model's, and the tensors in them.

As transformers does: `model.safetensors`, where it is there, whatever else is; else the files that
`model.safetensors.index.json` names. A single file of another name is taken too; of several without an index
none is, since nothing says which belong together. Each name is in one file, and what the index says is true.
"""

from __future__ import annotations

import functools
from pathlib import Path

import attrs
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dba_core.contracts import StoredWeight
from dba_core.documents import read_object
from dba_core.errors import CheckpointError, SourceError
from dba_core.printable import printable
from dba_plugins.checkpoints.fields import shown, size_of_file

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_DTYPES = ("F64", "F32", "F16", "BF16")


@attrs.frozen(kw_only=True, eq=False)
class TensorFolder:
    """tensors: by their names in the files. files: names of the files that were read, the index included.
    notes: what lies beside them and was not.
    """

    tensors: dict[str, StoredWeight]
    files: tuple[str, ...]
    notes: tuple[str, ...]


def read_folder(folder: Path) -> TensorFolder:
    """The headers of the model's files. Raises CheckpointError for files that are missing, damaged, or
    contradict the index or each other, SourceError for tensors that are no floating-point numbers.
    """
    whole, index = folder / _WHOLE, folder / _INDEX
    notes: tuple[str, ...] = ()
    weight_map: dict[str, str] = {}
    if whole.exists():
        names = [_WHOLE]
        others = sorted(path.name for path in folder.glob("*.safetensors") if path != whole)
        if others := [*([_INDEX] if index.exists() else []), *others]:
            notes = (f"{_WHOLE} is the model; not read, as in transformers: {_listed(others)}",)
    elif index.exists():
        weight_map = _weight_map(index)
        names = sorted(set(weight_map.values()))
    else:
        names = [_only_file(folder)]
    tensors: dict[str, StoredWeight] = {}
    held_by: dict[str, str] = {}
    for name in names:
        for key, tensor in _tensors(folder / name).items():
            if key in held_by:
                raise CheckpointError(
                    f"{folder}: {printable(key)} is both in {held_by[key]} and in {name}; the "
                    "files are of different models. Keep those of one, or download the model again"
                )
            tensors[key], held_by[key] = tensor, name
    for key, name in weight_map.items():
        if held_by.get(key) != name:
            raise CheckpointError(
                f"{folder}: {printable(key)} is not in {name}, where {_INDEX} has it; they are not of the "
                "same model. Download it again"
            )
    files = (*([_INDEX] if weight_map else []), *names)
    return TensorFolder(tensors=tensors, files=files, notes=notes)


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor -> file, each the plain name of a file that is there."""
    advice = "Download the model again"
    table = read_object(index, error=CheckpointError, advice=advice).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise CheckpointError(f"{index} has no 'weight_map' of tensors to files: {shown(table)}. {advice}")
    for name in table.values():
        if (
            not isinstance(name, str)
            or not name.endswith(".safetensors")
            or {"/", "\\", ":", "\0"} & set(name)
        ):
            raise CheckpointError(
                f"{index} names {shown(name)}; allowed: the name of a *.safetensors file in the same folder. "
                f"{advice}"
            )
    missing = [name for name in sorted(set(table.values())) if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{index.parent} lacks {printable(_listed(missing))}, which {_INDEX} names; download the rest of "
            "the model"
        )
    return table


def _only_file(folder: Path) -> str:
    """The name of the one file there is."""
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    if len(files) == 1:
        return files[0]
    if files:
        raise CheckpointError(
            f"{folder} has {_listed(files)} and no {_INDEX}, which says what belongs together; download the "
            f"index too, or keep the one file that is the model, as {_WHOLE}"
        )
    pickled = [path.name for path in [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]]
    hint = (
        f"; it has {_listed(pickled)}, which are pickles and can run code when they are read. Save "
        "the model with `save_pretrained(..., safe_serialization=True)`"
        if pickled
        else "; download the whole model"
    )
    raise CheckpointError(f"{folder} has no *.safetensors file{hint}")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _tensors(file: Path) -> dict[str, StoredWeight]:
    """What the header says, which the package compares with the file's size."""
    size_of_file(file)
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - no dict
            heads = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} cannot be read ({printable(str(error))}); it is cut off or no safetensors file. "
            "Download it again"
        ) from None
    for name, (dtype, _) in heads.items():
        if dtype not in _DTYPES:
            raise SourceError(
                f"{file}: {printable(name)} is stored as {dtype}; supported: {', '.join(_DTYPES)}. Give a "
                "model with floating-point weights, or a .gguf file"
            )
    return {
        name: StoredWeight(name=name, where=str(file), shape=shape, read=functools.partial(_read, file, name))
        for name, (_, shape) in heads.items()
    }


def _read(file: Path, name: str) -> Tensor:
    with safe_open(file, framework="pt") as opened:
        tensor: Tensor = opened.get_tensor(name)
    return tensor.float()
