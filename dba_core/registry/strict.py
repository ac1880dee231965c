"""`--strict`: a choice of `auto` that is not its first one is an error, with the reasons.

What the user blocked is no fallback: it was asked for. Called before a run starts and by `dba plugins why`.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from dba_core.contracts import Reason
from dba_core.errors import UnsupportedError
from dba_core.registry.layer_ranges import in_words
from dba_core.registry.selection import Selection


def refuse_fallbacks(selections: Iterable[tuple[str, Selection]]) -> None:
    """Raise UnsupportedError that lists every plugin which `auto` would rather have taken.

    selections: each with the layers that it is for.
    """
    reasons: list[Reason] = []
    instead: dict[str, None] = {}
    for layers, selection in selections:
        if selection.fallbacks:
            instead[f"--plugin {selection.kind}={selection.name}"] = None
        for passed in selection.fallbacks:
            reasons += [
                attrs.evolve(reason, subject=f"{selection.kind} of {in_words(layers)}, {reason.subject}")
                for reason in passed.named_reasons()
            ]
    if reasons:
        raise UnsupportedError(
            f"--strict allows no fallback; choose what runs by name ({' '.join(instead)}), or leave out "
            "--strict. Passed over:",
            reasons=tuple(reasons),
        )
