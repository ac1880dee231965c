"""What the registry did with each plugin and how long it took: imports, hook calls, questions, builds.

Kept by every registry; `--trace-plugins` prints each event when it happens. A time includes what the plugin
itself imports, torch say, when it is the first to do so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import attrs

from dba_core.registry.discovery import PluginInfo

Action = Literal["import", "hook", "supports", "build"]


@attrs.frozen(kw_only=True)
class TraceEvent:
    """One thing that was done with a plugin. what: the module, the hook, or the answer."""

    plugin: str
    action: Action
    what: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.plugin}: {self.action} {self.seconds * 1000:.1f} ms, {self.what}"


@attrs.define
class Step:
    """What is being done; `what` is filled in when it is known."""

    what: str = "raised an error"


class Trace:
    """The events so far, in their order. sink: called with each one."""

    def __init__(self, sink: Callable[[TraceEvent], None] | None = None) -> None:
        self.events: list[TraceEvent] = []
        self._sink = sink

    @contextmanager
    def step(self, info: PluginInfo, action: Action) -> Iterator[Step]:
        """Time what happens inside; it counts when it fails, too."""
        step = Step()
        started = time.perf_counter()
        try:
            yield step
        finally:
            self._add(info, action, step.what, time.perf_counter() - started)

    def totals(self) -> dict[str, dict[Action, tuple[int, float]]]:
        """For each plugin and action: how often, and the seconds together."""
        totals: dict[str, dict[Action, tuple[int, float]]] = {}
        for event in self.events:
            row = totals.setdefault(event.plugin, {})
            count, seconds = row.get(event.action, (0, 0.0))
            row[event.action] = count + 1, seconds + event.seconds
        return totals

    def _add(self, info: PluginInfo, action: Action, what: str, seconds: float) -> None:
        event = TraceEvent(plugin=f"{info.kind} {info.qualified}", action=action, what=what, seconds=seconds)
        self.events.append(event)
        if self._sink is not None:
            self._sink(event)
