"""The contract window: N is taken, N-1 for a time with a warning, everything else is refused."""

from __future__ import annotations

import warnings

import pytest
from fake_site import GOOD_GATE, FakeSite, gate_contract, gate_request

from dba_core.config import PluginChoice, PluginChoices, PluginRecord
from dba_core.errors import DeprecatedContractWarning, PluginError, RecordMismatchError
from dba_core.kinds import KINDS
from dba_core.registry import check_records
from dba_core.registry.plugin_loading import accepts

#: The contract of gates, and until when the one before is taken.
WINDOW, CLOSED, SECOND = (3, "0.9"), (3, None), (2, "0.9")


def stating(contract: object) -> str:
    """The source of a gate that states this contract."""
    return GOOD_GATE.replace("contract = 1", f"contract = {contract!r}")


def test_this_library_takes_its_own_contracts() -> None:
    assert all(accepts(name, kind.contract) for name, kind in KINDS.items())


@pytest.mark.parametrize(
    ("terms", "contract", "taken"),
    [
        (WINDOW, 3, "taken"),
        (WINDOW, 2, "deprecated"),
        (WINDOW, 1, "install a newer version of the plugin, or an older dba"),
        (WINDOW, 4, "install a newer dba, or an older version of the plugin"),
        (CLOSED, 3, "taken"),
        (CLOSED, 2, "written for gate contract 2, this dba has contract 3: install a newer version of the"),
        (WINDOW, 1, "this dba has contract 3 and, until dba 0.9, contract 2"),
        (WINDOW, True, "its contract is True; contract must be a whole number, here 3"),
        (WINDOW, "3", "its contract is '3'; contract must be a whole number"),
        (WINDOW, None, "its contract is None; contract must be a whole number"),
        (SECOND, True, "its contract is True; contract must be a whole number"),
    ],
)
@pytest.mark.filterwarnings("ignore::dba_core.errors.DeprecatedContractWarning")
def test_which_numbers_are_taken(
    site: FakeSite, terms: tuple[int, str | None], contract: object, taken: str
) -> None:
    site.gate("old", distribution="acme", source=stating(contract))
    registry = site.registry()
    with gate_contract(terms[0], previous_until=terms[1]):
        if taken in ("taken", "deprecated"):
            assert (registry.load("gate", "old").deprecation is not None) is (taken == "deprecated")
            return
        with pytest.raises(PluginError, match="cannot be used") as caught:
            registry.select("gate", "old", gate_request())
        assert taken in str(caught.value)
        (info,) = registry.list("gate")
        assert info.problem is not None
        assert taken in info.problem


def test_a_plugin_of_the_previous_contract_works_and_warns_once(site: FakeSite) -> None:
    site.gate("old", distribution="acme", source=stating(2))
    registry = site.registry()
    said = (
        "it was written for gate contract 2, which dba 0.9 drops; this dba has contract 3: install a newer "
        "version of the plugin before you update dba"
    )
    with gate_contract(3, previous_until="0.9"):
        with pytest.warns(DeprecatedContractWarning) as caught:
            loaded = registry.load("gate", "old")
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


@pytest.mark.parametrize(
    ("terms", "contract", "same"),
    [(WINDOW, 2, True), (CLOSED, 2, False), (WINDOW, 1, False), (WINDOW, 4, False)],
)
def test_a_recorded_contract_may_be_any_that_is_taken(
    site: FakeSite, terms: tuple[int, str | None], contract: int, same: bool
) -> None:
    site.gate("old", distribution="acme")
    registry = site.registry()
    record = PluginRecord(
        distribution="acme", version="1.0", contract=contract, how="named", why="chosen by name"
    )
    choice = PluginChoice("old", record=record)
    with gate_contract(terms[0], previous_until=terms[1]):
        if same:
            assert check_records(PluginChoices(gate=choice), registry, allow_drift=False) == []
            return
        with pytest.raises(RecordMismatchError, match=f"under contract {contract}, this dba has contract 3"):
            check_records(PluginChoices(gate=choice), registry, allow_drift=False)


def test_a_plugin_that_reads_the_number_from_the_library_was_written_for_the_first_contract(
    site: FakeSite,
) -> None:
    """As plugins did when that was the way to write it."""
    source = GOOD_GATE.replace("contract = 1", 'contract = CONTRACT_VERSIONS["gate"]')
    source = source.replace("import Reason", "import CONTRACT_VERSIONS, Reason")
    site.gate("old", distribution="acme", source=source)
    assert site.registry().load("gate", "old").plugin.contract == 1
    with gate_contract(2), pytest.raises(PluginError, match="written for gate contract 1"):
        site.registry().load("gate", "old")
