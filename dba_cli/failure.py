"""What an error looks like on the terminal: one paragraph on stderr, a traceback only with DBA_TRACEBACK=1.
A warning about a plugin is one line.

Called by `main`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from types import TracebackType
from typing import TextIO

import click

from dba_cli.legacy import LEGACY_FLAGS
from dba_core.errors import DeprecatedContractWarning, KernelCacheWarning


def wants_traceback() -> bool:
    return os.environ.get("DBA_TRACEBACK", "0") not in ("", "0")


def explain(error: Exception) -> None:
    """Print an expected error."""
    if wants_traceback():
        traceback.print_exception(type(error), error, error.__traceback__, file=sys.stderr)
        return
    _echo(str(error))


def explain_click(error: click.ClickException) -> None:
    """Print a usage error with the place where help is found."""
    text = _without_legacy_hints(error)
    if isinstance(error, click.UsageError) and error.ctx is not None:
        text = f"{text} See '{error.ctx.command_path} --help'."
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
    """Within: this library's own warnings are said without the line of code that it came from."""
    before = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, (DeprecatedContractWarning, KernelCacheWarning)):
            click.echo(f"warning: {message}", err=True)
        else:
            before(message, category, filename, lineno, file, line)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def install_excepthook() -> None:
    """An exception that nobody expected ends the process with exit code 1 and a short text."""
    sys.excepthook = _unexpected


def _unexpected(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if wants_traceback():
        traceback.print_exception(kind, error, trace, file=sys.stderr)
        return
    where = traceback.extract_tb(trace)[-1:] if trace is not None else []
    place = "".join(
        f" in {frame.name} (line {frame.lineno} of {os.path.basename(frame.filename)})" for frame in where
    )
    _echo(f"unexpected {kind.__name__}{place}: {error}. Set DBA_TRACEBACK=1 to see where it came from.")


def _echo(text: str) -> None:
    """One paragraph on stderr; coloured on a terminal unless NO_COLOR is set."""
    color = False if os.environ.get("NO_COLOR") else None
    click.echo(f"{click.style('error:', fg='red', bold=True)} {text}", err=True, color=color)
