"""The entry point of the `dba` script: the group of all commands, and what an error becomes.

Nothing heavy is imported here: no torch, no plugin, no configuration class.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence

import click

from dba_cli.failure import explain, explain_click, install_excepthook, warnings_in_one_line
from dba_cli.groups import LazyCommand, LazyGroup, Listed, all_commands
from dba_cli.output import terminal
from dba_core.errors import DBAError

INTERRUPTED = 130
#: Turns that a waiting thread of GNU OpenMP spins before it sleeps: enough for the gaps inside a step.
SPIN_COUNT = "4000"

_COMMANDS = {
    "run": LazyCommand("dba_cli.commands.run:run", "Train, evaluate and decode a model; leave a run folder."),
    "sample": LazyCommand("dba_cli.commands.sample:sample", "Continue a prompt with the model of a run."),
    "eval": LazyCommand("dba_cli.commands.eval:evaluate", "Held-out loss and KV-cache fidelity of a run."),
    "plugins": LazyCommand("dba_cli.commands.plugins:plugins", "List, describe, explain and check plugins."),
    "config": LazyCommand(
        "dba_cli.commands.config:config", "Show, check, compare configurations; list presets."
    ),
    "completion": LazyCommand("dba_cli.completion:completion", "Print a shell completion script."),
}


def _plugins() -> Mapping[str, Listed]:
    """The commands that are plugins."""
    return all_commands(tuple(_COMMANDS))


def _print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from dba_core.distribution import installed_version

    terminal.echo(f"dba {installed_version()}")
    ctx.exit()


@click.group(
    cls=LazyGroup,
    own=_COMMANDS,
    found=_plugins,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 ok, 1 the run failed, 2 usage, 3 configuration or data, 4 plugin missing or "
    "broken, 5 a recorded configuration does not match what is installed, 130 interrupted. "
    "DBA_TRACEBACK=1 shows the Python traceback of an error.",
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Print the version and exit.",
)
def cli() -> None:
    """Decoupled bottleneck attention: small KV caches, every part a plugin.

    \b
    Examples:
      dba run
      dba run --plugin gate=static --plugin null_token=learned
      dba run --kv-policy "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=64"
      dba sample latest --prompt "The "
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Errors become one paragraph on stderr."""
    install_excepthook()
    terminal.prepare()
    _let_waiting_threads_sleep()
    if "_DBA_COMPLETE" in os.environ:
        from dba_cli.completion import answer_shells

        answer_shells()
    with _stop_signals_interrupt():
        code = _command(argv)
    try:
        terminal.finish()
    except terminal.OutputError as error:
        return code or _output_is_lost(error)
    return code


def _command(argv: Sequence[str] | None) -> int:
    try:
        with warnings_in_one_line():
            result = cli.main(args=argv, prog_name="dba", standalone_mode=False)
    except terminal.OutputError as error:
        return _output_is_lost(error)
    except (DBAError, OSError) as error:
        explain(error)
        return error.exit_code if isinstance(error, DBAError) else 1
    except click.ClickException as error:
        explain_click(error, sys.argv[1:] if argv is None else argv)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        terminal.echo("Interrupted.", err=True)
        return INTERRUPTED
    return result if isinstance(result, int) else 0


def _output_is_lost(error: terminal.OutputError) -> int:
    """Whoever closed the pipe (`dba plugins list | head -1`) has what they wanted."""
    if not error.is_closed:
        explain(error)
    return error.exit_code


@contextlib.contextmanager
def _stop_signals_interrupt() -> Iterator[None]:
    """Within: SIGTERM and SIGHUP, where nobody else has said what they do, end a command as Ctrl-C does. A
    training has handlers of its own, which save first; a SIGHUP that is ignored (nohup) stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = ("SIGTERM", "SIGHUP")  # SIGHUP is not on every system
    numbers = [
        each for each in signal.valid_signals() if isinstance(each, signal.Signals) and each.name in names
    ]
    ours = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    for number in ours:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _let_waiting_threads_sleep() -> None:
    """Before torch is imported: its OpenMP threads spin for a moment only, unless the user says otherwise.

    They spin for long by default, and beside another process a small model then trains ten times slower.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
