"""`dba completion`: print the script that teaches a shell to complete `dba`."""

from __future__ import annotations

import click

from dba_cli.bash_completion import install
from dba_cli.terminal import echo


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script for SHELL.

    \b
    Examples:
      dba completion bash >> ~/.bashrc
      dba completion zsh >> ~/.zshrc
      dba completion fish > ~/.config/fish/completions/dba.fish
    """
    from click.shell_completion import get_completion_class

    install()
    root = ctx.find_root().command
    completer = get_completion_class(shell)
    assert completer is not None, shell
    echo(completer(root, {}, "dba", "_DBA_COMPLETE").source())
