"""A configuration as commented TOML that reads back to the same. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from dba_core.config.layers import flatten
from dba_core.config.loading import LoadedConfig
from dba_core.config.run import RunConfig

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def render_toml(loaded: LoadedConfig) -> str:
    """The configuration as TOML that reads back to the same, each value's origin beside it."""
    defaults = flatten(RunConfig().to_dict(), "")
    spell_none = frozenset(".".join(path) for path, setting in defaults.items() if setting.value)
    return dump_toml(loaded.config.to_dict(), loaded.origins, spell_none=spell_none)


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
