"""The tables `config` and `model` of a file of `torch.save`, read as data.

Before anything is unpickled the archive is looked at: records are stored and not compressed (what torch.save
writes), lie apart and within the file, and the pickle names nothing but tensors, their storages and ordered
tables. Then torch.load with `weights_only`, memory-mapped: a tensor takes no memory until it is read. Last,
each tensor holds its own elements: no axis of stride 0 makes a large one of a small storage.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dba_core.errors import CheckpointError, SourceError
from dba_core.printable import printable
from dba_plugins.checkpoints.fields import shown, size_of_file, told

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_NAMED = frozenset(
    {
        ("collections", "OrderedDict"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_parameter"),
        ("torch", "Size"),
        *(
            ("torch", f"{kind}Storage")
            for kind in ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Short")
        ),
        *(("torch", f"{kind}Storage") for kind in ("Char", "Byte", "Bool")),
    }
)
#: What a reader of pickles ends in where the pickle is damaged: it does what the stream says.
_DAMAGED = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    OverflowError,
    MemoryError,
    OSError,
    struct.error,
)
#: A record may be in the model twice: keys tied to queries.
_MOST_SHARED = 2


def read_tables(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
    """`config` and `model`. Raises CheckpointError for a file that is damaged or holds something else,
    SourceError for tensors that are no floating-point numbers.
    """
    size = size_of_file(path)
    _check_archive(path, size)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, on storages of other versions
            data = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except _DAMAGED as error:
        raise _unreadable(path, error) from None
    table = data if isinstance(data, dict) else {}
    config, tensors = table.get("config"), table.get("model")
    if not isinstance(config, dict) or not isinstance(tensors, dict):
        found = ", ".join(told(name) for name in list(table)[:9]) or type(data).__name__
        raise CheckpointError(
            f"{path} holds {found}, and a checkpoint of the origin system has the tables 'config' and "
            "'model'. A Hugging Face model: give its folder, with *.safetensors"
        )
    if not all(isinstance(name, str) for name in [*config, *tensors]):
        raise CheckpointError(f"{path}: names in 'config' and 'model' are not all texts; it is no checkpoint")
    _check_tensors(path, tensors, size)
    return config, tensors


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(error, pickle.UnpicklingError):  # torch's text advises to run the file's code
        reason = "its pickle is damaged or asks for more than that"
    return CheckpointError(
        f"{path} cannot be read as a checkpoint of tensors and plain data ({printable(reason)}); it is cut "
        "off, no file of torch.save, or holds Python objects, which are not unpickled because that runs code"
    )


def _check_archive(path: Path, size: int) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            packed = [record.filename for record in records if record.compress_type != zipfile.ZIP_STORED]
            if packed:
                raise CheckpointError(
                    f"{path}: the record {printable(packed[0])} is compressed, which torch.save does not do; "
                    "save the checkpoint again with torch.save"
                )
            if sum(record.file_size for record in records) > size:
                raise CheckpointError(f"{path}: its records are larger than the file; get the file again")
            pickles = [record for record in records if record.filename.endswith("data.pkl")]
            if len(pickles) != 1:
                raise CheckpointError(
                    f"{path} has {len(pickles)} records data.pkl, and a file of torch.save has one; get the "
                    "file again"
                )
            content = archive.read(pickles[0])
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, *_DAMAGED) as error:
        raise _unreadable(path, error) from None
    _check_named(path, content)


def _check_named(path: Path, content: bytes) -> None:
    """Nothing is called by the pickle but what makes tensors and ordered tables."""
    try:
        for code, argument, _ in pickletools.genops(io.BytesIO(content)):
            named = tuple(str(argument).split(" ", 1)) if code.name in ("GLOBAL", "INST") else None
            if code.name == "STACK_GLOBAL" or (named is not None and named not in _NAMED):
                raise _unreadable(path, ValueError(f"it names {shown(argument)}"))
    except _DAMAGED as error:
        raise _unreadable(path, error) from None


def _check_tensors(path: Path, tensors: Mapping[str, Any], size: int) -> None:
    total = 0
    for name, tensor in tensors.items():
        where = f"{path}: {shown(name)} in 'model'"
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{where} is no tensor; the file is not a checkpoint")
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.dtype not in _DTYPES:
            raise SourceError(
                f"{where} is a tensor of {tensor.dtype}, {tensor.layout}; supported: dense floating-point "
                "numbers. Save the checkpoint with its weights as such"
            )
        bytes_of_it = tensor.numel() * tensor.element_size()
        if bytes_of_it > tensor.untyped_storage().nbytes():
            raise CheckpointError(
                f"{where} has the shape {tuple(tensor.shape)} and fewer elements than that stored (strides "
                f"{tensor.stride()}); save the checkpoint again, with contiguous tensors"
            )
        total += bytes_of_it
    if total > _MOST_SHARED * size:
        raise CheckpointError(
            f"{path} has {size} bytes and its tensors {total}: they share what is stored. Save the "
            "checkpoint again, each tensor with its own elements"
        )
