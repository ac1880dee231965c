"""Which contract numbers are taken: this library's own N, and for a time N-1, with a warning until when.

Called by `loading` for every plugin and by `record` for recorded ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from dba_core.contracts import Kind
from dba_core.kinds import KINDS
from dba_core.registry.contain import shown

#: Characters of a contract number that errors show.
_SHOWN = 24


@attrs.frozen(kw_only=True)
class ContractTerms:
    """The contract of one kind. previous_until: the version of dba that drops contract `number - 1`; None
    where that is not taken (any more).
    """

    number: int
    previous_until: str | None = None

    def accepts(self, contract: object) -> bool:
        """Whether a plugin that states this number is taken."""
        return type(contract) is int and (contract == self.number or self._is_previous(contract))

    def problem(self, kind: Kind, contract: Any) -> str | None:
        """Why a plugin that states this number is refused, and what to do; None when it is taken."""
        if self.accepts(contract):
            return None
        if type(contract) is not int:
            return f"its contract is {shown(contract)}; contract must be a whole number, here {self.number}"
        if contract > self.number:
            todo = "install a newer dba, or an older version of the plugin"
        else:
            todo = "install a newer version of the plugin, or an older dba"
        taken = f"contract {self.number}"
        if self.previous_until is not None:
            taken += f" and, until dba {self.previous_until}, contract {self.number - 1}"
        return f"it was written for {kind} contract {contract_text(contract)}, this dba has {taken}: {todo}"

    def deprecation(self, kind: Kind, contract: int) -> str | None:
        """The warning for a plugin that is taken for now, None for one of the current contract."""
        if not self._is_previous(contract):
            return None
        return (
            f"it was written for {kind} contract {contract}, which dba {self.previous_until} drops; this dba "
            f"has contract {self.number}: install a newer version of the plugin before you update dba"
        )

    def _is_previous(self, contract: int) -> bool:
        return self.previous_until is not None and contract == self.number - 1


def contract_text(contract: object) -> str:
    """A contract number in an error text, a long one shortened."""
    text = shown(contract)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


Terms = Mapping[Kind, ContractTerms]


def current_terms() -> Terms:
    """Those of this library."""
    return {
        name: ContractTerms(number=kind.contract, previous_until=kind.previous_until)
        for name, kind in KINDS.items()
    }
