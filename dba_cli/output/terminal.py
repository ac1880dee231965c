"""All that leaves the program as text: the one way to standard output and standard error.

Foreign text (names, corpora, samples, errors) moves no cursor and colours nothing; whatever the stream's
encoding lacks is written as an escape; and a stream that nobody reads never costs a run: what goes to
standard error is then dropped, and standard output ends the command with `OutputError`, after the work.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO, cast

import click

from dba_core.errors import DBAError, UsageError
from dba_core.printable import printable

#: Our own signs, for streams that lack them.
_PLAIN = {"±": "+-", "…": "..."}


class OutputError(DBAError):
    """Standard output cannot be written. `is_closed`: its reader has gone, who need not be told."""

    def __init__(self, message: str, *, is_closed: bool) -> None:
        super().__init__(message)
        self.is_closed = is_closed


def prepare() -> None:
    """Once, at the start: both streams are there, and neither raises for a letter that it lacks."""
    if sys.stdout is None:  # closed by the shell: >&-
        sys.stdout = _nowhere()
    if sys.stderr is None:
        sys.stderr = _nowhere()
    for each in (sys.stdout, sys.stderr):
        if isinstance(each, io.TextIOWrapper) and each.errors in ("strict", "surrogateescape"):
            each.reconfigure(errors="backslashreplace")


def stream(*, err: bool) -> TextIO:
    """Standard error or standard output."""
    return sys.stderr if err else sys.stdout


def fit(text: str, where: TextIO) -> str:
    """The text as this stream can show it: see `printable`; a letter that its encoding lacks as an escape."""
    shown = printable(text, lines=True)
    if is_unicode(where):
        return shown
    encoding = where.encoding
    try:
        shown.encode(encoding)
    except UnicodeEncodeError:
        for sign, plain in _PLAIN.items():
            if sign.encode(encoding, "ignore") == b"":
                shown = shown.replace(sign, plain)
        return shown.encode(encoding, "backslashreplace").decode(encoding)
    return shown


def is_unicode(where: TextIO) -> bool:
    """Whether the stream takes every letter. A stream in memory has no encoding."""
    return not where.encoding or where.encoding.lower().startswith("utf")


def echo(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """The text and a line end. Raises OutputError where standard output cannot be written."""
    _write(text, err=err, nl=nl)


def echo_labelled(label: str, text: str, *, color: str) -> None:
    """`label: text` on stderr; the label is coloured on a terminal unless NO_COLOR is set."""
    _write(text, err=True, nl=True, before=f"{click.style(f'{label}:', fg=color, bold=True)} ")


def warn(text: str) -> None:
    """One warning on stderr."""
    echo_labelled("warning", text, color="yellow")


class GrowingText:
    """A text on standard output that comes in pieces; a line end in two of them is still a line end."""

    def __init__(self) -> None:
        self._held = ""

    def add(self, piece: str) -> None:
        text = self._held + piece
        self._held = "\r" if text.endswith("\r") else ""
        echo(text.removesuffix("\r"), nl=False)

    def end(self) -> None:
        """What was held back, and a line end."""
        echo(self._held)
        self._held = ""


def guarded(*, err: bool) -> TextIO:
    """A standard stream for writers other than `echo`, with the same promise about one that nobody reads."""
    return cast(TextIO, _Guarded(err=err))


class _Guarded(io.TextIOBase):
    """What rich writes to."""

    def __init__(self, *, err: bool) -> None:
        self._err = err
        self._stream = stream(err=err)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding or "utf-8"

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def write(self, text: str) -> int:
        with _guarded(self._stream, err=self._err):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        if self._stream.closed:  # collected after its stream: `io` flushes on the way out
            return
        with _guarded(self._stream, err=self._err):
            self._stream.flush()


def terminal_input() -> bytes:
    """All of standard input. Raises UsageError where there is none."""
    try:
        if isinstance(sys.stdin, io.TextIOWrapper):
            data: bytes = sys.stdin.buffer.read()
            return data
        if sys.stdin is not None:
            return sys.stdin.read().encode("utf-8", "surrogateescape")
    except OSError as error:
        raise UsageError(f"standard input cannot be read: {error.strerror or error}") from None
    raise UsageError("standard input is closed; pipe a text into it")


def finish() -> None:
    """At the end: what is still on its way to standard output has arrived. Raises OutputError."""
    with _guarded(sys.stdout, err=False):
        sys.stdout.flush()


def wants_color() -> bool:
    """What the user says about colours; whether the stream is a terminal is another question."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _write(text: str, *, err: bool, nl: bool, before: str = "") -> None:
    where = stream(err=err)
    with _guarded(where, err=err):
        click.echo(before + fit(text, where), file=where, nl=nl, color=None if wants_color() else False)


@contextlib.contextmanager
def _guarded(where: TextIO, *, err: bool) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        _silence(where)
        if not err:
            is_closed = isinstance(error, BrokenPipeError)
            message = f"standard output cannot be written: {error.strerror or error}"
            raise OutputError(message, is_closed=is_closed) from None


def _silence(where: TextIO) -> None:
    """What is still in the stream's buffer, and all that follows, goes nowhere and raises nothing."""
    with contextlib.suppress(OSError):  # io.UnsupportedOperation: a stream in memory has no number
        number = where.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")
