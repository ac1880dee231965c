"""What a resolved configuration recorded against what is installed."""

from __future__ import annotations

import sys

import attrs
import pytest
from fake_site import FakeSite

from dba_core.config import PluginChoice, PluginChoices, PluginRecord
from dba_core.errors import RecordMismatchError
from dba_core.registry import check_records

RECORD = PluginRecord(distribution="d-one", version="1.0", contract=1, how="named", why="chosen by name")
CHOICE = PluginChoice("one", record=RECORD)


def test_equal_is_fine_and_imports_nothing(site: FakeSite) -> None:
    module = site.gate("one", distribution="D_One")
    registry = site.registry()
    assert check_records(PluginChoices(gate=CHOICE), registry, allow_drift=False) == []
    assert (
        check_records(
            PluginChoices(gate=PluginChoice("d-one:one", record=RECORD)), registry, allow_drift=False
        )
        == []
    )
    assert module not in sys.modules


def test_no_record_is_fine(site: FakeSite) -> None:
    assert (
        check_records(PluginChoices(gate=PluginChoice("missing")), site.registry(), allow_drift=False) == []
    )


@pytest.mark.parametrize(
    ("installed", "record", "texts"),
    [
        (("d-one", "1.1"), RECORD, ["recorded with d-one 1.0", "installed is d-one 1.1"]),
        (("d-two", "1.0"), RECORD, ["d-one 1.0, which is not installed", "installed: d-two 1.0"]),
        (None, RECORD, ["d-one 1.0, which is not installed", "nothing installed provides it"]),
        (("d-one", "1.0"), attrs.evolve(RECORD, contract=0), ["under contract 0, this dba has contract 1"]),
    ],
)
def test_drift(
    site: FakeSite, installed: tuple[str, str] | None, record: PluginRecord, texts: list[str]
) -> None:
    if installed:
        site.gate("one", distribution=installed[0], version=installed[1])
    registry = site.registry()
    choice = PluginChoice("one", record=record)
    with pytest.raises(RecordMismatchError) as caught:
        check_records(PluginChoices(gate=choice), registry, allow_drift=False)
    (warning,) = check_records(PluginChoices(gate=choice), registry, allow_drift=True)
    for text in [*texts, "gate 'one'"]:
        assert text in str(caught.value)
        assert text in warning
    assert "allow_drift=True" in str(caught.value)
    assert caught.value.exit_code == 5


def test_the_recorded_distribution_counts_not_its_namesake(site: FakeSite) -> None:
    site.gate("one", distribution="d-one")
    site.gate("one", distribution="other", version="9")
    assert check_records(PluginChoices(gate=CHOICE), site.registry(), allow_drift=False) == []


def test_all_kinds(site: FakeSite) -> None:
    site.gate("one", distribution="d-one", version="2.0")
    choices = PluginChoices(gate=CHOICE, null_token=CHOICE)
    with pytest.raises(RecordMismatchError):
        check_records(choices, site.registry(), allow_drift=False)
    warnings = check_records(choices, site.registry(), allow_drift=True)
    assert [warning.partition(" was")[0] for warning in warnings] == ["gate 'one'", "null_token 'one'"]
    assert check_records(PluginChoices(), site.registry(), allow_drift=False) == []
