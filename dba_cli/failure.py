"""What an error looks like on the terminal: one paragraph on stderr, a traceback only with DBA_TRACEBACK=1.

What the core says in Python is said in the words of the command line (`in_flags`), what the operating system
refused as a sentence with the path and the next step. A warning about a plugin is one line.
"""

from __future__ import annotations

import ast
import contextlib
import errno
import io
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TextIO

import click

from dba_cli.hints import LEGACY_FLAGS, hint_for
from dba_cli.output.terminal import echo, echo_labelled, warn
from dba_core.errors import DeprecatedContractWarning, KernelCacheWarning, LongPromptWarning
from dba_core.kinds import KINDS

#: What the core's texts say in Python -> the option that does the same.
_FLAGS = {
    "allow_drift=True": "--allow-drift",
    "strict=True": "--strict",
    "chat=True": "--chat",
    "bos=": "--bos",
    "eos=": "--eos",
    "data=": "--data",
    "name=": "--name",
    "device=": "--device",
    "compile_model=": "--compile",
    "sets=": "--set",
    "plugins=": "--plugin",
    "kv_policy=": "--kv-policy",
    "config_file=": "--config",
    "Access.blocked": "--no-plugin",
    "root=": "--out",
    "which=": "--checkpoint",
    "device='cpu' or 'auto'": "--device cpu or auto",
    "Make one with run_job()": "Make one with: dba run",
}
_PYTHON = re.compile("|".join(rf"(?<![\w.]){re.escape(words)}(?![\w'\"])" for words in _FLAGS))
_TEXT = r"('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")"
_RESUMING = re.compile(rf"resume_job\({_TEXT}\)")
_BLOCKED = re.compile(rf"Access\(blocked=\[{_TEXT}\]\)")
_WORD = re.compile(r"[\w@%+=:,./*-]+")
_GIVEN = re.compile(rf"(?<![\w.])(?:(sets|plugins)=\[{_TEXT}\]|(config_file)={_TEXT})")
_IN_LAYERS = re.compile(rf"(?<![\w.])plugins\.layers\.([\d,-]+)\.({'|'.join(KINDS)})(?==)")
_CHOICE = re.compile(rf"(?<![\w.])plugins\.(?=(?:{'|'.join(KINDS)})[@=])")

_CAUSES: dict[int | None, tuple[str, str]] = {
    errno.ENOENT: (
        "does not exist, and cannot be made there",
        "Check how it is spelled and the folder that the command runs in, or name another place",
    ),
    errno.EACCES: ("may not be read or written by you", "Change its permissions, or name another place"),
    errno.EPERM: ("may not be changed by you", "Change its permissions, or name another place"),
    errno.EROFS: ("lies on a file system that cannot be written", "Name another place"),
    errno.ENOSPC: ("does not fit: the disk is full", "Free some space, or name a place on another disk"),
    errno.EDQUOT: ("does not fit: your quota is used up", "Free some space, or name another place"),
    errno.EISDIR: ("is a folder", "Give a file"),
    errno.ENOTDIR: ("is no folder, or lies under a file", "Give a folder"),
    errno.EEXIST: ("exists already, and is no folder or may not be replaced", "Name another place"),
    errno.ENOTEMPTY: ("is a folder that holds something", "Name another place"),
    errno.ENAMETOOLONG: ("has a name that is too long", "Give a shorter name"),
    errno.ELOOP: ("is a link that leads to itself", "Name the file itself"),
    errno.EMFILE: ("cannot be opened: too many files are open", "Raise the limit (ulimit -n)"),
    errno.ENOMEM: ("does not fit into memory", "Free some memory, or give something smaller"),
    errno.EIO: ("cannot be read or written: the disk reports an error", "Name a place on another disk"),
}


def wants_traceback() -> bool:
    return os.environ.get("DBA_TRACEBACK", "0") not in ("", "0")


def explain(error: Exception) -> None:
    """Print an expected error: one of ours, or what the operating system refused."""
    if wants_traceback():
        _echo_traceback(error)
    else:
        _echo(os_error_text(error) if isinstance(error, OSError) else in_flags(str(error)))


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


def in_flags(text: str) -> str:
    """A text of the core, which speaks Python, as the command line says it."""
    text = _RESUMING.sub(lambda found: f"dba run --resume {ast.literal_eval(found[1])}", text)
    text = _BLOCKED.sub(lambda found: f"--no-plugin {_bare(found[1])}", text)
    text = _GIVEN.sub(
        lambda found: f"{_FLAGS[f'{found[1] or found[3]}=']} {_bare(found[2] or found[4])}", text
    )
    text = _CHOICE.sub("--plugin ", _IN_LAYERS.sub(r"--plugin \2@layers.\1", text))
    return _PYTHON.sub(lambda found: _FLAGS[found[0]], text)


def _bare(literal: str) -> str:
    """A literal without its quotes, unless a shell or an eye needs them."""
    text = str(ast.literal_eval(literal))
    return text if _WORD.fullmatch(text) else literal


def os_error_text(error: OSError) -> str:
    """One paragraph: which file, what is wrong, what to do."""
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    what = " or ".join(map(repr, names)) if names else "a file"
    cause, action = _CAUSES.get(error.errno, ("", ""))
    if cause:
        return f"{what} {cause}. {action}."
    reason = error.strerror or str(error) or type(error).__name__
    return f"the operating system refused {what}: {reason}. DBA_TRACEBACK=1 shows where."
