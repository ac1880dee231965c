"""What a wrong command line was probably meant to be: an option that is a setting, a word in the wrong place,
a run that was left out; and the cache flags of the origin system, refused, since `--kv-policy` replaced them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from dba_core.errors import UsageError, unknown
from dba_core.kinds import KINDS, per_layer

#: What other programs call our options -> the option and, where it stands for one, its value.
_OTHER_OPTIONS: dict[str, tuple[str, str | None]] = {
    "--gpu": ("--device", "cuda"),
    "--cuda": ("--device", "cuda"),
    "--cpu": ("--device", "cpu"),
    "--out": ("--save", None),
    "--output": ("--out", None),
    "--output-dir": ("--out", None),
    "--out-dir": ("--out", None),
    "--save-dir": ("--out", None),
    "--dataset": ("--data", None),
    "--corpus": ("--data", None),
    "--input": ("--data", None),
    "--train-file": ("--data", None),
    "--text": ("--data", None),
    "--policy": ("--kv-policy", None),
    "--cache": ("--kv-policy", None),
    "--ckpt": ("--checkpoint", None),
    "--silent": ("--quiet", None),
    "--continue": ("--resume", None),
    "--context": ("--length", None),
    "--length": ("--max-new-tokens", None),
    "--max-tokens": ("--max-new-tokens", None),
    "--max-length": ("--max-new-tokens", None),
    "--backend": ("--plugin", "decode_backend=NAME"),
}
#: Options of `dba run` alone, which decide what a run is.
_OF_RUN = ("--set", "--preset", "--config", "--compile", "--resume", "--name", "--dry-run", "--print-config")
_NO_CHOICE = re.compile(r"'(.*)' is not one of ")
_EXTRA = re.compile(r"Got unexpected extra arguments? \((.*)\)")

_EXAMPLE = '--kv-policy "ksem=q4_0@32,kgeo=q8_0@32,v=q4_0@32,resid=128"'
_TENSORS = ("", "-k", "-k-sem", "-k-geo", "-v")
_NAMES = tuple(
    f"--kv-{setting}{tensor}" for setting in ("cache", "qblock", "residual") for tensor in _TENSORS
)
#: Every gone flag in both spellings, `--kv-cache-k-sem` and `--kv_cache_k_sem`.
LEGACY_FLAGS = _NAMES + tuple("--" + name[2:].replace("-", "_") for name in _NAMES)

CommandT = TypeVar("CommandT", bound=click.Command)


def hint_for(error: click.UsageError, argv: Sequence[str]) -> str | None:
    """The text of a usage error that knows better than click what was meant; None where click's will do."""
    if error.ctx is None:
        return None
    if isinstance(error, click.NoSuchOption):
        hint = _option_hint(error.ctx, error.option_name, _value_of(error.option_name, argv))
        return hint and f"No such option: {error.option_name}. {hint}"
    if isinstance(error, click.MissingParameter):
        return _missing_hint(error, error.ctx)
    if isinstance(error, click.BadParameter):
        return _choice_hint(error)
    extra = _EXTRA.match(error.message)
    if extra is None:
        return None
    hints = dict.fromkeys(_word_hint(error.ctx, word) for word in _words(extra[1], argv))
    return " ".join([f"{error.message}.", *(hint for hint in hints if hint)]) if any(hints) else None


def _option_hint(ctx: click.Context, option: str, value: str | None) -> str | None:
    """For an option that the command has not: another option of it, a plugin, or a setting."""
    name = option.lstrip("-").replace("-", "_").lower()
    options = _options(ctx)
    if option.replace("_", "-").lower() in options:
        return None  # click names it
    given = "VALUE" if value is None else value
    other, fixed = _OTHER_OPTIONS.get(option.lower(), ("", None))
    if other in options:
        takes_value = not options[other].is_flag
        return f"Write {other}{f' {fixed or given}' if takes_value else ''}."
    if option in _OF_RUN:
        return f"That is an option of `dba run`; {ctx.command_path} takes what the run has."
    if name in per_layer():
        if "--set" in options or (name == "decode_backend" and "--plugin" in options):
            return f"A {name} is a plugin: --plugin {name}={given}."
        return f"A {name} is a plugin, chosen when a run is made: dba run --plugin {name}={given}."
    from dba_core.config.run import RunConfig
    from dba_core.serialization.keys import meant_by

    keys = meant_by(RunConfig, name)
    if not keys:
        return None
    if "--set" in options:
        ways = " or ".join(f"--set {key}={given}" for key in keys[:2])
        return f"That is a setting: {ways}."
    if any(param.name == "run" for param in ctx.command.params):
        return f"That is a setting of a run, given when it is made: dba run --set {keys[0]}={given}."
    return None


def _missing_hint(error: click.MissingParameter, ctx: click.Context) -> str | None:
    """Which runs there are, where RUN was left out; where to find a plugin's name."""
    param = error.param
    if not isinstance(param, click.Argument):
        return None
    if param.name == "run":
        return f"{error.format_message()} {_runs()}"
    if isinstance(param.type, click.Choice):
        allowed = ", ".join(map(str, param.type.choices))
        return f"Missing argument {(param.name or '').upper()}. Allowed: {allowed}."
    if param.name == "name" and ctx.info_name in ("info", "check"):
        return f"{error.format_message()} The installed plugins: dba plugins list."
    return None


def _choice_hint(error: click.BadParameter) -> str | None:
    """The nearest of the words that the parameter takes."""
    param, wrong = error.param, _NO_CHOICE.match(error.message)
    if param is None or wrong is None or not isinstance(param.type, click.Choice):
        return None
    name = param.opts[0] if isinstance(param, click.Option) else (param.name or "").upper()
    return f"{name}: {unknown('value', wrong[1], map(str, param.type.choices))}"


def _runs() -> str:
    from dba_core.runs.folder import DEFAULT_ROOT, runs_in

    names = [run.path.name for run in runs_in(DEFAULT_ROOT)]
    form = "RUN is a run's folder, a part of its name, or 'latest'"
    if not names:
        return f"{form}; there is none in {DEFAULT_ROOT} yet. Make one with: dba run."
    return f"{form}; in {DEFAULT_ROOT}: {', '.join(names[-3:])}."


def _word_hint(ctx: click.Context, word: str) -> str | None:
    """For a word that the command has no place for."""
    options = _options(ctx)
    return next((hint for hint in _meanings(ctx, word, options)), None)


def _meanings(ctx: click.Context, word: str, options: dict[str, click.Option]) -> Iterator[str]:
    key, equals, _ = word.partition("=")
    path = Path(word)
    if equals and "--kv-policy" in options and key in ("ksem", "kgeo", "v", "resid"):
        yield f'Write --kv-policy "{word}".'
    if equals and "--plugin" in options and key.partition("@")[0] in per_layer():
        yield f"Write --plugin {word}."
    if equals and "--set" in options:
        yield f"Write --set {word}."
    if "--config" in options and path.suffix.lower() in (".toml", ".json"):
        yield f"Write --config {word}."
    if "--resume" in options and (word == "latest" or _is_run(word)):
        yield (
            f"{ctx.command_path} makes a new run. To go on with one: dba run --resume {word}; to repeat it: "
            f"dba run --config {_config_of(word)}; to use it: dba sample {word} --prompt TEXT."
        )
    if _is_preset(word) and "--preset" in options:
        yield f"Write --preset {word}."
    elif _is_preset(word) and ctx.info_name == "presets":
        yield f"To see one: dba config show --preset {word}."
    if "--kind" in options and word in KINDS:
        yield f"Write --kind {word}."
    if "--data" in options and (
        word in ("pydoc", "docstrings") or path.suffix or path.exists() or "://" in word
    ):
        yield f"Write --data {word}."
    if any(param.name == "run" for param in ctx.command.params):
        yield "Give one run at a time, and a text of several words in quotes."


def _options(ctx: click.Context) -> dict[str, click.Option]:
    """The options of the command by each of their spellings."""
    own = [param for param in ctx.command.params if isinstance(param, click.Option) and not param.hidden]
    return {spelling: option for option in own for spelling in option.opts}


def _value_of(option: str, argv: Sequence[str]) -> str | None:
    """What was given for the option: `--steps=100`, or the word after it."""
    for word, after in zip(argv, [*argv[1:], None], strict=True):
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
        if word == option:
            return None if after is None or after.startswith("-") else after
    return None


def _words(joined: str, argv: Sequence[str]) -> list[str]:
    """The words that click joined with spaces."""
    return [word for word in argv if f" {word} " in f" {joined} "] or joined.split(" ")


def _is_run(word: str) -> bool:
    from dba_core.runs.folder import DEFAULT_ROOT, RunFolder

    return RunFolder(Path(word)).is_run or RunFolder(DEFAULT_ROOT / word).is_run


def _config_of(word: str) -> str:
    from dba_core.runs.folder import DEFAULT_ROOT, RunFolder

    folder = Path(word) if RunFolder(Path(word)).is_run else DEFAULT_ROOT / word
    return str(RunFolder(folder).config_file)


def _is_preset(word: str) -> bool:
    from dba_core.config.loading import list_presets

    return word in {preset.name for preset in list_presets()}


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
