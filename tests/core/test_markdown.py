"""Foreign text in a report stays text: rendered, it shows the same letters and makes no element."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dba_core.printable import one_line
from dba_core.report import fenced, inline, markdown_table, prose

NASTY = st.text(st.sampled_from("ab 1.)#>-+=|`*_[]()<>&;!~\\\n\r\t\x1b\u202e\u2028\udcff/:'\"")) | st.text()


@pytest.mark.parametrize(
    ("given_text", "written"),
    [
        ("plain words, q4_0@32 and 2 < 3 -> ok", "plain words, q4_0@32 and 2 &lt; 3 -> ok"),
        ("a|b", "a\\|b"),
        ("`code` *em* _em_ a_b", "\\`code\\` \\*em\\* \\_em\\_ a_b"),
        ("<script>alert(1)</script>", "&lt;script>alert(1)&lt;/script>"),
        ("[x](javascript:1)", "\\[x\\](javascript:1)"),
        ("one\ntwo\x1b[31m", "one two\\x1b\\[31m"),
        ("C:\\runs\\x", "C:\\runs\\x"),
        ("end\\", "end\\\\"),
        ("\\|", "\\\\\\|"),
        ("&lt;", "&amp;lt;"),
        ("~~gone~~", "&#126;&#126;gone&#126;&#126;"),
        ("", ""),
    ],
)
def test_inline(given_text: str, written: str) -> None:
    assert inline(given_text) == written


@pytest.mark.parametrize(
    ("given_text", "written"),
    [
        ("# title", "\\# title"),
        ("- item", "\\- item"),
        ("---", "\\---"),
        ("> said", "\\> said"),
        ("1. first", "1\\. first"),
        ("-0.5 is less", "-0.5 is less"),
        ("1.5 is more", "1.5 is more"),
    ],
)
def test_prose_opens_nothing(given_text: str, written: str) -> None:
    assert prose(given_text) == written


def unescaped_marks(line: str) -> str:
    """The letters of a line that no backslash stands before (a pair of backslashes is one letter)."""
    kept, skip = [], False
    for letter in line:
        if skip:
            skip = False
        elif letter == "\\":
            skip = True
        else:
            kept.append(letter)
    return "".join(kept)


@given(NASTY)
@example("|\\|\\\\|")
def test_any_text_is_one_line_without_marks(text: str) -> None:
    written = inline(text)
    written.encode("utf-8")
    assert not written or len(written.splitlines()) == 1
    assert not set(unescaped_marks(written.replace("\\x", "x").replace("\\u", "u"))) & set("`*[]|~<")


@given(NASTY)
@example("`` ` ````\n```")
def test_a_fence_ends_where_it_should(text: str) -> None:
    opening, body, closing = fenced(text, "text")
    assert opening == closing + "text"
    assert closing not in body


@given(st.lists(st.tuples(NASTY, NASTY), min_size=1, max_size=3))
def test_a_table_has_the_cells_it_was_given(rows: list[tuple[str, str]]) -> None:
    lines = markdown_table(("a|b", "c"), rows)
    assert len(lines) == 2 + len(rows)
    for line in lines:
        plain = unescaped_marks(line.replace("\\x", "x").replace("\\u", "u"))
        assert plain.count("|") == 3, line


class _Seen(HTMLParser):
    """The texts and the tags of a page."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@given(NASTY.filter(lambda text: one_line(text).strip()))
@example("<script>alert(1)</script> &copy; **a** _b_ `c` [d](e) # f")
def test_rendered_it_is_the_same_text(text: str) -> None:
    """With a renderer of another kind: Python-Markdown, which the documentation is built with."""
    markdown = pytest.importorskip("markdown")
    seen = _Seen()
    seen.feed(markdown.markdown(f"x {inline(text)} x", extensions=["tables"]))
    assert seen.tags == {"p"}
    assert "".join(seen.text.split()) == "".join(f"x{one_line(text)}x".split())
