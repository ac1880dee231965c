"""Which plugin is chosen for each kind, and what a run recorded about it."""

from __future__ import annotations

from typing import Any

import attrs

from dba_core.config.converter import Serializable
from dba_core.config.exact import exact_types
from dba_core.config.validators import not_empty
from dba_core.contracts import Kind


@attrs.frozen(kw_only=True, field_transformer=exact_types)
class PluginRecord(Serializable):
    """What a run really used: written by the registry, checked when the configuration is run again."""

    distribution: str
    version: str
    contract: int
    why: str


@attrs.frozen(field_transformer=exact_types)
class PluginChoice(Serializable):
    """A plugin by name (`auto`: the registry chooses) and its options; `record` only in a resolved config."""

    name: str = attrs.field(default="auto", validator=not_empty)
    options: dict[str, Any] = attrs.field(factory=dict, kw_only=True)
    record: PluginRecord | None = attrs.field(default=None, kw_only=True)

    @classmethod
    def prepare(cls, data: Any) -> Any:
        """A bare name stands for a choice without options."""
        return {"name": data} if isinstance(data, str) else data


@attrs.frozen(kw_only=True, field_transformer=exact_types)
class PluginChoices(Serializable):
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
