"""Which plugin is chosen for each kind, and what a run recorded about it."""

from __future__ import annotations

from typing import Any

import attrs

from dba_core.config.validators import not_empty
from dba_core.contracts import Kind


@attrs.frozen(kw_only=True)
class PluginRecord:
    """What a run really used: written by the registry, checked when the configuration is run again."""

    distribution: str
    version: str
    contract: int
    why: str


@attrs.frozen
class PluginChoice:
    """A plugin by name (`auto` lets the registry choose) with its options; `record` only in a resolved config."""

    name: str = attrs.field(default="auto", validator=not_empty)
    options: dict[str, Any] = attrs.field(factory=dict, kw_only=True)
    record: PluginRecord | None = attrs.field(default=None, kw_only=True)


@attrs.frozen(kw_only=True)
class PluginChoices:
    """One choice per kind."""

    summarizer: PluginChoice = attrs.field(factory=PluginChoice)
    gate: PluginChoice = attrs.field(factory=PluginChoice)
    null_token: PluginChoice = attrs.field(factory=PluginChoice)
    decode_backend: PluginChoice = attrs.field(factory=PluginChoice)

    def of(self, kind: Kind) -> PluginChoice:
        """The choice of one kind."""
        choices: dict[Kind, PluginChoice] = {
            "summarizer": self.summarizer,
            "gate": self.gate,
            "null_token": self.null_token,
            "decode_backend": self.decode_backend,
        }
        return choices[kind]
