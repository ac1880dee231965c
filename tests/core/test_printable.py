"""What reaches a terminal or a report moves no cursor, colours nothing, and can be encoded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dba_core.printable import printable


@pytest.mark.parametrize(
    ("given_text", "shown"),
    [
        ("plain words, 你好, é, 🙂", "plain words, 你好, é, 🙂"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("bell\x07 back\x08", "bell\\x07 back\\x08"),
        ("right\u202eleft", "right\\u202eleft"),
        ("lone \udcff", "lone \\udcff"),
        ("c1 \x9b31m", "c1 \\x9b31m"),
        ("two\nlines\r", "two\\nlines\\r"),
        ("\u0646\u200c\u0645", "\u0646\u200c\u0645"),
        ("", ""),
    ],
)
def test_what_is_not_seen_is_shown(given_text: str, shown: str) -> None:
    assert printable(given_text) == shown


def test_lines_and_tabs_stay_where_they_are_meant() -> None:
    assert printable("a\n\tb\x1b\r", lines=True) == "a\n\tb\\x1b\\r"


@given(st.text(st.characters()))  # surrogates too
def test_the_result_can_be_encoded_and_is_stable(text: str) -> None:
    shown = printable(text)
    shown.encode("utf-8")
    assert printable(shown) == shown
