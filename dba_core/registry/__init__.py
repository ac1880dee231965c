"""Finding, loading, choosing and recording plugins. Plugins are reached only through here."""

from __future__ import annotations

from dba_core.registry.catalogue import Access
from dba_core.registry.checks import check_names, check_options, check_record, check_records, refuse_fallbacks
from dba_core.registry.discovery import PluginInfo
from dba_core.registry.loading import LoadedPlugin
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
