"""What a shell offers for the values of options and arguments, and `dba completion`, which teaches it to ask.

    --plugin ga -> gate=      gate=ca -> gate=causal      --kv-policy "ksem=q -> ksem=q4_0, ksem=q8_0

Names, keys, formats, runs; torch is not imported. A completer never fails: where something cannot be read it
offers nothing.

In bash `=` and `:` end a word: `--plugin gate=ca` must be answered with `causal` alone. click's own script
passes the words as bash has broken them; this one passes the line, which is broken as a shell reads it. The
other shells pass whole words, and click's classes do for them.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
    split_arg_string,
)

from dba_cli.output.terminal import echo
from dba_core.contracts import Kind
from dba_core.errors import DBAError
from dba_core.kinds import per_layer

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]

DEVICES = ("auto", "cpu", "cuda", "cuda:0")
_FIELDS = ("ksem", "kgeo", "v", "resid")
_RESIDUALS = ("0", "32", "64", "128", "256")


def _completer(offer: Callable[[str], Iterable[str]]) -> Completer:
    """The words that begin with what was typed; a path where `offer` gives "", which stands for one."""

    @functools.wraps(offer)
    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            words = list(dict.fromkeys(offer(incomplete)))
        except (DBAError, OSError):
            return []
        items = [CompletionItem(word) for word in words if word and word.startswith(incomplete)]
        return items or [CompletionItem(incomplete, type="file") for word in words if not word]

    return complete


def _presets(_: str) -> Iterator[str]:
    from dba_core.config.loading import list_presets

    return (preset.name for preset in list_presets())


def _names(kind: Kind | None = None) -> list[str]:
    from dba_core.registry import Registry

    return [info.name for info in Registry.default().list(kind)]


def _plugins(incomplete: str, kinds: tuple[Kind, ...]) -> Iterator[str]:
    """`kind=`, then `kind=name`; what stands between them (`@layers.0-3`) is kept."""
    target, equals, _ = incomplete.partition("=")
    if not equals:
        yield from (f"{kind}=" for kind in kinds)
        return
    for kind in kinds:
        if target.partition("@")[0] == kind:
            yield from (f"{target}={name}" for name in ("auto", *_names(kind)))


def _plugin_choices(incomplete: str) -> Iterator[str]:
    return _plugins(incomplete, per_layer())


def _decode_backends(incomplete: str) -> Iterator[str]:
    return _plugins(incomplete, ("decode_backend",))


def _any_plugin(_: str) -> list[str]:
    return _names()


def _kv_policy(incomplete: str) -> Iterator[str]:
    """The fields that are not there yet, then the formats of one, then its block lengths."""
    before, comma, part = incomplete.rpartition(",")
    field, equals, value = part.partition("=")
    stem = f"{before}{comma}"
    if not equals:
        given = {each.partition("=")[0].strip() for each in before.split(",")}
        yield from (f"{stem}{name}=" for name in _FIELDS if name not in given)
    elif field.strip() == "resid":
        yield from (f"{stem}{field}={number}" for number in _RESIDUALS)
    elif field.strip() in _FIELDS:
        yield from (f"{stem}{field}={text}" for text in _formats(value))


def _formats(value: str) -> Iterator[str]:
    from dba_core.config.kv_policy import installed_formats

    formats = installed_formats()
    name, at, _ = value.partition("@")
    if at and name in formats:
        yield from (f"{name}@{block}" for block in formats[name].qblocks)
    elif not at:
        yield from formats


def _settings(incomplete: str) -> Iterator[str]:
    """The keys of one level, tables with the dot that goes on; after the `=` the values, where known."""
    from dba_core.config.run import RunConfig
    from dba_core.serialization.keys import keys_of

    keys = keys_of(RunConfig)
    dotted, equals, value = incomplete.partition("=")
    if equals:
        values = _values(dotted, value, keys[dotted]) if dotted in keys else ()
        yield from (f"{dotted}={each}" for each in values)
        return
    table = dotted.rpartition(".")[0]
    for key in keys:
        if key.rpartition(".")[0] == table:
            is_table = any(other.startswith(f"{key}.") for other in keys)
            yield f"{key}." if is_table else f"{key}="


def _values(key: str, value: str, listed: tuple[str, ...]) -> Iterable[str]:
    """The values of one key: those that its class lists, or what its option offers."""
    parts = key.split(".")
    if key == "kv_policy":
        return _kv_policy(value)
    if key == "device":
        return DEVICES
    if key == "data.source":
        return _installed("")
    if parts[0] == "plugins" and parts[-1] == "name":
        return ("auto", *(name for kind in per_layer() if kind == parts[1] for name in _names(kind)))
    return listed


def _runs(incomplete: str) -> Iterator[str]:
    """The runs under `runs/`, newest first, and `latest`; a path where one is typed."""
    from dba_core.runs.folder import DEFAULT_ROOT, LATEST, runs_in

    runs = runs_in(DEFAULT_ROOT)
    if runs:
        yield LATEST
    yield from (run.path.name for run in reversed(runs))
    for run in runs_in(Path(incomplete).parent) if "/" in incomplete else ():
        yield str(run.path)
    yield ""


def _installed(_: str) -> Iterator[str]:
    """The texts that Python brings along; else a file."""
    yield from ("pydoc", "docstrings", "")


def _configurations(incomplete: str) -> Iterator[str]:
    """What `dba config diff` takes: presets, runs, files."""
    yield from (f"preset:{name}" for name in _presets(""))
    yield from _runs(incomplete)


def _comma_list(names: Callable[[], Iterable[str]]) -> Callable[[str], Iterator[str]]:
    def offer(incomplete: str) -> Iterator[str]:
        before, comma, _ = incomplete.rpartition(",")
        given = before.split(",")
        return (f"{before}{comma}{name}" for name in names() if name not in given)

    return offer


def _modes() -> tuple[str, ...]:
    from dba_core.config.attention import MODES

    return MODES


presets = _completer(_presets)
plugin_choices = _completer(_plugin_choices)
decode_backends = _completer(_decode_backends)
plugin_names = _completer(_any_plugin)
weight_formats = _completer(lambda _: ["auto", *_names("weight_format")])
kv_policy = _completer(_kv_policy)
settings = _completer(_settings)
runs = _completer(_runs)
corpora = _completer(_installed)
configurations = _completer(_configurations)
devices = _completer(lambda _: DEVICES)
summarizer_list = _completer(_comma_list(lambda: _names("summarizer")))
backend_list = _completer(_comma_list(lambda: _names("decode_backend")))
mode_list = _completer(_comma_list(_modes))

#: By the name that a request's option gives (`offers`).
BY_NAME: dict[str, Completer] = {
    "presets": presets,
    "plugin_choices": plugin_choices,
    "decode_backends": decode_backends,
    "plugin_names": plugin_names,
    "weight_formats": weight_formats,
    "kv_policy": kv_policy,
    "settings": settings,
    "runs": runs,
    "corpora": corpora,
    "devices": devices,
    "summarizer_list": summarizer_list,
    "backend_list": backend_list,
    "mode_list": mode_list,
}

_SOURCE = r"""%(complete_func)s() {
    local IFS=$'\n' response completion type value
    response=$(COMP_LINE="$COMP_LINE" COMP_POINT="$COMP_POINT" COMP_WORDBREAKS="$COMP_WORDBREAKS" \
        %(complete_var)s=bash_complete "$1" 2>/dev/null)
    for completion in $response; do
        IFS=',' read -r type value <<< "$completion"
        if [[ $type == 'dir' ]]; then
            COMPREPLY=()
            compopt -o dirnames
        elif [[ $type == 'file' ]]; then
            COMPREPLY=()
            compopt -o default
        elif [[ $type == 'plain' ]]; then
            COMPREPLY+=("$value")
            [[ $value == *[=.:/] ]] && compopt -o nospace
        fi
    done
    return 0
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""


class LineBashComplete(BashComplete):
    """Reads COMP_LINE up to the cursor; answers with what follows the last word break of bash."""

    source_template = _SOURCE

    def get_completion_args(self) -> tuple[list[str], str]:
        """The whole words after the program, and the one that the cursor ends."""
        line = _line()
        words = split_arg_string(line)
        incomplete = "" if not words or _between_words(line) else words.pop()
        while words and os.path.basename(words[0]) != self.prog_name:
            words.pop(0)  # variables and commands that stand before it
        return words[1:], incomplete

    def format_completion(self, item: CompletionItem) -> str:
        _, incomplete = self.get_completion_args()
        option, equals, _ = incomplete.partition("=")
        value = str(item.value)
        if option.startswith("-") and equals and item.type == "plain":  # `--plugin=gate=ca`
            value = f"{option}={value}"
        breaks = os.environ.get("COMP_WORDBREAKS", "")
        kept = 0 if _in_quotes(_line()) else max(incomplete.rfind(each) for each in ("=", ":")) + 1
        if kept and incomplete[kept - 1] in breaks and item.type == "plain":
            value = value[kept:]
        return f"{item.type},{value}"


SHELLS: dict[str, type[ShellComplete]] = {"bash": LineBashComplete, "zsh": ZshComplete, "fish": FishComplete}


def answer_shells() -> None:
    """Let click answer bash with our class."""
    add_completion_class(LineBashComplete, "bash")


@click.command()
@click.argument("shell", type=click.Choice(list(SHELLS)))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script for SHELL.

    \b
    Examples:
      dba completion bash >> ~/.bashrc
      dba completion zsh >> ~/.zshrc
      dba completion fish > ~/.config/fish/completions/dba.fish
    """
    echo(SHELLS[shell](ctx.find_root().command, {}, "dba", "_DBA_COMPLETE").source())


def _line() -> str:
    """What stands before the cursor; bash counts bytes."""
    line = os.environ.get("COMP_LINE", "").encode()
    return line[: int(os.environ.get("COMP_POINT", len(line)))].decode(errors="ignore")


def _between_words(line: str) -> bool:
    return line[-1:].isspace() and not _in_quotes(line)


def _in_quotes(line: str) -> bool:
    """Whether the last quote is still open."""
    quote = ""
    for letter in line:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
    return bool(quote)
