"""What a shell offers for the values of options and arguments: names, keys, formats, runs. Imports no torch.

    --plugin ga -> gate=      gate=ca -> gate=causal      --kv-policy "ksem=q -> ksem=q4_0, ksem=q8_0

A completer never fails: where something cannot be read it offers nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import click
from click.shell_completion import CompletionItem

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
    "kv_policy": kv_policy,
    "settings": settings,
    "runs": runs,
    "corpora": corpora,
    "devices": devices,
    "summarizer_list": summarizer_list,
    "backend_list": backend_list,
    "mode_list": mode_list,
}
