"""The options about the plugins themselves: which may be used, and what is done with them.

Shared by `run`, `sample`, `eval`, `drift` and `plugins`; they give the command its registry.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs
import click

from dba_cli import completing
from dba_cli.terminal import echo

if TYPE_CHECKING:
    from dba_core.registry import Registry, Trace

Command = Callable[..., Any]


@attrs.frozen(kw_only=True)
class PluginFlags:
    """As typed. no_plugin: names that may not be used."""

    no_plugin: tuple[str, ...] = ()
    trace_plugins: bool = False

    @property
    def given(self) -> list[str]:
        """The flags that were used, for the places where they may not be."""
        used = {"--no-plugin": bool(self.no_plugin), "--trace-plugins": self.trace_plugins}
        return [flag for flag, is_used in used.items() if is_used]

    def registry(self) -> Registry:
        """The installed plugins under `--no-plugin` and the allow list of the environment."""
        from dba_core.registry import Access, Registry

        access = Access.from_environment(os.environ, blocked=self.no_plugin)
        return Registry(access=access, trace=_printed_trace() if self.trace_plugins else None)


def _printed_trace() -> Trace:
    """Every event on stderr when it happens, and the sums when the command ends."""
    from dba_core.registry import Trace

    trace = Trace(lambda event: echo(f"trace: {event}", err=True))
    click.get_current_context().call_on_close(lambda: _print_totals(trace))
    return trace


def _print_totals(trace: Trace) -> None:
    for plugin, actions in trace.totals().items():
        sums = ", ".join(f"{action} {n}x {s * 1000:.1f} ms" for action, (n, s) in actions.items())
        echo(f"trace: total of {plugin}: {sums}", err=True)
    if not trace.events:
        echo("trace: no plugin was imported or called", err=True)


_OPTIONS = (
    click.option(
        "--no-plugin",
        "no_plugin",
        multiple=True,
        shell_complete=completing.plugin_names,
        metavar="NAME",
        help="Do not use this plugin; may be repeated. Also KIND=NAME, DISTRIBUTION:NAME, DISTRIBUTION:*.",
    ),
    click.option(
        "--trace-plugins",
        is_flag=True,
        help="Show every import and call of a plugin and its time, on stderr.",
    ),
)

strict_option = click.option(
    "--strict", is_flag=True, help="Where 'auto' would not take its first choice: an error with the reasons."
)


def plugin_options(command: Command) -> Command:
    """Add the options; the command gets them as one `plugin_flags: PluginFlags`."""

    @functools.wraps(command)
    def with_flags(*args: Any, no_plugin: tuple[str, ...], trace_plugins: bool, **kwargs: Any) -> Any:
        flags = PluginFlags(no_plugin=no_plugin, trace_plugins=trace_plugins)
        return command(*args, plugin_flags=flags, **kwargs)

    for option in reversed(_OPTIONS):
        with_flags = option(with_flags)
    return with_flags
