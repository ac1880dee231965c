"""`dba plugins doctor`: every installed plugin looked at, and every order and list that names plugins.

A plugin is sound when its entry point is well formed, its name its own, its module importable, its contract
accepted, and when it answers a typical request. "No" is a sound answer. Imports all plugins that may be used.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import attrs
import click

from dba_cli.failure import in_flags
from dba_cli.options import json_option, plugin_options
from dba_cli.output.terminal import echo
from dba_core.contracts import Kind, Support
from dba_core.errors import DBAError, PluginError
from dba_core.kinds import KINDS, per_layer
from dba_core.registry import LoadedPlugin, PluginInfo, Registry
from dba_core.registry.contain import Failure, contain
from dba_core.registry.plugin_loading import options_to_dict, structure_options
from dba_core.runs.choosing import PluginUse

Status = Literal["ok", "warning", "blocked", "error"]


@click.command()
@plugin_options
@json_option
def doctor(plugin_flags: PluginUse, as_json: bool) -> int:
    """Look at every installed plugin: entry point, name, import, contract, answer to a typical request.

    Imports them all. Exit code 4 says that something is wrong; a plugin that says no is sound.

    \b
    Examples:
      dba plugins doctor
      dba plugins doctor --json
    """
    from dba_cli.output.progress import TerminalReporter
    from dba_cli.output.rendering import columns, echo_json

    found = diagnose(plugin_flags.registry(TerminalReporter()))
    wrong = [each for each in found if each.status == "error"]
    if as_json:
        echo_json({"sound": not wrong, "diagnoses": [attrs.asdict(each) for each in found]})
    else:
        columns("Plugins", ["what", "state", "found"], [(d.subject, d.status, d.text) for d in found])
        echo(f"{len(wrong)} of {len(found)} are wrong." if wrong else "Nothing is wrong.")
    return PluginError.exit_code if wrong else 0


@attrs.frozen(kw_only=True)
class Diagnosis:
    """What was found. subject: a plugin (`gate acme:soft`), an order of `auto`, or a distribution. reasons:
    a sound plugin's own against a typical request; empty where it supports that.
    """

    subject: str
    status: Status
    text: str
    reasons: tuple[str, ...] = ()

    @property
    def runs(self) -> str:
        """`yes`, or why not, in a sentence."""
        if self.status in ("blocked", "error"):
            return f"no: {self.text}"
        return f"no: {'; '.join(self.reasons)}" if self.reasons else "yes"


def diagnose(registry: Registry, *, device: str = "cpu") -> list[Diagnosis]:
    """One diagnosis for every plugin, then one for everything else that is wrong."""
    found = [diagnose_plugin(registry, info, device=device) for info in registry.list()]
    return [*found, *_of_metadata(registry), *_of_orders(registry, device)]


def _capability(device: str) -> tuple[int, int] | None:
    """Of a CUDA device that is there."""
    if device.partition(":")[0] != "cuda":
        return None
    import torch

    there = contain(lambda: torch.cuda.get_device_capability(device))
    return None if isinstance(there, Failure) else there


def diagnose_plugin(registry: Registry, info: PluginInfo, *, device: str) -> Diagnosis:
    """One plugin, imported and asked, where it may be used."""
    subject = f"{info.kind} {info.qualified}"
    refusal = registry.access.refusal(info)
    if refusal is not None:
        return Diagnosis(subject=subject, status="blocked", text=refusal)
    try:
        loaded = registry.load(info.kind, info.qualified)
        options = structure_options(loaded, {})
        structure_options(loaded, options_to_dict(options))
    except DBAError as error:
        return Diagnosis(subject=subject, status="error", text=str(error))
    typical = KINDS[info.kind].typical
    answer = None if typical is None else registry.ask(loaded, typical(device, _capability(device)), options)
    if isinstance(answer, str):
        return Diagnosis(subject=subject, status="error", text=f"{answer}; report it to the plugin's author")
    if info.problem is not None:
        return Diagnosis(subject=subject, status="error", text=in_flags(info.problem))
    reasons = () if answer is None else tuple(map(str, answer.reasons))
    if loaded.deprecation is not None:
        return Diagnosis(subject=subject, status="warning", text=loaded.deprecation, reasons=reasons)
    return Diagnosis(subject=subject, status="ok", text=_sound(loaded, answer), reasons=reasons)


def _sound(loaded: LoadedPlugin, support: Support | None) -> str:
    said = f"version {loaded.info.version}, contract {loaded.plugin.contract}"
    if support is None:
        return said
    if support.ok:
        return f"{said}, supports a typical request"
    return f"{said}, says no to a typical request ({'; '.join(map(str, support.reasons))})"


def _of_metadata(registry: Registry) -> Iterator[Diagnosis]:
    for problem in registry.problems:
        yield Diagnosis(subject="metadata", status="error", text=problem)


def _of_orders(registry: Registry, device: str) -> Iterator[Diagnosis]:
    """An order that cannot be read, and names in one that mean no plugin."""
    for problem in registry.auto_problems:
        yield Diagnosis(subject="auto order", status="error", text=problem)
    for kind in per_layer():
        for name, distribution in registry.auto_order(kind, device=device):
            missing = _not_found(registry, kind, name, distribution)
            if missing is not None:
                text = f"{distribution} lists {name!r} for {device}: {missing}"
                yield Diagnosis(subject=f"auto order of {kind}", status="error", text=text)


def _not_found(registry: Registry, kind: Kind, name: str, distribution: str) -> str | None:
    try:
        registry.find(kind, name, distribution=distribution)
    except PluginError as error:
        return str(error)
    return None
