"""Options made from classes: a request's fields become the options of a command, which gets the request.

Those that several commands take are listed once in such a class too; and what can be refused before torch is
imported, which takes seconds, is refused here (`load_checked`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from dba_cli import completion
from dba_core.command import Field, Option, fields_of, make_request, option
from dba_core.errors import UsageError
from dba_core.runs.choosing import ConfigChoice, PluginUse, RunChoice

if TYPE_CHECKING:
    from dba_core.config.loading import LoadedConfig
    from dba_core.registry import Registry
    from dba_core.registry.choice import PluginChoice
    from dba_core.report import Reporter
    from dba_core.runs.load import Run

Decorated = Callable[..., Any]

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")

SPECIAL_HELP = "Without it: as the model's own tokenizer does."

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
quiet_option = click.option("--quiet", is_flag=True, help="No progress on stderr; warnings and errors stay.")
save_option = click.option(
    "--save",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write NAME.json and NAME.md there, in place of those of an earlier measurement.",
)
plot_option = click.option(
    "--plot", is_flag=True, help="Draw its pictures as well, into --save or where they belong."
)
strict_option = click.option(
    "--strict", is_flag=True, help="Where 'auto' would not take its first choice: an error with the reasons."
)


def request_options(request_class: type[Any], name: str) -> Callable[[Decorated], Decorated]:
    """The options of a request as a decorator; the command gets them as one argument `name`."""
    keys = [field.key for field in fields_of(request_class)]

    def add(command: Decorated) -> Decorated:
        @functools.wraps(command)
        def with_request(*args: Any, **kwargs: Any) -> Any:
            request = make_request(request_class, {key: kwargs.pop(key) for key in keys})
            return command(*args, **{name: request}, **kwargs)

        decorated: Decorated = with_request
        for field in reversed(list(fields_of(request_class))):
            decorated = _decorator(field)(decorated)
        return decorated

    return add


def _decorator(field: Field) -> Callable[[Decorated], Decorated]:
    """One option or argument for click."""
    spec = field.option
    required = field.default is attrs.NOTHING
    if spec.positional:
        return click.argument(field.key, type=_type(field), required=required, **_offered(spec))
    how: dict[str, Any] = {"help": _help(spec), **_offered(spec)}
    if field.kind is bool:
        both = field.optional or field.default is True
        name = f"{field.flag}/{field.flag.replace('--', '--no-', 1)}" if both else field.flag
        return click.option(
            name, field.key, is_flag=True, default=field.default, show_default=field.default is True, **how
        )
    how["metavar"] = _unit(field)
    if required:
        how["required"] = True
    elif field.is_list and not spec.repeated:
        how["default"] = ",".join(map(str, field.default)) or None
    else:
        how["default"] = field.default
    how["show_default"] = how.get("default") not in (None, ())
    if field.is_list and not spec.repeated:
        return click.option(field.flag, field.key, callback=_comma_reader(field), **how)
    return click.option(field.flag, field.key, type=_type(field), multiple=field.is_list, **how)


def _help(spec: Option) -> str:
    return f"{spec.help} Without it: {spec.without}." if spec.without else spec.help


def _unit(field: Field) -> str | None:
    """What the help shows for a value; of a list with commas: N,..."""
    unit = field.option.unit
    if field.is_list and not field.option.repeated:
        return f"{unit or ('N' if field.kind in (int, float) else 'NAME')},..."
    return unit or None


def _offered(spec: Option) -> dict[str, Any]:
    """What a shell offers; a path where the word is none of ours."""
    return {"shell_complete": completion.BY_NAME[spec.offers]} if spec.offers in completion.BY_NAME else {}


def _type(field: Field) -> Any:
    spec = field.option
    if spec.allowed:
        return click.Choice(spec.allowed)
    if field.kind is Path:
        return click.Path(path_type=Path)
    if field.kind is int:
        return (
            int
            if spec.least is None and spec.most is None
            else click.IntRange(_whole(spec.least), _whole(spec.most))
        )
    if field.kind is float:
        return float if spec.least is None and spec.most is None else click.FloatRange(spec.least, spec.most)
    return str


def _whole(bound: float | None) -> int | None:
    return None if bound is None else int(bound)


def _comma_reader(field: Field) -> Callable[[click.Context, click.Parameter, str | None], tuple[Any, ...]]:
    """Values with commas between them; one that comes twice counts once."""

    def read(_ctx: click.Context, _param: click.Parameter, text: str | None) -> tuple[Any, ...]:
        parts = [] if text is None else [part.strip() for part in text.split(",")]
        if field.kind is str and not all(parts):
            raise click.BadParameter(f"{text!r} has an empty name; write NAME or NAME,NAME.")
        return tuple(dict.fromkeys(_read_one(field, part) for part in parts))

    return read


def _read_one(field: Field, part: str) -> Any:
    """One value of a list. Raises BadParameter."""
    spec = field.option
    if field.kind is str:
        problem = spec.problem(part)
        if problem is not None:
            raise click.BadParameter(problem)
        return part
    is_number = part.isdecimal() if field.kind is int else _NUMBER.fullmatch(part) is not None
    if is_number and spec.problem(field.kind(part)) is None:
        return field.kind(part)
    bounded = spec.least is not None or spec.most is not None
    wanted = f"{'whole ' if field.kind is int else ''}number{f' {spec.range_text}' if bounded else ''}"
    leave = f", or leave {field.flag} out: {spec.without}" if spec.without else ""
    raise click.BadParameter(f"{part!r} is no {wanted}; write N or N,N,N{leave}.")


@attrs.frozen(kw_only=True)
class DecodingRunChoice(RunChoice):
    """A run, and what decodes its model."""

    plugin: tuple[str, ...] = option(
        (),
        help="Another decode backend than the run's.",
        unit="decode_backend=NAME[:K=V,...]",
        repeated=True,
        offers="decode_backends",
    )
    weights: str | None = option(
        None,
        help="How weights lie in memory: auto (nothing is lost), fp32, bf16, int8, int4, or installed.",
        unit="FORMAT",
        offers="weight_formats",
    )

    def load(self, reporter: Reporter, weights: str | None = None, **plugins: PluginChoice) -> Run:
        weights = self.weights if weights is None else weights
        return super().load(reporter, weights, **plugins, **dict(map(_decode_backend, self.plugin)))


def _decode_backend(text: str) -> tuple[str, PluginChoice]:
    from dba_core.config.loading import parse_plugin
    from dba_core.registry.choice import PluginChoice

    given = parse_plugin(text)
    if given.kind != "decode_backend":
        raise UsageError(
            f"plugins=[{text!r}]: a trained model keeps its {given.kind}; only decode_backend can be chosen "
            "here, as in plugins.decode_backend=streaming"
        )
    if given.layers:
        raise UsageError(
            f"plugins=[{text!r}]: here a decode backend is for all layers; leave out @layers.{given.layers}"
        )
    return given.kind, PluginChoice(given.name, options=given.options)


#: The command gets `flags: ConfigChoice`, `plugin_flags: PluginUse`, `run_flags: DecodingRunChoice`.
config_options = request_options(ConfigChoice, "flags")
plugin_options = request_options(PluginUse, "plugin_flags")
run_options = request_options(DecodingRunChoice, "run_flags")

_SPECIAL = (
    click.option(
        "--bos/--no-bos",
        default=None,
        help=f"Begin a text with the model's BOS token, or do not. {SPECIAL_HELP}",
    ),
    click.option(
        "--eos/--no-eos",
        default=None,
        help=f"End a text with the model's EOS token, or do not. {SPECIAL_HELP}",
    ),
)


def special_options(command: Decorated) -> Decorated:
    """Add the options of a command that reads texts; it gets them as `bos` and `eos`, None if not given."""
    for add in reversed(_SPECIAL):
        command = add(command)
    return command


def load_checked(flags: ConfigChoice, registry: Registry) -> LoadedConfig:
    """The configuration, with plugins that are installed. Raises PluginError or ConfigError."""
    from dba_core.registry import check_names

    _check_plugin_words(flags.plugins, registry)
    loaded = flags.load()
    check_names(loaded.config.plugins, registry)
    return loaded


def _check_plugin_words(texts: Sequence[str], registry: Registry) -> None:
    """Raises ConfigError for a `--plugin` that is a plugin's name or a kind alone, with the whole of it."""
    from dba_core.errors import ConfigError

    for text in texts:
        word = text.strip().rstrip("=")
        infos = registry.list() if "=" not in word else []
        ways = [f"{info.kind}={info.name}" for info in infos if word in (info.name, info.kind)]
        if ways:
            raise ConfigError(f"--plugin {text!r} is not kind=name; write --plugin {' or '.join(ways)}")
