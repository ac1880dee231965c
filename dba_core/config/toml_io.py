"""Configuration files: TOML or JSON in, commented TOML out."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dba_core.documents import parse_object
from dba_core.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def read_config_file(path: Path) -> dict[str, Any]:
    """The table in a `.toml` or `.json` file. Raises ConfigError that names the file and the line."""
    readers = {".toml": parse_toml, ".json": parse_json}
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; give a file in it, such as resolved_config.json")
    if path.suffix.lower() not in readers:
        raise ConfigError(f"{path} is neither .toml nor .json; give a file with one of these endings")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; give the path of a .toml or .json file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    return readers[path.suffix.lower()](text, source=str(path))


def parse_toml(text: str, *, source: str) -> dict[str, Any]:
    """The table that a TOML text holds. Raises ConfigError with `source` and the line."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{source} is not valid TOML: {error}") from None


def parse_json(text: str, *, source: str) -> dict[str, Any]:
    """The object that a JSON text holds; NaN, Infinity and a key given twice are refused."""
    return parse_object(text, source=source, error=ConfigError, advice="Repair it, or write it again")


def dump_toml(tree: Mapping[str, Any], comments: Mapping[str, str], *, spell_none: frozenset[str]) -> str:
    """TOML with the comment of each dotted key beside its value.

    TOML has no None: such a key is shown as a comment, but written as "none" where `spell_none` names it.
    """
    return "\n".join(_table_lines(tree, (), comments, spell_none)).strip("\n") + "\n"


def _table_lines(
    tree: Mapping[str, Any], above: tuple[str, ...], comments: Mapping[str, str], spell_none: frozenset[str]
) -> list[str]:
    lines = []
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            continue
        dotted = ".".join((*above, key))
        if value is None and dotted not in spell_none:
            line = f"# {_key(key)} is none"
        else:
            line = f"{_key(key)} = {_value('none' if value is None else value)}"
        lines.append(f"{line}  # {_one_line(comments[dotted])}" if dotted in comments else line)
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            below = (*above, key)
            header = ["", f"[{'.'.join(map(_key, below))}]"]
            lines += header + _table_lines(value, below, comments, spell_none)
    return lines


def _one_line(comment: str) -> str:
    """A comment cannot run on into the next line, whatever a file is called."""
    return "".join(letter if letter.isprintable() else "?" for letter in comment)


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _text(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items()) + "}"
    return repr(value)


def _text(text: str) -> str:
    """A TOML basic string: JSON's escapes, and DEL, which TOML wants escaped too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
