"""What is to be said about the plugins that were not chosen: passed over, never asked, blocked or broken.

Called by `dba plugins why`. Imports every plugin of the kind that may be used, in order to ask it.
"""

from __future__ import annotations

from typing import Literal

import attrs

from dba_core.contracts import Reason
from dba_core.errors import DBAError
from dba_core.registry.discovery import PluginInfo
from dba_core.registry.options import structure_options
from dba_core.registry.registry import Registry
from dba_core.registry.selection import Selection

State = Literal["passed over", "not asked", "blocked", "broken"]


@attrs.frozen(kw_only=True)
class Other:
    """A plugin that was not chosen.

    why: in a sentence. reasons: its own against the request; empty where it supports it or cannot be asked.
    """

    info: PluginInfo
    state: State
    why: str
    reasons: tuple[Reason, ...] = ()


def explain_others(registry: Registry, selection: Selection) -> list[Other]:
    """Every other plugin of the kind: those that `auto` tried first, then the rest by name."""
    order = [name for name, _ in registry.auto_order(selection.kind, device=selection.request.device)]
    tried = [passed.name for passed in selection.passed_over]
    others = [
        _explained(registry, info, selection, tried=info.name in tried, is_listed=info.name in order)
        for info in registry.list(selection.kind)
        if info.qualified != selection.info.qualified
    ]
    ranks = {name: rank for rank, name in enumerate(tried)}
    return sorted(others, key=lambda other: ranks.get(other.info.name, len(ranks)))


def _explained(
    registry: Registry, info: PluginInfo, selection: Selection, *, tried: bool, is_listed: bool
) -> Other:
    refusal = registry.access.refusal(info)
    if refusal is not None:
        return Other(info=info, state="blocked", why=refusal)
    try:
        loaded = registry.load(info.kind, info.qualified)
        options = structure_options(loaded, {})
    except DBAError as error:
        return Other(info=info, state="broken", why=str(error))
    answer = registry.ask(loaded, selection.request, options)
    if isinstance(answer, str):
        return Other(info=info, state="broken", why=answer)
    state: State = "passed over" if tried else "not asked"
    why = _why(selection, tried=tried, is_listed=is_listed)
    verdict = "; ".join(map(str, answer.reasons or answer.next_is_better))
    if answer.ok:
        verdict = f"it supports the request{f', but {verdict}' if verdict else ''}"
    return Other(info=info, state=state, why=f"{why}; {verdict}" if why else verdict, reasons=answer.reasons)


def _why(selection: Selection, *, tried: bool, is_listed: bool) -> str:
    if tried:
        return ""
    if not selection.why.startswith("auto"):
        return f"{selection.name!r} was {selection.why}"
    return "later in the order of auto" if is_listed else "not in the order of auto, only chosen by name"
