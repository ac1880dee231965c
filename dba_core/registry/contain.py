"""The wall around foreign code: what a plugin or its metadata raises becomes data instead of an exception.

Called wherever the registry reads metadata, imports a plugin, or calls into one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import attrs

T = TypeVar("T")
_TEXT_LIMIT = 500


@attrs.frozen
class Failure:
    """What foreign code raised."""

    error: BaseException

    def __str__(self) -> str:
        text = " ".join(str(self.error).split()) or "no message"
        if len(text) > _TEXT_LIMIT:
            text = text[:_TEXT_LIMIT] + "..."
        return f"{type(self.error).__name__}: {text}"


def contain(action: Callable[[], T]) -> T | Failure:
    """The action's result, or what it raised."""
    try:
        return action()
    # Foreign code may raise anything, sys.exit() at import included, and must not break any other plugin.
    except (Exception, SystemExit) as error:  # noqa: BLE001
        return Failure(error)
