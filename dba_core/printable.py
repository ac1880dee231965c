"""Foreign text made fit for a terminal and a report: names, corpora, tensor names, keys of foreign files.

\\x1b[31m  ->  the four characters that show an escape, not a colour
"""

from __future__ import annotations

import unicodedata

#: Unicode categories that a reader cannot see and that can move, hide or reorder what stands beside them:
#: control, format (direction overrides, zero-width), surrogate, line and paragraph separator.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
#: Format characters that scripts need: zero-width (non-)joiner. The soft hyphen is shown.
_NEEDED = frozenset("\u200c\u200d")


def unseen(letter: str) -> bool:
    """Whether a reader does not see this character, and a script does not need it."""
    return unicodedata.category(letter) in _UNSEEN and letter not in _NEEDED


def printable(text: str, *, lines: bool = False) -> str:
    """The same text, every character that is not seen written as its escape (`\\x1b`, `\\u202e`, `\\udcff`).

    lines: keep newlines and tabs, for text that is meant to have them (a sample, an error of several lines);
    a carriage return before a newline is part of it.
    """
    if text.isprintable():
        return text
    kept = "\n\t" if lines else ""
    return "".join(
        letter.encode("unicode_escape").decode("ascii") if unseen(letter) and letter not in kept else letter
        for letter in (text.replace("\r\n", "\n") if lines else text)
    )


def no_text(text: str) -> str | None:
    """Why a string is no text that UTF-8 can hold; None for one that is.

    Python keeps the bytes of a command line that its locale's encoding does not know as lone surrogates.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        letter = printable(text[error.start])
        return (
            f"it holds {letter} at position {error.start}, which is no character; give UTF-8 text, in a "
            "UTF-8 locale or with PYTHONUTF8=1"
        )
    return None


def one_line(text: str) -> str:
    """The same as `printable`, for a cell of a table: the lines of the text are joined by spaces."""
    return printable(" ".join(line.strip(" ") for line in text.split("\n")) if "\n" in text else text)
