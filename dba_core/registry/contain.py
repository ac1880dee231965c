"""The wall around foreign code: what a plugin or its metadata raises becomes data instead of an exception.

Called wherever the registry reads metadata, imports a plugin, or calls into one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import attrs

from dba_core.printable import printable

T = TypeVar("T")
_TEXT_LIMIT = 500


@attrs.frozen
class Failure:
    """What foreign code raised."""

    error: BaseException

    def __str__(self) -> str:
        told = contain(lambda: str(self.error))
        text = "its text cannot be read" if isinstance(told, Failure) else printable(" ".join(told.split()))
        if len(text) > _TEXT_LIMIT:
            text = text[:_TEXT_LIMIT] + "..."
        return f"{printable(type(self.error).__name__)}: {text or 'no message'}"


def shown(value: object) -> str:
    """A foreign object in an error text: its repr in one line, shortened; its type where it has none."""
    told = contain(lambda: repr(value))
    if isinstance(told, Failure):
        return f"an object of type {printable(type(value).__name__)}"
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
