"""What an error looks like on the terminal: one paragraph on stderr, a traceback only with DBA_TRACEBACK=1.
A warning about a plugin is one line.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TextIO

import click

from dba_cli.hints import hint_for, in_flags
from dba_cli.legacy import LEGACY_FLAGS
from dba_cli.terminal import echo, echo_labelled, warn
from dba_core.errors import DeprecatedContractWarning, KernelCacheWarning, LongPromptWarning


def wants_traceback() -> bool:
    return os.environ.get("DBA_TRACEBACK", "0") not in ("", "0")


def explain(error: Exception, text: str | None = None) -> None:
    """Print an expected error, in the words of `text` where they are given."""
    if wants_traceback():
        _echo_traceback(error)
    else:
        _echo(in_flags(str(error)) if text is None else text)


def explain_click(error: click.ClickException, argv: Sequence[str]) -> None:
    """Print a usage error with what was probably meant and the place where help is found."""
    hint = hint_for(error, argv) if isinstance(error, click.UsageError) else None
    text = _without_legacy_hints(error) if hint is None else hint
    if isinstance(error, click.UsageError) and error.ctx is not None:
        text = f"{text}{'' if text.endswith(('.', '?')) else '.'} See '{error.ctx.command_path} --help'."
    _echo(text)


def _without_legacy_hints(error: click.ClickException) -> str:
    """The message; the flags that are only there to be refused are no suggestion."""
    if isinstance(error, click.NoSuchOption) and error.possibilities:
        close = [name for name in error.possibilities if name not in LEGACY_FLAGS]
        hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
        return f"{error.message}{hint}"
    return error.format_message()


@contextlib.contextmanager
def warnings_in_one_line() -> Iterator[None]:
    """Within: our own warnings are said without the line of code that it came from."""
    before = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, (DeprecatedContractWarning, KernelCacheWarning, LongPromptWarning)):
            warn(str(message))
        else:
            text = io.StringIO()
            before(message, category, filename, lineno, text if file is None else file, line)
            echo(text.getvalue(), err=True, nl=False)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def install_excepthook() -> None:
    """An exception that nobody expected ends the process with exit code 1 and a short text."""
    sys.excepthook = _unexpected


def _unexpected(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if wants_traceback():
        _echo_traceback(error)
        return
    where = traceback.extract_tb(trace)[-1:] if trace is not None else []
    place = "".join(
        f" in {frame.name} (line {frame.lineno} of {os.path.basename(frame.filename)})" for frame in where
    )
    _echo(f"unexpected {kind.__name__}{place}: {error}. Set DBA_TRACEBACK=1 to see where it came from.")


def _echo_traceback(error: BaseException) -> None:
    echo("".join(traceback.format_exception(error)), err=True, nl=False)


def _echo(text: str) -> None:
    """One paragraph on stderr."""
    echo_labelled("error", text, color="red")
