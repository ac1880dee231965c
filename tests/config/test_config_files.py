"""Configuration files: what is read, what is refused with file and line, what is written."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from dba_cli.output.config_toml import dump_toml
from dba_core.config.loading import parse_json, parse_toml, read_config_file
from dba_core.documents import write_json
from dba_core.errors import ConfigError


def test_toml_and_json_are_chosen_by_suffix(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("x = 1\n[t]\ny = 'z'\n")
    (tmp_path / "a.JSON").write_text('{"x": 1, "t": {"y": "z"}}')
    assert read_config_file(tmp_path / "a.toml") == {"x": 1, "t": {"y": "z"}}
    assert read_config_file(tmp_path / "a.JSON") == {"x": 1, "t": {"y": "z"}}


def test_a_byte_order_mark_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b"\xef\xbb\xbfx = 1\n")
    assert read_config_file(tmp_path / "a.toml") == {"x": 1}


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("broken.toml", b"x = 1\ny = = 2\n", ["broken.toml", "TOML", "line 2"]),
        ("twice.toml", b"x = 1\nx = 2\n", ["twice.toml", "TOML", "line 2"]),
        ("broken.json", b'{"x": 1,\n "y": }', ["broken.json", "JSON", "line 2, column 7"]),
        ("nan.json", b'{"x": NaN}', ["nan.json", "NaN"]),
        ("inf.json", b'{"x": -Infinity}', ["inf.json", "-Infinity"]),
        ("twice.json", b'{"x": 1, "x": 2}', ["twice.json", "gives x twice"]),
        ("list.json", b"[1]", ["list.json", "list; allowed: one JSON object"]),
        ("deep.json", b"[" * 200_000, ["deep.json", "JSON"]),
        ("latin.toml", b'x = "\xe9"', ["latin.toml", "not UTF-8", "byte 5"]),
        ("config.yaml", b"x: 1", ["config.yaml", ".toml", ".json"]),
    ],
)
def test_a_bad_file_is_named_with_its_fault(
    tmp_path: Path, name: str, content: bytes, texts: list[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_config_file(tmp_path / name)
    for text in texts:
        assert text in str(caught.value)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.toml does not exist"):
        read_config_file(tmp_path / "none.toml")
    (tmp_path / "run.json").mkdir()
    with pytest.raises(ConfigError, match=r"is a folder; give a file in it"):
        read_config_file(tmp_path / "run.json")
    with pytest.raises(ConfigError, match=r"is a folder; give a file in it"):
        read_config_file(tmp_path)


def test_json_is_written_and_read_back(tmp_path: Path) -> None:
    file, document = tmp_path / "a.json", {"x": 1e-300, "y": "\x00é"}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(file, {"x": math.nan})
    write_json(file, document)
    assert parse_json(file.read_text(encoding="utf-8"), source="s") == document


def test_the_toml_that_is_written() -> None:
    tree = {
        "a": 1,
        "t": {"x": None, "y": None, "s": 'q"\\\n\x7f', "deep": {"l": [1.5, "b", {"k k": True}]}, "e": {}},
        "b": False,
    }
    text = dump_toml(
        tree, {"a": "default", "t.x": "--set", "t.deep.l": "here"}, spell_none=frozenset({"t.y"})
    )
    assert text == (
        "a = 1  # default\n"
        "b = false\n"
        "\n"
        "[t]\n"
        "# x is none  # --set\n"
        'y = "none"\n'
        's = "q\\"\\\\\\n\\u007f"\n'
        "e = {}\n"
        "\n"
        "[t.deep]\n"
        'l = [1.5, "b", {"k k" = true}]  # here\n'
    )
    back = parse_toml(text, source="text")
    assert back["t"]["s"] == 'q"\\\n\x7f'
    assert back["t"]["deep"] == {"l": [1.5, "b", {"k k": True}]}


def test_a_comment_stays_on_its_line() -> None:
    text = dump_toml({"a": 1}, {"a": "file odd\nname = 2"}, spell_none=frozenset())
    assert parse_toml(text, source="text") == {"a": 1}
