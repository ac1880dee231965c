"""Finding, loading, choosing and recording plugins. Plugins are reached only through here.

The names are imported on first use: a listing of what is installed needs few of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dba_core.registry.access import Access as Access
    from dba_core.registry.checks import check_names as check_names
    from dba_core.registry.checks import check_options as check_options
    from dba_core.registry.checks import check_records as check_records
    from dba_core.registry.checks import refuse_fallbacks as refuse_fallbacks
    from dba_core.registry.discovery import PluginInfo as PluginInfo
    from dba_core.registry.plugin_loading import LoadedPlugin as LoadedPlugin
    from dba_core.registry.registry import Registry as Registry
    from dba_core.registry.selection import PassedOver as PassedOver
    from dba_core.registry.selection import Selection as Selection
    from dba_core.registry.trace import Trace as Trace
    from dba_core.registry.trace import TraceEvent as TraceEvent

_NAMES = {
    "access": ("Access",),
    "checks": ("check_names", "check_options", "check_records", "refuse_fallbacks"),
    "discovery": ("PluginInfo",),
    "plugin_loading": ("LoadedPlugin",),
    "registry": ("Registry",),
    "selection": ("PassedOver", "Selection"),
    "trace": ("Trace", "TraceEvent"),
}


def __getattr__(name: str) -> Any:
    for module, names in _NAMES.items():
        if name in names:
            return vars(importlib.import_module(f"{__name__}.{module}"))[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *(name for names in _NAMES.values() for name in names)})
