"""Commands by name and one line of help, imported when they are called: `dba --help` costs little but click.

Those that are plugins, ours and those of other distributions, are found in metadata. A name with dots stands
in groups: `bench.decode` is `dba bench decode`. The line of help begins the docstring of the module that the
entry point names; that of a group is the docstring of the package where its first command lives. Both are
read without importing anything. What has the name of one of ours is called `DISTRIBUTION:NAME`, and so are
two others that share a name.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from importlib.metadata import distribution, distributions
from typing import Any, Protocol

import attrs
import click
from click.shell_completion import CompletionItem

from dba_cli.failure import in_flags
from dba_cli.output.terminal import echo
from dba_core.command import summary_of
from dba_core.distribution import NAME, is_ours
from dba_core.errors import nearest
from dba_core.registry.contain import Failure
from dba_core.registry.discovery import PluginInfo, discover, docstring_of

#: What other programs call our commands.
_OTHER_NAMES = {
    "train": "run",
    "fit": "run",
    "generate": "sample",
    "complete": "sample",
    "evaluate": "eval",
    "test": "eval",
    "measure": "bench",
    "import": "convert",
    "create": "new",
    "show": "info",
    "ls": "list",
}


class Listed(Protocol):
    """A command by its line of help. origin: the distribution that it is from, "" for this one."""

    @property
    def summary(self) -> str: ...

    @property
    def origin(self) -> str: ...

    def load(self) -> click.Command: ...


@attrs.frozen
class LazyCommand:
    """Where a command lives (`module:name`) and the line that help shows for it."""

    target: str
    summary: str
    origin: str = ""

    def load(self) -> click.Command:
        module, _, name = self.target.partition(":")
        command = vars(importlib.import_module(module))[name]
        assert isinstance(command, click.Command), self.target
        return command


class HintingGroup(click.Group):
    """A group that shows its help when nothing is asked for and names the nearest command for a wrong one."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            echo(self.get_help(ctx))
            ctx.exit()
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known_to_us = ctx.resilient_parsing or args[0].startswith("-")
        if not known_to_us and self.get_command(ctx, args[0]) is None:
            names = self.list_commands(ctx)
            known = [name for name in names if name == _OTHER_NAMES.get(args[0])]
            close = known or nearest(args[0], names)
            if args[0] == "help":
                raise click.UsageError(f"No such command 'help'; write {ctx.command_path} --help.", ctx)
            hint = f" Did you mean {' or '.join(repr(name) for name in close)}?" if close else ""
            raise click.UsageError(f"No such command {args[0]!r}.{hint} Commands: {', '.join(names)}.", ctx)
        return super().resolve_command(ctx, args)


class LazyGroup(HintingGroup):
    """A group whose commands are imported on use. own: those that it has of itself. found: more, looked for
    when `own` has not what is asked for.
    """

    def __init__(
        self,
        *args: Any,
        own: Mapping[str, Listed],
        found: Callable[[], Mapping[str, Listed]] = dict,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._own = own
        self._found = found

    @property
    def everything(self) -> dict[str, Listed]:
        return {**self._own, **self._found()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.everything)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = self._own.get(cmd_name) or self._found().get(cmd_name)
        return None if found is None else found.load()

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The commands and their lines of help, none of them imported, and the group's own options."""
        named = [
            CompletionItem(name, help=command.summary)
            for name, command in self.everything.items()
            if name.startswith(incomplete)
        ]
        return named + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        own = {name: each.summary for name, each in self.everything.items() if not each.origin}
        others = {
            name: f"{each.summary} [{each.origin}]" for name, each in self.everything.items() if each.origin
        }
        for title, listed in (("Commands", own), ("Commands of other distributions", others)):
            if listed:
                with formatter.section(title):
                    formatter.write_dl(list(listed.items()))


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
