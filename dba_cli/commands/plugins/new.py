"""`dba plugins new`: a plugin of one's own, as an installable package whose tests pass as written."""

from __future__ import annotations

from pathlib import Path

import click

from dba_cli.commands.plugins.common import KIND
from dba_cli.output.terminal import echo
from dba_core.contracts import Kind
from dba_core.kinds import KINDS


@click.command()
@click.argument("kind", type=KIND)
@click.argument("name")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The package's folder, which must not exist. Without it: dba-NAME here.",
)
def new(kind: Kind, name: str, out: Path | None) -> None:
    """Write an installable package with a working plugin of KIND, its test and a README.

    \b
    Examples:
      dba plugins new summarizer my-pooling
      dba plugins new decode_backend my-decode --out plugins/my-decode
    """
    from dba_cli.scaffold.package import PluginPackage, write_package

    package = PluginPackage(kind=kind, name=name)
    _check_free(kind, name)
    folder = Path(package.distribution) if out is None else out
    for path in write_package(package, folder):
        echo(str(path))
    echo(
        f"\nNext:\n  python -m pip install -e '{folder}[test]'\n  python -m pytest {folder}\n"
        f"  dba plugins check {name}\n  {KINDS[kind].example(name)}",
        err=True,
    )


def _check_free(kind: Kind, name: str) -> None:
    """Two plugins of one kind and name cannot be told apart without naming their distributions."""
    from dba_core.errors import UsageError
    from dba_core.registry import Registry

    taken = [info for info in Registry.default().list() if (info.kind, info.name) == (kind, name)]
    if taken:
        raise UsageError(
            f"there is a {kind} {name!r} already, in {taken[0].distribution} {taken[0].version}; "
            "choose another name, or uninstall that distribution first"
        )
