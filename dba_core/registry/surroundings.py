"""What a plugin may not change for everyone else: where stdout goes, the working directory, warning filters.

Called around every import of a plugin and every question to one. stdout is the command's: what a plugin
prints, from Python or from an extension that writes to descriptor 1, goes to stderr.
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
from typing import TextIO

from dba_core.registry.contain import Failure, contain

_STDOUT, _STDERR = 1, 2
_lock = threading.Lock()
#: Those that are within now, in any thread, and what puts things back when the last one leaves.
_within: list[object] = []
_undo = contextlib.ExitStack()


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
    filters = warnings.catch_warnings()
    filters.__enter__()
    _undo.callback(filters.__exit__, None, None, None)
    folder = contain(os.getcwd)
    if not isinstance(folder, Failure):
        _undo.callback(contain, functools.partial(os.chdir, folder))
    streams = sys.stdin, sys.stdout, sys.stderr
    _undo.callback(_put_back, streams)
    descriptor = contain(_descriptor_to_stderr)
    if not isinstance(descriptor, Failure):
        _undo.callback(contain, descriptor)
    _undo.callback(_flush)
    sys.stdout = sys.stderr


def _put_back(streams: tuple[TextIO, TextIO, TextIO]) -> None:
    sys.stdin, sys.stdout, sys.stderr = streams


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
