"""Click groups that know their commands by name and one line of help, and import a command when it is called.

`dba --help` therefore costs click and nothing else. Called by `main` and the command groups.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

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


@attrs.frozen
class LazyCommand:
    """Where a command lives (`module:name`) and the line that help shows for it."""

    target: str
    summary: str

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
        names = self.list_commands(ctx)
        if args[0] not in names and not args[0].startswith("-") and not ctx.resilient_parsing:
            known = [name for name in names if name == _OTHER_NAMES.get(args[0])]
            close = known or nearest(args[0], names)
            if args[0] == "help":
                raise click.UsageError(f"No such command 'help'; write {ctx.command_path} --help.", ctx)
            hint = f" Did you mean {' or '.join(repr(name) for name in close)}?" if close else ""
            raise click.UsageError(f"No such command {args[0]!r}.{hint} Commands: {', '.join(names)}.", ctx)
        return super().resolve_command(ctx, args)


class LazyGroup(HintingGroup):
    """A group whose commands are imported on use."""

    def __init__(self, *args: Any, lazy: Mapping[str, LazyCommand], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lazy = dict(lazy)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.lazy:
            return None
        return self.lazy[cmd_name].load()

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The commands and their lines of help, none of them imported, and the group's own options."""
        named = [
            CompletionItem(name, help=command.summary)
            for name, command in self.lazy.items()
            if name.startswith(incomplete)
        ]
        return named + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.summary) for name, command in self.lazy.items()])
