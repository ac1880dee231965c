"""The chosen plugins of a configuration against what is installed, before anything is read or built.

Names need metadata only, so that a wrong one is known before torch is imported; options need their plugin.
"""

from __future__ import annotations

from dba_core.kinds import per_layer
from dba_core.registry.choice import PluginChoices
from dba_core.registry.options import refuse_options_of_auto, structure_options
from dba_core.registry.registry import Registry


def check_names(choices: PluginChoices, registry: Registry) -> None:
    """Raise PluginError for a name that is unknown or ambiguous, here or in the allow and block lists, and
    ConfigError for options of `auto`.

    Imports no plugin. Choices with a record are left to the check of the records.
    """
    registry.list(per_layer()[0])  # which checks the allow and block lists
    for _, kind, choice in choices.entries():
        if choice.name == "auto":
            refuse_options_of_auto(kind, choice.options)
        elif choice.record is None:
            registry.find(kind, choice.name)


def check_options(choices: PluginChoices, registry: Registry) -> None:
    """Import what is chosen by name. Raises PluginError for what cannot be used, ConfigError for options."""
    check_names(choices, registry)
    for _, kind, choice in choices.entries():
        if choice.name != "auto":
            record = choice.record
            loaded = registry.load(kind, choice.name, distribution=record.distribution if record else None)
            structure_options(loaded, choice.options)
