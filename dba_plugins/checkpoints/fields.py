"""Typed reads of what a foreign file holds: config.json, GGUF metadata, `config` of a .pt.

Whatever stands there, the answer is a value of the type that was asked for, or CheckpointError with the file,
the field, what it holds and what is allowed. Numbers are bounded, so that products of them and texts about
them are possible.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dba_core.documents import LFS_POINTER
from dba_core.errors import CheckpointError
from dba_core.printable import printable

#: No size of a model is larger.
MOST = 1 << 48
_FAR = 1e100


def shown(value: object) -> str:
    """A foreign value for an error: short, printable, whatever it is."""
    if type(value) is int and value.bit_length() > 128:
        return f"a whole number of {value.bit_length()} bits"
    try:
        return printable(reprlib.repr(value))
    except (ValueError, RecursionError):  # a number of more digits than Python writes, within a list
        return f"a {type(value).__name__}"


def told(name: object) -> str:
    """A foreign name for an error, without quotes."""
    return printable(name[:80]) if isinstance(name, str) else shown(name)


def size_of_file(path: Path) -> int:
    """Its bytes. Raises CheckpointError for a file that is missing, empty, unreadable, or a pointer of
    large-file storage that stands in its place.
    """
    try:
        with path.open("rb") as opened:
            head = opened.read(len(LFS_POINTER))
        size = path.stat().st_size
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror or error}); get the file again"
        ) from None
    if not size:
        raise CheckpointError(f"{path} is empty; get the file again")
    if head == LFS_POINTER.encode("ascii"):
        raise CheckpointError(
            f"{path} is a pointer of large-file storage, not the file itself. Fetch the file: git lfs pull"
        )
    return size


class Fields:
    """The table by name; `where` is what errors name. A field that is None is there, and is no number."""

    def __init__(self, table: Mapping[str, Any], *, where: str) -> None:
        self.table, self.where = table, where

    def given(self, name: str) -> bool:
        """There, and not None."""
        return self.table.get(name) is not None

    def raw(self, name: str) -> Any:
        """As it stands. Raises CheckpointError where it is missing."""
        if name not in self.table:
            raise CheckpointError(
                f"{self.where} has no {name!r}; it does not describe a whole model. Get the file again"
            )
        return self.table[name]

    def whole(self, name: str, *, default: int | None = None, least: int = 1) -> int:
        """A whole number from `least` on; `default` where the field is missing."""
        if default is not None and name not in self.table:
            return default
        value = self.raw(name)
        if type(value) is not int or not least <= value <= MOST:
            raise self.wrong(name, f"a whole number from {least} to {MOST}")
        return value

    def number(self, name: str, *, default: float | None = None, zero: bool = False) -> float:
        """A finite number above 0, or with `zero` 0 itself; `default` where the field is missing."""
        if default is not None and name not in self.table:
            return default
        value = self.raw(name)
        inside = type(value) in (int, float) and (value >= 0 if zero else value > 0) and value < _FAR
        if not inside:
            raise self.wrong(name, f"a finite number {'from' if zero else 'above'} 0")
        return float(value)

    def flag(self, name: str, *, default: bool) -> bool:
        """True or false; `default` where the field is missing."""
        if name not in self.table:
            return default
        value = self.table[name]
        if type(value) is not bool:
            raise self.wrong(name, "true or false")
        return value

    def text(self, name: str, *, default: str | None = None) -> str:
        """A text; `default` where the field is missing."""
        if default is not None and name not in self.table:
            return default
        value = self.raw(name)
        if type(value) is not str:
            raise self.wrong(name, "a text")
        return value

    def part(self, name: str) -> Fields:
        """The table in this table; an empty one where the field is missing or None."""
        value = self.table.get(name)
        if value is None:
            return Fields({}, where=f"{self.where}: {name}")
        if not isinstance(value, Mapping):
            raise self.wrong(name, "an object")
        return Fields(value, where=f"{self.where}: {name}")

    def wrong(self, name: str, allowed: str) -> CheckpointError:
        """The error for a field that holds something else."""
        return CheckpointError(
            f"{self.where}: {name} is {shown(self.table.get(name))}; allowed: {allowed}. The file is damaged "
            "or was changed; get it again"
        )
