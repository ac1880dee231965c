"""What can be refused before torch is imported, which takes seconds: the configuration and its plugins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dba_core.config.loading import LoadedConfig
    from dba_core.registry import Registry
    from dba_core.runs.choosing import ConfigChoice


def load_checked(flags: ConfigChoice, registry: Registry) -> LoadedConfig:
    """The configuration, with plugins that are installed. Raises PluginError or ConfigError."""
    from dba_core.registry import check_names

    _check_plugin_words(flags.plugins, registry)
    loaded = flags.load()
    check_names(loaded.config.plugins, registry)
    return loaded


def _check_plugin_words(texts: Sequence[str], registry: Registry) -> None:
    """Raises ConfigError for a `--plugin` that is a plugin's name or a kind alone, with the whole of it."""
    from dba_core.errors import ConfigError

    for text in texts:
        word = text.strip().rstrip("=")
        infos = registry.list() if "=" not in word else []
        ways = [f"{info.kind}={info.name}" for info in infos if word in (info.name, info.kind)]
        if ways:
            raise ConfigError(f"--plugin {text!r} is not kind=name; write --plugin {' or '.join(ways)}")
