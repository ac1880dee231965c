"""Whatever stands in a file of text or JSON, reading it gives its content or one error that names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dba_core.documents import LFS_POINTER, parse_object, read_object, read_text
from dba_core.errors import ConfigError


def read(path: Path) -> dict[str, object]:
    return read_object(path, error=ConfigError, advice="Do this.")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"[1]", "holds a list"),
        (b"null", "holds a NoneType"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b'{"a": ' + b'{"a": ' * 100_000, "nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not valid JSON"),
        (b'{"a": NaN}', "holds NaN"),
        (b'{"a": 1, "a": 2}', "gives a twice"),
        (b'{"a": "\xff"}', "not UTF-8 text"),
        (LFS_POINTER.encode() + b"v1\noid sha256:00\nsize 5\n", "git lfs pull"),
    ],
)
def test_a_damaged_document_is_one_error_with_the_path(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.json") as caught:
        read(path)
    assert said in str(caught.value)
    assert "Do this." in str(caught.value) or "git lfs pull" in str(caught.value)


def test_what_is_right_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": [1, 2.5, null, "\xc3\xa9"]}')
    assert read(path) == {"a": [1, 2.5, None, "é"]}
    assert parse_object('{"a": {}}', source="x", error=ConfigError, advice="") == {"a": {}}


def test_no_file_a_folder_and_a_file_too_large(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        read(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="cannot be read"):
        read(tmp_path)
    (tmp_path / "big").write_bytes(b"x" * 101)
    with pytest.raises(ConfigError, match="101 bytes; at most 100"):
        read_text(tmp_path / "big", error=ConfigError, advice="", limit=100)
