"""The reference page of `summary.json` lists its fields: all of them, and of the types that they have."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.torch

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "summary.md"
SECTION = re.compile(r"^## (?:`(\w+)`|Top level)$(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
FIELD = re.compile(r"^\| `(\w+)` \| ([a-z ]+) \|", re.MULTILINE)
JSON_TYPES: dict[str, Any] = {
    "integer": int,
    "number": (int, float),
    "text": str,
    "true or false": bool,
    "null": type(None),
    "object": dict,
}


def is_of(value: Any, words: str) -> bool:
    """Whether a value is what the page says: `number or null`, `list of text`, `object of objects`."""
    if words in JSON_TYPES:
        return isinstance(value, JSON_TYPES[words]) and (words == "true or false" or value is not True)
    if words.startswith("list of "):
        return isinstance(value, list) and all(is_of(each, "text") for each in value)
    if words.startswith("object of "):
        inner = words.removeprefix("object of ").removesuffix("s")
        return isinstance(value, dict) and all(is_of(each, inner) for each in value.values())
    return any(is_of(value, each) for each in words.split(" or "))


def test_the_page_lists_the_fields_of_a_summary(tiny) -> None:
    summary = json.loads(tiny.folder.summary_json.read_text(encoding="utf-8"))
    (plugin, *_) = summary["plugins"].values()
    objects = {**summary, "": summary, "cost": summary["model"]["cost"], "plugins": plugin}
    sections = SECTION.findall(PAGE.read_text(encoding="utf-8"))
    assert len(sections) == 13
    for name, text in sections:
        listed = dict(FIELD.findall(text))
        assert set(listed) == set(objects[name]), name or "top level"
        for field, words in listed.items():
            assert is_of(objects[name][field], words), (
                f"{name}.{field}: {objects[name][field]!r} is no {words}"
            )
