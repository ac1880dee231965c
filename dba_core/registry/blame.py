"""What a plugin raises while it works gets its name: who it was, of which distribution and version.

    with Blame(lambda: "gate 'soft' of acme 1.0"):
        gate = module(x)

A DBAError that the plugin raised on purpose keeps its class and names the plugin too; anything else is a
PluginError whose cause is the original, SystemExit too: a plugin does not end a run. KeyboardInterrupt, and a
device without memory, is no plugin's fault and passes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType

from dba_core.errors import ConfigError, DBAError, PluginError
from dba_core.registry.contain import Failure


class Blame:
    """A plain class: it is made in every call of every plugin."""

    __slots__ = ("_doing", "_who")

    def __init__(self, who: Callable[[], str], doing: str = "failed when it was called") -> None:
        """who: asked for when something is raised; begins with the kind."""
        self._who, self._doing = who, doing

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, KeyboardInterrupt):
            return
        if isinstance(error, ConfigError):
            _forget_path(error)
        told = attributed(error, self._who(), self._doing)
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


def _forget_path(error: ConfigError) -> None:
    """What a plugin raises while it works is about no key of the user's configuration."""
    if error.path:
        error.message, error.path = f"{error.path}: {error.message}", ""


def _name(error: DBAError, who: str) -> None:
    if str(error).startswith(who):
        return
    if isinstance(error, ConfigError):
        error.message = f"{who}: {error.message}"
        text = f"{error.path}: {error.message}" if error.path else error.message
    else:
        text = f"{who}: {error}"
    error.args = (text, *error.args[1:])
