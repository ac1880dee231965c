"""The wall around foreign code that reads foreign data: a Rust extension (`tokenizers`), a chat template.

`tokenizers` raises bare `Exception` for a damaged file and lets a Rust panic through as a `BaseException` of
its own; a template may raise whatever its expressions do. Both become one DBAError that says what was asked
for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from dba_core.errors import DBAError
from dba_core.printable import printable
from dba_core.registry.contain import Failure, contain

T = TypeVar("T")
_TEXT_LIMIT = 300


def guarded(action: Callable[[], T], failed: Callable[[str], DBAError]) -> T:
    """The action's result. failed: the error to raise for what the action raised, which it gets as text.

    Our own errors, KeyboardInterrupt, SystemExit and MemoryError pass through as they are.
    """
    found = contain(action)
    if not isinstance(found, Failure):
        return found
    if isinstance(found.error, (DBAError, SystemExit, GeneratorExit, MemoryError)):
        raise found.error
    raise failed(_described(found.error)) from None


def _described(error: BaseException) -> str:
    text = printable(" ".join(str(error).split())).rstrip(".") or type(error).__name__
    return text if len(text) <= _TEXT_LIMIT else f"{text[:_TEXT_LIMIT]}..."
