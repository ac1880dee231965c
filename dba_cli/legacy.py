"""The cache flags of the origin system, refused: `--kv-policy` replaced them. Used by run, sample, eval."""

from __future__ import annotations

from typing import Any, TypeVar

import click

from dba_core.errors import UsageError

_EXAMPLE = '--kv-policy "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=128"'
_TENSORS = ("", "-k", "-k-sem", "-k-geo", "-v")
_NAMES = tuple(
    f"--kv-{setting}{tensor}" for setting in ("cache", "qblock", "residual") for tensor in _TENSORS
)
#: Every gone flag in both spellings, `--kv-cache-k-sem` and `--kv_cache_k_sem`.
LEGACY_FLAGS = _NAMES + tuple("--" + name[2:].replace("-", "_") for name in _NAMES)

CommandT = TypeVar("CommandT", bound=click.Command)


class LegacyFlag(click.Option):
    """One gone flag; with a value, with `=value` or bare, it stops the command before anything runs."""

    def __init__(self, flag: str) -> None:
        super().__init__(
            [flag, "legacy" + flag[2:].replace("-", "_")],
            hidden=True,
            expose_value=False,
            is_eager=True,
            is_flag=False,
            flag_value="",
            callback=_refuse,
        )


def _refuse(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value is None:
        return
    arguments = [each.human_readable_name for each in ctx.command.params if isinstance(each, click.Argument)]
    raise UsageError(
        f"{param.opts[0]} is not an option any more. Use --kv-policy for a unified configuration. "
        f"Example: {' '.join([ctx.command_path, *arguments, _EXAMPLE])}"
    )


def refuse_legacy_flags(command: CommandT) -> CommandT:
    """Add the gone flags, hidden, to a command."""
    command.params.extend(LegacyFlag(flag) for flag in LEGACY_FLAGS)
    return command
