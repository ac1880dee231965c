"""The record in a resolved configuration against what is installed now.

Called before a recorded configuration runs again; a difference stops it (exit code 5) or becomes a warning
(`--allow-drift`). Reads metadata only.
"""

from __future__ import annotations

from dba_core.contracts import Kind
from dba_core.distribution import canonical
from dba_core.errors import RecordMismatchError
from dba_core.registry.choice import PluginChoice, PluginChoices
from dba_core.registry.contract import contract_text
from dba_core.registry.discovery import PluginInfo
from dba_core.registry.layer_ranges import in_words
from dba_core.registry.registry import Registry


def check_record(
    kind: Kind, choice: PluginChoice, registry: Registry, allow_drift: bool, *, layers: str = ""
) -> str | None:
    """Compare `choice.record` with what is installed. None when equal or when nothing was recorded.

    layers: the layers that chose it for themselves.

    Raises RecordMismatchError that names recorded and installed; `allow_drift` returns the text.
    """
    difference = _difference(kind, choice, registry)
    if difference is None:
        return None
    place = f"@layers.{layers}" if layers else ""
    difference = f"in {in_words(layers)}, {difference}" if layers else difference
    if allow_drift:
        return f"{difference} Going on, because drift is allowed."
    raise RecordMismatchError(
        f"{difference} Install what was recorded, choose another with --plugin {kind}{place}=NAME, "
        "or run with --allow-drift."
    )


def check_records(choices: PluginChoices, registry: Registry, allow_drift: bool) -> list[str]:
    """`check_record` for every kind and layer; the warnings of the drift that was allowed."""
    found = [
        check_record(kind, choice, registry, allow_drift, layers=layers)
        for layers, kind, choice in choices.entries()
    ]
    return [warning for warning in found if warning is not None]


def _difference(kind: Kind, choice: PluginChoice, registry: Registry) -> str | None:
    record = choice.record
    if record is None:
        return None
    name = choice.name.rpartition(":")[2]
    recorded = f"{kind} {name!r} was recorded with {record.distribution} {record.version}"
    same_name = [info for info in registry.list(kind) if info.name == name]
    own = [info for info in same_name if canonical(info.distribution) == canonical(record.distribution)]
    if not own:
        return f"{recorded}, which is not installed or does not provide it; {_installed(same_name)}."
    if own[0].version != record.version:
        return f"{recorded}, installed is {own[0].distribution} {own[0].version}."
    terms = registry.terms[kind]
    if not terms.accepts(record.contract):
        stated = contract_text(record.contract)
        return f"{recorded} under contract {stated}, this dba has contract {terms.number}."
    return None


def _installed(infos: list[PluginInfo]) -> str:
    if not infos:
        return "nothing installed provides it"
    return "installed: " + ", ".join(f"{info.distribution} {info.version}" for info in infos)
