"""Finding, loading, choosing and recording plugins. Plugins are reached only through here."""

from __future__ import annotations

from dba_core.registry.access import Access
from dba_core.registry.choices import check_names, check_options
from dba_core.registry.contract import ContractTerms
from dba_core.registry.discovery import PluginInfo
from dba_core.registry.loading import LoadedPlugin
from dba_core.registry.record import check_record, check_records
from dba_core.registry.registry import Registry
from dba_core.registry.selection import PassedOver, Selection
from dba_core.registry.strict import refuse_fallbacks
from dba_core.registry.trace import Trace, TraceEvent

__all__ = [
    "Access",
    "ContractTerms",
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
