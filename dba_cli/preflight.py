"""What can be refused before torch is imported, which takes seconds: a plugin's name, a corpus that is not there.

Called by the commands between reading their options and their work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dba_core.config.run import RunConfig
    from dba_core.registry import Registry


def check_config(config: RunConfig, registry: Registry) -> None:
    """Raises PluginError, ConfigError or DataError."""
    from dba_core.registry import check_names

    check_names(config.plugins, registry)
    check_data(config.data.source)


def check_data(source: str | None) -> None:
    """Raises DataError for a corpus that is not there; None is the run's own."""
    from dba_core.data.corpus import check_source

    if source is not None:
        check_source(source)
