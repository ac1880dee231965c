"""The commands that are plugins: ours, and those of other distributions, by name and one line of help.

A name with dots stands in groups: `bench.decode` is `dba bench decode`. The line of help begins the docstring
of the module that the entry point names; that of a group is the docstring of the package where its first
command lives. Both are read without importing anything. What has the name of one of ours is called
`DISTRIBUTION:NAME`, and so are two others that share a name.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from importlib.metadata import distribution, distributions

import attrs
import click

from dba_cli.hints import in_flags
from dba_cli.lazy import LazyGroup, Listed
from dba_core.command import summary_of
from dba_core.distribution import NAME, is_ours
from dba_core.registry.contain import Failure
from dba_core.registry.discovery import PluginInfo, discover, docstring_of


@attrs.frozen
class PluginEntry:
    """A command as metadata announces it."""

    info: PluginInfo

    @property
    def origin(self) -> str:
        return "" if is_ours(self.info.distribution) else self.info.distribution

    @property
    def summary(self) -> str:
        """Its line of help, or why it cannot be used as far as that shows without importing it."""
        if self.info.problem is not None:
            return f"(broken: {in_flags(self.info.problem)})"
        text = docstring_of(self.info.module.partition(":")[0])
        return f"(broken: {text})" if isinstance(text, Failure) else f"{summary_of(text)}."

    def load(self) -> click.Command:
        """Raises PluginError for a broken one. The allow list is about what others bring along."""
        from dba_cli.plugin_command import plugin_command
        from dba_core.registry import Registry

        registry = Registry(distributions=[distribution(NAME)]) if not self.origin else Registry.default()
        return plugin_command(registry.load("command", self.info.qualified))


@attrs.frozen
class GroupEntry:
    """Commands that share the first part of their names."""

    name: str
    commands: Mapping[str, PluginEntry]

    @property
    def origin(self) -> str:
        """Of the first; a group of ours stays ours whoever adds to it."""
        return next(iter(self.commands.values())).origin

    @property
    def summary(self) -> str:
        return f"{summary_of(self._text)}."

    @property
    def _text(self) -> str:
        first = next(iter(self.commands.values())).info.module
        text = docstring_of(first.partition(":")[0].rpartition(".")[0]) if "." in first else None
        listed = f"Commands: {', '.join(self.commands)}."
        return text if isinstance(text, str) else listed

    def load(self) -> click.Command:
        return LazyGroup(self.name, own=tree(self.commands), help=inspect.cleandoc(self._text))


def all_commands(taken: Iterable[str]) -> dict[str, Listed]:
    """Ours and everybody's. taken: names that are neither."""
    return _all_commands(tuple(taken), tuple(sys.path))


@functools.cache
def _all_commands(taken: tuple[str, ...], _path: tuple[str, ...]) -> dict[str, Listed]:
    found = [info for info in discover(distributions()).plugins if info.kind == "command"]
    ours = {info.name: PluginEntry(info) for info in found if is_ours(info.distribution)}
    others = [info for info in found if not is_ours(info.distribution)]
    return tree({**ours, **_qualified(others, ours=ours, taken=taken)})


def _qualified(
    others: list[PluginInfo], *, ours: Collection[str], taken: Collection[str]
) -> dict[str, PluginEntry]:
    """By a name that is one command's alone."""
    counts = Counter(info.name for info in others)
    groups = {name.partition(".")[0] for name in ours if "." in name}
    single = {name for name in (*ours, *taken) if "." not in name}

    def is_free(name: str) -> bool:
        first, dot, _ = name.partition(".")
        return (
            counts[name] == 1
            and name not in ours
            and first not in single
            and (bool(dot) or first not in groups)
        )

    return {info.name if is_free(info.name) else info.qualified: PluginEntry(info) for info in others}


def tree(entries: Mapping[str, PluginEntry]) -> dict[str, Listed]:
    """Names without dots: commands and groups, in the order of their first."""
    made: dict[str, Listed] = {}
    groups: dict[str, dict[str, PluginEntry]] = {}
    for name, entry in entries.items():
        first, dot, rest = name.partition(".")
        if ":" in name or not dot:
            made[name] = entry
            continue
        groups.setdefault(first, {})[rest] = entry
        made[first] = GroupEntry(first, groups[first])
    return made
