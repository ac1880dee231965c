"""In which keys two configurations differ."""

from __future__ import annotations

import json
from typing import Any, Literal

import attrs

from dba_core.config.layers import flatten
from dba_core.config.run import RunConfig


@attrs.frozen(kw_only=True)
class Difference:
    """One dotted key. only_in: the one that has it, where the other has no such key."""

    key: str
    a: Any
    b: Any
    only_in: Literal["a", "b"] | None = None

    @property
    def text_a(self) -> str:
        return "not there" if self.only_in == "b" else _text(self.a)

    @property
    def text_b(self) -> str:
        return "not there" if self.only_in == "a" else _text(self.b)


def differences(a: RunConfig, b: RunConfig) -> list[Difference]:
    """Every key that is not the same in both: first those of `a`, then those that only `b` has."""
    first, second = _leaves(a), _leaves(b)
    found = []
    for key in [*first, *(key for key in second if key not in first)]:
        if key not in second:
            found.append(Difference(key=key, a=first[key], b=None, only_in="a"))
        elif key not in first:
            found.append(Difference(key=key, a=None, b=second[key], only_in="b"))
        elif _text(first[key]) != _text(second[key]):
            found.append(Difference(key=key, a=first[key], b=second[key]))
    return found


def _leaves(config: RunConfig) -> dict[str, Any]:
    """By dotted key, without empty tables of options."""
    leaves = {".".join(path): setting.value for path, setting in flatten(config.to_dict(), "").items()}
    return {key: value for key, value in leaves.items() if value != {}}


def _text(value: Any) -> str:
    """As JSON, in which 1 and true, and 1 and 1.0, are not the same."""
    return json.dumps(value, ensure_ascii=False)
