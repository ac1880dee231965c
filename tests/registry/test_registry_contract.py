"""The contract window: N is taken, N-1 for a time with a warning, everything else is refused."""

from __future__ import annotations

import warnings

import pytest
from fake_site import GOOD_GATE, FakeSite, gate_request

from dba_core.config import PluginChoice, PluginRecord
from dba_core.errors import DeprecatedContractWarning, PluginError, RecordMismatchError
from dba_core.kinds import KINDS
from dba_core.registry import ContractTerms, check_record
from dba_core.registry.contract import current_terms

WINDOW = ContractTerms(number=3, previous_until="0.9")
CLOSED = ContractTerms(number=3)


def test_this_library_takes_its_own_contracts() -> None:
    for kind in KINDS:
        terms = current_terms()[kind]
        assert terms.number == KINDS[kind].contract
        assert terms.accepts(KINDS[kind].contract)


@pytest.mark.parametrize(
    ("terms", "contract", "accepted", "deprecated"),
    [
        (WINDOW, 3, True, False),
        (WINDOW, 2, True, True),
        (WINDOW, 1, False, False),
        (WINDOW, 4, False, False),
        (CLOSED, 3, True, False),
        (CLOSED, 2, False, False),
        (WINDOW, True, False, False),
        (WINDOW, "3", False, False),
        (WINDOW, None, False, False),
        (ContractTerms(number=2, previous_until="0.9"), True, False, False),
    ],
)
def test_which_numbers_are_taken(
    terms: ContractTerms, contract: object, accepted: bool, deprecated: bool
) -> None:
    assert terms.accepts(contract) is accepted
    assert (terms.problem("gate", contract) is None) is accepted
    if accepted:
        assert isinstance(contract, int)
        assert (terms.deprecation("gate", contract) is not None) is deprecated


def test_a_plugin_of_the_previous_contract_works_and_warns_once(site: FakeSite) -> None:
    site.gate("old", distribution="acme", source=GOOD_GATE.replace("contract = 1", "contract = 2"))
    registry = site.registry(terms={**current_terms(), "gate": WINDOW})
    with pytest.warns(DeprecatedContractWarning) as caught:
        loaded = registry.load("gate", "old")
    said = (
        "it was written for gate contract 2, which dba 0.9 drops; this dba has contract 3: install a newer "
        "version of the plugin before you update dba"
    )
    assert [str(each.message) for each in caught] == [f"gate 'old' of acme 1.0: {said}"]
    assert loaded.deprecation == said
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        selection = registry.select("gate", "old", gate_request())
    assert selection.deprecation == said
    assert selection.build() == "old 0.5 cpu"
    record = selection.choice().record
    assert record is not None
    assert record.contract == 2


def test_a_plugin_older_than_the_window_is_refused(site: FakeSite) -> None:
    site.gate("old", distribution="acme")
    for terms in (WINDOW, CLOSED):
        registry = site.registry(terms={**current_terms(), "gate": terms})
        with pytest.raises(PluginError, match="install a newer version of the plugin, or an older dba"):
            registry.load("gate", "old")


@pytest.mark.parametrize(
    ("terms", "contract", "same"), [(WINDOW, 2, True), (CLOSED, 2, False), (WINDOW, 1, False)]
)
def test_a_recorded_contract_may_be_any_that_is_taken(
    site: FakeSite, terms: ContractTerms, contract: int, same: bool
) -> None:
    site.gate("old", distribution="acme")
    registry = site.registry(terms={**current_terms(), "gate": terms})
    record = PluginRecord(distribution="acme", version="1.0", contract=contract, why="chosen by name")
    choice = PluginChoice("old", record=record)
    if same:
        assert check_record("gate", choice, registry, allow_drift=False) is None
        return
    with pytest.raises(RecordMismatchError, match=f"under contract {contract}, this dba has contract 3"):
        check_record("gate", choice, registry, allow_drift=False)
