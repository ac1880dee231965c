"""The wall around foreign code: what a plugin or its metadata raises becomes data, what it changes is put
back, and what it raises while it works gets its name.

Surroundings are kept around every import of a plugin and every question to one: stdout is the command's, and
what a plugin prints, from Python or from an extension that writes to descriptor 1, goes to stderr.

    done = False
    try:
        gate = module(x)
        done = True
    finally:
        if not done:
            blame("gate 'soft' of acme 1.0")

A DBAError that the plugin raised on purpose keeps its class and names the plugin too; anything else is a
PluginError whose cause is the original, SystemExit too: a plugin does not end a run. KeyboardInterrupt, and a
device without memory, is no plugin's fault and passes.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import TypeVar

import attrs

from dba_core.errors import ConfigError, DBAError, PluginError
from dba_core.printable import printable

T = TypeVar("T")
_TEXT_LIMIT = 500
_STDOUT, _STDERR = 1, 2
_lock = threading.Lock()
#: Those that are within now, in any thread, and what puts things back when the last one leaves.
_within: list[object] = []
_undo = contextlib.ExitStack()


@attrs.frozen
class Failure:
    """What foreign code raised."""

    error: BaseException

    def __str__(self) -> str:
        text = _one_line(contain(lambda: str(self.error)), "its text cannot be read")
        return f"{printable(type(self.error).__name__)}: {text or 'no message'}"


def shown(value: object) -> str:
    """A foreign object in an error text: its repr in one line, shortened; its type where it has none."""
    return _one_line(contain(lambda: repr(value)), f"an object of type {printable(type(value).__name__)}")


def _one_line(told: str | Failure, instead: str) -> str:
    if isinstance(told, Failure):
        return instead
    text = printable(" ".join(told.split()))
    return text if len(text) <= _TEXT_LIMIT else text[:_TEXT_LIMIT] + "..."


def contain(action: Callable[[], T]) -> T | Failure:
    """The action's result, or what it raised; Ctrl-C alone passes."""
    try:
        return action()
    except KeyboardInterrupt:
        raise
    # Foreign code may raise anything, sys.exit() at import and the panics of Rust extensions included (both
    # are no Exception), and must not break any other plugin.
    except BaseException as error:  # noqa: BLE001
        return Failure(error)


@contextlib.contextmanager
def kept_surroundings() -> Iterator[None]:
    """Within: stdout is stderr. Afterwards streams, working directory and warning filters are as before.

    Threads share all of these: the first one in changes them, the last one out puts them back.
    """
    mark = object()
    with _lock:
        if not _within:
            _set_apart()
        _within.append(mark)
    try:
        yield
    finally:
        with _lock:
            _within.remove(mark)
            if not _within:
                _undo.close()


def _set_apart() -> None:
    _flush()
    _undo.enter_context(warnings.catch_warnings())
    folder = contain(os.getcwd)
    if not isinstance(folder, Failure):
        _undo.callback(contain, functools.partial(os.chdir, folder))
    streams = {name: getattr(sys, name) for name in ("stdin", "stdout", "stderr")}
    _undo.callback(vars(sys).update, streams)
    descriptor = contain(_descriptor_to_stderr)
    if not isinstance(descriptor, Failure):
        _undo.callback(contain, descriptor)
    _undo.callback(_flush)
    sys.stdout = sys.stderr


def _descriptor_to_stderr() -> Callable[[], None]:
    """Descriptor 1 now writes where 2 does; the result undoes it. Raises OSError where either is closed."""
    os.fstat(_STDERR)
    kept = os.dup(_STDOUT)
    os.dup2(_STDERR, _STDOUT)

    def undo() -> None:
        os.dup2(kept, _STDOUT)
        os.close(kept)

    return undo


def _flush() -> None:
    """What was written so far goes where it was meant to go, the buffers of C's stdio included."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            contain(stream.flush)
    if os.name == "posix":
        contain(lambda: ctypes.CDLL(None).fflush(None))


def blame(who: str, doing: str = "failed when it was called") -> None:
    """In a `finally` that no result has reached: raises what is being raised, with the plugin's name; returns
    where that passes as it is. Costs nothing where nothing is raised. who: begins with the kind.
    """
    error = sys.exc_info()[1]
    if error is None or isinstance(error, KeyboardInterrupt):
        return
    if isinstance(error, ConfigError) and error.path:  # it is about no key of the user's configuration
        error.message, error.path = f"{error.path}: {error.message}", ""
    told = attributed(error, who, doing)
    if told is not error:
        raise told from error


def attributed(error: BaseException, who: str, doing: str) -> BaseException:
    """What is raised in place of `error`: itself where it passes or can be told with the name in it."""
    if out_of_memory(error):
        return error
    if isinstance(error, DBAError):
        _name(error, who)
        return error
    kind = who.partition(" ")[0]
    return PluginError(
        f"{who} {doing} ({Failure(error)}). Choose another {kind} or report it to the plugin's author."
    )


def out_of_memory(error: BaseException) -> bool:
    """Whether a device ran out of memory. Imports no torch: without it nothing has raised that."""
    return isinstance(error, getattr(sys.modules.get("torch"), "OutOfMemoryError", ()))


def _name(error: DBAError, who: str) -> None:
    if str(error).startswith(who):
        return
    if isinstance(error, ConfigError):
        error.message = f"{who}: {error.message}"
        text = f"{error.path}: {error.message}" if error.path else error.message
    else:
        text = f"{who}: {error}"
    error.args = (text, *error.args[1:])
