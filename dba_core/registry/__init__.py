"""Finding, loading, choosing and recording plugins. Plugins are reached only through here.

The names are imported on first use: a listing of what is installed needs few of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dba_core.registry.catalogue import Access
    from dba_core.registry.checks import (
        check_names,
        check_options,
        check_record,
        check_records,
        refuse_fallbacks,
    )
    from dba_core.registry.discovery import PluginInfo
    from dba_core.registry.plugin_loading import LoadedPlugin
    from dba_core.registry.registry import Registry
    from dba_core.registry.selection import PassedOver, Selection
    from dba_core.registry.trace import Trace, TraceEvent

__all__ = [
    "Access",
    "LoadedPlugin",
    "PassedOver",
    "PluginInfo",
    "Registry",
    "Selection",
    "Trace",
    "TraceEvent",
    "check_names",
    "check_options",
    "check_record",
    "check_records",
    "refuse_fallbacks",
]

_MODULES = {
    "Access": "catalogue",
    "LoadedPlugin": "plugin_loading",
    "PassedOver": "selection",
    "PluginInfo": "discovery",
    "Registry": "registry",
    "Selection": "selection",
    "Trace": "trace",
    "TraceEvent": "trace",
    "check_names": "checks",
    "check_options": "checks",
    "check_record": "checks",
    "check_records": "checks",
    "refuse_fallbacks": "checks",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return vars(importlib.import_module(f"{__name__}.{_MODULES[name]}"))[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
