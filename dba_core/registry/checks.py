"""What is checked before anything is read or built: chosen names and options, the record, fallbacks.

Names and records need metadata only, so that a wrong one is known before torch is imported; options need
their plugin. A record that differs from what is installed stops a run (exit code 5) or becomes a warning.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from dba_core.contracts import Kind, Reason
from dba_core.distribution import canonical
from dba_core.errors import RecordMismatchError, UnsupportedError
from dba_core.kinds import KINDS, per_layer
from dba_core.registry.choice import PluginChoice, PluginChoices, in_words
from dba_core.registry.plugin_loading import accepts, contract_text, refuse_options_of_auto, structure_options
from dba_core.registry.registry import Registry
from dba_core.registry.selection import Selection


def check_names(choices: PluginChoices, registry: Registry) -> None:
    """Raise PluginError for a name that is unknown or ambiguous, here or in the allow and block lists, and
    ConfigError for options of `auto`.

    Imports no plugin. Choices with a record are left to the check of the records.
    """
    registry.list(per_layer()[0])  # which checks the allow and block lists
    for _, kind, choice in choices.entries():
        if choice.name == "auto":
            refuse_options_of_auto(kind, choice.options)
        elif choice.record is None:
            registry.find(kind, choice.name)


def check_options(choices: PluginChoices, registry: Registry) -> None:
    """Import what is chosen by name. Raises PluginError for what cannot be used, ConfigError for options."""
    check_names(choices, registry)
    for _, kind, choice in choices.entries():
        if choice.name != "auto":
            record = choice.record
            loaded = registry.load(kind, choice.name, distribution=record.distribution if record else None)
            structure_options(loaded, choice.options)


def check_records(choices: PluginChoices, registry: Registry, allow_drift: bool) -> list[str]:
    """Compare what was recorded with what is installed. The warnings of what differs.

    Raises RecordMismatchError that names recorded and installed, unless drift is allowed.
    """
    warnings = []
    for layers, kind, choice in choices.entries():
        difference = _difference(kind, choice, registry)
        if difference is None:
            continue
        place = f"layers.{layers}." if layers else ""
        difference = f"in {in_words(layers)}, {difference}" if layers else difference
        if not allow_drift:
            raise RecordMismatchError(
                f"{difference} Install what was recorded, choose another with plugins.{place}{kind}=NAME, "
                "or run with allow_drift=True."
            )
        warnings.append(f"{difference} Going on, because drift is allowed.")
    return warnings


def _difference(kind: Kind, choice: PluginChoice, registry: Registry) -> str | None:
    """None when equal or when nothing was recorded."""
    record = choice.record
    if record is None:
        return None
    name = choice.name.rpartition(":")[2]
    recorded = f"{kind} {name!r} was recorded with {record.distribution} {record.version}"
    same_name = [info for info in registry.list(kind) if info.name == name]
    own = [info for info in same_name if canonical(info.distribution) == canonical(record.distribution)]
    if not own:
        others = ", ".join(f"{info.distribution} {info.version}" for info in same_name)
        installed = f"installed: {others}" if others else "nothing installed provides it"
        return f"{recorded}, which is not installed or does not provide it; {installed}."
    if own[0].version != record.version:
        return f"{recorded}, installed is {own[0].distribution} {own[0].version}."
    if not accepts(kind, record.contract):
        stated = contract_text(record.contract)
        return f"{recorded} under contract {stated}, this dba has contract {KINDS[kind].contract}."
    return None


def refuse_fallbacks(selections: Iterable[tuple[str, Selection]]) -> None:
    """Raise UnsupportedError that lists every plugin which `auto` would rather have taken.

    selections: each with the layers that it is for.
    """
    reasons: list[Reason] = []
    instead: dict[str, None] = {}
    for layers, selection in selections:
        if selection.fallbacks:
            instead[f"plugins.{selection.kind}={selection.name}"] = None
        for passed in selection.fallbacks:
            reasons += [
                attrs.evolve(reason, subject=f"{selection.kind} of {in_words(layers)}, {reason.subject}")
                for reason in passed.named_reasons()
            ]
    if reasons:
        raise UnsupportedError(
            f"strict=True allows no fallback; choose what runs by name ({' '.join(instead)}), or leave out "
            "strict=True. Passed over:",
            reasons=tuple(reasons),
        )
