"""What the registry did with each plugin and how long it took: imports, hook calls, questions, builds.

Kept by every registry, the newest `KEPT` events one by one and all of them in the totals; `--trace-plugins`
prints each event when it happens. A time includes what the plugin itself imports, torch say, when it is the
first to do so.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import attrs

from dba_core.registry.discovery import PluginInfo

#: Events that are kept one by one: a process that lives long asks and builds without end.
KEPT = 1000

Action = Literal["import", "hook", "supports", "build"]


@attrs.define(kw_only=True)
class TraceEvent:
    """One thing that was done with a plugin. what: the module, the hook, or the answer, once it is known."""

    plugin: str
    action: Action
    what: str = "raised an error"
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.plugin}: {self.action} {self.seconds * 1000:.1f} ms, {self.what}"


class Trace:
    """What was done so far. sink: called with each event."""

    def __init__(self, sink: Callable[[TraceEvent], None] | None = None) -> None:
        self._events: deque[TraceEvent] = deque(maxlen=KEPT)
        self._totals: dict[str, dict[Action, tuple[int, float]]] = {}
        self._sink = sink

    @property
    def events(self) -> list[TraceEvent]:
        """The newest `KEPT` events, oldest first."""
        return list(self._events)

    def totals(self) -> dict[str, dict[Action, tuple[int, float]]]:
        """For each plugin and action: how often, and the seconds together."""
        return {plugin: dict(row) for plugin, row in self._totals.items()}

    @contextmanager
    def step(self, info: PluginInfo, action: Action) -> Iterator[TraceEvent]:
        """Time what happens inside; it counts when it fails, too."""
        event = TraceEvent(plugin=f"{info.kind} {info.qualified}", action=action)
        started = time.perf_counter()
        try:
            yield event
        finally:
            event.seconds = time.perf_counter() - started
            self._events.append(event)
            row = self._totals.setdefault(event.plugin, {})
            count, before = row.get(action, (0, 0.0))
            row[action] = count + 1, before + event.seconds
            if self._sink is not None:
                self._sink(event)
