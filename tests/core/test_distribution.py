"""The name that the library is installed under: alias of the former one, and the commands in hints."""

from __future__ import annotations

import importlib.metadata
import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_site import GOOD_GATE, FakeSite, empty_site

from dba_core.distribution import canonical, install_command, installed_version
from dba_core.errors import RecordMismatchError
from dba_core.registry import Access, Registry, check_records
from dba_core.registry.choice import PluginChoice, PluginChoices, PluginRecord


@pytest.fixture
def site() -> Iterator[FakeSite]:
    with empty_site() as made:
        yield made


def ours(site: FakeSite, distribution: str, module: str, version: str = "1.0") -> None:
    site.module(module, GOOD_GATE.replace("NAME", "soft"))
    site.distribution(distribution, {"gate": {"soft": module}}, version=version)


def test_the_version_is_that_of_the_metadata() -> None:
    assert installed_version() == importlib.metadata.version("dba-attention")


@pytest.mark.parametrize(
    ("name", "same"),
    [("dba", "dba-attention"), ("DBA_Attention", "dba-attention"), ("dba.attention", "dba-attention")],
)
def test_our_names_are_one(name: str, same: str) -> None:
    assert canonical(name) == same
    assert canonical("dba-mean") == "dba-mean"


@pytest.mark.parametrize("recorded", ["dba", "dba-attention"])
def test_a_record_under_either_name_is_that_of_ours(site: FakeSite, recorded: str) -> None:
    ours(site, "dba-attention", "ours_soft")
    site.gate("soft", distribution="copycat")
    record = PluginRecord(distribution=recorded, version="1.0", contract=1, how="named", why="chosen by name")
    registry = site.registry()
    assert (
        check_records(PluginChoices(gate=PluginChoice("soft", record=record)), registry, allow_drift=False)
        == []
    )
    assert registry.find("gate", "soft", distribution=recorded).module == "ours_soft"
    assert registry.find("gate", f"{recorded}:soft").module == "ours_soft"
    assert registry.find("gate", f"{recorded}:soft").qualified == "dba-attention:soft"


def test_a_record_of_another_version_of_the_former_name_is_a_mismatch(site: FakeSite) -> None:
    ours(site, "dba-attention", "ours_soft", version="2.0")
    record = PluginRecord(distribution="dba", version="1.0", contract=1, how="named", why="chosen by name")
    with pytest.raises(RecordMismatchError, match=r"recorded with dba 1\.0, installed is dba-attention 2\.0"):
        check_records(
            PluginChoices(gate=PluginChoice("soft", record=record)), site.registry(), allow_drift=False
        )


@pytest.mark.parametrize("entry", ["dba:*", "dba:soft", "gate=dba:soft", "dba-attention:*"])
def test_allow_and_block_lists_take_either_name(site: FakeSite, entry: str) -> None:
    ours(site, "dba-attention", "ours_soft")
    site.gate("hard", distribution="acme")

    def usable(access: Access) -> set[str]:
        return {info.name for info in site.registry(access=access).list("gate") if not info.problem}

    assert usable(Access(allowed=(entry,))) == {"soft"}
    assert usable(Access(blocked=(entry,))) == {"hard"}


@pytest.mark.parametrize("newest_first", [True, False])
def test_what_an_upgrade_left_behind_makes_no_name_ambiguous(site: FakeSite, newest_first: bool) -> None:
    ours(site, "dba", "left_behind", version="0.1")
    ours(site, "dba-attention", "ours_soft")
    both = sorted(importlib.metadata.distributions(path=[str(site.folder)]), key=lambda each: each.version)
    (found,) = Registry(distributions=both[::-1] if newest_first else both).list("gate")
    assert (found.distribution, found.module, found.problem) == ("dba-attention", "ours_soft", None)


def recorded(monkeypatch: pytest.MonkeyPatch, document: object | None) -> None:
    """As if pip had written this direct_url.json (None: none, as from an index)."""
    text = None if document is None else json.dumps(document)
    monkeypatch.setattr(importlib.metadata.Distribution, "read_text", lambda self, name: text)
    monkeypatch.setattr(importlib.metadata.PathDistribution, "read_text", lambda self, name: text)


@pytest.mark.parametrize(
    "document",
    [
        None,
        {"url": "file:///somewhere/dba", "dir_info": {}},
        {"url": "https://example.org/dba_attention.whl", "archive_info": {}},
    ],
)
def test_from_an_index_the_hint_names_the_distribution(
    monkeypatch: pytest.MonkeyPatch, document: object
) -> None:
    recorded(monkeypatch, document)
    assert install_command("cpu") == "python -m pip install 'dba-attention[cpu]'"


def test_in_an_editable_checkout_the_hint_names_its_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checkout = tmp_path / "a check out"
    checkout.mkdir()
    recorded(monkeypatch, {"url": checkout.as_uri(), "dir_info": {"editable": True}})
    monkeypatch.chdir(checkout)
    assert install_command("gguf") == 'python -m pip install -e ".[gguf]"'
    monkeypatch.chdir(tmp_path)
    words = shlex.split(install_command("gguf"))
    assert words == ["python", "-m", "pip", "install", "-e", f"{checkout.resolve()}[gguf]"]
