"""Writes the generated parts of the reference pages from the code itself.

A page says `<!-- generated: config-keys -->` on a line of its own; the marker is replaced at build time.
Nothing here needs torch: configuration, command line and plugin metadata load without it.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import attrs
import click
from mkdocs.exceptions import PluginError

from dba_cli.main import cli
from dba_core import errors
from dba_core.config import KVCachePolicy, PluginChoice, PluginChoices, RunConfig
from dba_core.distribution import NAME
from dba_core.kinds import KINDS
from dba_core.registry import Registry
from dba_plugins.auto_order import AUTO_ORDER

PRESETS = Path(inspect.getfile(RunConfig)).parent / "presets"
MARKER = re.compile(r"^<!-- generated: ([a-z-]+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: object) -> str:
    """mkdocs calls this for every page before it is rendered."""
    return MARKER.sub(lambda match: generate(match.group(1)), markdown)


def generate(name: str) -> str:
    """The Markdown of one generated part."""
    if name not in GENERATORS:
        raise PluginError(f"no generator for {name!r}; there are: {', '.join(sorted(GENERATORS))}")
    return GENERATORS[name]()


def table(header: tuple[str, ...], rows: Iterator[tuple[str, ...]] | list[tuple[str, ...]]) -> str:
    """A Markdown table; a bar inside a cell is escaped."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def config_keys() -> str:
    """One section per configuration class: its docstring, then key, type and default."""
    return "\n\n".join(config_sections(RunConfig, ""))


def config_sections(cls: type, prefix: str) -> Iterator[str]:
    attrs.resolve_types(cls)
    nested = {f.name: f.type for f in attrs.fields(cls) if is_section(f.type)}
    rows = [
        (f"`{prefix}{f.name}`", f"`{type_text(f.type)}`", f"`{default_text(f.default)}`")
        for f in attrs.fields(cls)
        if f.name not in nested
    ]
    title = f"`[{prefix[:-1]}]`" if prefix else "Top level"
    parts = [f"## {title}", inspect.getdoc(cls) or ""]
    if rows:
        parts.append(table(("key", "type", "default"), rows))
    yield "\n\n".join(parts)
    if cls is PluginChoices:  # one section for all kinds
        yield from config_sections(PluginChoice, f"{prefix}KIND.")
        return
    for name, section in nested.items():
        yield from config_sections(section, f"{prefix}{name}.")


def is_section(kind: object) -> bool:
    return isinstance(kind, type) and attrs.has(kind) and kind is not KVCachePolicy


def type_text(kind: object) -> str:
    if isinstance(kind, type) and not typing.get_args(kind):
        return "policy text" if kind is KVCachePolicy else kind.__name__
    if isinstance(kind, types.UnionType):
        return " or ".join(
            "none" if part is type(None) else type_text(part) for part in typing.get_args(kind)
        )
    return re.sub(r"\b(typing|dba_core(\.\w+)*)\.", "", str(kind))


def default_text(default: object) -> str:
    if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
        default = default.factory()
    if isinstance(default, KVCachePolicy):
        return default.short
    if isinstance(default, bool):
        return str(default).lower()
    if default is None:
        return "none"
    return f'"{default}"' if isinstance(default, str) else str(list(default) if default == () else default)


def presets() -> str:
    """Every preset as it ships."""
    files = sorted(PRESETS.glob("*.toml"))
    return "\n\n".join(
        f"### `{f.stem}`\n\n```toml\n{f.read_text(encoding='utf-8').strip()}\n```" for f in files
    )


def cli_commands() -> str:
    """Every command with its usage, help text, arguments and options."""
    return "\n\n".join(cli_sections(cli, click.Context(cli, info_name="dba", **cli.context_settings)))


def cli_sections(command: click.Command, context: click.Context) -> Iterator[str]:
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    parts = [f"## {context.command_path}", code_block(usage), help_text(command)]
    rows = [
        (f"`{record[0]}`", record[1].replace("\n", " "))
        for parameter in command.get_params(context)
        if (record := parameter.get_help_record(context))
    ]
    if rows:
        parts.append(table(("option", "meaning"), rows))
    yield "\n\n".join(part for part in parts if part)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from cli_sections(child, click.Context(child, info_name=name, parent=context))


def help_text(command: click.Command) -> str:
    r"""The help of a command; a block behind `\b` keeps its lines."""
    paragraphs = inspect.cleandoc(command.help or command.short_help or "").split("\n\n")
    return "\n\n".join(code_block(part[1:]) if part.startswith("\b") else part for part in paragraphs)


def code_block(text: str) -> str:
    return "```text\n" + text.strip("\n") + "\n```"


def plugin_table() -> str:
    """The plugins that this distribution ships, from entry-point metadata and the modules' docstrings."""
    rows = [
        (info.kind, f"`{info.name}`", f"`{info.module}`", first_line(info.module))
        for info in Registry().list()
        if info.distribution == NAME
    ]
    return table(("kind", "name", "module", "what it is"), rows)


def first_line(reference: str) -> str:
    """Of the docstring of a module, given as an entry point does: `module` or `module:NAME`."""
    spec = importlib.util.find_spec(reference.partition(":")[0])
    assert spec is not None
    assert spec.origin is not None
    docstring = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n\n")[0].replace("\n", " ")


def plugin_kinds() -> str:
    """Kind, entry-point group, contract number and the order of `auto`."""
    rows = [
        (f"`{kind.name}`", f"`{kind.group}`", str(kind.contract), auto_order(AUTO_ORDER.get(kind.name, ())))
        for kind in KINDS.values()
    ]
    return table(("kind", "entry-point group", "contract", "order of `auto` among the built-ins"), rows)


def auto_order(order: tuple[str, ...] | Mapping[str, tuple[str, ...]]) -> str:
    if not isinstance(order, Mapping):
        return ", ".join(order)
    return "; ".join(
        f"{'elsewhere' if device == '*' else device}: {', '.join(names)}" for device, names in order.items()
    )


def exit_codes() -> str:
    """The errors that DBA raises on purpose, with the exit code that the command line gives each."""
    classes = [
        cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, errors.DBAError)
    ]
    rows = [
        (str(cls.exit_code), f"`{cls.__name__}`", (inspect.getdoc(cls) or "").partition("\n")[0])
        for cls in sorted(classes, key=lambda cls: (cls.exit_code, cls.__name__))
    ]
    return table(("exit code", "error class", "meaning"), rows)


GENERATORS: dict[str, Callable[[], str]] = {
    "config-keys": config_keys,
    "presets": presets,
    "cli": cli_commands,
    "plugins": plugin_table,
    "plugin-kinds": plugin_kinds,
    "exit-codes": exit_codes,
}
