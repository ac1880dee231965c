"""Click groups that know their commands by name and one line of help, and import a command when it is called.

`dba --help` therefore costs click and nothing else."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import attrs
import click
from click.shell_completion import CompletionItem

from dba_cli.terminal import echo
from dba_core.errors import nearest

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
