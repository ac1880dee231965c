"""Text and JSON out of files that anybody may have written, and into files: one way to read, one to write.

No reader ends in an exception of `json`, of a codec or of the operating system: whatever is wrong with the
file is the given kind of DBAError, with what was found and what to do.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dba_core.errors import DBAError

#: How the text begins that stands in for a file which large-file storage (git-lfs) holds elsewhere.
LFS_POINTER = "version https://git-lfs.github.com/spec/"


def read_text(path: Path, *, error: type[DBAError], advice: str, limit: int = 1 << 28) -> str:
    """The whole text of a UTF-8 file (a byte-order mark is taken off).

    error: what is raised for a file that is missing, is a folder, cannot be read, is larger than `limit`
    bytes, is no UTF-8, or is a pointer of large-file storage. advice: the end of its message.
    """
    try:
        size = path.stat().st_size
        if size > limit:
            raise error(f"{path} has {size:,} bytes; at most {limit:,} are read as text. {advice}")
        data = path.read_bytes()
    except FileNotFoundError:
        raise error(f"{path} does not exist. {advice}") from None
    except OSError as wrong:
        raise error(f"{path} cannot be read: {wrong.strerror or wrong}. {advice}") from None
    text = decode_text(data, source=str(path), error=error, advice=advice)
    if text.startswith(LFS_POINTER):
        raise error(
            f"{path} is a pointer of large-file storage, not the file itself. Fetch the file: git lfs pull"
        )
    return text


def decode_text(data: bytes, *, source: str, error: type[DBAError], advice: str) -> str:
    """UTF-8 bytes as text, without a byte-order mark. error: what is raised for bytes that are none."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as wrong:
        raise error(f"{source} is not UTF-8 text: {wrong.reason} at byte {wrong.start}. {advice}") from None


def parse_object(text: str, *, source: str, error: type[DBAError], advice: str) -> dict[str, Any]:
    """The one JSON object that a text holds.

    error: what is raised for text that is no JSON or no object, is nested deeper than Python reads, gives a
    key twice, or holds NaN or Infinity, which are no JSON. source: what the message calls the text.
    """

    def refuse_constant(name: str) -> float:
        raise error(f"{source} holds {name}, which is no JSON number; allowed: finite numbers. {advice}")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = sorted({key for key in keys if keys.count(key) > 1})
            raise error(
                f"{source} gives {', '.join(twice)} twice in one object; give each key once. {advice}"
            )
        return table

    try:
        data = json.loads(text, parse_constant=refuse_constant, object_pairs_hook=unique)
    except json.JSONDecodeError as wrong:
        where = f"{wrong.msg} at line {wrong.lineno}, column {wrong.colno}"
        raise error(f"{source} is not valid JSON: {where}. {advice}") from None
    except RecursionError:
        raise error(f"{source} is JSON nested too deeply to be read. {advice}") from None
    except ValueError as wrong:  # a whole number of more digits than Python converts
        raise error(f"{source} is not valid JSON: {wrong}. {advice}") from None
    if not isinstance(data, dict):
        raise error(f"{source} holds a {type(data).__name__}; allowed: one JSON object. {advice}")
    return data


def read_object(path: Path, *, error: type[DBAError], advice: str) -> dict[str, Any]:
    """The one JSON object in a file: `read_text`, then `parse_object`."""
    text = read_text(path, error=error, advice=advice)
    return parse_object(text, source=str(path), error=error, advice=advice)


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all, as UTF-8 with the line ends that the text has.

    A lone surrogate (of a file name that is no UTF-8) is written as its escape, which is JSON's too.
    """
    fresh = path.with_name(f"{path.name}.new")
    try:
        fresh.write_bytes(text.encode("utf-8", errors="backslashreplace"))
        os.replace(fresh, path)
    except OSError:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all; the document must be finite."""
    write_whole(path, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
