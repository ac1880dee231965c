"""Finding, loading, choosing and recording plugins. Plugins are reached only through here."""

from __future__ import annotations

from dba_core.registry.discovery import PluginInfo
from dba_core.registry.loading import LoadedPlugin
from dba_core.registry.record import check_record, check_records
from dba_core.registry.registry import Registry
from dba_core.registry.selection import PassedOver, Selection

__all__ = [
    "LoadedPlugin",
    "PassedOver",
    "PluginInfo",
    "Registry",
    "Selection",
    "check_record",
    "check_records",
]
