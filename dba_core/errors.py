"""Every error that DBA raises on purpose, and the exit code that the command line gives it.

An error text is one paragraph: what was wrong, the value, what is allowed, what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from dba_core.printable import printable

if TYPE_CHECKING:
    from dba_core.support import Reason


class DBAError(Exception):
    """Base of all errors that a user can act on. `exit_code` is what `dba` exits with."""

    exit_code: ClassVar[int] = 1

    def __str__(self) -> str:
        """Fit for a terminal, whatever names the message holds; the message itself is in `args`."""
        return printable(super().__str__(), lines=True)


class UsageError(DBAError):
    """The command line cannot be understood, or uses a flag that is gone."""

    exit_code = 2


class ConfigError(DBAError):
    """A configuration value is wrong. `path` is its dotted key ("" where it has none)."""

    exit_code = 3

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path
        self.message = message

    def under(self, prefix: str) -> ConfigError:
        """The same error seen from the parent: `prefix` goes before the path."""
        path = f"{prefix}.{self.path}" if self.path and prefix else prefix or self.path
        return type(self)(self.message, path=path)


class DataError(ConfigError):
    """A corpus or tokenizer cannot be read, is too short, or holds tokens out of the vocabulary."""


class PluginError(DBAError):
    """A plugin is missing, broken, duplicated or was written for another contract."""

    exit_code = 4


class RecordMismatchError(DBAError):
    """What a recorded configuration names is not what is installed (see `allow_drift`)."""

    exit_code = 5


class UnsupportedError(DBAError):
    """What was asked for by name cannot run here. `reasons` says why, as data."""

    def __init__(self, message: str, *, reasons: tuple[Reason, ...] = ()) -> None:
        super().__init__("\n".join([message, *(f"  - {reason}" for reason in reasons)]))
        self.reasons = reasons


class SourceError(UnsupportedError):
    """A pretrained model is of a kind, or in a form, that this library does not read."""

    exit_code = 3


class CacheError(DBAError):
    """A KV cache was asked for something that would overflow, desynchronize or falsify it."""


class CheckpointError(DBAError):
    """A checkpoint is missing, incomplete, changed on disk, or belongs to another model."""


class TrainingError(DBAError):
    """Training cannot go on: a loss that is not finite, say."""


class DeprecatedContractWarning(FutureWarning):
    """A plugin was written for the previous contract of its kind, which is taken for now."""


class LongPromptWarning(UserWarning):
    """A prompt is longer than the context that the model was trained with."""


class KernelCacheWarning(UserWarning):
    """Compiled kernels are not kept on the disk, or what is there is not trusted: they are compiled anew."""


def nearest(name: str, allowed: Iterable[str], *, count: int = 3) -> list[str]:
    """The names closest to `name`, best first; empty when none is near."""
    return difflib.get_close_matches(name, list(allowed), n=count, cutoff=0.5)


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """A sentence with the names closest to `name` and a space after it; empty when none is near."""
    close = nearest(name, allowed)
    return f"Did you mean {' or '.join(map(repr, close))}? " if close else ""


def unknown(what: str, name: str, allowed: Iterable[str]) -> str:
    """One sentence for an unknown name: the name, the nearest ones, all that are allowed."""
    names = sorted(allowed)
    listed = ", ".join(names) if names else "none"
    return f"unknown {what} {name!r}. {did_you_mean(name, names)}Allowed: {listed}."
